"""The summary of a report: what the headline rests on, and how numbers and settings are written."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import lede, parse

from equipoise.report import report
from equipoise.report.pages import duration, radius, value
from equipoise.results.records import AttackRecord, save

pytestmark = pytest.mark.unchecked

PGD = {"steps": {"kind": "Fixed", "most": 40}, "restarts": 5}


@pytest.mark.parametrize(
    ("results", "attacks", "cautions"),
    [
        (
            [("pgd", PGD)],
            "This rests on PGD (40 steps, 5 starts) with n = 1000 images, which is",
            ["PGD alone may miss"],
        ),
        (
            [("fgsm", {"steps": {"most": 1}, "restarts": 1}), ("pgd", PGD)],
            "This rests on FGSM (1 step, 1 start) and PGD (40 steps, 5 starts) with n = 1000 images, which is",
            ["FGSM and PGD alone may miss"],
        ),
        (
            [("pgd", PGD), ("autoattack", {"parts": [{"name": "apgd-ce"}, {"name": "square"}]})],
            "This rests on PGD (40 steps, 5 starts) and AutoAttack with n = 1000 images: strong attacks",
            [],
        ),
        ([("square", {"queries": 5000})], "This rests on Square (5,000 queries) with", ["Square alone may miss"]),
    ],
)
def test_the_headline_says_what_it_rests_on(results, attacks, cautions, run_directory, evaluation, tmp_path):
    run = run_directory("udp", None)
    made = [AttackRecord(name, "linf", 0.1, [i < 700 for i in range(1000)], settings=s) for name, s in results]
    save(run / "evaluation.json", evaluation({}, results=made))
    said = lede(report([run], tmp_path / "r.html"))
    assert attacks in said
    assert said.count("alone may miss") == said.count("not enough for a claim") == len(cautions) and all(
        caution in said for caution in cautions
    )


@pytest.mark.parametrize(("n", "remarked"), [(42, True), (200, True), (1000, False)])
def test_few_samples_are_remarked(n, remarked, run_directory, evaluation, tmp_path):
    run = run_directory("udp", None)
    save(run / "evaluation.json", evaluation({("autoattack", "linf", 0.1): n * 3 // 5}, n=n))
    said = lede(report([run], tmp_path / "r.html"))
    assert (f"n = {n} samples leave an interval" in said) == remarked
    assert ("evaluate on more, such as --examples 1000" in said) == remarked


def test_no_more_samples_are_asked_for_than_there_are(run_directory, evaluation, tmp_path):
    run = run_directory("udp", None)
    made = evaluation({("autoattack", "linf", 0.1): 30}, n=42)
    save(run / "evaluation.json", evaluation({("autoattack", "linf", 0.1): 30}, n=42, data=made.data | {"n_test": 42}))
    said = lede(report([run], tmp_path / "r.html"))
    assert "points wide, and the test set has no more." in said and "evaluate on more" not in said


def test_example_images_say_within_which_radius_they_were_perturbed(run_directory, tmp_path):
    run = run_directory("udp", {("pgd", "linf", 8 / 255): 100})
    with np.load(run / "samples.npz") as file:
        arrays = dict(file)
    arrays |= {"judged": arrays["pgd"], "judged_prediction": arrays["pgd_prediction"], "else_prediction": np.zeros(3)}
    for kind, eps in (("judged", 8 / 255), ("udp", 0.3), ("pgd", 0.3)):
        arrays |= {f"{kind}_norm": np.array("linf"), f"{kind}_eps": np.array(eps)}
    np.savez(run / "samples.npz", **arrays)
    page = parse(report([run], tmp_path / "r.html"))
    heads = [next(row.all("th")).text for row in next(page.all("table", class_="images")).all("tr")][1:]
    assert [" ".join(head.split()) for head in heads] == [
        "Clean",
        "PGD as judgedL∞, ε = 8/255",
        "UDPL∞, ε = 0.3",
        "PGDL∞, ε = 0.3",
    ]


@given(st.integers(1, 254))
def test_a_radius_keeps_its_value(level):
    top, _, bottom = radius(level / 255).partition("/")
    assert float(top) / float(bottom or 1) == pytest.approx(level / 255, abs=1e-6)


@pytest.mark.parametrize(
    ("eps", "text"), [(8 / 255, "8/255"), (0.1, "0.1"), (0.03, "0.03"), (0, "0"), (0.2, "0.2"), (1.5, "1.5")]
)
def test_a_radius_is_written_as_people_write_it(eps, text):
    assert radius(eps) == text


@pytest.mark.parametrize(
    ("changes", "radius_shown"),
    [
        ({"method": {"name": "udp", "eps": 0.1}}, "L∞, ε = 0.1"),
        ({"method": {"name": "udp", "eps": 0.1, "norm": "l2"}}, "L2, ε = 0.1"),
        ({"method": {"name": "standard"}, "recipe": {"valid_eps": 0.05}}, "L∞, ε = 0.05"),
        ({"method": {"name": "standard"}}, "L∞, ε = 0.1"),
    ],
)
def test_the_summary_speaks_of_the_radius_trained_for(changes, radius_shown, run_directory, tmp_path):
    counts = {("pgd", norm, eps): 100 for norm in ("l2", "linf") for eps in (0.05, 0.1, 0.2)}
    page = parse(report([run_directory("a", counts, **changes)], tmp_path / "r.html"))
    assert f"at {radius_shown}, " in next(page.all("div", class_="judged")).text


def test_the_terms_of_a_method_are_for_machines(run_directory, tmp_path):
    method = {"name": "udp", "sum": "ce @ climb", "eps": 0.1, "terms": [{"weight": 1.0, "objective": "unmistakable"}]}
    page = report([run_directory("a", {("pgd", "linf", 0.1): 100}, method=method)], tmp_path / "r.html").read_text()
    assert "ce @ climb" in page
    assert "unmistakable" not in page


def test_settings_are_written_out():
    settings = {
        "step_size": {"kind": "Constant", "size": 2 / 255},
        "return_point": "last",
        "box": {"low": 0.0},
        "resample": False,
    }
    assert value(settings) == "step size (Constant: size 2/255), return point last, box (low 0), resample no"
    assert [value(v) for v in (None, [], {}, [1, 2], "linf", {"kind": "Zero"})] == ["none"] * 3 + ["1, 2", "L∞", "Zero"]


@pytest.mark.parametrize(("seconds", "text"), [(1.26, "1.3 s"), (75, "1 min 15 s"), (3720, "1 h 2 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text

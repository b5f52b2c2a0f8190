"""The three sentences of a report, and runs that differ in their seed alone."""

from dataclasses import replace
from statistics import mean, stdev

import pytest
from pages import parse, table
from scipy.stats import binomtest, t

from equipoise.report import report
from equipoise.report.accuracy import compare
from equipoise.report.reading import read
from equipoise.report.seeds import grouped
from equipoise.report.summary import sentences
from equipoise.results.outcomes import CertifiedResult
from equipoise.results.records import AttackRecord, ResultWarning, save

pytestmark = pytest.mark.unchecked

ONE = {("clean", "linf", 0.0): 1}
STRONG = {"parts": [{"name": "apgd-ce"}, {"name": "square"}]}


@pytest.fixture
def model(run_directory, evaluation):
    """Makes a run of which so many of 1000 images withstand no attack, and AutoAttack."""

    def make(name, clean, robust, *, n=1000, settings=STRONG, eps=0.1, seed=None, method=None, **changes):
        provenance = {"provenance": replace(evaluation(ONE).provenance, seed=seed or 0)}
        run = run_directory(name, None, method_name=method or name, **provenance)
        results = [
            AttackRecord(attack, "linf", radius, [i < right for i in range(n)], settings=own)
            for attack, radius, right, own in (("clean", 0.0, clean, {}), ("autoattack", eps, robust, settings))
            if right is not None
        ]
        save(run / "evaluation.json", evaluation({}, results=results, **changes))
        return run

    return make


def said(*paths):
    """The sentences of each test set."""
    return [sentences(grouped(comparison)) for comparison in compare(read(paths))]


def test_a_clear_winner_its_price_and_what_it_rests_on(model):
    low, high = binomtest(650, 1000).proportion_ci(method="wilson")
    assert said(model("standard", 990, 10), model("udp", 900, 650), model("trades", 890, 560)) == [
        (
            "On digits (test split), when every pixel may change by up to 0.1 of its range (L∞), UDP is the most "
            f"robust of 3 models: it gets 65.0 % (95 % interval {100 * low:.1f}–{100 * high:.1f}) of the attacked "
            "images right, 9.0 points more than the next, TRADES.",
            "Of the unchanged images, UDP gets 90.0 % right, 9.0 points less than the best at that, Standard, with "
            "99.0 %.",
            "This rests on AutoAttack with n = 1000 images: strong attacks and enough images, though a stronger attack "
            "may still leave less.",
        )
    ]


def test_a_model_without_gradients_is_told_of_attacks_that_need_none(model):
    ((*_, third),) = said(model("box", 900, 650, settings={}, model={"sha256": "0", "answers": "scores"}))
    assert "more --queries, or by --attacks pgd --transfer-from RUN" in third and "autoattack." not in third


def test_models_within_the_interval_are_not_ranked(model):
    ((first, second, _),) = said(model("a", 900, 650), model("b", 905, 640), model("c", 850, 300))
    assert "A and B are the most robust of 3 models, too close to tell apart: A gets 65.0 %" in first
    assert first.endswith("the intervals overlap; the next, C, gets 30.0 %.")
    assert second.endswith("A gets 90.0 % and B 90.5 % right, and no model here is reliably better at that than B.")
    ((first, *_),) = said(model("d", 900, 650), model("e", 905, 640))
    assert "none of the 2 models is reliably more robust than the others: D gets 65.0 %" in first


def test_of_many_models_the_range_is_said(model):
    ((first, second, _),) = said(*(model(name, 900 + k, 650 + k) for k, name in enumerate("abcd")))
    assert "D gets 65.3 % (95 % interval 62.3–68.2) and the others 65.0 to 65.2 % of the attacked images right" in first
    assert second.startswith("Of the unchanged images, D gets 90.3 % and the others 90.0 to 90.2 % right")


def test_a_model_that_keeps_clean_accuracy_and_one_within_its_interval(model):
    assert said(model("a", 950, 700), model("b", 900, 600))[0][1] == (
        "Of the unchanged images, A gets 95.0 % right, and no model here is reliably better at that."
    )
    assert said(model("c", 948, 700), model("d", 950, 600))[0][1] == (
        "Of the unchanged images, C gets 94.8 % right, not reliably less than the best at that, D, with 95.0 %."
    )


def test_models_attacked_in_different_ways_are_not_ranked(model, tmp_path):
    weak = {"steps": 20}
    runs = model("a", 950, 700, settings=weak), model("b", 900, 600), model("c", 900, 500)
    ((first, _, third),) = said(*runs)
    assert "goes from 50.0 % (C) to 70.0 % (A), but the models were not attacked alike" in first
    assert third == (
        "The attacks were AutoAttack (20 steps) on A; AutoAttack on B and C: evaluate all with the same, such as "
        "--attacks autoattack."
    )
    judged = next(parse(report(runs, tmp_path / "r.html")).all("div", class_="judged"))
    for row in list(judged.all("tr"))[1:]:
        assert "★" not in next(row.all("td")).text and "≈" not in next(row.all("td")).text


def test_a_model_that_was_not_attacked_there_is_named(model):
    ((first, *_),) = said(model("a", 950, 700), model("b", 900, 600), model("c", 900, None))
    assert "A is the most robust of 2 models" in first and first.endswith("the next, B; C was not attacked there.")


def test_no_model_is_praised_that_gets_nothing_right(model):
    ((first, *_),) = said(model("a", 950, 0), model("b", 900, 0))
    assert "none of the 2 models is robust: no attacked image is classified correctly (95 % interval 0.0–0.4)" in first
    assert "A is not robust: no attacked" in said(model("c", 950, 0, method="a"))[0][0]


def test_without_an_attack_nothing_is_claimed_but_what_is_proven(model, evaluation):
    ((first, second, third),) = said(run := model("a", 950, None))
    assert first == "On digits (test split), no model was attacked, so robustness is unknown."
    assert second == "Of the unchanged images, A gets 95.0 % right."
    assert third.endswith(f"attack them with equipoise evaluate {run} --attacks autoattack.")
    proof = CertifiedResult("ibp", "linf", 0.1, [i < 400 for i in range(1000)], [0.1] * 1000)
    ((first, *_),) = said(model("b", 950, None, certified=[proof]))
    assert first == (
        "On digits (test split), no model was attacked, but proven to be classified correctly are 40.0 % of B when "
        "every pixel may change by up to 0.1 of its range (L∞)."
    )
    assert "(proven against every attack: 40.0 % of C)" in said(model("c", 950, 700, certified=[proof]))[0][2]


def test_warnings_and_unknown_clean_accuracy_are_said(model):
    flag = ResultWarning("randomised model", "logits change", "use eot")
    ((_, second, third),) = said(model("a", None, 700, flags=[flag]))
    assert second.startswith("What this costs without an attack is unknown")
    assert third.endswith("not enough for a claim: warnings about these numbers are listed under Audit.")


def test_each_test_set_has_its_own_sentences(model, tmp_path):
    runs = model("a", 950, 700), model("b", 900, 600, data={"name": "letters", "split": "test", "sha256": "cd"})
    assert [first[:11] for first, *_ in said(*runs)] == ["On digits (", "On letters "]
    ledes = [p.text for p in parse(report(runs, tmp_path / "r.html")).all("p", class_="lede")]
    assert len(ledes) == 3 and "2 different test sets, whose numbers must not be compared" in ledes[0]


def test_runs_of_several_seeds_are_one_row_with_the_single_runs_beside_it(model, tmp_path):
    counts = {0: 650, 1: 640, 2: 690}
    seeds = [model(f"udp-{seed}", 900, right, seed=seed, method="udp") for seed, right in counts.items()]
    out = report([*seeds, model("trades", 890, 560)], tmp_path / "r.html")
    rows = dict(table(parse(out)))
    assert list(rows) == ["UDP", "TRADES"]
    shares = [right / 1000 for right in counts.values()]
    m, student = mean(shares), t.ppf(0.975, 2) * stdev(shares) / 3**0.5
    wilson = binomtest(1980, 3000).proportion_ci(method="wilson")  # only its centre is that of 1000 samples
    cell = rows["UDP"][1]
    low, high = (float(end) for end in cell.split()[2].rstrip(",").split("–"))
    assert cell.startswith(f"★ {100 * m:.1f} ") and cell.endswith(f"±{100 * stdev(shares):.1f}")
    assert low < 100 * (m - student) < 100 * wilson.low and 100 * wilson.high < 100 * (m + student) < high
    details = next(d for d in parse(out).all("details") if "single runs" in next(d.all("summary")).text)
    assert [name.text for name in details.all(class_="name")] == ["UDP (UDP-0)", "UDP (UDP-1)", "UDP (UDP-2)"]
    assert [value.text for value in details.all(class_="value")] == ["90.0", "65.0", "90.0", "64.0", "90.0", "69.0"]
    assert not list(details.all(class_="mark"))
    folded = [s.text for s in parse(out).all("summary") if "the images of" in s.text]
    assert folded == ["Show the images of UDP (UDP-1)", "Show the images of UDP (UDP-2)"]


@pytest.mark.parametrize(
    "other",
    [{"seed": 0}, {"seed": 1, "method": "trades"}, {"seed": 1, "settings": {"steps": 7}}],
    ids=["same seed", "other method", "other attack"],
)
def test_only_runs_that_differ_in_their_seed_alone_are_put_together(model, other):
    runs = [model("first", 900, 650, seed=0, method="udp"), model("second", 900, 650, **{"method": "udp", **other})]
    (comparison,) = map(grouped, compare(read(runs)))
    assert [len(row.members) for row in comparison.rows] == [0, 0]


def test_the_best_is_what_is_highest_at_its_lower_end(model):
    few = model("few", 20, 18, n=20)
    many = model("many", 900, 850)
    (comparison,) = map(grouped, compare(read([few, many])))
    low = [binomtest(k, n).proportion_ci(method="wilson").low for k, n in ((18, 20), (850, 1000))]
    assert low[0] < low[1]
    assert [line.robust_mark for line in comparison.judged] == ["tied", "best"]

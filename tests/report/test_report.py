"""The page of a report: its table of accuracies, marks, rows, and what surrounds them."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import parse, table
from scipy.stats import binomtest

from equipoise.report import report
from equipoise.report.accuracy import significance_marks
from equipoise.results.records import AttackRecord, load, save

pytestmark = pytest.mark.unchecked


def test_the_page_is_whole_accessible_and_needs_nothing_else(three_runs, tmp_path):
    out = report(three_runs, tmp_path / "new" / "report.html")
    assert out == tmp_path / "new" / "report.html"
    page, source = parse(out), out.read_text(encoding="utf-8")
    assert next(page.all("html")).attributes["lang"] == "en"
    assert next(page.all("title")).text == "Robustness report: Standard, PGD-AT, UDP"
    assert len(list(page.all("h1"))) == 1
    assert all(th.attributes.get("scope") in ("col", "row", "colgroup") for th in page.all("th"))
    assert all(next(t.all("caption"), None) for t in page.all("table"))
    assert all(image.attributes["alt"] for image in page.all("img"))
    ids = [node.attributes["id"] for node in page.all() if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    targets = [
        node.attributes[a] for node in page.all() for a in ("href", "src", "aria-labelledby") if a in node.attributes
    ]
    assert len(targets) > 20
    for target in targets:
        assert target.startswith("data:image/png;base64,") or target.removeprefix("#") in ids, target
    for outside in ("http:", "https:", "//cdn", "@import", "<script", "<link"):
        assert outside not in source
    assert set(re.findall(r"url\(.", source)) <= {"url(#"}
    assert out.stat().st_size < 1_000_000


def test_every_number_of_the_table_follows_from_the_records(three_runs, tmp_path):
    rows = table(parse(report(three_runs, tmp_path / "r.html")))
    assert [name for name, _ in rows] == ["Standard", "PGD-AT", "UDP"]
    raw = [json.loads((run / "evaluation.json").read_bytes())["results"] for run in three_runs]
    for (_, cells), results in zip(rows, raw, strict=True):
        assert len(cells) == len(results)
        for cell, result in zip(cells, results, strict=True):
            k, n = sum(result["correct"]), len(result["correct"])
            low, high = binomtest(k, n).proportion_ci(method="wilson")
            assert cell.endswith(f"{100 * k / n:.1f} {100 * low:.1f}–{100 * high:.1f}")


def test_the_best_is_marked_and_what_overlaps_it_does_not_differ_significantly(three_runs, tmp_path):
    page = parse(report(three_runs, tmp_path / "r.html"))
    marks = [[cell[0] if cell[0] in "★≈" else "" for cell in cells] for _, cells in table(page)]
    assert marks == [["★", "", "", "", ""], ["≈", "★", "★", "★", "★"], ["≈", "≈", "≈", "≈", ""]]
    judged = next(page.all("div", class_="judged"))
    assert [value.text for value in judged.all(class_="value")] == ["19.0", "98.0", "79.0", "95.0", "77.5", "96.0"]
    assert [mark.text for mark in judged.all("td") for mark in mark.all(class_="mark")] == ["★", "★", "≈", "≈", "≈"]


@given(st.lists(st.integers(0, 50), min_size=2, max_size=6))
def test_significance_marks_follow_the_intervals(rights):
    results = [AttackRecord("pgd", "linf", 0.1, [i < right for i in range(50)]) for right in rights]
    low = max(binomtest(right, 50).proportion_ci(method="wilson").low for right in rights)
    for right, mark in zip(rights, significance_marks(results), strict=True):
        overlaps = binomtest(right, 50).proportion_ci(method="wilson").high >= low
        assert mark == ("best" if right == max(rights) else "tied" if overlaps else "")


def test_nothing_is_called_best_alone(run_directory, tmp_path):
    page = parse(
        report([run_directory("udp", {("clean", "linf", 0.0): 190, ("pgd", "linf", 0.1): 100})], tmp_path / "r.html")
    )
    assert table(page) == [("UDP", ["95.0 91.0–97.3", "50.0 43.1–56.9"])]
    lede = next(page.all("p", class_="lede")).text
    assert "UDP gets 50.0 % (95 % interval 43.1–56.9) of the attacked images right." in lede
    assert "best" not in lede


def test_best_and_last_weights_are_two_rows(run_directory, evaluation, tmp_path):
    run = run_directory("udp", {("clean", "linf", 0.0): 190})
    save(run / "evaluation-last.json", evaluation({("clean", "linf", 0.0): 180}, weights="last"))
    page = parse(report([run], tmp_path / "r.html"))
    assert [cells[0].split()[0] for _, cells in table(page)] == ["95.0", "90.0"]  # and no mark: they are not compared
    assert [pill.text for pill in list(page.all("tbody"))[1].all(class_="pill")] == ["best weights", "last weights"]


def test_the_summary_does_not_choose_between_a_runs_weights_by_test_accuracy(run_directory, evaluation, tmp_path):
    run = run_directory("udp", {("clean", "linf", 0.0): 180})
    save(run / "evaluation-last.json", evaluation({("clean", "linf", 0.0): 190}, weights="last"))
    page = parse(report([run], tmp_path / "r.html"))
    assert [value.text for value in next(page.all("div", class_="judged")).all(class_="value")] == ["90.0"]


def test_the_marks_of_the_table_follow_the_rule_of_the_summary(run_directory, evaluation, tmp_path):
    """The last weights of a run are better on the test data, which must not choose between them and the best ones."""
    attacked = ("pgd", "linf", 0.1)
    run = run_directory("udp", {("clean", "linf", 0.0): 180, attacked: 150})
    save(run / "evaluation-last.json", evaluation({("clean", "linf", 0.0): 190, attacked: 170}, weights="last"))
    other = run_directory("pgd", {("clean", "linf", 0.0): 150, attacked: 140})
    own = save(
        tmp_path / "own.json",
        evaluation({("clean", "linf", 0.0): 185, attacked: 120}, target="nets:make", weights="given"),
    )
    page = parse(report([run, other, own], tmp_path / "r.html"))
    rows = table(page)
    marks = [[cell[0] if cell[0] in "★≈" else "" for cell in cells] for _, cells in rows]
    assert marks == [["≈", "★"], ["", ""], ["", "≈"], ["★", ""]]
    judged = next(page.all("div", class_="judged"))
    assert [v.text for v in judged.all(class_="value")] == ["75.0", "90.0", "70.0", "75.0", "60.0", "92.5"]
    assert "Last weights are shown beside the best ones and not compared" in page.text
    starred = {cell[2:6] for _, cells in rows for cell in cells if cell.startswith("★")}
    assert starred == {"75.0", "92.5"}


def test_evaluations_of_one_model_share_a_row_unless_they_repeat_an_attack(run_directory, evaluation, tmp_path):
    run = run_directory("udp", {("clean", "linf", 0.0): 190})
    save(run / "evaluation-more.json", evaluation({("pgd", "l2", 1.0): 100}))
    assert table(parse(report([run], tmp_path / "r.html"))) == [("UDP", ["95.0 91.0–97.3", "50.0 43.1–56.9"])]
    save(run / "evaluation-same.json", evaluation({("clean", "linf", 0.0): 190, ("pgd", "l2", 1.0): 100}))
    assert len(table(parse(report([run], tmp_path / "r.html")))) == 1
    save(run / "evaluation-z.json", evaluation({("pgd", "l2", 1.0): 90}))
    page = parse(report([run], tmp_path / "r.html"))
    assert [cells[1][:6] for _, cells in table(page)] == ["★ 50.0", "≈ 45.0"]
    names = [next(row.all("th")).text for row in next(page.all("tbody")).all("tr")]
    assert ["evaluation-z.json" in name for name in names] == [False, True]
    assert "evaluation-more.json" in names[0]


def test_loose_evaluations_join_their_run_and_other_data_gets_its_own_table(run_directory, evaluation, tmp_path):
    run = run_directory("udp", None)
    own = save(tmp_path / "own.json", evaluation({("clean", "linf", 0.0): 190}, target=str(run)))
    other = {"name": "letters", "sha256": "cd", "split": "test"}
    foreign = save(tmp_path / "foreign.json", evaluation({("clean", "linf", 0.0): 20}, target="nets:make", data=other))
    page = parse(report([run, own, foreign], tmp_path / "r.html"))
    assert table(page)[0][0] == "UDP"
    assert len(list(page.all("div", class_="judged"))) == 2
    assert "one table each" in next(page.all(class_="notes")).text


def test_runs_of_one_name_are_told_apart(run_directory, tmp_path):
    runs = [run_directory(name, {("clean", "linf", 0.0): 190}, method_name="udp") for name in ("a", "b")]
    assert [name for name, _ in table(parse(report(runs, tmp_path / "r.html")))] == ["UDP (a)", "UDP (b)"]


def test_text_from_outside_is_escaped(run_directory, evaluation, tmp_path):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}'
    data = {"name": evil, "sha256": evil, "classes": [evil] * 3}
    method = {"name": evil, "terms": evil, evil: evil}
    run = run_directory(
        "evil", {("clean", "linf", 0.0): 190, (evil, evil, 0.1): 5}, method=method, data=data, alarms=[evil]
    )
    save(run / "evaluation-2.json", evaluation({("pgd", "l2", 0.1): 3}, target=evil, warnings=[evil], data=data))
    page = parse(report([run], tmp_path / "r.html"))
    assert not list(page.all("script"))
    assert all(image.attributes["src"].startswith("data:image/png") for image in page.all("img"))
    assert not [node for node in page.all() if any(name.startswith("on") for name in node.attributes)]
    assert evil in next(page.all("h3")).text or any(evil in heading.text for heading in page.all("h3"))
    assert any(evil in (image.attributes["alt"] or "") for image in page.all("img"))


def test_a_run_without_an_evaluation_is_shown_and_said_to_lack_one(run_directory, tmp_path):
    run = run_directory("udp", None, status="failed: the loss was NaN")
    page = parse(report([run], tmp_path / "r.html"))
    assert "No evaluation was found, so this report holds no test accuracy." in next(page.all("p", class_="lede")).text
    notes = next(page.all(class_="notes")).text
    assert f"no evaluation was found; make one with: equipoise evaluate {run}" in notes
    assert "its status is: failed: the loss was NaN" in notes
    assert not list(page.all("div", class_="results"))


def test_a_bare_run_directory_is_enough(run_directory, tmp_path):
    run = run_directory("udp", None)
    (run / "metrics.jsonl").unlink()
    (run / "samples.npz").unlink()
    text = parse(report([run], tmp_path / "r.html")).text
    assert "No metrics were found" in text
    assert "No example images were found" in text


def test_warnings_alarms_and_bad_gradients_come_before_the_numbers(run_directory, evaluation, tmp_path):
    run = run_directory("udp", None, alarms=["catastrophic overfitting from epoch 2"])
    bad = AttackRecord("pgd", "linf", 0.1, [True, False], nan_gradients=3, zero_gradients=1200)
    save(run / "evaluation.json", evaluation({}, results=[bad], warnings=["only two samples"]))
    notes = next(parse(report([run], tmp_path / "r.html")).all(class_="notes")).text
    for part in (
        "catastrophic overfitting from epoch 2",
        "only two samples",
        "3 of the attacks' gradients held a NaN",
        "1,200 of",
    ):
        assert part in notes


def test_a_column_run_with_different_settings_is_pointed_out(three_runs, tmp_path):
    path = three_runs[0] / "evaluation.json"
    path.write_text(path.read_text().replace('"steps": 20', '"steps": 5', 3))
    page = parse(report(three_runs, tmp_path / "r.html"))
    assert "PGD, L∞ 0.1: the rows of this column differ in steps" in next(page.all(class_="notes")).text


def test_provenance_is_there(three_runs, tmp_path):
    section = [s for s in parse(report(three_runs, tmp_path / "r.html")).all("section")][-1].text
    for part in (
        "equipoise train udp --seed 7",
        "0123abc",
        "torch 2.13.0",
        "a processor, 2 threads",
        "ab" * 32,
        "1 min 15 s",
        "2025-01-02T03:04:05Z",
    ):
        assert part in section


def test_an_evaluation_inside_a_given_run_is_not_read_twice(run_directory, tmp_path):
    run = run_directory("udp", {("clean", "linf", 0.0): 190})
    assert load(run / "evaluation.json")
    assert len(table(parse(report([run, run, run / "evaluation.json"], tmp_path / "r.html")))) == 1


def test_many_attacks_go_down_the_page_and_models_across(run_directory, tmp_path):
    at = [("clean", "linf", 0.0)]
    at += [(name, "linf", eps) for eps in (0.1, 0.2, 0.3) for name in ("fgsm", "pgd", "worst case")]
    counts = {"standard": range(196, 96, -10), "udp": range(190, 190 - 50, -5)}
    runs = [run_directory(name, dict(zip(at, values, strict=True))) for name, values in counts.items()]
    (shown,) = parse(report(runs, tmp_path / "r.html")).all("div", class_="tall")
    assert [name.text for name in shown.all(class_="name")] == ["Standard", "UDP"]
    rows = [
        [c for c in row.children if not isinstance(c, str)] for body in shown.all("tbody") for row in body.all("tr")
    ]
    assert [row[0].text for row in rows if len(row) == 1] == ["L∞, ε = 0.1", "L∞, ε = 0.2", "L∞, ε = 0.3"]
    cells = [row for row in rows if len(row) == 3]
    assert [row[0].text for row in cells] == ["Clean", *3 * ["FGSM", "PGD", "Worst case"]]
    for row, *pair in zip(cells, *counts.values(), strict=True):
        assert [next(c.all(class_="value")).text for c in row[1:]] == [f"{100 * right / 200:.1f}" for right in pair]
        best = "★" if len(set(pair)) == 2 else "★★"
        assert "".join(m.text for c in row[1:] for m in c.all(class_="mark")).count("★") == len(best)

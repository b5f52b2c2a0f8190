"""The report's tables of accuracy on corrupted images."""

import re
from dataclasses import replace
from html import unescape

from scipy.stats import binomtest

from equipoise.report import report
from equipoise.results.records import CorruptionResult, save

CLEAN = {("clean", "linf", 0.0): 190}


def results(*rights: int, n: int = 200, source: str = "") -> list[CorruptionResult]:
    names = ("fog", "shot_noise")
    return [
        CorruptionResult(name, [i < right for i in range(n)], [0] * n, source)
        for name, right in zip(names, rights, strict=True)
    ]


def sections(page: str) -> list[tuple[str, list[list[str]]]]:
    """Caption and lines, as lists of texts, of each table of corruptions."""
    found = []
    for table in re.findall(r'<caption><span id="corrupted-.*?</table>', page, re.DOTALL):
        caption = plain(table.split("</caption>")[0].removeprefix("<caption>"))
        rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
        cells = [[plain(c) for c in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]
        found.append((caption, cells))
    return found


def plain(html: str) -> str:
    return " ".join(unescape(re.sub(r"<span class=\"hidden\">.*?</span>|<[^>]*>", " ", html)).split())


def interval(right: float, n: int = 200) -> str:
    low, high = binomtest(round(right), n).proportion_ci(method="wilson")
    return f"{100 * low:.1f}–{100 * high:.1f}"


def test_models_measured_on_the_same_images_stand_side_by_side(run_directory, evaluation, tmp_path):
    runs = []
    for name, rights in (("standard", (100, 190)), ("udp", (160, 186))):
        runs.append(run_directory(name, CLEAN))
        save(runs[-1] / "evaluation.json", evaluation(CLEAN, target=str(runs[-1]), corruptions=results(*rights)))
    page = report(runs, tmp_path / "r.html").read_text()
    ((caption, (head, *lines)),) = sections(page)
    assert caption == "digits (test split), images made from seed 7: accuracy in percent, n = 200."
    assert head == ["Corruption", "Standard best weights", "UDP best weights"]
    assert lines == [
        ["Fog", f"50.0 {interval(100)}", f"★ 80.0 {interval(160)}"],
        ["Shot noise", f"★ 95.0 {interval(190)}", f"≈ 93.0 {interval(186)}"],
        ["Mean", f"72.5 {interval(145)}", f"★ 86.5 {interval(173)}"],
    ]
    assert '<a href="#corrupted">' in page


def test_other_images_make_another_table(run_directory, evaluation, tmp_path):
    made = evaluation(CLEAN, target="a", corruptions=results(100, 190))
    others = {
        "b": {"corruptions": results(100, 190, source="ab" * 32)},
        "c": {"corruptions": results(120, 190), "provenance": replace(made.provenance, seed=8)},
        "d": {"corruptions": results(120, 190)[:1]},
    }
    files = [save(tmp_path / "a.json", made)]
    files += [save(tmp_path / f"{k}.json", evaluation(CLEAN, target=k, **how)) for k, how in others.items()]
    found = sections(report(files, tmp_path / "r.html").read_text())
    assert [lines[0][1:] for _, lines in found] == [["A"], ["B"], ["C"], ["D"]]
    origins = [caption.split(", ", 1)[1].partition(":")[0] for caption, _ in found]
    made_here = "images made from seed 7"
    assert origins == [made_here, "the published images", "images made from seed 8", made_here]


def test_without_any_there_is_no_such_section(run_directory, tmp_path):
    page = report([run_directory("udp", CLEAN)], tmp_path / "r.html").read_text()
    assert sections(page) == [] and "Corrupted images" not in page


def test_severities_are_listed_by_their_mean(evaluation, tmp_path):
    rights = {"cifar-c/fog/1": 150, "cifar-c/fog/4": 50, "cifar-c/snow/2": 30}
    graded = [CorruptionResult(name, [True] * k + [False] * (200 - k), [0] * 200) for name, k in rights.items()]
    file = save(tmp_path / "a.json", evaluation(CLEAN, target="a", corruptions=graded))
    ((_, (_, *lines)),) = sections(report([file], tmp_path / "r.html").read_text())
    assert [line[0] for line in lines] == ["Cifar-c/fog", "Cifar-c/snow/2", "Mean"]
    assert lines[0][1].startswith(f"50.0 {interval(100)}") and lines[2][1].startswith("38.3")

"""The page of an experiment: what stands in its cells, and how it looks and works in a browser."""

import re
from dataclasses import asdict, replace

import numpy as np
import pytest

from equipoise.report.reproduction import mark, page
from equipoise.results.findings import Findings, Lines, Number, Picture, Series, Study
from equipoise.results.reproduction import (
    ChartOutcome,
    Generator,
    Outcome,
    Reproduction,
    ShownOutcome,
    TableOutcome,
    Trained,
    Work,
    front,
    order,
)

PROVENANCE = {"command": "equipoise reproduce toy", "seed": 0, "versions": {"equipoise": "0"}, "commit": None,
              "device": "cpu", "threads": 1, "date": "2025-01-02T03:04:05+00:00"}  # fmt: skip


def outcome(row: str, column: str, paper: float | None, mean: float | None, half: float = 2.0) -> Outcome:
    interval = None if mean is None else (mean - half, mean + half)
    return Outcome(row, column, paper, 0.05, mean, interval, 1000, 1, "samples", ["training-1", "training-2"])


def toy() -> Reproduction:
    table = TableOutcome(
        "Accuracy <b>",
        "method",
        "%",
        [
            outcome("PGD", "clean", 78.9, 79.9, 0.9),
            outcome("PGD", "Linf .1", 69.3, 60.0),
            outcome("UDP", "clean", None, 81.0),
            outcome("UDP", "Linf .1", 66.8, None),
        ],
    )
    chart = ChartOutcome(
        "Clean accuracy", "eps", "accuracy, %",
        {"PGD": [(0.1, outcome("", "", None, 80.0)), (0.2, outcome("", "", None, 70.0))],
         "UDP": [(0.1, outcome("", "", 85.0, 84.0)), (0.3, outcome("", "", 80.0, 82.0))]},
    )  # fmt: skip
    lines = Lines("flips", np.arange(3, dtype=np.float32), [Series("UDP", np.ones(3, np.float32))], "epoch", "flips")
    study = Study("toy", "?", "U Fig 8", Findings([Number("flips", [1.0, 2.0, 3.0])], [Picture("flips", "Flips.",
                  [lines], 1)]), PROVENANCE)  # fmt: skip
    points = [Trained("PGD", "mnist, linf, eps 0.1", 80.0, 60.0, "training-1"),
              Trained("UDP", "mnist, linf, eps 0.1", 82.0, 55.0, "training-2"),
              Trained("TRADES", "mnist, linf, eps 0.1", 79.0, 59.0, "training-1")]  # fmt: skip
    works = [Work("training-1", "PGD, seed 0", "training", 12.0, "abc"), Work("training-2", "UDP", "training", None)]
    parts = [table, chart, ShownOutcome("Flips", study, "training-1"), ShownOutcome("Later", None, "training-2")]
    return Reproduction("toy", "A toy", "U Table 0", 0.2, "corrected", parts, works, points, notes="Silent.",
                        data={"mnist": "synthetic-mnist"}, provenance=PROVENANCE)  # fmt: skip


def test_a_number_agrees_if_the_interval_of_the_difference_lies_within_two_points():
    def of(paper: float | None, mean: float | None, half: float, deviation: float = 0.0) -> str | None:
        return replace(outcome("a", "b", paper, mean, half), deviation=deviation).agreement

    assert of(78.9, 79.9, 0.9) == "agrees" and of(78.9, 79.9, 1.1) == "undecided", "wholly within"
    assert of(78.9, 81.0, 2.0) == "undecided" and of(78.9, 83.0, 2.0) == "differs", "wholly beyond"
    assert of(78.9, 75.0, 1.8) == "differs" and of(78.9, 75.0, 2.0) == "undecided"
    assert of(78.9, 79.9, 0.9, 0.2) == "undecided" and of(78.9, 82.0, 1.0, 0.2) == "undecided", "of the paper too"
    assert of(None, 81.0, 1.0) is None and of(78.9, None, 1.0) is None
    assert replace(outcome("a", "b", 80.0, 80.0), interval=None).agreement == "undecided", "a single value"
    score = replace(outcome("a", "b", 1.06, 1.07, 0.01), percent=False, deviation=0.0)
    assert score.margin == pytest.approx(0.0212) and score.agreement == "agrees"
    assert replace(score, interval=(1.1, 1.2)).agreement == "differs"


def test_few_samples_decide_nothing():
    """Noise around the paper's number, by the interval that 6 samples have and by that of 10,000."""
    rng = np.random.default_rng(0)
    for n, word in ((6, "undecided"), (10_000, "agrees")):
        rows = rng.random((72, n)) < 0.7
        means = 100 * rows.mean(1)
        half = 196 * np.sqrt(0.7 * 0.3 / n)
        found = [outcome("a", "b", 70.0, float(mean), half).agreement for mean in means]
        assert found.count(word) > 60, (n, found.count(word))
        assert n > 6 or "agrees" not in found


def test_marks():
    words = [mark(one) for one in toy().outcomes[:4]]
    assert words == ["hit", "miss", "silent", "missing"]
    assert mark(outcome("a", "b", 79.0, 79.0, 3.0)) == "open"


def test_the_order_of_the_methods_by_hand():
    """Kendall's tau against its definition, over the rows of each column; over columns where the rows are data."""
    paper, ours = {"x": (70, 60, 50, 40), "y": (30, 20, 10, 10)}, {"x": (71, 59, 61, 40), "y": (5, 20, 10, 11)}
    cells = [outcome(f"m{i}", name, paper[name][i], ours[name][i], 0.1) for name in paper for i in range(4)]
    found = order([TableOutcome("t", "method", "%", cells)])
    agree = sum(
        np.sign((paper[n][i] - paper[n][j]) * (ours[n][i] - ours[n][j]))
        for n in paper
        for i in range(4)
        for j in range(i)
    )
    assert found is not None and found.pairs == 11 and found.tau == pytest.approx(agree / 11)
    assert found.interval[0] <= found.tau <= found.interval[1] and found.interval == (found.tau, found.tau)
    turned = [replace(one, row=one.column, column=one.row) for one in cells]
    same = order([TableOutcome("t", "data", "%", turned)])
    assert same is not None and same.tau == found.tau
    noisy = order([TableOutcome("t", "method", "%", [replace(c, interval=(0.0, 100.0)) for c in cells])])
    assert noisy is not None and noisy.interval[0] < -0.2 < 0.5 < noisy.interval[1], "nothing is known"
    assert order([TableOutcome("t", "method", "%", [replace(c, paper=None) for c in cells])]) is None


def test_a_generator_that_crosses_too_seldom_is_said_first():
    of = [Generator("R2 on mnist", 0.067, 0.4, "training-1"), Generator("R2 on svhn", 0.31, 0.4, "training-2")]
    found = replace(toy(), generators=of)
    (said,) = found.cautions
    assert said.startswith("The generator of R2 on mnist moves only 6.7% of the samples across the boundary")
    text = page(found)
    assert said in text and text.index(said) < text.index('id="part-0"') and "<h2>Caution</h2>" not in page(toy())


def test_a_changed_setting_is_said():
    found = replace(toy(), changes={"lr": 0.1})
    assert "with lr = 0.1 in place of its own" in found.verdict and "with lr = 0.1 in place of" in page(found)


def test_the_front_is_what_nothing_beats_by_brute_force():
    points = [
        Trained(str(i), "ball", *map(float, xy), "f")
        for i, xy in enumerate(np.random.default_rng(0).integers(0, 9, (40, 2)))
    ]
    points += [replace(one, ball="other") for one in points[:5]]
    best = front(points)
    for one in points:
        better = [
            p for p in points
            if p.ball == one.ball and p.clean >= one.clean and p.robust >= one.robust
            and (p.clean > one.clean or p.robust > one.robust)
        ]  # fmt: skip
        assert (one in best) == (not better)


def test_what_it_says():
    said = toy().verdict
    assert said == (
        "Of 4 numbers of the paper 1 agree within 2 points, 1 differ and 2 are undecided; the median difference is 1.5 "
        "points; 4 are of one training, whose noise their intervals do not include, at 0.2 of its epochs, samples and "
        "seeds, with synthetic-mnist in place of mnist, 1 of 2 tasks are not finished."
    )
    table, *_ = toy().parts
    begun = replace(toy(), parts=[replace(table, outcomes=[replace(one, mean=None) for one in table.outcomes])])
    assert begun.verdict.startswith("None of the 3 numbers of the paper is measured yet, at 0.2 of its epochs")
    assert replace(toy(), parts=[]).verdict.startswith("The paper prints no number to compare with, at 0.2")
    text = page(toy())
    assert "Accuracy &lt;b&gt;" in text and "Accuracy <b>" not in text
    assert re.search(r'class="miss"><a href="#training-1"><span class="value">60.0</span>', text)
    assert "not run yet" in text and "Not the paper’s experiment" in text
    none = replace(toy(), parts=[replace(table, outcomes=table.outcomes[1:2])])
    assert none.verdict.startswith("Of 1 numbers of the paper 0 agree within 2 points, 1 differ")
    assert '<p class="verdict none-agree">' in page(none)
    assert '<p class="verdict">' in text and '<p class="verdict">' in page(begun)
    whole = page(replace(toy(), scale=1.0, data={}))
    assert "Not the paper’s experiment" not in whole and "at the paper’s scale" in whole
    assert asdict(toy())["parts"][0]["title"] == "Accuracy <b>"


def test_in_a_browser(tmp_path, browser, low_contrast):
    """No script, nothing fetched, no overflow on a phone, contrast, keys, and a number that leads to its run."""
    file = tmp_path / "page.html"
    file.write_text(page(toy()), "utf-8")
    for width, scheme in ((1280, "light"), (390, "dark"), (390, "light"), (1280, "dark")):
        view = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)  # pyright: ignore[reportArgumentType]
        requested: list[str] = []
        view.on("request", lambda request, kept=requested: kept.append(request.url))
        view.goto(file.as_uri())
        view.keyboard.press("Tab")
        assert view.evaluate("document.activeElement.textContent") == "Skip to the results"
        view.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert {url.split(":")[0] for url in requested} <= {"file", "data"}
        assert view.evaluate("document.documentElement.scrollWidth") == width
        seen, low = view.evaluate(low_contrast)
        assert seen > 60 and low == []
        widths = view.evaluate("[...document.querySelectorAll('.plot svg')].map(s => s.clientWidth)")
        assert len(widths) == 3 and min(widths) > 250
        hit, miss = (
            view.evaluate(f"getComputedStyle(document.querySelector('td.{kind}')).backgroundColor")
            for kind in ("hit", "miss")
        )
        assert hit != miss
        view.click("td.miss a")
        assert view.url.endswith("#training-1")
        assert view.evaluate("document.querySelector(':target').innerText").startswith("PGD, seed 0")
        view.close()

"""The page of an experiment: what stands in its cells, and how it looks and works in a browser."""

import re
from dataclasses import asdict, replace

import numpy as np

from equipoise.findings import Findings, Lines, Number, Picture, Series, Study
from equipoise.report.reproduction import mark, page
from equipoise.reproduction import (
    ChartOutcome,
    Outcome,
    Reproduction,
    ShownOutcome,
    TableOutcome,
    Trained,
    Work,
    front,
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
            outcome("PGD", "clean", 78.9, 79.9),
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


def test_when_a_number_is_reproduced():
    assert outcome("a", "b", 78.9, 79.9).reproduced
    assert not outcome("a", "b", 78.9, 81.0).reproduced
    assert replace(outcome("a", "b", 78.9, 81.0), deviation=2.1).reproduced
    assert outcome("a", "b", None, 81.0).reproduced is None and outcome("a", "b", 78.9, None).reproduced is None
    assert replace(outcome("a", "b", 80.0, 80.04), interval=None).reproduced  # the rounding of a printed number
    words = [mark(one) for one in toy().outcomes[:4]]
    assert words == ["hit", "miss", "silent", "missing"]


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
        "3 of 4 numbers of the paper are reproduced, at 0.2 of its epochs, samples and seeds, with synthetic-mnist in "
        "place of mnist, 1 of 2 tasks are not finished."
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
    assert none.verdict.startswith("0 of 1 numbers") and '<p class="verdict none-agree">' in page(none)
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

"""Composite attacks, their parts and the warnings of an evaluation, in a report."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import parse, table
from scipy.stats import binomtest

from equipoise.core.errors import EquipoiseError
from equipoise.report import report
from equipoise.report.chains import descent, stages
from equipoise.results.records import AttackRecord, ResultWarning, save

pytestmark = pytest.mark.unchecked

SHA = "0123456789abcdef" * 4
WINNERS = ["clean", "fast", "fast", "fast", "slow", "slow", None, None, None, None]
ITERATIONS = [0, 1, 3, 8, 10, 20, None, None, None, None]
QUERIES = [1, 4, 6, 100, 300, 501, 1000, 1000, 1000, 1000]


def chain(eps=0.1, winner=WINNERS, **changes):
    """A composite attack of two parts on ten samples."""
    fields = {
        "correct": [w is None for w in winner],
        "winner": winner,
        "iteration": ITERATIONS,
        "queries": QUERIES,
        "settings": {"kind": "Chain", "parts": [{"name": "fast"}, {"name": "slow"}], "notes": ["slow: 2 targets"]},
    }
    return AttackRecord("autoattack", "linf", eps, **{**fields, **changes})


def audited(evaluation, *results, **changes):
    clean = AttackRecord("clean", "linf", 0.0, [False] + 9 * [True])
    fields = {"results": [clean, *results], "model": {"sha256": SHA, "parameters": 7}, "index": list(range(10))}
    return evaluation({}, **{**fields, **changes})


def section(path):
    """The section on audits; None if the page has none."""
    return next((s for s in parse(path).all("section") if s.attributes["aria-labelledby"] == "audit"), None)


def test_each_part_is_told_with_what_fell_to_it_and_what_it_left(evaluation, tmp_path):
    path = save(tmp_path / "e.json", audited(evaluation, chain(0.2), chain(0.1)))
    audit = section(report([path], tmp_path / "r.html"))
    (stages_,) = audit.all("table", class_="stages")
    rows = [[cell.text for cell in row.children if not isinstance(cell, str)] for row in stages_.all("tr")][1:]
    low, high = binomtest(4, 10).proportion_ci(method="wilson")
    of_one = [
        ["Clean", "1", "90.0", "–", "–"],
        ["Fast", "3", "60.0", "3", "6"],
        ["Slow", "2", f"40.0{100 * low:.1f}–{100 * high:.1f}", "15", "400.5"],
    ]
    assert rows == [["ε = 0.1"], *of_one, ["ε = 0.2"], *of_one]
    assert next(stages_.all("caption")).text == "AutoAttack, L∞, part by part. slow: 2 targets"
    assert all(th.attributes["scope"] in ("col", "row", "rowgroup") for th in stages_.all("th"))


@given(st.lists(st.sampled_from(["clean", "fast", "slow", None]), min_size=1, max_size=30))
def test_the_last_part_leaves_the_accuracy_of_the_attack(winners):
    result = chain(winner=winners, iteration=[None if w is None else 2 for w in winners], queries=())
    found = stages(result)
    assert sum(stage.fooled for stage in found) == sum(w is not None for w in winners)
    assert found[-1].accuracy == result.accuracy
    assert found[-1].interval == result.interval
    assert found[0].remaining == sum(w != "clean" for w in winners)
    assert {stage.queries for stage in found} == {None}


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12)), min_size=1, max_size=30))
def test_the_curve_is_the_share_that_has_not_fallen_by_then(samples):
    right, queries = zip(*samples, strict=True)
    found = descent(chain(correct=list(right), queries=list(queries), winner=[], iteration=[]))
    assert found is not None
    places, left = found
    assert places == sorted(places)
    assert (places[0], places[-1]) == (1, max(queries))
    for at in {*places, *(place + 1 for place in places)}:
        expected = sum(r or q > at for r, q in samples) / len(samples)
        assert left[int(np.searchsorted(places, at, side="right")) - 1] == pytest.approx(expected)


def test_the_curve_is_drawn_to_scale(evaluation, tmp_path):
    path = save(tmp_path / "e.json", audited(evaluation, chain()))
    audit = section(report([path], tmp_path / "r.html"))
    (curve,) = [
        p.attributes["d"] for p in audit.all("path") if "fill: none; stroke: var(--ink)" in p.attributes["style"]
    ]
    x, y = np.array(re.findall(r"[ML] (\S+) (\S+)", curve), dtype=float).T
    ends = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    heights = np.unique(y)
    assert heights == pytest.approx(heights[0] + (heights[-1] - heights[0]) * (ends[0] - ends) / 0.5, abs=1e-3)
    steps = np.unique(x)
    places = np.log10([1, 4, 6, 100, 300, 501, 1000])
    assert steps == pytest.approx(steps[0] + (steps[-1] - steps[0]) * places / 3, abs=1e-3)
    corners = {(int(np.searchsorted(steps, a)), int(np.searchsorted(heights, b))) for a, b in zip(x, y, strict=True)}
    assert corners == {(0, 0), (6, 5)} | {(i, j) for i in range(1, 6) for j in (i - 1, i)}
    assert "0.1" in [text.text for text in audit.all("text")]


def test_flags_on_disk_are_not_refused_and_stand_before_the_numbers_of_their_model(evaluation, tmp_path):
    flag = ResultWarning("randomised model", "logits change by up to 0.4", "average over draws")
    path = save(tmp_path / "e.json", audited(evaluation, chain(), flags=[flag]))
    page = parse(report([path], tmp_path / "r.html"))
    audit = section(tmp_path / "r.html")
    (box,) = audit.all("div", class_="flags")
    assert box.text == (
        "Warnings about these numbers Randomised model: logits change by up to 0.4. What to do: average over draws."
    )
    assert "No flags raised" not in audit.text
    assert audit.text.index("Warnings about") < audit.text.index("AutoAttack")
    assert "listed under Audit: randomised model" in next(page.all(class_="notes")).text


def test_without_flags_one_line_says_so(evaluation, tmp_path):
    path = save(tmp_path / "e.json", audited(evaluation, chain()))
    audit = section(report([path], tmp_path / "r.html"))
    assert [p.text for p in audit.all("p") if "lag" in p.text] == ["No flags raised."]
    assert not list(audit.all(class_="flags"))


def test_records_without_the_audit_have_no_such_section(three_runs, evaluation, tmp_path):
    out = report(three_runs, tmp_path / "r.html")
    assert section(out) is None
    assert "No flags raised" not in out.read_text()
    old = save(tmp_path / "old.json", evaluation({("clean", "linf", 0.0): 190}))
    data = json.loads(old.read_bytes())
    for name in ("flags", "model", "index", "images"):
        del data[name]
    for result in data["results"]:
        for name in ("winner", "iteration", "queries"):
            del result[name]
    old.write_text(json.dumps(data))
    assert table(parse(report([old], tmp_path / "r.html")))[0][1] == ["95.0 91.0–97.3"]


@pytest.mark.parametrize(
    ("changes", "expected", "absent"),
    [
        ({"images": {"file": "e 1.images.npz", "sha256": "ab"}}, "Images stored in e 1.images.npz", "--images"),
        ({}, "No adversarial images stored", "equipoise verify"),
        ({"data": {"name": "digits", "n": 40, "shard": "2/4"}}, "10 samples, shard 2/4 of 40", "equipoise verify"),
    ],
)
def test_what_the_numbers_are_about_is_said(changes, expected, absent, evaluation, tmp_path):
    path = save(tmp_path / "e 1.json", audited(evaluation, chain(), **changes))
    text = section(report([path], tmp_path / "r.html")).text
    assert "Weights SHA-256 0123456789ab " in text
    assert "10 samples" in text
    assert expected in text
    assert absent not in text
    if "images" in changes:
        assert f"equipoise verify '{path}'" in text


def test_shards_are_not_compared_and_are_said_to_be_parts(evaluation, tmp_path):
    paths = [
        save(tmp_path / f"{i}.json", audited(evaluation, chain(), data={"name": "digits", "n": 20, "shard": f"{i}/2"}))
        for i in (1, 2)
    ]
    page = parse(report(paths, tmp_path / "r.html"))
    assert len(list(page.all("div", class_="judged"))) == 2
    assert "shard 2/2 alone; join all shards with: equipoise merge" in next(page.all(class_="notes")).text


def test_any_text_of_flags_and_parts_is_escaped_not_refused(evaluation, tmp_path):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}'
    settings = {"parts": [{"name": evil}, {"name": "slow"}], "notes": [evil]}
    result = chain(winner=["clean", *5 * [evil], None, None, None, None], settings=settings)
    result = AttackRecord(**{**vars(result), "attack": evil})
    changes = {"model": {"sha256": evil}, "images": {"file": evil}, "data": {"name": evil, "shard": evil, "n": evil}}
    path = save(tmp_path / "e.json", audited(evaluation, result, flags=[ResultWarning(evil, evil, evil)], **changes))
    page = parse(report([path], tmp_path / "r.html"))
    assert not list(page.all("script"))
    assert not list(page.all("img"))
    assert not [node for node in page.all() if any(name.startswith("on") for name in node.attributes)]
    assert next(page.all("div", class_="flags")).text.count(evil) == 3
    assert evil in next(page.all("table", class_="stages")).text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flags": [{"name": "a"}]}, r"e.json is damaged: flags\[0\]: it lacks the field figure"),
        ({"flags": 3}, "flags: expected list, got integer"),
        ({"flags": [{"name": 1, "figure": "", "advice": ""}]}, r"flags\[0\].name: expected text, got integer"),
        ({"model": 3}, "model: expected table, got integer"),
        ({"index": 3}, "index: expected list, got integer"),
    ],
)
def test_a_damaged_audit_is_refused(changes, message, evaluation, tmp_path):
    path = save(tmp_path / "e.json", audited(evaluation, chain()))
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))
    with pytest.raises(EquipoiseError, match=message):
        report([path], tmp_path / "r.html")

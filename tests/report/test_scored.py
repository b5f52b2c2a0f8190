"""Scores in the report: a table for each score and test set, a line per model, curves, and damaged records."""

import base64
import json
import re
from dataclasses import asdict
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from equipoise.core.errors import EquipoiseError
from equipoise.report import report
from equipoise.report.reading import PICTURES
from equipoise.results.records import Provenance

PROVENANCE = Provenance("equipoise score", 7, {"torch": "2.13.0"}, "0123abc", "a processor", 2, "2025-01-02T03:04:05Z")
CLEAN = {("clean", "linf", 0.0): 190}


def score(value: float, name: str = "R2", robustness: str = "worst case", **changes: Any) -> dict[str, Any]:
    """One score of a record, as `equipoise score` writes it."""
    eps, curve = [0.0, 0.5, 1.0], [1.0, 0.6, 0.2]
    radii = {"low": 0.0, "high": 8.0, "count": 16, "average": False}
    return {
        "value": value,
        "standard_error": 0.1,
        "interval": [value - 0.2, value + 0.2],
        "n": 200,
        "curve": {"eps": eps, "value": curve, "interval": [[1.0, 0.5, 0.1], [1.0, 0.7, 0.3]]},
        "won": {"bg": 0.75, "fmn": 0.25} if robustness == "worst case" else {},
        "settings": {"name": name, "H": "certain", "G": "alike", "radii": radii, "robustness": robustness},
        "samples": {},
    } | changes


def write(path: Path, target: str, scores: dict[str, Any], data: str = "digits", **changes: Any) -> Path:
    record = {
        "kind": "score",
        "schema": 1,
        "target": target,
        "weights": "best",
        "data": {"name": data, "sha256": "ab" * 32, "split": "test", "n": 200},
        "scores": scores,
        "provenance": asdict(PROVENANCE),
        "seconds": 1.0,
    }
    path.write_text(json.dumps(record | changes))
    return path


def tables(page: str) -> list[tuple[str, list[list[str]]]]:
    """Heading and lines, as lists of texts, of each table of scores."""
    (section,) = re.findall(r'<section aria-labelledby="scores">.*?</section>', page, re.DOTALL)
    found = []
    for figure in re.findall(r"<figure.*?</figure>", section, re.DOTALL):
        (heading,) = re.findall(r"<h3.*?</h3>", figure)
        rows = re.findall(r"<tr>(.*?)</tr>", figure, re.DOTALL)
        cells = [[plain(c) for c in re.findall(r"<t[hd][ >].*?</t[hd]>", row, re.DOTALL)] for row in rows]
        found.append((plain(heading), cells))
    return found


def plain(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).replace("\xa0", " ").split())


def test_models_stand_side_by_side_and_a_certified_bound_with_its_attack(run_directory, tmp_path):
    runs = [run_directory(name, CLEAN) for name in ("standard", "udp")]
    both = {"r2": score(1.5), "certified": score(0.7, "certified R2", "certified")}
    records = [
        write(tmp_path / "a.json", str(runs[0]), both),
        write(tmp_path / "b.json", str(runs[1]), {"r2": score(2.25)}),
        write(tmp_path / "c.json", "mine.nets:make", {"r2": score(1.0)}, weights="given"),
    ]
    page = report([*runs, *records], tmp_path / "r.html").read_text()
    ((heading, (head, *lines)),) = tables(page)
    assert heading == "R2 on digits" and head == ["Run", "score", "95 % interval", "n", "nearest points found by"]
    assert lines == [
        ["Standard best weights R2", "1.5", "1.3 to 1.7", "200", "BG 75.0 %, FMN 25.0 %"],
        ["Standard best weights certified R2", "0.7", "0.5 to 0.9", "200", "–"],
        ["UDP best weights R2", "2.25", "2.05 to 2.45", "200", "BG 75.0 %, FMN 25.0 %"],
        ["Mine.nets:make R2", "1", "0.8 to 1.2", "200", "BG 75.0 %, FMN 25.0 %"],
    ]
    (section,) = re.findall(r'<section aria-labelledby="scores">.*?</section>', page, re.DOTALL)
    assert section.count("<svg viewBox") == 2 and '<a href="#scores">' in page and "dotted where certified" in section
    assert page.count("<summary>Score ") == 4 and "no evaluation was found" not in page.lower().split("<main>")[0]


def test_other_scores_and_other_data_make_other_tables(run_directory, tmp_path):
    run = run_directory("udp", CLEAN)
    large = score(40.0, "mine", "sampled")
    large["curve"]["value"] = [2.0, 1.0, 0.5]  # H need not be a share
    records = [
        write(tmp_path / "a.json", str(run), {"r2": score(1.5)}),
        write(tmp_path / "b.json", str(run), {"r2": score(1.0)}, data="mnist"),
        write(tmp_path / "c.json", str(run), {"mine": large}),
    ]
    page = report([run, *records], tmp_path / "r.html").read_text()
    assert [(name, len(rows)) for name, rows in tables(page)] == [
        ("R2 on digits", 2),
        ("R2 on mnist", 2),
        ("mine on digits", 2),
    ]
    (section,) = re.findall(r'<section aria-labelledby="scores">.*?</section>', page, re.DOTALL)
    assert section.count("<svg viewBox") == 4


def test_pictures_of_a_manifold_and_of_a_generator_are_shown(run_directory, tmp_path):
    run = run_directory("r4", CLEAN)
    for name, colour in (("manifold", "red"), ("generator", "blue")):
        Image.new("RGB", (4, 3), colour).save(run / f"{name}.png")
    page = report([run], tmp_path / "r.html").read_text()
    shown = re.findall(r'<img src="data:image/png;base64,([^"]*)" alt="The (.*?)[:"]', page)
    assert [what for _, what in shown] == ["data manifold", "generator of adversarial examples"]
    assert [base64.b64decode(uri) for uri, _ in shown] == [(run / f"{n}.png").read_bytes() for n in PICTURES]
    (run / "manifold.png").write_text("nothing")
    with pytest.raises(EquipoiseError, match=r"manifold.png is not a PNG picture"):
        report([run], tmp_path / "r.html")


def test_a_record_of_scores_alone_makes_a_report(tmp_path):
    page = report([write(tmp_path / "a.json", "mine.nets:make", {"r2": score(1.5)})], tmp_path / "r.html").read_text()
    assert [name for name, _ in tables(page)] == ["R2 on digits"]
    assert "no evaluation was found; make one" not in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": {}}, "is damaged: it holds no score"),
        ({"scores": 3}, "is damaged: scores: expected table, got integer"),
        ({"target": None}, "is damaged: target: expected text, got null"),
        ({"provenance": {}}, "is damaged: provenance: it lacks the field command"),
        ({"scores": {"r2": {"value": 1}}}, "is damaged: scores.*: it lacks the field n"),
        ({"scores": {"r2": score(float("nan"))}}, "is damaged: scores.*value: expected number"),
        ({"scores": {"r2": score(1.0, curve={"eps": [0, 1], "value": [1]})}}, "curve: it lacks the field interval"),
        ({"scores": {"r2": score(1.0, settings={})}}, "is damaged: scores.*: its settings lack G, H, radii"),
    ],
)
def test_damaged_records_are_refused(changes, message, tmp_path):
    path = write(tmp_path / "a.json", **{"target": "m", "scores": {"r2": score(1.0)}} | changes)
    with pytest.raises(EquipoiseError, match=message):
        report([path], tmp_path / "r.html")

"""A study as a record, as files, as a page, and from the command line."""

import json
import sys
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from equipoise.cli.requests import Study as Asked
from equipoise.cli.studying import study as run_study
from equipoise.core.errors import EquipoiseError
from equipoise.report.pages import light
from equipoise.report.studies import figure, interval, mean, page
from equipoise.reproduce.studies import STUDIES, Entry, Options, ReportProgress, load, save
from equipoise.reproduce.studies.images import difference, direction
from equipoise.results.findings import Findings, Histogram, Images, Lines, Number, Picture, Regions, Series, Study

pytestmark = pytest.mark.unchecked

PROVENANCE = {
    "command": "equipoise study made-up", "seed": 3, "versions": {"torch": "2"}, "commit": None, "device": "cpu",
    "threads": 1, "date": "2026-01-01",
}  # fmt: skip
NAMES = (
    "narrow-corridor", "lms5", "two-distance", "due", "theorem", "appearance", "opposite-class", "overfitting",
    "capacity", "transfer", "entropy-weight",
)  # fmt: skip


def made_up() -> Study:
    x, y = np.meshgrid(np.linspace(-1, 1, 21), np.linspace(-1, 1, 21))
    points = np.array([[-0.5, -0.5], [0.5, 0.5], [0.2, 0.9]])
    regions = Regions(
        "eps <0.1>", 1 / (1 + np.exp(-9 * y)), (-1.0, 1.0, -1.0, 1.0), points=points, labels=np.array([0, 1, 1]),
        moved=points + 0.1, truth=y - x,
    )  # fmt: skip
    flips = replace(regions, values=np.round(9 * np.exp(-y * y)), meaning="changes", level=None, boundary=y)
    line = np.linspace(0, 1, 8)
    lines = Lines("t", line, [Series("UDP", line, line - 1, line + 1), Series("UDP, law", line, dashed=True)], "x", "y")
    counts = Histogram("h", np.arange(4.0), {"a": np.array([1, 0, 2])}, "distance", {"eps": 1.5})
    images = Images("i", np.full((1, 2, 3, 4, 4), 0.5), ["clean"], ["7", "9"], [["7", "4"]])
    found = Findings(
        [
            Number("agreement, UDP", [0.5, 0.75, 1.0], paper="close to <max-margin> (U Fig 3)", percent=True),
            Number("factor", [2.0], "runs"),
        ],
        [Picture("maps", "Two & maps.", [regions, flips], 2), Picture("rest", "The rest.", [lines, counts, images], 3)],
        {"eps": 0.25, "widths": [100, 100], "kind": "regions"},
        "Yes & no.",
    )
    return Study("made-up", "Is it <so>?", "U Fig 0", found, PROVENANCE, True, 1.5)


def same(a: Any, b: Any) -> bool:
    if is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_a_study_is_read_back_as_it_was(tmp_path: Path) -> None:
    study = made_up()
    save(tmp_path, study)
    assert same(study, load(tmp_path))
    assert not same(replace(study, seconds=2.0), load(tmp_path))


def test_a_record_from_before_a_field_was_added_is_read(tmp_path: Path) -> None:
    save(tmp_path, made_up())
    place = tmp_path / "study.json"
    record = json.loads(place.read_text())
    for number in record["findings"]["numbers"]:
        del number["signed"]
    place.write_text(json.dumps(record))
    assert same(made_up(), load(tmp_path))


def test_files_are_a_record_arrays_a_page_and_a_picture_per_figure(tmp_path: Path) -> None:
    study = made_up()
    old = replace(study.findings, pictures=[replace(study.findings.pictures[1], name="of-before")])
    save(tmp_path, replace(study, findings=old))
    (tmp_path / "my-own.png").touch()
    save(tmp_path, study)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"study.json", "study.npz", "index.html", "maps.png", "rest.png", "my-own.png"}
    with Image.open(tmp_path / "maps.png") as picture:
        assert picture.convert("RGBA").getchannel("A").getextrema() == (255, 255), "on white, not on nothing"
        assert picture.width > picture.height > 300


def test_mean_and_interval_are_students() -> None:
    values = [0.1, 0.4, 0.35, 0.9]
    number = Number("n", values)
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert number.interval == pytest.approx(expected, rel=1e-9)
    assert number.mean == pytest.approx(0.4375)
    assert Number("n", [1.0]).interval is None
    for wins in (0, 7, 10):
        outcomes = Number("n", [1.0] * wins + [0.0] * (10 - wins), percent=True, outcomes=True)
        exact = stats.binomtest(wins, 10).proportion_ci(0.95, "exact")
        assert outcomes.interval == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert Number("n", [1.0, 1.0], percent=True).interval == (1.0, 1.0)
    assert Number("n", [0.5, 1.0], percent=True).interval == (0.0, 1.0)
    change = difference("second minus first", [0.5, 0.52, 0.51], [0.9, 0.93, 0.91])
    expected = stats.t.interval(0.95, 2, np.mean(change.values), stats.sem([-0.4, -0.41, -0.4]))
    assert change.interval == pytest.approx(expected, rel=1e-9) and expected[1] < 0
    assert interval(change) == f"{100 * expected[0]:.1f} to {100 * expected[1]:.1f}" and direction(change) == "lower"
    assert (mean(Number("n", [0.25, 0.75], percent=True)), interval(Number("n", [0.5]))) == ("50.0 %", "–")


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.tags, self.links = "", [], []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href") and v]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_says_what_was_found_and_loads_nothing() -> None:
    reader = _Reader()
    reader.feed(page(made_up()))
    for words in ("Is it <so>?", "Yes & no.", "close to <max-margin> (U Fig 3)", "75.0 %", "3 seeds", "1 runs",
                  "A quick run", "Two & maps.", "equipoise study made-up", "eps <0.1>", "max-margin"):  # fmt: skip
        assert words in reader.text, words
    low = 100 * stats.t.interval(0.95, 2, 0.75, stats.sem([0.5, 0.75, 1.0]))[0]
    assert f"{low:.1f} to 100.0" in reader.text
    assert reader.tags.count("svg") == 2 and not {"script", "link", "img"} & set(reader.tags)
    assert all(link.startswith(("#", "data:")) for link in reader.links)


def test_page_says_which_intervals_are_exact() -> None:
    study = made_up()
    assert "Clopper" not in page(study)
    wins = Number("wins", [1.0, 1.0, 0.0], percent=True, outcomes=True)
    text = page(replace(study, findings=replace(study.findings, numbers=[*study.findings.numbers, wins])))
    exact = stats.binomtest(2, 3).proportion_ci(0.95, "exact")
    assert "of outcomes that are yes or no, by Clopper and Pearson" in text and text.count(", exact") == 1
    assert f"{100 * exact.low:.1f} to {100 * exact.high:.1f}, exact" in text


def test_a_logarithmic_axis_has_plain_numbers_at_the_measured_places() -> None:
    """In the page's colours, minor ticks too, and none where they would overlap."""
    colours = {name: f"#0000{i:02x}" for i, name in enumerate(light())}
    for places, labels in (([90.0, 359, 1437], ["90", "359", "1,437"]), (range(1, 1001), 7)):
        x = np.array(places, float)
        panel = Lines("t", x, [Series("UDP", x, x, x)], "samples", "accuracy", log_x=True)
        (axes,) = figure(Picture("p", "P.", [panel], 1), colours).axes
        axes.figure.canvas.draw()
        ticks = [tick for tick in axes.get_xticklabels(which="both") if tick.get_text()]
        assert all(tick.get_color() == colours["muted"] for tick in ticks)
        shown = [tick.get_text() for tick in ticks]
        assert shown == labels or len(shown) <= labels + 1
        boxes = sorted((tick.get_window_extent().x0, tick.get_window_extent().x1) for tick in ticks)
        assert all(end < start for (_, end), (start, _) in pairwise(boxes))


def test_page_follows_light_and_dark_and_its_ids_are_unique() -> None:
    text = page(made_up())
    drawing = text[text.index("<svg") :]
    assert "var(--s1)" in drawing and "#0001" not in drawing and "#00000" not in drawing
    assert "prefers-color-scheme: dark" in text
    ids = [part.split('"')[0] for part in text.split(' id="')[1:]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("study.json", lambda text: b"{", "is not JSON"),
        (
            "study.json",
            lambda text: text.replace(b'"schema": 1', b'"schema": 9'),
            "study.json has schema 9, this version reads schema 1",
        ),
        ("study.json", lambda text: text.replace(b'"question"', b'"answer"'), "lacks a field"),
        ("study.npz", lambda text: text + b"0", "does not belong to study.json"),
        ("study.npz", None, "No such file"),
    ],
)
def test_damaged_studies_are_refused(tmp_path: Path, name: str, damage: Any, message: str) -> None:
    save(tmp_path, made_up())
    file = tmp_path / name
    file.unlink() if damage is None else file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(EquipoiseError, match=message):
        load(tmp_path)


def test_every_study_is_registered() -> None:
    assert tuple(STUDIES) == NAMES
    for name, entry in STUDIES.items():
        assert entry.name == name and entry.question.endswith("?") and entry.source
        assert callable(import_module(f"equipoise.reproduce.studies.{name.replace('-', '_')}").run)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    asked: list[Options] = []

    def run(options: Options, tell: ReportProgress) -> Findings:
        asked.append(options)
        tell("working", 0.5)
        return made_up().findings

    monkeypatch.setitem(STUDIES, "toy", Entry("toy", "Does it run?", "U Fig 0", run, takes=("seeds", "limit")))
    return asked


def test_command_runs_a_study_and_writes_it(
    toy: list[Options], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "toy"
    run_study(Asked("toy", out, quick=True, seeds=2, seed=7, examples=50), "equipoise study toy")
    assert toy == [Options(True, 2, 7, None, None, 50, processes=2)]
    study = load(out)
    assert (study.name, study.question, study.quick) == ("toy", "Does it run?", True)
    assert study.provenance["command"] == "equipoise study toy" and study.provenance["seed"] == 7
    shown = capsys.readouterr().out
    assert "75.0 %" in shown and "Yes & no." in shown and str(out / "index.html") in shown.replace("\n", "")
    run_study(Asked("toy", out, overwrite=True), "again")
    assert load(out).provenance["command"] == "again"


def test_what_cannot_be_run_is_refused_before_anything_is_computed(
    toy: list[Options], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(**options: Any) -> str:
        with pytest.raises(EquipoiseError) as error:
            run_study(Asked(**{"name": "toy", "out": tmp_path / "toy", **options}), "command")
        return str(error.value)

    assert "did you mean 'narrow-corridor'" in refusal(name="narow-corridor")
    assert all(name in refusal(name="x") for name in NAMES)
    assert "the study toy has no use for --widths: leave it out" in refusal(widths=(1, 2))
    assert "has no use for --data-root" in refusal(data_root=tmp_path)
    for name in ("theorem", "lms5", "narrow-corridor", "two-distance", "due"):
        for flag, value in (("data", "mnist"), ("examples", 5)):
            assert f"the study {name} has no use for --{flag}" in refusal(name=name, **{flag: value})
    assert "opposite-class has no use for --seeds" in refusal(name="opposite-class", seeds=2)
    for widths in ((2, 1), (3,), (0, 1), (1, 1), (1, 13)):
        message = refusal(name="capacity", widths=widths)
        assert "expected two or more integers from 1 to 12, in rising order" in message
    (tmp_path / "file").touch()
    assert "is a file" in refusal(out=tmp_path / "file")
    assert "holds no study" in refusal(out=tmp_path)
    assert "cannot write into" in refusal(out=tmp_path / "file" / "below")
    save(tmp_path / "toy", made_up())
    assert "--overwrite" in refusal()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'equipoise[report]'" in refusal(out=tmp_path / "other")
    assert not toy and not (tmp_path / "other").exists()


def test_record_is_plain_json(tmp_path: Path) -> None:
    save(tmp_path, made_up())
    record = json.loads((tmp_path / "study.json").read_text())
    first = record["findings"]["pictures"][0]["panels"][0]
    assert first["kind"] == "regions" and first["values"] == {"array": "findings.pictures.0.panels.0.values"}
    with np.load(tmp_path / "study.npz") as arrays:
        assert arrays[first["values"]["array"]].shape == (21, 21)

"""Images, curves of training, and the table of epochs in a report."""

import base64
import io
import re

import numpy as np
import pytest
from pages import parse
from PIL import Image

from equipoise.report import report

pytestmark = pytest.mark.unchecked


def test_images_are_the_arrays_pixel_for_pixel(three_runs, tmp_path):
    page = parse(report(three_runs[:1], tmp_path / "r.html"))
    grid = next(page.all("table", class_="images"))
    assert [th.text for th in grid.all("th")] == [
        "Image",
        "true classzero",
        "true classone",
        "true classtwo",
        "Clean",
        "UDP",
        "PGD",
    ]
    with np.load(three_runs[0] / "samples.npz") as arrays:
        expected = [np.rint(255 * image[0].astype(float)) for kind in ("clean", "udp", "pgd") for image in arrays[kind]]
    sources = [image.attributes["src"].partition(",")[2] for image in grid.all("img")]
    for source, pixels in zip(sources, expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))), pixels)
    assert [next(cell.all(class_="verdict")).text for cell in grid.all("td", class_="wrong")] == ["✗ two"]
    assert next(grid.all(class_="size")).text == "L∞ 0.100"


def test_the_curves_are_drawn_to_scale_and_take_their_colours_from_the_page(three_runs, tmp_path):
    page = parse(report(three_runs, tmp_path / "r.html"))
    plot = next(page.all("div", class_="wide"))
    paths = [
        p.attributes
        for p in plot.all("path")
        if "var(--s1)" in p.attributes.get("style", "") and "fill: none" in p.attributes["style"]
    ]
    (line,) = [p for p in paths if "clip-path" not in p]
    x, y = np.array(re.findall(r"[ML] (\S+) (\S+)", line["d"]), dtype=float).T
    accuracy = np.array([190, 158, 90]) / 200
    assert x == pytest.approx(x[0] + (x[2] - x[0]) * np.array([0, 0.5, 1]), abs=1e-3)
    assert y == pytest.approx(y[0] + (y[2] - y[0]) * (accuracy - accuracy[0]) / (accuracy[2] - accuracy[0]), abs=1e-3)
    assert y[2] > y[0]
    for svg in page.all("svg"):
        assert not re.search(r"#[0-9a-f]{6}", " ".join(n.attributes.get("style", "") or "" for n in svg.all()))


def test_the_epoch_of_the_best_weights_is_named(three_runs, tmp_path):
    page = parse(report(three_runs, tmp_path / "r.html"))
    assert [t.text for t in page.all("text") if "best" in t.text] == ["best weights: epoch 2"] * 3
    assert len([th for th in page.all("th") if th.text == "2 (best)"]) == 3


def test_metrics_may_lack_keys_and_hold_nan(run_directory, tmp_path):
    run = run_directory("udp", None)
    (run / "metrics.jsonl").write_text(
        '{"epoch": 1, "train_loss": NaN}\n{"epoch": 2, "valid_pgd": 0.5, "train_loss": null}\n'
    )
    page = parse(report([run], tmp_path / "r.html"))
    cells = [cell.text for cell in next(s for s in page.all("section") if "Training" in s.text[:20]).all("td")]
    assert cells == ["–", "–", "–", "0.5"]


def test_a_last_line_cut_by_a_kill_is_ignored(run_directory, tmp_path):
    run = run_directory("udp", None)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"epoch": 4, "train_l')
    page = parse(report([run], tmp_path / "r.html"))
    assert len([th for th in page.all("th") if th.text in ("1", "2 (best)", "3", "4")]) == 3


def test_many_epochs_are_thinned_in_the_table_but_keep_best_and_last(run_directory, tmp_path):
    run = run_directory("udp", None, best={"epoch": 222})
    (run / "metrics.jsonl").write_text("".join(f'{{"epoch": {e}, "train_loss": {1 / e}}}\n' for e in range(1, 501)))
    page = parse(report([run], tmp_path / "r.html"))
    heads = [th.text for th in next(page.all("details")).all("th") if th.attributes["scope"] == "row"]
    assert len(heads) <= 43
    assert "222 (best)" in heads
    assert heads[-1] == "500"


def test_a_report_is_reproducible(three_runs, tmp_path):
    first, second = (report(three_runs, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second

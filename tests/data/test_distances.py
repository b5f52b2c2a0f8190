"""How far apart the classes are, and what `equipoise data check` says of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import good, image, write_folder
from PIL import Image
from scipy.spatial.distance import cdist

from equipoise.cli import main
from equipoise.core.errors import EquipoiseError
from equipoise.data import Split
from equipoise.data.distances import class_distances


@pytest.mark.parametrize(("norm", "metric"), [("linf", "chebyshev"), ("l2", "euclidean"), ("l1", "cityblock")])
def test_distances_are_those_of_scipy(norm: str, metric: str) -> None:
    x, y = torch.rand(60, 7, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
    found = class_distances(Split(x, y), norm)
    apart = cdist(x.double(), x.double(), metric)  # pyright: ignore[reportArgumentType, reportCallIssue]
    apart[(y[:, None] == y).numpy()] = np.inf
    nearest = apart.min(1)
    assert found.samples == found.candidates == 60
    assert found.smallest == pytest.approx(nearest.min(), rel=1e-5)
    assert found.rare == pytest.approx(np.quantile(nearest, 0.05), rel=1e-5)
    assert found.median == pytest.approx(np.median(nearest), rel=1e-5)
    first, second = found.nearest
    assert apart[first, second] == pytest.approx(found.smallest, rel=1e-5) and y[first] != y[second]
    assert 0.9 * found.rare / 2 < found.eps <= found.rare / 2 and f"{found.eps:.2g}" == f"{found.eps:.6g}"


def test_one_class_has_no_distance() -> None:
    with pytest.raises(EquipoiseError, match="all samples are of one class"):
        class_distances(Split(torch.rand(4, 2), torch.zeros(4, dtype=torch.int64)), "l2")


def test_data_are_checked_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write_folder(tmp_path / "d", good()), tmp_path / "page.html"
    assert main(["data", "check", str(path), "--size", "4", "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "d: 6 training and 6 test images of shape 3 x 4 x 4; 3 classes, in this order: cat, dog, emu" in said
    assert "│ dog │ 2 │ 2 │" in said and "(6 samples, each with 6)" in said and "In linf take eps of at most 0." in said
    text = out.read_text()
    assert text.count('<img src="data:image/png;base64,') == 6 and "12 images resized and cropped to 4 x 4" in text
    assert main(["data", str(path), "--size", "5", "--out", str(out)]) == 2  # `check` may be left out, the page is kept
    assert "add --overwrite to replace it" in capsys.readouterr().err


def test_the_same_sample_in_two_classes_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_folder(tmp_path / "d", good() | {"train/cat/x.png": image(70), "train/emu/y.png": image(70)})
    assert main(["data", "check", str(path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "Two training samples are the same and have different classes, " in said and "correct the labels first" in said
    )


def test_photos_of_mixed_sizes_are_shown_as_they_would_be_trained_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, shade in (("a", 40), ("b", 200)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (70 + i, 90 - 5 * i), (shade, i, 0)).save(tmp_path / "photos" / name / f"{i}.png")
    assert main(["data", "check", "photos"]) == 0
    out = capsys.readouterr().out
    assert "mixed sizes: shown as --size 64" in out and "of shape 3 x 64 x 64" in out

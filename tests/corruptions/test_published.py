"""The published folders of MNIST-C: read as they are distributed, and refused where they are not."""

from pathlib import Path

import numpy as np
import pytest
import torch

from equipoise.core.errors import EquipoiseError
from equipoise.corruptions import CORRUPTIONS, load_published


def write(root: Path, names=tuple(CORRUPTIONS), n: int = 5) -> dict[str, np.ndarray]:
    """Folders as they are distributed, with the images that were written."""
    random, written = np.random.default_rng(0), {}
    for name in names:
        (root / name).mkdir(parents=True)
        written[name] = random.integers(0, 256, (n, 28, 28, 1), np.uint8)
        np.save(root / name / "test_images.npy", written[name])
        np.save(root / name / "test_labels.npy", np.arange(n) % 10)
    return written


def test_what_was_written_is_read(tmp_path):
    written = write(tmp_path)
    found = load_published(tmp_path)
    assert list(found.images) == list(CORRUPTIONS) and found.labels.tolist() == [0, 1, 2, 3, 4]
    rows = torch.tensor([3, 0])
    for name, images in written.items():
        expected = images[[3, 0], :, :, 0].astype(np.float32) / 255
        np.testing.assert_array_equal(found.at(name, rows)[:, 0].numpy(), expected)
    assert len(set(found.sha256.values())) == 15 and all(len(digest) == 64 for digest in found.sha256.values())


def test_only_the_folders_that_are_asked_for_are_needed(tmp_path):
    write(tmp_path, ["fog", "stripe"])
    assert list(load_published(str(tmp_path), ["stripe"]).images) == ["stripe"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


REFUSED = {
    "no folder": (lambda r: r.rename(r.with_name("elsewhere")), r"there is no folder .*mnist_c: expected the one that"),
    "no corruption": (lambda r: (r / "fog").rename(r / "frog"), r"has no folder fog: expected fog/test_images.npy"),
    "no images": (lambda r: (r / "fog/test_images.npy").unlink(), r"there is no file .*fog/test_images.npy"),
    "no labels": (lambda r: (r / "fog/test_labels.npy").unlink(), r"there is no file .*fog/test_labels.npy"),
    "truncated": (lambda r: cut(r / "fog/test_images.npy"), r"cannot read .*fog/test_images.npy: it is truncated"),
    "no array": (lambda r: (r / "fog/test_images.npy").write_bytes(b"fog"), r"cannot read .*it is truncated or no ar"),
    "objects": (lambda r: np.save(r / "fog/test_images.npy", np.array([{}])), r"cannot read .*fog/test_images.npy"),
    "floats": (
        lambda r: np.save(r / "fog/test_images.npy", np.zeros((5, 28, 28, 1))),
        r"test_images.npy holds float64 of shape \(5, 28, 28, 1\): expected uint8 of shape \(n, 28, 28, 1\)",
    ),
    "flat": (lambda r: np.save(r / "fog/test_images.npy", np.zeros((5, 784), np.uint8)), r"uint8 of shape \(5, 784\)"),
    "fewer labels": (
        lambda r: np.save(r / "fog/test_labels.npy", np.arange(4)),
        r"test_labels.npy holds int64 of shape \(4,\): expected integers of shape \(5,\), one per image",
    ),
    "other labels": (
        lambda r: np.save(r / "fog/test_labels.npy", np.arange(5)[::-1]),
        r"mnist_c: fog has other labels than those of stripe",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_folders_that_are_not_as_published(tmp_path, case):
    root = tmp_path / "mnist_c"
    write(root, ["stripe", "fog"])
    spoil, message = REFUSED[case]
    spoil(root)
    with pytest.raises(EquipoiseError, match=message):
        load_published(root, ["stripe", "fog"])


def test_refuses_unknown_names(tmp_path):
    with pytest.raises(EquipoiseError, match="unknown corruption 'snow'"):
        load_published(tmp_path, ["snow"])

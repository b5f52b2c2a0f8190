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


def cifar(root: Path, n: int = 4) -> dict[str, np.ndarray]:
    """Files as CIFAR-10-C is distributed: five severities in a row."""
    random = np.random.default_rng(0)
    written = {name: random.integers(0, 256, (5 * n, 32, 32, 3), np.uint8) for name in ("fog", "snow")}
    for name, images in written.items():
        np.save(root / f"{name}.npy", images)
    np.save(root / "labels.npy", np.tile(np.arange(n, dtype=np.uint8), 5))
    return written


def test_cifar_10_c_is_read_by_severity(tmp_path):
    written = cifar(tmp_path)
    found = load_published(tmp_path, ["cifar-c/snow", "cifar-c/fog/2"])
    assert found.shape == (3, 32, 32) and found.labels.tolist() == [0, 1, 2, 3]
    assert list(found.images) == [*(f"cifar-c/snow/{k}" for k in range(1, 6)), "cifar-c/fog/2"]
    for name, first in (("cifar-c/snow/1", 0), ("cifar-c/snow/5", 16), ("cifar-c/fog/2", 4)):
        expected = written[name.split("/")[1]][[first + 3, first]].transpose(0, 3, 1, 2).astype(np.float32) / 255
        np.testing.assert_array_equal(found.at(name, torch.tensor([3, 0])).numpy(), expected)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cifar-c/frost"], r"there is no file .*frost.npy"),
        (["cifar-c/fog", "fog"], r"can be read of MNIST-C alone, such as fog, or of CIFAR-10-C alone"),
        (["imagenet-c/fog"], r"can be read of MNIST-C alone"),
        (["cifar-c/snow"], r"snow.npy holds 19 images: expected as many per severity"),
    ],
)
def test_refuses_what_is_not_cifar_10_c(tmp_path, names, message):
    cifar(tmp_path)
    np.save(tmp_path / "snow.npy", np.zeros((19, 32, 32, 3), np.uint8))
    np.save(tmp_path / "labels.npy", np.zeros(19 if "snow" in names[0] else 20, np.uint8))
    with pytest.raises(EquipoiseError, match=message):
        load_published(tmp_path, names)

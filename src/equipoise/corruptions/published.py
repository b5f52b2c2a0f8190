"""The published MNIST-C and CIFAR-10-C: arrays of images and labels."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from equipoise.core.errors import EquipoiseError, require
from equipoise.core.types import Images
from equipoise.corruptions.canvas import SIDE
from equipoise.corruptions.catalogue import CIFAR_C, chosen
from equipoise.corruptions.mnist_c import CORRUPTIONS


@dataclass(frozen=True, eq=False)
class Published:
    """Published corrupted versions of one test set."""

    images: Mapping[str, UInt8[Tensor, "n channels height width"]]
    """Images by corruption, as bytes."""
    labels: Int[Tensor, " n"]
    """Class of each sample, the same for all corruptions."""
    sha256: Mapping[str, str]
    """SHA-256 of the images' values, by corruption."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (channels, height, width) of an image."""
        return tuple(next(iter(self.images.values())).shape[1:])

    def at(self, name: str, index: Int[Tensor, " batch"]) -> Images:
        """Return the indexed images under a corruption, in [0, 1]."""
        return self.images[name][index].float() / 255


def load_published(root: "Path | str", names: Sequence[str] = tuple(CORRUPTIONS)) -> Published:
    """Read the published images, as uint8 arrays: of MNIST-C, `root/<corruption>/test_images.npy`, of shape
    (n, 28, 28, 1), and `test_labels.npy`; of CIFAR-10-C (`cifar-c/<corruption>/<severity>`), `root/<corruption>.npy`,
    of shape (5 n, 32, 32, 3), by severity, and `labels.npy`. Those of ImageNet-C are pictures in folders: evaluate on
    them as a data set.

    Raises `EquipoiseError` for an unknown name, both collections at once, a missing folder or file, a file that is
    truncated or no array, a wrong shape or type, and labels that differ between corruptions.
    """
    folder, names = Path(root), chosen(names)
    require(
        folder.is_dir(),
        f"there is no folder {folder}: expected the one that holds MNIST-C, a folder per corruption, or "
        "CIFAR-10-C, a file per corruption.",
    )
    collections = {name.rpartition("/")[0].partition("/")[0] for name in names}
    require(
        collections in ({""}, {CIFAR_C}),
        "published images can be read of MNIST-C alone, such as fog, or of CIFAR-10-C alone, such as cifar-c/fog.",
    )
    images: dict[str, Tensor] = {}
    labels: Tensor | None = None
    for name in names:
        images[name], own = _of_mnist(folder, name) if collections == {""} else _of_cifar(folder, name)
        labels = own if labels is None else labels
        require(torch.equal(own, labels), f"{folder}: {name} has other labels than those of {names[0]}.")
    assert labels is not None
    digests = {name: hashlib.sha256(values.numpy().tobytes()).hexdigest() for name, values in images.items()}
    return Published(images, labels, digests)


def _of_mnist(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    """Images and labels of a corruption of MNIST-C."""
    present = (folder / name).is_dir()
    require(present, f"{folder} has no folder {name}: expected {name}/test_images.npy and test_labels.npy.")
    return _pair(folder / name / "test_images.npy", folder / name / "test_labels.npy", (SIDE, SIDE, 1))


def _of_cifar(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    """Images and labels of a corruption of CIFAR-10-C at one severity."""
    _, family, severity = name.split("/")
    images, labels = _pair(folder / f"{family}.npy", folder / "labels.npy", (32, 32, 3))
    require(len(images) % 5 == 0, f"{folder / family}.npy holds {len(images)} images: expected as many per severity.")
    part = slice((int(severity) - 1) * len(images) // 5, int(severity) * len(images) // 5)
    return images[part], labels[part]


def _pair(images: Path, labels: Path, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """The images of a file, channels first, and their labels."""
    array, own = _array(images), _array(labels)
    require(
        array.dtype == np.uint8 and array.ndim == 4 and array.shape[1:] == shape and len(array) > 0,
        f"{images} holds {array.dtype} of shape {array.shape}: expected uint8 of shape (n, {str(shape)[1:]}.",
    )
    require(
        own.dtype.kind in "iu" and own.shape == array.shape[:1],
        f"{labels} holds {own.dtype} of shape {own.shape}: expected integers of shape ({len(array)},), one per image.",
    )
    return torch.from_numpy(array).permute(0, 3, 1, 2), torch.from_numpy(own.astype(np.int64))


def _array(path: Path) -> np.ndarray:
    require(path.is_file(), f"there is no file {path}: get the published images again.")
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="c")
    except (OSError, ValueError, EOFError) as error:
        raise EquipoiseError(f"cannot read {path}: it is truncated or no array ({error}); get it again.") from error
    require(isinstance(array, np.ndarray), f"{path} is an archive: expected a single array, as .npy files hold.")
    return array

"""MNIST-C as it was published: a folder per corruption with arrays of images and labels."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from equipoise.core.errors import EquipoiseError, require
from equipoise.corruptions.canvas import SIDE, Images
from equipoise.corruptions.mnist_c import CORRUPTIONS, chosen


@dataclass(frozen=True, eq=False)
class Published:
    """Corrupted versions of one test set."""

    images: Mapping[str, UInt8[Tensor, "n 1 28 28"]]
    """By corruption, as bytes."""
    labels: Int[Tensor, " n"]
    """Class of each sample, the same for all corruptions."""
    sha256: Mapping[str, str]
    """By corruption: SHA-256 of the images' values."""

    def at(self, name: str, rows: Int[Tensor, " batch"]) -> Images:
        """Some images under a corruption, in [0, 1]."""
        return self.images[name][rows].float() / 255


def load_published(root: "Path | str", names: Sequence[str] = tuple(CORRUPTIONS)) -> Published:
    """Read `root/<corruption>/test_images.npy` and `test_labels.npy`, as MNIST-C is distributed (uint8 images of shape
    (n, 28, 28, 1) and n labels).

    Raises `EquipoiseError` for an unknown name, a folder or file that is missing, a file that is truncated or no array,
    a wrong shape or type, and labels that are not the same for all corruptions.
    """
    folder, names = Path(root), chosen(names)
    require(
        folder.is_dir(), f"there is no folder {folder}: expected the one that holds MNIST-C, a folder per corruption."
    )
    images: dict[str, Tensor] = {}
    labels: Tensor | None = None
    for name in names:
        place = folder / name
        require(place.is_dir(), f"{folder} has no folder {name}: expected {name}/test_images.npy and test_labels.npy.")
        found, told = (_array(place / f"test_{what}.npy") for what in ("images", "labels"))
        require(
            found.dtype == np.uint8 and found.ndim == 4 and found.shape[1:] == (SIDE, SIDE, 1) and len(found) > 0,
            f"{place / 'test_images.npy'} holds {found.dtype} of shape {found.shape}: expected uint8 of shape "
            f"(n, {SIDE}, {SIDE}, 1).",
        )
        require(
            told.dtype.kind in "iu" and told.shape == found.shape[:1],
            f"{place / 'test_labels.npy'} holds {told.dtype} of shape {told.shape}: expected integers of shape "
            f"({len(found)},), one per image.",
        )
        images[name] = torch.from_numpy(np.ascontiguousarray(found)).permute(0, 3, 1, 2).contiguous()
        mine = torch.from_numpy(told.astype(np.int64))
        labels = mine if labels is None else labels
        require(torch.equal(mine, labels), f"{place / 'test_labels.npy'} has other labels than those of {names[0]}.")
    assert labels is not None
    digests = {name: hashlib.sha256(values.numpy().tobytes()).hexdigest() for name, values in images.items()}
    return Published(images, labels, digests)


def _array(path: Path) -> np.ndarray:
    """The array in a `.npy` file."""
    require(path.is_file(), f"there is no file {path}: get MNIST-C again.")
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise EquipoiseError(f"cannot read {path}: it is truncated or no array ({error}); get it again.") from error
    require(isinstance(found, np.ndarray), f"{path} is an archive: expected a single array, as .npy files hold.")
    return found

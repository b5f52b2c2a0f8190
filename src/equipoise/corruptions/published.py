"""The published MNIST-C: a folder per corruption with arrays of images and labels."""

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
from equipoise.corruptions.mnist_c import CORRUPTIONS, chosen


@dataclass(frozen=True, eq=False)
class Published:
    """Published corrupted versions of one test set."""

    images: Mapping[str, UInt8[Tensor, "n 1 28 28"]]
    """Images by corruption, as bytes."""
    labels: Int[Tensor, " n"]
    """Class of each sample, the same for all corruptions."""
    sha256: Mapping[str, str]
    """SHA-256 of the images' values, by corruption."""

    def at(self, name: str, index: Int[Tensor, " batch"]) -> Images:
        """Return the indexed images under a corruption, in [0, 1]."""
        return self.images[name][index].float() / 255


def load_published(root: "Path | str", names: Sequence[str] = tuple(CORRUPTIONS)) -> Published:
    """Read `root/<corruption>/test_images.npy` and `test_labels.npy`, as MNIST-C is distributed (uint8 images of shape
    (n, 28, 28, 1) and n labels).

    Raises `EquipoiseError` for an unknown name, a missing folder or file, a file that is truncated or no array, a wrong
    shape or type, and labels that differ between corruptions.
    """
    folder, names = Path(root), chosen(names)
    require(
        folder.is_dir(), f"there is no folder {folder}: expected the one that holds MNIST-C, a folder per corruption."
    )
    images: dict[str, Tensor] = {}
    labels: Tensor | None = None
    for name in names:
        files = [folder / name / f"test_{kind}.npy" for kind in ("images", "labels")]
        present = (folder / name).is_dir()
        require(present, f"{folder} has no folder {name}: expected {name}/test_images.npy and test_labels.npy.")
        array, own = map(_array, files)
        require(
            array.dtype == np.uint8 and array.ndim == 4 and array.shape[1:] == (SIDE, SIDE, 1) and len(array) > 0,
            f"{files[0]} holds {array.dtype} of shape {array.shape}: expected uint8 of shape (n, {SIDE}, {SIDE}, 1).",
        )
        require(
            own.dtype.kind in "iu" and own.shape == array.shape[:1],
            f"{files[1]} holds {own.dtype} of shape {own.shape}: expected integers of shape ({len(array)},), one per "
            "image.",
        )
        images[name] = torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2).contiguous()
        own = torch.from_numpy(own.astype(np.int64))
        labels = own if labels is None else labels
        require(torch.equal(own, labels), f"{files[1]} has other labels than those of {names[0]}.")
    assert labels is not None
    digests = {name: hashlib.sha256(values.numpy().tobytes()).hexdigest() for name, values in images.items()}
    return Published(images, labels, digests)


def _array(path: Path) -> np.ndarray:
    require(path.is_file(), f"there is no file {path}: get MNIST-C again.")
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise EquipoiseError(f"cannot read {path}: it is truncated or no array ({error}); get it again.") from error
    require(isinstance(array, np.ndarray), f"{path} is an archive: expected a single array, as .npy files hold.")
    return array

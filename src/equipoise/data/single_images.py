"""Single inputs for a trained model: an image file brought to the model's shape, or the arrays of a file."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import printable
from equipoise.data.decoding import decode

_ARRAYS = (".npy", ".npz")


def read_image(path: "Path | str", shape: tuple[int, ...]) -> tuple[Float[Tensor, "c h w"], str]:
    """Return an image as float32 in [0, 1] of the `shape` (channels, height, width), and how it was made to fit, empty
    if it was not.

    It is read and resized as the images of a dataset are (`equipoise.data.decoding`), grey for one channel and in
    colour for three. Raises `EquipoiseError` if the shape is not of an image, or the file cannot be read as one.
    """
    require(
        len(shape) == 3 and shape[0] in (1, 3),
        f"the model takes inputs of shape {shape}, which are not images: give them as arrays in a .npy or .npz file.",
    )
    channels, height, width = shape
    where = printable(path)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise EquipoiseError(f"cannot read {where}: {error.strerror}.") from error
    try:
        image = decode(content, where, (width, height))
    except EquipoiseError as error:  # whose advice is about many images
        raise EquipoiseError(f"{str(error).partition('; ')[0]}.") from error
    pixels = image.pixels
    if channels == 1 and pixels.shape[2] == 3:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    values = torch.from_numpy(np.divide(pixels, 255, dtype=np.float32)).expand(height, width, channels)
    note = f"{where}: {'; '.join(image.remarks)}" if image.remarks else ""
    return values.permute(2, 0, 1).contiguous(), note


def read_inputs(
    path: "Path | str", shape: tuple[int, ...], preprocessing: Mapping[str, Any] | None = None
) -> tuple[Float[Tensor, "n ..."], str]:
    """Return the inputs in a file, each of the `shape`: one of an image (`read_image`), or those of an array.

    A `.npy` file holds one input or several; of a `.npz` file the array `x` is read, or its only one. Integers are from
    0 to 255, other numbers in [0, 1]. Raises `EquipoiseError` for a file that cannot be read and for other shapes or
    values.
    """
    where, given = printable(path), preprocessing or {}
    if Path(path).suffix.lower() not in _ARRAYS:
        require(
            "box" not in given,
            f"{where} has pixels from 0 to 1, and the model takes inputs on another scale, of "
            f"{' to '.join(f'{end:g}' for end in given.get('box', ()))}: give them as arrays in a .npy or .npz file.",
        )
        image, note = read_image(path, shape)
        return image[None], note
    array = _read_array(Path(path), where)
    require(array.dtype.kind in "fiub", f"{where} holds values of type {array.dtype}: expected numbers.")
    array = array[None] if array.shape == shape else array
    require(
        array.shape[1:] == shape and len(array) > 0,
        f"{where} holds an array of shape {array.shape}: expected {shape}, or several of these as (n, ...).",
    )
    box, is_bytes = given.get("box", (0.0, 1.0)), array.dtype.kind in "iu" and "box" not in given
    if "offset" in given:
        array = (array - np.array(given["offset"])) / np.array(given["scale"])
    values = torch.from_numpy(array.astype(np.float32) / (255 if is_bytes and "offset" not in given else 1))
    low, high = float(values.min()), float(values.max())
    expected = f"[{box[0]:g}, {box[1]:g}]" + (" after scaling" if "offset" in given else ", or bytes")
    require(low >= box[0] and high <= box[1], f"{where} has values from {low:g} to {high:g}: expected {expected}.")
    return values, ""


def _read_array(path: Path, where: str) -> np.ndarray:
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            name = "x" if "x" in content.files else content.files[0] if len(content.files) == 1 else ""
            require(name != "", f"it holds the arrays {', '.join(content.files)}; expected one of the name x")
            return content[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise EquipoiseError(f"cannot read {where}: {why.rstrip('.')}.") from error

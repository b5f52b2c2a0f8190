"""Single inputs for a trained model: an image file brought to the model's shape, or the arrays of a file."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import printable

_ARRAYS = (".npy", ".npz")
_DEEP = ("I", "F")  # first letters of Pillow's modes of more than 8 bits


def read_image(path: "Path | str", shape: tuple[int, ...]) -> tuple[Float[Tensor, "c h w"], str]:
    """Return an image as float32 in [0, 1] of the `shape` (channels, height, width), and how it was made to fit, empty
    if it was not.

    Its EXIF orientation is applied. It becomes grey for one channel and RGB for three; if its size is another, it is
    resized so that it just covers the shape, and the centre is cut out. Raises `EquipoiseError` if the shape is not of
    an image, or the file cannot be read as one.
    """
    require(
        len(shape) == 3 and shape[0] in (1, 3),
        f"the model takes inputs of shape {shape}, which are not images: give them as arrays in a .npy or .npz file.",
    )
    channels, height, width = shape
    try:
        with Image.open(path) as image:
            require(image.mode[0] not in _DEEP, f"it has pixels of mode {image.mode}, not of 8 bits")
            upright = ImageOps.exif_transpose(image)
            plain = upright.convert("RGBA") if upright.mode == "P" and upright.has_transparency_data else upright
            pixels = plain.convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = getattr(error, "strerror", None) or str(error).partition(":")[0]
        raise EquipoiseError(f"{printable(path)} is not a readable image: {why.rstrip('.')}.") from error
    note = ""
    if pixels.size != (width, height):
        before = f"{pixels.width} x {pixels.height}"
        pixels = ImageOps.fit(pixels, (width, height), Image.Resampling.BILINEAR)
        note = f"{printable(path)}: {before} pixels resized to {width} x {height}, around the centre"
    values = torch.from_numpy(np.asarray(pixels, np.float32) / 255).reshape(height, width, channels)
    return values.permute(2, 0, 1).contiguous(), note


def read_inputs(path: "Path | str", shape: tuple[int, ...]) -> tuple[Float[Tensor, "n ..."], str]:
    """Return the inputs in a file, each of the `shape`: one of an image (`read_image`), or those of an array.

    A `.npy` file holds one input or several; of a `.npz` file the array `x` is read, or its only one. Integers are from
    0 to 255, other numbers in [0, 1]. Raises `EquipoiseError` for a file that cannot be read and for other shapes or
    values.
    """
    if Path(path).suffix.lower() not in _ARRAYS:
        image, note = read_image(path, shape)
        return image[None], note
    where = printable(path)
    array = _read_array(Path(path), where)
    require(array.dtype.kind in "fiub", f"{where} holds values of type {array.dtype}: expected numbers.")
    array = array[None] if array.shape == shape else array
    require(
        array.shape[1:] == shape and len(array) > 0,
        f"{where} holds an array of shape {array.shape}: expected {shape}, or several of these as (n, ...).",
    )
    values = torch.from_numpy(array.astype(np.float32) / (255 if array.dtype.kind in "iu" else 1))
    low, high = float(values.min()), float(values.max())
    require(low >= 0 and high <= 1, f"{where} has values from {low:g} to {high:g}: expected [0, 1], or bytes.")
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

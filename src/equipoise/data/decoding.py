"""Images from bytes to pixels: one at a time, or many ahead, of one size."""

import io
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import printable
from equipoise.data.files import reason, require_memory
from equipoise.data.trees import Tree

_FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP", "AVIF")  # others may run programs
_MAX_PENDING = 64  # images being decoded
_MAX_PIXELS = 89_478_485  # from which Pillow warns of small files that fill the memory
_ORIENTATION = 0x0112  # the tag of EXIF that says how the camera was held


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoded image."""

    pixels: np.ndarray
    """(h, w, c), c = 1 if it is grey, else 3."""
    remarks: tuple[str, ...] = ()
    """What was changed or dropped."""


class MixedSizesError(EquipoiseError):
    """Images of several sizes where one is needed."""

    def __init__(self, message: str, smallest: int) -> None:
        super().__init__(message)
        self.smallest = smallest
        """The shortest side of the images that were compared."""


def decode_all(
    path: Path, tree: Tree, names: Sequence[PurePosixPath], size: tuple[int, int] | None, skip: bool
) -> Iterator[tuple[PurePosixPath, Decoded | EquipoiseError]]:
    """Yield the images of these names, decoding a few ahead, all resized to `size` (width, height) or of one size.

    An image that cannot be read raises its error, or with `skip` yields it.
    """
    first: tuple[PurePosixPath, Decoded] | None = None

    def checked(name: PurePosixPath, future: "Future[Decoded]") -> tuple[PurePosixPath, Decoded | EquipoiseError]:
        nonlocal first
        try:
            image = future.result()
        except EquipoiseError as error:
            if not skip:
                raise
            return name, error
        if first is None:
            first = name, image
            require_memory(len(names) * image.pixels.size, printable(path))
        (height, width), (other_height, other_width) = first[1].pixels.shape[:2], image.pixels.shape[:2]
        if (other_height, other_width) != (height, width):
            smallest = min(height, width, other_height, other_width)
            raise MixedSizesError(
                f"{printable(path)} has images of mixed sizes: {printable(first[0])} has {width} x {height} pixels and "
                f"{printable(name)} has {other_width} x {other_height}; expected one size, or give one to resize all "
                f"to, such as --size {smallest}.",
                smallest,
            )
        return name, image

    pending: deque[tuple[PurePosixPath, Future[Decoded]]] = deque()
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        for name in names:
            where = printable(f"{path}, {name}")
            pending.append((name, pool.submit(decode, tree.read(name), where, size)))
            if len(pending) >= _MAX_PENDING or first is None:
                yield checked(*pending.popleft())
        for name, future in pending:
            yield checked(name, future)


def decode(data: bytes, where: str, size: tuple[int, int] | None = None) -> Decoded:
    """Decode an image, turned as its camera was held; with a `size` (width, height) it is resized until it just covers
    that, with antialiasing (bilinear, over the area of each new pixel), and cropped about its centre.

    Raises `EquipoiseError` naming `where` for anything that is not a whole image.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            width, height = image.size
            require(width * height <= _MAX_PIXELS, f"it has {width} x {height} pixels, more than {_MAX_PIXELS:,}")
            remarks: list[str] = []
            plain = plain_image(image, remarks)
            if size is not None and plain.size != size:
                plain = _covering(plain, size)
                remarks.append(f"resized and cropped to {size[0]} x {size[1]} pixels")
            pixels = np.asarray(plain)
    except UnidentifiedImageError as error:
        raise EquipoiseError(
            f"{where} is not a readable image: cannot identify its format; replace or delete it, or leave such "
            "images out with --skip-unreadable."
        ) from error
    except Exception as error:  # a damaged image can raise anything
        raise EquipoiseError(
            f"{where} is not a readable image: {reason(error)}; replace or delete it, or leave such images out with "
            "--skip-unreadable."
        ) from error
    return Decoded(pixels.reshape(*pixels.shape[:2], -1), tuple(remarks))


def plain_image(image: Image.Image, remarks: list[str]) -> Image.Image:
    """The image with 8 bits a channel, grey or in colour, upright; what was changed is added to the remarks."""
    if getattr(image, "is_animated", False):
        remarks.append("with several frames, of which the first was read")
    if image.mode[0] == "I":  # 16 bits, of which Pillow knows that they are 16 or takes them for 32
        levels = np.asarray(image).astype(np.int64)
        require(
            0 <= int(levels.min()) <= int(levels.max()) < 2**16, f"it has pixels of mode {image.mode} beyond 16 bits"
        )
        remarks.append("with 16 bits a pixel, scaled to 8")
        exif = image.getexif()
        image = Image.fromarray(np.rint(levels * (255 / 65535)).astype(np.uint8))
        image.getexif().update(exif)
    require(image.mode[0] != "F", f"it has pixels of mode {image.mode}, not of 8 or 16 bits")
    if image.has_transparency_data:
        remarks.append("with an alpha channel, which was dropped")
        image = image.convert("RGBA") if image.mode == "P" else image  # else Pillow warns
    turned = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    if turned:
        remarks.append("turned upright, as its EXIF orientation says")
        image = ImageOps.exif_transpose(image)
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")


def _covering(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The smallest resized image that covers `size`, cropped to it about its centre."""
    ratio = max(target / side for target, side in zip(size, image.size, strict=True))
    width, height = (max(round(side * ratio), target) for side, target in zip(image.size, size, strict=True))
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + size[0], top + size[1]))


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)

"""Stripes, and strokes drawn on a canvas of rows and columns 0 to 27 that is stretched over the image."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.core.rng import Streams
from equipoise.core.types import Images
from equipoise.corruptions.canvas import SIDE, coordinates

FADE = 2.3
"""Vertical distance from a stroke, in pixels of a 28x28 image, at which it has faded out."""
LEFT, RIGHT, AMPLITUDE = 2.0, 25.0, 2.0
"""First and last column of the zigzag's axis; how far the zigzag swings to either side, and a quarter of its period."""

PerImage = Float[Tensor, " batch"]


def stripe(images: Images, streams: Streams) -> Images:
    """`1 - x` in the first and in the last quarter of the columns, x between them. Not random. As the original."""
    width = images.shape[3]
    column = torch.arange(width, device=images.device)
    return torch.where((column < width // 4) | (column >= width - width // 4), 1 - images, images)


def dotted_line(images: Images, streams: Streams) -> Images:
    """A straight line from row r0 of the left border to row r1 of the right one, both uniform in {0, ..., 26}, added in
    every other pair of columns. As the original.
    """
    first, last = (streams.fold(k).integers(SIDE - 1).double() for k in (0, 1))
    dots = (_canvas(images)[1] // 2) % 2 == 1
    line = _stroke(images, torch.zeros_like(first), first, torch.full_like(last, SIDE - 1), last)
    return (images + line * dots).clamp(0, 1)


def zigzag(images: Images, streams: Streams) -> Images:
    """A zigzag of seven strokes along the line from (r0, 2) to (r1, 25), r0 uniform in {0, ..., 26} and r1 - r0 in
    {-5, ..., 4}: its corners lie 2, 6, 10, 14, 18, 22 along that line, 2 beside it on alternate sides. As the original,
    including the odd end of its last stroke; but the published code clips bytes to [0, 1] here, which makes all of the
    digit that is not black white, and ours does not.
    """
    row, rise = streams.fold(0).integers(SIDE - 1).double(), streams.fold(1).integers(10).double() - 5
    angle = torch.atan(rise / (RIGHT - LEFT))
    length = (RIGHT - LEFT) / angle.cos()
    corners = 6  # the number that fits, whatever the rise
    along = [0 * length, *((2 * i + 1) * AMPLITUDE + 0 * length for i in range(corners)), length]
    beside = [0 * length, *((-1) ** i * AMPLITUDE + 0 * length for i in range(corners))]
    beside.append(beside[-1] / (2 * (length - 2 * AMPLITUDE * (length // (2 * AMPLITUDE)))))
    ends = [
        (LEFT + a * angle.cos() - b * angle.sin(), row + a * angle.sin() + b * angle.cos())
        for a, b in zip(along, beside, strict=True)
    ]
    strokes = (_stroke(images, *start, *end) for start, end in pairwise(ends))
    return (images + sum(strokes)).clamp(0, 1)


def _canvas(images: Images) -> tuple[Float[Tensor, "height 1"], Float[Tensor, " width"]]:
    """Rows and columns of the pixels in units of a 28x28 image, so that the borders lie at 0 and 27."""
    rows, columns = coordinates(images)
    return (rows * (SIDE - 1) / (len(rows) - 1))[:, None], columns * (SIDE - 1) / (len(columns) - 1)


def _stroke(
    images: Images, column: PerImage, row: PerImage, to_column: PerImage, to_row: PerImage
) -> Float[Tensor, "batch 1 height width"]:
    """The brightness `1 + log(1 - d / 2.3)`, at least 0, of a stroke at vertical distance d, from the first column,
    rounded down, to before the last, rounded up.
    """
    rows, columns = _canvas(images)
    start, end, at_start, at_end = (v[:, None, None] for v in (column, to_column, row, to_row))
    distance = (rows - (at_start + (at_end - at_start) / (end - start) * (columns - start))).abs()
    ink = (1 + torch.log1p(-(distance / FADE).clamp(max=1 - 1e-9))).clamp(min=0)
    drawn = ink * ((columns >= start.floor()) & (columns < end.ceil()))
    return drawn[:, None].to(images.dtype)

"""What the corruptions share: the unit of length, pixels at computed positions, blur, filters, zoom."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from equipoise.core.rng import Streams
from equipoise.core.types import Images

SIDE = 28
"""Side of the images for which MNIST-C's parameters were published."""


def unit(images: Images, side: int = SIDE) -> float:
    """Return the length in pixels that corresponds to one pixel of an image of `side`: shorter side / `side`."""
    return min(images.shape[2:]) / side


def signs(streams: Streams) -> Float[Tensor, " batch"]:
    """Return -1 or +1 per image, with probability 1/2 each, in float64."""
    return 2.0 * streams.integers(2).double() - 1.0


def coordinates(images: Images) -> tuple[Float[Tensor, " height"], Float[Tensor, " width"]]:
    """Return the row and column numbers of an image's pixels, in float64."""
    rows, columns = (torch.arange(n, dtype=torch.float64, device=images.device) for n in images.shape[2:])
    return rows, columns


def pixels(images: Images, rows: Int[Tensor, "batch pixels"], columns: Int[Tensor, "batch pixels"]) -> Images:
    """Return the pixels at these positions of each image, as images of the same size; beyond the border the nearest
    pixel counts.
    """
    height, width = images.shape[2:]
    index = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    return images.flatten(2).gather(2, index[:, None].expand(-1, images.shape[1], -1)).view_as(images)


def blurred(images: Images, sigma: float, dims: tuple[int, ...] = (2, 3), mode: str = "replicate") -> Images:
    """Return the Gaussian blur along `dims`, cut off at 4 sigma. Beyond the border the nearest pixel counts, or 0 with
    `mode = "constant"`.

    A sum of shifted images in a fixed order, so that its rounding does not depend on the batch.
    """
    radius = math.floor(4 * sigma + 0.5)
    weights = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(-radius, radius + 1)]
    total = sum(weights)
    for dim in dims:
        padding = (0, 0, radius, radius) if dim == 2 else (radius, radius, 0, 0)
        padded, size = F.pad(images, padding, mode), images.shape[dim]
        images = torch.zeros_like(images)
        for k, weight in enumerate(weights):
            images = images + weight / total * padded.narrow(dim, k, size)
    return images


def correlated(images: Images, kernel: Float[Tensor, "rows columns"]) -> Images:
    """Return `out(p) = Σ_d kernel(d) in(p + d)`, d from the kernel's centre; images are mirrored beyond the border.

    A sum in a fixed order, as in `blurred`.
    """
    (down, right), (height, width) = (side // 2 for side in kernel.shape), images.shape[2:]
    padded = F.pad(images, (right, right, down, down), "reflect")
    out = torch.zeros_like(images)
    for row, column in kernel.nonzero().tolist():
        out += float(kernel[row, column]) * padded[:, :, row : row + height, column : column + width]
    return out


def zoomed(images: Images, factor: float) -> Images:
    """Return the centre of the images, magnified by `factor` >= 1: `side / factor` pixels of each axis, rounded up,
    stretched bilinearly and cut to the images' size.
    """
    for dim in (2, 3):
        side = images.shape[dim]
        kept = math.ceil(side / factor)
        size = [*images.shape[2:]]
        size[dim - 2] = round(kept * factor)
        images = F.interpolate(
            images.narrow(dim, (side - kept) // 2, kept).contiguous(), size, mode="bilinear", align_corners=True
        ).narrow(dim, (size[dim - 2] - side) // 2, side)
    return images

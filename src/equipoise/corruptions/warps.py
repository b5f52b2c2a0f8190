"""Affine maps of the plane around the image's centre, sampled bilinearly, black outside.

`out(p) = in(A (p - centre) + centre + shift)` for positions `p = (row, column)`, as in the original.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.core.rng import Streams
from equipoise.core.types import Images
from equipoise.corruptions.canvas import SIDE, coordinates, pixels, signs

ANGLE = 0.4
"""Angle of the rotation and of the shear, in radians."""
SCALE = 0.7
"""Size of an image shrunk by `scale`, relative to the original."""
SHIFT = 3.0
"""Distance by which `translate` moves along either axis, in pixels of a 28x28 image."""


def shear(images: Images, streams: Streams) -> Images:
    """`A = ((cos s, 0), (-sin s, 1))` with `s = ±0.4`, both signs equally likely: rows slide sideways and grow apart a
    little. As the original, whose library rotates only one axis by the angle and calls it shear.
    """
    s = ANGLE * signs(streams)
    zero, one = torch.zeros_like(s), torch.ones_like(s)
    return warped(images, _matrix(s.cos(), zero, -s.sin(), one))


def rotate(images: Images, streams: Streams) -> Images:
    """A rotation by 0.4 radians (23°) in either direction. As the original."""
    s = ANGLE * signs(streams)
    return warped(images, _matrix(s.cos(), s.sin(), -s.sin(), s.cos()))


def scale(images: Images, streams: Streams) -> Images:
    """`A = I / 0.7`: shrunk to 70 %, not random. As the original."""
    zero = torch.zeros(len(streams), dtype=torch.float64, device=images.device)
    return warped(images, _matrix(zero + 1 / SCALE, zero, zero, zero + 1 / SCALE))


def translate(images: Images, streams: Streams) -> Images:
    """Moved by ±3 of 28 pixels along each axis, all four directions equally likely. As the original."""
    one = torch.ones(len(streams), dtype=torch.float64, device=images.device)
    ways = torch.stack([signs(streams.fold(0)), signs(streams.fold(1))], -1)
    size = torch.tensor(images.shape[2:], dtype=torch.float64, device=images.device)
    return warped(images, _matrix(one, 0 * one, 0 * one, one), ways * SHIFT * size / SIDE)


def warped(images: Images, matrix: Float[Tensor, "batch 2 2"], shift: Float[Tensor, "batch 2"] | None = None) -> Images:
    """Return `out(p) = in(A (p - centre) + centre + shift)`, bilinear between pixels, 0 outside."""
    height, width = images.shape[2:]
    ends = torch.tensor([height - 1, width - 1], dtype=torch.float64, device=images.device)
    grid = torch.cartesian_prod(*coordinates(images)) - ends / 2
    position = matrix[:, None, :, 0] * grid[:, :1] + matrix[:, None, :, 1] * grid[:, 1:] + ends / 2
    if shift is not None:
        position = position + shift[:, None]
    corner = position.floor()
    offset = position - corner
    out = torch.zeros_like(images)
    for down in (0, 1):
        for right in (0, 1):
            row, column = corner[..., 0].long() + down, corner[..., 1].long() + right
            weight = (offset[..., 0] - (1 - down)).abs() * (offset[..., 1] - (1 - right)).abs()
            weight = weight * ((row >= 0) & (row < height) & (column >= 0) & (column < width))
            out += weight.view(-1, 1, height, width).to(images.dtype) * pixels(images, row, column)
    return out.clamp(0, 1)


def _matrix(*entries: Float[Tensor, " batch"]) -> Float[Tensor, "batch 2 2"]:
    """The matrix of each image from its entries, by rows."""
    return torch.stack(entries, -1).unflatten(-1, (2, 2))

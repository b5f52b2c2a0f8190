"""Blur by frosted glass and by motion."""

import math

import torch
from jaxtyping import Int
from torch import Tensor

from equipoise.core.rng import Streams
from equipoise.corruptions.canvas import Images, blurred, pixels, unit

GLASS = 0.7
"""Deviation of the blur before and after the pixels are shuffled, in pixels of a 28x28 image."""
ROUNDS = 2
"""How often glass shuffles."""
MOTION, REACH = 3.0, 10.0
"""Deviation of the motion blur, and the radius that bounds its kernel, in pixels of a 28x28 image."""
STEEPEST = math.pi / 4
"""Largest angle of a motion with the horizontal."""


def glass_blur(images: Images, streams: Streams) -> Images:
    """Blur, swaps of close pixels, blur again.

    Two rounds visit the pixels from the last to the first; each is swapped, with probability 1/2, with the one at an
    offset in {-1, 0}² (in {-d, ..., d-1}² with d = side / 28). The blur (sigma = 0.7) runs down the columns alone: the
    original's library is told that the last axis of a grey image holds colours, and leaves it. Unlike the original's,
    the values between blur and swaps are not rounded to bytes, and colours of a pixel stay together.
    """
    reach = max(1, round(unit(images)))
    frosted = blurred(images, GLASS * unit(images), (2,))
    for number in range(ROUNDS):
        frosted = _shuffled(frosted, reach, streams.fold(number))
    return blurred(frosted, GLASS * unit(images), (2,)).clamp(0, 1)


def _shuffled(images: Images, reach: int, streams: Streams) -> Images:
    """One round of swaps in the order of the original, last pixel first.

    Swaps whose surroundings do not touch may be done together. Those on one line `2 d · row + column = t` are that far
    apart, and every swap that has to wait for another lies on a line of smaller t: a wave per line runs over the image.
    """
    (batch, _, height, width), device = images.shape, images.device
    below, right = torch.meshgrid(
        torch.arange(height - 2 * reach, device=device), torch.arange(width - 2 * reach, device=device), indexing="ij"
    )
    line = (2 * reach * below + right).flatten()
    visited = ((height - reach - below) * width + width - reach - right).flatten()
    waves = visited[line.argsort(stable=True)].split(line.bincount().tolist())

    u = streams.uniform(3, height, width).flatten(2)
    down, along = ((u[:, k] * 2 * reach).long() - reach for k in (1, 2))
    here = torch.arange(height * width, device=device)
    other = torch.where(u[:, 0] < 0.5, here + down * width + along, here)
    origin = here.repeat(batch, 1)
    for place in waves:
        partner = other[:, place]
        mine, theirs = origin[:, place], origin.gather(1, partner)
        origin[:, place] = theirs
        origin.scatter_(1, partner, mine)
    return pixels(images, origin // width, origin % width)


def motion_blur(images: Images, streams: Streams) -> Images:
    """`out(p) = Σ_i k_i in(p + round(i · (sin a, cos a)))`, `k_i ∝ exp(-i²/2σ²)` for i = 0, ..., 20 and sigma = 3, at
    an angle a uniform in ±45°: a trail to one side. Outside lies the border's pixel. As the original, whose library
    also takes nearest pixels, but for its rounding to bytes.
    """
    height, width = images.shape[2:]
    sigma, taps = MOTION * unit(images), 2 * math.ceil(REACH * unit(images)) + 1
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(taps)]
    angle = STEEPEST * (2 * streams.uniform(dtype=torch.float64) - 1)
    rows, columns = _grid(height, width, images.device)
    out = torch.zeros_like(images)
    for i, weight in enumerate(weights):
        down, right = ((i * part - 0.5).ceil().long()[:, None] for part in (angle.sin(), angle.cos()))
        out += weight / sum(weights) * pixels(images, rows + down, columns + right)
    return out.clamp(0, 1)


def _grid(height: int, width: int, device: torch.device) -> tuple[Int[Tensor, " places"], Int[Tensor, " places"]]:
    """Row and column of every pixel."""
    place = torch.arange(height * width, device=device)
    return place // width, place % width

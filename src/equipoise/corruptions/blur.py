"""Blur by frosted glass and by motion."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.core.rng import Streams
from equipoise.core.types import Images
from equipoise.corruptions.canvas import blurred, pixels, unit

GLASS = 0.7
"""Standard deviation of the blur before and after shuffling, in pixels of a 28x28 image."""
ROUNDS = 2
"""Number of shuffles by glass."""
MOTION, RADIUS = 3.0, 10.0
"""Standard deviation of the motion blur and radius of its kernel, in pixels of a 28x28 image."""
MAX_ANGLE = math.pi / 4
"""Largest angle between a motion and the horizontal."""


def glass_blur(images: Images, streams: Streams) -> Images:
    """Blur, swap neighbouring pixels, blur again.

    Two rounds visit the pixels from the last to the first; each is swapped, with probability 1/2, with the pixel at an
    offset in {-1, 0}² (in {-d, ..., d-1}² with d = side / 28). The blur (sigma = 0.7) runs along the columns only, as
    the original treats the last axis of a grey image as colours. Unlike in the original, values are not rounded to
    bytes between blur and swaps, and the colours of a pixel stay together.
    """
    distance = max(1, round(unit(images)))
    frosted = blurred(images, GLASS * unit(images), (2,))
    for number in range(ROUNDS):
        frosted = _shuffled(frosted, distance, streams.fold(number))
    return blurred(frosted, GLASS * unit(images), (2,)).clamp(0, 1)


def _shuffled(images: Images, distance: int, streams: Streams) -> Images:
    """One round of swaps in the order of the original, last pixel first.

    Swaps of disjoint neighbourhoods can be done together. Neighbourhoods on one line `2 d · row + column = t` are
    disjoint, and a swap depends only on swaps on lines of smaller t: one wave per line runs over the image.
    """
    (batch, _, height, width), device = images.shape, images.device
    below, right = torch.meshgrid(
        *(torch.arange(side - 2 * distance, device=device) for side in (height, width)), indexing="ij"
    )
    line = (2 * distance * below + right).flatten()
    visited = ((height - distance - below) * width + width - distance - right).flatten()
    waves = visited[line.argsort(stable=True)].split(line.bincount().tolist())

    u = streams.uniform(3, height, width).flatten(2)
    down, along = ((u[:, k] * 2 * distance).long() - distance for k in (1, 2))
    index = torch.arange(height * width, device=device)
    partner = torch.where(u[:, 0] < 0.5, index + down * width + along, index)
    source = index.repeat(batch, 1)
    for wave in waves:
        partners = partner[:, wave]
        own, other = source[:, wave], source.gather(1, partners)
        source[:, wave] = other
        source.scatter_(1, partners, own)
    return pixels(images, source // width, source % width)


def motion_blur(images: Images, streams: Streams) -> Images:
    """`out(p) = Σ_i k_i in(p + round(i · (sin a, cos a)))`, `k_i ∝ exp(-i²/2σ²)` for i = 0, ..., 20 and sigma = 3, at
    an angle a uniform in ±45°: a trail to one side. Beyond the border the nearest pixel counts. As the original, which
    also takes nearest pixels, except for its rounding to bytes.
    """
    angle = MAX_ANGLE * (2 * streams.uniform(dtype=torch.float64) - 1)
    return trail(images, angle, RADIUS * unit(images), MOTION * unit(images))


def trail(images: Images, angle: Float[Tensor, " batch"], radius: float, sigma: float) -> Images:
    """Return `out(p) = Σ_i k_i in(p + round(i · (sin a, cos a)))`, `k_i ∝ exp(-i²/2σ²)` for i up to twice the radius,
    rounded up, at the angle a of each image.
    """
    height, width = images.shape[2:]
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * math.ceil(radius) + 1)]
    index = torch.arange(height * width, device=images.device)
    out = torch.zeros_like(images)
    for i, weight in enumerate(weights):
        down, right = ((i * slope - 0.5).ceil().long()[:, None] for slope in (angle.sin(), angle.cos()))
        out += weight / sum(weights) * pixels(images, index // width + down, index % width + right)
    return out.clamp(0, 1)

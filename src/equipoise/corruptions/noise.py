"""Noise of single pixels."""

import torch

from equipoise.core.rng import Streams
from equipoise.corruptions.canvas import Images

PHOTONS = 3
"""Mean count of a white pixel in shot noise."""
HIT = 0.17
"""Share of the values that impulse noise replaces."""


def shot_noise(images: Images, streams: Streams) -> Images:
    """`min(1, k/3)` with `k ~ Poisson(3 x)` for each value x: photons that are counted.

    Counts above 3 make no difference, so that `min(k, 3) = Σ_{j<3} 1[u ≥ P(k ≤ j)]` with u uniform (the inverse of the
    distribution) is exact. The original draws from the same distribution.
    """
    rate = PHOTONS * images
    u = streams.uniform(*images.shape[1:], dtype=images.dtype)
    term = below = torch.exp(-rate)
    count = (u >= below).to(images.dtype)
    for j in range(1, PHOTONS):
        term = term * rate / j
        below = below + term
        count = count + (u >= below)
    return count / PHOTONS


def impulse_noise(images: Images, streams: Streams) -> Images:
    """Salt and pepper: each value becomes 0 or 1, with probability 0.17 / 2 each. As the original."""
    u = streams.uniform(*images.shape[1:], dtype=images.dtype)
    salted = torch.where(u < HIT / 2, 1.0, images)
    return torch.where((u >= HIT / 2) & (u < HIT), 0.0, salted)

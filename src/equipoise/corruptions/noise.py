"""Noise of single pixels."""

import numpy as np
import torch

from equipoise.core.rng import Streams
from equipoise.core.types import Images

PHOTONS = 3
"""Mean count of a white pixel in shot noise."""
REPLACED = 0.17
"""Share of the values that impulse noise replaces."""


def shot_noise(images: Images, streams: Streams) -> Images:
    """`min(1, k/3)` with the photon count `k ~ Poisson(3 x)` for each value x.

    Counts above 3 make no difference, so that inverting the distribution, `min(k, 3) = Σ_{j<3} 1[u ≥ P(k ≤ j)]` with u
    uniform, is exact. The original draws from the same distribution.
    """
    rate = PHOTONS * images
    u = streams.uniform(*images.shape[1:], dtype=images.dtype)
    probability = cumulative = torch.exp(-rate)
    count = (u >= cumulative).to(images.dtype)
    for j in range(1, PHOTONS):
        probability = probability * rate / j
        cumulative = cumulative + probability
        count = count + (u >= cumulative)
    return count / PHOTONS


def impulse_noise(images: Images, streams: Streams) -> Images:
    """Salt and pepper: each value becomes 0 or 1, with probability 0.17 / 2 each. As the original."""
    return salt_and_pepper(images, streams, REPLACED)


def salt_and_pepper(images: Images, streams: Streams, share: float) -> Images:
    """Each value becomes 0 or 1, with probability `share / 2` each."""
    u = streams.uniform(*images.shape[1:], dtype=images.dtype)
    salted = torch.where(u < share / 2, 1.0, images)
    return torch.where((u >= share / 2) & (u < share), 0.0, salted)


def photons(images: Images, streams: Streams, brightest: float) -> Images:
    """`min(1, k / brightest)` with the photon count `k ~ Poisson(brightest · x)` for each value x.

    Drawn by NumPy's legacy generator, whose numbers never change, on Philox with a key from each image's stream.
    """
    rates = (brightest * images.double()).cpu().numpy()
    keys = streams.bits(1)[:, 0].tolist()
    counts = [
        np.random.RandomState(np.random.Philox(key=key % 2**64)).poisson(rate)
        for key, rate in zip(keys, rates, strict=True)
    ]
    return (torch.from_numpy(np.stack(counts)).to(images) / brightest).clamp(max=1)

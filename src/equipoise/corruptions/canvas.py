"""What the corruptions share: the unit of length, pixels at places that are computed, the Gaussian blur."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from equipoise.core.rng import Streams

SIDE = 28
"""Side of the images for which MNIST-C's parameters were published."""

Images = Float[Tensor, "batch channels height width"]


def unit(images: Images) -> float:
    """How many pixels a length of one pixel of a 28x28 image is here: shorter side / 28."""
    return min(images.shape[2:]) / SIDE


def signs(streams: Streams) -> Float[Tensor, " batch"]:
    """-1 or +1 per image, with probability 1/2 each, in float64."""
    return 2.0 * streams.integers(2).double() - 1.0


def pixels(images: Images, rows: Int[Tensor, "batch places"], columns: Int[Tensor, "batch places"]) -> Images:
    """The pixels at `places` = height x width of each image, as images; the nearest one for a place outside."""
    height, width = images.shape[2:]
    place = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    return images.flatten(2).gather(2, place[:, None].expand(-1, images.shape[1], -1)).view_as(images)


def gaussian_weights(sigma: float) -> list[float]:
    """`exp(-k²/2σ²)` for |k| up to 4 sigma, divided by their sum."""
    reach = math.floor(4 * sigma + 0.5)
    weights = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(-reach, reach + 1)]
    return [weight / sum(weights) for weight in weights]


def blurred(images: Images, sigma: float, dims: tuple[int, ...] = (2, 3), mode: str = "replicate") -> Images:
    """Gaussian blur along `dims`, cut off at 4 sigma; outside lies the border's pixel, or 0 (`mode = "constant"`).

    A sum of shifted images in a fixed order, so that its rounding does not depend on the batch.
    """
    weights = gaussian_weights(sigma)
    reach = len(weights) // 2
    for dim in dims:
        padding = (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0)
        padded, size = F.pad(images, padding, mode), images.shape[dim]
        images = torch.zeros_like(images)
        for k, weight in enumerate(weights):
            images = images + weight * padded.narrow(dim, k, size)
    return images

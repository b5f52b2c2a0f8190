"""Brightness, fog and mud."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from equipoise.core.rng import Streams
from equipoise.core.types import Images
from equipoise.corruptions.canvas import SIDE, blurred, unit

BRIGHTER = 0.5
"""Added to a colour's value, its largest channel."""
DENSITY, DECAY = 3.0, 1.4
"""Weight of the fog; each of its octaves is weaker than the one before by the square of `DECAY`."""
MAP = 256
"""Side of the fog map, of which the upper left 28x28 pixels are used."""
WET, DEVIATION, DRY = 0.65, 0.3, 0.8
"""Mean of the liquid, also its threshold; its standard deviation; the threshold below which drops dry."""
MUD = 63 / 255
"""Brightness of mud."""
_BATCH = 16  # fog maps that fit in the cache


def brightness(images: Images, streams: Streams) -> Images:
    """The value V of each colour (its largest channel) becomes `min(V + 0.5, 1)`; hue and saturation stay: grey pixels
    become `min(x + 0.5, 1)`. The original turns colours grey in the end.
    """
    return brightened(images, BRIGHTER)


def brightened(images: Images, by: float) -> Images:
    """The value V of each colour becomes `min(V + by, 1)`; hue and saturation stay."""
    value = images.amax(1, keepdim=True)
    brighter = (value + by).clamp(max=1)
    return torch.where(value > 0, images / value.clamp_min(1e-30) * brighter, brighter).clamp(0, 1)


def fog(images: Images, streams: Streams) -> Images:
    """`(x + 3 f) · m / (m + 3)`, m the image's largest value and f in [0, 1] the fog: 28x28 of the 256x256 pixels of a
    plasma fractal, drawn separately for each image. As the original, up to rounding; for other sizes f is interpolated.
    """
    return in_fog(images, streams, DENSITY, DECAY, MAP, SIDE)


def in_fog(images: Images, streams: Streams, density: float, decay: float, side: int, used: int) -> Images:
    """`(x + d f) · m / (m + d)` with density d, m the image's largest value and f the fog: `used` by `used` pixels of a
    plasma fractal of `side`, interpolated to the image's size.
    """
    largest = images.amax((1, 2, 3), keepdim=True)
    starts = range(0, len(images), _BATCH)
    maps = [plasma(streams[i : i + _BATCH], side, decay)[:, None, :used, :used] for i in starts]
    fogs = torch.cat(maps).to(images.dtype)
    if images.shape[2:] != fogs.shape[2:]:
        fogs = F.interpolate(fogs, images.shape[2:], mode="bilinear", align_corners=True)
    return ((images + density * fogs) * largest / (largest + density)).clamp(0, 1)


def plasma(streams: Streams, side: int, decay: float = DECAY) -> Float[Tensor, "batch side side"]:
    """Diamond-square (Fournier et al. 1982) on a torus: each new point is the mean of its four neighbours plus uniform
    noise, whose width falls by `decay²` from octave to octave; finally rescaled to [0, 1]. `side` is a power of 2.
    """
    heights = torch.zeros(len(streams), side, side, device=streams.keys.device)
    step, width = side, 1.0
    while step >= 2:
        count, half = side // step, step // 2
        noise = width * (2 * streams.fold(step).uniform(3, count, count) - 1)
        corners = heights[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        centres = (pairs + pairs.roll(-1, 2)) / 4 + noise[:, 0]
        heights[:, half::step, half::step] = centres
        for k, (rows, columns) in enumerate(((0, half), (half, 0)), 1):
            edges = centres + centres.roll(1, k) + corners + corners.roll(-1, 3 - k)
            heights[:, rows::step, columns::step] = edges / 4 + noise[:, k]
        step, width = half, width / decay**2
    lowest = heights.amin((1, 2), keepdim=True)
    return (heights - lowest) / (heights.amax((1, 2), keepdim=True) - lowest)


def spatter(images: Images, streams: Streams) -> Images:
    """`x (1 - m) + 63/255 m`: mud of density m on the image. Gaussian noise (mean 0.65, deviation 0.3) is blurred with
    sigma = 1; pixels above 0.65 are blurred with sigma = 1.5, and those that stay below 0.8 dry to m = 0. As the
    original; both sigmas are in pixels of a 28x28 image.
    """
    noise = WET + DEVIATION * streams.normal(1, *images.shape[2:], dtype=images.dtype)
    mud = dried(blurred(noise, unit(images)) > WET, 1.5 * unit(images), images.dtype)
    return images * (1 - mud) + MUD * mud


def dried(drops: Tensor, sigma: float, dtype: torch.dtype) -> Images:
    """Return the density of mud where drops fell: blurred, and 0 below 0.8."""
    mud = blurred(drops.to(dtype), sigma)
    return torch.where(mud < DRY, 0.0, mud).clamp(0, 1)

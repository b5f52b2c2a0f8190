"""Light, fog and dirt."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from equipoise.core.rng import Streams
from equipoise.corruptions.canvas import SIDE, Images, blurred, unit

BRIGHTER = 0.5
"""What is added to a colour's value, its largest channel."""
DENSITY, DECAY = 3.0, 1.4
"""Weight of the fog, and by the square of what each octave of it is weaker than the last."""
MAP = 256
"""Side of the map of fog, of which the 28 upper left rows and columns are seen."""
WET, SPREAD, DRIED = 0.65, 0.3, 0.8
"""Mean of the liquid, which is also the level from which it stays; its deviation; the level from which drops do."""
MUD = 63 / 255
"""How bright mud is."""
_AT_ONCE = 16  # maps of fog that a processor's cache holds


def brightness(images: Images, streams: Streams) -> Images:
    """The value V of each colour (its largest channel) becomes `min(V + 0.5, 1)`; hue and saturation stay: grey pixels
    become `min(x + 0.5, 1)`. The original turns colours to grey at last.
    """
    value = images.amax(1, keepdim=True)
    brighter = (value + BRIGHTER).clamp(max=1)
    return torch.where(value > 0, images / value.clamp_min(1e-30) * brighter, brighter).clamp(0, 1)


def fog(images: Images, streams: Streams) -> Images:
    """`(x + 3 f) · m / (m + 3)`, m the image's largest value and f in [0, 1] the fog: 28x28 of the 256x256 pixels of a
    plasma fractal, drawn apart for each image. As the original, up to rounding; for another side, f is interpolated.
    """
    largest = images.amax((1, 2, 3), keepdim=True)
    few = torch.arange(len(images), device=images.device).split(_AT_ONCE)
    seen = torch.cat([plasma(streams[rows], MAP)[:, None, :SIDE, :SIDE] for rows in few]).to(images.dtype)
    if images.shape[2:] != seen.shape[2:]:
        seen = F.interpolate(seen, images.shape[2:], mode="bilinear", align_corners=True)
    return ((images + DENSITY * seen) * largest / (largest + DENSITY)).clamp(0, 1)


def plasma(streams: Streams, side: int) -> Float[Tensor, "batch side side"]:
    """Diamond-square (Fournier et al. 1982) on a torus: each new point is the mean of its four neighbours plus uniform
    noise, whose width falls by 1.4² = 1.96 from octave to octave; at last stretched to [0, 1]. `side` is a power of 2.
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
        heights[:, ::step, half::step] = (centres + centres.roll(1, 1) + corners + corners.roll(-1, 2)) / 4 + noise[
            :, 1
        ]
        heights[:, half::step, ::step] = (centres + centres.roll(1, 2) + corners + corners.roll(-1, 1)) / 4 + noise[
            :, 2
        ]
        step, width = half, width / DECAY**2
    lowest = heights.amin((1, 2), keepdim=True)
    return (heights - lowest) / (heights.amax((1, 2), keepdim=True) - lowest)


def spatter(images: Images, streams: Streams) -> Images:
    """`x (1 - m) + 63/255 m`: mud of density m on the image. Gaussian noise (mean 0.65, deviation 0.3) is blurred with
    sigma = 1; the places above 0.65 are blurred with sigma = 1.5, and what stays below 0.8 dries to m = 0. As the
    original; both sigmas are in pixels of a 28x28 image.
    """
    noise = WET + SPREAD * streams.normal(1, *images.shape[2:], dtype=images.dtype)
    drops = (blurred(noise, unit(images)) > WET).to(images.dtype)
    mud = blurred(drops, 1.5 * unit(images))
    mud = torch.where(mud < DRIED, 0.0, mud).clamp(0, 1)
    return images * (1 - mud) + MUD * mud

"""Pictures of frozen windows, made from random crystals in place of the photographs of the published frost.

The brightness is about that of the photographs (a mean of 0.65, which varies from picture to picture), and so is the
deviation, 0.1. The shapes are not: results under this frost cannot be compared with published ones.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from equipoise.core.rng import Streams
from equipoise.corruptions.weather import plasma

CRYSTALS = 16
"""Crystals per picture."""
SMALLEST, LARGEST = 0.2, 0.7
"""Bounds of a crystal's radius, in shorter sides of the picture."""
NEEDLE, GAP = 0.01, 0.09
"""Width of a needle, and the gap between its branches, in shorter sides; a third of it between theirs."""
BRIGHTEST, DARKEST = 0.72, 0.42
"""Bounds of the brightness of the ice between the crystals."""
ICE, RELIEF = 0.3, 0.45
"""Brightness that crystals add, and the range of the ice beneath."""
ROUGHNESS, SIDE = 1.5, 64
"""Decay of the octaves of that ice, and the side of its map."""

PerImage = Float[Tensor, "batch 1 1"]


def frozen_window(streams: Streams, height: int, width: int) -> Float[Tensor, "batch 1 height width"]:
    """Return the brightness of a frozen window in [0, 1]: a plasma fractal under six-armed crystals.

    A crystal has needles at 60°, which bear branches at 60°, which bear branches. All lengths are relative to the
    shorter side, so that the picture looks alike at every size.
    """
    short, device = min(height, width), streams.keys.device
    rows, columns = ((torch.arange(n, dtype=torch.float64, device=device) + 0.5) / short for n in (height, width))
    ice = F.interpolate(
        plasma(streams.fold(0), SIDE, ROUGHNESS)[:, None].double(), (height, width), mode="bilinear", align_corners=True
    )[:, 0]
    draws = streams.fold(1).uniform(4, CRYSTALS, dtype=torch.float64)[..., None, None]
    crystals = torch.zeros_like(ice)
    for number in range(CRYSTALS):
        row, column, turn, size = draws[:, :, number].unbind(1)
        down, right = rows[:, None] - row * (height / short), columns - column * (width / short)
        radius = SMALLEST + (LARGEST - SMALLEST) * size
        crystals = torch.maximum(crystals, _crystal(down, right, turn * math.pi / 3, radius, max(NEEDLE, 0.5 / short)))
    brightness = DARKEST + (BRIGHTEST - DARKEST) * streams.fold(2).uniform(1, 1, dtype=torch.float64)
    return (brightness + RELIEF * (ice - 0.5) + ICE * (crystals - 0.25)).clamp(0, 1)[:, None]


def _crystal(
    down: Float[Tensor, "batch height 1"],
    right: Float[Tensor, "batch 1 width"],
    turn: PerImage,
    radius: PerImage,
    needle: float,
) -> Float[Tensor, "batch height width"]:
    """The brightness in [0, 1] of a crystal at the origin, turned by an angle, which fades towards its radius."""
    distance = torch.hypot(down, right)
    sector = ((torch.atan2(down, right) - turn) % (math.pi / 3) - math.pi / 6).abs()
    along, across = distance * sector.cos(), distance * sector.sin()
    brightness = torch.exp(-((across / needle) ** 2))
    reach, gap = radius, GAP
    for shade in (0.8, 0.6):
        start = along - across / math.tan(math.pi / 3)
        side = ((start / gap) % 1 - 0.5) * gap
        length = across / math.sin(math.pi / 3)
        reach = 0.6 * (reach - start).clamp_min(0)
        along, across = length, (side * math.sin(math.pi / 3)).abs()
        branch = torch.exp(-((across / needle) ** 2)) * (length < reach) * (start > 0)
        brightness, gap = torch.maximum(brightness, shade * branch), gap / 3
    return brightness * (1 - distance / radius).clamp_min(0).sqrt()

"""The corruptions of MNIST-C by name."""

from collections.abc import Callable, Mapping

from equipoise.core.rng import Streams
from equipoise.core.types import Images
from equipoise.corruptions.blur import glass_blur, motion_blur
from equipoise.corruptions.edges import canny_edges
from equipoise.corruptions.noise import impulse_noise, shot_noise
from equipoise.corruptions.strokes import dotted_line, stripe, zigzag
from equipoise.corruptions.warps import rotate, scale, shear, translate
from equipoise.corruptions.weather import brightness, fog, spatter

Corruption = Callable[[Images, Streams], Images]
"""Returns corrupted images of the same shape, in [0, 1]. All randomness comes from the streams, one per image."""

CORRUPTIONS: Mapping[str, Corruption] = {
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "shear": shear,
    "scale": scale,
    "rotate": rotate,
    "brightness": brightness,
    "translate": translate,
    "stripe": stripe,
    "fog": fog,
    "spatter": spatter,
    "dotted_line": dotted_line,
    "zigzag": zigzag,
    "canny_edges": canny_edges,
}
"""The corruptions of MNIST-C, in the order of Mu & Gilmer (2019)."""

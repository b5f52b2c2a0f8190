"""The corruptions by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from equipoise.core.checks import check_index
from equipoise.core.errors import kind_of, require, unknown
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

MNIST_C = "mnist-c"
"""Stands for all of them, wherever names are expected."""
SMALLEST = 8
"""Smallest side of an image."""
_BATCH = 256  # images that are corrupted together, which bounds memory


def corrupt(images: Images, name: str, seed: int = 0, index: Int[Tensor, " batch"] | None = None) -> Images:
    """Return the images under the corruption `name`, of the same shape and dtype, in [0, 1].

    Random numbers depend on `seed`, on `name` and on each image's `index` (default 0, 1, ...), not on the batch or its
    order. Images are (n, 1 or 3, height, width) in [0, 1] with sides of at least 8; severities are those of MNIST-C for
    28x28, with lengths scaled for other sides. Raises `EquipoiseError` for an unknown name and for other images or
    indices.
    """
    (name,) = chosen([name])
    check_images(images)
    index = torch.arange(len(images)) if index is None else index
    check_index(index, len(images), "image")
    streams = Streams.of(seed, index.to(images.device)).fold(list(CORRUPTIONS).index(name))
    starts = range(0, len(images), _BATCH)
    batches = [slice(start, start + _BATCH) for start in starts]
    return torch.cat([CORRUPTIONS[name](images[batch], streams[batch]) for batch in batches])


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """Return the named corruptions, each once, with `mnist-c` for all. Raises `EquipoiseError` for none, or an unknown
    name.
    """
    require(not isinstance(names, str), f"corruptions = {names!r} is a text: expected a list of names, [{names!r}].")
    selected: dict[str, None] = {}
    for name in names:
        if name != MNIST_C and name not in CORRUPTIONS:
            raise unknown("corruption", name, [MNIST_C, *CORRUPTIONS])
        selected |= dict.fromkeys(CORRUPTIONS if name == MNIST_C else [name])
    require(len(selected) > 0, f"there is no corruption: name some, or all by {MNIST_C!r}.")
    return tuple(selected)


def check_images(images: Any) -> None:
    """Raise `EquipoiseError` unless `images` can be corrupted."""
    require(isinstance(images, Tensor), f"images is {kind_of(images)}: expected a torch tensor.")
    shape = tuple(images.shape)
    require(
        len(shape) == 4 and shape[0] > 0 and shape[1] in (1, 3) and min(shape[2:]) >= SMALLEST,
        f"corruptions need images (n, 1 or 3, height, width) with sides of at least {SMALLEST}, got shape {shape}.",
    )
    require(
        images.dtype in (torch.float32, torch.float64),
        f"images have dtype {images.dtype}: expected float32 in [0, 1], such as images.float() / 255.",
    )
    low, high = (float(v) for v in torch.aminmax(images))
    require(low >= 0 and high <= 1, f"images have values from {low:g} to {high:g}: expected [0, 1].")

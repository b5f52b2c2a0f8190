"""All corruptions by name, alone and in collections."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from equipoise.core.checks import check_index
from equipoise.core.errors import kind_of, require, unknown
from equipoise.core.rng import Streams
from equipoise.core.types import Images
from equipoise.corruptions import common
from equipoise.corruptions.canvas import unit
from equipoise.corruptions.mnist_c import CORRUPTIONS, Corruption
from equipoise.corruptions.severities import CIFAR_10_C, IMAGENET_C, Strength

MNIST_C, CIFAR_C = "mnist-c", "cifar-c"
"""Names of collections."""
BENCHMARK = 15
"""Number of corruptions, the first ones, over which a mean is published; the other 4 were kept for validation."""
SMALLEST = 8
"""Smallest side of an image."""
_PIXELS = 2**18  # of the images that are corrupted together, which bounds memory


@dataclass(frozen=True)
class Graded:
    """A corruption of `equipoise.corruptions.common` at one severity."""

    function: Any
    """The corruption, which also takes the unit of length and its strength."""
    strength: Strength
    """Its further arguments."""
    side: int
    """Side of the images for which the strength was published; lengths grow with the images' shorter side."""

    def __call__(self, images: Images, streams: Streams) -> Images:
        """Return the corrupted images."""
        return self.function(images, streams, unit(images, self.side), *self.strength)


def _graded(collection: str, severities: Mapping[str, Sequence[Strength]], side: int) -> dict[str, Corruption]:
    """The corruptions of a collection by name, such as `cifar-c/fog/3`."""
    return {
        f"{collection}/{name}/{severity}": Graded(getattr(common, name), strength, side)
        for name, strengths in severities.items()
        for severity, strength in enumerate(strengths, 1)
    }


_GRADED = {CIFAR_C: _graded(CIFAR_C, CIFAR_10_C, 32), "imagenet-c": _graded("imagenet-c", IMAGENET_C, 224)}
ALL: Mapping[str, Corruption] = {**CORRUPTIONS, **_GRADED[CIFAR_C], **_GRADED["imagenet-c"]}
"""Every corruption by name: those of MNIST-C, such as `fog`, and the others with their severities."""


def _collections() -> dict[str, tuple[str, ...]]:
    collections = {MNIST_C: tuple(CORRUPTIONS)}
    for collection, members in _GRADED.items():
        families: dict[str, tuple[str, ...]] = {}
        for name in members:
            family = name.rpartition("/")[0]
            families[family] = (*families.get(family, ()), name)
        benchmark = [name for family in list(families.values())[:BENCHMARK] for name in family]
        collections |= {collection: tuple(members), f"{collection}-{BENCHMARK}": tuple(benchmark), **families}
    return collections


COLLECTIONS: Mapping[str, tuple[str, ...]] = _collections()
"""What stands for several corruptions, wherever names are expected: `mnist-c` (15), `cifar-c` and `imagenet-c` (19 at 5
severities), `cifar-c-15` and `imagenet-c-15` (without the 4 of validation), and `cifar-c/fog` (5 severities)."""


def corrupt(images: Images, name: str, seed: int = 0, index: Int[Tensor, " batch"] | None = None) -> Images:
    """Return the images under the corruption `name`, of the same shape and dtype, in [0, 1].

    Random numbers depend on `seed`, on `name` and on each image's `index` (default 0, 1, ...), not on the batch or its
    order. Images are (n, 1 or 3, height, width) in [0, 1] with sides of at least 8; severities are those published for
    28x28 (MNIST-C), 32x32 (`cifar-c/...`) and 224x224 (`imagenet-c/...`), with lengths scaled for other sides. Raises
    `EquipoiseError` for a name of none or of several, and for other images or indices.
    """
    names = chosen([name])
    require(len(names) == 1, f"{name!r} stands for {len(names)} corruptions: name one of them, such as {names[0]!r}.")
    (name,) = names
    check_images(images, names)
    index = torch.arange(len(images)) if index is None else index
    check_index(index, len(images), "image")
    streams = Streams.of(seed, index.to(images.device)).fold(list(ALL).index(name))
    size = max(1, _PIXELS // (images.shape[2] * images.shape[3]))
    batches = [slice(start, start + size) for start in range(0, len(images), size)]
    return torch.cat([ALL[name](images[batch], streams[batch]) for batch in batches])


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """Return the named corruptions, each once, with all of a collection for its name. Raises `EquipoiseError` for none,
    or an unknown name.
    """
    require(not isinstance(names, str), f"corruptions = {names!r} is a text: expected a list of names, [{names!r}].")
    selected: dict[str, None] = {}
    for name in names:
        if name not in COLLECTIONS and name not in ALL:
            raise unknown("corruption", name, [*COLLECTIONS, *CORRUPTIONS])
        selected |= dict.fromkeys(COLLECTIONS.get(name, [name]))
    require(len(selected) > 0, f"there is no corruption: name some, or all by {MNIST_C!r} or {CIFAR_C!r}.")
    return tuple(selected)


def check_images(images: Any, names: Sequence[str] = ()) -> None:
    """Raise `EquipoiseError` unless `images` can be corrupted in these ways."""
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
    coloured = [name for name in names if name.split("/")[1:2] == ["saturate"]]
    require(
        shape[1] == 3 or not coloured,
        f"{''.join(coloured[:1])} needs images of 3 channels, got 1: leave it out, such as by {CIFAR_C}-15.",
    )

"""Attacks that may change a part of a sample: masks, and patches at places drawn for each sample.

attack = masked(pgd(8 / 255), mask)     # a mask of the shape of a sample, true where it may change
attack = patch(5)                       # 5 x 5 pixels of any values, somewhere in the image (Brown et al. 2017)
"""

from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from equipoise.attacks.ascent import Ascent
from equipoise.attacks.attack import Attack, AttackLike
from equipoise.attacks.black_box.random_search import RandomSearch
from equipoise.attacks.chain import Chain
from equipoise.attacks.gradient import pgd
from equipoise.attacks.inputs import AttackInputs
from equipoise.attacks.result import AttackResult
from equipoise.attacks.spaces import Input
from equipoise.core import progress
from equipoise.core.checks import checked_call
from equipoise.core.errors import EquipoiseError, require, require_integer
from equipoise.core.rng import Stream, Streams
from equipoise.core.types import Points
from equipoise.geometry import Ball, Box, Masked


@checked_call()
def masked(attack: AttackLike, mask: Tensor, each: bool = False) -> Attack:
    """`attack` on the features where `mask` is true alone; all others stay as they are.

    `mask` holds booleans that can be broadcast over a sample, such as of shape (height, width); with `each` it holds
    one mask per sample, of shape (samples, ...), for one batch. For gradient attacks in the input, random search, and
    chains of them. Raises `EquipoiseError` for any other attack, whose search does not keep to a mask.
    """
    if isinstance(attack, Chain):
        return replace(attack, parts=tuple((name, masked(part, mask, each)) for name, part in attack.parts))
    in_input = isinstance(getattr(attack, "space", Input()), Input)
    if not isinstance(attack, Ascent | RandomSearch) or not in_input:
        raise EquipoiseError(f"{attack} does not keep to a mask: take an ascent in the input, such as pgd or apgd.")
    require(mask.dtype == torch.bool, f"mask has dtype {mask.dtype}: expected booleans, such as mask > 0.")
    ball = attack.geometry
    return replace(attack, geometry=Masked(ball.norm, ball.eps, ball.box, ball.radii, mask if each else mask[None]))


@dataclass(frozen=True)
class Patch(Attack):
    """An ascent on the values of a square of pixels, at `places` places of the image drawn for each sample; the first
    place at which it succeeds counts (Brown et al. 2017, "Adversarial Patch"; here a patch of each sample's own).
    """

    kind = "patch"
    needs_labels = takes_targets = True

    size: int
    """Rows and columns of the patch, in pixels."""
    attack: Ascent
    """The ascent on its pixels."""
    places: int = 1
    """How many places are tried."""
    geometry: Ball = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_integer("size", self.size, 1)
        require_integer("places", self.places, 1)
        require(isinstance(self.attack.space, Input), "a patch is one of pixels: leave out the space of the ascent.")
        object.__setattr__(self, "geometry", self.attack.geometry)

    def __str__(self) -> str:
        return f"patch({self.size} x {self.size} pixels, {self.places} places, {self.attack})"

    def run(self, inputs: AttackInputs) -> AttackResult:
        """The ascent at one place after the other, on the samples that are not fooled yet. Raises `EquipoiseError` for
        samples that are no images, or are smaller than the patch.
        """
        result: AttackResult | None = None
        active = torch.arange(len(inputs.x), device=inputs.x.device)
        for place in progress.shares(range(self.places)):
            rest = inputs[active]
            attack = masked(self.attack, self.masks(rest.x, rest.streams.fold(Stream.RESTART, place)), each=True)
            new = attack(inputs.model, rest.x, rest.y, **rest.options)
            new = new if result is None else result[active].where(new, torch.ones_like(new.success))
            result = new if result is None else result.with_rows(active, new)
            active = (~result.success).nonzero()[:, 0]
            if len(active) == 0:
                break
        return cast(AttackResult, result)

    def masks(self, x: Points, streams: Streams) -> Tensor:
        """A square at a place drawn uniformly for each image, of shape (samples, 1, height, width)."""
        require(
            x.ndim == 4 and min(x.shape[2:]) >= self.size,
            f"a patch of {self.size} x {self.size} pixels does not fit samples of shape {tuple(x.shape[1:])}: expected "
            "images (channels, height, width) of at least that size.",
        )
        inside = []
        for axis, length in enumerate(x.shape[2:]):
            first = streams.fold(axis).integers(length - self.size + 1).to(x.device)[:, None]
            position = torch.arange(length, device=x.device)
            inside.append((position >= first) & (position < first + self.size))
        return inside[0][:, None, :, None] & inside[1][:, None, None, :]


@checked_call(Ascent)
def patch(size: int, steps: int = 100, places: int = 5, box: Box = Box(), **options: Any) -> Patch:
    """A square of `size` x `size` pixels of any values within the box, found by projected gradient ascent of the
    cross-entropy from random values, at `places` places drawn for each sample. Its radius is the width of the box.
    Also takes the fields of `Ascent`.
    """
    require(box.high - box.low < float("inf"), "a patch may take any value of the box: give it bounds.")
    return Patch(size, pgd(box.scale, 5 * box.scale / max(steps, 10), steps, box=box, **options), places)

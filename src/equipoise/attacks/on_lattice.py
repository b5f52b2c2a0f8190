"""Attacks on images that are saved with few bits, such as 8-bit PNGs: perturbed values are k/255 as well.

    attack = on_lattice(autoattack(8 / 255))

A perturbation of real numbers loses some of its effect when the image is saved. Here the search sees the network as it
will see the saved image: `f(round(x'))`, whose gradient passes through the rounding as through the identity (Bengio et
al. 2013, "straight-through"). What it finds is rounded into the ball, and confirmed there.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from equipoise.attacks.attack import Attack, AttackLike
from equipoise.attacks.chain import Chain
from equipoise.attacks.inputs import AttackInputs
from equipoise.attacks.result import AttackResult
from equipoise.attacks.spaces import Input
from equipoise.core.checks import checked_call
from equipoise.core.errors import EquipoiseError, require, require_integer
from equipoise.core.rng import Streams
from equipoise.core.types import Answers, Points, Predict, Predictive, Weights, answers_of
from equipoise.geometry import NORMS, Ball, Box
from equipoise.models import as_predictive

_CLEAN = 2.0**-23
"""By how much of its size, or of 1 or the width of the box, whichever is less, a clean value may be off the lattice: by
rounding to float32, as otherwise a move of whole steps would leave the ball."""
_ROUNDING = 1e-6
"""The share of the radius by which a sum of steps may exceed it by rounding."""


@dataclass(frozen=True)
class Lattice:
    """The values `low + k·(high - low)/levels`, k = 0, ..., levels, of a box."""

    box: Box
    """The box, with two bounds."""
    levels: int
    """Number of steps from one bound to the other: 255 for 8 bits."""

    def units(self, x: Points) -> Points:
        """The points in steps of the lattice, from its lower end."""
        return (x - self.box.low) * (self.levels / self.box.scale)

    def values(self, k: Points) -> Points:
        """The points at so many steps; of bytes the same floats as bytes divided by 255."""
        return self.box.low + k * self.box.scale / self.levels

    def round(self, x: Points) -> Points:
        """The nearest points of the lattice."""
        return self.values(self.units(x).round())

    def holds(self, x: Points) -> Bool[Tensor, " batch"]:
        """Which points are on the lattice up to rounding."""
        off = (x.double() - self.round(x.double())).abs().flatten(1).amax(1)
        return off <= _CLEAN * x.flatten(1).abs().amax(1).double().clamp_min(min(self.box.scale, 1.0))

    def round_into(self, ball: Ball, x: Points, centre: Points) -> Points:
        """The points of the lattice near `x` that lie in a ball around a point of the lattice.

        Every coordinate is rounded towards the centre, and as many as the ball allows to the nearest point instead,
        those first that this moves least.
        """
        unit, origin = self.units(x.double()), self.units(centre.double()).round()
        move = (unit - origin).flatten(1)
        inner, room = move.abs().floor(), move.abs().frac()
        # In l0, which counts what has moved, all are rounded to the nearest point.
        order, eps = (NORMS[ball.norm].order, ball.eps) if ball.norm in NORMS else (float("inf"), float("inf"))
        budget = eps * self.levels / self.box.scale * (1 + _ROUNDING)
        if order == float("inf"):
            steps = move.abs().round().clamp_max(budget if math.isinf(budget) else math.floor(budget))
        else:
            least, which = room.sort(dim=1, descending=True, stable=True)
            more = ((inner + 1) ** order - inner**order).gather(1, which)
            fits = (inner**order).sum(1, keepdim=True) + more.cumsum(1) <= budget**order
            steps = inner + torch.zeros_like(inner).scatter(1, which, (fits & (least >= 0.5)).to(inner))
        found = self.values(origin + (steps * move.sign()).reshape(x.shape)).to(x.dtype)
        return torch.where(steps.reshape(x.shape) == 0, centre, found)


class _Rounded(torch.autograd.Function):
    """`round(x)`, with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lattice: Lattice) -> Tensor:
        return lattice.round(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad, None


@dataclass(frozen=True)
class _Saved:
    """A model of saved images: another one, at the nearest points of a lattice."""

    predictive: Predictive
    lattice: Lattice

    @property
    def module(self) -> nn.Module:
        return self.predictive.module

    @property
    def answers(self) -> Answers:
        return answers_of(self.predictive)

    def draw(self, streams: Streams | None = None, weights: Weights | None = None) -> Predict:
        predict = self.predictive.draw(streams, weights)
        return lambda x: predict(_Rounded.apply(x, self.lattice))


@dataclass(frozen=True)
class OnLattice(Attack):
    """An attack whose points have few bits: `k/levels` of the width of the box (`on_lattice`)."""

    kind = "on-lattice"

    attack: AttackLike
    """The attack."""
    levels: int = 255
    """Number of steps from one end of the box to the other: 255 for 8 bits."""
    geometry: Ball = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_integer("levels", self.levels, 1)
        box = self.attack.geometry.box
        require(box.high - box.low < float("inf"), "levels are spaced over the box: give it bounds.")
        require(
            isinstance(getattr(self.attack, "space", Input()), Input),
            "the attack perturbs a latent space, whose codes nobody saves as an image: leave out its space.",
        )
        object.__setattr__(self, "geometry", self.attack.geometry)

    def __str__(self) -> str:
        return f"{self.attack} on {self.levels + 1} values"

    def run(self, inputs: AttackInputs) -> AttackResult:
        """Attack the model of rounded images, round what was found into the ball, and judge the model there.

        `evaluations`, `iteration` and the counts of gradients are those of the attack, with one more evaluation. Raises
        `EquipoiseError` for clean samples that are not on the lattice.
        """
        lattice = Lattice(self.geometry.box, self.levels)
        between = int((~lattice.holds(inputs.x)).sum())
        require(
            between == 0,
            f"{between} of {len(inputs.x)} clean samples have values between the {self.levels + 1} levels: round them "
            f"first, such as x.mul({self.levels}).round() / {self.levels}, or say how many levels they have.",
        )
        made = self.attack(_Saved(as_predictive(inputs.model), lattice), inputs.x, inputs.y, **inputs.options)
        points = lattice.round_into(self.geometry, made.x, inputs.x)
        return inputs.confirm_all(self.geometry, points, made.costs)


@checked_call()
def on_lattice(attack: AttackLike, levels: int = 255) -> Attack:
    """`attack` on images of `levels + 1` values: its points are those of an image that is saved with them, so that what
    fools the model does so when it is read back. In a `Chain` a sample leaves when its rounded point fools the model.

    The clean samples must have such values themselves. Kernels do not know rounding: networks run on PyTorch. Raises
    `EquipoiseError` for an attack of a latent space and for a box without bounds.
    """
    if isinstance(attack, Chain):
        return replace(attack, parts=tuple((name, on_lattice(part, levels)) for name, part in attack.parts))
    if attack.geometry.radii is not None:
        raise EquipoiseError("a radius for each sample is not for images of few bits: give one eps.")
    return OnLattice(attack, levels)

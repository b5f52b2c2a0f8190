"""The small parts of an ascent: where it starts, how it moves, how far, and how often."""

import math
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from equipoise.core.checks import check_fields
from equipoise.core.documentation import show_attributes
from equipoise.core.errors import require, require_integer
from equipoise.core.rng import Streams
from equipoise.core.types import AscentState, PerSample, Points, StepRule
from equipoise.geometry import Ball

Memory = tuple[Tensor, ...]


@dataclass(frozen=True)
class Steepest:
    """The direction in which a linear function grows fastest in the ball's norm: sign for Linf, `g/‖g‖₂` for L2,
    the coordinates of largest slope for L1.
    """

    def init(self, x: Points) -> Memory:
        """Nothing to remember."""
        return ()

    def __call__(self, here: AscentState, memory: Memory) -> tuple[Points, Memory]:
        """`x + argmax ⟨g, d⟩` over `‖d‖ <= size`."""
        return here.geometry.steepest(here.point, here.gradient, here.size), memory


@dataclass(frozen=True)
class Sign:
    """`x + size · sign(g)`, whatever the norm of the ball."""

    def init(self, x: Points) -> Memory:
        """Nothing to remember."""
        return ()

    def __call__(self, here: AscentState, memory: Memory) -> tuple[Points, Memory]:
        """Moves every coordinate by `size`."""
        return here.point + here.size * here.gradient.sign(), memory


@dataclass(frozen=True)
class Normalized:
    """`x + size · g/‖g‖₂`, whatever the norm of the ball."""

    def init(self, x: Points) -> Memory:
        """Nothing to remember."""
        return ()

    def __call__(self, here: AscentState, memory: Memory) -> tuple[Points, Memory]:
        """Moves each sample by the L2 length `size`."""
        return Ball("l2", math.inf, here.geometry.box).steepest(here.point, here.gradient, here.size), memory


@dataclass(frozen=True)
class Momentum:
    """`m ← decay · m + g/‖g‖₁`, then a step of the rule `then` along m (MI-FGSM, Dong et al. 2018, Eqs. 6-7)."""

    decay: float = 1.0
    """How much of the past is kept; 0 is no momentum."""
    then: StepRule = Steepest()
    """The rule that moves along the accumulated gradient."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.decay >= 0, f"momentum: decay = {self.decay} must be >= 0.")

    def init(self, x: Points) -> Memory:
        """No past gradients."""
        return (torch.zeros_like(x), *self.then.init(x))

    def __call__(self, here: AscentState, memory: Memory) -> tuple[Points, Memory]:
        """Accumulates the gradient and moves along it."""
        gradient = here.gradient
        length = gradient.abs().flatten(1).sum(1).clamp_min(torch.finfo(gradient.dtype).tiny)
        past = self.decay * memory[0] + gradient / length.reshape(-1, *[1] * (gradient.ndim - 1))
        moved, rest = self.then(replace(here, gradient=past), memory[1:])
        return moved, (past, *rest)


@runtime_checkable
class StepSize(Protocol):
    """The length of each step."""

    def at(self, step: int, steps: int) -> "float | PerSample":
        """Length, or one for each sample, of step `step` of `0, ..., steps - 1`."""
        ...


_LARGEST = 1e38  # of the lengths: a float32 number


def _positive(size: float) -> None:
    require(size > 0, f"step_size = {size} moves nothing: expected a number > 0, such as 2/255.")
    require(
        size < math.inf, f"step_size = {size}: expected a finite number, such as 2/255; with an infinite eps give one."
    )
    require(size <= _LARGEST, f"step_size = {size} is too large to compute with: expected at most {_LARGEST:g}.")


@dataclass(frozen=True)
class Constant:
    """The same length at every step."""

    size: float
    """Step size alpha, in the units of the input."""

    def __post_init__(self) -> None:
        check_fields(self)
        _positive(self.size)

    def at(self, step: int, steps: int) -> float:
        """alpha."""
        return self.size


@dataclass(frozen=True)
class RadiusShare:
    """The same share of its radius for every sample, at every step: for balls with a radius for each sample."""

    share: float
    """Step size, in multiples of the radius."""
    radii: PerSample = field(compare=False)
    """The radii."""

    def __post_init__(self) -> None:
        check_fields(self)
        _positive(self.share)

    def at(self, step: int, steps: int) -> PerSample:
        """`share · eps_i` of each sample i."""
        return self.share * self.radii


@dataclass(frozen=True)
class Triangular:
    """Linear from `size` at the first of K steps up to `max(size, peak)` in the middle and back to `size` at the last.

    The middle is step (K - 1)/2, and both middle steps where K is even. T peaks at `eps/5` for PGD and UTA (Sec. 5.1);
    the code of U's authors at `eps/5` for PGD and TRADES and at `eps/2` for UDP, though no published run uses it.
    """

    size: float
    """Step size alpha at both ends."""
    peak: float
    """Step size in the middle, if larger than alpha."""

    def __post_init__(self) -> None:
        check_fields(self)
        _positive(self.size)

    def at(self, step: int, steps: int) -> float:
        """`alpha + (peak - alpha) · min(step, K - 1 - step) / ((K - 1) // 2)`; alpha for K < 3."""
        last = steps - 1
        rise = min(step, last - step) / (last // 2) if steps > 2 else 0.0
        return self.size + max(self.peak - self.size, 0.0) * max(rise, 0.0)


def cosine(first: float, last: float, share: float) -> float:
    """From `first` to `last` on half a cosine: `last + (first - last)(1 + cos(π·share))/2`."""
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class Cosine:
    """From `first` towards `last` on half a cosine, which step K would reach."""

    first: float
    """Length of the first step."""
    last: float = 0.0
    """Length that step K would have."""

    def __post_init__(self) -> None:
        check_fields(self)
        _positive(self.first)
        require(0 <= self.last <= self.first, f"last = {self.last}: expected a number from 0 to first = {self.first}.")

    def at(self, step: int, steps: int) -> float:
        """`last + (first - last)(1 + cos(π·step/K))/2`."""
        return cosine(self.first, self.last, step / steps)


@runtime_checkable
class Steps(Protocol):
    """How many steps each sample takes."""

    @property
    def most(self) -> int:
        """The largest number of steps any sample takes."""
        ...

    def draw(self, streams: Streams) -> Int[Tensor, " batch"] | None:
        """The number of each sample, or None if it is `most` for all."""
        ...


@dataclass(frozen=True)
class Fixed:
    """K steps for every sample."""

    most: int
    """K."""

    def __post_init__(self) -> None:
        check_fields(self)
        require_integer("steps", self.most, 1)

    def draw(self, streams: Streams) -> None:
        """Nothing to draw."""


@dataclass(frozen=True)
class UniformUpTo:
    """`k ~ U{1, ..., K}`, drawn for each sample, as in the code of U's authors.

    U itself writes k ~ U(1, K - 1) and then takes one step more (Sec. 4.1 and Alg. 1): never one step alone.
    """

    most: int
    """K."""

    def __post_init__(self) -> None:
        check_fields(self)
        require_integer("steps", self.most, 1)

    def draw(self, streams: Streams) -> Int[Tensor, " batch"]:
        """k of each sample."""
        return streams.integers(self.most) + 1


@runtime_checkable
class Start(Protocol):
    """Where an ascent starts."""

    def draw(self, streams: Streams, x: Points, geometry: Ball) -> Points:
        """A starting point for each sample, in the ball and the box."""
        ...


@dataclass(frozen=True)
class Zero:
    """The clean point itself."""

    def draw(self, streams: Streams, x: Points, geometry: Ball) -> Points:
        """x."""
        return geometry.project(x, x)


@dataclass(frozen=True)
class Uniform:
    """A point uniform on the ball, or on a share of it, projected into the box."""

    share: float = 1.0
    """Radius to draw from, in multiples of eps."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(0 <= self.share <= 1, f"share = {self.share} of the ball is not in [0, 1].")

    def draw(self, streams: Streams, x: Points, geometry: Ball) -> Points:
        """`project(x + ξ)`, ξ uniform on the ball of radius `share · eps`."""
        return geometry.scaled(self.share).draw(streams, x)


@dataclass(frozen=True)
class Boundary:
    """A point on the surface of the ball, in a random direction, projected into the box."""

    def draw(self, streams: Streams, x: Points, geometry: Ball) -> Points:
        """`project(x + eps · ξ/‖ξ‖)`, ξ uniform on the ball."""
        return geometry.draw(streams, x, surface=True)


@dataclass(frozen=True)
class Gaussian:
    """The clean point with Gaussian noise, projected."""

    std: float
    """Standard deviation of the noise, in the units of the input."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.std > 0, f"std = {self.std} is no noise: expected a number > 0, or start from Zero().")

    def draw(self, streams: Streams, x: Points, geometry: Ball) -> Points:
        """`project(x + std · n)`, n standard normal."""
        noise = streams.normal(x[0].numel(), dtype=x.dtype).reshape(x.shape)
        return geometry.project(x + self.std * noise, x)


show_attributes(__name__)

"""Perturbations made of others: alternating, the worst of several, remembered, and with a radius for each sample.

    cross_entropy @ Alternating((pgd(0.1), udp(2.0, norm="l2"), None))     a batch each, the third clean

Every one can be written wherever a term takes an ascent. Those that keep something of each sample from one epoch to the
next keep it in the training's `SampleMemory`, which its checkpoints hold.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from torch import Tensor

from equipoise.attacks.ascent import Ascent
from equipoise.attacks.spaces import Input
from equipoise.attacks.steps import Constant, RadiusShare, Start
from equipoise.core.checks import check_fields
from equipoise.core.errors import require, require_integer
from equipoise.core.rng import Stream, Streams
from equipoise.core.types import Labels, PerSample, Points, Prediction, Predictive
from equipoise.geometry import Ball
from equipoise.losses.memory import BatchMemory
from equipoise.losses.objectives import Objective, cross_entropy
from equipoise.losses.terms import Perturbation, Term
from equipoise.models import frozen, live, predict


class Compound(ABC):
    """Base class of perturbations that are made of others."""

    def __rmatmul__(self, objective: object) -> Term:
        return Term(objective, cast(Perturbation, self)) if isinstance(objective, Objective) else NotImplemented

    parts: Any
    """What it is made of."""

    @abstractmethod
    def with_parts(self, parts: Sequence[Perturbation | None]) -> "Compound":
        """The same of other parts."""

    @property
    def remembers(self) -> bool:
        """Whether it keeps something of each sample."""
        return any(getattr(part, "remembers", False) for part in self.parts)

    def settings(self) -> dict[str, Any]:
        """Every field as JSON-ready data, for records."""
        named = {f.name: getattr(self, f.name) for f in fields(cast(Any, self))}
        return {"perturbation": type(self).__name__, **{name: _plain(value) for name, value in named.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.settings() if hasattr(value, "settings") else value


def perturbed(
    part: Perturbation | None, number: int, predictive: Predictive, x: Points, y: Labels, streams: Streams, memory: Any
) -> Points:
    """The points of part `number`; the clean ones of None."""
    if part is None:
        return x
    kept = {"memory": memory.part(number)} if getattr(part, "remembers", False) else {}
    return part.perturb(predictive, x, y, streams.fold(number), **kept)


@dataclass(frozen=True)
class Alternating(Compound):
    """Another perturbation for every batch, in turn: part b mod n at batch b of the training. None leaves a batch
    clean, so that `Alternating((pgd(0.1), None, None))` perturbs every third (mixed training). Of several norms it
    costs what one costs.
    """

    parts: tuple[Perturbation | None, ...]
    """The perturbations, in their order."""

    def __post_init__(self) -> None:
        require(len(self.parts) > 0, "alternating perturbations: expected at least one.")

    def __str__(self) -> str:
        return f"alternating({', '.join('clean' if part is None else str(part) for part in self.parts)})"

    def with_parts(self, parts: Sequence[Perturbation | None]) -> "Alternating":
        """Alternating between other parts."""
        return Alternating(tuple(parts))

    def perturb(
        self, predictive: Predictive, x: Points, y: Labels, streams: Streams, memory: BatchMemory | None = None
    ) -> Points:
        """The points of the batch's part."""
        number = streams.batch % len(self.parts)
        return perturbed(self.parts[number], number, predictive, x, y, streams, memory)

    def predict_at(self, predictive: Predictive, x: Points, point: Points, streams: Streams) -> Prediction:
        """The live prediction at what `perturb` returned."""
        part = self.parts[streams.batch % len(self.parts)]
        return live(predictive, streams)(x) if part is None else part.predict_at(predictive, x, point, streams)


@dataclass(frozen=True)
class WorstOf(Compound):
    """Of several perturbed points of a sample the one with the highest loss (Tramèr & Boneh 2019, "Adversarial Training
    and Robustness for Multiple Perturbations", the max strategy), each within its own ball.
    """

    parts: tuple[Ascent, ...]
    """The ascents, in the input."""
    objective: Objective = cross_entropy
    """The loss, of the network in eval mode."""

    def __post_init__(self) -> None:
        require(len(self.parts) > 0, "the worst of no perturbations: expected at least one.")
        for part in self.parts:
            _require_in_the_input(part, "the worst of several points")

    def __str__(self) -> str:
        return f"worst of({', '.join(map(str, self.parts))})"

    def with_parts(self, parts: Sequence[Perturbation | None]) -> "WorstOf":
        """The worst of others."""
        return replace(self, parts=cast(Any, tuple(parts)))

    def perturb(
        self, predictive: Predictive, x: Points, y: Labels, streams: Streams, memory: BatchMemory | None = None
    ) -> Points:
        """The point with the highest loss; the first of equals."""
        points = [perturbed(part, i, predictive, x, y, streams, memory) for i, part in enumerate(self.parts)]
        still, drawn = frozen(predictive), streams.fold(Stream.MODEL)
        with torch.no_grad():
            clean = predict(still, x, drawn) if self.objective.needs_clean else None
            losses = [self.objective(predict(still, point, drawn), clean, y) for point in points]
        worst = torch.stack(losses).nan_to_num(-torch.inf).argmax(0)
        return torch.stack(points)[worst, torch.arange(len(x), device=x.device)]

    def predict_at(self, predictive: Predictive, x: Points, point: Points, streams: Streams) -> Prediction:
        """The live prediction at those points."""
        return live(predictive, streams)(point)


@dataclass(frozen=True)
class Wrapping(Compound):
    """Base class of perturbations that change an ascent."""

    ascent: Ascent
    """The ascent, in the input."""

    def __post_init__(self) -> None:
        check_fields(self)
        _require_in_the_input(self.ascent, f"{type(self).__name__}")

    @property
    def parts(self) -> tuple[Perturbation | None, ...]:
        """The ascent."""
        return (self.ascent,)

    def with_parts(self, parts: Sequence[Perturbation | None]) -> "Wrapping":
        """The same with another ascent."""
        return replace(self, ascent=cast(Ascent, parts[0]))

    @property
    def remembers(self) -> bool:
        """Yes."""
        return True

    def predict_at(self, predictive: Predictive, x: Points, point: Points, streams: Streams) -> Prediction:
        """The live prediction at the perturbed points."""
        return self.ascent.predict_at(predictive, x, point, streams)


@dataclass(frozen=True)
class Remembered(Wrapping):
    """An ascent that starts where it ended for this sample the last time: `x_0 = Π(x + δ_E)`, δ_E the perturbation of
    epoch E (FGSM-EP of Jia et al. 2022, "Prior-Guided Adversarial Initialization for Fast Adversarial Training"). The
    first time it starts as the ascent says.
    """

    def __str__(self) -> str:
        return f"remembered({self.ascent})"

    def perturb(self, predictive: Predictive, x: Points, y: Labels, streams: Streams, memory: BatchMemory) -> Points:
        """The end of the ascent, which is kept."""
        ball = self.ascent.geometry
        first = cast(Start, self.ascent.start).draw(streams.fold(Stream.START), x, ball)
        start = ball.project(x + memory.recall("move", first - x), x)
        memory.keep("start", start - x)
        point = replace(self.ascent, start=From(start)).perturb(predictive, x, y, streams)
        memory.keep("move", point - x)
        return point

    @property
    def prior(self) -> "Prior":
        """Where it started, for a term that compares the prediction at its end with that at its start."""
        return Prior(self)


@dataclass(frozen=True)
class Prior:
    """The start of a `Remembered` ascent, which comes before it in the method (Jia et al. 2022)."""

    remembered_by: Remembered
    """The ascent."""

    remembers = True

    def __str__(self) -> str:
        return "its start"

    def settings(self) -> dict[str, Any]:
        """What it is, for records."""
        return {"perturbation": "the start of a remembered ascent"}

    def perturb(self, predictive: Predictive, x: Points, y: Labels, streams: Streams, memory: BatchMemory) -> Points:
        """The points."""
        return x + memory.recall("start", torch.zeros_like(x))

    def predict_at(self, predictive: Predictive, x: Points, point: Points, streams: Streams) -> Prediction:
        """The live prediction there."""
        return live(predictive, streams)(point)


@dataclass(frozen=True)
class Adaptive(Wrapping):
    """An ascent whose radius adapts to each sample (Balaji et al. 2019, "Instance Adaptive Adversarial Training",
    Alg. 2): with the radius ε_i remembered of a sample, by default that of the ascent's ball,

        ε = ε_i + γ  if the model withstands the attack of that radius,
            ε_i      else if it withstands that of radius ε_i,
            ε_i - γ  otherwise,

    and the sample is perturbed within, and its radius becomes, `(1 - β) ε_i + β ε`, never below 0 nor above `largest`.
    Steps are the same share of every radius. It costs three ascents.
    """

    needs_labels = True
    increment: float = 1.9 / 255
    """γ, in the units of the input."""
    smoothing: float = 0.1
    """β, in (0, 1]."""
    largest: float = 1.0
    """The largest radius."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _share_of_radius(self.ascent)
        require(self.increment > 0, f"increment = {self.increment}: expected a number > 0, such as 1.9/255.")
        require(0 < self.smoothing <= 1, f"smoothing = {self.smoothing}: expected a share in (0, 1].")
        require(self.largest > 0, f"largest = {self.largest}: expected a radius > 0.")

    def __str__(self) -> str:
        return f"adaptive radii({self.ascent})"

    def perturb(self, predictive: Predictive, x: Points, y: Labels, streams: Streams, memory: BatchMemory) -> Points:
        """The points within the adapted radii, which are kept."""
        own = memory.recall("radius", x.new_full((len(x),), self.ascent.geometry.eps))
        still = frozen(predictive)

        def withstood(radii: PerSample) -> Tensor:
            point = within(self.ascent, radii).perturb(predictive, x, y, streams)
            with torch.no_grad():
                return predict(still, point, streams.fold(Stream.MODEL)).labels == y

        larger, same = own + self.increment, torch.where(withstood(own), own, own - self.increment)
        wanted = torch.where(withstood(larger), larger, same)
        radii = torch.lerp(own, wanted, self.smoothing).clamp(0.0, self.largest)
        memory.keep("radius", radii)
        return within(self.ascent, radii).perturb(predictive, x, y, streams)


@dataclass(frozen=True)
class AtBoundary(Wrapping):
    """The nearest point found where the prediction changes, for large margins (MMA: Ding et al. 2020, Alg. 1): the
    ascent, within the sample's remembered margin times `slack` but at most `ascent.geometry.eps`, then a bisection
    between it and x. A sample that is misclassified stays where it is; one whose prediction does not change, at the end
    of the ascent, with its margin enlarged.

    MMA leaves samples with a margin beyond the largest radius out of the loss; here they count at the end of the
    ascent, where their loss is small.
    """

    needs_labels = True
    halvings: int = 10
    """Steps of the bisection."""
    slack: float = 1.05
    """By how much a ball exceeds the last margin, > 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _share_of_radius(self.ascent)
        require_integer("halvings", self.halvings, 0)
        require(self.slack > 1, f"slack = {self.slack}: expected a factor > 1, by which margins may grow.")

    def __str__(self) -> str:
        return f"at the boundary({self.ascent})"

    def perturb(self, predictive: Predictive, x: Points, y: Labels, streams: Streams, memory: BatchMemory) -> Points:
        """The points near the boundary; their distances are kept."""
        largest = self.ascent.geometry.eps
        radii = memory.recall("margin", x.new_full((len(x),), largest)).clamp_max(largest)
        far = within(self.ascent, radii).perturb(predictive, x, y, streams)
        still, drawn = frozen(predictive), streams.fold(Stream.MODEL)

        def right(point: Points) -> Tensor:
            with torch.no_grad():
                return (predict(still, point, drawn).labels == y).reshape(-1, *[1] * (x.ndim - 1))

        correct, near, wrong = right(x), x, far
        crossed = ~right(far)
        for _ in range(self.halvings):
            middle = (near + wrong) / 2
            inside = right(middle)
            near, wrong = torch.where(inside, middle, near), torch.where(inside, wrong, middle)
        point = torch.where(correct, torch.where(crossed, wrong, far), x)
        margins = torch.where(crossed.flatten(), self.ascent.geometry.distance(point, x), radii)
        memory.keep("margin", torch.where(correct.flatten(), self.slack * margins, radii).clamp(largest / 100, largest))
        return point


def within(ascent: Ascent, radii: PerSample) -> Ascent:
    """The ascent with a radius for each sample, and steps of the same share of it."""
    size = RadiusShare(_share_of_radius(ascent), radii)
    return replace(ascent, geometry=replace(ascent.geometry, radii=radii), step_size=size)


def _share_of_radius(ascent: Ascent) -> float:
    """The length of the steps, in multiples of eps. Raises `EquipoiseError` if there is none."""
    eps, size = ascent.geometry.eps, ascent.step_size
    require(
        isinstance(size, Constant) and 0 < eps < math.inf,
        f"{ascent}: a radius for each sample needs steps of one size, and a finite eps > 0 to measure them by, also at "
        "the beginning of a schedule.",
    )
    return cast(Constant, size).size / eps


@dataclass(frozen=True)
class From:
    """A start at given points, one for each sample."""

    points: Tensor

    def draw(self, streams: Streams, x: Points, geometry: Ball) -> Points:
        """The points, projected."""
        return geometry.project(self.points, x)


def _require_in_the_input(ascent: object, what: str) -> None:
    require(isinstance(ascent, Ascent), f"{what} needs ascents, such as pgd(0.1), not {ascent}.")
    ascent = cast(Ascent, ascent)
    require(
        isinstance(ascent.space, Input),
        f"{what} needs perturbations of the input, {ascent} perturbs {type(ascent.space).__name__}.",
    )

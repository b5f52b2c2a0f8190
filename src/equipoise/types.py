"""What the parts exchange: a prediction, and the protocols that a user's own part has to satisfy."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equipoise.rng import Streams

Mode = Literal["train", "eval"]
Precision = Literal["32", "bf16"]
Points = Float[Tensor, "batch ..."]
Labels = Int[Tensor, " batch"]
PerSample = Float[Tensor, " batch"]
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Prediction:
    """What a predictive says of a batch."""

    logits: Float[Tensor, "members batch classes"]
    """Logits of every member; a single network has `members = 1`."""

    @cached_property
    def log_probs(self) -> Float[Tensor, "batch classes"]:
        """`log (1/M) Σ_m softmax(logits_m)`, computed in log space: finite for all finite logits (U, Sec. 2)."""
        members = self.logits.log_softmax(-1)
        mean = members[0] if len(members) == 1 else members.logsumexp(0) - math.log(len(members))
        return mean.clamp_min(torch.finfo(mean.dtype).min)

    @property
    def scores(self) -> Float[Tensor, "batch classes"]:
        """The logits of a single network; for several members, which share no logits, `log_probs`."""
        return self.logits[0] if len(self.logits) == 1 else self.log_probs

    @property
    def labels(self) -> Labels:
        """The most probable class."""
        return self.scores.argmax(-1)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.logits.shape[-1]

    @property
    def members(self) -> "list[Prediction]":
        """What each member says alone."""
        return [Prediction(one[None]) for one in self.logits]

    def detach(self) -> "Prediction":
        """The same prediction, cut from the graph."""
        return Prediction(self.logits.detach())

    def __getitem__(self, rows: "slice | Tensor") -> "Prediction":
        """The prediction of some of the samples."""
        return Prediction(self.logits[:, rows])


Predict = Callable[[Points], Prediction]


@runtime_checkable
class Predictive(Protocol):
    """Anything that turns inputs into class probabilities."""

    @property
    def module(self) -> nn.Module:
        """The module that holds every parameter and buffer; its mode is what an ascent sets and restores."""
        ...

    def draw(self, streams: Streams | None = None, weights: Weights | None = None) -> Predict:
        """A prediction function with all randomness of the model frozen; `weights` stand in for its parameters."""
        ...


@dataclass(frozen=True)
class Here:
    """Where a climb stands, as a step rule sees it."""

    point: Points
    """The iterate."""
    value: PerSample
    """The objective there."""
    gradient: Points
    """Its gradient there; NaN and infinities became 0."""
    origin: Points
    """The clean point, the centre of the ball."""
    size: float
    """Length of the step, from the schedule."""
    step: int
    """Which step this is, from 0."""
    steps: int
    """How many there are at most."""
    geometry: Any
    """Where points may lie: a `Ball`."""


@runtime_checkable
class StepRule(Protocol):
    """How an iterate moves, before it is projected."""

    def init(self, x: Points) -> tuple[Tensor, ...]:
        """The rule's memory at the start: tensors whose first dimension is the batch."""
        ...

    def __call__(self, here: Here, memory: tuple[Tensor, ...]) -> tuple[Points, tuple[Tensor, ...]]:
        """The moved iterate and the new memory."""
        ...


@runtime_checkable
class Space(Protocol):
    """Where the perturbation lives."""

    @property
    def box(self) -> Any:
        """Where points of this space may lie: a `Box`, or None for that of the ball."""
        ...

    def enter(self, predictive: Predictive, x: Points, mode: Mode) -> tuple[Predictive, Points]:
        """The model as one of points of this space, and the points that belong to `x`."""
        ...

    def leave(self, origin: Points, point: Points) -> Points:
        """What training is handed of a point that was reached from `origin`, the point that belongs to `x`."""
        ...

    def predict_at(self, predictive: Predictive, x: Points, found: Points, streams: Streams) -> Prediction:
        """The live prediction of the whole model at what `leave` handed on."""
        ...

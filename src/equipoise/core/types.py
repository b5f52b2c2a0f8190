"""What the parts exchange: a prediction, and the protocols that a user's own part has to satisfy."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from equipoise.core.rng import Streams

Mode = Literal["train", "eval"]
Precision = Literal["32", "bf16"]
Points = Float[Tensor, "batch ..."]
Labels = Int[Tensor, " batch"]
PerSample = Float[Tensor, " batch"]
Weights = dict[str, Tensor]


_UNDERFLOW = 104.0
"""Gap to the largest logit, in nats, beyond which a probability is 0 in float32."""
_SUMMED, _STORED = 32, 4
"""Errors of a margin by rounding, with some room, in machine epsilons: by summing up logits of this size, and by
storing them beside a constant that all logits share."""
_REPEATED = 1e-4
"""Change of a logit between two calls, relative to the logits' spread, that is no longer rounding: a forward pass in
float32 repeats itself to about 1e-6 whatever the order of its sums."""


@dataclass(frozen=True)
class Prediction:
    """What a predictive says of a batch."""

    logits: Float[Tensor, "members batch classes"]
    """Logits of every member; a single network has `members = 1`. `-inf` is a class that cannot be."""

    @cached_property
    def log_probs(self) -> Float[Tensor, "batch classes"]:
        """`log (1/M) Σ_m softmax(logits_m)`, computed in log space: finite for all finite logits (U, Sec. 2)."""
        members = log_softmax(self.logits)
        mean = members[0] if len(members) == 1 else _log_mean_exp(members)
        return mean.clamp_min(torch.finfo(mean.dtype).min)

    @property
    def scores(self) -> Float[Tensor, "batch classes"]:
        """The logits of a single network; for several members, which share no logits, `log_probs`."""
        return self.logits[0] if len(self.logits) == 1 else self.log_probs

    @property
    def labels(self) -> Labels:
        """The most probable class; -1 where the prediction is not finite (NaN, or an infinite largest score), which is
        neither right nor fooled.
        """
        top, label = self.scores.max(-1)
        return torch.where(top.isfinite(), label, -1)

    @property
    def finite(self) -> Bool[Tensor, " batch"]:
        """Which predictions are ones: no NaN, and a finite largest score."""
        return self.scores.amax(-1).isfinite()

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.logits.shape[-1]

    @property
    def members(self) -> "list[Prediction]":
        """What each member says alone."""
        return [Prediction(one[None]) for one in self.logits]

    @property
    def spread(self) -> PerSample:
        """Size of the logits that matter: the largest distance from their mean among the classes whose probability is
        not 0. A constant added to all logits, or a class ruled out by a logit of -1e9 or -inf, changes nothing.
        """
        scores = self.scores
        top = scores.amax(-1, keepdim=True)
        live = scores >= top - _UNDERFLOW
        mean = torch.where(live, scores - top, 0).sum(-1) / live.sum(-1).clamp_min(1)  # from the largest down, so <= 0
        lowest = torch.where(live, scores - top, 0).amin(-1)
        return torch.maximum(-mean, mean - lowest)

    def resolution(self, labels: Labels) -> PerSample:
        """The error that rounding makes in the margin `max_{i≠y} z_i - z_y`, by the size of these two, without a
        constant that all logits share: another batch size or device may move the margin by so much.
        """
        scores = self.scores
        own = scores.gather(1, labels[:, None])[:, 0]
        other = scores.scatter(1, labels[:, None], -torch.inf).amax(1)
        sizes = torch.stack([own, other]).abs()
        size = torch.where(sizes < torch.inf, sizes, 0).amax(0)
        return torch.finfo(scores.dtype).eps * (_SUMMED * torch.minimum(size, self.spread) + _STORED * size)

    def differs(self, other: "Prediction", relative: float = _REPEATED) -> Bool[Tensor, " batch"]:
        """On which samples another prediction is a different one: a logit has moved by more than rounding explains, and
        by more than the share `relative` of its distance from the largest.
        """
        mine, theirs = self.scores.detach(), other.scores.detach()
        below = mine.amax(-1, keepdim=True) - mine
        live = (below <= _UNDERFLOW) | (theirs >= theirs.amax(-1, keepdim=True) - _UNDERFLOW)
        eps = torch.finfo(mine.dtype).eps
        rounding = relative * below + 64 * eps * (mine.abs() + torch.maximum(self.spread, other.spread)[:, None])
        apart = (live & ~((mine - theirs).abs() <= rounding)).any(-1)
        return torch.where(self.finite & other.finite, apart, self.finite != other.finite)

    def detach(self) -> "Prediction":
        """The same prediction, cut from the graph."""
        return Prediction(self.logits.detach())

    def __getitem__(self, rows: "slice | Tensor") -> "Prediction":
        """The prediction of some of the samples."""
        return Prediction(self.logits[:, rows])


def _log_mean_exp(log_p: Float[Tensor, "members batch classes"]) -> Float[Tensor, "batch classes"]:
    """`log (1/M) Σ_m p_m`; of probabilities near 1 by `log(1 + (1/M) Σ_m (p_m - 1))`, in which nothing cancels."""
    far = log_p.logsumexp(0) - math.log(len(log_p))
    near = log_p.clamp_min(-1).expm1().mean(0).log1p()
    return torch.where(log_p.amin(0) > -0.5, near, far)


def log_softmax(z: Float[Tensor, "... classes"]) -> Float[Tensor, "... classes"]:
    """Return `log softmax(z)`, with a gradient that is right where one class is almost certain.

    With d the distances below the largest logit, `log p = -d - log(1 + Σ' exp(-d))`, the sum over the other classes.
    The plain formula's gradient `g - p Σ g` loses the component of the largest logit to cancellation: from a gap of 17
    nats on it is 0 in float32, while those of the other classes are not.
    """
    below, others = distances_below(z)
    return -below - others.sum(-1, keepdim=True).log1p()


def distances_below(
    z: Float[Tensor, "... classes"],
) -> tuple[Float[Tensor, "... classes"], Float[Tensor, "... classes"]]:
    """Return `d = max z - z` and `exp(-d)`, the latter 0 for the (first) largest class itself."""
    top, first = z.max(-1, keepdim=True)
    below = (top - z).scatter(-1, first, 0)  # of the largest itself a constant: its two gradients would cancel
    return below, (-below).exp().scatter(-1, first, 0)


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
class AscentState:
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

    def __call__(self, here: AscentState, memory: tuple[Tensor, ...]) -> tuple[Points, tuple[Tensor, ...]]:
        """The moved iterate and the new memory."""
        ...


@runtime_checkable
class Space(Protocol):
    """Where the perturbation lives."""

    @property
    def box(self) -> Any:
        """Where points of this space may lie: a `Box`, or None for that of the ball."""
        ...

    def enter(self, predictive: Any, x: Points) -> tuple[Any, Points]:
        """A frozen model (`equipoise.models.Frozen`) as one of points of this space, and the points of `x`."""
        ...

    def leave(self, origin: Points, point: Points) -> Points:
        """What training is handed of a point that was reached from `origin`, the point that belongs to `x`."""
        ...

    def predict_at(self, predictive: Predictive, x: Points, found: Points, streams: Streams) -> Prediction:
        """The live prediction of the whole model at what `leave` handed on."""
        ...

"""Types shared by all packages: predictions, and the protocols that user-defined components implement."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from equipoise.core.documentation import show_attributes
from equipoise.core.rng import Streams

Mode = Literal["train", "eval"]
Precision = Literal["32", "bf16"]
Answers = Literal["labels", "scores", "gradients"]
"""What a model gives to an attack, each including those before it."""
Points = Float[Tensor, "batch ..."]
Images = Float[Tensor, "batch channels height width"]
Labels = Int[Tensor, " batch"]
PerSample = Float[Tensor, " batch"]
Weights = dict[str, Tensor]
Number = Any
"""A Python number or, in a step that is recorded to be replayed with other ones, a tensor without dimensions."""


UNDERFLOW = 104.0
"""Distance from the largest logit, in nats, beyond which a probability is 0 in float32."""
SUMMATION, STORAGE = 32, 4
"""Generous bounds of a margin's rounding error, in machine epsilons: from summing up logits of this size, and from
storing them with a constant that all logits share."""
_TOLERANCE = 1e-4
"""Change of a logit between two calls, relative to its distance from the largest, above which the predictions differ
(float32 noise is about 1e-6, whatever the order of summation)."""


@dataclass(frozen=True)
class Prediction:
    """The output of a predictive for a batch."""

    logits: Float[Tensor, "members batch classes"]
    """Logits of every member; a single network has `members = 1`. `-inf` excludes a class."""

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
        """The most probable class; -1 where the prediction is not finite (NaN, or an infinite largest score), which
        counts as neither correct nor fooled.
        """
        top, label = self.scores.max(-1)
        return torch.where(top.isfinite(), label, -1)

    @property
    def finite(self) -> Bool[Tensor, " batch"]:
        """Whether each prediction has no NaN and a finite largest score."""
        return self.scores.amax(-1).isfinite()

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.logits.shape[-1]

    @property
    def members(self) -> "list[Prediction]":
        """The prediction of each member alone."""
        return [Prediction(logits[None]) for logits in self.logits]

    @property
    def spread(self) -> PerSample:
        """The largest distance of a logit from their mean, among the classes whose probability is not 0. It does not
        change with a constant added to all logits, or with a class excluded by a logit of -1e9 or -inf.
        """
        scores = self.scores
        top = scores.amax(-1, keepdim=True)
        live = scores >= top - UNDERFLOW
        mean = torch.where(live, scores - top, 0).sum(-1) / live.sum(-1).clamp_min(1)  # from the largest down, so <= 0
        lowest = torch.where(live, scores - top, 0).amin(-1)
        return torch.maximum(-mean, mean - lowest)

    def resolution(self, labels: Labels) -> PerSample:
        """Return the rounding error of the margin `max_{i≠y} z_i - z_y`, from the size of these two logits without a
        constant that all share: by this much the margin may depend on batch size or device.
        """
        scores = self.scores
        own = scores.gather(1, labels[:, None])[:, 0]
        other = scores.scatter(1, labels[:, None], -torch.inf).amax(1)
        sizes = torch.stack([own, other]).abs()
        size = torch.where(sizes < torch.inf, sizes, 0).amax(0)
        return torch.finfo(scores.dtype).eps * (SUMMATION * torch.minimum(size, self.spread) + STORAGE * size)

    def differs(self, other: "Prediction", relative: float = _TOLERANCE) -> Bool[Tensor, " batch"]:
        """Return on which samples another prediction differs: a logit has changed by more than rounding explains, and
        by more than `relative` times its distance from the largest.
        """
        mine, theirs = self.scores.detach(), other.scores.detach()
        below = mine.amax(-1, keepdim=True) - mine
        live = (below <= UNDERFLOW) | (theirs >= theirs.amax(-1, keepdim=True) - UNDERFLOW)
        eps = torch.finfo(mine.dtype).eps
        rounding = relative * below + 64 * eps * (mine.abs() + torch.maximum(self.spread, other.spread)[:, None])
        apart = (live & ~((mine - theirs).abs() <= rounding)).any(-1)
        return torch.where(self.finite & other.finite, apart, self.finite != other.finite)

    def detach(self) -> "Prediction":
        """Return the same prediction, detached from the graph."""
        return Prediction(self.logits.detach())

    def __getitem__(self, index: "slice | Tensor") -> "Prediction":
        """Return the prediction of some of the samples."""
        return Prediction(self.logits[:, index])


def _log_mean_exp(log_p: Float[Tensor, "members batch classes"]) -> Float[Tensor, "batch classes"]:
    """`log (1/M) Σ_m p_m`; for probabilities near 1 as `log(1 + (1/M) Σ_m (p_m - 1))`, which avoids cancellation."""
    far = log_p.logsumexp(0) - math.log(len(log_p))
    near = log_p.clamp_min(-1).expm1().mean(0).log1p()
    return torch.where(log_p.amin(0) > -0.5, near, far)


def log_softmax(z: Float[Tensor, "... classes"]) -> Float[Tensor, "... classes"]:
    """Return `log softmax(z)`, with an accurate gradient where one class is almost certain.

    With d the distances below the largest logit, `log p = -d - log(1 + Σ' exp(-d))`, the sum over the other classes.
    The usual gradient `g - p Σ g` loses the component of the largest logit to cancellation: from a gap of 17 nats on it
    is 0 in float32, while the other components are not.
    """
    below, others = distances_below(z)
    return -below - others.sum(-1, keepdim=True).log1p()


def distances_below(
    z: Float[Tensor, "... classes"],
) -> tuple[Float[Tensor, "... classes"], Float[Tensor, "... classes"]]:
    """Return `d = max z - z` and `exp(-d)`, the latter 0 for the (first) largest class itself."""
    top, first = z.max(-1, keepdim=True)
    below = (top - z).scatter(-1, first, 0)  # a constant for the largest itself, whose two gradients would cancel
    return below, (-below).exp().scatter(-1, first, 0)


Predict = Callable[[Points], Prediction]


@runtime_checkable
class Predictive(Protocol):
    """Anything that turns inputs into class probabilities."""

    @property
    def module(self) -> nn.Module:
        """The module that holds all parameters and buffers; an ascent sets and restores its mode."""
        ...

    def draw(self, streams: Streams | None = None, weights: Weights | None = None) -> Predict:
        """Return a prediction function with all randomness of the model fixed; `weights` replace its parameters."""
        ...


def answers_of(predictive: object) -> Answers:
    """Return what a predictive gives to an attack: what it says in `answers`, else gradients."""
    return getattr(predictive, "answers", "gradients")


@dataclass(frozen=True)
class AscentState:
    """The state of an ascent, for step rules."""

    point: Points
    """The iterate."""
    value: PerSample
    """The objective there."""
    gradient: Points
    """Its gradient there, with NaN and infinities replaced by 0."""
    origin: Points
    """The clean point, the centre of the ball."""
    size: Number
    """Step size, from the schedule, or one for each sample."""
    step: Number
    """Index of the step, from 0."""
    steps: int
    """Maximum number of steps."""
    geometry: Any
    """The feasible set: a `Ball`."""


@runtime_checkable
class StepRule(Protocol):
    """How an iterate moves before it is projected."""

    def init(self, x: Points) -> tuple[Tensor, ...]:
        """Return the rule's initial memory: tensors whose first dimension is the batch."""
        ...

    def __call__(self, here: AscentState, memory: tuple[Tensor, ...]) -> tuple[Points, tuple[Tensor, ...]]:
        """Return the moved iterate and the new memory."""
        ...


@runtime_checkable
class Space(Protocol):
    """The space in which a perturbation is searched: the input, or a latent layer."""

    @property
    def box(self) -> Any:
        """The valid range of points in this space: a `Box`, or None for that of the ball."""
        ...

    def enter(self, predictive: Any, x: Points) -> tuple[Any, Points]:
        """Return a frozen model (`equipoise.models.Frozen`) as a model of points of this space, and `x` as points."""
        ...

    def leave(self, origin: Points, point: Points) -> Points:
        """Return what training gets for a point reached from `origin`, the point that belongs to `x`."""
        ...

    def predict_at(self, predictive: Predictive, x: Points, found: Points, streams: Streams) -> Prediction:
        """Return the prediction of the whole model, with gradients, at what `leave` returned."""
        ...


show_attributes(__name__)

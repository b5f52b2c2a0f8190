"""What robustness means, as an integral: `∫ E_x[ H(R_Q(x, eps)) · G(eps) ] d eps` (F, Defs. 1 to 3).

`R_Q(x, eps) = Q(f(X) = f(x) | ‖X - x‖ <= eps)` is the share of the points near x on which the classifier stays with
its prediction. How the points are drawn (Q), what of the share counts (H) and how radii are weighed (G) is yours to
choose; x is drawn as the data are, which is F's factor p(x) of G, or uniformly from the box. Nothing here asks whether
a prediction is right, unless the law or the margin is conditioned on the label.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from equipoise.attacks.attack import AttackLike
from equipoise.attacks.result import AttackResult, at
from equipoise.certified import certified_radius
from equipoise.core.errors import EquipoiseError, require, require_integer, unknown
from equipoise.core.rng import Stream, Streams
from equipoise.core.types import Labels, Points, Predictive
from equipoise.diagnostics.blocks import Block, in_blocks
from equipoise.geometry import Box, NormName
from equipoise.scores.estimate import Estimate
from equipoise.scores.laws import Law, OnManifold
from equipoise.scores.radii import Distances, PerRadius, Radii

Weight = Callable[[Tensor], Tensor]
Method = Literal["ibp", "crown-ibp", "crown"]


def certain(share: Tensor) -> Tensor:
    """`H(p) = 1[p = 1]`: no point of the ball is classified otherwise (F, Eq. 4)."""
    return (share >= 1).to(share.dtype)


def identity(share: Tensor) -> Tensor:
    """`H(p) = p`: how probable it is that a point of the ball is classified alike."""
    return share


def alike(eps: Tensor) -> Tensor:
    """`G = 1` (times p(x)): all radii count alike."""
    return torch.ones_like(eps)


def inverse(eps: Tensor) -> Tensor:
    """`G = 1/eps` (times p(x)): small radii count more (F, Example 4)."""
    return eps.reciprocal()


@dataclass(frozen=True)
class Measurement:
    """R_Q of some samples."""

    integrals: Float[Tensor, " samples"]
    """`∫ H(R_Q(x_i, eps)) G(eps) d eps`."""
    profile: PerRadius | None = None
    """`H(R_Q(x_i, eps))` at the radii drawn, if R_Q is sampled."""
    radii: PerRadius | None = None
    """These radii."""
    margins: Float[Tensor, " samples"] | None = None
    """Radius up to which R = 1, if R_Q is bounded; infinite if there is no such end."""
    nearest: AttackResult | None = None
    """The nearest adversarial examples, if an attack searched for them."""


@runtime_checkable
class Robustness(Protocol):
    """How R_Q is measured."""

    def measure(
        self, score: "Score", model: "nn.Module | Predictive", x: Points, y: Labels | None, seed: int, index: Labels
    ) -> Measurement:
        """Return `∫ H(R_Q(x, eps)) G(eps) d eps` for every x, and its parts."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return every parameter, JSON-ready."""
        ...


@dataclass(frozen=True)
class Sampled:
    """R_Q as the share of points drawn from Q (F, Eq. 8). Where the law has no point in a ball, R = 1: x is in it."""

    law: Law
    """Q."""

    def settings(self) -> dict[str, Any]:
        """Return every parameter, JSON-ready."""
        return {"robustness": "sampled", **self.law.settings()}

    def shares(self, block: Block, x: Points, y: Labels | None, radii: PerRadius) -> PerRadius:
        """Return `R_S(x, eps) = |{x' in S_eps(x): f(x') = f(x)}| / |S_eps(x)|`."""
        predicted = block.predict(x).labels
        same, number = torch.zeros_like(radii), torch.zeros_like(radii)
        for points, inside in self.law.draws(x, y, radii, block.streams.fold(Stream.NEIGHBOURS)):
            agrees = block.predict(points).labels == predicted
            same, number = same + (inside & agrees[:, None]), number + inside
        return torch.where(number > 0, same / number.clamp_min(1), 1.0)

    def measure(
        self, score: "Score", model: "nn.Module | Predictive", x: Points, y: Labels | None, seed: int, index: Labels
    ) -> Measurement:
        """Return sums over the radii drawn, which differ between samples."""

        def work(block: Block) -> Measurement:
            radii, width = self._radii(score.radii, block, x)
            value = score.H(self.shares(block, x, y, radii))
            return Measurement((width * value * score.G(radii)).sum(1), value, radii)

        (measurement,) = in_blocks(work, model, x, y, batch_size=len(x), seed=seed, index=index)
        return measurement

    def _radii(self, radii: "Radii | Distances", block: Block, x: Points) -> tuple[PerRadius, float]:
        """Each sample's radii, and the weight of each in the integral."""
        if isinstance(radii, Radii):
            return radii.draw(block.streams.fold(Stream.RADII)), radii.width
        if not isinstance(self.law, OnManifold):
            raise EquipoiseError(
                "the distances of points that are drawn for a radius cannot be radii: take Radii, or a law OnManifold."
            )
        distances = self.law.distances(x, block.streams.fold(Stream.NEIGHBOURS))
        return distances, 1 / distances.shape[1]


@dataclass(frozen=True)
class WorstCase:
    """R_Q of a law with a density everywhere in the box is 1 up to the margin μ(x), the distance to the nearest point
    that is classified otherwise, and less than 1 beyond (F, Eq. 5). For H = `certain` alone.

    μ is bounded from above by the nearest point that an attack finds.
    """

    attack: AttackLike
    """A minimum-norm attack, without a radius, such as `equipoise.attacks.nearest()`."""
    label_aware: bool = False
    """Whether points count that are not of the true label, instead of the predicted one: then μ = 0 where the
    prediction is wrong already (F, Example 5)."""

    def settings(self) -> dict[str, Any]:
        """Return every parameter, JSON-ready."""
        return {"robustness": "worst case", "label_aware": self.label_aware, "attack": self.attack.settings()}

    def measure(
        self, score: "Score", model: "nn.Module | Predictive", x: Points, y: Labels | None, seed: int, index: Labels
    ) -> Measurement:
        """Return `∫ G` from `low` to the margin."""
        eps = self.attack.geometry.eps
        require(
            eps >= score.bounded.high,
            f"the attack looks no farther than eps = {eps:g}, but the radii reach to {score.bounded.high:.4g}: give "
            "it no eps, or the radii a smaller end.",
        )
        if not self.label_aware:
            (y,) = in_blocks(lambda block: block.predict(x).labels, model, x, batch_size=len(x), seed=seed, index=index)
        if y is None:
            raise EquipoiseError("a label-aware score needs the labels y.")
        nearest = self.attack(model, x, y, seed=seed, index=index)
        margins = torch.where(nearest.success, nearest.distance.double(), math.inf)
        return _integrate_to(margins, score, Streams.of(seed, index), nearest)


@dataclass(frozen=True)
class Certified:
    """As `WorstCase`, with the margin bounded from below by a certificate: no point within it is classified otherwise.

    Together the two scores are a bracket. For networks of linear, convolutional, ReLU and pooling layers.
    """

    norm: NormName = "l2"
    """`linf`, `l2` or `l1`."""
    method: Method = "crown"
    """How outputs are bounded."""
    label_aware: bool = False
    """As in `WorstCase`."""
    box: Box = Box()
    """The valid inputs."""

    def settings(self) -> dict[str, Any]:
        """Return every parameter, JSON-ready."""
        method = {"norm": self.norm, "method": self.method}
        return {"robustness": "certified", "label_aware": self.label_aware, **method}

    def measure(
        self, score: "Score", model: "nn.Module | Predictive", x: Points, y: Labels | None, seed: int, index: Labels
    ) -> Measurement:
        """Return `∫ G` from `low` to the certified margin."""
        labels = y if self.label_aware else None
        margins = certified_radius(
            model,
            x,
            labels,
            self.norm,
            upper=score.bounded.high,
            halvings=_BISECTION_STEPS,
            box=self.box,
            method=self.method,
        )
        return _integrate_to(margins.double(), score, Streams.of(seed, index), None)


_BISECTION_STEPS = 14  # of a certified margin, from the largest radius
_PARTS = 256  # of the interval up to a margin


def _integrate_to(
    margins: Float[Tensor, " samples"], score: "Score", streams: Streams, nearest: AttackResult | None
) -> Measurement:
    """The integral of G up to each margin, by one radius drawn from each of many equal parts of the interval: exact for
    G = 1, unbiased for every G, with an error that is part of the variance over samples.
    """
    require(
        score.H is certain,
        "a margin says where R = 1 ends, not what R is beyond: take H = certain, or a robustness that is sampled.",
    )
    radii = score.bounded
    length = (margins.clamp(radii.low, radii.high) - radii.low)[:, None]
    share = Radii(1.0, count=_PARTS).draw(streams.fold(Stream.RADII))
    integral = length[:, 0] * score.G(radii.low + share * length).mean(1)
    scale = radii.high - radii.low if radii.average else 1
    return Measurement(integral / scale, margins=margins, nearest=nearest)


@dataclass(frozen=True)
class Score:
    """`E_x ∫ H(R_Q(x, eps)) G(eps) d eps` (F, Def. 3). Call it as `score(model, x, y, seed=0) -> Estimate`."""

    robustness: Robustness
    """R_Q: which points are near x, and how they are examined."""
    radii: Radii | Distances
    """The radii that are integrated over."""
    H: Weight = certain
    """Function of the share R in [0, 1]."""
    G: Weight = alike
    """Weight of a radius: a function of eps."""
    over: Literal["data", "box"] = "data"
    """Whether x is drawn as the data are, or uniformly from the box (F, Example 1)."""
    box: Box = Box()
    """The valid inputs."""
    name: str = "score"
    """Name of the score."""

    def __post_init__(self) -> None:
        if self.over not in ("data", "box"):
            raise unknown("place to draw x from", self.over, ("data", "box"))
        require(
            self.over == "data" or math.isfinite(self.box.high - self.box.low),
            "points uniform in an infinite box cannot be drawn: give the score a Box.",
        )
        if isinstance(self.radii, Radii):
            lowest = torch.tensor([self.radii.low], dtype=torch.float64)
            require(
                bool(self.G(lowest).isfinite().all()),
                f"G = {_name(self.G)} is not finite at the smallest radius, {self.radii.low:g}: give the radii a low "
                "above it.",
            )

    @property
    def bounded(self) -> Radii:
        """The radii, if they form an interval. Raises `EquipoiseError` otherwise."""
        if isinstance(self.radii, Radii):
            return self.radii
        raise EquipoiseError("a margin knows no points whose distances could be radii: give the score Radii.")

    def settings(self) -> dict[str, Any]:
        """Return every parameter, JSON-ready."""
        return {
            "name": self.name,
            "over": self.over,
            "H": _name(self.H),
            "G": _name(self.G),
            "radii": self.radii.settings(),
            **self.robustness.settings(),
        }

    def __call__(
        self,
        model: "nn.Module | Predictive",
        x: Points,
        y: Labels | None = None,
        *,
        seed: int = 0,
        batch_size: int = 256,
        progress: Callable[[int, int], None] | None = None,
    ) -> Estimate:
        """Return an estimate of the score on samples of the data. `y` are the true labels, for scores that need them.

        With `over="box"` as many points of the box as there are in `x` take its place. Results do not depend on
        `batch_size`; `progress` is called with the samples done and their number. Raises `EquipoiseError` for
        unusable input.
        """
        require(len(x) > 0, "a score needs at least one sample.")
        require_integer("batch_size", batch_size, 1)
        require_integer("seed", seed)
        index = torch.arange(len(x), device=x.device)
        if self.over == "box":
            points = Streams.of(seed, index).fold(Stream.BOX).uniform(x[0].numel(), dtype=x.dtype).reshape(x.shape)
            x, y = self.box.low + (self.box.high - self.box.low) * points, None
        measurements = []
        for batch in index.split(batch_size):
            measurements.append(self.robustness.measure(self, model, x[batch], at(y, batch), seed, batch))
            if progress is not None:
                progress(int(batch[-1]) + 1, len(x))

        def joined(name: str) -> Any:
            values = [getattr(measurement, name) for measurement in measurements]
            return None if values[0] is None else torch.cat(values).double().cpu().numpy()

        nearest = [measurement.nearest for measurement in measurements if measurement.nearest is not None]
        return Estimate(
            values=joined("integrals"),
            shares=joined("profile"),
            drawn=joined("radii"),
            margins=joined("margins"),
            score=self,
            x=x,
            found=AttackResult.cat(nearest) if nearest else None,
        )


def _name(function: Weight) -> str:
    return getattr(function, "__name__", type(function).__name__)

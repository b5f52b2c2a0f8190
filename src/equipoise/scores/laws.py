"""Distributions Q of points near x: uniform on the ball, or those of a generator of data (F, Def. 1)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from equipoise.core.errors import require, require_integer
from equipoise.core.rng import Streams
from equipoise.core.types import Labels, Points
from equipoise.generators import Manifold
from equipoise.geometry import EVERYWHERE, Ball, Box
from equipoise.scores.radii import PerRadius

Inside = Bool[Tensor, "batch radii"]
_MAX_ATTEMPTS = 100_000
_BATCH = 16
_SMALLEST = 1e-6  # radius: 1/eps is infinite for a point that is the input itself


@runtime_checkable
class Law(Protocol):
    """Q: the distribution of points near x."""

    def draws(self, x: Points, y: Labels | None, radii: PerRadius, streams: Streams) -> Iterator[tuple[Points, Inside]]:
        """Yield points near `x`, one per sample at a time, and for which balls each is a draw from `Q(· | ball)`.

        `radii` are those of each sample's balls; `y` the true labels of `x`, if known.
        """
        ...

    def settings(self) -> dict[str, Any]:
        """Return every parameter, JSON-ready."""
        ...


@dataclass(frozen=True)
class UniformOnBall:
    """Uniform on `{z in box : ‖z - x‖ <= eps}`, drawn exactly, for every radius anew (F, Examples 1 and 2).

    Points are antithetic pairs, mirrored in linf about the centre of the intersection of ball and box, else about x
    where the ball lies within the box: both rarely lie beyond a nearly straight boundary, which reduces the variance of
    the share that does.
    """

    norm: str = "l2"
    """`linf`, `l2` or `l1`."""
    samples: int = 64
    """Points per ball."""
    box: Box = Box()
    """The valid inputs."""

    def __post_init__(self) -> None:
        require_integer("samples", self.samples, 1)
        Ball(self.norm, 0.0, self.box)

    def settings(self) -> dict[str, Any]:
        """Return every parameter, JSON-ready."""
        box = [self.box.low, self.box.high]
        return {"law": "uniform on the ball", "norm": self.norm, "samples": self.samples, "box": box}

    def draws(self, x: Points, y: Labels | None, radii: PerRadius, streams: Streams) -> Iterator[tuple[Points, Inside]]:
        """Yield `samples` points of every ball."""
        for k in range(radii.shape[1]):
            inside = torch.zeros_like(radii, dtype=torch.bool)
            inside[:, k] = True
            low, high = _ends(x, radii[:, k], self.box)
            centre = ((low + high) / 2).to(x.dtype).reshape(x.shape)
            # A product of intervals is symmetric about its middle, but no other ball that the box cuts.
            cut = _leaves(x, radii[:, k], self.box) & (self.norm != "linf")
            for number in range(0, self.samples, 2):
                move = uniform_move(self.norm, x, radii[:, k], self.box, streams.fold(k, number))
                yield self.box.clamp(x + move), inside
                if number + 1 == self.samples:
                    break
                mirrored, asymmetric = 2 * centre - move, cut.nonzero()[:, 0]
                if len(asymmetric):
                    fresh = streams[asymmetric].fold(k, number + 1)
                    mirrored[asymmetric] = uniform_move(self.norm, x[asymmetric], radii[asymmetric, k], self.box, fresh)
                yield self.box.clamp(x + mirrored), inside


def _ends(x: Points, eps: Float[Tensor, " batch"], box: Box) -> tuple[Tensor, Tensor]:
    """How far each coordinate may decrease and increase within the radius and the box."""
    low = (box.low - x).flatten(1).double().maximum(-eps[:, None].double())
    return low, (box.high - x).flatten(1).double().minimum(eps[:, None].double())


def _leaves(x: Points, eps: Float[Tensor, " batch"], box: Box) -> Bool[Tensor, " batch"]:
    """Which balls reach beyond the box."""
    flat = x.flatten(1)
    return (flat - eps[:, None] < box.low).any(1) | (flat + eps[:, None] > box.high).any(1)


def uniform_move(norm: str, x: Points, eps: Float[Tensor, " batch"], box: Box, streams: Streams) -> Points:
    """Return `z - x` for z uniform on `{z in box : ‖z - x‖ <= eps}`, with a radius per sample.

    In linf a product of intervals; in l2 and l1 a draw from the whole ball where that lies within the box, and else
    exact rejection sampling: with N(δ) = Σ|δ_i|^p the coordinates are drawn independently with density
    `∝ exp(-λ|δ_i|^p)` on their intervals, and the point is accepted with probability `exp(λ(N - eps^p))` if `N <=
    eps^p`, so that the accepted points have constant density. λ is such that N is about eps^p on average; then about
    one in `sqrt(2π d/p)` points is accepted, in d dimensions.
    """
    low, high = _ends(x, eps, box)
    if norm == "linf":
        u = streams.uniform(low.shape[1], dtype=torch.float64)
        return torch.lerp(low, high, u).to(x.dtype).reshape(x.shape)
    whole = Ball(norm, 1.0, EVERYWHERE).draw(streams, torch.zeros_like(x))
    move = whole * eps.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    cut = (_leaves(x, eps, box) & (eps > 0)).nonzero()[:, 0]
    if len(cut):
        moves = _rejection_sampled(2 if norm == "l2" else 1, low[cut], high[cut], eps[cut].double(), streams[cut])
        move[cut] = moves.to(x.dtype).reshape(-1, *x.shape[1:])
    return move


def _rejection_sampled(
    p: int,
    low: Float[Tensor, "batch d"],
    high: Float[Tensor, "batch d"],
    eps: Float[Tensor, " batch"],
    streams: Streams,
) -> Float[Tensor, "batch d"]:
    """Uniform on `{δ : low <= δ <= high, Σ|δ_i|^p <= eps^p}`."""
    rate = _rate(p, low, high, eps**p)
    moves, active = torch.zeros_like(low), torch.arange(len(low), device=low.device)
    for attempt in range(_MAX_ATTEMPTS):
        stream = streams[active].fold(attempt)
        u = stream.fold(0).uniform(low.shape[1], dtype=torch.float64)
        move = _truncated(p, rate[active, None], low[active], high[active], u)
        excess = (move.abs() ** p).sum(1) - eps[active] ** p
        accepted = (excess <= 0) & (stream.fold(1).uniform(dtype=torch.float64) < (rate[active] * excess).exp())
        moves[active[accepted]] = move[accepted]
        active = active[~accepted]
        if len(active) == 0:
            return moves
    raise AssertionError(
        "a point of the ball and the box was not found"
    )  # each attempt succeeds with a fixed probability


def _rate(p: int, low: Tensor, high: Tensor, target: Tensor) -> Float[Tensor, " batch"]:
    """λ with `E Σ|δ_i|^p = target`, by bisection of its logarithm; 0 if the expectation is smaller for λ = 0."""
    d = low.shape[1]
    below, above = (target.reciprocal() * 1e-3 * d).log(), (target.reciprocal() * 4 * d).log()
    for _ in range(40):
        middle = (below + above) / 2
        too_large = _expected(p, middle.exp()[:, None], low, high) > target
        below, above = torch.where(too_large, middle, below), torch.where(too_large, above, middle)
    flat = ((high**3 - low**3) / (3 * (high - low)) if p == 2 else (high**2 + low**2) / (2 * (high - low))).sum(1)
    return torch.where(flat.nan_to_num() <= target, 0.0, below.exp())


def _expected(p: int, rate: Tensor, low: Tensor, high: Tensor) -> Float[Tensor, " batch"]:
    """`E Σ|δ_i|^p`."""
    if p == 1:
        mass = sum(-torch.expm1(-rate * t) for t in (high, -low))
        moment = sum(1 - (-rate * t).exp() * (1 + rate * t) for t in (high, -low))
        return (moment / (rate * torch.as_tensor(mass).clamp_min(1e-300))).sum(1)
    a, b = low * (2 * rate).sqrt(), high * (2 * rate).sqrt()
    edge = b * (-(b**2) / 2).exp() - a * (-(a**2) / 2).exp()
    mass = math.sqrt(2 * math.pi) * (torch.special.ndtr(b) - torch.special.ndtr(a))
    return ((1 - edge / mass.clamp_min(1e-300)).clamp(0, 1) / (2 * rate)).sum(1)


def _truncated(p: int, rate: Tensor, low: Tensor, high: Tensor, u: Tensor) -> Float[Tensor, "batch d"]:
    """Coordinates with density `∝ exp(-λ|δ|^p)` on their intervals: the inverse of their distribution at u."""
    if p == 2:
        scale = (2 * rate).sqrt()
        a, b = torch.special.ndtr(low * scale), torch.special.ndtr(high * scale)
        move = torch.special.ndtri(torch.lerp(a, b, u)) / scale
    else:
        a, b = torch.expm1(rate * low), -torch.expm1(-rate * high)  # -mass of the left side, mass of the right one
        mass = torch.lerp(a, b, u)
        move = -mass.sign() * torch.log1p(-mass.abs()) / rate
    flat = (rate == 0) | ~move.isfinite()
    return torch.where(flat, torch.lerp(low, high, u), move).clamp(low, high)


@dataclass(frozen=True)
class OnManifold:
    """The data near x, `P(X | ball)`: draws of `dec(enc(x) + N(0, σ²))` that fall into the ball (F, Eq. 13)."""

    manifold: Manifold
    """The auto-encoder."""
    samples: int = 200
    """Points per input, the same for all its balls."""
    sigma: float = 0.06
    """Standard deviation of the noise on the code (F, Sec. 7)."""
    norm: str = "l2"
    """Norm of the balls."""

    def __post_init__(self) -> None:
        require_integer("samples", self.samples, 1)
        require(self.sigma > 0, f"sigma = {self.sigma} is no noise: expected a number > 0.")
        Ball(self.norm, 0.0, EVERYWHERE)

    def settings(self) -> dict[str, Any]:
        """Return every parameter, JSON-ready; of the auto-encoder a digest of its weights."""
        noise = {"norm": self.norm, "samples": self.samples, "sigma": self.sigma}
        return {"law": "on the manifold", "manifold": str(self.manifold), **noise}

    def draws(self, x: Points, y: Labels | None, radii: PerRadius, streams: Streams) -> Iterator[tuple[Points, Inside]]:
        """Yield `samples` points near each input, and in which of its balls they lie."""
        for points, distance in self._near(x, streams):
            yield points, distance[:, None] <= radii

    def distances(self, x: Points, streams: Streams) -> PerRadius:
        """Return the distances of the points that `draws` yields for these streams, increasing; at least 1e-6."""
        distances = torch.stack([distance for _, distance in self._near(x, streams)], 1)
        return distances.sort(1).values.clamp_min(_SMALLEST)

    def _near(self, x: Points, streams: Streams) -> Iterator[tuple[Points, Float[Tensor, " batch"]]]:
        """`samples` points near each input, and their distances in float64."""
        ball = Ball(self.norm, math.inf, EVERYWHERE)
        for start in range(0, self.samples, _BATCH):
            count = min(_BATCH, self.samples - start)
            for points in self.manifold.sample(x, count, self.sigma, streams.fold(start)):
                yield points, ball.distance(points, x).double()


@dataclass(frozen=True)
class Labelled:
    """A law conditioned on the label as well: `Q(· | ball, Y(X) = Y(x))` (F, Example 5)."""

    law: Law
    """The law."""
    labeller: Callable[[Points], Labels]
    """Y: the true label of any point, as far as known; also that of x if no labels are given."""

    def settings(self) -> dict[str, Any]:
        """Return every parameter, JSON-ready."""
        name = getattr(self.labeller, "__qualname__", type(self.labeller).__name__)
        return {"law": "of the label", "of": self.law.settings(), "labeller": name}

    def draws(self, x: Points, y: Labels | None, radii: PerRadius, streams: Streams) -> Iterator[tuple[Points, Inside]]:
        """Yield the law's points; those with another label than x belong to no ball."""
        labels = self.labeller(x) if y is None else y
        for points, inside in self.law.draws(x, y, radii, streams):
            yield points, inside & (self.labeller(points) == labels)[:, None]

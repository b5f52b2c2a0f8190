"""Laws Q by which points near x are drawn: uniform on the ball, or as a generator of data draws them (F, Def. 1)."""

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

Radii = Float[Tensor, "batch radii"]
Inside = Bool[Tensor, "batch radii"]
_TRIES = 100_000
_AT_ONCE = 16
_LEAST = 1e-6  # a radius: of a point that is the input itself no 1/eps is known


@runtime_checkable
class Law(Protocol):
    """Q: where points near x come from."""

    def draws(self, x: Points, y: Labels | None, radii: Radii, streams: Streams) -> Iterator[tuple[Points, Inside]]:
        """Points near `x`, one per sample at a time, and of which of the balls each is a draw from `Q(· | ball)`.

        `radii` are those of each sample's balls; `y` the true labels of `x`, where they are known.
        """
        ...

    def settings(self) -> dict[str, Any]:
        """Every parameter, JSON-ready."""
        ...


@dataclass(frozen=True)
class UniformOnBall:
    """Uniform on `{z in box : ‖z - x‖ <= eps}`, drawn exactly, for every radius anew (F, Examples 1 and 2).

    Points come in pairs that mirror each other, in linf about the middle of ball and box, else about x where the ball
    lies within the box: of a boundary that is nearly straight, two such points rarely both lie beyond it, so that the
    share that does is known more closely.
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
        """Every parameter, JSON-ready."""
        box = [self.box.low, self.box.high]
        return {"law": "uniform on the ball", "norm": self.norm, "samples": self.samples, "box": box}

    def draws(self, x: Points, y: Labels | None, radii: Radii, streams: Streams) -> Iterator[tuple[Points, Inside]]:
        """`samples` points of every ball."""
        for k in range(radii.shape[1]):
            inside = torch.zeros_like(radii, dtype=torch.bool)
            inside[:, k] = True
            low, high = _ends(x, radii[:, k], self.box)
            middle = ((low + high) / 2).to(x.dtype).reshape(x.shape)
            # A product of intervals is symmetric about its middle, but no other ball that the box cuts.
            cut = _leaves(x, radii[:, k], self.box) & (self.norm != "linf")
            for number in range(0, self.samples, 2):
                move = uniform_move(self.norm, x, radii[:, k], self.box, streams.fold(k, number))
                yield self.box.clamp(x + move), inside
                if number + 1 == self.samples:
                    break
                other, rows = 2 * middle - move, cut.nonzero()[:, 0]
                if len(rows):
                    again = streams[rows].fold(k, number + 1)
                    other[rows] = uniform_move(self.norm, x[rows], radii[rows, k], self.box, again)
                yield self.box.clamp(x + other), inside


def _ends(x: Points, eps: Float[Tensor, " batch"], box: Box) -> tuple[Tensor, Tensor]:
    """How far each coordinate may go down and up, within the radius and the box."""
    low = (box.low - x).flatten(1).double().maximum(-eps[:, None].double())
    return low, (box.high - x).flatten(1).double().minimum(eps[:, None].double())


def _leaves(x: Points, eps: Float[Tensor, " batch"], box: Box) -> Bool[Tensor, " batch"]:
    """Whose ball reaches beyond the box."""
    flat = x.flatten(1)
    return (flat - eps[:, None] < box.low).any(1) | (flat + eps[:, None] > box.high).any(1)


def uniform_move(norm: str, x: Points, eps: Float[Tensor, " batch"], box: Box, streams: Streams) -> Points:
    """`z - x` for z uniform on `{z in box : ‖z - x‖ <= eps}`, with a radius per sample.

    In linf a product of intervals. In l2 and l1, where the box does not cut the ball, a draw from the whole ball. Where
    it does, by rejection, which is exact: with N(δ) = Σ|δ_i|^p the coordinates are drawn independently with density
    `∝ exp(-λ|δ_i|^p)` on their intervals, and the point is kept with probability `exp(λ(N - eps^p))` if `N <= eps^p`,
    so that what is kept has a constant density. λ is such that N is about eps^p on the average; then about one in
    `sqrt(2π d/p)` points is kept, in d dimensions.
    """
    low, high = _ends(x, eps, box)
    if norm == "linf":
        u = streams.uniform(low.shape[1], dtype=torch.float64)
        return torch.lerp(low, high, u).to(x.dtype).reshape(x.shape)
    whole = Ball(norm, 1.0, EVERYWHERE).draw(streams, torch.zeros_like(x))
    move = whole * eps.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    rows = (_leaves(x, eps, box) & (eps > 0)).nonzero()[:, 0]
    if len(rows):
        cut = _rejected(2 if norm == "l2" else 1, low[rows], high[rows], eps[rows].double(), streams[rows])
        move[rows] = cut.to(x.dtype).reshape(-1, *x.shape[1:])
    return move


def _rejected(
    p: int,
    low: Float[Tensor, "rows d"],
    high: Float[Tensor, "rows d"],
    eps: Float[Tensor, " rows"],
    streams: Streams,
) -> Float[Tensor, "rows d"]:
    """Uniform on `{δ : low <= δ <= high, Σ|δ_i|^p <= eps^p}`."""
    rate = _rate(p, low, high, eps**p)
    found, left = torch.zeros_like(low), torch.arange(len(low), device=low.device)
    for attempt in range(_TRIES):
        own = streams[left].fold(attempt)
        u = own.fold(0).uniform(low.shape[1], dtype=torch.float64)
        move = _truncated(p, rate[left, None], low[left], high[left], u)
        surplus = (move.abs() ** p).sum(1) - eps[left] ** p
        kept = (surplus <= 0) & (own.fold(1).uniform(dtype=torch.float64) < (rate[left] * surplus).exp())
        found[left[kept]] = move[kept]
        left = left[~kept]
        if len(left) == 0:
            return found
    raise AssertionError("a point of the ball and the box was not found")  # each try succeeds with a fixed probability


def _rate(p: int, low: Tensor, high: Tensor, target: Tensor) -> Float[Tensor, " rows"]:
    """λ with `E Σ|δ_i|^p = target`, or 0 if it is less without; by halving its logarithm."""
    d = low.shape[1]
    below, above = (target.reciprocal() * 1e-3 * d).log(), (target.reciprocal() * 4 * d).log()
    for _ in range(40):
        middle = (below + above) / 2
        large = _expected(p, middle.exp()[:, None], low, high) > target
        below, above = torch.where(large, middle, below), torch.where(large, above, middle)
    flat = ((high**3 - low**3) / (3 * (high - low)) if p == 2 else (high**2 + low**2) / (2 * (high - low))).sum(1)
    return torch.where(flat.nan_to_num() <= target, 0.0, below.exp())


def _expected(p: int, rate: Tensor, low: Tensor, high: Tensor) -> Float[Tensor, " rows"]:
    """`E Σ|δ_i|^p`."""
    if p == 1:
        mass = sum(-torch.expm1(-rate * t) for t in (high, -low))
        moment = sum(1 - (-rate * t).exp() * (1 + rate * t) for t in (high, -low))
        return (moment / (rate * torch.as_tensor(mass).clamp_min(1e-300))).sum(1)
    a, b = low * (2 * rate).sqrt(), high * (2 * rate).sqrt()
    edge = b * (-(b**2) / 2).exp() - a * (-(a**2) / 2).exp()
    mass = math.sqrt(2 * math.pi) * (torch.special.ndtr(b) - torch.special.ndtr(a))
    return ((1 - edge / mass.clamp_min(1e-300)).clamp(0, 1) / (2 * rate)).sum(1)


def _truncated(p: int, rate: Tensor, low: Tensor, high: Tensor, u: Tensor) -> Float[Tensor, "rows d"]:
    """Coordinates with density `∝ exp(-λ|δ|^p)` on their intervals: the inverse of their distribution at u."""
    if p == 2:
        scale = (2 * rate).sqrt()
        a, b = torch.special.ndtr(low * scale), torch.special.ndtr(high * scale)
        move = torch.special.ndtri(torch.lerp(a, b, u)) / scale
    else:
        a, b = torch.expm1(rate * low), -torch.expm1(-rate * high)  # -mass of the left side, mass of the right one
        at = torch.lerp(a, b, u)
        move = -at.sign() * torch.log1p(-at.abs()) / rate
    flat = (rate == 0) | ~move.isfinite()
    return torch.where(flat, torch.lerp(low, high, u), move).clamp(low, high)


@dataclass(frozen=True)
class OnManifold:
    """As the data lie near x, `P(X | ball)`: `dec(enc(x) + N(0, σ²))`, those that fall into the ball (F, Eq. 13)."""

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
        """Every parameter, JSON-ready; of the auto-encoder a digest of its weights."""
        noise = {"norm": self.norm, "samples": self.samples, "sigma": self.sigma}
        return {"law": "on the manifold", "manifold": str(self.manifold), **noise}

    def draws(self, x: Points, y: Labels | None, radii: Radii, streams: Streams) -> Iterator[tuple[Points, Inside]]:
        """`samples` points near each input, and in which of its balls they lie."""
        for points, distance in self._near(x, streams):
            yield points, distance[:, None] <= radii

    def distances(self, x: Points, streams: Streams) -> Radii:
        """How far the points lie that `draws` gives for these streams, in rising order; at least 1e-6."""
        found = torch.stack([distance for _, distance in self._near(x, streams)], 1)
        return found.sort(1).values.clamp_min(_LEAST)

    def _near(self, x: Points, streams: Streams) -> Iterator[tuple[Points, Float[Tensor, " batch"]]]:
        """`samples` points near each input, and their distances in float64."""
        ball = Ball(self.norm, math.inf, EVERYWHERE)
        for start in range(0, self.samples, _AT_ONCE):
            now = min(_AT_ONCE, self.samples - start)
            for points in self.manifold.sample(x, now, self.sigma, streams.fold(start)):
                yield points, ball.distance(points, x).double()


@dataclass(frozen=True)
class Labelled:
    """A law, conditioned on the label too: `Q(· | ball, Y(X) = Y(x))` (F, Example 5)."""

    law: Law
    """The law."""
    labeller: Callable[[Points], Labels]
    """Y: the true label of any point, as far as somebody knows it; that of x too, where no label is given."""

    def settings(self) -> dict[str, Any]:
        """Every parameter, JSON-ready."""
        name = getattr(self.labeller, "__qualname__", type(self.labeller).__name__)
        return {"law": "of the label", "of": self.law.settings(), "labeller": name}

    def draws(self, x: Points, y: Labels | None, radii: Radii, streams: Streams) -> Iterator[tuple[Points, Inside]]:
        """The law's points; those with another label than x belong to no ball."""
        own = self.labeller(x) if y is None else y
        for points, inside in self.law.draws(x, y, radii, streams):
            yield points, inside & (self.labeller(points) == own)[:, None]

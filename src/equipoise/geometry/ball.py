"""Where a perturbed point may lie: a norm ball around the clean point, intersected with a box.

`Ball.project` is the exact Euclidean projection onto ball ∩ box for all three norms, in closed form, whenever the
centre lies in the box. Each is one threshold per sample: along `v - c` with `a = |v - c|` and room `b` up to the box,

    Linf   z = clip(min(a, eps), b)                      no threshold
    L2     z = min(s·a, b)       with  Σ min(s·a, b)² = eps²
    L1     z = clip(a - t, 0, b) with  Σ clip(a - t, 0, b) = eps

and the threshold is the root of a left-hand side that is monotone and, in `s²` or `t`, piecewise linear: found by
Newton's method for L2 (`equipoise.geometry.water_filling`) and by sorting its kinks for L1 (Croce & Hein 2021, Prop.
2.1). Exact up to the rounding of float64 for moves up to 1e9 times the ball; beyond, the result still lies in ball and
box.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from equipoise.core.checks import check_fields
from equipoise.core.errors import EquipoiseError, EquipoiseWarning, require, unknown
from equipoise.core.rng import Streams
from equipoise.core.types import PerSample, Points
from equipoise.geometry.water_filling import level

_LARGEST = 1e38  # of the radii: a float32 number
_ULP = 2.0**-23  # spacing of float32 numbers just below 1 is half of this
NormName = Literal["linf", "l2", "l1"]
Rows = Float[Tensor, "batch features"]
Lengths = float | Float[Tensor, "batch 1"]
Radius = float | Float[Tensor, "batch ..."]  # of a tensor one number per sample, shaped to be broadcast over points


@dataclass(frozen=True)
class Box:
    """The valid inputs: `low <= x <= high` in every coordinate."""

    example: ClassVar[str] = "Box(0, 255)"
    """An example for messages."""

    low: float = 0.0
    """Smallest value of a coordinate."""
    high: float = 1.0
    """Largest value of a coordinate."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.low < self.high, f"box: low = {self.low} must be smaller than high = {self.high}.")

    @property
    def scale(self) -> float:
        """The width of the box, by which lengths given for pixels of [0, 1] are multiplied; 1 without bounds."""
        width = self.high - self.low
        return width if math.isfinite(width) else 1.0

    def clamp(self, x: Points) -> Points:
        """The nearest point of the box."""
        return x.clamp(self.low, self.high)

    def contains(self, x: Points, tolerance: float = 1e-6) -> Bool[Tensor, " batch"]:
        """Which samples lie in the box, up to `tolerance` times its width for rounding; NaN lies outside."""
        flat, some = x.flatten(1), tolerance * self.scale
        return (flat.amin(1) >= self.low - some) & (flat.amax(1) <= self.high + some)


EVERYWHERE = Box(-math.inf, math.inf)
"""No bounds: for features, latent codes and points of the plane."""


def norm_of(move: Rows, order: float) -> PerSample:
    """`‖move‖` per row; PyTorch's own maximum norm takes ten times as long."""
    return move.abs().amax(1) if order == math.inf else torch.linalg.vector_norm(move, order, 1)


def _room(direction: Rows, x: Points, box: Box) -> Rows:
    """How far each coordinate of `x` can move in `direction` within the box."""
    flat = x.flatten(1)
    return torch.where(direction > 0, box.high - flat, flat - box.low).clamp_min(0)


def _project_linf(x: Points, centre: Points, eps: Radius, box: Box) -> Points:
    nearest = centre - eps
    torch.maximum(x, nearest, out=nearest)
    return torch.minimum(nearest, centre + eps, out=nearest).clamp_(box.low, box.high)


def _along(lengths: Callable[[Rows, Rows, Lengths], Rows]) -> Callable[[Points, Points, Radius, Box], Points]:
    """The projection that keeps the direction of every coordinate and gives it one of these lengths."""

    def project(x: Points, centre: Points, eps: Radius, box: Box) -> Points:
        if not isinstance(eps, Tensor) and math.isinf(eps):
            return box.clamp(x)
        radius = eps.flatten(1) if isinstance(eps, Tensor) else eps
        move = (x - centre).flatten(1)
        room = _room(move, centre, box)
        # Without bounds no coordinate gets more than the whole budget.
        length = lengths(move.abs(), room.clamp_max(radius) if math.isinf(box.high - box.low) else room, radius)
        return box.clamp(centre + (length * move.sign()).reshape(centre.shape))

    return project


def _lengths_l2(a: Rows, room: Rows, eps: Lengths) -> Rows:
    # In u = s²: Σ min(u·a², b²) = eps². A shorter move than the ball allows needs no more than s = 1.
    inside = torch.minimum(a, room)
    outside = (torch.linalg.vector_norm(inside, dim=1, keepdim=True, dtype=torch.float64) > eps).nonzero()[:, 0]
    if len(outside):
        square, limit = a[outside].double() ** 2, room[outside].double() ** 2
        budget = eps[outside].double() if isinstance(eps, Tensor) else torch.full_like(square[:, :1], eps)
        scale = level(None, square, limit, budget**2).clamp_max(1.0).sqrt()
        inside[outside] = scale.to(a.dtype).mul(a[outside]).minimum(room[outside])
    return inside


def _lengths_l1(a: Rows, room: Rows, eps: Lengths) -> Rows:
    # With t = max a - u and gaps g = max a - a: F(u) = Σ clip(u - g, 0, b) rises by 1 from u = g to u = g + b. Measured
    # from the largest coordinate, because a - t would lose its digits to large moves.
    wide, limit = a.double(), room.double()
    top = wide.amax(1, keepdim=True)
    gap = top - wide
    kinks, order = torch.cat([gap, gap + limit], 1).sort(1)
    slope = torch.cat([torch.ones_like(gap), -torch.ones_like(gap)], 1).gather(1, order).cumsum(1)
    rise = (slope[:, :-1] * kinks.diff(dim=1)).cumsum(1)
    level = torch.cat([torch.zeros_like(top), rise], 1)
    last = (level < eps).sum(1, keepdim=True).sub(1).clamp_min(0)  # the kink before the root
    u = kinks.gather(1, last) + (eps - level.gather(1, last)) / slope.gather(1, last)
    z = (u.minimum(top) - gap).clamp_min(0).minimum(limit)
    # Rounding of moves beyond 1e9 times the ball must not leave it.
    return (z * (eps / z.sum(1, keepdim=True).clamp_min(1e-300)).clamp_max(1)).to(a.dtype)


def _steepest_linf(gradient: Rows, room: Rows, size: Lengths) -> Rows:
    return size * gradient.sign()


def _steepest_l2(gradient: Rows, room: Rows, size: Lengths) -> Rows:
    # Scaled first: the square of a gradient near 1e-30 is zero in float32.
    unit = gradient / gradient.abs().amax(1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
    return size * unit / torch.linalg.vector_norm(unit, dim=1, keepdim=True).clamp_min(1e-12)


def _steepest_l1(gradient: Rows, room: Rows, size: Lengths) -> Rows:
    # The whole budget goes to the coordinate with the largest slope, what its room cannot take to the next, and so on.
    order = gradient.abs().argsort(dim=1, descending=True, stable=True)
    sorted_room = room.gather(1, order).clamp_max(size)
    remaining = size - (sorted_room.cumsum(1) - sorted_room)
    # A full coordinate is moved on beyond the box, at no cost: the projection, which shortens all moves alike, must not
    # take from it what it would give to a coordinate of smaller slope. So the linear optimum is a fixed point.
    share = torch.where((sorted_room <= remaining) & (remaining > 1e-6 * size), size, remaining.clamp_min(0))
    return torch.zeros_like(gradient).scatter(1, order, share) * gradient.sign()


def _draw_linf(streams: Streams, features: int, dtype: torch.dtype) -> Rows:
    return 2 * streams.uniform(features, dtype=dtype) - 1


def _draw_l2(streams: Streams, features: int, dtype: torch.dtype) -> Rows:
    direction = streams.fold(0).normal(features, dtype=dtype)
    radius = streams.fold(1).uniform(1, dtype=dtype) ** (1 / features)
    return radius * direction / torch.linalg.vector_norm(direction, dim=1, keepdim=True).clamp_min(1e-12)


def _draw_l1(streams: Streams, features: int, dtype: torch.dtype) -> Rows:
    # Normalised exponentials are uniform on the simplex; one more exponential makes the radius.
    exponential = -torch.log1p(-streams.fold(0).uniform(features + 1, dtype=dtype))
    sign = 1 - 2 * (streams.fold(1).bits(features) & 1).to(dtype)
    return sign * exponential[:, :-1] / exponential.sum(1, keepdim=True).clamp_min(1e-12)


@dataclass(frozen=True)
class Norm:
    """The operations of a norm, on points of shape `(batch, features)`."""

    order: float  # the p of the Lp norm
    project: Callable[[Points, Points, Radius, Box], Points]  # (x, centre, eps, box) -> nearest point of ball ∩ box
    steepest: Callable[[Rows, Rows, Lengths], Rows]
    """`(gradient, room, size) -> argmax ⟨gradient, d⟩` over `‖d‖ <= size`; for L1 also `|d| <= room`."""
    draw: Callable[[Streams, int, torch.dtype], Rows]  # uniform points of the unit ball


NORMS: Mapping[str, Norm] = MappingProxyType(
    {
        "linf": Norm(math.inf, _project_linf, _steepest_linf, _draw_linf),
        "l2": Norm(2.0, _along(_lengths_l2), _steepest_l2, _draw_l2),
        "l1": Norm(1.0, _along(_lengths_l1), _steepest_l1, _draw_l1),
    }
)


@dataclass(frozen=True)
class Ball:
    """The points within `eps` of a centre, in a norm, that lie in the box: `{z ∈ box : ‖z - c‖ <= eps}`."""

    example: ClassVar[str] = "Ball('linf', 8 / 255)"
    """An example for messages."""

    norm: str
    """`linf`, `l2` or `l1`."""
    eps: float
    """Radius, in the units of the input (pixels in [0, 1]); 0 allows no perturbation, infinity leaves only the box."""
    box: Box = Box()
    """The valid inputs."""
    radii: PerSample | None = field(default=None, compare=False)
    """A radius for each sample of one batch, in place of `eps`."""

    def __post_init__(self) -> None:
        check_fields(self)
        self._check_radii()
        if self.norm not in NORMS:
            raise unknown("norm", self.norm, NORMS)
        object.__setattr__(self, "eps", float(self.eps) if not isinstance(self.eps, int) else self.eps)
        require(self.eps >= 0, f"eps = {self.eps} is not a radius: expected a number >= 0, such as 8/255.")
        require(
            self.eps <= _LARGEST or self.eps == math.inf,
            f"eps = {self.eps} is too large to compute with: expected at most {_LARGEST:g}, or infinity for all of the "
            "box.",
        )
        if self.norm == "linf" and self.box.high - self.box.low < self.eps < math.inf:
            warnings.warn(
                f"eps = {self.eps:g} is larger than the box: pixels live in [{self.box.low:g}, {self.box.high:g}]; "
                f"did you mean {self.eps:g}/255?",
                EquipoiseWarning,
                stacklevel=3,
            )

    def _check_radii(self) -> None:
        radii = self.radii
        require(
            radii is None or (isinstance(radii, Tensor) and radii.ndim == 1 and radii.is_floating_point()),
            "radii must be a tensor of floats of shape (samples,), one per sample.",
        )
        for wrong in [] if radii is None else radii[~((radii >= 0) & (radii <= _LARGEST))].tolist():
            raise EquipoiseError(f"eps = {wrong:g} of a sample is not a radius: expected finite numbers >= 0.")

    def __getitem__(self, index: "Tensor | slice") -> "Ball":
        """The ball of some of the samples: itself, unless every sample has a radius of its own."""
        return self if self.radii is None else replace(self, radii=self.radii[index])

    @property
    def varies(self) -> bool:
        """Whether every sample has a radius of its own."""
        return self.radii is not None

    def check_count(self, samples: int) -> None:
        """Raise `EquipoiseError` if there are radii for another number of samples."""
        count = samples if self.radii is None else len(self.radii)
        require(count == samples, f"eps has {count} radii, one per sample, but there are {samples} samples.")

    def scaled(self, factor: float) -> "Ball":
        """The ball of `factor` times the radius."""
        return replace(self, eps=factor * self.eps, radii=None if self.radii is None else factor * self.radii)

    def _radius_for(self, x: Tensor) -> Radius:
        """The radius, of a shape that can be broadcast over points."""
        if self.radii is None:
            return self.eps
        self.check_count(len(x))
        return self.radii.to(x.device, x.dtype).reshape(-1, *[1] * (x.ndim - 1))

    def distance(self, x: Points, centre: Points) -> PerSample:
        """`‖x - c‖` per sample, summed in float64."""
        move = (x.double() - centre.double()).flatten(1)
        return norm_of(move, NORMS[self.norm].order).to(x.dtype)

    def contains(self, x: Points, centre: Points) -> Bool[Tensor, " batch"]:
        """Which samples lie in the ball and the box: `‖x - c‖`, computed in float64, may exceed eps by what rounding to
        float32 explains, `2⁻²³ (d^(1/p) max(w, ‖c‖_∞) + eps)` for d coordinates in the norm p, w
        the box's width but at most 1; the box is exact; NaN lies outside.
        """
        order = NORMS[self.norm].order
        move = (x.double() - centre.double()).flatten(1)
        largest = centre.flatten(1).abs().amax(1).double().clamp_min(min(self.box.scale, 1.0))
        radius = self._radius_for(largest)
        rounding = _ULP * (move.shape[1] ** (1 / order) * largest + radius)
        return (norm_of(move, order) <= radius + rounding) & self.box.contains(x, 0.0)

    def project(self, x: Points, centre: Points, eps: PerSample | None = None) -> Points:
        """The nearest point of ball ∩ box (Euclidean), exactly, for a centre in the box; `eps` gives every sample a
        radius of its own instead of the ball's.
        """
        radius = self._radius_for(x) if eps is None else eps.reshape(-1, *[1] * (x.ndim - 1))
        return NORMS[self.norm].project(x, centre, radius, self.box)

    def steepest(self, x: Points, gradient: Points, size: "float | PerSample | Float[Tensor, '']") -> Points:
        """`x + argmax ⟨gradient, d⟩` over `‖d‖ <= size`: the sign step, the normalised step, or for L1 the coordinates
        of largest slope, each filled up to the box (and a full one held there against the projection to come).
        """
        flat = gradient.flatten(1)
        room = _room(flat, x, self.box) if self.norm == "l1" else flat
        lengths = size.reshape(-1, 1).expand(len(x), 1) if isinstance(size, Tensor) else size
        return x + NORMS[self.norm].steepest(flat, room, lengths).reshape(x.shape)

    def draw(self, streams: Streams, centre: Points, surface: bool = False) -> Points:
        """Points uniform on the ball, pushed out to its `surface` if asked for, then projected into the box."""
        if math.isinf(self.eps):
            raise EquipoiseError("a random start needs a finite ball: eps is infinite; start from zero instead.")
        unit = self._unit(streams, centre)
        if surface:
            unit = unit / norm_of(unit, NORMS[self.norm].order)[:, None].clamp_min(1e-12)
        return self.project(centre + self._radius_for(centre) * unit.reshape(centre.shape), centre)

    def _unit(self, streams: Streams, centre: Points) -> Rows:
        """Points uniform on the unit ball."""
        return NORMS[self.norm].draw(streams, centre[0].numel(), centre.dtype)

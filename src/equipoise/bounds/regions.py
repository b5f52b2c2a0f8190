"""The inputs that a certificate covers, and the minimum of a linear function over them.

For coefficients a, a centre c and the distance r_i from c to the box in coordinate i, in the direction of `-sign a_i`,

    min {a·z : ‖z - c‖ <= eps, z ∈ box} = a·c - max {Σ |a_i| d_i : 0 <= d <= r, ‖d‖ <= eps}.

The maximum is bounded from above by its Lagrange dual, which holds for every multiplier and is exact at the best one:

    Linf   Σ |a_i| min(r_i, eps)
    L2     Σ (|a_i| d_i - λ d_i²) + λ eps²   with  d_i = min(|a_i|/(2λ), r_i),  Σ d_i² = eps² at the best λ
    L1     Σ max(|a_i| - λ, 0) r_i + λ eps   with λ the |a_i|, in descending order, at which the r_i add up to eps
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equipoise.core.errors import require
from equipoise.core.types import PerSample, Points
from equipoise.geometry import NORMS, Ball, Box, Rows, norm_of
from equipoise.geometry.water_filling import level

_ULP = 2.0**-23

FEW = 4
"""Zero coefficients are left out if no row has more than one part in this many of coefficients that are not 0."""


@dataclass(frozen=True)
class Region:
    """Balls around samples, each with its own radius, intersected with a box."""

    centre: Points
    """The samples, in float64."""
    eps: PerSample
    """The radius of each ball."""
    norm: str
    """`linf`, `l2` or `l1`."""
    box: Box
    """The valid inputs."""

    @classmethod
    def of(cls, x: Points, eps: PerSample, norm: str, box: Box) -> "Region":
        """Return the region of all points that `Ball.contains` accepts: rounding to float32 is added to the radius."""
        centre = x.double()
        flat = centre.flatten(1)
        largest = flat.abs().amax(1).clamp_min(1.0)
        rounding = _ULP * (flat.shape[1] ** (1 / NORMS[norm].order) * largest + eps.double())
        # A sample may lie outside of the box by a rounding error; the valid points are no farther from its projection.
        return cls(box.clamp(centre), eps.double() + rounding, norm, box)

    def interval(self) -> tuple[Points, Points]:
        """Return the smallest and the largest value of each coordinate."""
        eps = self.eps.reshape(-1, *[1] * (self.centre.ndim - 1))
        return (self.centre - eps).clamp_min(self.box.low), (self.centre + eps).clamp_max(self.box.high)

    def minimum(self, rows: Float[Tensor, "rows ..."], owner: "slice | Int[Tensor, ' rows']") -> Float[Tensor, " rows"]:
        """Return the minimum of each linear function, given by its coefficients, over the region of its sample."""
        a, centre = rows.flatten(1), self.centre.flatten(1)[owner]
        if self.norm != "linf" and FEW * (width := max(1, int((a != 0).sum(1).amax()))) < a.shape[1]:
            # A unit of the first convolution depends on a small window: the rest of the image need not be sorted.
            index = a.abs().topk(width, 1, sorted=False).indices
            a, centre = a.gather(1, index), centre.expand(len(a), -1).gather(1, index)
        return self._minimum(a, centre, self.eps[owner][:, None].expand(len(a), 1))

    def sparse_minimum(
        self, a: Float[Tensor, "rows few"], index: Int[Tensor, "rows few"], owner: Int[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """As `minimum`, for coefficients `a` of the coordinates `index`; all others are 0."""
        return self._minimum(a, self.centre.flatten(1)[owner[:, None], index], self.eps[owner][:, None])

    def _minimum(self, a: Rows, centre: Float[Tensor, "#batch features"], eps: Float[Tensor, "batch 1"]) -> PerSample:
        room = torch.where(a > 0, centre - self.box.low, self.box.high - centre).clamp_min_(0).minimum(eps)
        return (a * centre).sum(1) - _DUAL[self.norm](a.abs(), room, eps)


def check_region(geometry: Ball) -> None:
    """Raise `EquipoiseError` unless the ball intersected with its box is bounded."""
    box = geometry.box
    require(
        math.isfinite(geometry.eps) or math.isfinite(box.high - box.low),
        "nothing can be certified in an infinite ball without a box: give eps, or a Box.",
    )


def _dual_linf(size: Rows, room: Rows, eps: Float[Tensor, "batch 1"]) -> PerSample:
    return (size * room).sum(1)


def _dual_l2(size: Rows, room: Rows, eps: Float[Tensor, "batch 1"]) -> PerSample:
    budget = torch.minimum(eps, norm_of(room, 2)[:, None])
    # In units of the largest coefficient: the square of one near 1e-160 would be zero.
    unit = size.amax(1, keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)
    a = size / unit
    t = level(None, a.square(), room.square(), budget.square()).sqrt().clamp(1e-100, 1e100)
    move = torch.minimum(t * a, room)
    dual = (a * move - move.square() / (2 * t)).sum(1) + (budget.square() / (2 * t))[:, 0]
    return unit[:, 0] * dual


def _dual_l1(size: Rows, room: Rows, eps: Float[Tensor, "batch 1"]) -> PerSample:
    budget = torch.minimum(eps, room.sum(1, keepdim=True))
    a, order = size.sort(1, descending=True)
    used = room.gather(1, order).cumsum(1)
    last = (used < budget).sum(1, keepdim=True).clamp_max(a.shape[1] - 1)
    multiplier = a.gather(1, last)
    return ((size - multiplier).clamp_min(0) * room).sum(1) + (multiplier * budget)[:, 0]


_DUAL = {"linf": _dual_linf, "l2": _dual_l2, "l1": _dual_l1}

"""Certificates of a classifier: bounds of its logits and margins, robustness in a ball, and the certified radius."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from equipoise.attacks.inputs import validated_inputs
from equipoise.bounds.network import Network, network_of, translate
from equipoise.bounds.propagation import differences, enclosures, minimum
from equipoise.bounds.regions import Region, check_region
from equipoise.core.checks import checked_call
from equipoise.core.errors import require, require_integer, unknown
from equipoise.core.types import Labels, PerSample, Points, Predictive
from equipoise.geometry import Ball, Box
from equipoise.models import predict

METHODS = ("ibp", "crown-ibp", "crown")
"""From the fastest to the tightest."""

NUMBERS = 2**22
"""Maximum size of all layers of the samples that are bounded together."""


@checked_call()
@torch.no_grad()
def certified_margin(
    model: "nn.Module | Predictive", x: Points, y: Labels | None, geometry: Ball, method: str = "crown"
) -> PerSample:
    """Return a lower bound of `min {f_y(z) - max_{j≠y} f_j(z) : z in ball ∩ box}` per sample, f being the logits.

    The bound holds for the network as it runs, see `equipoise.certified`. If it is positive, no perturbation changes
    the prediction from y. Differences of logits are bounded directly, not as differences of bounds (Gowal et al. 2018,
    Sec. 3; Zhang et al. 2020, Eq. 8). Without `y` the class predicted at `x` is taken.

    `crown` and `crown-ibp` are never looser than `ibp`. Memory is bounded for any number of samples. Results do not
    depend on batching, up to rounding in float64. Raises `EquipoiseError` for unusable input, an unknown method, more
    than one network, and a network with a layer that cannot be bounded.
    """
    problem = _validated(model, x, y, geometry, method)
    return rounded_down(problem.margins(problem.radii(geometry.eps)), x.dtype)


@checked_call()
def certified(
    model: "nn.Module | Predictive", x: Points, y: Labels | None, geometry: Ball, method: str = "crown"
) -> Bool[Tensor, " batch"]:
    """Return for which samples the prediction is proven to be `y` (without labels: as at `x`) on all of ball ∩ box.

    Their share is a lower bound of the robust accuracy. Raises as `certified_margin`.
    """
    return certified_margin(model, x, y, geometry, method) > 0


@checked_call()
@torch.no_grad()
def bounds(
    model: "nn.Module | Predictive", x: Points, geometry: Ball, method: str = "crown"
) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
    """Return lower and upper bounds of each logit on ball ∩ box.

    For margins use `certified_margin`, which is tighter. Raises as `certified_margin`.
    """
    problem = _validated(model, x, None, geometry, method)
    lower, upper = problem.bounds(problem.radii(geometry.eps))
    return rounded_down(lower, x.dtype), -rounded_down(-upper, x.dtype)


@checked_call()
@torch.no_grad()
def certified_radius(
    model: "nn.Module | Predictive",
    x: Points,
    y: Labels | None = None,
    norm: str = "linf",
    *,
    upper: float = 1.0,
    halvings: int = 10,
    box: Box = Box(),
    method: str = "crown",
) -> PerSample:
    """Return the certified radius: the prediction is proven to stay `y` (without labels: as at `x`) within it.

    This is the largest eps tried at which `certified_margin` was positive, within `2^-halvings upper` of where it stops
    being so; `upper` itself if that is certified; 0 for a misclassified sample. It is a lower bound of the distance to
    the nearest adversarial example, as `minimal_l2` and FAB give upper bounds. Radii are doubled from
    `2^-halvings upper` on, because small ones cost least, and bisected once one fails: `halvings + 1` certificates, or
    up to twice as many where only large radii fail. Raises as `certified_margin`, and for an `upper` or a number of
    `halvings` out of range.
    """
    require(0 < upper < math.inf, f"upper = {upper} is not a radius to search below: expected a positive number.")
    require_integer("halvings", halvings, 1)
    problem, units = _validated(model, x, y, Ball(norm, 0.0, box), method), 2**halvings

    def radius(count: Tensor) -> PerSample:
        """In the precision of the result, so that exactly the radii that were certified are returned."""
        return (upper * (count.double() / units)).to(x.dtype)

    low = torch.zeros(len(x), dtype=torch.int64, device=x.device)  # certified, in units of `upper / units`
    high = torch.full_like(low, units + 1)  # not certified, or not to be tried
    while len(active := (high - low > 1).nonzero()[:, 0]):
        halfway, doubled = (low[active] + high[active]) // 2, (2 * low[active]).clamp(1, units)
        tried = torch.where(high[active] > units, doubled, halfway)
        holds = problem.subset(active).margins(radius(tried)) > 0
        low[active], high[active] = torch.where(holds, tried, low[active]), torch.where(holds, high[active], tried)
    return radius(low)


@dataclass(frozen=True)
class Problem:
    """A network, and samples around which its logits are to be bounded."""

    network: Network
    x: Points
    y: Labels
    geometry: Ball
    method: str

    def subset(self, index: Tensor) -> "Problem":
        """Return the problem of some of the samples."""
        return replace(self, x=self.x[index], y=self.y[index])

    def radii(self, eps: float) -> PerSample:
        """Return the same radius for every sample."""
        return torch.full((len(self.x),), eps, dtype=torch.float64, device=self.x.device)

    def margins(self, eps: PerSample) -> PerSample:
        """Return lower bounds of the margins, in float64."""
        return torch.cat(
            [self._minima(batch, eps, _differences(self.y[batch], self._classes)).amin(1) for batch in self._batches()]
        )

    def bounds(self, eps: PerSample) -> tuple[Tensor, Tensor]:
        """Return lower and upper bounds of the logits, in float64."""
        eye = torch.eye(self._classes, dtype=torch.float64, device=self.x.device)
        both = torch.cat([eye, -eye])
        minima = [self._minima(batch, eps, both.expand(len(self.x[batch]), -1, -1)) for batch in self._batches()]
        lower, upper = torch.cat(minima).split(self._classes, 1)
        return lower, -upper

    def _minima(
        self, batch: slice, eps: PerSample, functions: Float[Tensor, "batch functions classes"]
    ) -> Float[Tensor, "batch functions"]:
        """Lower bounds of linear functions of the logits, the same number for every sample of the batch."""
        region = Region.of(self.x[batch], eps[batch], self.geometry.norm, self.geometry.box)
        bounds = enclosures(self.network, region, refine=self.method == "crown")
        sample = torch.arange(len(functions), device=functions.device).repeat_interleave(functions.shape[1])
        last, to_input = len(self.network.nodes) - 1, self.method != "ibp"
        return minimum(self.network, bounds, region, last, functions.flatten(0, 1), sample, to_input=to_input).reshape(
            functions.shape[:2]
        )

    @property
    def _classes(self) -> int:
        return self.network.nodes[-1].shape[0]

    def _batches(self) -> Iterator[slice]:
        size = max(1, NUMBERS // self.network.total)
        return (slice(start, start + size) for start in range(0, len(self.x), size))


def _differences(y: Labels, classes: int) -> Float[Tensor, "batch others classes"]:
    """`e_y - e_j` for every class j other than y."""
    other = torch.arange(classes - 1, device=y.device).expand(len(y), -1)
    other = other + (other >= y[:, None])
    return differences(classes, torch.empty(0, dtype=torch.float64, device=y.device))[y[:, None], other]


def _validated(model: Any, x: Points, y: Labels | None, geometry: Ball, method: str) -> Problem:
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    check_region(geometry)
    with validated_inputs(model, x, y, geometry) as inputs:
        predictive = inputs.predictive.predictive
    network, logits = translate(network_of(predictive), x), predict(predictive, x).scores
    problem = Problem(network, x, logits.argmax(1) if y is None else y, geometry, method)
    at_point = replace(problem, geometry=Ball(geometry.norm, 0.0, geometry.box), method="ibp")
    lower, upper = at_point.bounds(problem.radii(0.0))
    require(
        bool(((lower <= logits) & (logits <= upper)).all()),
        "cannot bound this network: its logits are not those that its layers give, beyond rounding; it may be random, "
        "or behave differently from input to input.",
    )
    return problem


def rounded_down(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the largest number of this precision that is not above the value."""
    nearest = value.to(dtype)
    return torch.where(nearest > value, nearest.nextafter(torch.full_like(nearest, -math.inf)), nearest)

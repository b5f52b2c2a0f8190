"""What can be certified of a classifier: bounds of its logits, its margin, whether it is robust, and up to where."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from equipoise.attacks.inputs import validated_inputs
from equipoise.certified.network import Network, translate
from equipoise.certified.propagation import enclosures, minimum
from equipoise.certified.regions import Region, check_region
from equipoise.core.errors import EquipoiseError, require, require_integer, unknown
from equipoise.core.types import Labels, PerSample, Points, Predictive
from equipoise.geometry import Ball, Box
from equipoise.models import Single, predict

METHODS = ("ibp", "crown-ibp", "crown")
"""From the fastest to the tightest."""

NUMBERS = 2**22
"""How many numbers the layers of all samples that are bounded together may have."""


@torch.no_grad()
def certified_margin(
    model: "nn.Module | Predictive", x: Points, y: Labels | None, geometry: Ball, method: str = "crown"
) -> PerSample:
    """A lower bound of `min {f_y(z) - max_{j≠y} f_j(z) : z in ball ∩ box}` per sample, f being the logits.

    It holds for the network as it runs, see `equipoise.certified`; positive, it proves that no perturbation changes
    the prediction from y. The differences of logits are bounded as such, not as differences of bounds (Gowal et al.
    2018, Sec. 3; Zhang et al. 2020, Eq. 8). Without `y` they are those to the class predicted at `x`.

    Never smaller for `crown` or `crown-ibp` than for `ibp`. Memory stays bounded for any number of samples. Results
    do not depend on how they are batched, up to the rounding of float64. Raises `EquipoiseError` for unusable input, an
    unknown method, more than one network, and a network with a layer that cannot be bounded.
    """
    case = _admitted(model, x, y, geometry, method)
    return _rounded_down(case.margins(case.eps(geometry.eps)), x.dtype)


def certified(
    model: "nn.Module | Predictive", x: Points, y: Labels | None, geometry: Ball, method: str = "crown"
) -> Bool[Tensor, " batch"]:
    """Which samples are classified as `y` (without labels: as at `x`) on all of ball ∩ box, with proof.

    Their share is a lower bound of the robust accuracy. Raises what `certified_margin` raises.
    """
    return certified_margin(model, x, y, geometry, method) > 0


@torch.no_grad()
def bounds(
    model: "nn.Module | Predictive", x: Points, geometry: Ball, method: str = "crown"
) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
    """The smallest and the largest value that each logit may take on ball ∩ box: bounds from below and above.

    For margins ask `certified_margin`, which is tighter. Raises what it raises.
    """
    case = _admitted(model, x, None, geometry, method)
    lower, upper = case.bounds(case.eps(geometry.eps))
    return _rounded_down(lower, x.dtype), -_rounded_down(-upper, x.dtype)


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
    """A radius per sample within which its prediction is proven to stay `y` (without labels: as it is at `x`).

    The result is the largest eps tried at which `certified_margin` was positive, within `2^-halvings upper` of where it
    ceases to be; `upper` itself if that is certified; 0 for a misclassified sample. It bounds the distance to the
    nearest adversarial example from below, as `minimal_l2` and FAB do from above. Radii are doubled from
    `2^-halvings upper` on, because small ones cost least, and bisected once one is too large: `halvings + 1`
    certificates, or up to twice as many where only large radii are too large. Raises what `certified_margin` raises,
    and for an `upper` or a number of `halvings` out of range.
    """
    require(0 < upper < math.inf, f"upper = {upper} is not a radius to search below: expected a positive number.")
    require_integer("halvings", halvings, 1)
    case = _admitted(model, x, y, Ball(norm, 0.0, box), method)
    whole = 2**halvings

    def eps(parts: Tensor) -> PerSample:
        """In the precision of the result, so that exactly the radii that were certified are returned."""
        return (upper * (parts.double() / whole)).to(x.dtype)

    low = torch.zeros(len(x), dtype=torch.int64, device=x.device)  # in parts of `upper`
    high = torch.full_like(low, whole + 1)  # not certified, or beyond
    while len(rows := (high - low > 1).nonzero()[:, 0]):
        halfway, doubled = (low[rows] + high[rows]) // 2, (2 * low[rows]).clamp(1, whole)
        tried = torch.where(high[rows] > whole, doubled, halfway)
        holds = case.of(rows).margins(eps(tried)) > 0
        low[rows], high[rows] = torch.where(holds, tried, low[rows]), torch.where(holds, high[rows], tried)
    return eps(low)


@dataclass(frozen=True)
class _Case:
    """A network and samples whose logits can be bounded."""

    network: Network
    x: Points
    y: Labels
    geometry: Ball
    method: str

    def of(self, rows: Tensor) -> "_Case":
        """Some of the samples."""
        return replace(self, x=self.x[rows], y=self.y[rows])

    def eps(self, eps: float) -> PerSample:
        """The same radius for every sample."""
        return torch.full((len(self.x),), eps, dtype=torch.float64, device=self.x.device)

    def margins(self, eps: PerSample) -> PerSample:
        """Lower bounds of the margins, in float64."""
        found = []
        for piece in self._pieces():
            y = self.y[piece]
            rows = _differences(y, self._classes)
            found.append(self._minima(piece, eps[piece], rows).amin(1))
        return torch.cat(found)

    def bounds(self, eps: PerSample) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of the logits, in float64."""
        one = torch.eye(self._classes, dtype=torch.float64, device=self.x.device)
        found = [
            self._minima(piece, eps[piece], torch.cat([one, -one]).expand(len(self.x[piece]), -1, -1))
            for piece in self._pieces()
        ]
        lower, upper = torch.cat(found).split(self._classes, 1)
        return lower, -upper

    def _minima(
        self, piece: slice, eps: PerSample, rows: Float[Tensor, "batch rows classes"]
    ) -> Float[Tensor, "batch rows"]:
        """Lower bounds of linear functions of the logits, the same number for every sample."""
        region = Region.of(self.x[piece], eps, self.geometry.norm, self.geometry.box)
        known = enclosures(self.network, region, refine=self.method == "crown")
        sample = torch.arange(len(rows), device=rows.device).repeat_interleave(rows.shape[1])
        last = len(self.network.nodes) - 1
        found = minimum(self.network, known, region, last, rows.flatten(0, 1), sample, back=self.method != "ibp")
        return found.reshape(rows.shape[:2])

    @property
    def _classes(self) -> int:
        return self.network.nodes[-1].shape[0]

    def _pieces(self) -> Iterator[slice]:
        at_once = max(1, NUMBERS // self.network.total)
        return (slice(k, k + at_once) for k in range(0, len(self.x), at_once))


def _differences(y: Labels, classes: int) -> Float[Tensor, "batch others classes"]:
    """`e_y - e_j` for every class j other than y."""
    one = torch.eye(classes, dtype=torch.float64, device=y.device)
    other = torch.arange(classes - 1, device=y.device).expand(len(y), -1)
    other = other + (other >= y[:, None])
    return one[y][:, None] - one[other]


def _admitted(model: Any, x: Points, y: Labels | None, geometry: Ball, method: str) -> _Case:
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    check_region(geometry)
    with validated_inputs(model, x, y, geometry) as admission:
        predictive = admission.predictive.predictive
    if not isinstance(predictive, Single):
        raise EquipoiseError(
            f"cannot bound a {type(predictive).__name__}: certificates are for one network that returns logits."
        )
    require(predictive.outputs == "logits", "cannot bound probabilities: certificates need a network's logits.")
    case = _Case(translate(predictive.module, x), x, x.new_zeros(len(x), dtype=torch.int64), geometry, method)
    logits = predict(predictive, x).scores
    lower, upper = _Case(case.network, x, case.y, Ball(geometry.norm, 0.0, geometry.box), "ibp").bounds(case.eps(0.0))
    require(
        bool(((lower <= logits) & (logits <= upper)).all()),
        "cannot bound this network: its logits are not those that its layers give, beyond rounding; it may be random, "
        "or behave differently from input to input.",
    )
    return _Case(case.network, x, logits.argmax(1) if y is None else y, geometry, method)


def _rounded_down(value: Tensor, dtype: torch.dtype) -> Tensor:
    nearest = value.to(dtype)
    return torch.where(nearest > value, nearest.nextafter(torch.full_like(nearest, -math.inf)), nearest)

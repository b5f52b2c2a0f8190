"""Bounds of what a network computes on a region: intervals forwards, linear bounds backwards.

Interval bound propagation (Gowal et al. 2018) passes the interval of every coordinate through the layers. CROWN (Zhang
et al. 2018) bounds a linear function of a layer's output by linear functions of the layer's input, layer by layer back
to the network's input: for coefficients A,

    A (W z + b + δ) >= (A W) z + A b - |A| ‖δ‖       for an affine layer whose evaluation errs by at most ‖δ‖
    A f(z)          >= (A⁺ α + A⁻ β) z + A⁺ κ + A⁻ γ  for a function with  α z + κ <= f(z) <= β z + γ

and in the end takes the minimum over the region.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equipoise.bounds.curves import Curve
from equipoise.bounds.layers import Affine, Lines, Max, ReLU, Sum
from equipoise.bounds.network import Layer, Network
from equipoise.bounds.regions import Region

NUMBERS = 2**17
"""Maximum size of the coefficients in the widest layer that are propagated back together: what fits in the cache."""


@dataclass(frozen=True)
class Enclosure:
    """Bounds of the output of one layer, for every sample."""

    lower: Tensor
    """The lower bounds."""
    upper: Tensor
    """The upper bounds."""
    rounding: Tensor | None = None
    """By how much rounding may change the output, where the layer rounds."""
    lines: Lines | None = None
    """The lines that bound it, for a function that is not affine."""


def enclosures(network: Network, region: Region, refine: bool, lines: bool = True) -> list[Enclosure]:
    """Return bounds of every layer's output on the region: by intervals, and with `refine` by CROWN where it matters.

    It matters where a ReLU is undecided (`l < 0 < u`), before other functions, and for what a maximum compares, unless
    it is negative. Without `lines`, which cost as much as the intervals, linear bounds cannot pass back to the input.
    """
    bounds: list[Enclosure] = []
    for i in range(len(network.nodes)):
        bounds.append(_by_intervals(network, i, bounds, region, lines))
        exact = region.norm == "linf" and network.separate.issuperset(network.nodes[i].parents)
        if refine and i in network.decided and not exact:
            bounds[i] = _refined(network, i, bounds, region)
    return bounds


def _by_intervals(network: Network, i: int, bounds: list[Enclosure], region: Region, lines: bool) -> Enclosure:
    layer, parents = network.nodes[i].layer, network.nodes[i].parents
    if layer is None:
        return Enclosure(*region.interval())
    lower, upper = bounds[parents[0]].lower, bounds[parents[0]].upper
    if not lines and isinstance(layer, Affine) and layer.is_windows:
        return bounds[parents[0]]  # which the maximum after it pools
    if not lines and isinstance(layer, Max):
        return Enclosure(layer.pool(lower), layer.pool(upper))
    if isinstance(layer, ReLU | Curve | Max):
        return Enclosure(*layer.interval(lower, upper), lines=layer.lines(lower, upper) if lines else None)
    if isinstance(layer, Sum):
        lowers, uppers = [bounds[p].lower for p in parents], [bounds[p].upper for p in parents]
        (lower, upper), rounding = layer.interval(lowers, uppers), layer.rounding(lowers, uppers, network.unit)
    elif layer.roundings * network.unit == 0:
        return Enclosure(*layer.interval(lower, upper))
    else:
        rounding = layer.rounding(lower, upper, network.unit)
        lower, upper = layer.interval(lower, upper)
    return Enclosure(lower - rounding, upper + rounding, rounding)


def _refined(network: Network, i: int, bounds: list[Enclosure], region: Region) -> Enclosure:
    shape = bounds[i].lower.shape
    lower, upper = bounds[i].lower.flatten(1), bounds[i].upper.flatten(1)
    undecided = upper > 0 if i in network.compared else (lower < 0) & (upper > 0)
    undecided = lower < upper if i in network.curved else undecided
    sample, unit = undecided.nonzero(as_tuple=True)
    if i in network.first:
        minima, width = minima_from_input(network, i, bounds, region), network.first[i].values.shape[1]
    else:
        minima, width = minima_by_layers(network, i, bounds, region), network.widest
    size = max(1, NUMBERS // width)
    for bound, sign, tighter in ((lower, 1.0, torch.maximum), (upper, -1.0, torch.minimum)):
        for start in range(0, len(sample), size):
            s, u = sample[start : start + size], unit[start : start + size]
            bound[s, u] = tighter(bound[s, u], sign * minima(sign, s, u))
    return Enclosure(lower.reshape(shape), upper.reshape(shape), bounds[i].rounding)


Minima = Callable[[float, Tensor, Tensor], Tensor]
"""Lower bounds of `sign` times units of a node; takes the sign, and for each unit its sample and its number."""


def minima_by_layers(network: Network, i: int, bounds: list[Enclosure], region: Region) -> Minima:
    """Return the lower bounds by linear functions that pass back to the input layer by layer."""
    shape = network.nodes[i].shape

    def minima(sign: float, sample: Tensor, unit: Tensor) -> Tensor:
        rows = region.centre.new_zeros(len(sample), shape.numel()).scatter_(1, unit[:, None], sign)
        return minimum(network, bounds, region, i, rows.reshape(-1, *shape), sample)

    return minima


def minima_from_input(network: Network, i: int, bounds: list[Enclosure], region: Region) -> Minima:
    """Return the lower bounds of units that are affine functions of a few coordinates of the input each."""
    slopes, constant = network.first[i], region.centre.new_zeros(1, *network.nodes[0].shape)
    rounding = torch.zeros_like(region.centre)
    for j in slopes.chain:
        layer, own = network.nodes[j].layer, bounds[j].rounding
        assert isinstance(layer, Affine)
        constant, rounding = layer.linear(constant) + layer.shift, layer.magnitude(rounding)
        rounding = rounding if own is None else rounding + own
    constant, rounding = constant.flatten(), rounding.flatten(1)

    def minima(sign: float, sample: Tensor, unit: Tensor) -> Tensor:
        linear = region.sparse_minimum(sign * slopes.values[unit], slopes.index[unit], sample)
        return linear + sign * constant[unit] - rounding[sample, unit]

    return minima


def minimum(
    network: Network,
    bounds: list[Enclosure],
    region: Region,
    node: int,
    rows: Float[Tensor, "rows ..."],
    sample: Int[Tensor, " rows"],
    to_input: bool = True,
) -> Float[Tensor, " rows"]:
    """Return a lower bound of linear functions of a node's output, each for its sample: the better of `both_minima`, or
    without `to_input` the first.
    """
    by_intervals, linear = both_minima(network, bounds, region, node, rows, sample, to_input)
    return by_intervals if linear is None else torch.maximum(by_intervals, linear)


def both_minima(
    network: Network,
    bounds: list[Enclosure],
    region: Region,
    node: int,
    rows: Float[Tensor, "rows ..."],
    sample: Int[Tensor, " rows"],
    to_input: bool = True,
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"] | None]:
    """Return two lower bounds of linear functions of a node's output, each for its sample: with the intervals at the
    last layer that is not affine, as in interval propagation, and, with `to_input`, with the region at the input.
    """
    # If all rows belong to one sample, its bounds need not be copied for each.
    first = int(sample[0]) if len(sample) else 0
    owner = slice(first, first + 1) if bool((sample == first).all()) else sample
    i, pending, offset = _pass_back(network, bounds, node, {node: rows}, owner, (ReLU, Curve, Max))
    best = None
    if i > 0:
        best = offset + torch.stack([_over_intervals(a, bounds[j], owner) for j, a in pending.items()]).sum(0)
        if not to_input:
            return best, None
        _, pending, constant = _pass_back(network, bounds, i, pending, owner)
        offset = offset + constant
    last = offset + region.minimum(pending[0], owner) if 0 in pending else offset
    return (last, None) if best is None else (best, last)


def interval_minima(
    network: Network, bounds: list[Enclosure], rows: Float[Tensor, "rows classes"]
) -> Float[Tensor, "batch rows"]:
    """Return the first of `both_minima` for the same linear functions of the logits of every sample, in a network
    without roundings: two matrix products, however many samples there are.
    """
    assert network.unit == 0, "roundings are of a sample"
    last = len(network.nodes) - 1
    _, pending, offset = _pass_back(network, bounds, last, {last: rows}, slice(None), (ReLU, Curve, Max))
    total = offset
    for j, coefficients in pending.items():
        a, lower, upper = (z.flatten(1) for z in (coefficients, bounds[j].lower, bounds[j].upper))
        total = total + ((lower + upper) @ a.T - (upper - lower) @ a.T.abs()) / 2
    return total


def _pass_back(
    network: Network,
    bounds: list[Enclosure],
    node: int,
    pending: dict[int, Tensor],
    owner: "slice | Tensor",
    stop: tuple[type, ...] = (),
) -> tuple[int, dict[int, Tensor], Tensor]:
    """Pass coefficients of the outputs of nodes back to the input, or to the last node of a class to stop at: return
    its number, the coefficients there, and the sum of the constants.
    """
    pending, offset = dict(pending), torch.zeros_like(pending[max(pending)].flatten(1)[:, 0])
    for i in range(node, 0, -1):
        if i not in pending:
            continue
        if isinstance(network.nodes[i].layer, stop):
            return i, pending, offset
        coefficients, constant = _step_back(network.nodes[i].layer, bounds[i], pending.pop(i), owner)
        offset = offset + constant
        for parent, a in zip(network.nodes[i].parents, coefficients, strict=True):
            pending[parent] = pending[parent] + a if parent in pending else a
    return 0, pending, offset


def differences(classes: int, like: Tensor) -> Float[Tensor, "classes classes classes"]:
    """Return `e_y - e_j` for all classes y and j: the functions of the logits that are margins, and 0 for y = j."""
    eye = torch.eye(classes, dtype=like.dtype, device=like.device)
    return eye[:, None] - eye


def _step_back(
    layer: Layer | None, bounds: Enclosure, a: Tensor, owner: "slice | Tensor"
) -> tuple[list[Tensor], "Tensor | float"]:
    """A lower bound of linear functions of a layer's output: coefficients of each of its inputs, and a constant."""
    if bounds.lines is not None:
        assert isinstance(layer, ReLU | Curve | Max)
        below, above, intercept, floor = bounds.lines
        constant = _dot(a.clamp_max(0), intercept[owner])
        constant = constant if floor is None else constant + _dot(a.clamp_min(0), floor[owner])
        a = layer.expand(a)
        return [torch.where(a > 0, below[owner], above[owner]) * a], constant
    constant = 0.0 if bounds.rounding is None else -_dot(a.abs(), bounds.rounding[owner])
    if isinstance(layer, Sum):
        return [sign * a for sign in layer.signs], constant
    assert isinstance(layer, Affine)
    return [layer.transposed(a)], constant + _dot(a, layer.shift.expand(1, *a.shape[1:]))


def _over_intervals(a: Tensor, z: Enclosure, owner: "slice | Tensor") -> Tensor:
    return _dot(a.clamp_min(0), z.lower[owner]) + _dot(a.clamp_max(0), z.upper[owner])


def _dot(rows: Tensor, values: Tensor) -> Tensor:
    """`Σ a·v` per row, for values of each row or of all."""
    a, v = rows.flatten(1), values.flatten(1)
    return a @ v[0] if len(v) == 1 else torch.linalg.vecdot(a, v)

"""Bounds of what a network computes on a region: intervals forwards, linear bounds backwards.

Interval bound propagation (Gowal et al. 2018) takes the interval of every coordinate through layer by layer. CROWN
(Zhang et al. 2018) bounds a linear function of a layer's output by linear functions of what came before it, layer by
layer back to the input: for rows A,

    A (W z + b + δ) >= (A W) z + A b - |A| ‖δ‖       for an affine layer whose evaluation errs by at most ‖δ‖
    A f(z)          >= (A⁺ α + A⁻ β) z + A⁻ γ        for a function with  α z <= f(z) <= β z + γ

and takes the smallest value over the region in the end.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equipoise.certified.layers import Affine, Layer, Lines, Max, ReLU, Sum
from equipoise.certified.network import Network
from equipoise.certified.regions import Region

NUMBERS = 2**17
"""How many numbers the coefficients of all rows that go back together may have in the widest layer: a cache's full."""


@dataclass(frozen=True)
class Enclosure:
    """What is known of the output of one layer, for every sample."""

    lower: Tensor
    """The smallest value."""
    upper: Tensor
    """The largest value."""
    rounding: Tensor | None = None
    """How much rounding may change it, where the layer rounds."""
    lines: Lines | None = None
    """The lines that bound it, for a function that is not affine."""


def enclosures(network: Network, region: Region, refine: bool) -> list[Enclosure]:
    """What every layer may give on the region: by intervals, or if asked to `refine` by CROWN wherever it matters.

    It matters for what a ReLU cannot decide (`l < 0 < u`), and for what a maximum compares, unless it is negative.
    """
    known: list[Enclosure] = []
    for i in range(len(network.nodes)):
        known.append(_by_intervals(network, i, known, region))
        exact = region.norm == "linf" and network.separate.issuperset(network.nodes[i].parents)
        if refine and i in network.decided and not exact:
            known[i] = _by_rows(network, i, known, region)
    return known


def _by_intervals(network: Network, i: int, known: list[Enclosure], region: Region) -> Enclosure:
    layer, parents = network.nodes[i].layer, network.nodes[i].parents
    if layer is None:
        return Enclosure(*region.interval())
    lower, upper = known[parents[0]].lower, known[parents[0]].upper
    if isinstance(layer, ReLU | Max):
        return Enclosure(layer.value(lower), layer.value(upper), lines=layer.lines(lower, upper))
    if isinstance(layer, Sum):
        lowers, uppers = [known[p].lower for p in parents], [known[p].upper for p in parents]
        (lower, upper), rounding = layer.interval(lowers, uppers), layer.rounding(lowers, uppers, network.unit)
    elif layer.roundings == 0:
        return Enclosure(*layer.interval(lower, upper))
    else:
        rounding = layer.rounding(lower, upper, network.unit)
        lower, upper = layer.interval(lower, upper)
    return Enclosure(lower - rounding, upper + rounding, rounding)


def _by_rows(network: Network, i: int, known: list[Enclosure], region: Region) -> Enclosure:
    lower, upper = known[i].lower.flatten(1), known[i].upper.flatten(1)
    wanted = upper > 0 if i in network.compared else (lower < 0) & (upper > 0)
    sample, place = wanted.nonzero(as_tuple=True)
    least = _of_input(network, i, known, region) if i in network.first else _of_rows(network, i, known, region)
    width = network.first[i].values.shape[1] if i in network.first else network.widest
    for bound, sign, tighter in ((lower, 1.0, torch.maximum), (upper, -1.0, torch.minimum)):
        for piece in _pieces(len(sample), width):
            found = sign * least(sign, sample[piece], place[piece])
            bound[sample[piece], place[piece]] = tighter(bound[sample[piece], place[piece]], found)
    return Enclosure(lower.reshape(known[i].lower.shape), upper.reshape(known[i].lower.shape), known[i].rounding)


Least = Callable[[float, Tensor, Tensor], Tensor]
"""Lower bounds of units of a node, or with the sign -1 of their negatives, each for a sample."""


def _of_rows(network: Network, i: int, known: list[Enclosure], region: Region) -> Least:
    """By linear functions that go back to the input layer by layer."""
    shape = network.nodes[i].shape

    def least(sign: float, sample: Tensor, place: Tensor) -> Tensor:
        rows = region.centre.new_zeros(len(sample), shape.numel()).scatter_(1, place[:, None], sign)
        return minimum(network, known, region, i, rows.reshape(-1, *shape), sample)

    return least


def _of_input(network: Network, i: int, known: list[Enclosure], region: Region) -> Least:
    """Of units that are affine functions of the input, from the few coordinates that each looks at."""
    slopes, constant = network.first[i], region.centre.new_zeros(1, *network.nodes[0].shape)
    rounding = torch.zeros_like(region.centre)
    for j in slopes.chain:
        layer, own = network.nodes[j].layer, known[j].rounding
        assert isinstance(layer, Affine)
        constant, rounding = layer.linear(constant) + layer.shift, layer.magnitude(rounding)
        rounding = rounding if own is None else rounding + own
    constant, rounding = constant.flatten(), rounding.flatten(1)

    def least(sign: float, sample: Tensor, place: Tensor) -> Tensor:
        found = region.minimum_of_few(sign * slopes.values[place], slopes.index[place], sample)
        return found + sign * constant[place] - rounding[sample, place]

    return least


def minimum(
    network: Network,
    known: list[Enclosure],
    region: Region,
    node: int,
    rows: Float[Tensor, "rows ..."],
    sample: Int[Tensor, " rows"],
    back: bool = True,
) -> Float[Tensor, " rows"]:
    """A lower bound of linear functions of a node's output, each for the sample it belongs to.

    It is the better one of two: at the last layer that is not affine the intervals are put in, which alone is what
    interval propagation says; and, if asked to go `back`, at the input the region.
    """
    # With all rows from one sample its bounds need not be copied for each.
    first = int(sample[0]) if len(sample) else 0
    owner = slice(first, first + 1) if bool((sample == first).all()) else sample
    best, offset = None, rows.new_zeros(len(rows))
    pending: dict[int, Tensor] = {node: rows}
    for i in range(node, 0, -1):
        if i not in pending:
            continue
        if best is None and isinstance(network.nodes[i].layer, ReLU | Max):
            best = offset + torch.stack([_least(a, known[j], owner) for j, a in pending.items()]).sum(0)
            if not back:
                return best
        parts, constant = _step_back(network.nodes[i].layer, known[i], pending.pop(i), owner)
        offset = offset + constant
        for parent, part in zip(network.nodes[i].parents, parts, strict=True):
            pending[parent] = pending[parent] + part if parent in pending else part
    last = offset + region.minimum(pending[0], owner) if 0 in pending else offset
    return last if best is None else torch.maximum(best, last)


def _step_back(
    layer: Layer | None, here: Enclosure, a: Tensor, owner: "slice | Tensor"
) -> tuple[list[Tensor], "Tensor | float"]:
    """Rows of coefficients of a layer's inputs, and the constant of each, that together are no more than rows of its
    output.
    """
    if here.lines is not None:
        assert isinstance(layer, ReLU | Max)
        below, above, intercept = (line[owner] for line in here.lines)
        constant, a = _dot(a.clamp_max(0), intercept), layer.back(a)
        return [torch.where(a > 0, below, above).mul_(a)], constant
    constant = 0.0 if here.rounding is None else -_dot(a.abs(), here.rounding[owner])
    if isinstance(layer, Sum):
        return [sign * a for sign in layer.signs], constant
    assert isinstance(layer, Affine)
    return [layer.transposed(a)], constant + _dot(a, layer.shift.expand(1, *a.shape[1:]))


def _least(rows: Tensor, z: Enclosure, owner: "slice | Tensor") -> Tensor:
    """The smallest value of a linear function over intervals."""
    return _dot(rows.clamp_min(0), z.lower[owner]) + _dot(rows.clamp_max(0), z.upper[owner])


def _dot(rows: Tensor, values: Tensor) -> Tensor:
    """`Σ a·v` per row, for values of each row or of all."""
    a, v = rows.flatten(1), values.flatten(1)
    return a @ v[0] if len(v) == 1 else torch.linalg.vecdot(a, v)


def _pieces(rows: int, widest: int) -> Iterator[slice]:
    at_once = max(1, NUMBERS // widest)
    return (slice(k, k + at_once) for k in range(0, rows, at_once))

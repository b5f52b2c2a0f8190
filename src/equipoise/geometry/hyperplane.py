"""The shortest way onto a hyperplane within the box.

Of the points `{z ∈ box : w·z = b}` the one nearest to `x`, per row; where the plane misses the box, the point of the
box nearest to the plane. With the weights `a = |w|`, the room `r` of each coordinate in the direction in which `w·z`
goes towards `b`, and the missing amount `c = |b - w·x|`, the lengths of the coordinates' moves are

    Linf   min(t, r)        with  Σ a·min(t, r) = c
    L2     min(t·a, r)      with  Σ a·min(t·a, r) = c
    L1     r for the largest weights, in descending order, until Σ a·r = c; what is missing for the last one that moves

(Croce & Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack", Eqs. 5-6.) For Linf
and L2 t is found without a sort (`equipoise.geometry.water_filling`).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.geometry.ball import Box
from equipoise.geometry.water_filling import Column, Rows, lengths, level
from equipoise.kernels import native

FEW = 64
"""Number of the largest weights that are tried first for L1, which moves few coordinates."""


@torch.no_grad()
def move_onto(x: Rows, w: Rows, rise: Float[Tensor, " batch"], norm: str, box: Box) -> Rows:
    """The shortest move `d` in the norm (`linf`, `l2` or `l1`) with `w·d = rise` and `x + d` in the box, for `x` in it.

    Where no such move exists, the shortest of those that bring `w·d` nearest to `rise`. Weights of 0 never move.
    """
    move = native.move_onto(x, w, rise, norm, box.low, box.high)
    if move is not None:
        return move
    with torch.autocast(x.device.type, enabled=False):
        sign = w.sign().mul_(rise.sign()[:, None])
        up = (box.high - x).mul_(sign)
        room = torch.maximum(up, (box.low - x).mul_(sign), out=up).clamp_min_(0)
        if math.isinf(box.high - box.low):
            room.nan_to_num_(0.0, math.inf)  # a weight of 0 moves nowhere, walls or not
        # In units of the largest weight: the square of a weight near 1e-30 is zero in float32.
        a = w.abs()
        largest = a.amax(1, keepdim=True).clamp_min_(torch.finfo(w.dtype).tiny)
        a.div_(largest)
        missing = rise.abs()[:, None] / largest
        if norm == "l1":
            length = _fill(a, room, missing, min(FEW, a.shape[1]))
        else:
            speed = a if norm == "l2" else None
            length = lengths(level(a, speed, room, missing), speed, room)
        return length.mul_(sign)


def _fill(a: Rows, room: Rows, missing: Column, count: int) -> Rows:
    """Lengths that fill the rooms in descending order of `a` until `Σ a·length = missing`; first of `count`."""
    weight, order = torch.where(room > 0, a, 0.0).topk(count, 1)
    limit = torch.minimum(room.gather(1, order), missing / weight)  # without walls, what is missing
    gain = weight * limit
    total = gain.cumsum(1)
    remaining = missing - (total - gain)
    # Rounding left over from a full sum, divided by a weight near 0, must not become a long move.
    wanted = (weight > 0) & (remaining > 8 * torch.finfo(a.dtype).eps * missing)
    length = torch.where(wanted, torch.minimum(remaining / weight, limit), 0.0)
    length = torch.zeros_like(a).scatter(1, order, length)
    if count < a.shape[1]:
        more = ((total[:, -1:] < missing) & (weight[:, -1:] > 0))[:, 0].nonzero()[:, 0]
        if len(more):
            length[more] = _fill(a[more], room[more], missing[more], a.shape[1])
    return length

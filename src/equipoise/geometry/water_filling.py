"""Water-filling: the root t of `Σ gain·min(t·speed, room) = amount`, per row.

The left-hand side is increasing, concave and piecewise linear in t, so Newton's method from t = 0 approaches the root
from below and passes a kink at every step but the last: it is exact up to rounding, needs no sort, and takes about five
steps.
"""

import torch
from jaxtyping import Float
from torch import Tensor

Rows = Float[Tensor, "batch features"]
Column = Float[Tensor, "batch 1"]

CHECK_EVERY = 8
"""Newton steps between two tests for convergence on an accelerator, where a test waits for the device."""


def lengths(t: Column, speed: Rows | None, room: Rows, out: Rows | None = None) -> Rows:
    """`min(t·speed, room)`; no speed is a speed of 1."""
    if speed is None:
        return torch.minimum(t, room, out=out)
    reached = torch.mul(t, speed, out=out)
    return torch.minimum(reached, room, out=reached)


def level(gain: Rows | None, speed: Rows | None, room: Rows, amount: Column) -> Column:
    """The root t, or the largest number where there is no root; without a gain it is 1, and so is the speed."""
    small, never = 8 * torch.finfo(room.dtype).eps, torch.finfo(room.dtype).max
    root, index = torch.zeros_like(amount), torch.arange(len(room), device=room.device)
    t, moving = root, torch.ones_like(amount, dtype=torch.bool)
    slopes = gain if speed is None else speed if gain is None else gain * speed
    every = 1 if room.device.type == "cpu" else CHECK_EVERY
    # Buffers: new memory at every step would cost more than the arithmetic.
    length, product = torch.empty_like(room), torch.empty_like(room)
    for step in range(room.shape[1] + 2):
        length = lengths(t, speed, room, length)
        held = (length if gain is None else torch.mul(gain, length, out=product)).sum(1, keepdim=True)
        missing = amount - held
        rising = torch.lt(length, room, out=product) if slopes is None else length.lt_(room).mul_(slopes)
        slope = rising.sum(1, keepdim=True)
        further = torch.where(slope > 0, t + missing / slope, never).clamp_max_(never)
        moving = moving & (missing > small * amount) & (further > t * (1 + small))
        t = torch.where(moving, further, t)
        if (step + 1) % every == 0:
            active = moving[:, 0].nonzero()[:, 0]
            if len(active) == 0:
                break
            if 2 * len(active) <= len(index):
                root[index] = t
                index, t, moving, amount, room = (v[active] for v in (index, t, moving, amount, room))
                gain, speed, slopes = (None if v is None else v[active] for v in (gain, speed, slopes))
                length, product = length[: len(active)], product[: len(active)]
    root[index] = t
    return root

"""The shortest way onto a hyperplane within the box, by a kernel of our own (`plane.c`)."""

import ctypes

import torch
from torch import Tensor

from equipoise.kernels.native.build import library, place, shared


def move_onto(x: Tensor, w: Tensor, rise: Tensor, norm: str, low: float, high: float) -> Tensor | None:
    """What `equipoise.geometry.hyperplane.move_onto` computes, for rows of float32 on a CPU in Linf and L2; None for
    others, and where there are no kernels.
    """
    rows = (x, w, rise)
    fits = norm in ("linf", "l2") and all(one.device.type == "cpu" and one.dtype == torch.float32 for one in rows)
    kernels = library() if fits and x.numel() else None
    if kernels is None:
        return None
    a, b, c = (one.contiguous() for one in rows)
    found = torch.empty_like(a)
    limits = (ctypes.c_int64(a.shape[1]), ctypes.c_float(low), ctypes.c_float(high), int(norm == "l2"))

    def some(first: int, count: int) -> int:
        places = (place(one, first) for one in (a, b, c, found))
        return kernels.move(*places, ctypes.c_int64(count), *limits)

    shared(len(a), 1, some)
    return found

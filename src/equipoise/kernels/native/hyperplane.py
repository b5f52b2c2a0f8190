"""The shortest move onto a hyperplane within the box, by a C kernel (`hyperplane.c`)."""

import ctypes

import torch
from torch import Tensor

from equipoise.kernels.native.build import address, library, run_threaded


def move_onto(x: Tensor, w: Tensor, rise: Tensor, norm: str, low: float, high: float) -> Tensor | None:
    """Compute `equipoise.geometry.hyperplane.move_onto` for float32 rows on a CPU in Linf and L2. None for other
    tensors and norms, and without kernels.
    """
    is_supported = norm in ("linf", "l2") and all(
        tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in (x, w, rise)
    )
    kernels = library() if is_supported and x.numel() else None
    if kernels is None:
        return None
    x, w, rise = x.contiguous(), w.contiguous(), rise.contiguous()
    move = torch.empty_like(x)
    options = (ctypes.c_int64(x.shape[1]), ctypes.c_float(low), ctypes.c_float(high), int(norm == "l2"))

    def run(first: int, count: int) -> int:
        rows = (address(tensor, first) for tensor in (x, w, rise, move))
        return kernels.shortest_move(*rows, ctypes.c_int64(count), *options)

    run_threaded(len(x), 1, run)
    return move

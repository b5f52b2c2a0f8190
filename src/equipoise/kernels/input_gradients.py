"""Faster input gradients of convolutional networks on a CPU, without changing the network.

A `TorchFunctionMode` intercepts the network's operations and replaces those that have a faster version in
`equipoise.kernels._backward_kernels`: the gradients of convolutions, of batch-norm with running statistics and of max
pooling. Values agree up to rounding. For use inside an ascent, where weights are constants.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch._C._autograd import _top_saved_tensors_default_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from equipoise.kernels._backward_kernels import (
    FEW_CHANNELS,
    Im2colConv,
    MaxPool2x2,
    RunningBatchNorm,
    TiledGradientConv,
    max_pool_2x2,
)
from equipoise.kernels.torch_calls import BatchNorm, Conv2d, MaxPool2d, pair

MANY_FILTERS = 32
"""Number of output channels from which a convolution on a CPU is faster in channels-last order."""


def _has_bf16_matrix_units() -> bool:
    return torch.cpu._is_amx_tile_supported()


def faster_in_bf16(filters: int) -> bool:
    """Whether a convolution with this many filters is faster in bf16 on this CPU. Others stay in float32 under
    autocast.
    """
    return filters >= MANY_FILTERS or _has_bf16_matrix_units()


def mostly_wide(parameters: Iterable[Tensor]) -> bool:
    """Whether most convolutions have many filters, so that channels-last order and bf16 are faster on a CPU."""
    wide = [len(weight) >= MANY_FILTERS for weight in parameters if weight.ndim == 4]
    return 2 * sum(wide) > len(wide)


def _are_constant(*parameters: Tensor | None) -> bool:
    return not (torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in parameters))


class AffineNormalization(TorchFunctionMode):
    """While active, batch-norm with running statistics is computed as `s·x + (b - s·m)`, `s = w / √(v + ε)`: equal up
    to rounding, and its second derivative costs a fraction of that of PyTorch's kernel.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm and (norm := BatchNorm(*args, **kwargs)).uses_running_statistics:
            return _affine(norm)
        return func(*args, **kwargs)


def _affine(norm: BatchNorm) -> Tensor:
    assert norm.running_mean is not None and norm.running_var is not None
    slope = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    offset = (0 if norm.bias is None else norm.bias) - slope * norm.running_mean
    shape = (-1, *[1] * (norm.input.ndim - 2))
    return torch.addcmul(offset.reshape(shape), slope.reshape(shape), norm.input)


class FastInputGradients(TorchFunctionMode):
    """While active, `conv2d`, `batch_norm` and `max_pool2d` on a CPU have faster gradients with respect to their input
    wherever these apply.

    They apply where parameters need no gradient: to convolutions with dilation 1 and one group that have few input
    channels, stride 1 and a padding smaller than the kernel, or, on a CPU with bf16 matrix units, are in bf16 with a
    weight at least twice as large as the input; to batch-norm with running statistics; and to 2×2 max pooling of images
    with even sides in the default memory layout (in channels-last order PyTorch is fast).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, replacement = kwargs or {}, _REPLACEMENTS.get(func)
        # A vectorised ensemble has its own rules for these operations. Gradient checkpointing saves nothing: it repeats
        # the operations outside of this mode and expects the same intermediate tensors.
        others = _are_functorch_transforms_active() or _top_saved_tensors_default_hooks(True) is not None
        result = None if replacement is None or others else replacement(*args, **kwargs)
        return func(*args, **kwargs) if result is None else result


# Each of the following takes the arguments of PyTorch's function, and returns None where it does not apply.


def _convolution(*args: Any, **kwargs: Any) -> Tensor | None:
    call = Conv2d(*args, **kwargs)
    input, weight, bias = call[:3]
    autocast = input.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if autocast and not faster_in_bf16(len(weight)):
        with torch.autocast("cpu", enabled=False):
            in_float32 = (input.float(), weight.float(), None if bias is None else bias.float(), *call[3:])
            result = _convolution(*in_float32)
            return torch.conv2d(*in_float32) if result is None else result
    stride, padding = pair(call.stride), pair(call.padding)
    plain = input.ndim == 4 and input.device.type == "cpu" and call.groups == 1 and pair(call.dilation) == (1, 1)
    if not plain or stride is None or padding is None or not _are_constant(weight, bias):
        return None
    large = input.dtype == weight.dtype == torch.bfloat16 and weight.numel() >= 2 * input.numel()
    if large and input.requires_grad and _has_bf16_matrix_units():
        return Im2colConv.apply(input, weight, bias, stride, padding)
    narrow = all(p < k for p, k in zip(padding, weight.shape[2:], strict=True))
    tiled = input.requires_grad and stride == (1, 1) and weight.shape[1] <= FEW_CHANNELS and narrow
    return TiledGradientConv.apply(input, weight, bias, padding) if tiled else None


def _pooling(*args: Any, **kwargs: Any) -> Tensor | None:
    call = MaxPool2d(*args, **kwargs)
    x = call.input
    on_cpu = x.ndim == 4 and x.device.type == "cpu" and x.is_contiguous()
    if not (on_cpu and x.shape[2] % 2 == x.shape[3] % 2 == 0 and call.is_2x2):
        return None
    return MaxPool2x2.apply(x) if x.requires_grad else max_pool_2x2(x)


def _normalization(*args: Any, **kwargs: Any) -> Tensor | None:
    call = BatchNorm(*args, **kwargs)
    input, *parameters = call[:5]
    applies = call.uses_running_statistics and input.requires_grad and input.device.type == "cpu"
    if not applies or not _are_constant(*parameters):
        return None
    return RunningBatchNorm.apply(input, *parameters, call.eps)


_REPLACEMENTS = {torch.conv2d: _convolution, F.max_pool2d: _pooling, F.batch_norm: _normalization}

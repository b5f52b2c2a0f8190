"""Faster input gradients of convolutional networks on a CPU, without changing the network.

A `TorchFunctionMode` intercepts the network's operations and replaces those that have a faster version in
`equipoise.kernels._backward_kernels`: the gradients of convolutions, of batch-norm with running statistics and of max
pooling, and convolutions followed by pooling. Values agree up to rounding. For use inside an ascent, where weights are
constants.
"""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
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
    PolyphaseConv,
    PolyphaseConvFunction,
    PolyphaseMax,
    RunningBatchNorm,
    TiledGradientConv,
    interleave,
    max_pool_2x2,
)
from equipoise.kernels.torch_calls import BatchNorm, Conv2d, MaxPool2d, map_leaves, pair

MANY_FILTERS = 32
"""Number of output channels from which a convolution on a CPU is faster in channels-last order."""
_FEW_CHANNELS_IN_BF16 = 16  # `FEW_CHANNELS` of pooled convolutions with few filters in bf16
RECTIFIERS: dict[Any, Callable[..., bool]] = {
    F.relu: lambda _, inplace=False: inplace,
    torch.relu: lambda _: False,
    torch.relu_: lambda _: True,
    Tensor.relu: lambda _: False,
    Tensor.relu_: lambda _: True,
}
"""The functions that compute a ReLU; each entry returns whether a call with the same arguments works in place."""


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


def _has_even_output(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> bool:
    """Whether this stride-1 convolution has even numbers of output rows and columns, in the default memory layout."""
    shapes = zip(x.shape[2:], padding, weight.shape[2:], strict=True)
    return x.is_contiguous() and weight.is_contiguous() and all((size + 2 * p - k) % 2 for size, p, k in shapes)


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


@dataclass(eq=False)
class _ConvOutput:
    """A tensor of the network that is the output of a convolution, perhaps rectified."""

    tensor: "weakref.ref[Tensor]"  # to tell it from a later one of the same id
    weight: int  # the id of its kernels
    is_polyphase: bool  # whether it holds the phases, while the network takes it for the image
    rectified: bool = False  # of phases: whether a ReLU is still to be applied
    image: Tensor | None = None  # the interleaved phases, once the network has used them otherwise than expected


class FastInputGradients(TorchFunctionMode):
    """While active, `conv2d`, `batch_norm` and `max_pool2d` on a CPU have faster gradients with respect to their input
    wherever these apply.

    They apply where parameters need no gradient: to convolutions with dilation 1 and one group that have few input
    channels, stride 1 and a padding smaller than the kernel, or, on a CPU with bf16 matrix units, are in bf16 with a
    weight at least twice as large as the input; to batch-norm with running statistics; and to 2×2 max pooling of images
    with even sides in the default memory layout (in channels-last order PyTorch is fast).

    A convolution of few filters whose output was pooled 2×2, directly or after a ReLU, is computed in its phases the
    next time. If the network then does anything else with the output, the phases are interleaved first (unless it
    returns them from the mode, or hands them to an autograd function of its own, which a mode cannot see).
    """

    def __init__(self) -> None:
        super().__init__()
        self._replacements = {
            torch.conv2d: self._convolution,
            F.max_pool2d: self._pooling,
            F.batch_norm: self._normalization,
        }
        self._outputs: dict[int, _ConvOutput] = {}  # by the id of the tensor
        self._is_pooled: dict[int, bool] = {}  # by the id of the weight; a wrong entry costs time, nothing else
        self._polyphase: dict[int, PolyphaseConv] = {}  # by the id of the weight, which they keep alive

    def __exit__(self, *error: Any) -> None:
        self._outputs.clear()
        super().__exit__(*error)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _are_functorch_transforms_active() or _top_saved_tensors_default_hooks(True) is not None:
            # A vectorised ensemble has its own rules for these operations. Gradient checkpointing saves nothing: it
            # repeats the operations outside of this mode and expects the same intermediate tensors.
            return func(*args, **kwargs)
        output = self._output(args[0]) if args else None
        if output is not None and output.image is None:
            if func in RECTIFIERS:
                return self._rectify(output, func, *args, **kwargs)
            if func is F.max_pool2d and MaxPool2d(*args, **kwargs).is_2x2:
                if output.is_polyphase:
                    return PolyphaseMax.apply(args[0], output.rectified)
                self._is_pooled.setdefault(output.weight, True)
                return self._run(func, args, kwargs)
        if self._outputs:
            return self._run(func, map_leaves(args, self._as_image), map_leaves(kwargs, self._as_image))
        return self._run(func, args, kwargs)

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        replacement = self._replacements.get(func)
        result = replacement(*args, **kwargs) if replacement else None
        return func(*args, **kwargs) if result is None else result

    def _remember(self, tensor: Tensor, weight: int, is_polyphase: bool, rectified: bool = False) -> Tensor:
        self._outputs[id(tensor)] = _ConvOutput(weakref.ref(tensor), weight, is_polyphase, rectified)
        return tensor

    def _output(self, value: Any) -> _ConvOutput | None:
        output = self._outputs.get(id(value))
        return output if output is not None and output.tensor() is value else None

    def _rectify(self, output: _ConvOutput, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Apply a ReLU; phases are only marked, as `relu(max(z)) = max(relu(z))`."""
        if not output.is_polyphase:
            return self._remember(func(x, *args, **kwargs), output.weight, is_polyphase=False)
        result = x if RECTIFIERS[func](x, *args, **kwargs) else x.view_as(x)
        return self._remember(result, output.weight, is_polyphase=True, rectified=True)

    def _as_image(self, value: Any) -> Any:
        """An argument of an operation other than the expected pooling: phases are interleaved, and the convolution is
        not computed in its phases again.
        """
        output = self._output(value)
        if output is None:
            return value
        self._is_pooled[output.weight] = False
        if not output.is_polyphase:
            return value
        if output.image is None:
            with torch.enable_grad():  # whatever the mode at the first use
                image = interleave(value)
                output.image = image.relu() if output.rectified else image
        return output.image

    # Each of the following takes the arguments of PyTorch's function, and returns None where it does not apply.

    def _convolution(self, *args: Any, **kwargs: Any) -> Tensor | None:
        call = Conv2d(*args, **kwargs)
        input, weight, bias = call[:3]
        autocast = input.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if autocast and not faster_in_bf16(len(weight)):
            with torch.autocast("cpu", enabled=False):
                in_float32 = (input.float(), weight.float(), None if bias is None else bias.float(), *call[3:])
                result = self._convolution(*in_float32)
                return torch.conv2d(*in_float32) if result is None else result
        stride, padding = pair(call.stride), pair(call.padding)
        plain = input.ndim == 4 and input.device.type == "cpu" and call.groups == 1 and pair(call.dilation) == (1, 1)
        if not plain or stride is None or padding is None or not _are_constant(weight, bias):
            return None
        large = input.dtype == weight.dtype == torch.bfloat16 and weight.numel() >= 2 * input.numel()
        if large and input.requires_grad and _has_bf16_matrix_units():
            return Im2colConv.apply(input, weight, bias, stride, padding)
        few_filters = len(weight) < MANY_FILTERS
        max_channels = _FEW_CHANNELS_IN_BF16 if few_filters and autocast else FEW_CHANNELS
        narrow = all(p < k for p, k in zip(padding, weight.shape[2:], strict=True))
        if stride != (1, 1) or weight.shape[1] > max_channels or not narrow:
            return None
        has_phases = few_filters and _has_even_output(input, weight, padding)
        is_pooled = self._is_pooled.get(id(weight)) if has_phases else False
        if is_pooled:
            conv = self._polyphase.get(id(weight))
            if conv is None or not conv.is_current(weight, bias, padding):
                conv = self._polyphase[id(weight)] = PolyphaseConv(weight, bias, padding)
            return self._remember(PolyphaseConvFunction.apply(input, conv), id(weight), is_polyphase=True)
        result = TiledGradientConv.apply(input, weight, bias, padding) if input.requires_grad else None
        if is_pooled is None:  # not known yet
            result = torch.conv2d(input, weight, bias, padding=padding) if result is None else result
            return self._remember(result, id(weight), is_polyphase=False)
        return result

    def _pooling(self, *args: Any, **kwargs: Any) -> Tensor | None:
        call = MaxPool2d(*args, **kwargs)
        x = call.input
        on_cpu = x.ndim == 4 and x.device.type == "cpu" and x.is_contiguous()
        if not (on_cpu and x.shape[2] % 2 == x.shape[3] % 2 == 0 and call.is_2x2):
            return None
        return MaxPool2x2.apply(x) if x.requires_grad else max_pool_2x2(x)

    def _normalization(self, *args: Any, **kwargs: Any) -> Tensor | None:
        call = BatchNorm(*args, **kwargs)
        input, *parameters = call[:5]
        applies = call.uses_running_statistics and input.requires_grad and input.device.type == "cpu"
        if not applies or not _are_constant(*parameters):
            return None
        return RunningBatchNorm.apply(input, *parameters, call.eps)

"""Faster gradients with respect to the input of a convolutional network, on a CPU, for networks as they are.

A mode sees every operation of a network and computes those for which it has a faster way
(`equipoise.kernels._backward_kernels`): the gradients of convolutions, of standing batch-norm and of max pooling, and
convolutions that are pooled. Values agree up to rounding. Used inside an ascent, where weights are constants.
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
    Convolution,
    Largest,
    Normalization,
    Pooling,
    Product,
    Quartered,
    Quarters,
    pooled,
    whole,
)
from equipoise.kernels.torch_calls import BatchNorm, Conv2d, MaxPool2d, pair

MANY_FILTERS = 32
"""Output channels from which a convolution on a CPU is faster in channels-last order."""
_FEW_CHANNELS_IN_BF16 = 16  # up to so many a pooled convolution of few filters is faster in quarters in bf16
RECTIFIERS: dict[Any, Callable[..., bool]] = {
    F.relu: lambda _, inplace=False: inplace,
    torch.relu: lambda _: False,
    torch.relu_: lambda _: True,
    Tensor.relu: lambda _: False,
    Tensor.relu_: lambda _: True,
}
"""How a network rectifies, and whether in place."""


def _multiplies_matrices() -> bool:
    """Whether this CPU has units for matrices of bf16 (AMX)."""
    return torch.cpu._is_amx_tile_supported()


def faster_in_bf16(filters: int) -> bool:
    """Whether a convolution of so many filters is, on this CPU. The others stay in float32 under autocast."""
    return filters >= MANY_FILTERS or _multiplies_matrices()


def mostly_wide(parameters: Iterable[Tensor]) -> bool:
    """Whether most convolutions have many filters: channels-last order and bf16 then are faster on a CPU."""
    wide = [len(weight) >= MANY_FILTERS for weight in parameters if weight.ndim == 4]
    return 2 * sum(wide) > len(wide)


def _constant(*parameters: Tensor | None) -> bool:
    return not (torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in parameters))


def _divisible(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> bool:
    """Whether this convolution of stride 1 has even numbers of rows and columns, in the default layout."""
    shapes = zip(x.shape[2:], padding, weight.shape[2:], strict=True)
    return x.is_contiguous() and weight.is_contiguous() and all((size + 2 * p - k) % 2 for size, p, k in shapes)


class AffineNormalization(TorchFunctionMode):
    """While active, batch-norm with standing statistics is written out as `s·x + (b - s·m)`, `s = w / √(v + ε)`: the
    same up to rounding, and differentiated twice at a fraction of the price of the library's.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = _affine(BatchNorm(*args, **(kwargs or {}))) if func is F.batch_norm else None
        return func(*args, **(kwargs or {})) if found is None else found


def _affine(norm: BatchNorm) -> Tensor | None:
    if not norm.stands:
        return None
    assert norm.running_mean is not None and norm.running_var is not None
    slope = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    offset = (0 if norm.bias is None else norm.bias) - slope * norm.running_mean
    shape = (-1, *[1] * (norm.input.ndim - 2))
    return torch.addcmul(offset.reshape(shape), slope.reshape(shape), norm.input)


@dataclass(eq=False)
class _Convolved:
    """What is known of a tensor in the hands of the network: it is a convolution, perhaps rectified."""

    tensor: "weakref.ref[Tensor]"  # to tell it from a later one of the same id
    weight: int  # the id of its kernels
    in_quarters: bool  # it is not what the network takes it for
    rectified: bool = False
    put_together: Tensor | None = None  # what the network takes it for, once it has asked


class FastInputGradients(TorchFunctionMode):
    """While active, `conv2d`, `batch_norm` and `max_pool2d` on a CPU differentiate to their input the fast way wherever
    it applies.

    It applies to parameters without gradient: to convolutions with dilation 1 and one group that have few input
    channels, stride 1 and a padding smaller than the kernel, or that are in bf16 with a weight at least twice as large
    as the input, where the processor multiplies matrices of it; and to batch-norm with standing statistics. And to
    pooling over 2×2 pixels with stride 2 of images with even sides in the default layout (in channels-last order the
    library is fast).

    A convolution of few filters that went straight, or through a ReLU, into such a pooling, is computed in quarters the
    next time. Should the network do anything else with it then, the quarters are put together first (unless it hands
    them out of the mode, or to an autograd function of its own, which a mode does not see).
    """

    def __init__(self) -> None:
        super().__init__()
        self._fast = {
            torch.conv2d: self._convolution,
            F.max_pool2d: self._pooling,
            F.batch_norm: self._normalization,
        }
        self._known: dict[int, _Convolved] = {}
        self._is_pooled: dict[int, bool] = {}  # by the id of the weight; a wrong one costs time, nothing else
        self._layers: dict[int, Quartered] = {}  # by the id of the weight, which they keep

    def __exit__(self, *error: Any) -> None:
        self._known.clear()
        super().__exit__(*error)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _are_functorch_transforms_active() or _top_saved_tensors_default_hooks(True) is not None:
            # A vectorised ensemble has its own rules for these operations; gradient checkpointing, which saves nothing,
            # computes them again outside of this mode and expects to find what it found in it.
            return func(*args, **kwargs)
        known = self._recalled(args[0]) if args else None
        if known is not None and known.put_together is None:
            if func in RECTIFIERS:
                return self._rectified(known, func, *args, **kwargs)
            if func is F.max_pool2d and MaxPool2d(*args, **kwargs).halves:
                if known.in_quarters:
                    return Largest.apply(args[0], known.rectified)
                self._is_pooled.setdefault(known.weight, True)
                return self._run(func, args, kwargs)
        if self._known:
            return self._run(func, self._unwrapped(args), self._unwrapped(kwargs))
        return self._run(func, args, kwargs)

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        fast = self._fast.get(func)
        result = fast(*args, **kwargs) if fast else None
        return func(*args, **kwargs) if result is None else result

    def _remember(self, tensor: Tensor, weight: int, in_quarters: bool, rectified: bool = False) -> Tensor:
        self._known[id(tensor)] = _Convolved(weakref.ref(tensor), weight, in_quarters, rectified)
        return tensor

    def _recalled(self, value: Any) -> _Convolved | None:
        known = self._known.get(id(value))
        return known if known is not None and known.tensor() is value else None

    def _rectified(self, known: _Convolved, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Rectified, or in quarters only marked as such: the maximum can be taken first."""
        if not known.in_quarters:
            return self._remember(func(x, *args, **kwargs), known.weight, in_quarters=False)
        other = x if RECTIFIERS[func](x, *args, **kwargs) else x.view_as(x)
        return self._remember(other, known.weight, in_quarters=True, rectified=True)

    def _unwrapped(self, value: Any) -> Any:
        """Arguments of an operation that is not such a pooling: convolutions put together, not to be split again."""
        if isinstance(value, Tensor) and (known := self._recalled(value)) is not None:
            self._is_pooled[known.weight] = False
            if not known.in_quarters:
                return value
            if known.put_together is None:
                with torch.enable_grad():  # wherever it is first asked for
                    found = whole(value)
                    known.put_together = found.relu() if known.rectified else found
            return known.put_together
        if type(value) in (tuple, list):
            return type(value)(self._unwrapped(v) for v in value)
        return {k: self._unwrapped(v) for k, v in value.items()} if type(value) is dict else value

    def _convolution(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """The convolution, with the arguments of torch's own; None where this one does not apply."""
        call = Conv2d(*args, **kwargs)
        input, weight, bias = call[:3]
        half = input.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if half and not faster_in_bf16(len(weight)):
            with torch.autocast("cpu", enabled=False):
                offset = None if bias is None else bias.float()
                arguments = (input.float(), weight.float(), offset, *call[3:])
                found = self._convolution(*arguments)
                return torch.conv2d(*arguments) if found is None else found
        strides, pads = pair(call.stride), pair(call.padding)
        fits = input.ndim == 4 and input.device.type == "cpu" and call.groups == 1 and pair(call.dilation) == (1, 1)
        if not fits or strides is None or pads is None or not _constant(weight, bias):
            return None
        many = input.dtype == weight.dtype == torch.bfloat16 and weight.numel() >= 2 * input.numel()
        if many and input.requires_grad and _multiplies_matrices():
            return Product.apply(input, weight, bias, strides, pads)
        narrow = all(p < k for p, k in zip(pads, weight.shape[2:], strict=True))
        few = len(weight) < MANY_FILTERS
        most_channels = _FEW_CHANNELS_IN_BF16 if few and half else FEW_CHANNELS
        if strides != (1, 1) or weight.shape[1] > most_channels or not narrow:
            return None
        divisible = few and _divisible(input, weight, pads)
        is_pooled = self._is_pooled.get(id(weight)) if divisible else False
        if is_pooled:
            layer = self._layers.get(id(weight))
            if layer is None or not layer.is_still(weight, bias, pads):
                layer = self._layers[id(weight)] = Quartered(weight, bias, pads)
            return self._remember(Quarters.apply(input, layer), id(weight), in_quarters=True)
        result = Convolution.apply(input, weight, bias, pads) if input.requires_grad else None
        if is_pooled is None:  # that is still to be seen
            result = torch.conv2d(input, weight, bias, padding=pads) if result is None else result
            return self._remember(result, id(weight), in_quarters=False)
        return result

    def _pooling(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """The pooling, with the arguments of torch's own; None where this one does not apply."""
        call = MaxPool2d(*args, **kwargs)
        input = call.input
        fits = (
            input.ndim == 4
            and input.device.type == "cpu"
            and input.is_contiguous()
            and input.shape[2] % 2 == input.shape[3] % 2 == 0
            and call.halves
        )
        if fits and not input.requires_grad:
            return pooled(input)
        return Pooling.apply(input) if fits else None

    def _normalization(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """The batch-norm, with the arguments of torch's own; None where this one does not apply."""
        call = BatchNorm(*args, **kwargs)
        input, mean, variance, weight, bias, *_ = call
        fits = call.stands and input.requires_grad and input.device.type == "cpu"
        if not fits or not _constant(mean, variance, weight, bias):
            return None
        return Normalization.apply(input, weight, bias, mean, variance, call.eps)

"""Faster gradients with respect to the input of a convolutional network, on a CPU. Values agree up to rounding.

The gradient of a stride-1 convolution with respect to its input is itself a convolution, of the padded output
gradient with the flipped kernel: `∂L/∂x = (∂L/∂z) ⋆ flip(w)ᵀ`. With an image's one or three channels as its output it
leaves most of a vector unit idle. So a tile of t×t neighbouring pixels is computed as t² channels of a convolution of
stride t, whose kernels are the flipped one at each of the t² offsets:

    x̄[c, t·i + a, t·j + b] = Σ_o Σ_uv  z̄[o, t·i + u, t·j + v] · flip(w)[o, c, u - a, v - b]

It multiplies more zeros and is four times as fast for one channel, whose gradient was half the cost of a small
network. Max pooling over 2×2 pixels takes the larger of two neighbours and then of two rows, and remembers which; the
library's kernel looks at one pixel at a time.

Of batch-norm with standing statistics the gradient is `x̄ = w·z̄ / √(v + ε)`: batch-norm again, without mean and offset,
where the library goes on to sum over the batch what only the parameters' gradients need. And a convolution of few
pixels with many bf16 kernels, as at the end of a ResNet, is mostly the reading of kernels, which the library rearranges
in every call: one matrix product of patches and kernels takes them as they lie.

Used inside an ascent, where weights are constants.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

MANY_FILTERS = 32
"""Output channels from which a convolution on a CPU is faster in channels-last order, and in bf16; narrower stay in
float32 under autocast."""
_VECTOR = 16  # floats in a vector register: about so many channels are computed at the price of one


def _tiled_kernels(weight: Tensor, tile: int) -> Tensor:
    """The flipped and transposed kernels at every offset within a tile: channels (input channel, a, b)."""
    kernels = F.pad(weight.flip(2, 3).transpose(0, 1), (tile - 1,) * 4)
    for dim in (2, 3):
        kernels = kernels.unfold(dim, weight.shape[dim] + tile - 1, 1)
    return kernels.flip(2, 3).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.padding, ctx.size = padding, x.shape[2:]
        return F.conv2d(x, weight, bias, padding=padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (weight,) = ctx.saved_tensors
        height, width = ctx.size
        tile = math.isqrt(_VECTOR // weight.shape[1])
        if height % tile or width % tile:
            grad = F.pad(grad, (0, -width % tile, 0, -height % tile))
        padding = [k - 1 - p for k, p in zip(weight.shape[2:], ctx.padding, strict=True)]
        with torch.autocast(grad.device.type, enabled=False):  # in the precision in which the forward pass ran
            tiles = F.conv2d(grad, _tiled_kernels(weight.to(grad.dtype), tile), stride=tile, padding=padding)
        return F.pixel_shuffle(tiles, tile)[..., :height, :width], None, None, None


class _Product(torch.autograd.Function):
    """A convolution as the matrix product of all patches with all kernels, both in channels-last order."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.stride, ctx.padding, ctx.size = stride, padding, x.shape[2:]
        (top, left), kernels = padding, weight.permute(0, 2, 3, 1)
        patches = F.pad(x.permute(0, 2, 3, 1), (0, 0, left, left, top, top))
        for dim in (1, 2):
            patches = patches.unfold(dim, kernels.shape[dim], stride[dim - 1])
        patches = patches.permute(0, 1, 2, 4, 5, 3)
        z = F.linear(patches.flatten(3), kernels.flatten(1), bias)
        return z.permute(0, 3, 1, 2).clone()  # a view could not be changed in place, as a network may do

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (weight,) = ctx.saved_tensors
        (height, width), (top, left), (down, right) = ctx.size, ctx.padding, ctx.stride
        kernels = weight.permute(0, 2, 3, 1)
        patches = (grad.permute(0, 2, 3, 1) @ kernels.flatten(1)).unflatten(3, kernels.shape[1:])
        batch, rows, columns, high, wide, channels = patches.shape
        x = patches.new_zeros(batch, height + 2 * top, width + 2 * left, channels)
        for i in range(high):
            for j in range(wide):
                x[:, i : i + down * rows : down, j : j + right * columns : right] += patches[:, :, :, i, j]
        return x[:, top : top + height, left : left + width].permute(0, 3, 1, 2), None, None, None, None


class _Pooling(torch.autograd.Function):
    """Max pooling over 2×2 pixels; of equal ones the first counts, as in the library."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        left, right = x[..., 0::2], x[..., 1::2]
        columns = torch.maximum(left, right)
        upper, lower = columns[..., 0::2, :], columns[..., 1::2, :]
        ctx.save_for_backward(left < right, upper < lower)
        return torch.maximum(upper, lower)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        right, lower = ctx.saved_tensors
        return _spread(_spread(grad, lower, -2), right, -1)


def _spread(grad: Tensor, second: Tensor, dim: int) -> Tensor:
    """Twice as long in `dim`: of each pair the second gets the gradient where `second`, else the first."""
    size = list(grad.shape)
    size[dim] *= 2
    spread = grad.new_empty(size)
    first, other = spread.unflatten(dim, (-1, 2)).unbind(dim)
    torch.mul(grad, second, out=other)
    torch.sub(grad, other, out=first)
    return spread


class _Normalization(torch.autograd.Function):
    """Batch-norm with standing statistics; its gradient is the same normalization without mean and offset."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        variance: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(weight, variance)
        ctx.eps = eps
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, variance = ctx.saved_tensors
        scaled = F.batch_norm(grad, torch.zeros_like(variance), variance, weight, eps=ctx.eps)
        return scaled, None, None, None, None, None


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    return tuple(value) if isinstance(value, tuple | list) and len(value) == 2 else None


def _to_input_only(x: Tensor, *parameters: Tensor | None) -> bool:
    """Whether, on a CPU, a gradient is asked for with respect to the input and to nothing else."""
    learned = any(p is not None and p.requires_grad for p in parameters)
    return x.requires_grad and x.device.type == "cpu" and not learned


class FastInputGradients(TorchFunctionMode):
    """While active, `conv2d`, `batch_norm` and `max_pool2d` on a CPU differentiate to their input the fast way wherever
    it applies.

    It applies to parameters without gradient: to convolutions with dilation 1 and one group that have at most
    `most_channels` input channels, stride 1 and a padding smaller than the kernel, or that are in bf16 with a weight at
    least twice as large as the input; and to batch-norm with standing statistics. And to pooling over 2×2 pixels with
    stride 2 of images with even sides in the default layout (in channels-last order the library is fast).
    """

    def __init__(self, most_channels: int = 4) -> None:
        super().__init__()
        self.most_channels = most_channels
        self._fast = {
            torch.conv2d: self._convolution,
            F.max_pool2d: self._pooling,
            F.batch_norm: self._normalization,
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        fast = self._fast.get(func)
        # torch.func, as in a vectorised ensemble, has its own rules for these operations.
        result = fast(*args, **kwargs) if fast and not _are_functorch_transforms_active() else None
        return func(*args, **kwargs) if result is None else result

    def _convolution(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor | None:
        """The convolution, with the names of torch's own; None where this one does not apply."""
        if len(weight) < MANY_FILTERS and input.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                offset = None if bias is None else bias.float()
                arguments = (input.float(), weight.float(), offset, stride, padding, dilation, groups)
                found = self._convolution(*arguments)
                return torch.conv2d(*arguments) if found is None else found
        strides, pads = _pair(stride), _pair(padding)
        fits = _to_input_only(input, weight, bias) and input.ndim == 4 and groups == 1 and _pair(dilation) == (1, 1)
        if not fits or strides is None or pads is None:
            return None
        if input.dtype == weight.dtype == torch.bfloat16 and weight.numel() >= 2 * input.numel():
            return _Product.apply(input, weight, bias, strides, pads)
        narrow = all(p < k for p, k in zip(pads, weight.shape[2:], strict=True))
        if weight.shape[1] <= self.most_channels and strides == (1, 1) and narrow:
            return _Convolution.apply(input, weight, bias, pads)
        return None

    def _pooling(
        self,
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor | None:
        """The pooling, with the names of torch's own; None where this one does not apply."""
        fits = (
            input.ndim == 4
            and input.device.type == "cpu"
            and input.is_contiguous()
            and input.shape[2] % 2 == input.shape[3] % 2 == 0
            and _pair(kernel_size) == _pair(stride or kernel_size) == (2, 2)
            and (_pair(padding), _pair(dilation), return_indices) == ((0, 0), (1, 1), False)
        )
        if fits and not input.requires_grad:
            columns = torch.maximum(input[..., 0::2], input[..., 1::2])
            return torch.maximum(columns[..., 0::2, :], columns[..., 1::2, :])
        return _Pooling.apply(input) if fits else None

    def _normalization(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor | None:
        """The batch-norm, with the names of torch's own; None where this one does not apply."""
        if training or running_mean is None or running_var is None:
            return None
        if not _to_input_only(input, running_mean, running_var, weight, bias):
            return None
        return _Normalization.apply(input, weight, bias, running_mean, running_var, eps)

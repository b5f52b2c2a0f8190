"""Faster gradients with respect to the input of a small convolutional network, on a CPU. Values do not change.

The gradient of a stride-1 convolution with respect to its input is itself a convolution, of the padded output
gradient with the flipped kernel: `∂L/∂x = (∂L/∂z) ⋆ flip(w)ᵀ`. With an image's one or three channels as its output it
leaves most of a vector unit idle. So a tile of t×t neighbouring pixels is computed as t² channels of a convolution of
stride t, whose kernels are the flipped one at each of the t² offsets:

    x̄[c, t·i + a, t·j + b] = Σ_o Σ_uv  z̄[o, t·i + u, t·j + v] · flip(w)[o, c, u - a, v - b]

It multiplies more zeros and is four times as fast for one channel, whose gradient was half the cost of a small
network. Max pooling over 2×2 pixels takes the larger of two neighbours and then of two rows, and remembers which; the
library's kernel looks at one pixel at a time. Used inside an ascent, where weights are constants.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

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
        tiles = F.conv2d(grad, _tiled_kernels(weight, tile), stride=tile, padding=padding)
        return F.pixel_shuffle(tiles, tile)[..., :height, :width], None, None, None


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


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    return tuple(value) if isinstance(value, tuple | list) and len(value) == 2 else None


class FastInputGradients(TorchFunctionMode):
    """While active, `conv2d` and `max_pool2d` on a CPU differentiate to their input the fast way wherever it applies.

    It applies to convolutions of weights without gradient with at most `most_channels` input channels, stride 1,
    dilation 1, one group and a padding smaller than the kernel; and to pooling over 2×2 pixels with stride 2 of images
    with even sides in the default layout (in channels-last order the library is fast).
    """

    def __init__(self, most_channels: int = 4) -> None:
        super().__init__()
        self.most_channels = most_channels
        self._fast = {torch.conv2d: self._convolution, F.max_pool2d: self._pooling}

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
        pads = _pair(padding)
        fits = (
            input.requires_grad
            and input.ndim == 4
            and input.device.type == "cpu"
            and not weight.requires_grad
            and weight.shape[1] <= self.most_channels
            and groups == 1
            and _pair(stride) == _pair(dilation) == (1, 1)
        )
        if fits and pads and all(p < k for p, k in zip(pads, weight.shape[2:], strict=True)):
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
            input.requires_grad
            and input.ndim == 4
            and input.device.type == "cpu"
            and input.is_contiguous()
            and input.shape[2] % 2 == input.shape[3] % 2 == 0
            and _pair(kernel_size) == _pair(stride or kernel_size) == (2, 2)
            and (_pair(padding), _pair(dilation), return_indices) == ((0, 0), (1, 1), False)
        )
        return _Pooling.apply(input) if fits else None

"""A faster gradient with respect to the input of a convolution with few input channels, on a CPU.

The gradient of a stride-1 convolution with respect to its input is itself a convolution, of the padded output
gradient with the flipped kernel: `∂L/∂x = (∂L/∂z) ⋆ flip(w)ᵀ`. With an image's one or three channels as its output it
leaves most of a vector unit idle. So a tile of t×t neighbouring pixels is computed as t² channels of a convolution of
stride t, whose kernels are the flipped one at each of the t² offsets:

    x̄[c, t·i + a, t·j + b] = Σ_o Σ_uv  z̄[o, t·i + u, t·j + v] · flip(w)[o, c, u - a, v - b]

It multiplies more zeros and is four times as fast for one channel, whose gradient was half the cost of a small
network. Used inside an ascent, where weights are constants.
"""

import math
from typing import Any

import torch
from torch import Tensor
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


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    return tuple(value) if isinstance(value, tuple | list) and len(value) == 2 else None


class FastInputGradients(TorchFunctionMode):
    """While active, `conv2d` differentiates to its input the fast way wherever it applies; its values do not change.

    It applies to float CPU tensors, weights without gradient, at most `most_channels` input channels, stride 1,
    dilation 1, one group, and a padding smaller than the kernel.
    """

    def __init__(self, most_channels: int = 4) -> None:
        super().__init__()
        self.most_channels = most_channels

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        fast = self._convolution(*args, **kwargs) if func is torch.conv2d else None
        return func(*args, **kwargs) if fast is None else fast

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

"""Layers whose gradient with respect to their input, on a CPU, is written by hand. Values agree up to rounding.

The gradient of a stride-1 convolution with respect to its input is itself a convolution, of the padded output
gradient with the flipped kernel: `∂L/∂x = (∂L/∂z) ⋆ flip(w)ᵀ`. With an image's one or three channels as its output it
leaves most of a vector unit idle. So a tile of t×t neighbouring pixels is computed as t² channels of a convolution of
stride t, whose kernels are the flipped one at each of the t² offsets:

    x̄[c, t·i + a, t·j + b] = Σ_o Σ_uv  z̄[o, t·i + u, t·j + v] · flip(w)[o, c, u - a, v - b]

It multiplies more zeros and is four times as fast for one channel, whose gradient was half the cost of a small
network. Max pooling over 2×2 pixels takes the larger of two neighbours and then of two rows, and remembers which; the
library's kernel looks at one pixel at a time.

A convolution that is pooled over 2×2 pixels is computed in quarters: its outputs at even and odd rows and columns are
the channels of a convolution of stride 2, with the kernel at four offsets,

    z[(a, b, o), i, j] = (x ⋆ w)[o, 2·i + a, 2·j + b],    max pool: max over a and b,

so that pooling compares whole channels, where neighbouring pixels lie apart in memory.

Of batch-norm with standing statistics the gradient is `x̄ = w·z̄ / √(v + ε)`: batch-norm again, without mean and offset,
where the library goes on to sum over the batch what only the parameters' gradients need. And a convolution of few
pixels with many bf16 kernels, as at the end of a ResNet, is mostly the reading of kernels, which the library rearranges
in every call: on a processor with units for bf16 matrices one product of patches and kernels takes them as they lie.

The weights are constants to all of them.
"""

import math
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

FEW_CHANNELS = 4
"""Up to so many input channels convolutions are faster in tiles, and pooled ones in quarters."""
_VECTOR = 16  # floats in a vector register: about so many channels are computed at the price of one


def _tiled_kernels(weight: Tensor, tile: int) -> Tensor:
    """The flipped and transposed kernels at every offset within a tile: channels (input channel, a, b)."""
    kernels = F.pad(weight.flip(2, 3).transpose(0, 1), (tile - 1,) * 4)
    for dim in (2, 3):
        kernels = kernels.unfold(dim, weight.shape[dim] + tile - 1, 1)
    return kernels.flip(2, 3).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


class Convolution(torch.autograd.Function):
    """A convolution of stride 1, whose gradient is computed in tiles."""

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


class Product(torch.autograd.Function):
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


def pooled(x: Tensor) -> Tensor:
    """Max pooling over 2×2 pixels of images with even sides: four strided reads."""
    columns = torch.maximum(x[..., 0::2], x[..., 1::2])
    return torch.maximum(columns[..., 0::2, :], columns[..., 1::2, :])


class Pooling(torch.autograd.Function):
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


def _state(weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> tuple[Any, ...]:
    return id(weight), weight._version, id(bias), None if bias is None else bias._version, padding


class Quartered:
    """A convolution of stride 1 with even numbers of rows and columns, in quarters: `(batch, 4, filters, h/2, w/2)`."""

    def __init__(self, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> None:
        self._made_of, self._kept = _state(weight, bias, padding), (weight, bias)  # so that the ids stay their own
        self._padding = padding
        self._kernels = torch.cat([F.pad(weight, (b, 1 - b, a, 1 - a)) for a, b in product((0, 1), repeat=2)])
        self._bias = None if bias is None else bias.to(weight.dtype).repeat(4)
        self._tile = max(math.isqrt(_VECTOR // weight.shape[1]) // 2 * 2, 2)
        kernels = _tiled_kernels(weight, self._tile)
        # A tile looks at the output gradient from so many rows and columns before its own: from that pair's first.
        down, right = (k - 1 - p for k, p in zip(weight.shape[2:], padding, strict=True))
        kernels = F.pad(kernels, (right % 2, (kernels.shape[3] + right) % 2, down % 2, (kernels.shape[2] + down) % 2))
        self._adjoint = kernels.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 3, 5, 1, 2, 4).flatten(1, 3)
        self._before = (down + 1) // 2, (right + 1) // 2

    def is_still(self, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> bool:
        """Whether it is the convolution of these parameters, as they are now."""
        return self._made_of == _state(weight, bias, padding)

    def __call__(self, x: Tensor, padding: tuple[int, int] | None = None) -> Tensor:
        """The convolution, with its own padding or another."""
        padding = self._padding if padding is None else padding
        return F.conv2d(x, self._kernels, self._bias, stride=2, padding=padding).unflatten(1, (4, len(self._kept[0])))

    def gradient(self, grad: Tensor, size: tuple[int, int]) -> Tensor:
        """The gradient with respect to an input of this size, from that with respect to the quarters."""
        tile, step = self._tile, self._tile // 2
        below, beside = (
            max((math.ceil(side / tile) - 1) * step + kernel - 2 * before - pairs, 0)
            for side, kernel, before, pairs in zip(
                size, self._adjoint.shape[2:], self._before, grad.shape[3:], strict=True
            )
        )
        with torch.autocast(grad.device.type, enabled=False):  # in the precision in which the forward pass ran
            grad = F.pad(grad.flatten(1, 2), (0, beside, 0, below)) if below or beside else grad.flatten(1, 2)
            tiles = F.conv2d(grad, self._adjoint.to(grad.dtype), stride=step, padding=self._before)
        return F.pixel_shuffle(tiles, tile)[..., : size[0], : size[1]]


class Quarters(torch.autograd.Function):
    """What a `Quartered` convolution gives, with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Quartered) -> Tensor:
        ctx.layer, ctx.size = layer, x.shape[2:]
        return layer(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.layer.gradient(grad, ctx.size), None


class Largest(torch.autograd.Function):
    """The largest of the quarters, rectified if asked for; of equal ones the first counts, as in the library."""

    @staticmethod
    def forward(ctx: Any, quarters: Tensor, rectified: bool) -> Tensor:
        largest = quarters.amax(1)
        ctx.save_for_backward(quarters, largest)
        ctx.rectified = rectified
        return largest.clamp_min(0) if rectified else largest.clone()  # the caller may write over it

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        quarters, largest = ctx.saved_tensors
        left = torch.gt(largest, 0, out=torch.empty_like(grad)).mul_(grad) if ctx.rectified else grad.clone()
        spread = torch.empty_like(quarters)
        for i in range(3):
            left -= torch.eq(quarters[:, i], largest, out=spread[:, i]).mul_(left)
        spread[:, 3] = left
        return spread, None


def whole(quarters: Tensor) -> Tensor:
    """The quarters put together: `(batch, filters, h, w)`."""
    return quarters.unflatten(1, (2, 2)).permute(0, 3, 4, 1, 5, 2).flatten(4).flatten(2, 3)


class Normalization(torch.autograd.Function):
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

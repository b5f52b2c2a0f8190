"""Layers with a faster gradient with respect to their input, on a CPU. Weights count as constants; values agree with
PyTorch's up to rounding.

**Tiled input gradients.** The gradient of a stride-1 convolution with respect to its input is a convolution of the
padded output gradient with the flipped kernel, `∂L/∂x = (∂L/∂z) ⋆ flip(w)ᵀ`. With only one or three output channels it
leaves most of a vector unit idle. Tiles of t×t neighbouring pixels are therefore computed as t² channels of a
convolution of stride t, whose kernels are the flipped kernel at each of the t² offsets:

    x̄[c, t·i + a, t·j + b] = Σ_o Σ_uv  z̄[o, t·i + u, t·j + v] · flip(w)[o, c, u - a, v - b]

This multiplies by more zeros, yet is four times as fast for one channel, whose gradient was half the cost of a small
network.

**2×2 max pooling** takes the maximum of two neighbours and then of two rows, and records which; PyTorch's kernel looks
at one pixel at a time.

**Batch-norm with running statistics** has the gradient `x̄ = w·z̄ / √(v + ε)`: batch-norm again, with zero mean and
offset. PyTorch would also sum over the batch, which only the parameters' gradients need.

**Im2col.** A convolution of few pixels with many bf16 kernels, as at the end of a ResNet, spends its time on reading
the kernels, which PyTorch reorders in every call. On a CPU with bf16 matrix units one product of patches and kernels
reads them in place.
"""

import math
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

FEW_CHANNELS = 4
"""Largest number of input channels for which tiled gradients are faster."""
_VECTOR = 16  # floats in a vector register: up to that many channels cost as much as one


def _tiled_kernels(weight: Tensor, tile: int) -> Tensor:
    """The flipped and transposed kernels at every offset within a tile; channels (input channel, a, b)."""
    kernels = F.pad(weight.flip(2, 3).transpose(0, 1), (tile - 1,) * 4)
    for dim in (2, 3):
        kernels = kernels.unfold(dim, weight.shape[dim] + tile - 1, 1)
    return kernels.flip(2, 3).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


class TiledGradientConv(torch.autograd.Function):
    """A convolution of stride 1 whose input gradient is computed in tiles."""

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
        with torch.autocast(grad.device.type, enabled=False):  # in the precision of the forward pass
            tiles = F.conv2d(grad, _tiled_kernels(weight.to(grad.dtype), tile), stride=tile, padding=padding)
        return F.pixel_shuffle(tiles, tile)[..., :height, :width], None, None, None


class Im2colConv(torch.autograd.Function):
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
        return z.permute(0, 3, 1, 2).clone()  # a network may change its output in place, but not that of a view

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (weight,) = ctx.saved_tensors
        (height, width), (top, left), (down, right) = ctx.size, ctx.padding, ctx.stride
        kernels = weight.permute(0, 2, 3, 1)
        patches = (grad.permute(0, 2, 3, 1) @ kernels.flatten(1)).unflatten(3, kernels.shape[1:])
        batch, rows, columns, kernel_height, kernel_width, channels = patches.shape
        x = patches.new_zeros(batch, height + 2 * top, width + 2 * left, channels)
        for i, j in product(range(kernel_height), range(kernel_width)):
            x[:, i : i + down * rows : down, j : j + right * columns : right] += patches[:, :, :, i, j]
        return x[:, top : top + height, left : left + width].permute(0, 3, 1, 2), None, None, None, None


def max_pool_2x2(x: Tensor) -> Tensor:
    """2×2 max pooling of images with even sides, by four strided reads."""
    columns = torch.maximum(x[..., 0::2], x[..., 1::2])
    return torch.maximum(columns[..., 0::2, :], columns[..., 1::2, :])


class MaxPool2x2(torch.autograd.Function):
    """2×2 max pooling; the gradient goes to the first of equal pixels, as in PyTorch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        left, right = x[..., 0::2], x[..., 1::2]
        columns = torch.maximum(left, right)
        upper, lower = columns[..., 0::2, :], columns[..., 1::2, :]
        ctx.save_for_backward(left < right, upper < lower)
        return torch.maximum(upper, lower)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        is_right, is_lower = ctx.saved_tensors
        return _unpool_pairs(_unpool_pairs(grad, is_lower, -2), is_right, -1)


def _unpool_pairs(grad: Tensor, is_second: Tensor, dim: int) -> Tensor:
    """Double the size of `dim`; the second of each pair gets the gradient where `is_second`, else the first."""
    size = list(grad.shape)
    size[dim] *= 2
    unpooled = grad.new_empty(size)
    first, second = unpooled.unflatten(dim, (-1, 2)).unbind(dim)
    torch.mul(grad, is_second, out=second)
    torch.sub(grad, second, out=first)
    return unpooled


class RunningBatchNorm(torch.autograd.Function):
    """Batch-norm with running statistics; its gradient is the same normalisation with zero mean and offset."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor | None,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
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

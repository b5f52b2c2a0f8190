"""The layers of a translated network: affine maps, sums, and functions that lines can bound (others: `curves`).

Every layer works on tensors `(batch, ...)` of one precision, sample by sample. An affine layer `W z + b` also has
`|W| z`, by which intervals pass through it, and `A W` for coefficients `A` of its output, by which linear bounds pass
back.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from equipoise.kernels.layers import Convolution, MaxPool

Map = Callable[[Tensor], Tensor]


class Lines(NamedTuple):
    """Two lines between which a function lies: `below z + floor <= f(z) <= above z + intercept`."""

    below: Tensor
    above: Tensor
    intercept: Tensor
    floor: Tensor | None = None
    """None for a line through the origin."""


@dataclass(frozen=True)
class Affine:
    """`W z + b`."""

    linear: Map
    """`W z`."""
    magnitude: Map
    """`|W| z`."""
    transposed: Map
    """`A W`, for coefficients `A` of the output."""
    shift: Tensor
    """b, to be broadcast over a sample's output."""
    roundings: int
    """Upper bound of the number of roundings per output when a network evaluates it; 0 if it only moves numbers."""
    separate: bool = False
    """Whether every output depends on one input and every input moves one output."""
    is_windows: bool = False
    """Whether it repeats its input in windows, for a maximum over them."""

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return `W c + b ± |W| r` for the centre c and the radius r."""
        centre, radius = self.linear((lower + upper) / 2) + self.shift, self.magnitude((upper - lower) / 2)
        return centre - radius, centre + radius

    def rounding(self, lower: Tensor, upper: Tensor, unit: float) -> Tensor:
        """Return `2 k u (|W| max |z| + |b|)`, twice the bound for k roundings of relative size u in any order of
        summation.
        """
        largest = self.magnitude(torch.maximum(lower.abs(), upper.abs())) + self.shift.abs()
        return largest.mul_(2 * self.roundings * unit)


@dataclass(frozen=True)
class Sum:
    """`Σ ± z_i` of the outputs of several layers, as at the end of a residual block."""

    signs: tuple[float, ...]

    def interval(self, lower: Sequence[Tensor], upper: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the sums of the lower and of the upper ends of the `± z_i`."""
        ends = [(low, up) if sign > 0 else (-up, -low) for sign, low, up in zip(self.signs, lower, upper, strict=True)]
        return torch.stack([low for low, _ in ends]).sum(0), torch.stack([up for _, up in ends]).sum(0)

    def rounding(self, lower: Sequence[Tensor], upper: Sequence[Tensor], unit: float) -> Tensor:
        """Return `2 k u Σ max |z_i|` for the k roundings of a sum."""
        largest = [torch.maximum(low.abs(), up.abs()) for low, up in zip(lower, upper, strict=True)]
        return torch.stack(largest).sum(0).mul_(2 * (len(self.signs) - 1) * unit)


@dataclass(frozen=True)
class ReLU:
    """`max(z, αz)` for a slope α < 1: 0, or that of a leaky ReLU."""

    slope: float = 0.0
    error: float = 0.0
    """By which share of it the slope may differ when a network evaluates it."""

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the function, which is monotone: it takes bounds to bounds."""
        if self.slope == 0:
            return lower.relu(), upper.relu()
        steepest, flattest = self.slope * (1 + self.error), self.slope * (1 - self.error)
        return torch.maximum(lower, steepest * lower), torch.maximum(upper, flattest * upper)

    def lines(self, lower: Tensor, upper: Tensor) -> Lines:
        """`βz <= max(z, αz) <= αz + (1 - α) u/(u - l) (z - l)` for `l < 0 < u`, with β = 1 if u > -l, else α
        (Zhang et al. 2018, for α = 0).
        """
        positive, flattest = upper.clamp_min(0), self.slope * (1 - self.error)
        share = torch.where(lower >= 0, 1.0, positive / (positive - lower).clamp_min(torch.finfo(positive.dtype).tiny))
        above = flattest + (1 - flattest) * share
        below = torch.where(upper > -lower, share.new_ones(()), self.slope * (1 + self.error))
        return Lines(below, above, (flattest - 1) * share * lower.clamp_max(0))

    def expand(self, coefficients: Tensor) -> Tensor:
        """Return coefficients of the output in a shape that broadcasts with the slopes."""
        return coefficients


@dataclass(frozen=True)
class Max:
    """`max_i z_i` over the last dimension."""

    is_real: Tensor
    """Which entries count; the others repeat one of these, where a window is partly in the padding."""
    pool: Map
    """The same function of what the windows are made of, which is faster."""

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the function, which is monotone: it takes bounds to bounds."""
        return lower.amax(-1), upper.amax(-1)

    def lines(self, lower: Tensor, upper: Tensor) -> Lines:
        """From below the entry with the largest lower bound L. From above, as `max z <= L + Σ max(z_i - L, 0)`,

            L + Σ s_i (z_i - l_i)   with  s_i = max(u_i - L, 0) / (u_i - l_i),

        which is that entry itself if no other can exceed L; or the constant `max u`, where that is lower halfway.
        """
        best = lower.amax(-1, keepdim=True)
        below = F.one_hot(lower.argmax(-1), lower.shape[-1]).to(lower.dtype)
        excess = (upper - best).clamp_min(0) * self.is_real
        slope = ratio(excess, upper - lower)
        is_line = excess.sum(-1) / 2 <= excess.amax(-1)
        intercept = torch.where(is_line, best[..., 0] - (slope * lower).sum(-1), upper.amax(-1))
        return Lines(below, slope * is_line[..., None], intercept)

    def expand(self, coefficients: Tensor) -> Tensor:
        """Return coefficients of the output in a shape that broadcasts with the slopes."""
        return coefficients[..., None]


def ratio(numerator: Tensor, width: Tensor) -> Tensor:
    """Return the numerator by the width, and 0, without a gradient, where the width is 0."""
    return torch.where(width > 0, numerator / torch.where(width > 0, width, 1.0), 0.0)


def linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Affine:
    """`W z + b` over the last dimension."""
    w = weight.to(dtype)
    size = w.abs()
    return Affine(lambda z: z @ w.T, lambda z: z @ size.T, lambda a: a @ w, _shift(w, bias, 1), w.shape[1] + 2)


def convolution(shape: torch.Size, layer: Convolution, dtype: torch.dtype) -> Affine:
    """A two-dimensional convolution of samples of this shape."""
    w, options = layer.weight.to(dtype), (layer.stride, layer.padding, layer.dilation, layer.groups)
    size = w.abs()
    return Affine(
        lambda z: F.conv2d(z, w, None, *options),
        lambda z: F.conv2d(z, size, None, *options),
        lambda a: conv2d_input((len(a), *shape), w, a, *options),  # pyright: ignore[reportArgumentType]
        _shift(w, layer.bias, 3),
        math.prod(w.shape[1:]) + 2,
    )


def _shift(weight: Tensor, bias: Tensor | None, dimensions: int) -> Tensor:
    return weight.new_zeros(()) if bias is None else bias.to(weight.dtype).reshape(-1, *[1] * (dimensions - 1))


def scaling(scale: Tensor, shift: Tensor, roundings: int) -> Affine:
    """`scale · z + shift`, coordinate by coordinate."""
    size = scale.abs()
    return Affine(lambda z: scale * z, lambda z: size * z, lambda a: a * scale, shift, roundings, separate=True)


def average(mean: Map, shape: torch.Size, terms: int, zero: Tensor) -> Affine:
    """A linear map of samples of this shape without negative weights, such as a mean, of at most `terms` numbers."""

    def transposed(a: Tensor) -> Tensor:
        with torch.enable_grad():
            z = a.new_zeros((len(a), *shape), requires_grad=True)
            return torch.autograd.grad(mean(z), z, a, create_graph=a.requires_grad)[0]

    return Affine(mean, mean, transposed, zero, terms + 1)


def reshaping(before: torch.Size, after: torch.Size, zero: Tensor) -> Affine:
    """The same numbers in another shape."""
    there, back = (lambda z: z.reshape(len(z), *after)), (lambda a: a.reshape(len(a), *before))
    return Affine(there, there, back, zero, 0, separate=True)


def windows(shape: torch.Size, out: torch.Size, pool: MaxPool, zero: Tensor) -> tuple[Affine, Max]:
    """The windows of a max-pooling as a last dimension, and the maximum over it."""
    height, width = shape[1:]
    kernel, stride, padding, dilation = pool.kernel, pool.stride, pool.padding, pool.dilation
    # In ceil mode the last window may extend beyond the padding.
    beyond = [
        max(0, (n - 1) * s + d * (k - 1) + 1 - side - 2 * p)
        for n, s, d, k, side, p in zip(out[1:], stride, dilation, kernel, (height, width), padding, strict=True)
    ]
    plane = torch.arange(1.0, height * width + 1, dtype=torch.float64, device=zero.device).reshape(1, 1, height, width)
    plane = F.pad(plane, (padding[1], padding[1] + beyond[1], padding[0], padding[0] + beyond[0]))
    index = F.unfold(plane, kernel, dilation, stride=stride)[0].T.long() - 1
    is_real = index >= 0
    index = torch.where(is_real, index, index.amax(1, keepdim=True))
    flat, full = index.flatten(), (shape[0], *out[1:], index.shape[1])

    def gather(z: Tensor) -> Tensor:
        return z.flatten(2).index_select(2, flat).reshape(len(z), *full)

    def scatter(a: Tensor) -> Tensor:
        z = a.new_zeros(len(a), shape[0], height * width)
        return z.index_add_(2, flat, a.reshape(len(a), shape[0], -1)).reshape(len(a), *shape)

    pooled = partial(F.max_pool2d, kernel_size=kernel, stride=stride, padding=padding, dilation=dilation)
    pooled = partial(pooled, ceil_mode=pool.is_ceil)
    return Affine(gather, gather, scatter, zero, 0, is_windows=True), Max(is_real.reshape(full[1:]), pooled)

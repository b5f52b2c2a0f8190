"""The layers of a translated network: affine maps, sums, and two functions that lines can bound.

Every layer works on float64 tensors `(batch, ...)`, sample by sample. An affine layer `W z + b` also has `|W| z`, by
which intervals pass through it, and `A W` for coefficients `A` of its output, by which linear bounds pass back.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

Map = Callable[[Tensor], Tensor]
Lines = tuple[Tensor, Tensor, Tensor]
"""Slope of the lower line, which goes through the origin; slope and intercept of the upper line."""


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
    """`max(z, 0)`."""

    def value(self, z: Tensor) -> Tensor:
        """Apply the function, which is monotone: it takes bounds to bounds."""
        return z.clamp_min(0)

    def lines(self, lower: Tensor, upper: Tensor) -> Lines:
        """`αz <= max(z, 0) <= u/(u - l) (z - l)` for `l < 0 < u`, with α = 1 if u > -l, else 0 (Zhang et al. 2018)."""
        positive = upper.clamp_min(0)
        slope = torch.where(lower >= 0, 1.0, positive / (positive - lower).clamp_min(torch.finfo(positive.dtype).tiny))
        return (upper > -lower).to(slope.dtype), slope, -slope * lower.clamp_max(0)

    def expand(self, coefficients: Tensor) -> Tensor:
        """Return coefficients of the output in a shape that broadcasts with the slopes."""
        return coefficients


@dataclass(frozen=True)
class Max:
    """`max_i z_i` over the last dimension."""

    is_real: Tensor
    """Which entries count; the others repeat one of these, where a window is partly in the padding."""

    def value(self, z: Tensor) -> Tensor:
        """Apply the function, which is monotone: it takes bounds to bounds."""
        return z.amax(-1)

    def lines(self, lower: Tensor, upper: Tensor) -> Lines:
        """From below the entry with the largest lower bound L. From above, as `max z <= L + Σ max(z_i - L, 0)`,

            L + Σ s_i (z_i - l_i)   with  s_i = max(u_i - L, 0) / (u_i - l_i),

        which is that entry itself if no other can exceed L; or the constant `max u`, where that is lower halfway.
        """
        best = lower.amax(-1, keepdim=True)
        below = F.one_hot(lower.argmax(-1), lower.shape[-1]).to(lower.dtype)
        excess = (upper - best).clamp_min(0) * self.is_real
        slope = excess / (upper - lower).clamp_min(torch.finfo(lower.dtype).tiny)
        is_line = excess.sum(-1) / 2 <= excess.amax(-1)
        intercept = torch.where(is_line, best[..., 0] - (slope * lower).sum(-1), upper.amax(-1))
        return below, slope * is_line[..., None], intercept

    def expand(self, coefficients: Tensor) -> Tensor:
        """Return coefficients of the output in a shape that broadcasts with the slopes."""
        return coefficients[..., None]


Layer = Affine | Sum | ReLU | Max


def linear(weight: Tensor, bias: Tensor | None) -> Affine:
    """`W z + b` over the last dimension."""
    w = weight.double()
    size = w.abs()
    return Affine(lambda z: z @ w.T, lambda z: z @ size.T, lambda a: a @ w, _shift(w, bias, 1), w.shape[1] + 2)


def convolution(shape: torch.Size, weight: Tensor, bias: Tensor | None, options: dict[str, Any]) -> Affine:
    """A two-dimensional convolution of samples of this shape; `options` are stride, padding, dilation and groups."""
    w = weight.double()
    size = w.abs()
    return Affine(
        lambda z: F.conv2d(z, w, **options),
        lambda z: F.conv2d(z, size, **options),
        lambda a: conv2d_input((len(a), *shape), w, a, **options),
        _shift(w, bias, 3),
        math.prod(w.shape[1:]) + 2,
    )


def _shift(weight: Tensor, bias: Tensor | None, dimensions: int) -> Tensor:
    return weight.new_zeros(()) if bias is None else bias.double().reshape(-1, *[1] * (dimensions - 1))


def scaling(scale: Tensor, shift: Tensor, roundings: int) -> Affine:
    """`scale · z + shift`, coordinate by coordinate."""
    size = scale.abs()
    return Affine(lambda z: scale * z, lambda z: size * z, lambda a: a * scale, shift, roundings, separate=True)


def average(mean: Map, shape: torch.Size, terms: int, zero: Tensor) -> Affine:
    """A linear map of samples of this shape without negative weights, such as a mean, of at most `terms` numbers."""

    def transposed(a: Tensor) -> Tensor:
        with torch.enable_grad():
            z = a.new_zeros((len(a), *shape), requires_grad=True)
            return torch.autograd.grad(mean(z), z, a)[0]

    return Affine(mean, mean, transposed, zero, terms + 1)


def reshaping(before: torch.Size, after: torch.Size, zero: Tensor) -> Affine:
    """The same numbers in another shape."""
    there, back = (lambda z: z.reshape(len(z), *after)), (lambda a: a.reshape(len(a), *before))
    return Affine(there, there, back, zero, 0, separate=True)


def windows(shape: torch.Size, out: torch.Size, geometry: dict[str, Any], zero: Tensor) -> tuple[Affine, Max]:
    """The windows of a max-pooling as a last dimension, and the maximum over it. `geometry` has kernel_size, stride,
    dilation and padding.
    """
    height, width = shape[1:]
    kernel, stride, dilation, padding = (
        pair(geometry[name]) for name in ("kernel_size", "stride", "dilation", "padding")
    )
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

    return Affine(gather, gather, scatter, zero, 0), Max(is_real.reshape(full[1:]))


def pair(value: Any) -> tuple[int, int]:
    """Return an argument as a pair (vertical, horizontal); one number counts for both."""
    both = (value, value) if isinstance(value, int) else tuple(value)
    return both[0], both[-1]

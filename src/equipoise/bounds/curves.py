"""Functions of one number other than ReLUs: sigmoid, tanh, GELU, SiLU and their relatives, bounded by parallel lines.

All that is known of a function f is a bound M of its second derivative between its kinks, and where it is lowest. Over
an interval of width w the slope of both lines is that of the chord, s, and their intercepts are the extremes of
`g(z) = f(z) - s z`, taken over K + 1 equidistant points and the kinks. Between two neighbouring points, which no kink
separates, g differs from its linear interpolation by at most

    M (w/K)² / 8,

which is added: the lines hold whatever the function is, and meet it as w → 0. Where M = 0, ends and kinks suffice.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from equipoise.bounds.layers import Lines, Map, ratio
from equipoise.kernels.layers import Pointwise

PIECES = 32
"""K. The slack of a GELU over an interval of width 2 is 4e-4."""
ROUNDING = 32
"""Roundings allowed to a function, relative to the larger of 1 and |z|: several times those of PyTorch's float32."""


@dataclass(frozen=True)
class Shape:
    """What is known of a function that never falls, or falls up to `lowest` and rises from there."""

    curvature: float
    """Bound M of the second derivative between the kinks."""
    kinks: tuple[float, ...] = ()
    """Where the derivative jumps, or the second derivative is not bounded."""
    lowest: float = -math.inf
    """Where it is lowest; -inf if it never falls."""


SHAPES = {
    "sigmoid": Shape(0.0963),
    "tanh": Shape(0.7699),
    "gelu": Shape(0.7979, lowest=-0.7517915246935645),
    "gelu of tanh": Shape(0.8, lowest=-0.7524614220710162),
    "silu": Shape(0.5, lowest=-1.2784645427610738),
    "mish": Shape(0.6443, lowest=-1.1924312145154146),
    "elu": Shape(1.0, (0.0,)),
    "celu": Shape(1.0, (0.0,)),
    "selu": Shape(1.7581, (0.0,)),
    "hardswish": Shape(0.3334, (-3.0, 3.0), -1.5),
    "hardsigmoid": Shape(0.0, (-3.0, 3.0)),
    "relu6": Shape(0.0, (0.0, 6.0)),
}
"""The functions without arguments, by their names in PyTorch."""


@dataclass(frozen=True)
class Curve:
    """A function of each coordinate, as a layer."""

    function: Map
    shape: Shape
    error: float = 0.0
    """By how much its value may differ when a network evaluates it, relative to the larger of 1 and |z|."""

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return the smallest and the largest value: at the lowest point, and at an end."""
        rounding = self._rounding(lower, upper)
        lowest = torch.minimum(lower.clamp_min(self.shape.lowest), upper)
        return self.function(lowest) - rounding, torch.maximum(self.function(lower), self.function(upper)) + rounding

    def lines(self, lower: Tensor, upper: Tensor) -> Lines:
        """Return two lines of the chord's slope between which the function lies."""
        width = upper - lower
        slope = ratio(self.function(upper) - self.function(lower), width)

        def above_slope(share: Tensor) -> Tensor:
            z = lower + share * width
            return self.function(z) - slope * z

        highest, lowest = self._extremes(above_slope, lower, width)
        slack = self.shape.curvature * (width / PIECES).square() / 8 + self._rounding(lower, upper)
        return Lines(slope, slope, above_slope(highest) + slack, above_slope(lowest) - slack)

    @torch.no_grad()
    def _extremes(self, g: Callable[[Tensor], Tensor], lower: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """Where g is largest and smallest among the points, as shares of the interval."""
        pieces = PIECES if self.shape.curvature else 1
        shares = [
            *(torch.full_like(width, i / pieces) for i in range(1, pieces + 1)),
            *(ratio(kink - lower, width).clamp(0, 1) for kink in self.shape.kinks),
        ]
        highest = lowest = torch.zeros_like(width)
        largest = smallest = g(highest)
        for share in shares:
            value = g(share)
            highest, lowest = torch.where(value > largest, share, highest), torch.where(value < smallest, share, lowest)
            largest, smallest = torch.maximum(largest, value), torch.minimum(smallest, value)
        return highest, lowest

    def _rounding(self, lower: Tensor, upper: Tensor) -> Tensor | float:
        return self.error * torch.maximum(lower.abs(), upper.abs()).clamp_min(1) if self.error else 0.0

    def expand(self, coefficients: Tensor) -> Tensor:
        """Return coefficients of the output in a shape that broadcasts with the slopes."""
        return coefficients


def shape_of(layer: Pointwise) -> Shape | None:
    """Return what is known of a traced function; None for one that cannot be bounded, or not with its arguments."""
    values = [*layer.arguments, *dict(layer.options).values()]
    if layer.name == "gelu":
        return SHAPES["gelu of tanh" if "tanh" in values else "gelu"]
    numbers = [float(value) for value in values if value is not None and not isinstance(value, bool)]
    if layer.name in ("hardtanh", "clamp", "clamp_min", "clamp_max"):
        return Shape(0.0, tuple(numbers or (-1.0, 1.0)))
    return SHAPES.get(layer.name) if set(numbers) <= {1.0} else None  # alpha = 1


def curve(layer: Pointwise, unit: float) -> Curve | None:
    """Return a traced function as a layer of a network with roundings of this relative size; None as `shape_of`."""
    shape = shape_of(layer)
    return None if shape is None else Curve(layer.apply, shape, 2 * ROUNDING * unit)

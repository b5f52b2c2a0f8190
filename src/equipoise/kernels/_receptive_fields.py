"""Which outputs of a layer a change of its input reaches, and which inputs they need.

A window `[a, b)` that changes in the input of a layer with kernel extent k, stride s and padding p changes the outputs
i with

    ceil((a + p - k + 1) / s) <= i <= floor((b - 1 + p) / s),

which depend on the inputs `s·i - p, ..., s·i - p + k - 1`; so in both directions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

Span = tuple[int, int]
"""First index and the one after the last."""
Window = tuple[Span, Span]
"""Rows and columns."""


@dataclass(frozen=True)
class ReceptiveField:
    """The inputs that each output of a layer depends on, in one direction."""

    extent: int
    stride: int
    padding: int
    size: int  # of the input
    pairs: bool = False  # whether outputs are computed in pairs (0, 1), (2, 3), ...

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return (self.size + 2 * self.padding - self.extent) // self.stride + 1

    def affected(self, span: Span) -> Span:
        """The outputs that depend on these inputs, at the edges also those of padding alone; at least one."""
        first = 0 if span[0] == 0 else -((self.extent - 1 - self.padding - span[0]) // self.stride)
        last = self.outputs if span[1] == self.size else (span[1] - 1 + self.padding) // self.stride + 1
        first = min(max(first, 0), self.outputs - 1)
        last = max(min(last, self.outputs), first + 1)
        return (first // 2 * 2, (last + 1) // 2 * 2) if self.pairs else (first, last)

    def required(self, span: Span) -> tuple[Span, Span]:
        """The inputs that these outputs depend on, and the amount of padding before and after them."""
        low = span[0] * self.stride - self.padding
        high = (span[1] - 1) * self.stride - self.padding + self.extent
        inside = min(max(low, 0), self.size), min(max(high, 0), self.size)
        before = min(max(-low, 0), high - low)
        return inside, (before, high - low - before - (inside[1] - inside[0]))


Fields = tuple[ReceptiveField, ReceptiveField]
"""Vertical and horizontal."""


@lru_cache(maxsize=4096)
def propagated(fields: Fields, window: Window) -> tuple[Window, Window, Window]:
    """Return, for a changed window of a layer's input, the outputs that change, the inputs that they depend on, and the
    padding around these inputs.
    """
    changed = tuple(field.affected(span) for field, span in zip(fields, window, strict=True))
    inputs, padding = zip(*(field.required(span) for field, span in zip(fields, changed, strict=True)), strict=True)
    return changed, inputs, padding  # pyright: ignore[reportReturnType]


def covered_share(window: Window, size: Sequence[int]) -> float:
    """Return the share of an image's pixels that lie in the window."""
    return prod(b - a for a, b in window) / prod(size)

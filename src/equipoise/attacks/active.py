"""The samples that an attack still works on: a table with a row per sample, which rows leave when they are finished."""

from dataclasses import fields
from typing import Any, Generic, TypeVar

from jaxtyping import Bool, Int
from torch import Tensor

from equipoise.core.rng import Streams
from equipoise.core.types import Prediction

T = TypeVar("T", bound="SampleTable")


class SampleTable:
    """Base class of dataclasses with a row per sample, or per sample and target, of which the first field has one.

    `table[index]` is the table of some rows, and `write` sets rows by index. Fields that are no tensors, streams,
    predictions or tables, nor tuples of these, belong to all rows.
    """

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))  # pyright: ignore[reportArgumentType]

    def __getitem__(self: T, index: "Tensor | slice") -> T:
        columns = (f.name for f in fields(self))  # pyright: ignore[reportArgumentType]
        return type(self)(**{name: _select(getattr(self, name), index) for name in columns})

    def write(self, index: Tensor, **values: Any) -> None:
        """Set these fields of the rows `index`, a mask or numbers, to tensors of as many rows or to one number each."""
        for name, value in values.items():
            getattr(self, name)[index] = value


def _select(value: Any, index: "Tensor | slice") -> Any:
    if isinstance(value, tuple):
        return tuple(_select(item, index) for item in value)
    return value[index] if isinstance(value, Tensor | Streams | Prediction | SampleTable) else value


class Active(Generic[T]):
    """The rows that are still active; it decides when the finished ones leave.

    Leaving copies the other rows, which pays once fewer than the share `crowded` of them is active. To see which rows
    are finished one waits for the device, so that on an accelerator it may pay to look every `check_every` steps only.
    With `buckets` finished rows stay until the number of rows is that of a smaller bucket.
    """

    def __init__(self, rows: T, *, crowded: float = 1.0, check_every: int = 1, buckets: bool = False) -> None:
        self.rows, self.crowded, self.check_every, self.buckets = rows, crowded, check_every, buckets

    def __len__(self) -> int:
        return len(self.rows)

    def kept(self, active: int) -> int:
        """How many rows stay where so many are active: with `buckets` the next power of two, if there are that many."""
        return min(1 << (active - 1).bit_length(), len(self)) if self.buckets and active else active

    def release(self, finished: Bool[Tensor, " rows"], step: int = 0) -> tuple[T, Int[Tensor, " active"]] | None:
        """Let the finished rows leave, if it pays. Return them and the index of those that stay; None if all stay."""
        if step % self.check_every:
            return None
        active = (~finished).nonzero()[:, 0]
        if self.buckets:
            padding = self.kept(len(active)) - len(active)
            finished = finished & (finished.cumsum(0) > padding)
            active = (~finished).nonzero()[:, 0]
        if 0 < len(active) >= self.crowded * len(finished):
            return None
        left, self.rows = self.rows[finished.nonzero()[:, 0]], self.rows[active]
        return left, active

"""What a perturbation keeps of each training sample from one step to the next, such as the last perturbation of it."""

from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equipoise.core.errors import require


@dataclass
class _Column:
    """One value per sample, and for which samples it is known."""

    values: Tensor
    known: Tensor


@dataclass
class SampleMemory:
    """Tensors with a row per training sample, by name. A training owns one, and a loop of your own may:

    memory = SampleMemory()
    method.loss(net, x, y, step=step, index=index, memory=memory).backward()
    """

    columns: dict[str, _Column] = field(default_factory=dict)

    def of(self, index: Int[Tensor, " batch"]) -> "BatchMemory":
        """What is kept of the samples `index`."""
        return BatchMemory(self, index)

    def tensors(self) -> dict[str, Tensor]:
        """All of it, for a checkpoint."""
        return {
            f"{name}.{part}": tensor for name, column in self.columns.items() for part, tensor in vars(column).items()
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` returned."""
        names = {name.rpartition(".")[0] for name in tensors}
        self.columns = {name: _Column(tensors[f"{name}.values"], tensors[f"{name}.known"]) for name in names}


@dataclass(frozen=True)
class BatchMemory:
    """What is kept of the samples of a batch. Perturbations that are part of others have names of their own in it."""

    memory: SampleMemory
    index: Int[Tensor, " batch"]
    path: str = ""

    def part(self, number: int) -> "BatchMemory":
        """The memory of a part."""
        return BatchMemory(self.memory, self.index, f"{self.path}{number}.")

    def recall(self, name: str, default: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """The value of each sample, and where none is known the default."""
        column = self._column(self.path + name)
        if column is None:
            return default
        inside = self.index < len(column.known)
        row = torch.where(inside, self.index, 0)
        known = (column.known[row] & inside).reshape(-1, *[1] * (default.ndim - 1))
        require(
            column.values.shape[1:] == default.shape[1:],
            f"the memory holds {name} of shape {tuple(column.values.shape[1:])}, but samples need "
            f"{tuple(default.shape[1:])}: it belongs to another training.",
        )
        return torch.where(known, column.values[row].to(default), default)

    def keep(self, name: str, values: Float[Tensor, "batch ..."]) -> None:
        """Keep a value of each sample."""
        columns, name = self.memory.columns, self.path + name
        needed = int(self.index.max()) + 1
        if name not in columns:
            columns[name] = _Column(values.new_zeros(0, *values.shape[1:]), self.index.new_zeros(0, dtype=torch.bool))
        column = cast(_Column, self._column(name))
        missing = needed - len(column.known)
        if missing > 0:
            column.values = torch.cat([column.values, values.new_zeros(missing, *values.shape[1:])])
            column.known = torch.cat([column.known, column.known.new_zeros(missing)])
        column.values[self.index], column.known[self.index] = values.to(column.values), True

    def _column(self, name: str) -> _Column | None:
        """What is kept under a name, on the device of the index: what a checkpoint restores is not there yet."""
        column = self.memory.columns.get(name)
        if column is not None and column.known.device != self.index.device:
            column.values, column.known = column.values.to(self.index.device), column.known.to(self.index.device)
        return column

"""Checks of a batch's labels and sample indices."""

from typing import Any

import torch
from torch import Tensor

from equipoise.core.errors import require


def check_index(index: Any, batch: int, unit: str = "sample") -> None:
    """Raise `EquipoiseError` unless `index` is one integer per sample; `unit` is its name in the message."""
    require(
        isinstance(index, Tensor)
        and index.shape == (batch,)
        and not index.is_floating_point()
        and index.dtype != torch.bool,
        f"index must be a tensor of {batch} integers, one per {unit}.",
    )


def check_labels(name: str, labels: Any, batch: int, classes: int | None) -> None:
    """Raise `EquipoiseError` unless `labels` is None or one class index per sample; `classes` None allows
    any.
    """
    if labels is None:
        return
    require(
        isinstance(labels, Tensor), f"{name} is a {type(labels).__name__}: expected a torch tensor of class indices."
    )
    require(labels.dtype == torch.int64, f"{name} has dtype {labels.dtype}: expected int64 class indices.")
    require(
        labels.shape == (batch,),
        f"{name} has shape {tuple(labels.shape)}: expected ({batch},), one class per sample"
        + (", as x[None] and y[None] are of a single one." if labels.ndim == 0 else "."),
    )
    low, high = int(labels.min()), int(labels.max())
    require(
        low >= 0 and (classes is None or high < classes),
        f"{name} holds class {low if low < 0 else high}, "
        + ("which is none." if classes is None else f"but the model has {classes} classes, 0 to {classes - 1}."),
    )

"""What models return, as logits: tensors, containers of them, a single logit, probabilities."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.core.errors import kind_of, require

Outputs = Literal["logits", "probabilities"]


def scores_of(output: Any, batch: int, name: str) -> Float[Tensor, "batch columns"]:
    """Return the scores in the output of a network called `name`: the output itself, its `.logits` or entry `logits`,
    the first entry of a tuple or list, or the only tensor of a dictionary. One number per sample is one column.

    Raises `EquipoiseError` for anything else.
    """
    scores: Any = output
    if isinstance(output, Mapping):
        tensors = [value for value in output.values() if isinstance(value, Tensor)]
        scores = output.get("logits", tensors[0] if len(tensors) == 1 else None)
    elif isinstance(getattr(output, "logits", None), Tensor):
        scores = output.logits
    elif isinstance(output, tuple | list) and len(output):
        scores = output[0]
    if isinstance(scores, Tensor) and scores.shape == (batch,):
        scores = scores[:, None]
    require(
        isinstance(scores, Tensor) and scores.ndim == 2 and len(scores) == batch,
        f"{name} returned {_describe(output)}; expected logits of shape ({batch}, classes), or an object with .logits.",
    )
    return scores


def as_logits(scores: Float[Tensor, "batch columns"], outputs: Outputs) -> Float[Tensor, "batch classes"]:
    """Return scores of one column as those of two classes, and probabilities as their logarithms.

    A single logit z becomes (-z/2, z/2) and a single probability p becomes (1 - p, p), which say the same.
    """
    if scores.shape[1] == 1:
        scores = torch.cat([-scores / 2, scores / 2] if outputs == "logits" else [1 - scores, scores], 1)
    return scores.clamp_min(torch.finfo(scores.dtype).tiny).log() if outputs == "probabilities" else scores


def _describe(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"{kind_of(output)} with {', '.join(map(str, list(output)[:5])) or 'nothing'}"
    return kind_of(output)

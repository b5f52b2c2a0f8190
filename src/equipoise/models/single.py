"""A single network as a predictive."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from equipoise.core.checks import check_fields
from equipoise.core.errors import EquipoiseError, kind_of, require
from equipoise.core.rng import Streams
from equipoise.core.types import Points, Predict, Prediction, Predictive, Weights
from equipoise.models.frozen import called_with
from equipoise.nets.split import split


@dataclass(frozen=True)
class Single:
    """One network: `p = softmax(f(x))`."""

    module: nn.Module
    """The network."""
    outputs: Literal["logits", "probabilities"] = "logits"
    """Output of the network; probabilities are converted to logits by their logarithm."""

    def __post_init__(self) -> None:
        check_fields(self)

    def draw(self, streams: Streams | None = None, weights: Weights | None = None) -> Predict:
        """Return the network as a function to a `Prediction` with one member, with `weights` in place of its own."""
        network = self.module if weights is None else called_with(self.module, weights)

        def predict(x: Points) -> Prediction:
            output = network(x)
            scores = _scores(output, len(x), type(self.module).__name__)
            scores = scores.double() if x.dtype == torch.float64 else scores.float()
            if self.outputs == "probabilities":
                scores = scores.clamp_min(torch.finfo(scores.dtype).tiny).log()
            return Prediction(scores[None])

        return predict

    def split(self, layer: str) -> "tuple[nn.Module, Single]":
        """Return the encoder that ends with `layer`, and the classifier after it."""
        encoder, classifier = split(self.module, layer)
        return encoder, Single(classifier, self.outputs)


def as_predictive(
    model: "nn.Module | Predictive", outputs: Literal["logits", "probabilities"] = "logits"
) -> Predictive:
    """Return `model` itself if it is a predictive, else the network as a `Single`.

    A network is any `nn.Module` that returns logits of shape (batch, classes), or an object with them as `.logits`.
    Raises `EquipoiseError` for anything else.
    """
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    compiled_from = getattr(model, "_orig_mod", None)
    if isinstance(compiled_from, nn.Module):
        model = compiled_from  # torch.compile would compile every copy and every batch size anew
    require(
        not isinstance(model, torch.jit.ScriptModule),
        "a scripted or traced model cannot be attacked, as its weights cannot be frozen: give the original module.",
    )
    if isinstance(model, nn.Module):
        return Single(model, outputs)
    if isinstance(model, Predictive):
        return model
    raise EquipoiseError(f"{kind_of(model)} is not a model: expected a torch.nn.Module that returns logits.")


def _scores(output: Any, batch: int, name: str) -> Tensor:
    scores: Any = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    require(
        isinstance(scores, Tensor) and scores.ndim == 2 and len(scores) == batch,
        f"{name} returned {_describe(output)}; expected logits of shape ({batch}, classes), or an object with .logits.",
    )
    return scores


def _describe(output: Any) -> str:
    return f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"{kind_of(output)}"

"""A single network as a predictive."""

from dataclasses import dataclass

import torch
from torch import nn

from equipoise.core.checks import check_fields
from equipoise.core.errors import EquipoiseError, kind_of, require
from equipoise.core.rng import Streams
from equipoise.core.types import Points, Predict, Prediction, Predictive, Weights
from equipoise.models.black_box import is_estimator
from equipoise.models.frozen import called_with
from equipoise.models.outputs import Outputs, as_logits, scores_of
from equipoise.nets.split import split


@dataclass(frozen=True)
class Single:
    """One network: `p = softmax(f(x))`."""

    module: nn.Module
    """The network."""
    outputs: Outputs = "logits"
    """Output of the network; probabilities are converted to logits by their logarithm. A single column is that of the
    second of two classes."""

    def __post_init__(self) -> None:
        check_fields(self)

    def draw(self, streams: Streams | None = None, weights: Weights | None = None) -> Predict:
        """Return the network as a function to a `Prediction` with one member, with `weights` in place of its own."""
        network = self.module if weights is None else called_with(self.module, weights)

        def predict(x: Points) -> Prediction:
            scores = scores_of(network(x), len(x), type(self.module).__name__)
            scores = scores.double() if x.dtype == torch.float64 else scores.float()
            return Prediction(as_logits(scores, self.outputs)[None])

        return predict

    def split(self, layer: str) -> "tuple[nn.Module, Single]":
        """Return the encoder that ends with `layer`, and the classifier after it."""
        encoder, classifier = split(self.module, layer)
        return encoder, Single(classifier, self.outputs)


def as_predictive(model: "nn.Module | Predictive", outputs: Outputs = "logits") -> Predictive:
    """Return `model` itself if it is a predictive, else the network as a `Single`.

    A network is any `nn.Module` that returns logits of shape (batch, classes), or a container of them that `scores_of`
    knows, such as an object with them as `.logits`.
    Raises `EquipoiseError` for anything else.
    """
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    compiled_from = getattr(model, "_orig_mod", None)
    if isinstance(compiled_from, nn.Module):
        model = compiled_from  # torch.compile would compile every copy and every batch size anew
    require(
        not isinstance(model, torch.jit.ScriptModule),
        "a scripted or traced model cannot be attacked, as its weights cannot be frozen: give the original module, or "
        "ask it without gradients, by models.from_callable(lambda x: model(torch.from_numpy(x)), x, classes=10).",
    )
    if isinstance(model, nn.Module):
        return Single(model, outputs)
    if isinstance(model, Predictive):
        return model
    remedy = ""
    if is_estimator(model):
        remedy = " A classifier of scikit-learn becomes a model by models.from_estimator(classifier)."
    elif callable(model) and not isinstance(model, type):
        remedy = " A function of numpy arrays becomes one by models.from_callable(function, x, classes=10)."
    raise EquipoiseError(f"{kind_of(model)} is not a model: expected a torch.nn.Module that returns logits.{remedy}")

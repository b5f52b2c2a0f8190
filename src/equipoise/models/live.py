"""The live prediction of a model, with its graph: what a training step descends."""

from typing import Any

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from equipoise.core.errors import require
from equipoise.core.rng import Streams
from equipoise.core.types import Points, Predict, Prediction, Predictive
from equipoise.kernels.native import MAX_WEIGHTS, compiler, native_training
from equipoise.models.frozen import frozen
from equipoise.models.inference import is_batch_dependent

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_SMALLEST_BATCH = 32  # from which watching the network run on one sample costs little


def live(predictive: Predictive, streams: Streams | None) -> Predict:
    """Return the prediction function of a model that is trained. Small convolutional networks on a CPU whose layers do
    nothing but compute are computed natively, with the same gradients of the weights.
    """
    predict, module = predictive.draw(streams), predictive.module
    if not _only_computes(module):
        return predict

    def fast(x: Points) -> Prediction:
        if len(x) < _SMALLEST_BATCH:
            return predict(x)
        return native_training(_watched_copy(predictive, streams), predict, list(module.parameters()))(x)

    return fast


def _only_computes(module: nn.Module) -> bool:
    """Whether this is a small convolutional network that can be run on one sample more without an effect."""
    parameters, layers = list(module.parameters()), list(module.modules())
    small = any(p.ndim == 4 for p in parameters) and sum(p.numel() for p in parameters) <= MAX_WEIGHTS
    if not small or compiler() is None or is_batch_dependent(module) or len({layer.training for layer in layers}) > 1:
        return False
    return not (_has_any_global_hook() or any(getattr(layer, name) for layer in layers for name in _HOOKS))


def _watched_copy(predictive: Predictive, streams: Streams | None) -> Predict:
    """The prediction of a copy that shares the parameters. Raises `EquipoiseError` if the network remembers something
    of its input: what it keeps, for a penalty perhaps, must be of the whole batch.
    """
    mode = "train" if predictive.module.training else "eval"
    copy = frozen(predictive, mode, weights=lambda parameter: parameter)
    layers = list(copy.module.modules())

    def predict(x: Points) -> Prediction:
        before = [_attributes(layer) for layer in layers]
        prediction = copy.draw(streams)(x)
        require(before == [_attributes(layer) for layer in layers], "the network remembers its input.")
        return prediction

    return predict


def _attributes(layer: nn.Module) -> list[Any]:
    """The attributes of a layer, by identity, and how many items they hold."""
    values = vars(layer).items()
    return [(name, id(value), len(value) if isinstance(value, list | dict | set) else 0) for name, value in values]

"""The live prediction of a model, with its graph: what a training step descends."""

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from equipoise.core.errors import require
from equipoise.core.rng import Streams
from equipoise.core.types import Points, Predict, Prediction, Predictive
from equipoise.kernels.native import MAX_WEIGHTS, library, native_training
from equipoise.models.frozen import ATOMS, frozen
from equipoise.models.inference import is_batch_dependent

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_SMALLEST_BATCH = 32  # from which watching the network run on one sample costs little


def live(predictive: Predictive, streams: Streams | None) -> Predict:
    """Return the prediction function of a model that is trained. Small convolutional networks on a CPU whose layers do
    nothing but compute are computed natively, with the same gradients of the weights.
    """
    predict = predictive.draw(streams)

    def fast(x: Points) -> Prediction:
        if len(x) < _SMALLEST_BATCH or not _only_computes(predictive.module):
            return predict(x)
        watched, weights = _watched_copy(predictive, streams)
        return native_training(watched, predict, weights)(x)

    return fast


def _only_computes(module: nn.Module) -> bool:
    """Whether this is a small convolutional network that can be run on one sample more without an effect."""
    parameters, layers = list(module.parameters()), list(module.modules())
    small = any(p.ndim == 4 for p in parameters) and sum(p.numel() for p in parameters) <= MAX_WEIGHTS
    if not small or library() is None or is_batch_dependent(module) or len({layer.training for layer in layers}) > 1:
        return False
    return not (_has_any_global_hook() or any(getattr(layer, name) for layer in layers for name in _HOOKS))


def _watched_copy(predictive: Predictive, streams: Streams | None) -> tuple[Predict, list[Tensor]]:
    """The prediction of a copy that shares the parameters but no buffers, and its parameters and buffers. It raises
    `EquipoiseError` if the network remembers something of its input, in a buffer, an attribute or a container: what it
    keeps, for a penalty perhaps, must be of the whole batch.
    """
    copy = frozen(predictive, weights=lambda parameter: parameter)
    copy.module.train(predictive.module.training)
    layers, buffers = list(copy.module.modules()), list(copy.module.buffers())

    def memory() -> list[Any]:
        return [*(_identities(vars(layer)) for layer in layers), *((id(b), b._version) for b in buffers)]

    before = memory()

    def predict(x: Points) -> Prediction:
        prediction = copy.draw(streams)(x)
        require(before == memory(), "the network remembers its input.")
        return prediction

    return predict, [*copy.module.parameters(), *buffers]


def _identities(value: Any, depth: int = 6) -> Any:
    """The identities of what a value holds: containers by their items, other objects by their attributes."""
    if type(value) in ATOMS or depth == 0:
        return id(value)
    if isinstance(value, dict):
        return [(key, _identities(item, depth - 1)) for key, item in value.items()]
    if isinstance(value, list | tuple | set):
        return [id(value), *(_identities(item, depth - 1) for item in value)]
    whole = isinstance(value, Tensor | nn.Module | type) or callable(value) or not hasattr(value, "__dict__")
    return id(value) if whole else [id(value), _identities(vars(value), depth - 1)]

"""Monte-Carlo dropout: a network's dropout layers, left on, make of it a distribution over networks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from equipoise.core.errors import require
from equipoise.core.rng import Streams
from equipoise.core.types import Points, Predict, Prediction, Weights
from equipoise.models.frozen import called_with
from equipoise.models.single import Single
from equipoise.nets.split import split

_OF_UNITS = (nn.Dropout,)
_OF_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_ANY = nn.modules.dropout._DropoutNd

Kept = Bool[Tensor, "_rows ..."]


@dataclass(frozen=True)
class MonteCarloDropout:
    """M thinned copies of one network: `p = (1/M) Σ_m softmax(f(x; mask_m))` (Gal & Ghahramani 2016; U, Sec. 2).

    A mask multiplies the input of an `nn.Dropout` by 0 with the layer's probability p, else by `1 / (1 - p)`; of
    `nn.Dropout1d`, `2d` and `3d` all of a channel together. Nothing else of the network is touched: batch-norm and the
    rest do what the module's mode says. The masks are drawn once per `draw` and then stand still.

    A dropout layer in eval mode has one mask per member, from the stream that all samples share: a member is a network,
    and what it says of a sample does not depend on the batch. In train mode every row has a mask of its own, from its
    own stream, as in training with dropout; rows without a stream, because there are more or fewer of them than
    streams, have one by their position.

    The members are computed one after the other, each on the whole batch as it is: that is as fast as all at once, and
    statistics of a batch are those of one member's.

    Raises `EquipoiseError` for a network without a dropout layer, or with one of another kind (such as `AlphaDropout`),
    and when it is applied for a dropout layer whose input has another first dimension than the batch.
    """

    module: nn.Module
    """The network. Only dropout that is a layer of it can be seen: `torch.nn.functional.dropout` cannot."""
    samples: int = 5
    """Number of members M."""
    outputs: Literal["logits", "probabilities"] = "logits"
    """What the network returns."""

    def __post_init__(self) -> None:
        Single(self.module, self.outputs)
        require(self.samples >= 1, f"samples = {self.samples}: Monte-Carlo dropout needs at least one.")
        name, layers = type(self.module).__name__, _dropouts(self.module)
        require(
            bool(layers),
            f"{name} has no dropout layer to sample from: make dropout an nn.Dropout of the network; "
            "functional dropout is not seen.",
        )
        for layer in layers:
            require(
                isinstance(layer, _OF_UNITS + _OF_CHANNELS),
                f"{name} has a layer {type(layer).__name__}, whose masks cannot be drawn: expected nn.Dropout, "
                "Dropout1d, Dropout2d or Dropout3d.",
            )

    def draw(self, streams: Streams | None = None, weights: Weights | None = None) -> Predict:
        """All members as a function to a `Prediction`, their masks frozen; without streams, those of seed 0."""
        module = self.module if weights is None else called_with(self.module, weights)
        network = Single(module, self.outputs).draw()

        @cache
        def kept(member: int, number: int, p: float, rows: int | None, shape: tuple[int, ...]) -> Kept:
            own = _shared(streams) if rows is None else _per_row(streams, rows)
            return own.fold(member, number).uniform(*shape) >= p

        def thinned(x: Points, member: int) -> Prediction:
            numbers = count()  # of the dropout layers in the order in which they are applied

            def mask(layer: Any, training: bool, input: Tensor) -> Tensor:
                _check_rows(layer, input, len(x))
                rows, shape = len(x) if training else None, _mask_shape(layer, input)
                on = kept(member, next(numbers), layer.p, rows, shape).to(input.device)
                return input * on * (1 / (1 - layer.p) if layer.p < 1 else 1)

            with _masked(module, mask):
                return network(x)

        def predict(x: Points) -> Prediction:
            return Prediction(torch.cat([thinned(x, member).logits for member in range(self.samples)]))

        return predict

    def split(self, layer: str) -> "tuple[nn.Module, MonteCarloDropout]":
        """The encoder that ends with `layer`, and what follows, sampled with the masks that it has in the whole.

        Raises `EquipoiseError` if the encoder has a dropout layer: its members would have different codes.
        """
        encoder, classifier = split(self.module, layer)
        require(
            not _dropouts(encoder),
            f"the encoder that ends with {layer!r} has dropout layers, so its members have no code in common: split "
            "before the first of them, or perturb the input.",
        )
        return encoder, MonteCarloDropout(classifier, self.samples, self.outputs)


def _dropouts(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, _ANY)]


def _shared(streams: Streams | None) -> Streams:
    return (Streams.of(0, torch.arange(0)) if streams is None else streams).shared


def _per_row(streams: Streams | None, rows: int) -> Streams:
    if streams is not None and len(streams) == rows:
        return streams
    return Streams.of(0 if streams is None else int(streams.shared.keys), torch.arange(rows))


def _check_rows(layer: nn.Module, h: Tensor, rows: int) -> None:
    require(
        h.ndim >= 2 and len(h) == rows,
        f"a {type(layer).__name__} layer was given a tensor of shape {tuple(h.shape)} for a batch of {rows}: expected "
        "the batch as its first dimension.",
    )


def _mask_shape(layer: nn.Module, h: Tensor) -> tuple[int, ...]:
    """The shape of one row's mask, which is broadcast over the units of a channel."""
    return tuple(h.shape[1:]) if isinstance(layer, _OF_UNITS) else (h.shape[1],) + (1,) * (h.ndim - 2)


@contextmanager
def _masked(module: nn.Module, mask: Callable[[nn.Module, bool, Tensor], Tensor]) -> Iterator[None]:
    """Every dropout layer in eval mode, where it is the identity, on an input that `mask(layer, its mode, input)` made
    of its own; on the way out back in the mode it had.
    """
    before = [(layer, layer.training) for layer in _dropouts(module)]

    def hook(training: bool) -> Any:
        return lambda layer, args, kwargs: ((mask(layer, training, *args, **kwargs),), {})

    handles = [layer.register_forward_pre_hook(hook(training), with_kwargs=True) for layer, training in before]
    for layer, _ in before:
        layer.training = False
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer, training in before:
            layer.training = training

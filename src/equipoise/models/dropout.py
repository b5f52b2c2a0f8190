"""Monte Carlo dropout: a network with active dropout layers as a distribution over networks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from equipoise.core.errors import kind_of, require
from equipoise.core.rng import Streams
from equipoise.core.types import Points, Predict, Prediction, Weights
from equipoise.models.frozen import called_with
from equipoise.models.single import Single
from equipoise.nets.split import split

_OF_UNITS = (nn.Dropout,)
_OF_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_ANY = nn.modules.dropout._DropoutNd

Mask = Bool[Tensor, "_batch ..."]


@dataclass(frozen=True)
class MonteCarloDropout:
    """M thinned copies of one network: `p = (1/M) Σ_m softmax(f(x; mask_m))` (Gal & Ghahramani 2016; U, Sec. 2).

    A mask multiplies the input of an `nn.Dropout` by 0 with the layer's probability p, else by `1 / (1 - p)`; that of
    `nn.Dropout1d`, `2d` and `3d` whole channels. All other layers follow the module's mode. The masks are drawn once
    per `draw`.

    A dropout layer in eval mode has one mask per member, from the stream shared by all samples: a member is a network,
    whose prediction does not depend on the batch. In train mode every sample has a mask of its own, from its own
    stream, as in training with dropout, or by its position if the batch has another size than the streams. Members are
    computed one after the other, which is as fast as all at once; batch statistics are those of one member.

    Raises `EquipoiseError` for a network without a dropout layer, or with one of another kind (such as `AlphaDropout`),
    and when it is applied for a dropout layer whose input has another first dimension than the batch.
    """

    module: nn.Module
    """The network. Dropout must be a layer of it; `torch.nn.functional.dropout` is not sampled."""
    samples: int = 5
    """Number of members M."""
    outputs: Literal["logits", "probabilities"] = "logits"
    """Output of the network."""

    def __post_init__(self) -> None:
        Single(self.module, self.outputs)
        require(self.samples >= 1, f"samples = {self.samples}: Monte Carlo dropout needs at least one.")
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
        """Return all members, with fixed masks, as a function to a `Prediction`. Without streams the seed is 0."""
        module = self.module if weights is None else called_with(self.module, weights)
        network = Single(module, self.outputs).draw()

        @cache
        def mask(member: int, number: int, p: float, batch: int | None, shape: tuple[int, ...]) -> Mask:
            own = shared_stream(streams) if batch is None else own_streams(streams, batch)
            return own.fold(member, number).uniform(*shape) >= p

        def predict_member(x: Points, member: int) -> Prediction:
            numbers = count()  # of the dropout layers in the order in which they are applied

            def drop(layer: Any, training: bool, input: Tensor) -> Tensor:
                _check_batch(layer, input, len(x))
                batch, shape = len(x) if training else None, _mask_shape(layer, input)
                active = mask(member, next(numbers), layer.p, batch, shape).to(input.device)
                return input * active * (1 / (1 - layer.p) if layer.p < 1 else 1)

            with _replaced_dropout(module, drop):
                return network(x)

        def predict(x: Points) -> Prediction:
            return Prediction(torch.cat([predict_member(x, member).logits for member in range(self.samples)]))

        return predict

    def split(self, layer: str) -> "tuple[nn.Module, MonteCarloDropout]":
        """Return the encoder that ends with `layer`, and Monte Carlo dropout of the classifier after it, with the same
        masks. Raises `EquipoiseError` if the encoder has a dropout layer: its members would have different codes.
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


def shared_stream(streams: Streams | None) -> Streams:
    """Return the stream that all samples share; without streams that of seed 0."""
    return (Streams.of(0, torch.arange(0)) if streams is None else streams).shared


def own_streams(streams: Streams | None, batch: int) -> Streams:
    """Return the streams of the samples, by their position if the batch has another size than the streams."""
    if streams is not None and len(streams) == batch:
        return streams
    return Streams.of(0 if streams is None else int(streams.shared.keys), torch.arange(batch))


def _check_batch(layer: nn.Module, h: Tensor, batch: int) -> None:
    require(
        h.ndim >= 2 and len(h) == batch,
        f"{kind_of(layer)} layer was given a tensor of shape {tuple(h.shape)} for a batch of {batch}: expected "
        "the batch as its first dimension.",
    )


def _mask_shape(layer: nn.Module, h: Tensor) -> tuple[int, ...]:
    """The shape of one sample's mask, which is broadcast over the units of a channel."""
    return tuple(h.shape[1:]) if isinstance(layer, _OF_UNITS) else (h.shape[1],) + (1,) * (h.ndim - 2)


@contextmanager
def _replaced_dropout(module: nn.Module, drop: Callable[[nn.Module, bool, Tensor], Tensor]) -> Iterator[None]:
    """Let every dropout layer return `drop(layer, its mode, input)`, by a hook and eval mode, where it is the identity;
    restore its mode at the end.
    """
    before = [(layer, layer.training) for layer in _dropouts(module)]

    def hook(training: bool) -> Any:
        return lambda layer, args, kwargs: ((drop(layer, training, *args, **kwargs),), {})

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

"""What every diagnostic does first: validate the input, freeze the model, and split the samples into blocks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

from equipoise.attacks.inputs import validated_inputs
from equipoise.core.errors import require
from equipoise.core.rng import Stream, Streams
from equipoise.core.types import Labels, Points, Predict, Predictive
from equipoise.geometry import EVERYWHERE, Ball
from equipoise.models import full_precision

BATCH_SIZE = 256
"""Samples per block, which bounds the memory."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Block:
    """Some of the samples, and the model for them."""

    predict: Predict
    """The model in eval mode, with constant weights; random numbers as an attack with the same seed draws them."""
    samples: Int[Tensor, " block"]
    """Their indices."""
    streams: Streams
    """Their random streams."""
    classes: int
    """Number of classes."""
    members: int
    """Number of members of the prediction."""


@torch.no_grad()
def in_blocks(
    work: Callable[[Block], Result],
    model: "nn.Module | Predictive",
    x: Points,
    y: Labels | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    index: Int[Tensor, " batch"] | None = None,
) -> list[Result]:
    """Return the result of `work` for every block of at most `batch_size` samples; `index` is that of an attack.

    The model's parameters, gradients, buffers and modes and the global random state are left as they were. Inputs may
    have any values, not only in [0, 1]. Raises `EquipoiseError` for input that the model cannot take, and for a
    batch-dependent model.
    """
    everywhere = Ball("linf", 0.0, EVERYWHERE)
    validated = validated_inputs(model, x, y, everywhere, seed=seed, index=index, batch_size=batch_size)
    with validated as inputs, full_precision():
        require(
            not inputs.examined.coupled,
            "in this model a sample's output depends on its batch, so it has no derivative of its own: make its "
            "predictions independent of the batch, for batch-norm by track_running_stats=True.",
        )

        def block(samples: Tensor) -> Block:
            streams = inputs.streams[samples]
            predict = inputs.predictive.draw(streams.fold(Stream.MODEL))
            return Block(predict, samples, streams, inputs.classes, inputs.members)

        return [work(block(samples)) for samples in torch.arange(len(x), device=x.device).split(batch_size)]

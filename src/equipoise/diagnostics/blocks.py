"""What every diagnostic does before it looks at a model: check the input, hold the model still, cut the batch."""

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
"""Samples at a time, which bounds the memory."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Block:
    """Some samples of a batch, and the model as it stands for them."""

    predict: Predict
    """The model: eval mode, constant weights, its randomness drawn as an attack with the same seed draws it."""
    rows: Int[Tensor, " rows"]
    """Which samples."""
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
    """`work` of every block of at most `batch_size` samples, in order; `index` is what an attack calls so.

    The model's parameters, gradients, buffers and modes and the global random state are left as they were. Inputs may
    lie anywhere, not only in [0, 1]. Raises `EquipoiseError` for input that the model cannot take, and for a model in
    which samples depend on each other even in eval mode.
    """
    ready = validated_inputs(model, x, y, Ball("linf", 0.0, EVERYWHERE), seed=seed, index=index, batch_size=batch_size)
    with ready as case, full_precision():
        require(
            not case.examined.coupled,
            "in this model a sample's output depends on its batch, so it has no derivative of its own: make its "
            "predictions independent of the batch, for batch-norm by track_running_stats=True.",
        )

        def block(rows: Tensor) -> Block:
            streams = case.streams[rows]
            predict = case.predictive.draw(streams.fold(Stream.MODEL))
            return Block(predict, rows, streams, case.classes, case.members)

        return [work(block(rows)) for rows in torch.arange(len(x), device=x.device).split(batch_size)]

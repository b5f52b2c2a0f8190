"""Whether a perturbed point counts: decided here alone, from the points themselves, whatever an attack claims."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from equipoise import predictive
from equipoise.errors import unknown
from equipoise.geometry import NORMS, Ball, norm_of
from equipoise.predictive import as_predictive
from equipoise.rng import Streams
from equipoise.types import Labels, Points, Predictive


@dataclass(frozen=True)
class Verified:
    """What is true of perturbed points, per sample."""

    success: Bool[Tensor, " batch"]
    """The point lies in the ball and in the box, and its predicted class is not the label."""
    distance: Float[Tensor, " batch"]
    """Distance from the clean input in the ball's norm, in float64."""
    prediction: Labels
    """The class predicted there, in float32 and eval mode."""


def predict(model: "nn.Module | Predictive", x: Points, streams: Streams | None = None) -> Labels:
    """The predicted classes in float32 and eval mode, without autocast; every submodule's mode is restored. A random
    model is drawn from `streams`.
    """
    return predictive.predict(as_predictive(model), x, streams).labels


@torch.no_grad()
def verify_outcome(
    model: "nn.Module | Predictive", x: Points, point: Points, y: Labels, ball: Ball, streams: Streams | None = None
) -> Verified:
    """Check perturbed points against their clean inputs `x` and labels `y`: in the ball and the box, as
    `Ball.contains` says, and misclassified. Raises `EquipoiseError` for an unknown norm.
    """
    if ball.norm not in NORMS:
        raise unknown("norm", ball.norm, NORMS)
    distance = norm_of((point.double() - x.double()).flatten(1), NORMS[ball.norm].order)
    prediction = predict(model, point, streams)
    return Verified(ball.contains(point, x) & (prediction != y), distance, prediction)

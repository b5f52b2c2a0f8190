"""Verification of perturbed points: whether they count is decided from the points, whatever an attack claims."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from equipoise import models as predictive
from equipoise.core.errors import unknown
from equipoise.core.rng import Streams
from equipoise.core.types import Labels, Points, Predictive
from equipoise.geometry import NORMS, Ball
from equipoise.models import as_predictive


@dataclass(frozen=True)
class Verified:
    """The verified outcome of perturbed points, per sample."""

    success: Bool[Tensor, " batch"]
    """The point lies in the ball and in the box, and its predicted class is not the label (by a random model, in more
    than half of the draws)."""
    distance: Float[Tensor, " batch"]
    """Distance from the clean input in the ball's norm, in float64."""
    prediction: Labels
    """The class predicted there, in float32 and eval mode (the most frequent one); -1 if no prediction is finite."""
    rates: Float[Tensor, " batch"]
    """Share of the draws in which the label is predicted."""
    choice: Float[Tensor, " batch"]
    """The same share over as many independent draws."""
    fair: Bool[Tensor, " batch"]
    """The point lies in the ball and in the box."""


def predict(model: "nn.Module | Predictive", x: Points, streams: Streams | None = None) -> Labels:
    """Return the predicted classes in float32 and eval mode, without autocast; -1 where a prediction is not finite. A
    random model is drawn from `streams`.
    """
    return predictive.predict(as_predictive(model), x, streams).labels


@torch.no_grad()
def verify_outcome(
    model: "nn.Module | Predictive",
    x: Points,
    point: Points,
    y: Labels,
    ball: Ball,
    streams: Streams | None = None,
    *,
    draws: int = 1,
) -> Verified:
    """Verify that perturbed points lie in the ball around the clean inputs `x` and in the box, by `Ball.contains`, and
    in how many of `draws` fresh draws they are not classified as `y`. Raises `EquipoiseError` for an unknown norm.
    """
    if ball.norm not in (*NORMS, "l0"):
        raise unknown("norm", ball.norm, (*NORMS, "l0"))
    distance = ball.distance(point.double(), x.double())
    labels = torch.stack(
        [
            predict(model, point, streams if streams is None or number == 0 else streams.fold(number))
            for number in range(1 if draws == 1 else 2 * draws)
        ]
    )
    correct = (labels == y).double()
    rates, choice = correct[:draws].mean(0), correct[-draws:].mean(0)
    labels = labels[:draws]
    misclassified = ((labels != y) & (labels >= 0)).double().mean(0) > 0.5
    fair = ball.contains(point, x)
    prediction = labels[0] if draws == 1 else labels.mode(0).values
    return Verified(fair & misclassified, distance, prediction, rates, choice, fair)

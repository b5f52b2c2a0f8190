"""Whether a perturbed point counts: decided here alone, from the points themselves, whatever an attack claims."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from equipoise import models as predictive
from equipoise.core.errors import unknown
from equipoise.core.rng import Streams
from equipoise.core.types import Labels, Points, Predictive
from equipoise.geometry import NORMS, Ball, norm_of
from equipoise.models import as_predictive


@dataclass(frozen=True)
class Verified:
    """What is true of perturbed points, per sample."""

    success: Bool[Tensor, " batch"]
    """The point lies in the ball and in the box, and its predicted class is not the label (by a random model, in more
    than half of the draws)."""
    distance: Float[Tensor, " batch"]
    """Distance from the clean input in the ball's norm, in float64."""
    prediction: Labels
    """The class predicted there, in float32 and eval mode (most often); -1 for no finite prediction."""
    rates: Float[Tensor, " batch"]
    """Share of the draws in which the label is predicted."""
    choice: Float[Tensor, " batch"]
    """The same over as many other draws."""
    fair: Bool[Tensor, " batch"]
    """The point lies in the ball and in the box."""


def predict(model: "nn.Module | Predictive", x: Points, streams: Streams | None = None) -> Labels:
    """The predicted classes in float32 and eval mode, without autocast; -1 where a prediction is not finite. A random
    model is drawn from `streams`.
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
    """Check perturbed points against their clean inputs `x` and labels `y`: in the ball and the box, as
    `Ball.contains` says, and misclassified, in how many of `draws` fresh draws. Raises `EquipoiseError` for an unknown
    norm.
    """
    if ball.norm not in NORMS:
        raise unknown("norm", ball.norm, NORMS)
    distance = norm_of((point.double() - x.double()).flatten(1), NORMS[ball.norm].order)
    labels = torch.stack(
        [predict(model, point, _fresh(streams, number)) for number in range(1 if draws == 1 else 2 * draws)]
    )
    right = (labels == y).double()
    half = labels[:draws]
    rates, choice = right[:draws].mean(0), right[-draws:].mean(0)
    wrong = ((half != y) & (half >= 0)).double().mean(0) > 0.5
    fair = ball.contains(point, x)
    return Verified(fair & wrong, distance, half[0] if draws == 1 else half.mode(0).values, rates, choice, fair)


def _fresh(streams: Streams | None, number: int) -> Streams | None:
    return streams if streams is None or number == 0 else streams.fold(number)

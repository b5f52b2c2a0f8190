"""Whether a perturbed point counts: decided here alone, from the points themselves, whatever an attack claims."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from equipoise import predictive
from equipoise.errors import unknown
from equipoise.geometry import Ball, norm_of
from equipoise.predictive import as_predictive
from equipoise.types import Labels, Points, Predictive

_ORDER = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}
_ULP = 2.0**-23  # spacing of float32 numbers just below 1 is half of this


@dataclass(frozen=True)
class Verified:
    """What is true of perturbed points, per sample."""

    success: Bool[Tensor, " batch"]
    """The point lies in the ball and in the box, and its predicted class is not the label."""
    distance: Float[Tensor, " batch"]
    """Distance from the clean input in the ball's norm, in float64."""
    prediction: Labels
    """The class predicted there, in float32 and eval mode."""


def predict(model: "nn.Module | Predictive", x: Points) -> Labels:
    """The predicted classes in float32 and eval mode, without autocast; every submodule's mode is restored."""
    return predictive.predict(as_predictive(model), x).labels


@torch.no_grad()
def verify_outcome(model: "nn.Module | Predictive", x: Points, point: Points, y: Labels, ball: Ball) -> Verified:
    """Check perturbed points against their clean inputs `x` and labels `y`.

    `‖point - x‖` is computed in float64 and may exceed eps by what rounding to float32 explains, `2⁻²³ (d^(1/p) + eps)`
    for d coordinates in the norm p; the box is exact; NaN counts as outside. Raises `EquipoiseError`
    for an unknown norm.
    """
    if ball.norm not in _ORDER:
        raise unknown("norm", ball.norm, _ORDER)
    order = _ORDER[ball.norm]
    move = (point.double() - x.double()).flatten(1)
    distance = norm_of(move, order)
    rounding = _ULP * (move.shape[1] ** (1 / order) + ball.eps)
    flat = point.flatten(1)
    in_box = ((flat >= ball.box.low) & (flat <= ball.box.high)).all(1)
    prediction = predict(model, point)
    return Verified((distance <= ball.eps + rounding) & in_box & (prediction != y), distance, prediction)

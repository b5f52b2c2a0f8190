"""The margin's input gradient against central finite differences."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from equipoise.attacks.result import like
from equipoise.core.rng import Stream
from equipoise.core.types import Labels, PerSample, Points, Prediction, Predictive
from equipoise.geometry import Box
from equipoise.losses.objectives import margin
from equipoise.masking.inspected_model import InspectedModel, inspected
from equipoise.models import as_predictive, full_precision

SIGNALS = (10.0, 30.0, 100.0)
"""Changes of the margin, in units of its rounding error, that the fine steps are meant to cause. Ten are enough to
tell an error of 50 %, and a hundred are still far too few for a step to average over quantisation levels."""

COARSE_STEP = 1 / 128
"""Step per pixel of the coarse comparison, as a share of the box: smaller than the usual radii, and along random signs,
to which a network responds nearly linearly. A gradient that says nothing about such a step is no guide to an attack."""

DIRECTIONS = 4
"""Random directions of the coarse comparison: along one of them alone a gradient may predict no change by chance."""

JITTER = 0.05
"""How far towards uniform noise the inputs are moved before the comparison. Flat areas put many units exactly on a kink
(equal values under a max-pooling), where a derivative has two sides and central differences average them."""

Changes = Float[Tensor, "moves batch"]


def gradient_errors(
    model: "nn.Module | Predictive", x: Points, y: Labels, *, box: Box = Box(), samples: int = 64, seed: int = 0
) -> tuple[PerSample, PerSample]:
    """Return the relative errors of the margin's input gradient against central differences, per sample: `‖observed -
    predicted‖ / max(‖observed‖, ‖predicted‖)` of the margin's changes, from 0 to 2.

    First along the gradient, in the best of three fine steps; then along four random signs, in steps of 1/128 of the
    box. Uses `samples` samples, spread evenly over `x`, without those whose logits are not finite or so large that
    rounding hides the change; none remain of a randomised or batch-dependent model. Raises `NoGradient` if the model
    gives no gradient, and `EquipoiseError` for input that no attack could take.
    """
    with inspected(as_predictive(model), x, y, box, samples, seed) as inspected_model:
        inspected_model.gradient(margin, inspected_model.x)
        return gradient_errors_of(inspected_model)


def gradient_errors_of(model: InspectedModel) -> tuple[PerSample, PerSample]:
    """Return the errors of `gradient_errors` for a model that is being inspected."""
    x = model.x
    if model.batch_dependent or model.randomised:
        return x.new_zeros(0), x.new_zeros(0)  # such a margin depends on more than its sample's input
    width = model.box.high - model.box.low
    noise = model.streams.fold(Stream.JITTER).uniform(*x.shape[1:], dtype=x.dtype)
    point = torch.lerp(x, model.box.low + width * noise, JITTER)
    with full_precision():
        gradient, logits = model.gradient(margin, point), model.logits_at(point)
        rounding = model.rounding_error(logits)
        length = gradient.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
        longest = COARSE_STEP * width * x[0].numel() ** 0.5
        steps = [(k * rounding / (2 * length)).clamp(1e-5 * width, longest) for k in SIGNALS]
        fine = [_changes(model, point, gradient, [gradient * like(step / length, x)]) for step in steps]
        signs = [
            2 * model.streams.fold(Stream.SIGNS, k).uniform(*x.shape[1:], dtype=x.dtype).round() - 1
            for k in range(DIRECTIONS)
        ]
        coarse = _changes(model, point, gradient, [COARSE_STEP * width * sign for sign in signs])
    # With a gradient that is not 0, but no change beyond rounding seen or expected, there is nothing to compare.
    largest = torch.cat([torch.cat(change).abs() for change in (*fine, coarse)]).amax(0)
    hidden = (gradient.flatten(1) != 0).any(1) & (largest < SIGNALS[0] * rounding)
    finite = model.finite & Prediction(logits[None]).finite & gradient.flatten(1).isfinite().all(1)
    along = torch.stack([_relative_error(*change) for change in fine]).amin(0)
    return along[finite & ~hidden], _relative_error(*coarse)[finite & ~hidden]


def _changes(
    model: InspectedModel, point: Points, gradient: Points, moves: Sequence[Points]
) -> tuple[Changes, Changes]:
    """The margin's changes from `point - move` to `point + move`, and those that the gradient predicts.

    Both ends stay in the box, and the prediction uses the distance between them as it was rounded.
    """
    observed, predicted = [], []
    for move in moves:
        behind, ahead = model.box.clamp(point - move), model.box.clamp(point + move)
        observed.append(model.margins(ahead) - model.margins(behind))
        predicted.append((gradient.double() * (ahead.double() - behind.double())).flatten(1).sum(1))
    return torch.stack(observed), torch.stack(predicted)


def _relative_error(observed: Changes, predicted: Changes) -> PerSample:
    """`‖observed - predicted‖ / max(‖observed‖, ‖predicted‖)` over the moves; 1, for no agreement, where both are 0."""
    longest = torch.maximum(observed.norm(dim=0), predicted.norm(dim=0))
    return torch.where(longest > 0, (observed - predicted).norm(dim=0) / longest, 1.0)

"""What a model says about single inputs: the class, how sure it is, and how far the prediction holds."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from equipoise.attacks import AttackLike, nearest
from equipoise.certified import certified_radius
from equipoise.core.checks import checked_call
from equipoise.core.errors import require
from equipoise.core.rng import Stream, Streams
from equipoise.core.types import PerSample, Points, Predictive
from equipoise.geometry import Box, NormName
from equipoise.losses.objectives import entropy, mutual_information
from equipoise.models import as_predictive, frozen
from equipoise.models import predict as predicted
from equipoise.results.predictions import Predictions, SamplePrediction


@checked_call()
@torch.no_grad()
def predict(
    model: "nn.Module | Predictive",
    x: Points,
    *,
    norm: NormName = "linf",
    radius: bool = True,
    certified: bool = False,
    attack: AttackLike | None = None,
    box: Box = Box(),
    classes: Sequence[str] = (),
    sources: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = 64,
) -> Predictions:
    """Return the prediction at every input, its uncertainty, and the radius in `norm` that it withstands.

    The radius is bounded from above by the distance of the nearest input with another prediction that `attack` finds,
    by default `attacks.nearest(norm, box=box)`, without `radius` none; and with `certified` from below, by
    `equipoise.certified.certified_radius` in the same box. `classes` are their names, `sources` those of the inputs.
    Raises `EquipoiseError` for inputs that an attack cannot take, and with `certified` for a network that cannot be
    bounded.
    """
    attack = nearest(norm, box=box) if attack is None else attack
    measured, box = attack.geometry.norm, attack.geometry.box
    require(measured == norm, f"the attack measures distances in {measured}, not in norm = {norm!r}.")
    require(len(x) > 0, "there is nothing to predict: give at least one input.")
    require(not sources or len(sources) == len(x), f"{len(sources)} sources for {len(x)} inputs: give one for each.")
    predictive = as_predictive(model)
    result = attack(predictive, x, seed=seed, batch_size=batch_size) if radius else None
    distances = [None] * len(x) if result is None else _finite(result.distance, result.success)
    bounds = [None] * len(x)
    if certified:
        known = [distance for distance in distances if distance is not None]
        upper = max(known) if len(known) == len(x) and max(known) > 0 else _diameter(norm, box, math.prod(x.shape[1:]))
        bounds = certified_radius(predictive, x, None, norm, upper=upper, box=box).tolist()
    samples, still, count = [], frozen(predictive), 0
    for numbers in torch.arange(len(x)).split(batch_size):
        output = predicted(still, x[numbers.to(x.device)], Streams.of(seed, numbers).fold(Stream.MODEL))
        count = output.classes
        require(not classes or len(classes) == count, f"{len(classes)} names for {count} classes.")
        shared = mutual_information(output).tolist() if len(output.logits) > 1 else [None] * len(numbers)
        shares, labels = output.log_probs.exp(), output.labels.tolist()
        rows = zip(labels, shares.amax(1).tolist(), entropy(output).tolist(), shared, strict=True)
        for number, (label, probability, spread, disagreement) in enumerate(rows, len(samples)):
            name = "not finite" if label < 0 else str(classes[label]) if classes else str(label)
            source = str(sources[number]) if sources else str(number)
            ends = distances[number], bounds[number]
            samples.append(SamplePrediction(source, label, name, probability, spread, disagreement, *ends))
    return Predictions(samples, count, norm, radius)


def _finite(distance: PerSample, success: torch.Tensor) -> list[float | None]:
    return [value if found else None for value, found in zip(distance.tolist(), success.tolist(), strict=True)]


def _diameter(norm: str, box: Box, features: int) -> float:
    """Distance between two opposite corners of the box."""
    return box.scale * {"linf": 1.0, "l2": math.sqrt(features), "l1": float(features)}[norm]

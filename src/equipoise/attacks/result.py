"""What every attack returns, the outcome per sample, and how it is confirmed.

with validated_inputs(model, x, y, geometry, seed=seed) as inputs:
    result, output = inputs.confirm(geometry, points, evaluations=evaluations, iteration=iteration)
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from equipoise.attacks.active import SampleTable
from equipoise.core.deprecation import renamed_names
from equipoise.core.rng import Stream, Streams
from equipoise.core.tables import Row, Tabular
from equipoise.core.types import Labels, PerSample, Points, Prediction
from equipoise.geometry import Ball
from equipoise.losses.objectives import margin
from equipoise.models import Frozen, predict
from equipoise.results.plots import image_grid


@dataclass(frozen=True, repr=False)
class AttackResult(SampleTable, Tabular):
    """What an attack found, per sample. Every success was checked again: the point lies in the ball and the box up to
    float32 rounding, and the model in eval mode and its own precision is fooled there.
    """

    x: Points
    """The perturbed inputs."""
    success: Bool[Tensor, " batch"]
    """Whether the prediction in eval mode is wrong (with a target: is the target; without labels: has changed); of a
    random model, whether it is in more than half of the `draws`. A prediction that is not finite is no success."""
    distance: PerSample
    """Distance from the clean input in the attack's norm."""
    prediction: Labels
    """The class predicted at `x`."""
    evaluations: Int[Tensor, " batch"]
    """How often the model was evaluated at this sample, forward or with gradient."""
    nan_gradients: Int[Tensor, " batch"]
    """Steps whose gradient held a NaN or an infinity (it was taken as 0 there)."""
    zero_gradients: Int[Tensor, " batch"]
    """Steps with an all-zero gradient."""
    iteration: Int[Tensor, " batch"]
    """After how many steps of its attempt `x` was reached; 0 is the start."""
    part: Int[Tensor, " batch"]
    """Which part of a composite attack found `x`, counted from 0."""
    crossings: Int[Tensor, " batch"]
    """Number of changes between right and wrong on the segment to the clean input, counted by `attacks.Bisected`
    alone."""
    errors: Int[Tensor, " batch"] = cast(Any, None)
    """In how many of the `draws` the model was wrong at `x`."""
    draws: Int[Tensor, " batch"] = cast(Any, None)
    """How often the model was asked to judge `x`: once, or several times if it is random."""
    not_finite: Int[Tensor, " batch"] = cast(Any, None)
    """How many of the draws were no prediction: NaN, or an infinite largest logit."""

    def __post_init__(self) -> None:
        once = {"errors": self.success.long(), "draws": torch.ones_like(self.success, dtype=torch.int64)}
        for name, value in {**once, "not_finite": torch.zeros_like(once["draws"])}.items():
            if getattr(self, name) is None:  # of an attack that asked once
                object.__setattr__(self, name, value)

    def _table(self) -> tuple[Row, list[Row]]:
        n, fooled = len(self), int(self.success.sum())
        distance = f"{self.distance[self.success].double().median():.4g}" if fooled else ""
        each = f"{self.evaluations.double().mean():.4g}" if n else ""
        lost = int((2 * self.not_finite > self.draws).sum())
        header = "samples", "fooled", "median distance", "evaluations per sample", "not finite"
        return header, [(str(n), str(fooled), distance, each, str(lost) if lost else "")]

    def _columns(self) -> dict[str, list[Any]]:
        names = "success", "distance", "prediction", "evaluations", "iteration", "part", "nan_gradients"
        return {name: getattr(self, name).tolist() for name in (*names, "zero_gradients", "not_finite")}

    def plot(self, classes: Sequence[str] = ()) -> Any:
        """Return a matplotlib figure of the first 100 perturbed images, titled by the predicted class and the distance.
        Raises `EquipoiseError` for inputs that are no images, and without matplotlib.
        """
        named = [classes[label] if 0 <= label < len(classes) else str(label) for label in self.prediction.tolist()]
        outcomes = zip(named, self.success.tolist(), self.distance.tolist(), strict=True)
        titles = [f"{name}, {distance:.3g}" if won else f"{name}, held" for name, won, distance in outcomes]
        return image_grid(self.x.detach().cpu().double().numpy(), titles)

    @property
    def costs(self) -> dict[str, Tensor]:
        """What the search took, per sample: evaluations, steps, and gradients that were of no use."""
        return {name: getattr(self, name) for name in ("evaluations", "iteration", "nan_gradients", "zero_gradients")}

    @property
    def error_rate(self) -> PerSample:
        """The share of draws in which the model was wrong at `x`: 0 or 1 unless it is random. The accuracy under this
        attack, also of a random model, is `1 - error_rate.mean()`.
        """
        return self.errors.to(self.x.dtype) / self.draws

    def with_rows(self, index: Tensor, new: "AttackResult") -> "AttackResult":
        """These outcomes, with those of the samples `index` replaced by `new`."""
        return AttackResult(
            **{f.name: getattr(self, f.name).index_copy(0, index, getattr(new, f.name)) for f in fields(self)}
        )

    def where(self, other: "AttackResult", which: Bool[Tensor, " batch"]) -> "AttackResult":
        """Per sample the outcome of `other` where `which`, else this one; costs and counters of both add up."""
        result = {}
        for name in (f.name for f in fields(self)):
            mine, new = getattr(self, name), getattr(other, name)
            added = name in ("evaluations", "nan_gradients", "zero_gradients")
            result[name] = mine + new if added else torch.where(like(which, new), new, mine)
        return AttackResult(**result)

    @staticmethod
    def cat(parts: "Sequence[AttackResult]") -> "AttackResult":
        """The outcomes of several batches in one."""
        return AttackResult(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(AttackResult)})


@dataclass(frozen=True)
class Criterion(SampleTable):
    """What counts as success."""

    label: Labels
    """The class that the prediction should not be."""
    target: Labels | None = None
    """The class that it should be; None for any but `label`."""

    def reached(self, output: Prediction) -> Bool[Tensor, " batch"]:
        """Which predictions are a success; one that is not finite is not."""
        labels = output.labels
        return (labels != self.label) & (labels >= 0) if self.target is None else labels == self.target

    @property
    def own(self) -> Labels:
        """The class that is told from all others: the target, or without one the label."""
        return self.label if self.target is None else self.target

    def margin(self, output: Prediction) -> PerSample:
        """`max_{i≠y} z_i - z_y`, or towards a target `z_t - max_{i≠t} z_i`: positive is a success."""
        return margin(output, None, self.label, self.target)

    def clearly_reached(self, output: Prediction) -> Bool[Tensor, " batch"]:
        """Which predictions are a success by more than rounding, so that they are on any device and in any batch."""
        return (self.margin(output) > output.resolution(self.own)) & output.finite


DRAWS = 20
"""Fresh draws of a random model over which its predictions are judged."""


@torch.no_grad()
def confirm(
    predictive: Frozen,
    geometry: Ball,
    criterion: Criterion,
    x: Points,
    point: Points,
    streams: Streams,
    *,
    evaluations: Int[Tensor, " batch"],
    iteration: Int[Tensor, " batch"],
    nan_gradients: Int[Tensor, " batch"] | None = None,
    zero_gradients: Int[Tensor, " batch"] | None = None,
) -> tuple[AttackResult, Prediction]:
    """The outcome at these points, and the prediction there: in eval mode and the model's own precision."""
    output, outcome = _outcome(predictive, geometry, criterion, x, point, streams, Stream.MODEL)
    none = torch.zeros_like(evaluations)
    result = AttackResult(
        x=point,
        distance=geometry.distance(point, x),
        evaluations=evaluations + outcome["draws"],
        nan_gradients=none if nan_gradients is None else nan_gradients,
        zero_gradients=none if zero_gradients is None else zero_gradients,
        iteration=iteration,
        part=none,
        crossings=none,
        **outcome,
    )
    return result, output


@torch.no_grad()
def judge(
    predictive: Frozen, geometry: Ball, criterion: Criterion, x: Points, result: AttackResult, streams: Streams
) -> AttackResult:
    """The outcome of a search, on a random model by fresh draws: those that chose the points were lucky ones."""
    if not predictive.random:
        return result
    return replace(result, **_outcome(predictive, geometry, criterion, x, result.x, streams, Stream.JUDGE)[1])


def prediction_of(predictive: Frozen, point: Points, streams: Streams, stream: int = Stream.MODEL) -> Prediction:
    """The prediction at points that counts; of a random model, the mean over `DRAWS` draws."""
    if not predictive.random:
        return predict(predictive, point, streams.fold(stream))
    keys = [streams.fold(stream, *([number] if number else [])) for number in range(DRAWS)]
    return Prediction(torch.cat([predict(predictive, point, key).logits for key in keys]))


def _outcome(
    predictive: Frozen,
    geometry: Ball,
    criterion: Criterion,
    x: Points,
    point: Points,
    streams: Streams,
    stream: Stream,
) -> tuple[Prediction, dict[str, Tensor]]:
    """The prediction at points, and the fields of an `AttackResult` that follow from it."""
    output = prediction_of(predictive, point, streams, stream)
    draws = [output]
    if predictive.random:
        draws = [Prediction(logits) for logits in output.logits.unflatten(0, (DRAWS, -1))]
    labels = torch.stack([draw.labels for draw in draws])
    errors = torch.stack([criterion.reached(draw) for draw in draws]).sum(0)
    return output, {
        "success": (2 * errors > len(draws)) & geometry.contains(point, x),
        "prediction": labels.mode(0).values,  # what most draws say
        "errors": errors,
        "draws": torch.full_like(errors, len(draws)),
        "not_finite": (labels < 0).sum(0),
    }


def likely_classes(clean: Prediction, y: Labels, count: int) -> Int[Tensor, "batch targets"]:
    """The `count` most likely classes other than `y` (all of them, if there are fewer), the most likely first; in place
    of one that cannot be (a score of `-inf`) the most likely once more.
    """
    others = clean.scores.scatter(1, y[:, None], -torch.inf)
    value, chosen = others.sort(dim=1, descending=True, stable=True)
    count = min(count, clean.classes - 1)
    return torch.where(value[:, :count].isneginf(), chosen[:, :1], chosen[:, :count])


def at(value: Any, index: "slice | Tensor") -> Any:
    """`value[index]`, or None for None."""
    return None if value is None else value[index]


def like(values: Shaped[Tensor, " batch"], x: Tensor) -> Shaped[Tensor, "batch ..."]:
    """A value per sample, shaped to be broadcast over `x`."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


__getattr__ = renamed_names(__name__, {"Goal": "Criterion", "Perturbed": "AttackResult"})

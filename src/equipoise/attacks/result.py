"""What every attack takes and what it returns: the checks of its input, and the outcome per sample.

with admitted(model, x, y, geometry, seed=seed) as case:     # refuses what cannot be attacked
    return confirmed(case.predictive, geometry, Goal(y), case.x, found, ...)     # looks at the points found once more
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
from equipoise.core.types import (
    Labels,
    PerSample,
    Points,
    Prediction,
)
from equipoise.geometry import Ball
from equipoise.models import (
    Frozen,
    predict,
)


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
    """Steps whose gradient was exactly 0: the sample did not know where to go."""
    iteration: Int[Tensor, " batch"]
    """After how many steps of its attempt `x` was reached; 0 is the start."""
    part: Int[Tensor, " batch"]
    """Which part of a composite attack found `x`, counted from 0."""
    crossings: Int[Tensor, " batch"]
    """How often the way back to the clean input was seen to change between right and wrong; 0 where nobody looked
    (`attacks.Bisected` does)."""
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

    @property
    def error_rate(self) -> PerSample:
        """The share of draws in which the model was wrong at `x`: 0 or 1 unless it is random. The accuracy under this
        attack, also of a random model, is `1 - error_rate.mean()`.
        """
        return self.errors.to(self.x.dtype) / self.draws

    def with_rows(self, rows: Tensor, new: "AttackResult") -> "AttackResult":
        """These outcomes, with those of the samples `rows` replaced by `new`."""
        return AttackResult(
            **{f.name: getattr(self, f.name).index_copy(0, rows, getattr(new, f.name)) for f in fields(self)}
        )

    def where(self, other: "AttackResult", which: Bool[Tensor, " batch"]) -> "AttackResult":
        """Per sample the outcome of `other` where `which`, else this one; costs and counters of both add up."""
        added = ("evaluations", "nan_gradients", "zero_gradients")
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return AttackResult(
            **{
                n: mine + new if n in added else torch.where(like(which, new), new, mine)
                for n, (mine, new) in pairs.items()
            }
        )

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

    def reached(self, here: Prediction) -> Bool[Tensor, " batch"]:
        """Which predictions are a success; one that is not finite is none."""
        labels = here.labels
        return (labels != self.label) & (labels >= 0) if self.target is None else labels == self.target


DRAWS = 20
"""Fresh draws of a random model over which its predictions are judged."""

"""The stream of those draws."""


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
    """The outcome at the points found, and the prediction there: in eval mode and the model's own precision."""
    here, errors, not_finite, label = _asked(predictive, criterion, point, streams, Stream.MODEL)
    none = torch.zeros_like(evaluations)
    draws = DRAWS if predictive.random else 1
    result = AttackResult(
        x=point,
        success=(2 * errors > draws) & geometry.contains(point, x),
        distance=geometry.distance(point, x),
        prediction=label,
        evaluations=evaluations + draws,
        nan_gradients=none if nan_gradients is None else nan_gradients,
        zero_gradients=none if zero_gradients is None else zero_gradients,
        iteration=iteration,
        part=none,
        crossings=none,
        errors=errors,
        draws=torch.full_like(none, draws),
        not_finite=not_finite,
    )
    return result, here


@torch.no_grad()
def judge(
    predictive: Frozen, geometry: Ball, criterion: Criterion, x: Points, result: AttackResult, streams: Streams
) -> AttackResult:
    """The outcome of a search, on a random model by fresh draws: those that chose the points were lucky ones."""
    if not predictive.random:
        return result
    _, errors, not_finite, label = _asked(predictive, criterion, result.x, streams, Stream.JUDGE)
    success = (2 * errors > DRAWS) & geometry.contains(result.x, x)
    return replace(result, success=success, errors=errors, not_finite=not_finite, prediction=label)


def prediction_of(predictive: Frozen, point: Points, streams: Streams, stream: int = Stream.MODEL) -> Prediction:
    """The prediction at points that counts; of a random model, the mean over `DRAWS` draws."""
    keys = [streams.fold(stream, *([number] if number else [])) for number in range(DRAWS if predictive.random else 1)]
    heres = [predict(predictive, point, key) for key in keys]
    return heres[0] if len(heres) == 1 else Prediction(torch.cat([here.logits for here in heres]))


def _asked(
    predictive: Frozen, criterion: Criterion, point: Points, streams: Streams, stream: int
) -> tuple[Prediction, Int[Tensor, " batch"], Int[Tensor, " batch"], Labels]:
    """The prediction at points, in how many draws it is a success or not finite, and the label given most often."""
    here = prediction_of(predictive, point, streams, stream)
    if not predictive.random:
        labels = here.labels
        return here, criterion.reached(here).long(), (labels < 0).long(), labels
    draws = [Prediction(logits) for logits in here.logits.unflatten(0, (DRAWS, -1))]
    labels = torch.stack([draw.labels for draw in draws])
    errors = torch.stack([criterion.reached(draw) for draw in draws]).sum(0)
    return here, errors, (labels < 0).sum(0), labels.mode(0).values


def likely_classes(clean: Prediction, y: Labels, count: int) -> Int[Tensor, "batch targets"]:
    """The `count` most likely classes other than `y` (all of them, if there are fewer), the most likely first; in place
    of one that cannot be (a score of `-inf`) the most likely once more.
    """
    others = clean.scores.scatter(1, y[:, None], -torch.inf)
    value, chosen = others.sort(dim=1, descending=True, stable=True)
    count = min(count, clean.classes - 1)
    return torch.where(value[:, :count].isneginf(), chosen[:, :1], chosen[:, :count])


def at(value: Any, rows: "slice | Tensor") -> Any:
    """`value[rows]`, or None for None."""
    return None if value is None else value[rows]


def like(values: Shaped[Tensor, " batch"], x: Tensor) -> Shaped[Tensor, "batch ..."]:
    """A value per sample, shaped to be broadcast over `x`."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


__getattr__ = renamed_names(__name__, {"Goal": "Criterion", "Perturbed": "AttackResult"})

"""What the attacks that look for the nearest point of another class have in common: FAB, BG, DeepFool and FMN.

They see the boundary towards a class t as the plane on which the linearised difference of scores `z_t - z_y` is 0.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from equipoise.attacks.attack import Batch, Candidates, SearchAttack
from equipoise.attacks.execution import frozen_model, value_and_gradient
from equipoise.core.rng import Stream
from equipoise.core.types import Labels, PerSample, Points, Predict, Prediction
from equipoise.geometry import Rows
from equipoise.losses.objectives import Objective, margin

_ROUNDED = 16
"""Shorter by less than so many units of a distance's resolution is not nearer: rounding differs from batch to batch."""


def _difference(
    here: Prediction, clean: Prediction | None, labels: Int[Tensor, " batch"], target: Int[Tensor, " batch"]
) -> PerSample:
    scores = here.scores
    return (scores.gather(1, target[:, None]) - scores.gather(1, labels[:, None])).squeeze(1)


difference = Objective("logit difference", _difference, needs_labels=True, targeted=True)
"""`z_t - z_y`: positive where the target class is more likely than the true one."""


def clearly_wrong(here: Prediction, y: Labels) -> Bool[Tensor, " batch"]:
    """By more than rounding, lest the point be right in another batch or on another device."""
    return (margin(here, None, y) > here.resolution(y)) & here.finite


def usable(gradient: Rows) -> tuple[Rows, Bool[Tensor, " batch"], Bool[Tensor, " batch"]]:
    """The gradient with 0 in place of what is not finite; which rows held such, and which are 0 throughout."""
    strength = gradient.abs().amax(1)
    finite = strength.isfinite()
    clean = gradient if finite.all() else gradient.nan_to_num(0.0, 0.0, 0.0)
    return clean, ~finite, strength == 0


class Planes(NamedTuple):
    """The linearised boundaries towards several classes: `value + gradient·d = 0`."""

    value: Float[Tensor, "batch targets"]
    """`z_t - z_y`."""
    gradient: Float[Tensor, "batch targets features"]
    """Its gradient."""


@dataclass
class Search:
    """A search under way: the samples and what was found, per sample."""

    predict: Predict
    """The model, standing still."""
    x: Points
    """The clean points."""
    y: Labels
    """The classes to get away from."""
    clean: Prediction
    """The prediction at the clean points."""
    point: Points
    """The nearest wrong point; the clean one while there is none."""
    distance: PerSample
    """Its distance; infinite while there is none."""
    iteration: Int[Tensor, " batch"]
    """At which step it was found."""
    evaluations: Int[Tensor, " batch"]
    """How often the model was evaluated."""
    nan: Int[Tensor, " batch"]
    """Steps with a gradient that is not finite."""
    zero: Int[Tensor, " batch"]
    """Steps with a gradient of 0."""

    def look(self, points: Points, rows: Int[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
        """Whether the model is clearly wrong at these points of the samples `rows`, which may occur more than once."""
        self.evaluations.index_add_(0, rows, torch.ones_like(rows))
        return clearly_wrong(self.predict(points), self.y[rows])

    def ascend(self, objective: Objective, points: Points, rows: Tensor, target: Labels | None = None) -> Any:
        """The objective, its usable gradient as rows, and the prediction at points of the samples `rows`."""
        value, gradient, here = value_and_gradient(objective, self.predict, points, None, self.y[rows], target)
        gradient, nan, zero = usable(gradient.flatten(1))
        for counter, event in ((self.evaluations, torch.ones_like(nan)), (self.nan, nan), (self.zero, zero)):
            counter.index_add_(0, rows, event.long())
        return value.nan_to_num(0.0, 0.0, 0.0), gradient, here

    def planes(self, points: Points, rows: Tensor, targets: Int[Tensor, "rows targets"]) -> Planes:
        """The boundaries as seen from one point of each of the samples `rows`, all of them in one pass."""
        each = targets.shape[1]
        value, gradient, _ = self.ascend(
            difference, points.repeat_interleave(each, 0), rows.repeat_interleave(each), targets.flatten()
        )
        return Planes(value.unflatten(0, (-1, each)), gradient.unflatten(0, (-1, each)))

    def keep(self, points: Points, rows: Tensor, distance: PerSample, step: int) -> None:
        """Remember these wrong points of different samples where they are nearer than those before, by more than what
        rounding, which differs from batch to batch, explains.
        """
        better = distance < self.distance[rows] * (1 - _ROUNDED * torch.finfo(distance.dtype).eps)
        rows = rows[better]
        self.point[rows], self.distance[rows], self.iteration[rows] = points[better], distance[better], step


class BoundaryAttack(SearchAttack):
    """A search for the nearest point of another class, that follows the linearised boundary."""

    @abstractmethod
    def walk(self, search: Search) -> None:
        """Fill in a `Search`: look, ascend, and keep the nearest wrong points."""

    @final
    def search(self, batch: Batch) -> Candidates:
        """The nearest wrong points that the walk keeps."""
        counts = [torch.zeros_like(batch.label) for _ in range(4)]
        far = batch.x.new_full((len(batch),), torch.inf)
        with frozen_model(batch.inputs.predictive, batch.x) as draw:
            look = draw(batch.inputs.streams.fold(Stream.MODEL))
            found = Search(look, batch.x, batch.label, batch.clean, batch.x.clone(), far, *counts)
            self.walk(found)
        return Candidates(found.point, found.evaluations, found.iteration, found.nan, found.zero)

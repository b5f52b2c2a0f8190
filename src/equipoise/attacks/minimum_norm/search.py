"""What minimum-norm attacks have in common.

FAB, BG, DeepFool and FMN linearise the boundary towards a class t: the plane where the linearised difference of scores
`z_t - z_y` is 0.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from equipoise.attacks.attack import Batch, Candidates, SearchAttack
from equipoise.attacks.execution import frozen_model, value_and_gradient
from equipoise.attacks.result import Criterion
from equipoise.core.rng import Stream
from equipoise.core.types import Labels, PerSample, Points, Predict, Prediction
from equipoise.geometry import Ball, Rows
from equipoise.losses.objectives import Objective, margin

_ROUNDED = 16
"""A distance is smaller only by more than this many machine epsilons, as rounding differs from batch to batch."""


def _difference(
    here: Prediction, clean: Prediction | None, labels: Int[Tensor, " batch"], target: Int[Tensor, " batch"]
) -> PerSample:
    scores = here.scores
    return (scores.gather(1, target[:, None]) - scores.gather(1, labels[:, None])).squeeze(1)


difference = Objective("logit difference", _difference, needs_labels=True, targeted=True)
"""`z_t - z_y`: positive where the target class is more likely than the true one."""


def difference_to(criterion: Criterion) -> Objective:
    """`z_t - z_y`; where t is the only class that counts `z_t - max_{i≠t} z_i`."""
    return difference if criterion.target is None else margin


def linearise(
    objective: Objective,
    predict: Predict,
    points: Points,
    labels: Labels,
    target: Labels | None,
    candidates: Candidates,
    index: Int[Tensor, " rows"],
) -> tuple[PerSample, Rows, Prediction]:
    """Return the objective, its gradient, flattened, and the prediction at points of the samples `index`, whose costs
    are counted. Values that are not finite become 0.
    """
    value, gradient, output = value_and_gradient(objective, predict, points, None, labels, target)
    gradient = gradient.flatten(1)
    strength = gradient.abs().amax(1)
    finite = strength.isfinite()
    candidates.count(index, ~finite, strength == 0)
    gradient = gradient if finite.all() else gradient.nan_to_num(0.0, 0.0, 0.0)
    return value.nan_to_num(0.0, 0.0, 0.0), gradient, output


@dataclass
class Search:
    """The state of a search: the samples, and their nearest misclassified points so far."""

    predict: Predict
    batch: Batch
    ball: Ball
    criterion: Criterion
    candidates: Candidates  # the nearest misclassified points, the clean ones while there are none, and all costs
    distance: PerSample  # of these points; infinite while there is none

    @property
    def x(self) -> Points:
        """The clean points."""
        return self.batch.x

    def look(self, points: Points, index: Int[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
        """Whether these points of the samples `index`, which may occur more than once, are clear successes."""
        self.candidates.count(index)
        return self.criterion[index].clearly_reached(self.predict(points))

    def ascend(self, objective: Objective, points: Points, index: Tensor, target: Labels | None = None) -> Any:
        """`linearise` at points of the samples `index`, towards their targets if there are any."""
        goal = self.criterion[index]
        target = goal.target if target is None else target
        return linearise(objective, self.predict, points, goal.label, target, self.candidates, index)

    def planes(
        self, points: Points, index: Tensor, targets: Int[Tensor, "rows targets"]
    ) -> tuple[Float[Tensor, "rows targets"], Float[Tensor, "rows targets features"]]:
        """`difference_to` of `targets` and its gradient at one point of each of the samples `index`, all targets in one
        pass: the linearised boundaries `value + gradient·d = 0`.
        """
        count, objective = targets.shape[1], difference_to(self.criterion)
        value, gradient, _ = self.ascend(
            objective, points.repeat_interleave(count, 0), index.repeat_interleave(count), targets.flatten()
        )
        return value.unflatten(0, (-1, count)), gradient.unflatten(0, (-1, count))

    def visit(self, objective: Objective, points: Points, step: int) -> tuple[PerSample, Rows, Bool[Tensor, " batch"]]:
        """Return the objective and its gradient at one point of every sample, and which of these points are clear
        successes, of which the nearest are kept.
        """
        value, gradient, output = self.ascend(objective, points, self._everyone)
        wrong = self.criterion.clearly_reached(output)
        self._keep_wrong(points, wrong, step)
        return value, gradient, wrong

    def finish(self, points: Points, step: int) -> None:
        """`visit` the last points, at which no gradient is needed."""
        self._keep_wrong(points, self.look(points, self._everyone), step)

    @property
    def _everyone(self) -> Int[Tensor, " batch"]:
        return torch.arange(len(self.x), device=self.x.device)

    def _keep_wrong(self, points: Points, wrong: Bool[Tensor, " batch"], step: int) -> None:
        index = wrong.nonzero()[:, 0]
        self.keep(points[index], index, self.ball.distance(points[index], self.x[index]), step)

    def keep(self, points: Points, index: Tensor, distance: PerSample, step: int) -> None:
        """Remember these misclassified points of different samples where they are nearer than those before, by more
        than what rounding, which differs from batch to batch, explains.
        """
        better = distance < self.distance[index] * (1 - _ROUNDED * torch.finfo(distance.dtype).eps)
        index = index[better]
        self.candidates.write(index, point=points[better], iteration=step)
        self.distance[index] = distance[better]


class BoundaryAttack(SearchAttack):
    """A search for the nearest point of another class, or of a target."""

    takes_targets = True

    @abstractmethod
    def walk(self, search: Search) -> None:
        """Fill in a `Search`: look, ascend, and keep the nearest misclassified points."""

    @final
    def search(self, batch: Batch) -> Candidates:
        """The nearest misclassified points that the walk keeps."""
        candidates, far = Candidates.unmoved(batch.x), torch.full_like(batch.value, torch.inf)
        with frozen_model(batch.inputs.predictive, batch.x) as draw:
            predict = draw(batch.inputs.streams.fold(Stream.MODEL))
            self.walk(Search(predict, batch, self.geometry, batch.inputs.criterion, candidates, far))
        return candidates

"""Random search: points drawn from the ball until one of them fools the model. It asks for no gradient.

Where a gradient attack failed and this succeeds, the gradient has misled it (R, App. C.1: `R10`). With v the share of
the ball where the model is wrong, n draws fool it with probability `1 - (1 - v)^n`.
"""

from dataclasses import dataclass
from typing import get_args

import torch

from equipoise.attacks.attack import Batch, Candidates, SearchAttack
from equipoise.attacks.execution import frozen_model
from equipoise.attacks.result import Criterion
from equipoise.core import progress
from equipoise.core.errors import require, require_integer, unknown
from equipoise.core.rng import Stream
from equipoise.core.types import Precision
from equipoise.geometry import Ball, Box
from equipoise.losses.objectives import margin
from equipoise.models import predict


@dataclass(frozen=True)
class RandomSearch(SearchAttack):
    """The first of so many random points of the ball that fools the model."""

    kind = "random-search"
    needs_labels = True
    returns_best = True

    geometry: Ball
    """Where the points are drawn: uniformly on the ball, then projected into the box."""
    draws: int = 10_000
    """How many points, at most, are tried per sample."""
    precision: Precision = "32"
    """`bf16` looks at the points in bfloat16; what seems a success is confirmed in float32, else the search goes on."""

    def __post_init__(self) -> None:
        require(self.geometry.eps < float("inf"), "random search draws from a finite ball: eps is infinite.")
        require_integer("draws", self.draws, 1)
        if self.precision not in get_args(Precision):
            raise unknown("precision", self.precision, get_args(Precision))

    def __str__(self) -> str:
        return f"random search({self.geometry.norm} {self.geometry.eps:g}, {self.draws} draws)"

    def search(self, batch: Batch) -> Candidates:
        """Draw points, the more per sample the fewer are left, until each sample is fooled or has had its share.

        The iteration is the number of the draw that is returned, from 1; every draw has a random stream of its own, by
        the seed, the sample and its number. `evaluations` is what the search would take one draw at a time.
        """
        x, y, streams, at_once = batch.x, batch.label, batch.inputs.streams, batch.inputs.points_at_once
        predictive, value = batch.inputs.predictive, batch.value.clone()
        point, number, tried = x.clone(), torch.zeros_like(y), 0
        left = torch.arange(len(x), device=x.device)
        with frozen_model(predictive, x, "eval", self.precision) as draw:
            look = draw(streams.fold(Stream.MODEL))
            while tried < self.draws and len(left):
                progress.report(tried, self.draws, "draw")
                each = min(max(at_once // len(left), 1), self.draws - tried)
                rows = left.repeat_interleave(each)
                trial = torch.arange(tried + 1, tried + each + 1, device=x.device).repeat(len(left))
                drawn = self.geometry.draw(streams[rows].fold(Stream.RANDOM_SEARCH, trial), x[rows])
                here = look(drawn)
                score = margin(here, None, y[rows]).nan_to_num(-torch.inf)
                fooled = Criterion(y[rows]).reached(here).nonzero()[:, 0]
                if len(fooled):
                    # Lower precision, or other weights' layout, may see a success that there is not.
                    truth = predict(predictive, drawn[fooled], streams[rows[fooled]].fold(Stream.MODEL))
                    score[fooled] = torch.where(Criterion(y[rows[fooled]]).reached(truth), torch.inf, score[fooled])
                best, first = score.reshape(-1, each).max(1)
                better = (best > value[left]).nonzero()[:, 0]
                row, slot = better * each + first[better], left[better]
                point[slot], number[slot], value[slot] = drawn[row], trial[row], best[better]
                left = left[value[left] < torch.inf]
                tried += each
        return Candidates(point, torch.where(value == torch.inf, number, self.draws), number)


def random_search(
    eps: float, norm: str = "linf", draws: int = 10_000, box: Box = Box(), precision: Precision = "32"
) -> RandomSearch:
    """Up to `draws` random points of the ball per sample (R, App. C.1). In a `Chain` after a gradient attack it looks
    only at those that this one left standing, and `AttackResult.part` says who fell to which.
    """
    return RandomSearch(Ball(norm, eps, box), draws, precision)

"""Random search: points drawn from the ball until one of them fools the model. It needs no gradient.

Where a gradient attack failed and this succeeds, the gradient has misled it (R, App. C.1: `R10`). With v the share of
the ball where the model is wrong, n draws fool it with probability `1 - (1 - v)^n`.
"""

from dataclasses import dataclass

import torch

from equipoise.attacks.attack import Batch, Candidates, SearchAttack
from equipoise.attacks.execution import frozen_model
from equipoise.core import progress
from equipoise.core.checks import checked_call
from equipoise.core.errors import require, require_integer
from equipoise.core.rng import Stream
from equipoise.core.types import Precision
from equipoise.geometry import Ball, Box
from equipoise.models import predict


@dataclass(frozen=True)
class RandomSearch(SearchAttack):
    """The first of `draws` random points of the ball that fools the model."""

    kind = "random-search"
    needs_labels = True
    asks_for = "labels"
    returns_best = True
    takes_targets = True

    geometry: Ball
    """Where the points are drawn: uniformly on the ball, then projected into the box."""
    draws: int = 10_000
    """How many points, at most, are tried per sample."""
    precision: Precision = "32"
    """`bf16` computes predictions in bfloat16; a success must be confirmed in float32, or the search goes on."""

    def __post_init__(self) -> None:
        require(self.geometry.eps < float("inf"), "random search draws from a finite ball: eps is infinite.")
        require_integer("draws", self.draws, 1)

    def search(self, batch: Batch) -> Candidates:
        """Draw points, the more per sample the fewer are active, until each sample is fooled or has had all draws.

        The iteration is the number of the draw that is returned, from 1; every draw has a random stream of its own, by
        the seed, the sample and its number. `evaluations` is what the search would take one draw at a time.
        """
        x, criterion, streams = batch.x, batch.inputs.criterion, batch.inputs.streams
        at_once = batch.inputs.points_at_once
        predictive, value = batch.inputs.predictive, batch.value.clone()
        point, number, tried = x.clone(), torch.zeros_like(batch.label), 0
        active = torch.arange(len(x), device=x.device)
        with frozen_model(predictive, x, "eval", self.precision) as draw:
            fast_predict = draw(streams.fold(Stream.MODEL))
            while tried < self.draws and len(active):
                progress.report(tried, self.draws, "draw")
                each = min(max(at_once // len(active), 1), self.draws - tried)
                sample = active.repeat_interleave(each)
                trial = torch.arange(tried + 1, tried + each + 1, device=x.device).repeat(len(active))
                drawn = self.geometry.draw(streams[sample].fold(Stream.RANDOM_SEARCH, trial), x[sample])
                output = fast_predict(drawn)
                score = criterion[sample].margin(output).nan_to_num(-torch.inf)
                fooled = criterion[sample].reached(output).nonzero()[:, 0]
                if len(fooled):
                    # Lower precision or another memory layout may show a success that the model itself denies.
                    exact = predict(predictive, drawn[fooled], streams[sample[fooled]].fold(Stream.MODEL))
                    confirmed = criterion[sample[fooled]].reached(exact)
                    score[fooled] = torch.where(confirmed, torch.inf, score[fooled])
                best, best_draw = score.reshape(-1, each).max(1)
                better = (best > value[active]).nonzero()[:, 0]
                chosen, index = better * each + best_draw[better], active[better]
                point[index], number[index], value[index] = drawn[chosen], trial[chosen], best[better]
                active = active[value[active] < torch.inf]
                tried += each
        return Candidates(point, torch.where(value == torch.inf, number, self.draws), number)


@checked_call()
def random_search(
    eps: float, norm: str = "linf", draws: int = 10_000, box: Box = Box(), precision: Precision = "32"
) -> RandomSearch:
    """Up to `draws` random points of the ball per sample (R, App. C.1). In a `Chain` after a gradient attack it is
    run on the samples that this one did not fool, and `AttackResult.part` tells which attack fooled which sample.
    """
    return RandomSearch(Ball(norm, eps, box), draws, precision)

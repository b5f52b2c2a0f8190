"""Random search: points drawn from the ball until one of them fools the model. It asks for no gradient.

Where a gradient attack failed and this succeeds, the gradient has misled it (R, App. C.1: `R10`). With v the share of
the ball where the model is wrong, n draws fool it with probability `1 - (1 - v)^n`.
"""

from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch
from jaxtyping import Int
from torch import Tensor, nn

from equipoise.attacks.execution import AT_ONCE, held_still
from equipoise.attacks.inputs import MODEL_STREAM, admitted
from equipoise.attacks.result import Goal, Perturbed, confirmed, judged
from equipoise.core import progress
from equipoise.core.errors import EquipoiseError, require, unknown
from equipoise.core.rng import Streams
from equipoise.core.types import Labels, PerSample, Points, Precision, Predictive
from equipoise.geometry import Ball, Box
from equipoise.losses.objectives import margin
from equipoise.models import Frozen, predict

_DRAW = 14  # what a stream is drawn for


@dataclass(frozen=True)
class RandomSearch:
    """The first of so many random points of the ball that fools the model."""

    geometry: Ball
    """Where the points are drawn: uniformly on the ball, then projected into the box."""
    draws: int = 10_000
    """How many points, at most, are tried per sample."""
    precision: Precision = "32"
    """`bf16` looks at the points in bfloat16; what seems a success is confirmed in float32, else the search goes on."""

    def __post_init__(self) -> None:
        require(self.geometry.eps < float("inf"), "random search draws from a finite ball: eps is infinite.")
        require(self.draws >= 1, f"draws = {self.draws} searches nothing: expected an integer >= 1.")
        if self.precision not in get_args(Precision):
            raise unknown("precision", self.precision, get_args(Precision))

    def __str__(self) -> str:
        return f"random search({self.geometry.norm} {self.geometry.eps:g}, {self.draws} draws)"

    def settings(self) -> dict[str, Any]:
        """Every field as JSON-ready data, for records."""
        return {"attack": "random-search", **asdict(self)}

    @torch.no_grad()
    def __call__(
        self,
        model: "nn.Module | Predictive",
        x: Points,
        y: Labels | None = None,
        *,
        seed: int = 0,
        index: Int[Tensor, " batch"] | None = None,
        batch_size: int = 512,
    ) -> Perturbed:
        """Search around `x` for points that `model` does not take for `y`, the true labels.

        `iteration` is the number of the draw that is returned, from 1; 0 is the clean point, which is looked at first.
        A sample that is never fooled returns the point of its smallest margin. Every draw has a random stream of its
        own, by the seed, the sample and its number, so that a result depends neither on `batch_size`, which counts
        points, nor on the order. `evaluations` is what the search would take one draw at a time.
        Raises `EquipoiseError` for unusable input and for models in which samples depend on each other.
        """
        if y is None:
            raise EquipoiseError("random search needs labels: give the true classes as y.")
        with admitted(model, x, y, self.geometry, seed=seed, index=index, batch_size=batch_size) as case:
            case.require_independent("random search")
            at_once = min(batch_size, AT_ONCE) if x.device.type == "cpu" else batch_size
            return Perturbed.cat(
                [
                    self._attack(case.predictive, case.x[b], y[b], case.streams[b], at_once)
                    for b in case.batches(at_once)
                ]
            )

    def _attack(self, predictive: Frozen, x: Points, y: Labels, streams: Streams, at_once: int) -> Perturbed:
        """The clean points, and the search for those that are not wrong already."""
        none = torch.zeros_like(y)
        clean, here = confirmed(predictive, self.geometry, Goal(y), x, x, streams, evaluations=none, iteration=none)
        rows = (~clean.success).nonzero()[:, 0]
        if len(rows) == 0:
            return clean
        least = margin(here, None, y)[rows]
        found = self._search(predictive, x[rows], y[rows], streams[rows], least, at_once)
        result = clean.overwritten(rows, clean.take(rows).or_rather(found, torch.ones_like(found.success)))
        return judged(predictive, self.geometry, Goal(y), x, result, streams)

    def _search(
        self, predictive: Frozen, x: Points, y: Labels, streams: Streams, value: PerSample, at_once: int
    ) -> Perturbed:
        """Draw `at_once` points at a time, the more per sample the fewer are left. The best so far has the `value`."""
        point, number, tried = x.clone(), torch.zeros_like(y), 0
        left = torch.arange(len(x), device=x.device)
        with held_still(predictive, x, "eval", self.precision) as draw:
            look = draw(streams.fold(MODEL_STREAM))
            while tried < self.draws and len(left):
                progress.report(tried, self.draws, "draw")
                each = min(max(at_once // len(left), 1), self.draws - tried)
                rows = left.repeat_interleave(each)
                trial = torch.arange(tried + 1, tried + each + 1, device=x.device).repeat(len(left))
                drawn = self.geometry.draw(streams[rows].fold(_DRAW, trial), x[rows])
                here = look(drawn)
                score = margin(here, None, y[rows]).nan_to_num(-torch.inf)
                fooled = Goal(y[rows]).reached(here).nonzero()[:, 0]
                if len(fooled):
                    # Lower precision, or other weights' layout, may see a success that there is not.
                    truth = predict(predictive, drawn[fooled], streams[rows[fooled]].fold(MODEL_STREAM))
                    score[fooled] = torch.where(Goal(y[rows[fooled]]).reached(truth), torch.inf, score[fooled])
                best, first = score.reshape(-1, each).max(1)
                better = (best > value[left]).nonzero()[:, 0]
                row, slot = better * each + first[better], left[better]
                point[slot], number[slot], value[slot] = drawn[row], trial[row], best[better]
                left = left[value[left] < torch.inf]
                tried += each
        spent = torch.where(value == torch.inf, number, self.draws)
        result, _ = confirmed(
            predictive, self.geometry, Goal(y), x, point, streams, evaluations=spent, iteration=number
        )
        return result


def random_search(
    eps: float, norm: str = "linf", draws: int = 10_000, box: Box = Box(), precision: Precision = "32"
) -> RandomSearch:
    """Up to `draws` random points of the ball per sample (R, App. C.1). In a `Chain` after a gradient attack it looks
    only at those that this one left standing, and `Perturbed.part` says who fell to which.
    """
    return RandomSearch(Ball(norm, eps, box), draws, precision)

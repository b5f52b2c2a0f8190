"""The distance of a sample to the decision boundary: that at which an attack without a radius succeeds, bisected.

R (Sec. 6 and Fig. 4) follows the gradient without a radius until the prediction is wrong and reports `‖x_adv - x‖₂`.
Here that point is then moved back along the segment to the clean one, to the nearest misclassified point that bisection
finds.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from equipoise.attacks.ascent import Ascent
from equipoise.attacks.attack import Attack, AttackLike, own_labels
from equipoise.attacks.inputs import AttackInputs
from equipoise.attacks.result import AttackResult, like
from equipoise.attacks.spaces import Input
from equipoise.core.checks import checked_call
from equipoise.core.errors import require, require_integer
from equipoise.core.types import Points
from equipoise.geometry import Ball, Box
from equipoise.losses.objectives import Objective, cross_entropy


@dataclass(frozen=True)
class Bisected(Attack):
    """An attack whose successes are moved back towards the clean point, to where the segment first leaves its class:
    `min{t : f(x + t(x_adv - x)) != f(x)}` (F, Eq. 14).

    The segment may cross the boundary several times. It is divided into `looks` equal intervals; the first one that
    ends at a misclassified point is bisected. The result is misclassified: an upper bound on the distance to the
    boundary, within `2^-halvings/looks` of the move of a crossing, the first one unless the segment leaves the class
    and returns within an interval. `AttackResult.crossings` counts the changes from one end of an interval to the
    other: more than 1 means that there was a choice. A point counts as misclassified if rounding cannot change that:
    nearer to the boundary than float32 resolves, no other batch would confirm it.
    """

    kind = "bisected"

    attack: AttackLike
    """The attack."""
    halvings: int = 20
    """Bisection steps in the interval of the first crossing; each costs one forward pass."""
    looks: int = 16
    """Number of intervals of the segment; 1 assumes a single crossing."""
    geometry: Ball = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_integer("looks", self.looks, 1)
        require_integer("halvings", self.halvings, 1)
        require(
            isinstance(getattr(self.attack, "space", Input()), Input),
            "bisection moves points of the input, but the attack perturbs a latent space: leave out its space.",
        )
        object.__setattr__(self, "geometry", self.attack.geometry)

    def __str__(self) -> str:
        return f"{self.attack}, back to the boundary"

    def run(self, inputs: AttackInputs) -> AttackResult:
        """Attack, and move back what succeeded; without labels, to where the prediction just differs from that at `x`.

        A sample that is wrong already is at distance 0; `distance` says nothing where `success` is False.
        """
        inputs.require_independent(self.kind)
        result = self.attack(inputs.model, inputs.x, inputs.y, **inputs.options)
        return AttackResult.cat([self._bisect(inputs[i], result[i]) for i in inputs.batches(inputs.batch_size)])

    def _bisect(self, inputs: AttackInputs, result: AttackResult) -> AttackResult:
        """Move the successes of a batch back to the boundary; the other samples stay."""
        result, index = replace(result, part=torch.zeros_like(result.part)), result.success.nonzero()[:, 0]
        if len(index) == 0:
            return result
        old, inputs = result[index], inputs[index]
        inputs = replace(inputs, y=own_labels(inputs))
        x, criterion = inputs.x, inputs.criterion

        def point(t: Tensor) -> Points:
            return torch.lerp(x, old.x, like(t, x))

        def misclassified(t: Tensor) -> Tensor:
            return criterion.clearly_reached(inputs.predict(point(t)))

        one = torch.ones_like(old.distance)
        clean = criterion.reached(inputs.predict(x))
        inner = [misclassified(one * i / self.looks) for i in range(1, self.looks)]
        wrong = torch.stack([clean, *inner, clean.new_ones(len(x))])  # at each of the evenly spaced points
        first = wrong.int().argmax(0)
        low, high = one * (first - 1).clamp_min(0) / self.looks, one * first / self.looks
        for _ in range(self.halvings):
            middle = (low + high) / 2
            crossed = misclassified(middle)
            low, high = torch.where(crossed, low, middle), torch.where(crossed, middle, high)
        cost = torch.full_like(old.evaluations, self.looks + self.halvings)
        new, _ = inputs.confirm(self.geometry, point(high), evaluations=cost, iteration=old.iteration)
        crossings = (wrong[1:] != wrong[:-1]).sum(0)
        new, old = replace(new, crossings=crossings), replace(old, crossings=crossings)
        return result.with_rows(index, inputs.judge(self.geometry, old.where(new, new.success)))


@checked_call(Ascent)
def minimal_l2(
    step_size: float | None = None,
    steps: int = 500,
    objective: Objective = cross_entropy,
    halvings: int = 20,
    box: Box = Box(),
    looks: int = 16,
    **options: Any,
) -> Bisected:
    """The L2 distance at which a sample is misclassified: normalised gradient steps without a radius until it is, then
    back to the boundary (R, Sec. 6). It reaches as far as `steps · step_size`; by default steps of .02 times the width
    of the box.

    This is an upper bound on the distance to the nearest boundary, and for a linear model of two classes the distance
    itself. With several classes the cross-entropy need not lead to the nearest: with `num_targets=9, objective=margin`
    it ascends towards each of the 9 likeliest side by side, and the first to arrive counts. Also takes the other
    fields of `Ascent`, such as `precision`. Without a radius every sample may be fooled: quote the distances.
    """
    options = {"return_point": "first_success"} | options
    step_size = 0.02 * box.scale if step_size is None else step_size
    return Bisected(Ascent(objective, Ball("l2", math.inf, box), step_size, steps, **options), halvings, looks)

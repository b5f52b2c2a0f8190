"""How far a sample is from being misclassified: the distance at which an attack without a bound succeeds.

R (Sec. 6 and Fig. 4) walks uphill without a radius until the prediction is wrong and reports `‖x_adv - x‖₂`. Here the
point found is then taken back along the segment to the clean one, to the nearest wrong point that bisection finds.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from equipoise.attacks.ascent import Ascent
from equipoise.attacks.attack import Attack, AttackLike, own_labels
from equipoise.attacks.inputs import AttackInputs
from equipoise.attacks.minimum_norm.search import clearly_wrong
from equipoise.attacks.result import AttackResult, Criterion, confirm, judge
from equipoise.attacks.spaces import Input
from equipoise.core.errors import require, require_integer
from equipoise.core.rng import Stream
from equipoise.core.types import Points
from equipoise.geometry import Ball, Box
from equipoise.losses.objectives import Objective, cross_entropy
from equipoise.models import predict


@dataclass(frozen=True)
class Bisected(Attack):
    """An attack whose successes are moved back towards the clean point, to where the segment first leaves its class:
    `min{t : f(x + t(x_adv - x)) != f(x)}` (F, Eq. 14).

    The segment may cross the boundary several times. It is looked at in `looks` evenly spaced points, and between the
    first wrong one and the one before each halving replaces the right or the wrong end by the middle. The result is
    wrong: an upper bound on the distance to the boundary, within `2^-halvings/looks` of the move of a crossing, the
    first one unless the segment leaves the class and returns between two looks. `AttackResult.crossings` counts the
    changes between right and wrong that the looks show: more than 1 means that there was a choice. Wrong is what stays
    so under rounding: nearer to the boundary than float32 resolves, no other batch would confirm it.
    """

    kind = "bisected"

    attack: AttackLike
    """The attack."""
    halvings: int = 20
    """How often the interval of the first crossing is halved; each costs one forward pass."""
    looks: int = 16
    """Into how many intervals the segment is divided at first; 1 takes it for granted that it crosses once."""
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
        found = self.attack(inputs.model, inputs.x, inputs.y, **inputs.options)
        return AttackResult.cat(
            [self._moved_back(inputs[rows], found[rows]) for rows in inputs.batches(inputs.batch_size)]
        )

    def _moved_back(self, inputs: AttackInputs, found: AttackResult) -> AttackResult:
        """One batch of what was found; those that did not succeed stay."""
        found, rows = replace(found, part=torch.zeros_like(found.part)), found.success.nonzero()[:, 0]
        if len(rows) == 0:
            return found
        old, inputs = found[rows], inputs[rows]
        predictive, x, streams, criterion = inputs.predictive, inputs.x, inputs.streams, Criterion(own_labels(inputs))

        def on_the_way(share: Tensor) -> Points:
            return torch.lerp(x, old.x, share.reshape(-1, *[1] * (x.ndim - 1)))

        def fooled(share: Tensor) -> Tensor:
            return clearly_wrong(predict(predictive, on_the_way(share), streams.fold(Stream.MODEL)), criterion.label)

        one = torch.ones_like(old.distance)
        clean = criterion.reached(predict(predictive, x, streams.fold(Stream.MODEL)))
        seen = torch.stack(
            [clean, *(fooled(one * i / self.looks) for i in range(1, self.looks)), clean.new_ones(len(x))]
        )
        first = seen.int().argmax(0)
        wrong, right = (one * i / self.looks for i in (first, (first - 1).clamp_min(0)))
        for _ in range(self.halvings):
            middle = (right + wrong) / 2
            there = fooled(middle)
            right, wrong = torch.where(there, right, middle), torch.where(there, middle, wrong)
        spent = torch.full_like(old.evaluations, self.looks + self.halvings)
        near, _ = confirm(
            predictive,
            self.geometry,
            criterion,
            x,
            on_the_way(wrong),
            streams,
            evaluations=spent,
            iteration=old.iteration,
        )
        crossings = (seen[1:] != seen[:-1]).sum(0)
        near, old = replace(near, crossings=crossings), replace(old, crossings=crossings)
        return found.with_rows(
            rows, judge(predictive, self.geometry, criterion, x, old.where(near, near.success), streams)
        )


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

    On the distance to the nearest boundary this is an upper bound, and for a linear model of two classes the distance
    itself. With several classes the cross-entropy need not lead to the nearest: with `num_targets=9, objective=margin`
    it climbs towards each of the 9 likeliest side by side, and the first to arrive counts. Also takes the other
    fields of `Ascent`, such as `precision`. It bounds nothing, so that every sample may fall: quote the distances.
    """
    options = {"return_point": "first_success"} | options
    step_size = 0.02 * box.scale if step_size is None else step_size
    return Bisected(Ascent(objective, Ball("l2", math.inf, box), step_size, steps, **options), halvings, looks)

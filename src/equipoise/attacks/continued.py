"""Ascents that go on from where another one ended.

continued    what the first ascent has not fooled
apgd_fgsm    Auto-PGD from one FGSM step, then from random points
pma          the probability margin attack: both halves of the margin alone, then the margin (Xie et al. 2025)
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from equipoise.attacks.apgd import apgd
from equipoise.attacks.ascent import Ascent
from equipoise.attacks.attack import Attack
from equipoise.attacks.chain import Chain
from equipoise.attacks.gradient import make_ascent
from equipoise.attacks.inputs import AttackInputs
from equipoise.attacks.result import AttackResult
from equipoise.attacks.spaces import Input
from equipoise.attacks.steps import Cosine
from equipoise.core.checks import checked_call
from equipoise.core.errors import require, require_integer
from equipoise.geometry import Ball, Box
from equipoise.losses.objectives import (
    Objective,
    cross_entropy,
    negated_probability,
    probability_margin,
    rival_probability,
)


@dataclass(frozen=True)
class Continued(Attack):
    """An ascent that starts at the points where another one ended, for the samples that this one has not fooled.

    Its further starts, if it has `restarts`, are its own.
    """

    kind = "continued"

    first: Ascent
    """The ascent that runs first."""
    attack: Ascent
    """The ascent that goes on."""
    geometry: Ball = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for part in (self.first, self.attack):
            require(
                isinstance(part.space, Input),
                "an ascent of a latent space ends at codes, from which another one cannot start: leave out its space.",
            )
        require(
            self.first.geometry == self.attack.geometry,
            f"both ascents must share one ball, these are in {self.first.geometry} and {self.attack.geometry}.",
        )
        object.__setattr__(self, "geometry", self.attack.geometry)

    def __str__(self) -> str:
        return f"{self.attack} after {self.first}"

    def run(self, inputs: AttackInputs) -> AttackResult:
        """The first ascent, and the other one on the rest; costs and counters add up."""
        result = self.first(inputs.model, inputs.x, inputs.y, **inputs.options)
        active = (~result.success).nonzero()[:, 0]
        if len(active) == 0:
            return result
        rest, old = inputs[active], result[active]
        new = self.attack(inputs.model, rest.x, rest.y, start=old.x, **rest.options)
        return result.with_rows(active, old.where(new, torch.ones_like(new.success)))


@checked_call(apgd)
def apgd_fgsm(
    eps: float,
    norm: str = "l1",
    steps: int = 100,
    restarts: int = 1,
    objective: Objective = cross_entropy,
    box: Box = Box(),
    **options: Any,
) -> Continued:
    """Auto-PGD with one start more: the end of one step of length `eps` from the clean point, the steepest of the norm
    (FGSM; for L1 the coordinates of largest slope, each filled up to the box, Croce & Hein 2021, Prop. 3.1).

    After this start come `restarts` random ones. Also takes the other options of `apgd`.
    """
    require_integer("restarts", restarts, 1)
    ball = Ball(norm, eps, box)
    shared = {
        name: value for name, value in options.items() if name in ("mode", "precision", "eot_samples", "resample")
    }
    step = make_ascent(objective, ball, None, 1, 1.0, **shared)
    return Continued(step, apgd(eps, norm, steps, objective, box=box, restarts=restarts + 1, **options))


@checked_call(Ascent)
def pma(eps: float, norm: str = "linf", steps: int = 100, box: Box = Box(), **options: Any) -> Chain:
    """Probability margin attack (Xie et al. 2025, CVPR, as in the authors' code): `steps` steps twice, each time the
    first half on one part of the probability margin, `-p_y` or `max_{i≠y} p_i`, and the second half on

        max_{i≠y} p_i - p_y

    from where the first half ended. From a start uniform on the ball; the length of a step falls in each half from
    `2·eps` on a cosine (the schedule of Ma et al. 2020, "Imbalanced gradients"). The authors' very first step, which
    goes uphill in `p_y`, is left out. `AttackResult.part` is 1 for what falls to the second time. Also takes the
    fields of `Ascent` that both halves share, such as `precision`.
    """
    require_integer("steps", steps, 2)
    ball, size = Ball(norm, eps, box), Cosine(2 * eps) if eps > 0 else None

    def run(part: Objective) -> Continued:
        first = make_ascent(part, ball, size, steps // 2, **{"start": "uniform", "tau": 0} | options)
        rest = {"return_point": "first_success"} | options
        return Continued(first, make_ascent(probability_margin, ball, size, steps - steps // 2, **rest))

    return Chain((("true class", run(negated_probability)), ("rival", run(rival_probability))))

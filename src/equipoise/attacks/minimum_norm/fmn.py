"""FMN, the fast minimum-norm attack (Pintor et al. 2021, NeurIPS, Alg. 1): a ball that follows the boundary.

With the margin `L = max_{t≠y} z_t - z_y` and its gradient g at the iterate `x + δ`, the dual norm q of p,

    eps ← min(eps·(1 - gamma), best ‖δ‖)    where the model is wrong
          eps·(1 + gamma)                   where it is right, but was wrong before
          (‖δ‖_p + |L|/‖g‖_q)(1 + gamma)    where it has never been wrong: beyond the linearised boundary
    δ   ← Π_{‖·‖_p <= eps, box}( δ + alpha·g/‖g‖_2 )

while alpha and gamma fall on a cosine from their first to their last value. The nearest wrong iterate is the result.
The original projects onto the ball and then clips to the box; here the projection is the exact one onto both. It also
has no factor 1 + gamma in the last case: then an iterate may come to lie on the boundary and never cross it.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch

from equipoise.attacks.minimum_norm.search import BoundaryAttack, Search
from equipoise.attacks.steps import cosine
from equipoise.core import progress
from equipoise.core.checks import checked_call
from equipoise.core.errors import require, require_integer
from equipoise.geometry import Ball, Box, norm_of
from equipoise.losses.objectives import margin

_DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}


@dataclass(frozen=True)
class FMN(BoundaryAttack):
    """Normalised gradient steps in a ball that shrinks where the model is wrong and grows where it is right."""

    kind = "fmn"

    geometry: Ball
    """Norm and box, and the radius within which a perturbation counts."""
    steps: int = 100
    """How many steps."""
    step_size: float | None = None
    """First length of the steps in L2, alpha: by default the box's width, in Linf ten times it, where a move of all
    coordinates is long in L2 (as in the authors' library)."""
    last_step_size: float | None = None
    """Last length of the steps, by default a hundredth of the usual first."""
    gamma: float = 0.05
    """First rate at which the ball shrinks and grows."""
    last_gamma: float = 0.001
    """Last rate."""

    def __post_init__(self) -> None:
        usual = (10.0 if self.geometry.norm == "linf" else 1.0) * self.geometry.box.scale
        if self.step_size is None:
            object.__setattr__(self, "step_size", usual)
        if self.last_step_size is None:
            object.__setattr__(self, "last_step_size", usual / 100)
        require_integer("steps", self.steps, 1)
        for first, last in (("step_size", "last_step_size"), ("gamma", "last_gamma")):
            require(
                0 < getattr(self, last) <= getattr(self, first),
                f"{first} = {getattr(self, first)}, {last} = {getattr(self, last)}: expected 0 < last <= first.",
            )
        require(self.gamma < 1, f"gamma = {self.gamma} leaves no ball: expected a number below 1, such as 0.05.")

    def walk(self, search: Search) -> None:
        """Move all samples at once, for all steps."""
        x, ball = search.x, self.geometry
        unbounded = Ball("l2", math.inf, ball.box)
        point, eps = x, torch.full_like(search.distance, torch.inf)
        for step in range(self.steps):
            progress.report(step, self.steps, "step")
            value, gradient, wrong = search.visit(margin, point, step)
            gamma = cosine(self.gamma, self.last_gamma, step / self.steps)
            was_wrong = search.distance < torch.inf
            beyond = ball.distance(point, x) + (value.abs() / norm_of(gradient, _DUAL[ball.norm])).nan_to_num(torch.inf)
            eps = torch.where(
                wrong,
                torch.minimum(eps * (1 - gamma), search.distance),
                torch.where(was_wrong, eps, beyond) * (1 + gamma),
            )
            size = cosine(cast(float, self.step_size), cast(float, self.last_step_size), step / self.steps)
            point = ball.project(unbounded.steepest(point, gradient.reshape(x.shape), size), x, eps)
        search.finish(point, self.steps)


@checked_call(FMN)
def fmn(eps: float = float("inf"), norm: str = "l2", steps: int = 100, box: Box = Box(), **options: Any) -> FMN:
    """FMN within `eps`, by default anywhere in the box; also takes the other fields of `FMN`."""
    return FMN(Ball(norm, eps, box), steps, **options)

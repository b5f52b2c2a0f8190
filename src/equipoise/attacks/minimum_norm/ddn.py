"""DDN: a sphere that follows the boundary, direction and norm decoupled (Rony et al. 2019, CVPR, Alg. 1); L2 only.

With g the gradient of the cross-entropy at the iterate `x + δ`,

    δ ← δ + alpha·g/‖g‖₂
    eps ← eps·(1 - gamma)    where the model is wrong
          eps·(1 + gamma)    where it is right
    δ ← clip(x + eps·δ/‖δ‖₂) - x

while alpha falls on a cosine from its first to its last value. The nearest wrong iterate is the result. eps never grows
beyond the distance to the farthest corner of the box, as in the authors' library.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from equipoise.attacks.minimum_norm.search import BoundaryAttack, Search
from equipoise.attacks.result import like
from equipoise.attacks.steps import cosine
from equipoise.core import progress
from equipoise.core.checks import checked_call
from equipoise.core.errors import require, require_integer
from equipoise.core.types import Points
from equipoise.geometry import Ball, Box
from equipoise.losses.objectives import cross_entropy


@dataclass(frozen=True)
class DDN(BoundaryAttack):
    """Normalised gradient steps, rescaled to a sphere that shrinks where the model is wrong and else grows."""

    kind = "ddn"

    geometry: Ball
    """An L2 ball: its box, and the radius within which a perturbation counts."""
    steps: int = 100
    """How many steps."""
    gamma: float = 0.05
    """Rate at which the sphere shrinks and grows."""
    first_radius: float = 1.0
    """First radius of the sphere, in widths of the box."""
    step_size: float = 1.0
    """First length of the steps, alpha, in widths of the box."""
    last_step_size: float = 0.01
    """Last length of the steps, in widths of the box."""
    levels: int | None = None
    """Round every iterate to this many values evenly spaced over the box, such as 256 for images of 8 bits."""

    def __post_init__(self) -> None:
        ball = self.geometry
        require(ball.norm == "l2", f"ddn rescales perturbations in l2, not in {ball.norm}: take fmn or pdpgd.")
        require_integer("steps", self.steps, 1)
        require(0 < self.gamma < 1, f"gamma = {self.gamma}: expected a number between 0 and 1, such as 0.05.")
        require(self.first_radius > 0, f"first_radius = {self.first_radius}: expected a number > 0.")
        require(
            0 < self.last_step_size <= self.step_size,
            f"step_size = {self.step_size}, last_step_size = {self.last_step_size}: expected 0 < last <= first.",
        )
        if self.levels is not None:
            require_integer("levels", self.levels, 2)
            require(math.isfinite(ball.box.high - ball.box.low), "levels are spaced over the box: give it bounds.")

    def walk(self, search: Search) -> None:
        """Move all samples at once, for all steps."""
        x, ball = search.x, self.geometry
        box, scale, anywhere = ball.box, ball.box.scale, Ball("l2", math.inf, ball.box)
        point, eps = x, torch.full_like(search.distance, self.first_radius * scale)
        low, high = (torch.full_like(x, bound) for bound in (box.low, box.high))
        farthest = ball.distance(torch.where(x - low > high - x, low, high), x)
        for step in range(self.steps):
            progress.report(step, self.steps, "step")
            _, gradient, wrong = search.visit(cross_entropy, point, step)
            size = scale * cosine(self.step_size, self.last_step_size, step / self.steps)
            move = anywhere.steepest(point, gradient.reshape(x.shape), size) - x
            eps = torch.where(wrong, eps * (1 - self.gamma), eps * (1 + self.gamma)).minimum(farthest)
            length = torch.linalg.vector_norm(move.flatten(1), dim=1).clamp_min(torch.finfo(x.dtype).tiny)
            point = self._rounded(box.clamp(x + like(eps / length, x) * move))
        search.finish(point, self.steps)

    def _rounded(self, point: Points) -> Points:
        """The nearest point of the levels, if there are any."""
        if self.levels is None:
            return point
        box = self.geometry.box
        steps = (point - box.low) * ((self.levels - 1) / box.scale)
        return box.clamp(box.low + steps.round() * (box.scale / (self.levels - 1)))


@checked_call(DDN)
def ddn(eps: float = float("inf"), norm: str = "l2", steps: int = 100, box: Box = Box(), **options: Any) -> DDN:
    """DDN within `eps`, by default anywhere in the box; also takes the other fields of `DDN`."""
    return DDN(Ball(norm, eps, box), steps, **options)

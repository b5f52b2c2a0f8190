"""BG: the shortest move across the linearised boundary within the box (Hein & Andriushchenko 2017, NeurIPS, Sec. 4).

With `v = ∇(z_t - z_y)(x)` and the gap `c = z_y - z_t` at a sample of class y, the move towards the class t is

    d(s) = argmin ‖d‖  with  v·d = s·c  and  x + d in the box

for s = 1 (`equipoise.geometry.hyperplane`, in closed form). As the classifier is not linear, s grows by a factor until
the prediction changes and is then bisected; of all classes the nearest point is the result. The gradients of all
classes are taken once, at the clean point.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equipoise.attacks.minimum_norm.search import BoundaryAttack, Search
from equipoise.core import progress
from equipoise.core.checks import checked_call
from equipoise.core.errors import require, require_integer
from equipoise.core.types import Points
from equipoise.geometry import Ball, Box
from equipoise.geometry.hyperplane import move_onto

_TOLERANCE = 2.0**-20
"""Relative width of the bracket of s at which bisection ends."""


@dataclass(frozen=True)
class BG(BoundaryAttack):
    """The box-constrained linearised step towards each of the most likely wrong classes."""

    kind = "bg"

    geometry: Ball
    """Norm and box, and the radius within which a perturbation counts."""
    targets: int = 9
    """Towards how many classes: the most likely ones other than the true one."""
    growth: float = 1.2
    """Factor by which s grows until the prediction changes."""
    steps: int = 60
    """How many values of s, growing or bisecting, are tried at most."""

    def __post_init__(self) -> None:
        require_integer("targets", self.targets, 1)
        require(self.growth > 1, f"growth = {self.growth} does not grow: expected a number > 1, such as 1.2.")
        require_integer("steps", self.steps, 1)

    def walk(self, search: Search) -> None:
        """Search towards all targets at once; one that cannot become the nearest of its sample any more leaves."""
        x, ball = search.x, self.geometry
        targets = search.batch.targets(self.targets)
        value, gradient = search.planes(x, torch.arange(len(x), device=x.device), targets)
        sample = torch.arange(len(x), device=x.device).repeat_interleave(targets.shape[1])
        gap, normal = -value.flatten(), gradient.flatten(0, 1)
        # s is bracketed: at `low`, where the move has the length `length_low`, the model is right, and wrong at `high`.
        low, length_low = torch.zeros_like(gap), torch.zeros_like(gap)
        high, s = torch.full_like(gap, torch.inf), torch.ones_like(gap)
        active = torch.arange(len(gap), device=x.device)
        for step in range(1, self.steps + 1):
            progress.report(step - 1, self.steps, "step")
            origin, rise = x[sample[active]], s[active] * gap[active]
            move = move_onto(origin.flatten(1), normal[active], rise, ball.norm, ball.box)
            point = ball.box.clamp(origin + move.reshape(origin.shape))
            length = ball.distance(point, origin)
            wrong = search.look(point, sample[active])
            _keep_nearest(search, point, sample[active], torch.where(wrong, length, torch.inf), step)
            high[active] = torch.where(wrong, s[active], high[active])
            low[active] = torch.where(wrong, low[active], s[active])
            length_low[active] = torch.where(wrong, length_low[active], length)
            beyond_box = ~wrong & ((normal[active] * move).sum(1) < (1 - _TOLERANCE) * rise)
            converged = beyond_box | (low[active] >= (1 - _TOLERANCE) * high[active])
            active = active[~converged & (length_low[active] < search.distance[sample[active]])]
            if len(active) == 0:
                return
            s = torch.where(high < torch.inf, (low + high) / 2, self.growth * low)


def _keep_nearest(search: Search, point: Points, sample: Tensor, distance: Tensor, step: int) -> None:
    """Of each sample's points, which lie next to each other, the nearest."""
    least = torch.full_like(search.distance, torch.inf).scatter_reduce(0, sample, distance, "amin")
    nearest = ((distance == least[sample]) & (distance < torch.inf)).nonzero()[:, 0]
    first = torch.ones_like(nearest, dtype=torch.bool)
    first[1:] = sample[nearest[1:]] != sample[nearest[:-1]]  # of a tie the more likely class
    nearest = nearest[first]
    search.keep(point[nearest], sample[nearest], distance[nearest], step)


@checked_call(BG)
def bg(eps: float = float("inf"), norm: str = "l2", targets: int = 9, box: Box = Box(), **options: Any) -> BG:
    """BG within `eps`, by default anywhere in the box; also takes the other fields of `BG`. The paper's norm is l2."""
    return BG(Ball(norm, eps, box), targets, **options)

"""DeepFool: repeated steps onto the nearest linearised boundary (Moosavi-Dezfooli et al. 2016, CVPR, Alg. 2).

At the iterate `x_i` of a sample of class y, with the values and gradients of `z_t - z_y` for every other class t,

    d_t = argmin ‖d‖  with  z_t - z_y + ∇(z_t - z_y)·d = overshoot·(z_y - z_t)  and  x_i + d in the box
    x_{i+1} = x_i + d_t  for the class t of the shortest move

until the prediction changes. The original knows no box and clips; here the move is the shortest within it
(`equipoise.geometry.hyperplane`); where none binds, both are the same.
"""

from dataclasses import dataclass
from typing import Any

import torch

from equipoise.attacks.minimum_norm.search import BoundaryAttack, Search
from equipoise.core import progress
from equipoise.core.checks import checked_call
from equipoise.core.errors import require, require_integer
from equipoise.geometry import NORMS, Ball, Box, norm_of
from equipoise.geometry.hyperplane import move_onto


@dataclass(frozen=True)
class DeepFool(BoundaryAttack):
    """Repeated moves onto the nearest linearised boundary, until the prediction changes."""

    kind = "deepfool"

    geometry: Ball
    """Norm and box, and the radius within which a perturbation counts."""
    steps: int = 50
    """How many steps at most."""
    targets: int = 9
    """Towards how many classes: the most likely ones other than the true one, at the clean point."""
    overshoot: float = 0.02
    """How far a move goes beyond the plane, as a share of the move."""

    def __post_init__(self) -> None:
        require_integer("steps", self.steps, 1)
        require_integer("targets", self.targets, 1)
        require(self.overshoot >= 0, f"overshoot = {self.overshoot} stops before the boundary: expected a number >= 0.")

    def walk(self, search: Search) -> None:
        """Move all samples at once; those that are misclassified leave."""
        ball, point = self.geometry, search.x
        targets = search.batch.targets(self.targets)
        # Rounding may leave a point on the plane on the wrong side of it, however small the move.
        least = search.batch.clean.resolution(search.batch.label)[:, None]
        active = torch.arange(len(point), device=point.device)
        for step in range(1, self.steps + 1):
            progress.report(step - 1, self.steps, "step")
            value, gradient = search.planes(point, active, targets[active])
            rise = (1 + self.overshoot) * -value + least[active]
            flat = point.flatten(1)
            moves = move_onto(
                flat.repeat_interleave(rise.shape[1], 0), gradient.flatten(0, 1), rise.flatten(), ball.norm, ball.box
            ).reshape(gradient.shape)
            # The distance to a plane beyond the box is extrapolated at the rate of the move that the box allows.
            rate = (gradient * moves).sum(2) / norm_of(moves.flatten(0, 1), NORMS[ball.norm].order).reshape(rise.shape)
            nearest = (rise / rate.nan_to_num(0.0)).argmin(1)
            move = moves[torch.arange(len(active), device=active.device), nearest]
            point = ball.box.clamp(flat + move).reshape(point.shape)
            wrong = search.look(point, active)
            search.keep(point[wrong], active[wrong], ball.distance(point, search.x[active])[wrong], step)
            point, active = point[~wrong], active[~wrong]
            if len(active) == 0:
                return


@checked_call(DeepFool)
def deepfool(
    eps: float = float("inf"), norm: str = "l2", steps: int = 50, targets: int = 9, box: Box = Box(), **options: Any
) -> DeepFool:
    """DeepFool within `eps`, by default anywhere in the box; also takes the other fields of `DeepFool`."""
    return DeepFool(Ball(norm, eps, box), steps, targets, **options)

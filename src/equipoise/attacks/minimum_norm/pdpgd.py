"""PDPGD: proximal gradient steps on the perturbation, gradient ascent on the weight of the constraint (Matyasko & Chau
2021, "PDPGD: Primal-Dual Proximal Gradient Descent Adversarial Attack").

It minimises `‖δ‖_p` subject to a positive margin `L = max_{t≠y} z_t - z_y`, by steps on the Lagrangian

    w·‖δ‖_p + (1 - w)·softplus(max(-L, 0)),        w = 1/(1 + exp(v))

    δ ← prox( clip(δ - alpha·m/s) )    m/s: the direction of Adam for the gradient of the second term
    v ← v - beta·sign(L)               then w is averaged over the steps with weight `smoothing` for the past

alpha falls exponentially and beta linearly. `prox` is the proximal map of `alpha·w/(1 - w)·‖·‖_p` in Adam's metric s,
found by a few iterations of the plain one (Melchior et al. 2019, "Proximal Adam", Alg. 2), clipped to the box. The
plain one of `u·‖·‖_p` is

    L1, L2, Linf    z - Π(z), onto the ball of radius u of the dual norm (Moreau)
    L0              that of `u·Σ |z|^(2/3)` in its place, in closed form (Cao, Sun & Xu 2013, "Fast image deconvolution
                    using closed-form thresholding formulas of L_q regularization"): hard thresholding gets stuck

The nearest wrong iterate is the result.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from equipoise.attacks.minimum_norm.adam import Adam
from equipoise.attacks.minimum_norm.search import BoundaryAttack, Search
from equipoise.core import progress
from equipoise.core.checks import checked_call
from equipoise.core.errors import require, require_integer
from equipoise.core.types import PerSample
from equipoise.geometry import EVERYWHERE, Ball, Box, Rows, ball_of
from equipoise.losses.objectives import margin

_DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}
_LEAST = 1e-6  # ratio of the two weights, either way


@dataclass(frozen=True)
class PDPGD(BoundaryAttack):
    """Proximal Adam on the perturbation, and ascent on the weight of its misclassification."""

    kind = "pdpgd"

    geometry: Ball
    """Norm and box, and the radius within which a perturbation counts."""
    steps: int = 500
    """How many steps."""
    step_size: float = 0.1
    """First length of the steps, alpha, in widths of the box."""
    step_decay: float = 0.01
    """Factor by which alpha has fallen after all steps."""
    ratio: float = 0.01
    """First `w/(1 - w)`: the weight of the norm over that of the constraint."""
    dual_step_size: float = 0.1
    """First length of the steps of v, beta."""
    dual_step_decay: float = 0.1
    """Factor by which beta has fallen at the last step."""
    smoothing: float = 0.9
    """How much of the past the averaged weight keeps."""
    proximal_steps: int = 5
    """Most iterations of the proximal map at a step."""
    tolerance: float = 0.01
    """Relative change in L2 at which these end."""

    def __post_init__(self) -> None:
        require_integer("steps", self.steps, 1)
        require_integer("proximal_steps", self.proximal_steps, 1)
        for name in ("step_size", "dual_step_size", "tolerance"):
            require(getattr(self, name) > 0, f"{name} = {getattr(self, name)}: expected a number > 0.")
        for name in ("step_decay", "dual_step_decay", "ratio"):
            value = getattr(self, name)
            require(_LEAST <= value <= 1, f"{name} = {value}: expected a number from {_LEAST:g} to 1.")
        require(0 <= self.smoothing < 1, f"smoothing = {self.smoothing}: expected a number from 0 to below 1.")

    def walk(self, search: Search) -> None:
        """Move all samples at once, for all steps."""
        x, ball, scale = search.x, self.geometry, self.geometry.box.scale
        origin = point = x.flatten(1)
        adam = Adam(origin)
        v = torch.full_like(search.distance, -math.log(self.ratio))
        weight = torch.sigmoid(-v)
        for step in range(self.steps):
            progress.report(step, self.steps, "step")
            value, gradient, _ = search.visit(margin, point.reshape(x.shape), step)
            descent = torch.where(value <= 0, -torch.sigmoid(-value), 0.0)  # of softplus(max(-L, 0)), by L
            mean, metric = adam.update(descent[:, None] * gradient * scale)
            size = self.step_size * self.step_decay ** (step / self.steps)
            moved = ball.box.clamp(point - scale * size * mean / metric)
            point = self._proximal(moved, origin, metric, weight / (1 - weight) * size)
            share = 1 - step / max(self.steps - 1, 1)
            dual_size = self.dual_step_size * (self.dual_step_decay + (1 - self.dual_step_decay) * share)
            v = (v - dual_size * value.sign()).clamp(math.log(_LEAST), -math.log(_LEAST))
            weight = torch.lerp(torch.sigmoid(-v), weight, self.smoothing)
        search.finish(point.reshape(x.shape), self.steps)

    def _proximal(self, moved: Rows, origin: Rows, metric: Rows, strength: PerSample) -> Rows:
        """The points of the box that minimise `strength·‖δ‖_p + ½ Σ metric·(point - moved)²`, nearly.

        All lengths are in widths of the box.
        """
        box, largest = self.geometry.box, metric.amax(1, keepdim=True)
        relative, strength = metric / largest, strength / largest[:, 0]
        point, active = moved, torch.ones_like(strength, dtype=torch.bool)
        for _ in range(self.proximal_steps):
            pulled = torch.lerp(point, moved, relative) - origin
            new = box.clamp(origin + proximal(pulled / box.scale, strength, self.geometry.norm) * box.scale)
            change = torch.linalg.vector_norm(new - point, dim=1)
            point = torch.where(active[:, None], new, point)
            active = active & (change > self.tolerance * torch.linalg.vector_norm(new - origin, dim=1))
            if not bool(active.any()):
                break
        return point


def proximal(z: Rows, strength: PerSample, norm: str) -> Rows:
    """`argmin_d strength·‖d‖_p + ½‖d - z‖²`, per row; for l0 with `Σ |d|^(2/3)` in place of the norm."""
    if norm == "l0":
        # |d| = t³ with t = (√b + √(2|z|/√b - b))/2 and b the root of a cubic; 0 below the threshold.
        a, u = z.abs(), strength[:, None]
        root = (a**2 / 16 + (a**4 / 256 - 8 / 729 * u**3).clamp_min(0).sqrt()) ** (1 / 3)
        b = 2 * (root + 2 / 9 * u / root)
        t = (b.sqrt() + (2 * a / b.sqrt() - b).clamp_min(0).sqrt()) / 2
        return torch.where(a > 2 * (2 / 3 * u) ** 0.75, t**3, 0.0).copysign(z)
    return z - Ball(_DUAL[norm], math.inf, EVERYWHERE).project(z, torch.zeros_like(z), eps=strength)


@checked_call(PDPGD)
def pdpgd(eps: float = float("inf"), norm: str = "l2", steps: int = 500, box: Box = Box(), **options: Any) -> PDPGD:
    """PDPGD within `eps`, by default anywhere in the box, in linf, l2, l1 or l0; also takes the other fields of
    `PDPGD`.
    """
    return PDPGD(ball_of(norm, eps, box), steps, **options)

"""sigma-zero: few changed features, by descent on a smooth count and a threshold that follows the boundary (Cinà et al.
2025, ICLR, Alg. 1); L0 only.

With the margin `L = max_{t≠y} z_t - z_y` at the iterate `x + δ` of d features,

    g ← ∇( max(-L, 0) + (1/d) Σ δ²/(δ² + sigma) ),    g ← g/‖g‖_∞
    δ ← clip(x + δ - alpha·m/s) - x                   m/s: the direction of Adam, as in the authors' code
    tau ← tau + rate·alpha                            where the model is wrong
          tau - rate·alpha                            where it is right
    δ ← 0 where |δ| < tau

while alpha falls on a cosine to a tenth. The wrong iterate with the fewest changed features is the result. A feature is
one number of the input: a pixel of a colour image has three.
"""

from dataclasses import dataclass
from typing import Any

import torch

from equipoise.attacks.minimum_norm.adam import Adam
from equipoise.attacks.minimum_norm.search import BoundaryAttack, Search
from equipoise.attacks.steps import cosine
from equipoise.core import progress
from equipoise.core.checks import checked_call
from equipoise.core.errors import require, require_integer
from equipoise.geometry import Ball, Box, Rows, Sparse
from equipoise.losses.objectives import margin


@dataclass(frozen=True)
class SigmaZero(BoundaryAttack):
    """Adam on the margin and a smooth count of the changed features, the small ones of which are taken back."""

    kind = "sigma-zero"

    geometry: Ball
    """A ball of L0: its box, and the number of features within which a perturbation counts."""
    steps: int = 1000
    """How many steps."""
    step_size: float = 1.0
    """First length of the steps, alpha, in widths of the box."""
    sigma: float = 0.001
    """Smoothness of the count, in squared widths of the box."""
    threshold: float = 0.3
    """First threshold tau, in widths of the box."""
    rate: float = 0.01
    """Change of tau at a step, in multiples of alpha."""

    def __post_init__(self) -> None:
        ball = self.geometry
        require(ball.norm == "l0", f"sigma-zero counts changed features, which is l0, not {ball.norm}: take fmn.")
        require_integer("steps", self.steps, 1)
        for name in ("step_size", "sigma", "rate"):
            require(getattr(self, name) > 0, f"{name} = {getattr(self, name)}: expected a number > 0.")
        require(0 <= self.threshold <= 1, f"threshold = {self.threshold}: expected a number from 0 to 1.")

    def walk(self, search: Search) -> None:
        """Move all samples at once, for all steps."""
        x, box, scale = search.x, self.geometry.box, self.geometry.box.scale
        origin = point = x.flatten(1)
        adam = Adam(origin)
        tau = torch.full_like(search.distance, self.threshold)
        for step in range(self.steps):
            progress.report(step, self.steps, "step")
            value, gradient, wrong = search.visit(margin, point.reshape(x.shape), step)
            move = (point - origin) / scale
            descent = _count_slope(move, self.sigma) - torch.where(value[:, None] <= 0, gradient * scale, 0.0)
            mean, metric = adam.update(descent / descent.abs().amax(1, keepdim=True).clamp_min(1e-12))
            point = box.clamp(point - scale * self._size(step) * mean / metric)
            change = self.rate * self._size(step + 1)  # the authors' code has moved on along the cosine here
            tau = torch.where(wrong, tau + change, tau - change).clamp(0, 1)
            point = torch.where((point - origin).abs() < scale * tau[:, None], origin, point)
        search.finish(point.reshape(x.shape), self.steps)

    def _size(self, step: int) -> float:
        """alpha of a step."""
        return cosine(self.step_size, self.step_size / 10, step / self.steps)


def _count_slope(move: Rows, sigma: float) -> Rows:
    """The gradient of `(1/d) Σ δ²/(δ² + sigma)`."""
    return 2 * sigma * move / (move**2 + sigma) ** 2 / move.shape[1]


@checked_call(SigmaZero)
def sigma_zero(
    eps: float = float("inf"), norm: str = "l0", steps: int = 1000, box: Box = Box(), **options: Any
) -> SigmaZero:
    """sigma-zero within `eps` changed features, by default any number; also takes the other fields of `SigmaZero`."""
    return SigmaZero(Sparse(norm, eps, box), steps, **options)

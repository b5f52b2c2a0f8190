"""Steps that choose their own length: Auto-PGD (Croce & Hein 2020; for L1 Croce & Hein 2021).

Both rules use the objective at every iterate: a sample that has not improved enough by a fixed checkpoint goes on from
its best point with a smaller step.
"""

from dataclasses import dataclass
from functools import cache
from math import prod

import torch
from torch import Tensor

from equipoise.attacks.result import like
from equipoise.attacks.steps import Memory
from equipoise.core.types import AscentState, Points


@cache
def checkpoints(steps: int) -> dict[int, int]:
    """The steps at which the step size is reconsidered, and how many steps lie between each and the one before.

    The first after 22 % of the steps, then at intervals that shrink by 3 % of the steps down to 6 %.
    """
    intervals, step, interval = {}, 0, max(22 * steps // 100, 1)
    while step + interval <= steps:
        step += interval
        intervals[step] = interval
        interval = max(interval - max(3 * steps // 100, 1), max(6 * steps // 100, 1))
    return intervals


@dataclass(frozen=True)
class AutoStep:
    """Auto-PGD's step, for Linf and L2: `x + a (z - x) + (1 - a)(x - x_before)` with `z = Π(x + size · steepest)`.

    `a` is 1 at the first step. At each checkpoint (`checkpoints`) a sample's size is halved, and it goes back to its
    best point, if the objective rose in fewer than the share `progress` of the steps since the last checkpoint, or if
    neither its size nor its best value has changed since then (Croce & Hein 2020, Alg. 1 and Sec. 3.2).
    """

    inertia: float = 0.75
    """a: how much of the step is the new direction; the rest continues the last move."""
    progress: float = 0.75
    """rho: the share of steps that have to improve the objective."""

    def init(self, x: Points) -> Memory:
        """Previous point; best point, gradient and value; last value; rises since the last checkpoint; size; whether it
        was halved there; best value there.
        """
        low, none = x.new_full((len(x),), -torch.inf), x.new_zeros(len(x))
        return x, x, x, low, low, none, none, none.bool(), low

    def __call__(self, here: AscentState, memory: Memory) -> tuple[Points, Memory]:
        """One step."""
        before, best, best_gradient, best_value, last_value, rises, size, halved, best_then = memory
        point, gradient = here.point, here.gradient
        if here.step == 0:
            before, size = point, torch.full_like(size, here.size)
        else:
            rises = rises + (here.value > last_value)
        best, best_gradient, best_value = _better(here, best, best_gradient, best_value)
        if here.step == 0:
            best_then = best_value
        if interval := checkpoints(here.steps).get(here.step):
            unchanged = ~halved & (best_then >= best_value)
            halved = (rises <= self.progress * interval) | unchanged
            size = torch.where(halved, size / 2, size)
            point = torch.where(like(halved, point), best, point)
            gradient = torch.where(like(halved, point), best_gradient, gradient)
            rises, best_then = torch.zeros_like(rises), best_value
        a = 1.0 if here.step == 0 else self.inertia
        z = here.geometry.project(here.geometry.steepest(point, gradient, size), here.origin)
        # point + a·(z - point) + (1 - a)·(point - before), in one buffer
        moved = torch.lerp(point, z, a).add_(point, alpha=1 - a).sub_(before, alpha=1 - a)
        return moved, (point, best, best_gradient, best_value, here.value, rises, size, halved, best_then)


@dataclass(frozen=True)
class SparseAutoStep:
    """Auto-PGD's step for L1: along the signs of the largest slopes, as many as the best perturbation suggests.

    The step has L1 length `size` and moves the share `density` of the coordinates. Every 4 % of the steps the density
    becomes 1/1.5 of that of the best perturbation; where this one lost more than 5 % of its coordinates the size starts
    anew from the best point, elsewhere it shrinks by 1.5, down to a tenth (Croce & Hein 2021, Sec. 4.2).
    """

    shrink: float = 1.5
    """By what the size and the density shrink."""
    least: float = 0.1
    """Smallest size, as a share of the first."""

    def init(self, x: Points) -> Memory:
        """Best point, gradient and value; size; density; coordinates of the best perturbation at the last check."""
        none = x.new_zeros(len(x))
        return x, x, torch.full_like(none, -torch.inf), none, none, none

    def __call__(self, here: AscentState, memory: Memory) -> tuple[Points, Memory]:
        """One step."""
        best, best_gradient, best_value, size, density, support = memory
        point, gradient = here.point, here.gradient
        features = prod(point.shape[1:])
        best, best_gradient, best_value = _better(here, best, best_gradient, best_value)
        if here.step == 0:
            size, support = torch.full_like(size, here.size), _support(point, here.origin)
            density = torch.where(support > 0, support / features / self.shrink, 0.2)
        elif here.step % max(here.steps // 25, 1) == 0:
            now = _support(best, here.origin)
            sparser = now < 0.95 * support
            size = torch.where(sparser, here.size, (size / self.shrink).clamp_min(self.least * here.size))
            point = torch.where(like(sparser, point), best, point)
            gradient = torch.where(like(sparser, point), best_gradient, gradient)
            density, support = now / features / self.shrink, now
        slopes = gradient.flatten(1).abs()
        rank = ((1 - density) * features).long().clamp(0, features - 1)
        threshold = slopes.sort(1).values.gather(1, rank[:, None])
        signs = torch.where(slopes >= threshold, gradient.flatten(1).sign(), 0.0)
        step = size[:, None] * signs / signs.abs().sum(1, keepdim=True).clamp_min(1)
        return point + step.reshape(point.shape), (best, best_gradient, best_value, size, density, support)


def _better(here: AscentState, best: Tensor, gradient: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    better = here.value > value
    rows = like(better, best)
    return (
        torch.where(rows, here.point, best),
        torch.where(rows, here.gradient, gradient),
        torch.where(better, here.value, value),
    )


def _support(point: Points, origin: Points) -> Tensor:
    """How many coordinates of each sample are perturbed."""
    return (point != origin).flatten(1).sum(1).to(point.dtype)

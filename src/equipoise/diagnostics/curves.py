"""Accuracy against the radius, and against the number of steps: two checks that an attack works.

As the radius grows the accuracy must fall to 0, and as the number of steps grows it must converge (R, Sec. 5.2.2,
Figs 1, 2; Carlini et al. 2019). A curve keeps the outcome of every sample, so that two of its points can be compared by
paired tests. Each test comes with an interval, as few samples refute nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from equipoise.attacks import pgd
from equipoise.attacks.ascent import Ascent
from equipoise.core.errors import require
from equipoise.core.types import Labels, Points, Predictive
from equipoise.diagnostics.blocks import Block, in_blocks
from equipoise.results.findings import Lines, Series
from equipoise.results.statistics import binomial_tail, mcnemar, wilson

RADII = tuple(range(10, 151, 10))
"""The k of the accuracy-eps curve, in 1/255 (R, Sec. 5.2.2: k in [10, 150])."""
STEPS = (8, 16, 32, 64, 128, 256)
"""The k of the accuracy-steps curve (R, Sec. 5.2.2: k in [8, 256])."""
LEVEL = 0.05
"""Significance level of the tests."""
NOTHING = 0.001
"""The accuracy that counts as 0: R's tables write `0` for less than 0.1 %."""

Outcomes = Bool[np.ndarray, "points samples"]


@dataclass(frozen=True, eq=False)
class Curve:
    """How accuracy changes with one parameter of an attack."""

    x: Float[np.ndarray, " points"]
    """The parameter, increasing."""
    correct: Outcomes
    """Whether each sample is classified correctly both without an attack and under this one."""
    clean: Bool[np.ndarray, " samples"]
    """Whether each sample is classified correctly without an attack."""
    x_name: str
    """What x is, with its unit."""
    settings: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    """The attack at each point, for records."""

    @property
    def accuracy(self) -> Float[np.ndarray, " points"]:
        """The raw curve, each attack on its own: the diagnostic, as a stronger attack may do worse here."""
        return self.correct.mean(1)

    @property
    def cumulative(self) -> Float[np.ndarray, " points"]:
        """The accuracy under this attack and all before it, which cannot rise: a better estimate of the robustness, but
        no diagnostic. (An adversarial example in a small ball lies in every larger one.)
        """
        return np.logical_and.accumulate(self.correct, 0).mean(1)

    @property
    def intervals(self) -> Float[np.ndarray, "points 2"]:
        """95 % Wilson intervals of the raw curve."""
        return np.array([wilson(int(row.sum()), len(row)) for row in self.correct])


@dataclass(frozen=True)
class Decision:
    """Whether outcomes are compatible with a hypothesis."""

    holds: bool
    """Whether the hypothesis was not rejected."""
    figure: str
    """What was observed, in words."""
    p_value: float
    """Probability of outcomes as bad as these under the hypothesis."""
    interval: tuple[float, float]
    """95 % Wilson interval of the share that the figure is about."""


def accuracy_against_eps(
    model: "nn.Module | Predictive",
    x: Points,
    y: Labels,
    radii: Sequence[int] = RADII,
    *,
    step_size: float = 2 / 255,
    seed: int = 0,
    batch_size: int = 512,
    **options: Any,
) -> Curve:
    """Return the accuracy under PGD with `eps = k/255` and k steps of 2/255, for every k of `radii` (R, Fig
    1). It must fall monotonically to 0.

    Every attack stops at its first success (`return_point="last"` judges the last point alone, as early
    implementations do); `options` are fields of `Ascent`. Raises `EquipoiseError` for input that an attack cannot take.
    """
    _check("radii", radii)
    options = {"start": "zero", **options}
    attacks = [pgd(k / 255, step_size, k, **options) for k in radii]
    return _curve(
        model, x, y, np.array(radii) / 255, attacks, "radius of the Linf ball, in pixels of [0, 1]", seed, batch_size
    )


def accuracy_against_steps(
    model: "nn.Module | Predictive",
    x: Points,
    y: Labels,
    steps: Sequence[int] = STEPS,
    *,
    eps: float = 8 / 255,
    seed: int = 0,
    batch_size: int = 512,
    **options: Any,
) -> Curve:
    """Return the accuracy under PGD in one ball with k steps of `max(1/510, 2·eps/k)` for every k of `steps`
    (R, Fig 2: eps 8/255 and 16/255).

    It must converge. The options are those of `accuracy_against_eps`.
    """
    _check("steps", steps)
    options = {"start": "zero", **options}
    attacks = [pgd(eps, max(1 / 510, 2 * eps / k), k, **options) for k in steps]
    return _curve(model, x, y, np.array(steps, float), attacks, "steps of the attack", seed, batch_size)


def lines(curves: Mapping[str, Curve], title: str, log_x: bool = False) -> Lines:
    """Return the panel of curves with one x, by name: raw with its interval, and dashed where the cumulative differs.

    Raises `EquipoiseError` for curves over different x.
    """
    first = next(iter(curves.values()))
    require(
        all(np.array_equal(c.x, first.x) and c.x_name == first.x_name for c in curves.values()),
        "curves of one panel must be over the same x.",
    )
    series = []
    for name, curve in curves.items():
        low, high = curve.intervals.T
        series.append(Series(name, curve.accuracy, low, high))
        if not np.array_equal(curve.cumulative, curve.accuracy):
            series.append(Series(f"{name}, cumulative", curve.cumulative, dashed=True))
    return Lines(title, first.x, series, first.x_name, "accuracy", log_x=log_x)


def falls_to_zero(correct: Bool[np.ndarray, " samples"], zero: float = NOTHING, level: float = LEVEL) -> Decision:
    """Test whether the accuracy in the largest ball can be 0: an exact binomial test of `accuracy <= zero`, by default
    the 0.1 % below which R writes 0.
    """
    n, remaining = len(correct), int(correct.sum())
    low, high = wilson(remaining, n)
    p = binomial_tail(remaining, n, zero)
    figure = f"{remaining} of {n} samples are still correct in the largest ball (95 % interval {low:.1%} to {high:.1%})"
    return Decision(p >= level, figure, p, (low, high))


def has_converged(
    correct: Outcomes, steps: Float[np.ndarray, " points"], doublings: int = 1, level: float = LEVEL
) -> Decision:
    """Test whether the last doublings of the steps fool no more samples than before: an exact one-sided McNemar test on
    the samples that only one of the two attacks fools. The interval is of the share that only the longer one fools.

    Raises `EquipoiseError` if the curve has no point with that few steps.
    """
    fewest = steps[-1] / 2**doublings
    before = np.flatnonzero(steps <= fewest)
    require(
        len(before) > 0, f"the steps begin at {steps[0]:g}: {doublings} doublings need a point at {fewest:g} or less."
    )
    short, long = correct[before[-1]], correct[-1]
    gained, lost = int((short & ~long).sum()), int((~short & long).sum())
    p = mcnemar(gained, lost)
    figure = (
        f"{gained} of {len(long)} samples fall only to {steps[-1]:g} steps, {lost} only to {steps[before[-1]]:g} "
        f"(accuracy {short.mean():.1%}, then {long.mean():.1%})"
    )
    return Decision(p >= level, figure, p, wilson(gained, len(long)))


def monotone(correct: Outcomes, x: Float[np.ndarray, " points"], level: float = LEVEL) -> Decision:
    """Test whether the accuracy never rises: exact McNemar tests, one-sided, between every two points of the raw curve,
    with Bonferroni's correction for their number. The figure is about the two points of the clearest rise; the interval
    is of the share that falls at the first of them and survives the second.
    """
    require(len(correct) >= 2, f"the curve has {len(correct)} point: expected at least 2.")
    pairs = list(combinations(range(len(correct)), 2))
    rises = [(int((~correct[i] & correct[j]).sum()), int((correct[i] & ~correct[j]).sum())) for i, j in pairs]
    p_values = [mcnemar(up, down) for up, down in rises]
    clearest = int(np.argmin(p_values))
    (i, j), (up, down), p = pairs[clearest], rises[clearest], min(1.0, p_values[clearest] * len(pairs))
    figure = f"from {x[i]:.3g} to {x[j]:.3g} {up} of {correct.shape[1]} samples become correct again and {down} fall"
    return Decision(p >= level, figure, p, wilson(up, correct.shape[1]))


def _check(name: str, values: Sequence[int]) -> None:
    require(len(values) >= 1 and min(values) >= 1, f"{name} = {list(values)}: expected integers >= 1.")
    require(list(values) == sorted(set(values)), f"{name} = {list(values)}: expected them increasing.")


def _curve(
    model: "nn.Module | Predictive",
    x: Points,
    y: Labels,
    values: np.ndarray,
    attacks: Sequence[Ascent],
    x_name: str,
    seed: int,
    batch_size: int,
) -> Curve:
    fooled = [attack(model, x, y, seed=seed, batch_size=batch_size).success.cpu().numpy() for attack in attacks]

    def correct(block: Block) -> Tensor:
        return block.predict(x[block.samples]).labels == y[block.samples]

    clean = torch.cat(in_blocks(correct, model, x, y, batch_size=batch_size, seed=seed)).cpu().numpy()
    return Curve(values, clean & ~np.stack(fooled), clean, x_name, tuple(attack.settings() for attack in attacks))

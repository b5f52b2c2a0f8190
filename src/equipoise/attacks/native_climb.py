"""Which ascents the native kernel takes as a whole (`equipoise.kernels.native.climbs`): all steps of a sample at once,
without returning to PyTorch. Any other ascent takes its steps one by one (`equipoise.attacks.ascent`).
"""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from equipoise.attacks.auto_step import AutoStep, checkpoints
from equipoise.attacks.climb import Attempt, Outcome
from equipoise.attacks.steps import Normalized, RadiusShare, Sign, Steepest, StepSize
from equipoise.core.types import Predict, Prediction, StepRule
from equipoise.geometry import Ball
from equipoise.kernels.native import AutoSteps, ClimbPlan, ClimbSamples, ClimbTerm, NativeForward, climb
from equipoise.losses.objectives import (
    Objective,
    cross_entropy,
    dlr,
    entropy,
    kl,
    margin,
    negated_probability,
    rival_probability,
    smoothed_cross_entropy,
)

_KINDS = {
    cross_entropy.formula: "cross-entropy",
    smoothed_cross_entropy().formula: "cross-entropy",
    entropy.formula: "entropy",
    margin.formula: "margin",
    dlr.formula: "dlr",
    negated_probability.formula: "negated-probability",
    rival_probability.formula: "rival-probability",
}


def climb_terms(objective: Objective, weight: float = 1.0) -> list[ClimbTerm] | None:
    """The objective as a weighted sum of those that the kernel knows; None if it is not one."""
    options: dict[str, Any] = dict(objective.parameters)
    if "parts" in options:
        parts = [climb_terms(part, weight * factor) for part, factor in options["parts"]]
        return None if None in parts else [term for part in parts if part is not None for term in part]
    if objective.formula is kl().formula:
        return [ClimbTerm(options["divergence"], weight)]
    kind = _KINDS.get(objective.formula)
    return None if kind is None else [ClimbTerm(kind, weight, options.get("smoothing", 0.0))]


def takes_l2_steps(rule: StepRule, ball: Ball) -> bool | None:
    """Whether a step rule moves a sample by a length in L2, or every coordinate by it; None if neither."""
    if type(rule) in (Steepest, AutoStep):
        return {"linf": False, "l2": True}.get(ball.norm)
    return {Sign: False, Normalized: True}.get(type(rule))


def auto_steps(rule: StepRule, steps: int) -> AutoSteps | None:
    """The step rule as the kernel takes it if it chooses its own length, else None."""
    if not isinstance(rule, AutoStep):
        return None
    return AutoSteps(rule.inertia, rule.progress, [checkpoints(steps).get(step, 0) for step in range(steps)])


def _all_within(values: Tensor | None, low: int, high: int) -> bool:
    """Whether these are 64-bit integers between two, as all indices in C must be; nothing is."""
    if values is None:
        return True
    return values.dtype == torch.int64 and bool((values >= low).all()) and bool((values <= high).all())


def climb_natively(
    batch: Attempt,
    predict: Predict,
    objective: Objective,
    ball: Ball,
    rule: StepRule,
    size: StepSize,
    most: int,
    clean: Prediction | None,
    start: Tensor,
    counts: Tensor | None,
    **selection: Any,
) -> Outcome | None:
    """The outcome of an ascent in which no sample depends on another; None if the kernel cannot take it."""
    terms, l2_step = climb_terms(objective), takes_l2_steps(rule, ball)
    if terms is None or l2_step is None or type(ball) is not Ball or ball.norm == "l1":
        return None
    if not isinstance(predict, NativeForward):
        return None
    if clean is not None and torch.equal(start, batch.x):
        return None  # where a divergence has no slope, TRADES as published follows PyTorch's rounding errors
    network = predict.network(batch.x)
    if network is None:
        return None
    n, targets = len(batch.x), 1 if batch.target is None or batch.target.ndim == 1 else batch.target.shape[1]
    criterion, none = batch.criterion, torch.full_like(batch.criterion.label, -1)
    if not (_all_within(counts, 0, most) and _all_within(batch.y, 0, network.layers.classes - 1)):
        return None  # PyTorch says what is wrong
    follows = size if isinstance(size, RadiusShare) else None
    sizes = [cast(float, follows.share if follows else size.at(i, most)) for i in range(most)]
    order = slice(None) if counts is None else counts.argsort(descending=True, stable=True)
    rows = order if targets == 1 else torch.arange(n, device=none.device)[order].repeat_interleave(targets)
    back = rows if isinstance(rows, slice) else rows.argsort(stable=True)
    plan = ClimbPlan(
        terms, sizes, l2_step, ball.norm == "l2", ball.eps, ball.box.low, ball.box.high,
        auto=auto_steps(rule, len(sizes)), targets=targets, **selection,
    )  # fmt: skip
    samples = ClimbSamples(
        batch.x[rows],
        start[rows],
        label=(none if batch.y is None else batch.y)[rows],
        target=none if batch.target is None else batch.target[order].flatten(),
        own=criterion.label[rows],
        wanted=(none if criterion.target is None else criterion.target)[rows],
        clean=None if clean is None else clean.logits[0, rows],
        steps=None if counts is None else counts[rows],
        radii=None if ball.radii is None else ball.radii.to(start)[rows],
        paces=None if follows is None else follows.radii.to(start)[rows],
    )
    climbed = climb(network, plan, samples, evaluations=int(clean is not None))
    target = None if batch.target is None else batch.target.flatten()
    outcome = Outcome(
        climbed.point, climbed.value, None, climbed.iteration, climbed.evaluations, climbed.not_finite, climbed.zero,
        climbed.succeeded,
    )  # fmt: skip
    return replace(outcome[back], target=target)

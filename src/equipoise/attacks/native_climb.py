"""Which ascents the native kernel takes as a whole (`equipoise.kernels.native.climb`): all steps of a sample at once,
without returning to PyTorch. Any other ascent takes its steps one by one (`equipoise.attacks.ascent`).
"""

from typing import Any

import torch
from torch import Tensor

from equipoise.attacks.climb import Attempt, Outcome
from equipoise.attacks.steps import Normalized, Sign, Steepest
from equipoise.core.types import Predict, Prediction, StepRule
from equipoise.geometry import Ball
from equipoise.kernels.native import ClimbPlan, ClimbSamples, ClimbTerm, NativeForward, climb
from equipoise.losses.objectives import Objective, cross_entropy, dlr, entropy, kl, margin, smoothed_cross_entropy

_KINDS = {
    cross_entropy.formula: "cross-entropy",
    smoothed_cross_entropy().formula: "cross-entropy",
    entropy.formula: "entropy",
    margin.formula: "margin",
    dlr.formula: "dlr",
}


def climb_terms(objective: Objective, weight: float = 1.0) -> list[ClimbTerm] | None:
    """The objective as a weighted sum of those that the kernel knows; None if it is none."""
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
    if type(rule) is Steepest:
        return {"linf": False, "l2": True}.get(ball.norm)
    return {Sign: False, Normalized: True}.get(type(rule))


def climb_natively(
    batch: Attempt,
    predict: Predict,
    objective: Objective,
    ball: Ball,
    rule: StepRule,
    sizes: list[float],
    clean: Prediction | None,
    start: Tensor,
    counts: Tensor | None,
    **selection: Any,
) -> Outcome | None:
    """The outcome of an ascent in which no sample depends on another; None if the kernel cannot take it."""
    terms, l2_step = climb_terms(objective), takes_l2_steps(rule, ball)
    several = batch.target is not None and batch.target.ndim > 1
    if terms is None or l2_step is None or ball.norm == "l1" or several or not isinstance(predict, NativeForward):
        return None
    network = predict.network(batch.x)
    if network is None:
        return None
    none = torch.full((len(batch.x),), -1)
    criterion = batch.criterion

    def classes(labels: Tensor | None) -> Tensor:
        return none if labels is None else labels

    plan = ClimbPlan(terms, sizes, l2_step, ball.norm == "l2", ball.eps, ball.box.low, ball.box.high, **selection)
    samples = ClimbSamples(
        batch.x,
        start,
        label=classes(batch.y),
        target=classes(batch.target),
        own=criterion.label,
        wanted=classes(criterion.target),
        clean=None if clean is None else clean.logits[0],
        steps=counts,
    )
    found = climb(network, plan, samples, evaluations=int(clean is not None))
    return Outcome(
        found.point, found.value, batch.target, found.iteration, found.evaluations, found.not_finite, found.zero,
        found.succeeded,
    )  # fmt: skip

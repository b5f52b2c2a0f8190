"""Methods that keep something of each sample from epoch to epoch."""

from dataclasses import replace
from typing import Any

from equipoise.attacks import gradient as attacks
from equipoise.core.schedules import schedulable
from equipoise.geometry import Box
from equipoise.losses.objectives import (
    Objective,
    cross_entropy,
)
from equipoise.losses.terms import Method, as_method
from equipoise.training.methods.shared import StepLength, mixed_with_clean, pgd
from equipoise.training.methods.variations import squared_difference
from equipoise.training.perturbations import AtBoundary, Remembered


@schedulable
def fgsm_pgi(
    eps: float, step_size: float | None = None, weight: float = 10.0, norm: str = "linf", box: Box = Box()
) -> Method:
    """FGSM adversarial training from the perturbation of the epoch before: `CE(x') + λ (1/C) ‖f(x') - f(x_0)‖²`, x' one
    step from x_0, f the logits (FGSM-PGI of Jia et al. 2022; λ = 10 in their runs).

    Parameters:
        step_size: Length of the step, in units of `eps`; by default ε.
        weight: Weight λ of the difference between the logits, >= 0.
    """
    last = Remembered(attacks.fgsm(eps, norm, step_size, box, start="uniform"))
    return cross_entropy @ last + weight * (squared_difference @ last).against(last.prior)


@schedulable
def mma(
    eps: float,
    step_size: StepLength = None,
    steps: int = 10,
    clean_share: float = 1 / 3,
    loss: Objective = cross_entropy,
    **options: Any,
) -> Method:
    """Max-margin adversarial training: `a L(x) + (1 - a) L(x*)`, x* the nearest point found where the prediction
    changes (Ding et al. 2020, "MMA Training", with a = 1/3).

    Parameters:
        eps: Largest margin d_max that is sought.
    """
    nearest = loss @ AtBoundary(replace(pgd(eps, step_size, steps, **options), objective=loss))
    return mixed_with_clean(clean_share, loss, as_method(nearest))

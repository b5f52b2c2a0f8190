"""Auto-PGD: projected gradient ascent whose steps choose their own length (`equipoise.attacks.auto_step`)."""

from typing import Any

from equipoise.attacks.ascent import Ascent, ReturnPoint
from equipoise.attacks.auto_step import AutoStep, SparseAutoStep
from equipoise.attacks.gradient import make_ascent
from equipoise.attacks.steps import Boundary, Gaussian, Start
from equipoise.core.checks import checked_call
from equipoise.core.errors import require_integer
from equipoise.geometry import Ball, Box
from equipoise.losses.objectives import Objective, cross_entropy, dlr


@checked_call(Ascent)
def apgd(
    eps: float,
    norm: str = "linf",
    steps: int = 100,
    objective: Objective = cross_entropy,
    return_point: ReturnPoint = "first_success",
    start: Start | None = None,
    eps_schedule: tuple[tuple[float, float], ...] | None = None,
    box: Box = Box(),
    **options: Any,
) -> Ascent:
    """Auto-PGD on `objective`, by default the cross-entropy (`APGD-CE`).

    From a random point of the ball's surface with steps of `2·eps`, for Linf and L2. For L1 from projected Gaussian
    noise with steps of `eps`, the first 30 % of the steps in the ball of radius `3·eps` and the next 30 % in that of
    `2·eps` (Croce & Hein 2021). Also takes the fields of `Ascent`, such as `restarts`.
    """
    sparse = norm == "l1"
    if eps_schedule is None:
        eps_schedule = ((3, 0.3), (2, 0.3)) if sparse and eps > 0 else ()
    return make_ascent(
        objective,
        Ball(norm, eps, box),
        (1 if sparse else 2) * eps or None,
        steps,
        step=SparseAutoStep() if sparse else AutoStep(),
        start=start or (Gaussian(box.scale) if sparse else Boundary()),
        return_point=return_point,
        eps_schedule=eps_schedule,
        **options,
    )


@checked_call(apgd)
def apgd_t(
    eps: float, norm: str = "linf", steps: int = 100, targets: int = 9, objective: Objective = dlr, **options: Any
) -> Ascent:
    """Auto-PGD on the targeted DLR towards each of the `targets` most likely wrong classes (`APGD-T`): side by side,
    and a sample leaves as soon as one of its ascents has fooled the model.
    """
    require_integer("targets", targets, 1)
    return apgd(eps, norm, steps, objective, num_targets=targets, **options)

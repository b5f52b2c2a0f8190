"""Training methods for certificates: losses of worst-case logits, of bounds instead of attacks.

Parameters of all of them, unless a method says otherwise:

    eps: Radius ε of the ball, in pixels of [0, 1]; 0 until the warm-up begins, and the whole of it from its end.
    kappa: Weight κ of the clean loss from the end of the warm-up on; 1 until it begins.
    warmup: Beginning and end of the warm-up, as shares of the training, between which all grows linearly.
    norm: Norm of the ball.
    box: Valid range of the inputs.
    loss: Training loss L.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from equipoise.attacks import gradient as attacks
from equipoise.attacks.steps import StepSize
from equipoise.core.errors import require
from equipoise.core.schedules import schedulable
from equipoise.geometry import Box
from equipoise.losses import worst_case
from equipoise.losses.objectives import Objective, cross_entropy
from equipoise.losses.terms import Method
from equipoise.losses.worst_case import Bounds, WarmedUp

WARMUP = (0.0, 0.5)


@schedulable
def ibp(
    eps: float,
    kappa: float = 0.5,
    warmup: Sequence[float] = WARMUP,
    norm: str = "linf",
    box: Box = Box(),
    loss: Objective = cross_entropy,
) -> Method:
    """Interval bound propagation: `κ L(x) + (1 - κ) L(z)`, z the worst-case logits over the ball by intervals (Gowal et
    al. 2018, Eq. 12).
    """
    return _mixed_with_clean(kappa, warmup, loss, worst_case.ibp(eps, norm, box))


@schedulable
def crown_ibp(
    eps: float,
    kappa: float = 0.5,
    linear: float = 0.0,
    warmup: Sequence[float] = WARMUP,
    box: Box = Box(),
    loss: Objective = cross_entropy,
) -> Method:
    """CROWN-IBP: `κ L(x) + (1 - κ) L(z)`, the margins of z being `(1 - β)` times those by intervals plus β times those
    by linear bounds from the logits to the input, in linf (Zhang et al. 2020, Eq. 11). A step costs as many backward
    passes as there are classes.

    Parameters:
        linear: Share β of the linear bounds from the end of the warm-up on; 1 until it begins.
    """
    return _mixed_with_clean(kappa, warmup, loss, worst_case.crown_ibp(eps, (1.0, linear), box=box))


@schedulable
def mtl_ibp(
    eps: float,
    alpha: float = 0.1,
    step_size: StepSize | float | None = None,
    steps: int = 8,
    warmup: Sequence[float] = WARMUP,
    norm: str = "linf",
    box: Box = Box(),
    loss: Objective = cross_entropy,
    **options: Any,
) -> Method:
    """MTL-IBP: `(1 - α) L(x') + α L(z)`, x' maximising L over the ball by PGD, z the worst-case logits by intervals (De
    Palma et al. 2024, "Expressive Losses for Verified Robustness via Convex Combinations", Sec. 4.2). Both balls grow,
    and with them the steps of PGD.

    Parameters:
        alpha: Weight α of the bounds, in [0, 1].
        options: Further fields of the attack, such as `start` and `mode`.
    """
    require(0 <= alpha <= 1, f"alpha = {alpha}: expected a share between 0 and 1.")
    options = {"start": "zero", "return_point": "last", "norm": norm, "box": box, **options}
    attack, span = replace(attacks.pgd(eps, step_size, steps, **options), objective=loss), _span(warmup)
    bounds = worst_case.ibp(eps, norm, box)
    attacked = WarmedUp(loss, attack, 1 - alpha, initial=1 - alpha, warmup=span)
    return Method((attacked, WarmedUp(loss, bounds, alpha, initial=alpha, warmup=span)))


def _mixed_with_clean(kappa: float, warmup: Sequence[float], loss: Objective, bounds: Bounds) -> Method:
    """`κ L(x) + (1 - κ) L(z)`, κ from 1 on."""
    require(0 <= kappa <= 1, f"kappa = {kappa}: expected a share between 0 and 1.")
    span = _span(warmup)
    clean = WarmedUp(loss, None, kappa, initial=1.0, warmup=span)
    return Method((clean, WarmedUp(loss, bounds, 1 - kappa, initial=0.0, warmup=span)))


def _span(warmup: Sequence[float]) -> tuple[float, float]:
    require(len(warmup) == 2, f"warmup = {tuple(warmup)}: expected its beginning and its end, such as 0 0.5.")
    return float(warmup[0]), float(warmup[1])

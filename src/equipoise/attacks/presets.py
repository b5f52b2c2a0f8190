"""The attacks of R by the names of its tables: FGSM-k, PGDp-k, CWp-k (Sec. 5.1), PGD20-0.5 (Table 4), adaptive.

All start at the clean point with Gaussian noise of standard deviation 0.005 (written `N(0, 0.005)`), 5 times, and all
but the adaptive one return the last point, as R does. With `return_point="first_success"` they stop at the first
success: at least as strong, and faster. Each also takes the other fields of `Ascent` by name, such as `precision`.
"""

from dataclasses import replace
from typing import Any

from equipoise.attacks.ascent import Ascent
from equipoise.attacks.chain import Chain
from equipoise.attacks.gradient import cw, fgsm, pgd, usual_step_size
from equipoise.attacks.steps import Gaussian
from equipoise.core.checks import checked_call
from equipoise.core.errors import require
from equipoise.geometry import Box
from equipoise.losses.objectives import smoothed_cross_entropy


def _starts(options: dict[str, Any]) -> dict[str, Any]:
    """R's five starts, with what was asked for in their place."""
    return {"start": Gaussian(0.005 * _box(options).scale), "restarts": 5, "return_point": "last"} | options


def _box(options: dict[str, Any]) -> Box:
    return options.get("box", Box())


def _radius(k: float, options: dict[str, Any]) -> float:
    """k/255 of the box's width."""
    require(k == 0 or k >= 1, f"k = {k} is in units of 1/255: expected a number >= 1, such as 8 for eps = 8/255.")
    return k / 255 * _box(options).scale


@checked_call(fgsm)
def fgsm_k(k: float, **options: Any) -> Ascent:
    """`FGSMk`: one step of `eps = k/255` from a random start (R, Sec. 5.1)."""
    return fgsm(_radius(k, options), **_starts(options))


@checked_call(pgd)
def pgd_k(p: int, k: float, **options: Any) -> Ascent:
    """`PGDp-k`: p steps of `k/2550` within `eps = k/255` (R, Sec. 5.1)."""
    return pgd(_radius(k, options), usual_step_size(_radius(k, options), 10, 1.0), p, **_starts(options))


@checked_call(cw)
def cw_k(p: int, k: float, **options: Any) -> Ascent:
    """`CWp-k`: as `pgd_k`, on the margin (R, Sec. 5.1)."""
    return cw(_radius(k, options), usual_step_size(_radius(k, options), 10, 1.0), p, **_starts(options))


@checked_call(pgd)
def pgd_l2(p: int = 20, eps: float = 0.5, **options: Any) -> Ascent:
    """`PGDp-eps` in L2, PGD20-0.5 by default (R, Table 4); the step, which R does not give, is `eps/10` here too."""
    return pgd(eps, usual_step_size(eps, 10, 1.0), p, norm="l2", **_starts(options))


@checked_call(pgd)
def adaptive(eps: float, norm: str = "linf", steps: int = 40, **options: Any) -> Chain:
    """The attack on models trained with smooth labels: PGD on the cross-entropy with the label `y - g(y - 1/C)`, for
    each g in {0, 0.1, ..., 1}; a sample falls if one of them fools the model (R, Sec. 5.2.2, which takes the best g for
    all samples together, so that this one is at least as strong).

    Steps of `max(1/510, 2·eps/K)` (R, Sec. 5.2.2), stopped at the first success; `AttackResult.part` is 10·g.
    """
    size = max(_box(options).scale / 510, 2 * eps / max(steps, 1))
    chosen: dict[str, Any] = _starts({"return_point": "first_success"} | options)
    attack = pgd(eps, size, steps, norm, **chosen)
    smoothings = [tenths / 10 for tenths in range(11)]
    return Chain(tuple((f"g={g:g}", replace(attack, objective=smoothed_cross_entropy(g))) for g in smoothings))

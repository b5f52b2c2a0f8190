"""Attacks that follow a gradient. `eps` and `step_size` are in pixels of [0, 1]; `norm` is linf, l2 or l1; inputs that
are no pixels get another `box`. A tensor `eps` gives every sample a radius of its own, and steps of the default size
follow it.

Every function also takes the fields of `Ascent` by name, such as `mode`, `restarts`, `precision`. `pgd`, `cw` and
`r_fgsm` are attacks for evaluation: they start at a uniformly random point of the ball and return the first success.
The inner maximisation of adversarial training, as in U, starts at the clean point and returns the last point:
`start="zero", return_point="last"` (`equipoise.methods.pgd_at`).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from equipoise.attacks.ascent import Ascent, TargetRule
from equipoise.attacks.steps import Gaussian, RadiusShare, Start, StepSize, Uniform, UniformUpTo
from equipoise.core.checks import checked_call
from equipoise.core.errors import EquipoiseError, require, unknown
from equipoise.core.schedules import schedulable
from equipoise.geometry import Ball, Box
from equipoise.losses.objectives import Divergence, Objective, cross_entropy, kl, margin, uncertainty_named

Eps = float | Tensor
_EVALUATION: dict[str, Any] = {"start": Uniform(), "return_point": "first_success"}


def make_ascent(
    objective: Objective,
    within: Ball,
    step_size: StepSize | float | None,
    steps: int,
    reach: float = 2.5,
    /,
    **options: Any,
) -> Ascent:
    """An `Ascent`, by default of steps of `usual_step_size`."""
    if "random_start" in options:
        raise EquipoiseError(
            "random_start is not an option: write start='uniform', or start='zero' for the clean point."
        )
    if step_size is None:
        size = usual_step_size(within.eps, steps, reach)
        step_size = size if within.radii is None else RadiusShare(reach / max(steps, 1), within.radii)
    return Ascent(objective, within, step_size, steps, **options)


def _ball(norm: str, eps: Eps, box: Box) -> Ball:
    """The ball of radius `eps`; of a tensor, with a radius for each sample, whose `eps` is the largest of them."""
    if not isinstance(eps, Tensor):
        return Ball(norm, eps, box)
    require(eps.ndim == 1 and len(eps) > 0, f"eps has shape {tuple(eps.shape)}: expected one radius per sample.")
    return Ball(norm, float(eps.max()), box, eps)


def usual_step_size(eps: float, steps: int, reach: float = 2.5) -> float:
    """`reach·eps/K` (2.5: Madry et al. 2018). With eps = 0, where any step is projected back, 1."""
    return reach * eps / max(steps, 1) if eps > 0 else 1.0


@schedulable
@checked_call(Ascent)
def fgsm(eps: Eps, norm: str = "linf", step_size: float | None = None, box: Box = Box(), **options: Any) -> Ascent:
    """Fast gradient sign method: `x + eps · sign(∇CE)`, for other norms the steepest step (Goodfellow et al. 2015)."""
    return make_ascent(cross_entropy, _ball(norm, eps, box), step_size, 1, 1.0, **options)


@schedulable
@checked_call(Ascent)
def r_fgsm(eps: Eps, step_size: float | None = None, norm: str = "linf", box: Box = Box(), **options: Any) -> Ascent:
    """FGSM from a uniform random start ξ: `Π(x + ξ + alpha · sign(∇CE(x + ξ)))`, alpha = 1.25·eps by default.

    The gradient is taken at the random start, as in Wong et al. 2020; U (Eq. R-FGSM) writes it at x.
    """
    return make_ascent(cross_entropy, _ball(norm, eps, box), step_size, 1, 1.25, **_EVALUATION | options)


@schedulable
@checked_call(Ascent)
def pgd(
    eps: Eps,
    step_size: StepSize | float | None = None,
    steps: int = 40,
    norm: str = "linf",
    box: Box = Box(),
    **options: Any,
) -> Ascent:
    """Projected gradient ascent of the cross-entropy from a random start, up to the first success (Madry et al. 2018).

    U's (Eq. PGD), from the clean point and with the last point, is `start="zero", return_point="last"`.
    """
    return make_ascent(cross_entropy, _ball(norm, eps, box), step_size, steps, **_EVALUATION | options)


@schedulable
@checked_call(Ascent)
def cw(
    eps: Eps,
    step_size: StepSize | float | None = None,
    steps: int = 40,
    norm: str = "linf",
    box: Box = Box(),
    **options: Any,
) -> Ascent:
    """As `pgd`, on the margin of Carlini & Wagner 2017 (R, Sec. 5.1)."""
    return make_ascent(margin, _ball(norm, eps, box), step_size, steps, **_EVALUATION | options)


@schedulable
@checked_call(Ascent)
def uta(
    eps: Eps,
    step_size: StepSize | float | None = None,
    steps: int = 40,
    norm: str = "linf",
    uncertainty: str | Objective = "entropy",
    box: Box = Box(),
    **options: Any,
) -> Ascent:
    """Uncertainty-targeted attack: K steps that increase the uncertainty; uses no label (T, Eq. UTA-PGD and Alg. 1).

    `uncertainty` is one of `equipoise.losses.objectives.UNCERTAINTIES`, or an objective of your own.
    """
    return make_ascent(uncertainty_named(uncertainty), _ball(norm, eps, box), step_size, steps, **options)


@schedulable
@checked_call(Ascent)
def udp(
    eps: Eps,
    step_size: StepSize | float | None = None,
    steps: int = 40,
    norm: str = "linf",
    uncertainty: str | Objective = "entropy",
    box: Box = Box(),
    **options: Any,
) -> Ascent:
    """Uncertainty-driven perturbation: as `uta`, with `k ~ U{1..K}` steps drawn per sample (U, Eq. UDP-PGD, Alg. 1)."""
    return replace(uta(eps, step_size, steps, norm, uncertainty, box, **options), steps=UniformUpTo(steps))


@schedulable
@checked_call(Ascent)
def trades(
    eps: Eps,
    step_size: StepSize | float | None = None,
    steps: int = 10,
    norm: str = "linf",
    divergence: Divergence = "clean||here",
    start: Start | None = None,
    box: Box = Box(),
    **options: Any,
) -> Ascent:
    """TRADES' inner step: maximise the divergence from the clean prediction, starting at Gaussian noise of 0.001 times
    the box's width, because its gradient is 0 at the clean point (Zhang et al. 2019).
    """
    start = Gaussian(0.001 * box.scale) if start is None else start
    return make_ascent(kl(divergence), _ball(norm, eps, box), step_size, steps, start=start, **options)


@checked_call()
def targeted(attack: Ascent, rule: TargetRule = "least_likely") -> Ascent:
    """The same attack towards a class chosen by `rule`; pass your own classes as `target=` to any attack."""
    return replace(attack, target=rule)


ATTACKS: dict[str, Callable[..., Ascent]] = {
    "fgsm": fgsm,
    "r-fgsm": r_fgsm,
    "pgd": pgd,
    "cw": cw,
    "uta": uta,
    "udp": udp,
    "trades": trades,
}
"""Every named attack."""


@checked_call()
def named(name: str, eps: float, **options: Any) -> Ascent:
    """The attack with that name; options it does not take are refused. Raises `EquipoiseError`."""
    if name not in ATTACKS:
        raise unknown("attack", name, ATTACKS)
    return ATTACKS[name](eps, **options)

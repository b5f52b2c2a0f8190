"""Methods that train at perturbed inputs."""

from dataclasses import replace
from typing import Any

from equipoise.attacks import gradient as attacks
from equipoise.attacks.steps import Uniform
from equipoise.core.schedules import schedulable
from equipoise.geometry import Box
from equipoise.losses.objectives import (
    Divergence,
    Objective,
    boosted_cross_entropy,
    cross_entropy,
    kl,
    misclassified_kl,
)
from equipoise.losses.terms import Method, as_method
from equipoise.training.methods.shared import StepLength, mixed_with_clean, pgd, require_not_negative
from equipoise.training.penalties import GradientAlignment


@schedulable
def fgsm_at(eps: float, loss: Objective = cross_entropy, **options: Any) -> Method:
    """FGSM adversarial training: `L(x')`, `x' = x + ε sign ∇L(x)` (Goodfellow et al. 2015)."""
    return as_method(loss @ replace(attacks.fgsm(eps, **options), objective=loss))


@schedulable
def r_fgsm_at(eps: float, step_size: float | None = None, loss: Objective = cross_entropy, **options: Any) -> Method:
    """FGSM adversarial training from a random start in the ball: `L(x')` (Wong et al. 2020; U, Eq. R-FGSM).

    Parameters:
        step_size: Length of the step, in units of `eps`; by default 1.25 ε.
    """
    options = {"return_point": "last", **options}
    return as_method(loss @ replace(attacks.r_fgsm(eps, step_size, **options), objective=loss))


@schedulable
def n_fgsm_at(
    eps: float,
    step_size: float | None = None,
    noise: float = 2.0,
    norm: str = "linf",
    box: Box = Box(),
    loss: Objective = cross_entropy,
    **options: Any,
) -> Method:
    """N-FGSM adversarial training: `L(x')`, `x' = x + ξ + α sign ∇L(x + ξ)`, ξ uniform. `ξ ~ U[-noise·ε, noise·ε]`, and
    x' is not projected to the ball of ε (de Jorge et al. 2022, "Make Some Noise", Alg. 1; clipped to the box, as in
    their code).

    Parameters:
        step_size: Length α of the step, in units of `eps`; by default ε.
        noise: Radius of the uniform noise, in multiples of ε, >= 0.
        norm: Norm of the ball.
        box: Valid range of the inputs.
    """
    require_not_negative("noise", noise)
    size = eps if step_size is None else step_size
    radius = noise * eps + size
    start = Uniform(share=noise * eps / radius if radius else 1.0)
    return as_method(loss @ replace(attacks.fgsm(radius, norm, size, box, start=start, **options), objective=loss))


@schedulable
def gradalign_at(
    eps: float, step_size: float | None = None, weight: float = 0.2, loss: Objective = cross_entropy, **options: Any
) -> Method:
    """FGSM adversarial training with aligned gradients: `L(x') + λ (1 - cos(∇L(x), ∇L(x + ξ)))`, ξ uniform on the ball
    (Andriushchenko & Flammarion 2020, Eq. 5).

    Parameters:
        step_size: Length of the step, in units of `eps`; by default ε.
        weight: Weight λ of the penalty, >= 0; 0.2 in the paper at ε = 8/255.
    """
    require_not_negative("weight", weight)
    ascent = replace(attacks.fgsm(eps, step_size=step_size, **options), objective=loss)
    return as_method(loss @ ascent).with_penalty(weight, GradientAlignment(ascent.geometry, loss))


@schedulable
def pgd_at(
    eps: float, step_size: StepLength = None, steps: int = 10, loss: Objective = cross_entropy, **options: Any
) -> Method:
    """PGD adversarial training: `L(x')`, x' maximising L over the ball by gradient ascent (Madry et al. 2018)."""
    return as_method(loss @ replace(pgd(eps, step_size, steps, **options), objective=loss))


@schedulable
def pat(
    eps: float,
    step_size: StepLength = None,
    steps: int = 10,
    clean_share: float = 0.5,
    loss: Objective = cross_entropy,
    **options: Any,
) -> Method:
    """Adversarial training mixed with the clean loss: `a L(x) + (1 - a) L(x')`, x' maximising the same L by PGD (R,
    Eqs. 2 and 5). With `loss = regularised(2)` it is PAT-EntM, with `regularised(smoothing=0.74)` PAT-LS.
    """
    return mixed_with_clean(clean_share, loss, pgd_at(eps, step_size, steps, loss, **options))


@schedulable
def friendly_at(
    eps: float,
    step_size: StepLength = None,
    steps: int = 10,
    tau: int = 0,
    loss: Objective = cross_entropy,
    **options: Any,
) -> Method:
    """Friendly adversarial training: `L(x')`, x' by PGD that stops once the prediction is wrong (Zhang et al. 2020,
    "Attacks Which Do Not Kill Training Make Adversarial Learning Stronger", Alg. 1).

    Parameters:
        steps: Maximum number of steps.
        tau: Number of steps taken beyond the first misclassified point.
    """
    return pgd_at(eps, step_size, steps, loss, tau=tau, **options)


@schedulable
def mart(eps: float, step_size: StepLength = None, steps: int = 10, beta: float = 5.0, **options: Any) -> Method:
    """Misclassification-aware adversarial training: `BCE(x') + λ KL(p(x) ‖ p(x')) (1 - p_y(x))`. BCE is the boosted
    cross-entropy, and x' maximises CE by PGD (Wang et al. 2020, Eq. 11).

    Parameters:
        beta: Weight λ of the divergence, >= 0.
    """
    require_not_negative("beta", beta)
    ascent = pgd(eps, step_size, steps, **options)
    return boosted_cross_entropy @ ascent + beta * (misclassified_kl() @ ascent)


@schedulable
def udp(
    eps: float, step_size: StepLength = None, steps: int = 20, loss: Objective = cross_entropy, **options: Any
) -> Method:
    """Uncertainty-driven perturbations: `L(x')`, x' by k ~ U{1..K} steps of ascent on the entropy (U, Alg. 1; k as in
    its code).
    """
    return as_method(loss @ attacks.udp(eps, step_size, steps, **options))


@schedulable
def uta(
    eps: float, step_size: StepLength = None, steps: int = 20, loss: Objective = cross_entropy, **options: Any
) -> Method:
    """Uncertainty-targeted attacks: `L(x')`, as `udp` with all K steps (T, Alg. 1)."""
    return as_method(loss @ attacks.uta(eps, step_size, steps, **options))


@schedulable
def udpr(
    eps: float,
    step_size: StepLength = None,
    steps: int = 20,
    weight: float = 1.0,
    loss: Objective = cross_entropy,
    **options: Any,
) -> Method:
    """UDP as a regulariser: `L(x) + λ L(x')`, x' the point of `udp` (U, Eq. UDPR).

    Parameters:
        weight: Weight λ of the perturbed term, >= 0; 1 in the reference runs.
    """
    require_not_negative("weight", weight)
    return as_method(loss) + weight * (loss @ attacks.udp(eps, step_size, steps, **options))


@schedulable
def trades(
    eps: float,
    step_size: StepLength = None,
    steps: int = 10,
    beta: float = 6.0,
    divergence: Divergence = "clean||here",
    loss: Objective = cross_entropy,
    **options: Any,
) -> Method:
    """TRADES: `L(x) + β D(x, x')`, x' maximising D from a noisy start (Zhang et al. 2019; U, Eq. TRADES; R, Eq. 3, with
    β = 3 and `here||clean`).

    The code of U's authors has β = 1, `divergence="soft-cross-entropy"` and `start=Zero()`, the clean point, where the
    divergence has no gradient, so that the first step follows rounding errors.

    Parameters:
        beta: Weight β of the divergence, >= 0.
    """
    require_not_negative("beta", beta)
    ascent = attacks.trades(eps, step_size, steps, divergence=divergence, **options)
    return as_method(loss) + beta * (kl(divergence) @ ascent)


@schedulable
def udp_trades(
    eps: float,
    step_size: StepLength = None,
    steps: int = 20,
    beta: float = 1.0,
    divergence: Divergence = "soft-cross-entropy",
    loss: Objective = cross_entropy,
    **options: Any,
) -> Method:
    """TRADES' divergence at the point of `udp`: `L(x) + β D(x, x')`. U suggests it as future work (App. A.3); its
    authors' code has it, with the defaults here.

    Parameters:
        beta: Weight β of the divergence, >= 0.
    """
    require_not_negative("beta", beta)
    return as_method(loss) + beta * (kl(divergence) @ attacks.udp(eps, step_size, steps, **options))

"""Training methods, each a weighted sum of loss terms. You can define your own in the same way:

    cross_entropy + 0.5 * (entropy @ udp(eps=0.1, step_size=0.02, steps=10))

Parameters of several methods, unless a method says otherwise:

    eps: Radius ε of the ball, in pixels of [0, 1], such as 0.1 or 8/255; in a latent space, in units of its values.
    step_size: Length α of a step, in units of `eps`, or its schedule; by default 2.5 ε / steps.
    steps: Number of steps K of the inner maximisation.
    loss: Training loss L, and the attack's objective where the method maximises the loss: `cross_entropy`, or with
        uncertainty promoted `regularised(entropy_weight=2)` (METHOD-EntM) or `regularised(smoothing=0.74)` (METHOD-LS).
    clean_share: Share a of the clean loss, in [0, 1].
    divergence: D(clean, perturbed): KL(clean ‖ perturbed), its reverse, or the cross-entropy with the clean prediction.
    layer: Name of the layer whose output is perturbed, such as fc1 of a LeNet.
    options: Further fields of the attack, such as `norm`, `box`, `start`, and `mode`, the model's mode while it is
        attacked: `train` as in the papers' runs, or `eval` (the default), where samples are independent of each other,
        which is faster and leaves batch-norm's statistics to the clean and final points.

All other parameters are described by the method itself. Below, x' stands for the perturbed input.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from equipoise.attacks import gradient as attacks
from equipoise.attacks.ascent import Ascent
from equipoise.attacks.spaces import AutoEncoder, Latent, OnManifold
from equipoise.attacks.steps import StepSize, Uniform
from equipoise.core.errors import require, require_number
from equipoise.core.schedules import schedulable
from equipoise.corruptions import CORRUPTIONS
from equipoise.generators import AdversarialGenerator, Adversary, GeneratedMargin
from equipoise.geometry import EVERYWHERE, Box
from equipoise.losses.objectives import (
    Divergence,
    Objective,
    boosted_cross_entropy,
    cross_entropy,
    each,
    entropy,
    kl,
    log_diversity,
    misclassified_kl,
    regularised,
)
from equipoise.losses.terms import Method, as_method
from equipoise.training.certified import crown_ibp as crown_ibp
from equipoise.training.certified import ibp as ibp
from equipoise.training.certified import mtl_ibp as mtl_ibp
from equipoise.training.corruption import Corrupted
from equipoise.training.penalties import CrossLipschitz, GradientAlignment, ManifoldAgreement, Neighbours, Radii
from equipoise.training.perturbations import AtBoundary, Remembered
from equipoise.training.variations import (
    adaptive_eps,
    alternating,
    average_of,
    distilled,
    every,
    remembering,
    squared_difference,
    worst_of,
)

__all__ = [
    "adaptive_eps",
    "adp",
    "alternating",
    "average_of",
    "corruption_at",
    "distilled",
    "entm",
    "every",
    "fgsm_at",
    "fgsm_pgi",
    "friendly_at",
    "gradalign_at",
    "hein",
    "label_smoothing",
    "ls_pgd",
    "ls_trades",
    "ls_udp",
    "ls_udpr",
    "ls_uta",
    "mart",
    "mma",
    "n_fgsm_at",
    "on_manifold_at",
    "on_manifold_udp",
    "pat",
    "pgd_at",
    "r2",
    "r4",
    "r_fgsm_at",
    "remembering",
    "standard",
    "trades",
    "udp",
    "udp_trades",
    "udpr",
    "uta",
    "worst_of",
]

StepLength = StepSize | float | None


@schedulable
def standard(loss: Objective = cross_entropy) -> Method:
    """Standard training, empirical risk minimisation: `L(x)`."""
    return as_method(loss)


@schedulable
def entm(entropy_weight: float = 2.0) -> Method:
    """Entropy maximisation: `CE(x) - λ H(x)` (R, Eq. 4; MaxE in U, App. A.5; Pereyra et al. 2017).

    Parameters:
        entropy_weight: Weight λ of the entropy, >= 0.
    """
    return standard(regularised(entropy_weight))


@schedulable
def label_smoothing(smoothing: float = 0.74) -> Method:
    """Label smoothing: `CE` with the label `y - g (y - 1/C)` (R, Eq. 6).

    Parameters:
        smoothing: Smoothing g in [0, 1]; R has 0.74 for 10 classes and 0.84 for 100.
    """
    return standard(regularised(smoothing=smoothing))


@schedulable
def adp(entropy_weight: float = 2.0, diversity_weight: float = 0.5) -> Method:
    """Adaptive diversity promoting training of an `Ensemble` of at least 2 members, which err in different directions:
    `Σ_m CE(p_m) - α H(mean) - β log det(Mᵀ M)` (Pang et al. 2019, Eq. 5; in R with 3 members).

    Parameters:
        entropy_weight: Weight α of the entropy of the mean prediction, >= 0.
        diversity_weight: Weight β of the log determinant of the members' non-maximal predictions, >= 0.
    """
    _require_not_negative("entropy_weight", entropy_weight)
    _require_not_negative("diversity_weight", diversity_weight)
    return as_method(each(cross_entropy, total=True) - entropy_weight * entropy - diversity_weight * log_diversity)


@schedulable
def r2(
    generator: AdversarialGenerator | None = None,
    weight: float = 1.0,
    softness: float = 1.0,
    halvings: int = 6,
    crossing: float = 10.0,
    scores: Literal["logits", "probabilities"] = "logits",
    generator_lr: float = 3e-3,
    loss: Objective = cross_entropy,
    clean: Literal["held", "live"] = "held",
    generator_steps: int = 1,
) -> Method:
    """Training for a large average distance to generated adversarial examples:
    `L(x) - λ mean ‖x* - x‖₂ / (softness + CE(f(x), f(x*)))`. x* is the point between x and g(x) where the prediction
    changes, g a generator of adversarial examples that trains alongside (F, Eqs. 7, 12 and 14, Alg. 1).

    The paper's own objectives are `softness=0, halvings=0, clean="live", crossing=1, scores="probabilities"`; see
    `GeneratedMargin` and `Adversary` for why they are not the defaults. Eq. 7 subtracts the term; Eq. 12 prints it with
    a plus sign, which a negative `weight` gives. A run directory holds the trained generator, see `load_generator`.

    Parameters:
        generator: Generator g to start from; by default a new one is built for the data.
        weight: Weight λ of the distance, which is subtracted from the loss.
        softness: Number added to the cross-entropy, in nats, by which the distance is divided.
        halvings: Bisection steps from g(x) back to the decision boundary; 0 evaluates at g(x).
        crossing: Weight of misclassification in the generator's loss, > 0.
        scores: What the generator's loss compares: logits, or probabilities.
        generator_lr: Learning rate of the generator.
        clean: Whether the clean prediction is a constant (held) or has a gradient (live).
        generator_steps: Steps of the generator for each step of the classifier.
    """
    adversary = Adversary(generator, crossing=crossing, scores=scores, lr=generator_lr, steps=generator_steps)
    return as_method(loss).with_penalty(-weight, GeneratedMargin(adversary, softness, halvings, clean))


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
    _require_not_negative("noise", noise)
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
    _require_not_negative("weight", weight)
    ascent = replace(attacks.fgsm(eps, step_size=step_size, **options), objective=loss)
    return as_method(loss @ ascent).with_penalty(weight, GradientAlignment(ascent.geometry, loss))


@schedulable
def pgd_at(
    eps: float, step_size: StepLength = None, steps: int = 10, loss: Objective = cross_entropy, **options: Any
) -> Method:
    """PGD adversarial training: `L(x')`, x' maximising L over the ball by gradient ascent (Madry et al. 2018)."""
    return as_method(loss @ replace(_pgd(eps, step_size, steps, **options), objective=loss))


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
    return _mixed_with_clean(clean_share, loss, pgd_at(eps, step_size, steps, loss, **options))


@schedulable
def corruption_at(
    corruptions: Sequence[str] = tuple(CORRUPTIONS), clean_share: float = 0.5, loss: Objective = cross_entropy
) -> Method:
    """Training on corrupted images: `a L(x) + (1 - a) L(c(x))`, c a random corruption. Each image has its own in each
    step.

    Raises `EquipoiseError` for an unknown corruption or none, and in training for images that cannot be corrupted.

    Parameters:
        corruptions: Names of the corruptions, by default those of MNIST-C (Mu & Gilmer 2019). Test on other ones.
    """
    return _mixed_with_clean(clean_share, loss, as_method(loss @ Corrupted(tuple(corruptions))))


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
    _require_not_negative("beta", beta)
    ascent = _pgd(eps, step_size, steps, **options)
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
    _require_not_negative("weight", weight)
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
    _require_not_negative("beta", beta)
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
    _require_not_negative("beta", beta)
    return as_method(loss) + beta * (kl(divergence) @ attacks.udp(eps, step_size, steps, **options))


@schedulable
def ls_pgd(eps: float, layer: str, step_size: StepLength = None, steps: int = 20, **options: Any) -> Method:
    """PGD adversarial training in the latent space after `layer`: `CE(C(E(x) + δ))`, δ maximising CE. Encoder E and
    classifier C are trained together (U, Table 5).
    """
    return pgd_at(eps, step_size, steps, **_latent(layer), **options)


@schedulable
def ls_udp(eps: float, layer: str, step_size: StepLength = None, steps: int = 20, **options: Any) -> Method:
    """UDP in the latent space after `layer`: `CE(C(E(x) + δ))`, δ maximising entropy (U, Eq. ERM-P and Table 5)."""
    return udp(eps, step_size, steps, **_latent(layer), **options)


@schedulable
def ls_uta(eps: float, layer: str, step_size: StepLength = None, steps: int = 20, **options: Any) -> Method:
    """UTA in the latent space after `layer`: `CE(C(E(x) + δ))`, as `ls_udp` with all K steps (T, Sec. 5.2)."""
    return uta(eps, step_size, steps, **_latent(layer), **options)


@schedulable
def ls_udpr(
    eps: float, layer: str, step_size: StepLength = None, steps: int = 20, weight: float = 1.0, **options: Any
) -> Method:
    """UDPR in the latent space after `layer`: `CE(x) + λ CE(C(E(x) + δ))` (U, Table 5).

    Parameters:
        weight: Weight λ of the perturbed term, >= 0.
    """
    return udpr(eps, step_size, steps, weight, **_latent(layer), **options)


@schedulable
def ls_trades(
    eps: float,
    layer: str,
    step_size: StepLength = None,
    steps: int = 20,
    beta: float = 6.0,
    divergence: Divergence = "clean||here",
    **options: Any,
) -> Method:
    """TRADES in the latent space after `layer`: `CE(x) + β D(x, C(E(x) + δ))` (U, Table 5).

    Parameters:
        beta: Weight β of the divergence, >= 0.
    """
    return trades(eps, step_size, steps, beta, divergence, **_latent(layer), **options)


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
    nearest = loss @ AtBoundary(replace(_pgd(eps, step_size, steps, **options), objective=loss))
    return _mixed_with_clean(clean_share, loss, as_method(nearest))


@schedulable
def hein(weight: float = 0.01, directions: int = 0, loss: Objective = cross_entropy) -> Method:
    """Cross-Lipschitz regularisation: `L(x) + λ (1/C²) Σ_{l,m} ‖∇f_l(x) - ∇f_m(x)‖²`, f the logits (Hein &
    Andriushchenko 2017; HEIN in F, Sec. 6).

    Parameters:
        weight: Weight λ of the penalty, >= 0.
        directions: Number of random directions that estimate the sum at lower cost; 0 computes it exactly.
    """
    _require_not_negative("weight", weight)
    return as_method(loss).with_penalty(weight, CrossLipschitz(directions))


@schedulable
def r4(
    manifold: Neighbours,
    weight: float = 1.0,
    samples: int = 10,
    sigma: float = 0.06,
    radii: Radii = "distances",
    loss: Objective = cross_entropy,
) -> Method:
    """Training for average on-manifold robustness: `L(x) + λ mean_{ε∈Σ} (1/ε) mean_{x'∈S_ε(x)} CE(f(x), f(x'))`. S_ε(x)
    are the samples of the manifold within ε of x (F, Eqs. 7-9 and 13, Example 4).

    Parameters:
        manifold: Generative model of the data, an auto-encoder.
        weight: Weight λ of the disagreement.
        samples: Number of samples for each input, and of radii; 10 in F, Sec. 7.
        sigma: Standard deviation of the noise on an input's code; 0.06 in F, Sec. 7.
        radii: The radii Σ, in L2 and pixels: distances of the samples, or uniform up to the diameter of the unit cube.
    """
    return as_method(loss).with_penalty(weight, ManifoldAgreement(manifold, samples, sigma, radii))


@schedulable
def on_manifold_at(
    manifold: AutoEncoder,
    eps: float,
    step_size: StepLength = None,
    steps: int = 10,
    clean_share: float = 0.0,
    loss: Objective = cross_entropy,
    **options: Any,
) -> Method:
    """On-manifold adversarial training, PGD in the codes of an auto-encoder: `a L(x) + (1 - a) L(dec(enc(x) + δ))`, δ
    maximising L (Stutz et al. 2019; F, Sec. 7).

    Parameters:
        manifold: The auto-encoder (enc, dec).
        eps: Radius of the ball, in units of the codes, whose standard deviation is about 1.
    """
    perturbed = pgd_at(eps, step_size, steps, loss, space=OnManifold(manifold), box=EVERYWHERE, **options)
    return perturbed if clean_share == 0 else _mixed_with_clean(clean_share, loss, perturbed)


@schedulable
def on_manifold_udp(
    manifold: AutoEncoder,
    eps: float,
    step_size: StepLength = None,
    steps: int = 20,
    clean_share: float = 0.0,
    loss: Objective = cross_entropy,
    **options: Any,
) -> Method:
    """UDP in the codes of an auto-encoder: `a L(x) + (1 - a) L(dec(enc(x) + δ))`, δ by k ~ U{1..K} steps of ascent on
    the entropy (the points of U, Alg. 1, in the space of Stutz et al. 2019).

    Parameters:
        manifold: The auto-encoder (enc, dec).
        eps: Radius of the ball, in units of the codes, whose standard deviation is about 1.
    """
    perturbed = udp(eps, step_size, steps, loss, space=OnManifold(manifold), box=EVERYWHERE, **options)
    return perturbed if clean_share == 0 else _mixed_with_clean(clean_share, loss, perturbed)


def _pgd(eps: float, step_size: StepLength, steps: int, **options: Any) -> Ascent:
    """PGD from the clean point to its last point (Madry et al. 2018; U, Eq. PGD)."""
    options = {"start": "zero", "return_point": "last", **options}
    return attacks.pgd(eps, step_size, steps, **options)


def _latent(layer: str) -> dict[str, Any]:
    return {"space": Latent(layer), "box": EVERYWHERE}


def _require_not_negative(name: str, value: float) -> None:
    require_number(name, value)
    require(value >= 0, f"{name} = {value}: expected a number >= 0.")


def _mixed_with_clean(clean_share: float, loss: Objective, perturbed: Method) -> Method:
    """`a · L(x) + (1 - a) · perturbed`."""
    require(0 <= clean_share <= 1, f"clean_share = {clean_share}: expected a share between 0 and 1.")
    return clean_share * as_method(loss) + (1 - clean_share) * perturbed

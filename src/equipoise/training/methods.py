"""Training methods, each a sum of terms. A method of your own is the same kind of sum:

    cross_entropy + 0.5 * (entropy @ udp(eps=0.1, step_size=0.02, steps=10))

`loss` is what a method descends, and climbs if it climbs the loss: `cross_entropy`, or with uncertainty promoted
`regularised(entropy_weight=2)` and `regularised(smoothing=0.74)`, so that every method has its EntM and its LS form.
`mode` is the model's mode while perturbing: `train` as in the papers' runs, `eval` (the default) keeps samples
independent of each other, which is faster and leaves batch-norm's statistics to the clean and final points.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from equipoise.attacks import gradient as attacks
from equipoise.attacks.ascent import Ascent
from equipoise.attacks.spaces import AutoEncoder, Latent, OnManifold
from equipoise.attacks.steps import StepSize, Uniform
from equipoise.core.errors import require
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
from equipoise.training.corruption import Corrupted
from equipoise.training.penalties import CrossLipschitz, GradientAlignment, ManifoldAgreement, Neighbours, Radii


def standard(loss: Objective = cross_entropy) -> Method:
    """Empirical risk: `L(x)`."""
    return as_method(loss)


def entm(entropy_weight: float = 2.0) -> Method:
    """`CE(x) - lam · H(x)`, entropy maximisation, which U calls MaxE (R, Eq. 4; U, App. A.5; Pereyra et al. 2017)."""
    return standard(regularised(entropy_weight))


def label_smoothing(smoothing: float = 0.74) -> Method:
    """`CE` with the label `y - g(y - 1/C)`, g = `smoothing`: .74 in R for 10 classes, .84 for 100 (R, Eq. 6)."""
    return standard(regularised(smoothing=smoothing))


def adp(entropy_weight: float = 2.0, diversity_weight: float = 0.5) -> Method:
    """`Σ_m CE(p_m) - alpha · H(mean) - beta · log det(Mᵀ M)`: an ensemble whose wrong classes point in different
    directions (Pang et al. 2019, Eq. 5; 3 members with (2, .5) in R). For an `Ensemble` of 2 members or more.
    """
    _require_not_negative("entropy_weight", entropy_weight)
    _require_not_negative("diversity_weight", diversity_weight)
    return as_method(each(cross_entropy, total=True) - entropy_weight * entropy - diversity_weight * log_diversity)


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
    """`L(x) - lam · mean of ‖x* - x‖₂ / (softness + CE(f(x), f(x*)))`, x* where the way from x to g(x) leaves x's
    class, g a network that seeks adversarial examples and trains alongside (F, Eqs. 7, 12 and 14, Alg. 1);
    lam = `weight`.

    Without a `generator` training builds one; with a run directory it is saved there, see `load_generator`. The paper's
    own objectives, to the letter, are `softness=0, halvings=0, clean="live", crossing=1, scores="probabilities"`, each
    of which can be had by itself; see `GeneratedMargin` and `Adversary` for why they are not the defaults. Eq. 7
    subtracts the term, Eq. 12 prints it with a plus sign, which a negative `weight` gives.
    """
    player = Adversary(generator, crossing=crossing, scores=scores, lr=generator_lr, steps=generator_steps)
    return as_method(loss).with_penalty(-weight, GeneratedMargin(player, softness, halvings, clean))


def fgsm_at(eps: float, loss: Objective = cross_entropy, **options: Any) -> Method:
    """`L(x_fgsm)` (Goodfellow et al. 2015)."""
    return as_method(loss @ replace(attacks.fgsm(eps, **options), objective=loss))


def r_fgsm_at(eps: float, step_size: float | None = None, loss: Objective = cross_entropy, **options: Any) -> Method:
    """`L(x_r-fgsm)`: FGSM from a random start (Wong et al. 2020; U, Eq. R-FGSM)."""
    ascent = attacks.r_fgsm(eps, step_size, **{"return_point": "last"} | options)
    return as_method(loss @ replace(ascent, objective=loss))


def n_fgsm_at(
    eps: float,
    step_size: float | None = None,
    noise: float = 2.0,
    norm: str = "linf",
    box: Box = Box(),
    loss: Objective = cross_entropy,
    **options: Any,
) -> Method:
    """`L(x + ξ + alpha · sign ∇L(x + ξ))`, `ξ ~ U[-noise·eps, noise·eps]`, not projected back to the ball of eps, alpha
    = eps by default (de Jorge et al. 2022, "Make Some Noise", Alg. 1: N-FGSM; clipped to the box, as their code does).
    """
    _require_not_negative("noise", noise)
    size = eps if step_size is None else step_size
    reach = noise * eps + size
    step = attacks.fgsm(reach, norm, size, box, start=Uniform(share=noise * eps / reach if reach else 1.0), **options)
    return as_method(loss @ replace(step, objective=loss))


def gradalign_at(
    eps: float, step_size: float | None = None, weight: float = 0.2, loss: Objective = cross_entropy, **options: Any
) -> Method:
    """`L(x_fgsm) + lam · (1 - cos(∇L(x), ∇L(x + ξ)))`: FGSM with gradients that agree over the ball (Andriushchenko &
    Flammarion 2020, Eq. 5; lam = .2 at eps = 8/255).
    """
    _require_not_negative("weight", weight)
    ascent = replace(attacks.fgsm(eps, step_size=step_size, **options), objective=loss)
    return as_method(loss @ ascent).with_penalty(weight, GradientAlignment(ascent.geometry, loss))


def pgd_at(
    eps: float,
    step_size: StepSize | float | None = None,
    steps: int = 10,
    loss: Objective = cross_entropy,
    **options: Any,
) -> Method:
    """`L(x_pgd)`, x_pgd climbing L (Madry et al. 2018)."""
    return as_method(loss @ replace(_pgd(eps, step_size, steps, **options), objective=loss))


def pat(
    eps: float,
    step_size: StepSize | float | None = None,
    steps: int = 10,
    clean_share: float = 0.5,
    loss: Objective = cross_entropy,
    **options: Any,
) -> Method:
    """`a · L(x) + (1 - a) · L(x_pgd)`, x_pgd climbing the same L, a = `clean_share` (R, Eqs. 2 and 5).

    With `loss = regularised(2)` it is PAT-EntM, with `regularised(smoothing=.74)` PAT-LS.
    """
    return _beside_clean(clean_share, loss, pgd_at(eps, step_size, steps, loss, **options))


def corruption_at(
    corruptions: Sequence[str] = tuple(CORRUPTIONS), clean_share: float = 0.5, loss: Objective = cross_entropy
) -> Method:
    """`a · L(x) + (1 - a) · L(c(x))`, a = `clean_share`, c a corruption drawn anew for each image and step.

    `corruptions` are by default those of MNIST-C (Mu & Gilmer 2019). A model trained on them must not then be tested
    on MNIST-C: name the ones to train on, and test on the others. The run's record says which they were. Raises
    `EquipoiseError` for an unknown name or none, and in training for images that cannot be corrupted.
    """
    return _beside_clean(clean_share, loss, as_method(loss @ Corrupted(tuple(corruptions))))


def friendly_at(
    eps: float,
    step_size: StepSize | float | None = None,
    steps: int = 10,
    tau: int = 0,
    loss: Objective = cross_entropy,
    **options: Any,
) -> Method:
    """`L(x_friendly)`: PGD that stops where the prediction is wrong, or `tau` wrong points later (Zhang et al. 2020,
    "Attacks Which Do Not Kill Training Make Adversarial Learning Stronger", Alg. 1).
    """
    return pgd_at(eps, step_size, steps, loss, tau=tau, **options)


def mart(
    eps: float, step_size: StepSize | float | None = None, steps: int = 10, beta: float = 5.0, **options: Any
) -> Method:
    """`BCE(x_pgd) + lam · KL(p(x) ‖ p(x_pgd)) (1 - p_y(x))`, lam = `beta`, x_pgd climbing CE (Wang et al. 2020,
    Eq. 11).
    """
    _require_not_negative("beta", beta)
    ascent = _pgd(eps, step_size, steps, **options)
    return boosted_cross_entropy @ ascent + beta * (misclassified_kl() @ ascent)


def udp(
    eps: float,
    step_size: StepSize | float | None = None,
    steps: int = 20,
    loss: Objective = cross_entropy,
    **options: Any,
) -> Method:
    """`L(x_udp)`: train at the point of greatest uncertainty, k ~ U{1..K} steps away (U, Alg. 1; k as in its code)."""
    return as_method(loss @ attacks.udp(eps, step_size, steps, **options))


def uta(
    eps: float,
    step_size: StepSize | float | None = None,
    steps: int = 20,
    loss: Objective = cross_entropy,
    **options: Any,
) -> Method:
    """`L(x_uta)`: as UDP with all K steps (T, Alg. 1)."""
    return as_method(loss @ attacks.uta(eps, step_size, steps, **options))


def udpr(
    eps: float,
    step_size: StepSize | float | None = None,
    steps: int = 20,
    weight: float = 1.0,
    loss: Objective = cross_entropy,
    **options: Any,
) -> Method:
    """`L(x) + lam · L(x_udp)`, lam = `weight`, 1 in the reference runs (U, Eq. UDPR)."""
    _require_not_negative("weight", weight)
    return as_method(loss) + weight * (loss @ attacks.udp(eps, step_size, steps, **options))


def trades(
    eps: float,
    step_size: StepSize | float | None = None,
    steps: int = 10,
    beta: float = 6.0,
    divergence: Divergence = "clean||here",
    loss: Objective = cross_entropy,
    **options: Any,
) -> Method:
    """`L(x) + beta · D(x, x')`, x' climbing the same divergence D from noise (Zhang et al. 2019; U, Eq. TRADES; R,
    Eq. 3, with beta = 3 and `here||clean`).

    The code of U's authors has beta = 1, `divergence="soft-cross-entropy"` and `start=Zero()`, the clean point itself,
    where the divergence has no slope: there the first step follows the rounding errors of its gradient.
    """
    _require_not_negative("beta", beta)
    return as_method(loss) + beta * (
        kl(divergence) @ attacks.trades(eps, step_size, steps, divergence=divergence, **options)
    )


def udp_trades(
    eps: float,
    step_size: StepSize | float | None = None,
    steps: int = 20,
    beta: float = 1.0,
    divergence: Divergence = "soft-cross-entropy",
    loss: Objective = cross_entropy,
    **options: Any,
) -> Method:
    """TRADES' smoothing term evaluated at the UDP point, `L(x) + beta · D(x, x_udp)`.

    U leaves it to future work (App. A.3); the code of its authors has it, with the defaults here: weight 1 and the
    cross-entropy with the clean prediction.
    """
    _require_not_negative("beta", beta)
    return as_method(loss) + beta * (kl(divergence) @ attacks.udp(eps, step_size, steps, **options))


def ls_pgd(
    eps: float, layer: str, step_size: StepSize | float | None = None, steps: int = 20, **options: Any
) -> Method:
    """`CE(C(E(x) + δ_pgd))`: PGD-AT in the latent space after `layer`; E and C are trained together (U, Table 5)."""
    return pgd_at(eps, step_size, steps, **_inside(layer), **options)


def ls_udp(
    eps: float, layer: str, step_size: StepSize | float | None = None, steps: int = 20, **options: Any
) -> Method:
    """`CE(C(E(x) + δ_udp))`: UDP in the latent space after `layer` (U, Eq. ERM-P and Table 5)."""
    return udp(eps, step_size, steps, **_inside(layer), **options)


def ls_uta(
    eps: float, layer: str, step_size: StepSize | float | None = None, steps: int = 20, **options: Any
) -> Method:
    """`CE(C(E(x) + δ_uta))`: as `ls_udp` with all K steps (T, Sec. 5.2)."""
    return uta(eps, step_size, steps, **_inside(layer), **options)


def ls_udpr(
    eps: float,
    layer: str,
    step_size: StepSize | float | None = None,
    steps: int = 20,
    weight: float = 1.0,
    **options: Any,
) -> Method:
    """`CE(x) + lam · CE(C(E(x) + δ_udp))`: UDPR in the latent space after `layer` (U, Table 5)."""
    return udpr(eps, step_size, steps, weight, **_inside(layer), **options)


def ls_trades(
    eps: float,
    layer: str,
    step_size: StepSize | float | None = None,
    steps: int = 20,
    beta: float = 6.0,
    divergence: Divergence = "clean||here",
    **options: Any,
) -> Method:
    """`CE(x) + beta · D(x, C(E(x) + δ))`: TRADES in the latent space after `layer` (U, Table 5)."""
    return trades(eps, step_size, steps, beta, divergence, **_inside(layer), **options)


def hein(weight: float = 0.01, directions: int = 0, loss: Objective = cross_entropy) -> Method:
    """`L(x) + lam · (1/C²) Σ_{l,m} ‖∇f_l(x) - ∇f_m(x)‖²`: logits that do not move apart fast (Hein & Andriushchenko
    2017; HEIN in F, Sec. 6). `directions` > 0 estimates the sum at a share of its cost.
    """
    _require_not_negative("weight", weight)
    return as_method(loss).with_penalty(weight, CrossLipschitz(directions))


def r4(
    manifold: Neighbours,
    weight: float = 1.0,
    samples: int = 10,
    sigma: float = 0.06,
    radii: Radii = "distances",
    loss: Objective = cross_entropy,
) -> Method:
    """`L(x) + lam · mean over ε in Σ of (1/ε) · mean over x' in S_ε(x) of CE(f(x), f(x'))`, S_ε(x) the samples of the
    manifold within ε of x: average on-manifold robustness, trained (F, Eqs. 7-9 and 13, Example 4; in Sec. 7 with 10
    samples and sigma = .06).
    """
    return as_method(loss).with_penalty(weight, ManifoldAgreement(manifold, samples, sigma, radii))


def on_manifold_at(
    manifold: AutoEncoder,
    eps: float,
    step_size: StepSize | float | None = None,
    steps: int = 10,
    clean_share: float = 0.0,
    loss: Objective = cross_entropy,
    **options: Any,
) -> Method:
    """`a · L(x) + (1 - a) · L(dec(enc(x) + δ_pgd))`, a = `clean_share`: PGD-AT in the codes of an auto-encoder,
    on-manifold adversarial training (Stutz et al. 2019; F, Sec. 7). The ball is in units of the codes, whose deviation
    is about 1.
    """
    climbed = pgd_at(eps, step_size, steps, loss, space=OnManifold(manifold), box=EVERYWHERE, **options)
    return climbed if clean_share == 0 else _beside_clean(clean_share, loss, climbed)


def _pgd(eps: float, step_size: StepSize | float | None, steps: int, **options: Any) -> Ascent:
    """PGD from the clean point to its last point (Madry et al. 2018; U, Eq. PGD)."""
    return attacks.pgd(eps, step_size, steps, **{"start": "zero", "return_point": "last"} | options)


def _inside(layer: str) -> dict[str, Any]:
    return {"space": Latent(layer), "box": EVERYWHERE}


def _require_not_negative(name: str, value: float) -> None:
    require(value >= 0, f"{name} = {value}: expected a number >= 0.")


def _beside_clean(clean_share: float, loss: Objective, perturbed: Method) -> Method:
    """`a · L(x) + (1 - a) · perturbed`."""
    require(0 <= clean_share <= 1, f"clean_share = {clean_share}: expected a share between 0 and 1.")
    return clean_share * as_method(loss) + (1 - clean_share) * perturbed

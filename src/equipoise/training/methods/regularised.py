"""Methods without an attack: standard training, uncertainty promoted, penalties, corrupted images."""

from collections.abc import Sequence
from typing import Literal

from equipoise.core.schedules import schedulable
from equipoise.corruptions import CORRUPTIONS
from equipoise.generators import AdversarialGenerator, Adversary, GeneratedMargin
from equipoise.losses.objectives import (
    Objective,
    cross_entropy,
    each,
    entropy,
    log_diversity,
    regularised,
)
from equipoise.losses.terms import Method, as_method
from equipoise.training.corruption import Corrupted
from equipoise.training.methods.shared import mixed_with_clean, require_not_negative
from equipoise.training.penalties import CrossLipschitz, ManifoldAgreement, Neighbours, Radii


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
    require_not_negative("entropy_weight", entropy_weight)
    require_not_negative("diversity_weight", diversity_weight)
    return as_method(each(cross_entropy, total=True) - entropy_weight * entropy - diversity_weight * log_diversity)


@schedulable
def hein(weight: float = 0.01, directions: int = 0, loss: Objective = cross_entropy) -> Method:
    """Cross-Lipschitz regularisation: `L(x) + λ (1/C²) Σ_{l,m} ‖∇f_l(x) - ∇f_m(x)‖²`, f the logits (Hein &
    Andriushchenko 2017; HEIN in F, Sec. 6).

    Parameters:
        weight: Weight λ of the penalty, >= 0.
        directions: Number of random directions that estimate the sum at lower cost; 0 computes it exactly.
    """
    require_not_negative("weight", weight)
    return as_method(loss).with_penalty(weight, CrossLipschitz(directions))


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
def corruption_at(
    corruptions: Sequence[str] = tuple(CORRUPTIONS), clean_share: float = 0.5, loss: Objective = cross_entropy
) -> Method:
    """Training on corrupted images: `a L(x) + (1 - a) L(c(x))`, c a random corruption. Each image has its own in each
    step.

    Raises `EquipoiseError` for an unknown corruption or none, and in training for images that cannot be corrupted.

    Parameters:
        corruptions: Names of the corruptions, by default those of MNIST-C (Mu & Gilmer 2019). Test on other ones.
    """
    return mixed_with_clean(clean_share, loss, as_method(loss @ Corrupted(tuple(corruptions))))

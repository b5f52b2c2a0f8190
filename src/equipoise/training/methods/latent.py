"""Methods that perturb in another space: the output of a layer, or the codes of a manifold."""

from typing import Any

from equipoise.attacks.spaces import AutoEncoder, OnManifold
from equipoise.core.schedules import schedulable
from equipoise.geometry import EVERYWHERE
from equipoise.losses.objectives import (
    Divergence,
    Objective,
    cross_entropy,
)
from equipoise.losses.terms import Method
from equipoise.training.methods.attacked import pgd_at, trades, udp, udpr, uta
from equipoise.training.methods.shared import StepLength, in_layer, mixed_with_clean


@schedulable
def ls_pgd(eps: float, layer: str, step_size: StepLength = None, steps: int = 20, **options: Any) -> Method:
    """PGD adversarial training in the latent space after `layer`: `CE(C(E(x) + δ))`, δ maximising CE. Encoder E and
    classifier C are trained together (U, Table 5).
    """
    return pgd_at(eps, step_size, steps, **in_layer(layer), **options)


@schedulable
def ls_udp(eps: float, layer: str, step_size: StepLength = None, steps: int = 20, **options: Any) -> Method:
    """UDP in the latent space after `layer`: `CE(C(E(x) + δ))`, δ maximising entropy (U, Eq. ERM-P and Table 5)."""
    return udp(eps, step_size, steps, **in_layer(layer), **options)


@schedulable
def ls_uta(eps: float, layer: str, step_size: StepLength = None, steps: int = 20, **options: Any) -> Method:
    """UTA in the latent space after `layer`: `CE(C(E(x) + δ))`, as `ls_udp` with all K steps (T, Sec. 5.2)."""
    return uta(eps, step_size, steps, **in_layer(layer), **options)


@schedulable
def ls_udpr(
    eps: float, layer: str, step_size: StepLength = None, steps: int = 20, weight: float = 1.0, **options: Any
) -> Method:
    """UDPR in the latent space after `layer`: `CE(x) + λ CE(C(E(x) + δ))` (U, Table 5).

    Parameters:
        weight: Weight λ of the perturbed term, >= 0.
    """
    return udpr(eps, step_size, steps, weight, **in_layer(layer), **options)


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
    return trades(eps, step_size, steps, beta, divergence, **in_layer(layer), **options)


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
    return _beside_clean(clean_share, loss, pgd_at(eps, step_size, steps, loss, **_codes(manifold), **options))


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
    return _beside_clean(clean_share, loss, udp(eps, step_size, steps, loss, **_codes(manifold), **options))


def _codes(manifold: AutoEncoder) -> dict[str, Any]:
    """The options of an attack on the codes of a manifold."""
    return {"space": OnManifold(manifold), "box": EVERYWHERE}


def _beside_clean(clean_share: float, loss: Objective, perturbed: Method) -> Method:
    """The method with a share of the clean loss, and without a clean term if that is 0."""
    return perturbed if clean_share == 0 else mixed_with_clean(clean_share, loss, perturbed)

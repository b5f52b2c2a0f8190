"""Training methods, each a sum of terms. A method of your own is the same kind of sum:

    cross_entropy + 0.5 * (entropy @ pgd(eps=0.1, step_size=0.02, steps=10))

`mode` is the model's mode while perturbing: `train` as in the papers' runs, `eval` (the default) keeps samples
independent of each other, which is faster and leaves batch-norm's statistics to the clean and final points.
"""

from typing import Any

from equipoise.attacks import gradient as attacks
from equipoise.geometry import EVERYWHERE
from equipoise.objectives import Divergence, cross_entropy, kl
from equipoise.spaces import Latent
from equipoise.steps import StepSize
from equipoise.terms import Method, as_method


def standard() -> Method:
    """Empirical risk: `CE(x)`."""
    return as_method(cross_entropy)


def fgsm_at(eps: float, **options: Any) -> Method:
    """`CE(x_fgsm)` (Goodfellow et al. 2015)."""
    return as_method(cross_entropy @ attacks.fgsm(eps, **options))


def r_fgsm_at(eps: float, step_size: float | None = None, **options: Any) -> Method:
    """`CE(x_r-fgsm)`: FGSM from a random start (Wong et al. 2020; U, Eq. R-FGSM)."""
    return as_method(cross_entropy @ attacks.r_fgsm(eps, step_size, **options))


def pgd_at(eps: float, step_size: StepSize | float | None = None, steps: int = 10, **options: Any) -> Method:
    """`CE(x_pgd)` (Madry et al. 2018)."""
    return as_method(cross_entropy @ attacks.pgd(eps, step_size, steps, **options))


def udp(eps: float, step_size: StepSize | float | None = None, steps: int = 20, **options: Any) -> Method:
    """`CE(x_udp)`: train at the point of greatest uncertainty, k ~ U{1..K} steps away (U, Alg. 1)."""
    return as_method(cross_entropy @ attacks.udp(eps, step_size, steps, **options))


def uta(eps: float, step_size: StepSize | float | None = None, steps: int = 20, **options: Any) -> Method:
    """`CE(x_uta)`: as UDP with all K steps (T, Alg. 1)."""
    return as_method(cross_entropy @ attacks.uta(eps, step_size, steps, **options))


def udpr(
    eps: float, step_size: StepSize | float | None = None, steps: int = 20, weight: float = 1.0, **options: Any
) -> Method:
    """`CE(x) + lam · CE(x_udp)`, lam = `weight`, 1 in the reference runs (U, Eq. UDPR)."""
    return as_method(cross_entropy) + weight * (cross_entropy @ attacks.udp(eps, step_size, steps, **options))


def trades(
    eps: float,
    step_size: StepSize | float | None = None,
    steps: int = 10,
    beta: float = 6.0,
    divergence: Divergence = "clean||here",
    **options: Any,
) -> Method:
    """`CE(x) + beta · D(x, x')`, x' climbing the same divergence D from noise (Zhang et al. 2019; U, Eq. TRADES)."""
    return as_method(cross_entropy) + beta * (
        kl(divergence) @ attacks.trades(eps, step_size, steps, divergence=divergence, **options)
    )


def udp_trades(
    eps: float,
    step_size: StepSize | float | None = None,
    steps: int = 20,
    beta: float = 6.0,
    divergence: Divergence = "clean||here",
    **options: Any,
) -> Method:
    """TRADES' smoothing term evaluated at the UDP point, `CE(x) + beta · D(x, x_udp)` (open in U, App. A.3)."""
    return as_method(cross_entropy) + beta * (kl(divergence) @ attacks.udp(eps, step_size, steps, **options))


def ls_pgd(
    eps: float, layer: str, step_size: StepSize | float | None = None, steps: int = 20, **options: Any
) -> Method:
    """`CE(C(E(x) + δ_pgd))`: PGD-AT in the latent space after `layer`; E and C are trained together (U, Table 5)."""
    return pgd_at(eps, step_size, steps, **_inside(layer), **options)


def ls_udp(
    eps: float, layer: str, step_size: StepSize | float | None = None, steps: int = 20, **options: Any
) -> Method:
    """`CE(C(E(x) + δ_udp))`: UDP in the latent space after `layer` (U, Eq. ERM-P and Table 5; T, Table 2)."""
    return udp(eps, step_size, steps, **_inside(layer), **options)


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


def _inside(layer: str) -> dict[str, Any]:
    return {"space": Latent(layer), "box": EVERYWHERE}

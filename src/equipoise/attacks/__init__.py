"""Named attacks. Call them as `attack(model, x, y, seed=0) -> Perturbed`; those that follow a gradient are ascents."""

from equipoise.ascent import Ascent
from equipoise.attacks.apgd import apgd, apgd_t
from equipoise.attacks.gradient import ATTACKS, cw, fgsm, named, pgd, r_fgsm, targeted, trades, udp, uta
from equipoise.perturbed import Perturbed

__all__ = [
    "ATTACKS",
    "Ascent",
    "Perturbed",
    "apgd",
    "apgd_t",
    "cw",
    "fgsm",
    "named",
    "pgd",
    "r_fgsm",
    "targeted",
    "trades",
    "udp",
    "uta",
]

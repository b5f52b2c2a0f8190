"""Named attacks, each a one-line ascent. Call them as `attack(model, x, y, seed=0) -> Perturbed`."""

from equipoise.ascent import Ascent, Perturbed
from equipoise.attacks.gradient import ATTACKS, cw, fgsm, named, pgd, r_fgsm, targeted, trades, udp, uta

__all__ = ["ATTACKS", "Ascent", "Perturbed", "cw", "fgsm", "named", "pgd", "r_fgsm", "targeted", "trades", "udp", "uta"]

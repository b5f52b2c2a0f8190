"""Named attacks. Call them as `attack(model, x, y, seed=0) -> Perturbed`; those that follow a gradient are ascents."""

from equipoise.ascent import Ascent
from equipoise.attacks.apgd import apgd, apgd_t
from equipoise.attacks.attack import Attack
from equipoise.attacks.autoattack import Chain, autoattack, cascade, fitted
from equipoise.attacks.fab import FAB, fab
from equipoise.attacks.gradient import ATTACKS, cw, fgsm, named, pgd, r_fgsm, targeted, trades, udp, uta
from equipoise.attacks.random_search import RandomSearch, random_search
from equipoise.attacks.square import Square, square
from equipoise.perturbed import Perturbed

__all__ = [
    "ATTACKS",
    "FAB",
    "Ascent",
    "Attack",
    "Chain",
    "Perturbed",
    "RandomSearch",
    "Square",
    "apgd",
    "apgd_t",
    "autoattack",
    "cascade",
    "cw",
    "fab",
    "fgsm",
    "fitted",
    "named",
    "pgd",
    "r_fgsm",
    "random_search",
    "square",
    "targeted",
    "trades",
    "udp",
    "uta",
]

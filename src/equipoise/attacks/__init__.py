"""Named attacks. Call them as `attack(model, x, y, seed=0) -> Perturbed`; those that follow a gradient are ascents."""

from equipoise.ascent import Ascent
from equipoise.attacks.apgd import apgd, apgd_t
from equipoise.attacks.attack import Attack
from equipoise.attacks.autoattack import Chain, autoattack, cascade, fitted
from equipoise.attacks.fab import FAB, fab
from equipoise.attacks.gradient import ATTACKS, cw, fgsm, named, pgd, r_fgsm, targeted, trades, udp, uta
from equipoise.attacks.minimal import Bisected, minimal_l2
from equipoise.attacks.presets import adaptive, cw_k, fgsm_k, pgd_k, pgd_l2
from equipoise.attacks.random_search import RandomSearch, random_search
from equipoise.attacks.square import Square, square
from equipoise.attacks.transfer import Transfer, transfer
from equipoise.perturbed import Perturbed

__all__ = [
    "ATTACKS",
    "FAB",
    "Ascent",
    "Attack",
    "Bisected",
    "Chain",
    "Perturbed",
    "RandomSearch",
    "Square",
    "Transfer",
    "adaptive",
    "apgd",
    "apgd_t",
    "autoattack",
    "cascade",
    "cw",
    "cw_k",
    "fab",
    "fgsm",
    "fgsm_k",
    "fitted",
    "minimal_l2",
    "named",
    "pgd",
    "pgd_k",
    "pgd_l2",
    "r_fgsm",
    "random_search",
    "square",
    "targeted",
    "trades",
    "transfer",
    "udp",
    "uta",
]

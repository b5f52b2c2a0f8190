"""Named attacks, called as `attack(model, x, y, seed=0) -> AttackResult`. Those that follow a gradient are ascents."""

from equipoise.attacks.apgd import apgd, apgd_t
from equipoise.attacks.ascent import Ascent
from equipoise.attacks.attack import Attack, AttackLike, Batch, Candidates, SearchAttack, described
from equipoise.attacks.black_box.hop_skip_jump import HopSkipJump, hop_skip_jump
from equipoise.attacks.black_box.random_search import RandomSearch, random_search
from equipoise.attacks.black_box.square import Square, square
from equipoise.attacks.black_box.transfer import Transfer, transfer
from equipoise.attacks.chain import Chain, autoattack, cascade, fitted
from equipoise.attacks.continued import Continued, apgd_fgsm, pma
from equipoise.attacks.gradient import ATTACKS, cw, fgsm, named, pgd, r_fgsm, targeted, trades, udp, uta
from equipoise.attacks.masks import Patch, masked, patch
from equipoise.attacks.minimum_norm.bisection import Bisected, minimal_l2
from equipoise.attacks.minimum_norm.ddn import DDN, ddn
from equipoise.attacks.minimum_norm.deepfool import DeepFool, deepfool
from equipoise.attacks.minimum_norm.fab import FAB, fab
from equipoise.attacks.minimum_norm.fmn import FMN, fmn
from equipoise.attacks.minimum_norm.hein_andriushchenko import BG, bg
from equipoise.attacks.minimum_norm.nearest import Nearest, margin_attack, nearest, published_margin_attack, share_won
from equipoise.attacks.minimum_norm.pdpgd import PDPGD, pdpgd
from equipoise.attacks.minimum_norm.sigma_zero import SigmaZero, sigma_zero
from equipoise.attacks.on_lattice import OnLattice, on_lattice
from equipoise.attacks.presets import adaptive, cw_k, fgsm_k, pgd_k, pgd_l2
from equipoise.attacks.result import AttackResult
from equipoise.attacks.universal import Universal, universal
from equipoise.core.deprecation import renamed_names
from equipoise.core.documentation import show_attributes

__all__ = [
    "ATTACKS",
    "BG",
    "DDN",
    "FAB",
    "FMN",
    "PDPGD",
    "Ascent",
    "Attack",
    "AttackLike",
    "AttackResult",
    "Batch",
    "Bisected",
    "Candidates",
    "Chain",
    "Continued",
    "DeepFool",
    "HopSkipJump",
    "Nearest",
    "OnLattice",
    "Patch",
    "RandomSearch",
    "SearchAttack",
    "SigmaZero",
    "Square",
    "Transfer",
    "Universal",
    "adaptive",
    "apgd",
    "apgd_fgsm",
    "apgd_t",
    "autoattack",
    "bg",
    "cascade",
    "cw",
    "cw_k",
    "ddn",
    "deepfool",
    "described",
    "fab",
    "fgsm",
    "fgsm_k",
    "fitted",
    "fmn",
    "hop_skip_jump",
    "margin_attack",
    "masked",
    "minimal_l2",
    "named",
    "nearest",
    "on_lattice",
    "patch",
    "pdpgd",
    "pgd",
    "pgd_k",
    "pgd_l2",
    "pma",
    "published_margin_attack",
    "r_fgsm",
    "random_search",
    "share_won",
    "sigma_zero",
    "square",
    "targeted",
    "trades",
    "transfer",
    "udp",
    "universal",
    "uta",
]

__getattr__ = renamed_names(__name__, {"Perturbed": "AttackResult"})

show_attributes(__name__)

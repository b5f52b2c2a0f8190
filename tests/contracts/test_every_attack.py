"""What every attack must satisfy. A new named attack needs no line here; one with options of its own adds a row."""

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from equipoise import attacks
from equipoise.attacks import (
    ATTACKS,
    Attack,
    Bisected,
    Chain,
    Universal,
    adaptive,
    apgd,
    apgd_fgsm,
    apgd_t,
    autoattack,
    bg,
    cascade,
    cw_k,
    ddn,
    deepfool,
    fab,
    fgsm_k,
    fmn,
    hop_skip_jump,
    margin_attack,
    masked,
    minimal_l2,
    nearest,
    on_lattice,
    patch,
    pdpgd,
    pgd,
    pgd_k,
    pgd_l2,
    pma,
    published_margin_attack,
    random_search,
    sigma_zero,
    square,
    targeted,
    transfer,
)
from equipoise.attacks.ascent import Ascent
from equipoise.attacks.steps import Momentum, Triangular, Uniform
from equipoise.core.types import Prediction
from equipoise.geometry import Ball
from equipoise.testing import AttackContract
from equipoise.testing.attacks import small_network, small_samples


class Proxy(nn.Module):
    """Another model for the same images, in the precision of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(32, 5, generator=torch.Generator().manual_seed(2)))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.to(x.dtype)


ROWS = {
    **{name: (lambda norm, make=make: make(EPS[norm], norm=norm)) for name, make in ATTACKS.items()},
    "targeted pgd": lambda norm: targeted(pgd(EPS[norm], norm=norm)),
    "momentum": lambda norm: pgd(EPS[norm], Triangular(EPS[norm] / 20, EPS[norm] / 4), 8, norm, step=Momentum()),
    "restarts": lambda norm: pgd(
        EPS[norm], steps=4, norm=norm, start=Uniform(), restarts=2, return_point="first_success"
    ),
    "bf16": lambda norm: pgd(EPS[norm], steps=6, norm=norm, precision="bf16", return_point="best"),
    "apgd": lambda norm: apgd(EPS[norm], norm, 12),
    "apgd_fgsm": lambda norm: apgd_fgsm(EPS[norm], norm, 12),
    "pma": lambda norm: pma(EPS[norm], norm, 8),
    "apgd-t": lambda norm: apgd_t(EPS[norm], norm, 10, targets=3),
    "fab-t": lambda norm: fab(EPS[norm], norm, 8, targets=3),
    "several draws": lambda norm: fab(EPS[norm], norm, 4, targets=2, eot_samples=3),
    "square": lambda norm: square(EPS[norm], norm, 60),
    "random-search": lambda norm: random_search(EPS[norm], norm, 40),
    "adaptive": lambda norm: adaptive(EPS[norm], norm, 3, restarts=2),
    "pgd_k": lambda norm: pgd_k(4, 20, norm=norm),
    "bisected": lambda norm: Bisected(pgd(EPS[norm], steps=4, norm=norm), 9),
    "hop_skip_jump": lambda norm: hop_skip_jump(EPS[norm], norm, 150, directions=20),
    "bg": lambda norm: bg(EPS[norm], norm),
    "deepfool": lambda norm: deepfool(EPS[norm], norm, 5),
    "fmn": lambda norm: fmn(EPS[norm], norm, 8),
    "ddn": lambda norm: ddn(EPS[norm], norm, 12),
    "pdpgd": lambda norm: pdpgd(EPS[norm], norm, 12, step_size=0.02),
    "sigma_zero": lambda norm: sigma_zero(EPS[norm], norm, 15),
    "nearest": lambda norm: nearest(norm, radii=(EPS[norm],), steps=5, halvings=9, looks=4),
    "minimal_l2": lambda norm: minimal_l2(0.05, 100, halvings=9),
    "transfer": lambda norm: transfer(Proxy(), pgd(EPS[norm], steps=4, norm=norm), "a plane"),
    "transferred chain": lambda norm: transfer(Proxy(), ROWS["chain"](norm), "a plane"),
    "chain": lambda norm: Chain(tuple((n, ROWS[n](norm)) for n in ("apgd", "fab-t", "square"))),
    "fgsm_k": lambda norm: fgsm_k(20, norm=norm),
    "cw_k": lambda norm: cw_k(4, 20, norm=norm),
    "pgd_l2": lambda norm: pgd_l2(4, 0.3),
    "published_margin_attack": lambda norm: published_margin_attack(steps=5, halvings=9, looks=4),
    "margin_attack": lambda norm: margin_attack(norm, radii=(EPS[norm],), steps=5, halvings=9, looks=4),
    "autoattack": lambda norm: autoattack(EPS[norm], norm),
    "cascade": lambda norm: cascade(EPS[norm], norm),
    "masked": lambda norm: masked(pgd(EPS[norm], steps=6, norm=norm), ONE_CHANNEL),
    "patch": lambda norm: patch(2, 5, places=2),
    "universal": lambda norm: Universal(Ball(norm, EPS[norm]), 0.9 * EPS[norm] / 32 * ALL_FEATURES),
    "on_lattice": lambda norm: on_lattice(pgd(EPS[norm], steps=4, norm=norm), SAMPLE_LEVELS),
    "train mode": lambda norm: pgd(EPS[norm], steps=4, norm=norm, mode="train"),
}
EPS = {"linf": 0.08, "l2": 0.3, "l1": 1.0, "l0": 5}


ONE_CHANNEL = torch.tensor([True, False])[:, None, None]
ALL_FEATURES = 1 - 2.0 * (torch.arange(32).reshape(2, 4, 4) % 3 == 0)
SAMPLE_LEVELS = 2**24
"""Of which the samples are multiples, as are all random numbers of float32."""
IN_L0 = ("pdpgd", "sigma_zero")
ONE_NORM = {
    "ddn": "l2",
    "sigma_zero": "l0",
    "minimal_l2": "l2",
    "published_margin_attack": "l2",
    "margin_attack": "l2",
    "pgd_l2": "l2",
    "masked": "l2",
    "patch": "linf",
    "universal": "l1",
    "on_lattice": "linf",
    "autoattack": "linf",
    "cascade": "linf",
}
"""Rows that exist in one norm, or whose budget is long and whose parts have rows of their own."""
EVERY = [
    (name, norm)
    for name in ROWS
    for norm in EPS
    if ONE_NORM.get(name, norm) == norm and (norm != "l0" or name in IN_L0) and (name, norm) != ("hop_skip_jump", "l1")
]


def made(name: str, norm: str) -> Attack:
    return ROWS[name](norm)


def in_train_mode(attack: Attack) -> bool:
    return isinstance(attack, Ascent) and attack.mode == "train"


def climbs(attack: Attack) -> bool:
    """Whether the attack climbs an objective of its own from the clean prediction, label and point alone."""
    if not isinstance(attack, Ascent) or attack.target is not None or attack.mode == "train":
        return False
    return not attack.objective.needs_clean


def rows(applies: Callable[[Attack], bool] = lambda attack: True) -> pytest.MarkDecorator:
    """Parametrise by every attack to which a test applies, so that a row that tests nothing is no row."""
    chosen = [(name, norm) for name, norm in EVERY if applies(made(name, norm))]
    return pytest.mark.parametrize("attack", [made(*row) for row in chosen], ids=["-".join(row) for row in chosen])


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, Tensor, Tensor]:
    net = small_network()
    return net, *small_samples(net)


def test_every_public_attack_has_a_row():
    """Every function of `equipoise.attacks` that makes an attack from numbers."""
    helpers = {"described", "fitted", "named", "share_won"}
    public = {name for name in attacks.__all__ if inspect.isfunction(getattr(attacks, name))}
    rows = {*ROWS, *(name.replace("-", "_") for name in ROWS)} | {"targeted", "fab"}
    assert public - helpers <= rows


@rows(climbs)
def test_it_climbs(attack, case):
    """On average the objective is higher where it ends than where the sample lay."""
    net, x, y = case
    found = attack(net, x, y)
    with torch.no_grad():
        there, here = (attack.objective(Prediction(net(p)[None]), None, y).mean() for p in (found.x, x))
    assert there > here


@rows(in_train_mode)
def test_train_mode_moves_running_statistics_alone(attack, case):
    net, x, y = case
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first = attack(net, x, y, seed=3)
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    net.load_state_dict(before)
    again = attack(net, x, y, seed=3)
    net.load_state_dict(before)
    assert torch.equal(first.x, again.x) and moved == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def of_contract(applies: Callable[[Attack], bool]) -> list[tuple[str, str]]:
    return [row for row in EVERY if not in_train_mode(made(*row)) and applies(made(*row))]


def aims(attack: Attack) -> bool:
    """Whether it is after a class that a rule chooses."""
    return isinstance(attack, Ascent) and isinstance(attack.target, str)


def rough(attack: Attack) -> bool:
    return getattr(attack, "precision", "32") == "bf16"


for twice in (
    AttackContract.test_the_seed_decides_and_the_model_stays,
    AttackContract.test_neither_batch_size_nor_order_matters,
):
    pytest.mark.unchecked(twice)  # one checked call of every row is enough


class TestEveryAttack(AttackContract):
    @pytest.fixture(params=of_contract(lambda a: not aims(a) and not rough(a)), ids="-".join)
    def attack(self, request):
        return made(*request.param)


class TestEveryAttackOnAClass(AttackContract):
    targeted = True

    @pytest.fixture(params=of_contract(aims), ids="-".join)
    def attack(self, request):
        return made(*request.param)


class TestEveryAttackInBf16(AttackContract):
    exact = False

    @pytest.fixture(params=of_contract(rough), ids="-".join)
    def attack(self, request):
        return made(*request.param)


@rows(lambda attack: isinstance(attack, Ascent))
def test_an_ascent_names_its_objective(attack):
    assert attack.objective.name in str(attack)

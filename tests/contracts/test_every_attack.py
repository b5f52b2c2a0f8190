"""What every attack must satisfy. A new named attack needs no line here; one with options of its own adds a row."""

import copy
import inspect
import json
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
    adaptive,
    apgd,
    apgd_t,
    autoattack,
    bg,
    cascade,
    cw_k,
    deepfool,
    fab,
    fgsm_k,
    fmn,
    margin_attack,
    minimal_l2,
    nearest,
    pgd,
    pgd_k,
    pgd_l2,
    published_margin_attack,
    random_search,
    square,
    targeted,
    transfer,
)
from equipoise.attacks.ascent import Ascent
from equipoise.attacks.result import Perturbed
from equipoise.attacks.steps import Momentum, Triangular, Uniform
from equipoise.core.types import Prediction


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
    "restarts": lambda norm: pgd(EPS[norm], steps=4, norm=norm, start=Uniform(), restarts=2, keep="first_success"),
    "bf16": lambda norm: pgd(EPS[norm], steps=6, norm=norm, precision="bf16", keep="best"),
    "apgd": lambda norm: apgd(EPS[norm], norm, 12),
    "apgd-t": lambda norm: apgd_t(EPS[norm], norm, 10, targets=3),
    "fab-t": lambda norm: fab(EPS[norm], norm, 8, targets=3),
    "square": lambda norm: square(EPS[norm], norm, 60),
    "random-search": lambda norm: random_search(EPS[norm], norm, 40),
    "adaptive": lambda norm: adaptive(EPS[norm], norm, 3, restarts=2),
    "pgd_k": lambda norm: pgd_k(4, 20, norm=norm),
    "bisected": lambda norm: Bisected(pgd(EPS[norm], steps=4, norm=norm), 9),
    "bg": lambda norm: bg(EPS[norm], norm),
    "deepfool": lambda norm: deepfool(EPS[norm], norm, 5),
    "fmn": lambda norm: fmn(EPS[norm], norm, 8),
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
    "train mode": lambda norm: pgd(EPS[norm], steps=4, norm=norm, mode="train"),
}
EPS = {"linf": 0.08, "l2": 0.3, "l1": 1.0}


ONE_NORM = {
    "minimal_l2": "l2",
    "published_margin_attack": "l2",
    "pgd_l2": "l2",
    "autoattack": "linf",
    "cascade": "linf",
}
"""Rows that exist in one norm, or whose budget is long and whose parts have rows of their own."""
EVERY = [(name, norm) for name in ROWS for norm in EPS if ONE_NORM.get(name, norm) == norm]


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
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
        ).eval()
    x = torch.rand(16, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    return net, x, net(x).argmax(1)


def test_every_public_attack_has_a_row():
    """Every function of `equipoise.attacks` that makes an attack from numbers."""
    helpers = {"fitted", "named", "share_won"}
    public = {name for name in attacks.__all__ if inspect.isfunction(getattr(attacks, name))}
    rows = {*ROWS, *(name.replace("-", "_") for name in ROWS)} | {"targeted", "fab"}
    assert public - helpers <= rows


@rows()
def test_what_it_returns(attack, case):
    net, x, y = case
    net.eval()
    found = attack(net, x, y, seed=3)
    assert isinstance(found, Perturbed) and found.x.shape == x.shape and found.x.dtype == x.dtype
    ball = attack.geometry
    assert ball.contains(found.x, x).all() and found.x.min() >= 0 and found.x.max() <= 1
    move = (found.x.double() - x.double()).flatten(1)
    length = {"linf": move.abs().amax(1), "l2": move.norm(dim=1), "l1": move.abs().sum(1)}[ball.norm]
    assert torch.allclose(found.distance.double(), length, rtol=1e-6)
    with torch.no_grad():
        predicted = net(found.x).argmax(1)
    assert torch.equal(found.prediction, predicted)
    if not isinstance(attack, Ascent) or attack.target is None or isinstance(attack.target, int):
        assert torch.equal(found.success, predicted != y)
    else:
        assert (predicted[found.success] != y[found.success]).all()
    assert (found.evaluations >= 3).all() and not found.x.requires_grad
    assert found.nan_gradients.tolist() == [0] * 16


@rows(climbs)
def test_it_climbs(attack, case):
    """On average the objective is higher where it ends than where the sample lay."""
    net, x, y = case
    found = attack(net, x, y)
    with torch.no_grad():
        there, here = (attack.objective(Prediction(net(p)[None]), None, y).mean() for p in (found.x, x))
    assert there > here


@rows()
def test_the_seed_decides(attack, case):
    net, x, y = case
    state = net.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    first = attack(net, x, y, seed=3)
    if in_train_mode(attack):
        net.load_state_dict(before)
    again = attack(net, x, y, seed=3)
    assert torch.equal(first.x, again.x) and torch.equal(first.evaluations, again.evaluations)
    if in_train_mode(attack):
        net.load_state_dict(before)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@rows(lambda attack: not in_train_mode(attack))
def test_a_single_sample(attack, case):
    net, x, y = case
    exact = getattr(attack, "precision", "32") == "32"
    if exact:
        net, x = copy.deepcopy(net).double(), x.double()
    one = attack(net, x[5:6], y[5:6], seed=3, index=torch.tensor([5]))
    assert torch.allclose(one.x, attack(net, x, y, seed=3).x[5:6], atol=1e-9 if exact else 0.2)


@rows()
def test_it_describes_itself(attack):
    json.dumps(attack.settings())
    assert hash(attack) == hash(attack)
    if isinstance(attack, Ascent):
        assert attack.objective.name in str(attack)

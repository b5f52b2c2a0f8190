"""Attacks towards given classes: distances and successes on a linear model by linear programming, refusals."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from equipoise import attacks
from equipoise.attacks import Bisected, autoattack, fab, nearest, pgd, square
from equipoise.core.errors import EquipoiseError
from equipoise.testing.attacks import small_network, small_samples

pytestmark = pytest.mark.unchecked

F64 = torch.float64


@pytest.fixture(scope="module")
def planes() -> tuple[nn.Linear, Tensor, Tensor, Tensor, Tensor]:
    """A linear model of 4 classes, samples, their classes, others, and how far it is to where these are predicted."""
    g = torch.Generator().manual_seed(5)
    net = nn.Linear(6, 4).double().requires_grad_(False)
    net.weight.copy_(torch.randn(4, 6, generator=g, dtype=F64))
    net.bias.copy_(-net.weight.sum(1) / 2)
    x = torch.rand(24, 6, generator=g, dtype=F64)
    y = net(x).argmax(1)
    target = (y + 1 + torch.randint(3, (24,), generator=g)) % 4
    return net, x, y, target, torch.tensor([farness(net, x[i], int(target[i])) for i in range(24)])


def farness(net: nn.Linear, x: Tensor, target: int) -> float:
    """The least Linf distance to where no class is likelier than the target, in the unit box; infinite if nowhere."""
    w, z = net.weight.numpy(), net(x).numpy()
    others = [c for c in range(4) if c != target]
    eye, one = np.eye(6), np.ones((6, 1))
    upper = np.block([[eye, -one], [-eye, -one], [w[others] - w[target], np.zeros((3, 1))]])
    right = np.r_[np.zeros(12), z[target] - z[others]]
    bounds = [*((-v, 1 - v) for v in x.tolist()), (0, None)]
    answer = linprog(np.r_[np.zeros(6), 1], upper, right, bounds=bounds)
    return answer.fun if answer.status == 0 else math.inf


@pytest.mark.parametrize("name", ["fab", "bg", "deepfool", "fmn", "pdpgd"])
def test_distances_to_a_target_class(name, planes):
    net, x, y, target, best = planes
    make = getattr(attacks, name)
    attack = make(math.inf, "linf", return_point="nearest") if name == "fab" else make(norm="linf")
    found = Bisected(attack)(net, x, y, target=target)
    there = found.success
    assert (found.prediction[there] == target[there]).all() and not there[best.isinf()].any()
    assert (found.distance[there] >= best[there] * (1 - 1e-6)).all() and (found.distance[there] > 0).all()
    ratio = found.distance[there] / best[there]
    # A step onto one plane is not the shortest where three classes meet.
    assert int(there.sum()) >= {"bg": 10, "fab": 15}.get(name, 20) and ratio.median() <= 1.05
    other = attack(net, x, y)
    assert (other.prediction != target)[other.success].any(), "without a target another class is nearer"


@pytest.mark.parametrize("version", ["standard", "rand", "plus"])
def test_autoattack_reaches_what_can_be_reached(version, planes):
    net, x, y, target, best = planes
    eps = float(best.median())
    found = autoattack(eps, version=version)(net, x, y, target=target)
    assert 5 < int(found.success.sum()) < 19
    assert torch.equal(found.success, found.prediction == target)
    clear = (best / eps - 1).abs() > 0.01
    missed = (best < eps) & ~found.success & clear
    assert not found.success[clear & (best > eps)].any() and int(missed.sum()) <= (version == "rand")


def test_each_part_alone(planes):
    net, x, y, target, best = planes
    eps = float(best.median())
    searches = (fab(eps), 0.7), (square(eps, queries=400), 0.7), (attacks.random_search(eps, draws=2000), 0.3)
    for attack, least in searches:
        found = attack(net, x, y, target=target)
        assert torch.equal(found.success, found.prediction == target)
        assert not found.success[best > eps * 1.001].any()
        assert found.success.sum() >= least * (best < eps).sum()
    bad = square(0.0, queries=3)(net, x, y, target=target)
    assert not bad.success.any()


def test_what_is_the_target_already_stays():
    net = small_network()
    x, y = small_samples(net)
    wrong = (y + 1) % 5
    for attack in (fab(0.1), square(0.1, queries=5), attacks.fmn(), attacks.ddn(), attacks.sigma_zero(steps=5)):
        found = attack(net, x, wrong, target=y)  # samples of another class that are predicted as the target
        assert found.success.all() and torch.equal(found.x, x) and not found.distance.any()


def test_composites_hand_targets_on():
    net = small_network()
    x, y = small_samples(net)
    target = (y + 2) % 5
    chain = attacks.Chain((("pgd", pgd(0.3)), ("square", square(0.3, queries=100))))
    for attack in (chain, nearest("linf", radii=(0.1,), steps=10), attacks.pma(0.3), attacks.apgd_fgsm(9, steps=30)):
        found = attack(net, x, y, target=target)
        assert torch.equal(found.success, found.prediction == target) and int(found.success.sum()) > 4
    made = attacks.transfer(small_network(1), pgd(0.3), "another")(net, x, y, target=target)
    assert torch.equal(made.success, made.prediction == target)


def test_refusals():
    net = small_network()
    x, y = small_samples(net)
    with pytest.raises(EquipoiseError, match="target holds the true class of 16 of 16 samples"):
        fab(0.1)(net, x, y, target=y)
    with pytest.raises(EquipoiseError, match="target holds class 5, but the model has 5 classes"):
        square(0.1)(net, x, y, target=y + 1 - y.min() + 4 - y)
    with pytest.raises(EquipoiseError, match=r"^square takes no points to start from: leave out start"):
        square(0.1)(net, x, y, start=x)

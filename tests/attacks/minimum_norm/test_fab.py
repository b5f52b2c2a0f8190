"""FAB: shortest distances known in closed form, the published loop, the contract of an attack, refusals."""

import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pyautoattack.fab_pt import FABAttack_PT
from scipy.optimize import linprog
from torch import Tensor, nn

from equipoise.attacks.minimum_norm.fab import FAB, fab
from equipoise.core.errors import EquipoiseError
from equipoise.geometry import Ball, Box

pytestmark = pytest.mark.unchecked

EPS = {"linf": 0.06, "l2": 0.3, "l1": 0.9}
DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}


@pytest.fixture(scope="module")
def case(separated) -> tuple[nn.Module, Tensor, Tensor]:
    return separated(240, 140)


def linear(classes: int, features: int, seed: int = 3) -> nn.Linear:
    net = nn.Linear(features, classes).double()
    g = torch.Generator().manual_seed(seed)
    net.weight.data = torch.randn(classes, features, generator=g, dtype=torch.float64)
    net.bias.data = 0.1 * torch.randn(classes, generator=g, dtype=torch.float64)
    return net.requires_grad_(False)


@pytest.mark.parametrize("norm", EPS)
def test_finds_the_shortest_distance_of_a_linear_model(norm):
    net = linear(4, 30)
    x = 0.4 + 0.2 * torch.rand(20, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = net(x)
    y = z.argmax(1)
    slopes = net.weight[None] - net.weight[y][:, None]
    ratio = (z.gather(1, y[:, None]) - z) / slopes.norm(DUAL[norm], dim=2)
    best = ratio.scatter(1, y[:, None], math.inf).amin(1)
    inside = best < 0.35  # where not even one coordinate meets the box
    found = fab(math.inf, norm, 30, return_point="nearest", eta=1.0001)(net, x, y)
    assert int(inside.sum()) >= 6 and found.success.all()
    assert torch.allclose(found.distance[inside], best[inside], rtol=3e-4)
    usual = fab(math.inf, norm, 30, return_point="nearest")(net, x, y)
    assert (usual.distance[inside] >= best[inside]).all() and (usual.distance[inside] < 1.02 * best[inside]).all()


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_finds_the_shortest_distance_where_the_box_binds(norm):
    """Against linear programming, towards each class in turn, for samples in the corners of the box."""
    n = 8
    net = linear(3, n)
    x = torch.randint(2, (12, n), generator=torch.Generator().manual_seed(2)).double() * 0.96 + 0.02
    y = net(x).argmax(1)
    found = fab(math.inf, norm, 40, return_point="nearest", eta=1.0001)(net, x, y)
    weight, eye = net.weight.numpy(), np.eye(n)
    spread = np.ones((n, 1)) if norm == "linf" else eye
    extra = spread.shape[1]
    for i in range(len(x)):
        lengths = []
        for t in {0, 1, 2} - {int(y[i])}:
            slope = weight[t] - weight[int(y[i])]
            gap = float(net(x[i : i + 1])[0, y[i]] - net(x[i : i + 1])[0, t])
            upper = np.block([[eye, -spread], [-eye, -spread], [-slope[None], np.zeros((1, extra))]])
            bounds = [*((-v, 1 - v) for v in x[i].tolist()), *[(0, None)] * extra]
            answer = linprog(np.r_[np.zeros(n), np.ones(extra)], upper, np.r_[np.zeros(2 * n), -gap], bounds=bounds)
            lengths += [answer.fun] if answer.status == 0 else []
        assert bool(found.success[i]) == bool(lengths)
        assert not lengths or float(found.distance[i]) == pytest.approx(min(lengths), rel=1e-3)
    assert found.success.sum() > 6


class Curve(nn.Module):
    """The same classes by bent logits, at which a linear step often stops short of the boundary."""

    def forward(self, z: Tensor) -> Tensor:
        return -torch.exp(-z)


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("norm", EPS)
def test_follows_the_published_loop(norm, curved, case):
    """The reference, one target at a time, from the clean points: the same distances and the same robust accuracy."""
    net, x, y = case
    if curved:
        net = nn.Sequential(net, Curve())
    theirs = FABAttack_PT(
        net,
        norm=norm.replace("l", "L", 1),
        n_iter=30,
        eps=EPS[norm],
        targeted=True,
        n_target_classes=4,
        alpha_max=0.03,
        device="cpu",
    )
    right = net(x).argmax(1) == y
    nearest, sure, exact = torch.full((len(x),), math.inf), torch.ones_like(right), copy.deepcopy(net).double()
    for rank in range(2, 6):
        theirs.target_class = rank
        point = theirs.attack_single_run(x, y, is_targeted=True)
        length, wrong = Ball(norm, 1.0).distance(point, x), net(point).argmax(1) != y
        z = exact(point.double())
        own, other = z.gather(1, y[:, None])[:, 0], z.scatter(1, y[:, None], -math.inf).amax(1)
        rounding = 32 * 2**-23 * torch.maximum(own.abs(), other.abs())
        sure &= wrong == (other - own > rounding)  # some points of theirs are wrong by rounding alone
        nearest = torch.where(wrong & (length < nearest), length, nearest)
    ours = fab(math.inf, norm, 30, return_point="nearest", alpha_max=0.03)(net, x, y)
    assert torch.equal(ours.success[right], nearest[right] < math.inf) and int(right.sum()) > 60
    ratio = (ours.distance / nearest)[right & sure & ours.success]
    assert (
        len(ratio) > 50 and abs(float(ratio.median()) - 1) < 1e-5 and ((ratio - 1).abs() < 1e-3).float().mean() > 0.97
    )
    robust = (right & (nearest > EPS[norm])).sum()
    for keep in ("nearest", "first_success"):
        found = fab(EPS[norm], norm, 30, return_point=keep, alpha_max=0.03)(net, x, y)
        assert abs(int((~found.success).sum()) - int(robust)) <= 1
    assert 3 < int(robust) < int(right.sum()) - 3


@pytest.mark.parametrize("keep", ["first_success", "nearest"])
@pytest.mark.parametrize("norm", EPS)
def test_what_it_returns(norm, keep, case):
    net, x, y = case
    attack = fab(EPS[norm], norm, 15, return_point=keep, restarts=2)
    found = attack(net, x, y, seed=1)
    predicted = net(found.x).argmax(1)
    length = (found.x - x).double().flatten(1).norm({"linf": math.inf, "l2": 2, "l1": 1}[norm], dim=1)
    assert torch.equal(found.prediction, predicted) and torch.equal(found.success, predicted != y)
    assert torch.allclose(found.distance.double(), length, rtol=1e-6) and not found.x.requires_grad
    assert (length <= EPS[norm] * (1 + 1e-5) + 1e-6).all() and found.x.min() >= 0 and found.x.max() <= 1
    assert found.x[~found.success].equal(x[~found.success]) and found.iteration.max() <= 15
    wrong = net(x).argmax(1) != y
    assert found.x[wrong].equal(x[wrong]) and found.success[wrong].all() and wrong.any()
    assert (found.iteration > 0).eq(found.success & ~wrong).all()
    assert json.loads(json.dumps(attack.settings())) == {
        "attack": "fab",
        "geometry": {"norm": norm, "eps": EPS[norm], "box": {"kind": "Box", "low": 0.0, "high": 1.0}},
        "steps": 15,
        "targets": 9,
        "restarts": 2,
        "eta": 1.05,
        "alpha_max": 0.1,
        "beta": 0.9,
        "return_point": keep,
        "eot_samples": 1,
        "precision": "32",
    }


@pytest.mark.parametrize("norm", EPS)
def test_neither_batch_size_nor_order_matters(norm, case):
    net, x, y = case
    x, y = x[:30], y[:30]
    net, x = copy.deepcopy(net).double(), x.double()  # in float32 a point on the boundary may fall on either side
    for attack in (fab(EPS[norm] / 2, norm, 8, restarts=2), fab(math.inf, norm, 6, return_point="nearest", restarts=2)):
        whole = attack(net, x, y, seed=4)
        index = torch.arange(len(x)).flip(0)
        parts = attack(net, x.flip(0), y.flip(0), seed=4, index=index, batch_size=20)[index]
        assert torch.equal(whole.success, parts.success) and torch.allclose(whole.x, parts.x, atol=1e-9)
        assert torch.equal(whole.iteration, parts.iteration) and torch.equal(whole.evaluations, parts.evaluations)


class Plateau(nn.Module):
    """A net that is flat around the clean points and gives way in one direction beyond."""

    def forward(self, x: Tensor) -> Tensor:
        rise = (x.sum(1) - 3.02).relu()
        return torch.stack([torch.full_like(rise, 0.1), rise], 1)


@pytest.mark.parametrize("norm", EPS)
def test_random_starts_leave_a_plateau(norm):
    x, y = torch.full((40, 6), 0.5), torch.zeros(40, dtype=torch.int64)
    attack = fab({"linf": 0.1, "l2": 0.2, "l1": 0.4}[norm], norm, 5)
    assert attack(Plateau(), x, y).zero_gradients.eq(5).all() and not attack(Plateau(), x, y).success.any()
    many = FAB(attack.geometry, 5, restarts=3)
    one, again, other = many(Plateau(), x, y, seed=1), many(Plateau(), x, y, seed=1), many(Plateau(), x, y, seed=2)
    assert 5 < int(one.success.sum()) < 40 and torch.equal(one.x, again.x)
    assert not torch.equal(one.success, other.success)
    two = FAB(attack.geometry, 5, restarts=2)(Plateau(), x, y, seed=1)
    first = two.success
    assert (one.success | ~first).all() and int(first.sum()) < int(one.success.sum())
    # A sample that has fallen is not attacked again.
    assert torch.equal(one.evaluations[first], two.evaluations[first])


def test_the_first_success_is_the_earliest(case):
    net, x, y = case
    found = fab(0.1, steps=20)(net, x, y)
    late = (found.success & (found.iteration >= 2)).nonzero()[:, 0]
    assert len(late) >= 3
    for row in late[:6].tolist():
        one, step = slice(row, row + 1), int(found.iteration[row])
        assert torch.allclose(fab(0.1, steps=step)(net, x[one], y[one]).x, found.x[one], atol=1e-5)
        assert not fab(0.1, steps=step - 1)(net, x[one], y[one]).success.any()


def test_the_nearest_is_nearer_than_the_first_and_restarts_only_help(case):
    net, x, y = case
    first, nearest = fab(0.1, steps=20)(net, x, y), fab(0.1, steps=20, return_point="nearest")(net, x, y)
    assert (nearest.success | ~first.success).all()
    assert (nearest.distance <= first.distance + 1e-6)[first.success].all()
    again = fab(0.1, steps=20, return_point="nearest", restarts=3)(net, x, y)
    assert (again.distance <= nearest.distance)[nearest.success].all() and (again.success | ~nearest.success).all()


class Counting(nn.Module):
    """A net that counts the inputs it is given."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.tally = net, SimpleNamespace(looks=[])  # an object, which copies share

    def forward(self, x: Tensor) -> Tensor:
        self.tally.looks.append(len(x))
        return self.net(x)


@pytest.mark.parametrize("keep", ["first_success", "nearest"])
def test_every_evaluation_is_counted(keep, case, monkeypatch):
    monkeypatch.setenv("EQUIPOISE_NATIVE", "0")  # the kernels do not ask the module
    net = Counting(case[0])
    _, x, y = case
    steps = 10
    found = fab(0.1, steps=steps, return_point=keep)(net, x, y)
    assert int(found.evaluations.sum()) + 2 + 2 + 1 + 3 == sum(net.tally.looks)  # first it is examined
    assert int(found.evaluations.max()) <= 2 + 4 * (1 + 2 * steps)
    wrong = case[0](x).argmax(1) != y
    assert found.evaluations[wrong].eq(1).all()
    stays = fab(1e-4, steps=steps)(net, x, y).evaluations[~wrong].float().mean()
    assert stays < 2 + 4 * (1 + 1.95 * steps)


def test_a_radius_of_zero_finds_nothing(case):
    net, x, y = case
    for keep in ("first_success", "nearest"):
        found = fab(0.0, steps=5, return_point=keep)(net, x, y)
        assert torch.equal(found.success, net(x).argmax(1) != y) and torch.equal(found.x, x)


def test_bf16_successes_hold_in_float32(case):
    net, x, y = case
    full = fab(0.1, steps=15)(net, x, y)
    half = fab(0.1, steps=15, precision="bf16")(net, x, y)
    assert torch.equal(half.success, net(half.x).argmax(1) != y)
    assert abs(int(full.success.sum()) - int(half.success.sum())) <= 3
    near = fab(math.inf, steps=15, return_point="nearest", precision="bf16")(net, x, y)
    assert near.success.all()  # those that bf16 misjudged were searched for again


def test_the_model_and_the_random_state_stay_as_they_were():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Dropout(), nn.Linear(12, 4))
    net[2].eval()
    before, modes, random = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()], torch.get_rng_state()
    x = torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    fab(0.2, steps=4, restarts=2)(net, x, torch.arange(9) % 4)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and torch.equal(
        random, torch.get_rng_state()
    )
    assert modes == [m.training for m in net.modules()] and all(p.grad is None for p in net.parameters())


class Noisy(nn.Module):
    """A net that draws from the global generator even in eval mode."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(nn.functional.dropout(x, 0.05))


def test_the_seed_alone_decides_what_a_random_net_draws(case):
    net, x, y = case
    found = []
    for state in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(state)
            found.append(fab(0.06, steps=3)(Noisy(net), x[:8], y[:8], seed=0))
            assert torch.initial_seed() == state
    assert torch.equal(found[0].x, found[1].x) and torch.equal(found[0].success, found[1].success)


class Tilted(nn.Module):
    """Two classes by a plane whose normal is drawn at every call."""

    def forward(self, x: Tensor) -> Tensor:
        side = (x - 0.5).sum(1) + 3 * ((x - 0.5) * torch.randn(x.shape[1])).sum(1)
        return torch.stack([-side, side], 1)


def test_several_draws_lead_to_where_most_of_them_are_wrong():
    """One draw's plane says little about the next draw; the mean prediction of many does."""
    x, y = (
        0.5 - 0.08 * torch.rand(60, 12, generator=torch.Generator().manual_seed(0)),
        torch.zeros(60, dtype=torch.int64),
    )
    share = []
    for count in (1, 15):
        found = fab(0.1, steps=10, eot_samples=count)(Tilted(), x, y, seed=3)
        share.append(float(found.error_rate.mean()))
    assert share[1] > share[0] + 0.05
    with pytest.raises(EquipoiseError, match="eot_samples = 0: expected an integer >= 1"):
        fab(0.1, eot_samples=0)


class Flat(nn.Module):
    """Logits whose gradient is 0, or NaN where a coordinate is 0."""

    def __init__(self, nan: bool):
        super().__init__()
        self.nan = nan

    def forward(self, x: Tensor) -> Tensor:
        slope = x.sqrt().sum(1) * 0 if self.nan else x.sum(1) * 0
        return torch.stack([slope + 1, slope, slope - 1], 1)


def test_gradients_that_show_no_way_are_counted():
    x, y = torch.tensor([[0.0, 0.5], [0.3, 0.4]]), torch.zeros(2, dtype=torch.int64)
    found = fab(0.2, steps=4)(Flat(nan=True), x, y)
    assert found.nan_gradients.tolist() == [8, 0] and found.zero_gradients.tolist() == [0, 8]
    assert not found.success.any() and torch.equal(found.x, x)
    assert fab(0.2, steps=4, targets=1)(Flat(nan=False), x, y).zero_gradients.tolist() == [4, 4]


def test_another_box_is_kept_to():
    net = linear(3, 6)
    x = 2 * torch.rand(8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    found = FAB(Ball("l2", math.inf, Box(-1, 1)), steps=20, return_point="nearest")(net, x, net(x).argmax(1))
    assert found.success.all() and found.x.min() >= -1 and found.x.max() <= 1 and found.x.min() < 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps = 0: expected an integer >= 1"),
        ({"targets": 1.5}, "targets = 1.5: expected an integer"),
        ({"restarts": 0}, "restarts = 0"),
        ({"eta": 0.9}, "eta = 0.9 stops before the boundary"),
        ({"alpha_max": 2}, "alpha_max = 2: expected a number from 0 to 1"),
        ({"beta": -1}, "beta = -1: expected a number from 0 to 1"),
        ({"return_point": "neareset"}, "did you mean 'nearest'"),
        ({"precision": "16"}, "unknown precision"),
        ({"eps": math.inf}, "return_point='nearest'"),
        ({"norm": "l3"}, "unknown norm"),
    ],
)
def test_refuses_options_that_make_no_sense(options, message):
    with pytest.raises(EquipoiseError, match=message.replace("(", r"\(")):
        fab(**({"eps": 0.1} | options))


def test_refuses_input_it_cannot_use():
    x, y = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(4, dtype=torch.int64)
    net = nn.Linear(6, 3)
    with pytest.raises(EquipoiseError, match="fab needs the labels y"):
        fab(0.1)(net, x)
    with pytest.raises(EquipoiseError, match="holds class 3, but the model has 3 classes"):
        fab(0.1)(net, x, y + 3)
    with pytest.raises(EquipoiseError, match="lie outside"):
        fab(0.1)(net, x + 1, y)
    batch = nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), net)
    with pytest.raises(EquipoiseError, match="depends on its batch"):
        fab(0.1)(batch, x, y)

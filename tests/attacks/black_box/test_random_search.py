"""Random search against the exact share of the ball where a linear model is wrong, and a plain loop."""

import pytest
import torch
from scipy.special import betainc
from scipy.stats import binomtest, kstest
from torch import Tensor, nn

from equipoise.attacks import Chain, RandomSearch, pgd, random_search
from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import Stream, Streams
from equipoise.geometry import EVERYWHERE, Ball, Box

FEATURES = 6


def half_space(weight: Tensor, bias: float) -> nn.Module:
    """Class 1 where `weight · x > bias`, else class 0; the slope is arbitrary."""
    net = nn.Linear(len(weight), 2)
    with torch.no_grad():
        net.weight.copy_(torch.stack([-weight, weight]))
        net.bias.copy_(torch.tensor([bias, -bias]))
    return net.eval()


def first_axis(distance: float) -> nn.Module:
    weight = torch.zeros(FEATURES)
    weight[0] = 3.0
    return half_space(weight, 3 * (0.5 + distance))


def share(norm: str, m: float, d: int = FEATURES) -> float:
    """The part of the unit ball in d dimensions where the first coordinate is larger than m."""
    if norm == "linf":
        return (1 - m) / 2
    if norm == "l1":
        return (1 - m) ** d / 2
    return float(betainc((d + 1) / 2, 0.5, 1 - m**2)) / 2


@pytest.mark.parametrize(("norm", "m"), [("linf", 0.9), ("l2", 0.6), ("l1", 0.4)])
def test_as_many_fall_as_the_share_of_the_ball_says(norm, m):
    """Among n samples those that fall within k draws are binomial with p = 1 - (1 - v)^k, for every k at once."""
    eps, n, v = 0.2, 3000, share(norm, m)
    x, y = torch.full((n, FEATURES), 0.5), torch.zeros(n, dtype=torch.int64)
    found = random_search(eps, norm, 40)(first_axis(m * eps), x, y, seed=7)
    for k in (1, 7, 40):
        fell = int((found.success & (found.iteration <= k)).sum())
        assert binomtest(fell, n, 1 - (1 - v) ** k).pvalue > 0.01, (k, fell / n, 1 - (1 - v) ** k)
    assert torch.equal(found.success, found.x[:, 0] > 0.5 + m * eps)


def test_a_slanted_plane():
    """Along (1, 1) the sum of two uniform numbers is triangular: v = (2 - s)² / 8 beyond s."""
    weight = torch.zeros(FEATURES)
    weight[:2] = 1.0
    eps, s, n = 0.1, 1.4, 3000
    x, y = torch.full((n, FEATURES), 0.5), torch.zeros(n, dtype=torch.int64)
    found = random_search(eps, draws=10)(half_space(weight, 1 + s * eps), x, y)
    assert binomtest(int(found.success.sum()), n, 1 - (1 - (2 - s) ** 2 / 8) ** 10).pvalue > 0.01


def test_the_number_of_the_first_success_is_geometric():
    """Of one sample over seeds: independent draws, none of which is skipped or made twice."""
    v, eps = share("linf", 0.8), 0.2
    x, y = torch.full((2000, FEATURES), 0.5), torch.zeros(2000, dtype=torch.int64)
    number = random_search(eps, draws=500)(first_axis(0.8 * eps), x, y, seed=1).iteration.double()
    assert number.min() == 1
    smooth = number - torch.rand(2000, generator=torch.Generator().manual_seed(0))
    assert kstest(smooth.numpy(), lambda t: 1 - (1 - v) ** t).pvalue > 0.01
    assert abs(number.mean() * v - 1) < 4 / 2000**0.5


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3)).double().eval()
    net.requires_grad_(False)
    x = torch.rand(24, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    net[1].weight.mul_(8)
    net[3].bias.sub_(net(x).mean(0))  # boundaries near every sample
    y = net(x).argmax(1)
    y[:3] = (y[:3] + 1) % 3
    return net, x, y


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_plain_loop_finds_the_same(norm, case):
    """One sample and one draw at a time; also the point of the smallest margin where nothing succeeds."""
    net, x, y = case
    ball = Ball(norm, {"linf": 0.15, "l2": 0.3, "l1": 0.8}[norm])
    found = random_search(ball.eps, norm, 30)(net, x, y, seed=5)
    outcomes = set()
    for i in range(len(x)):
        best, at, where, fell = -torch.inf, 0, x[i], False
        for number in range(31):
            own = Streams.of(5, torch.tensor([i])).fold(Stream.RANDOM_SEARCH, number)
            z = x[i] if number == 0 else ball.draw(own, x[i : i + 1])[0]
            scores = net(z[None])[0]
            others = scores[torch.arange(3) != y[i]].max()
            if others - scores[y[i]] > best:
                best, at, where = float(others - scores[y[i]]), number, z
            if best > 0:
                fell = True
                break
        assert bool(found.success[i]) == fell and int(found.iteration[i]) == at
        assert torch.equal(found.x[i], where)
        spent = 1 if at == 0 and fell else 2 + (at if fell else 30)
        assert int(found.evaluations[i]) == spent
        outcomes.add((fell, at == 0))
    assert {(True, True), (True, False), (False, False)} <= outcomes


def test_batches_and_order_do_not_matter(case):
    net, x, y = case
    attack = random_search(0.1, draws=60)
    whole = attack(net, x, y, seed=2)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    for batch_size in (5, 64):
        other = attack(net, x[order], y[order], seed=2, index=order, batch_size=batch_size)
        assert torch.equal(other.x, whole.x[order]) and torch.equal(other.iteration, whole.iteration[order])
        assert torch.equal(other.evaluations, whole.evaluations[order])
    assert 3 < whole.success.sum() < 24
    assert not torch.equal(attack(net, x, y, seed=3).x, whole.x)


def test_more_draws_are_the_same_search_continued(case):
    net, x, y = case
    few, many = (random_search(0.1, draws=n)(net, x, y) for n in (20, 60))
    assert torch.equal(few.x[few.success], many.x[few.success])
    assert (many.success & ~few.success).any()
    assert (many.iteration[many.success & ~few.success] > 20).all()


class Peak(nn.Module):
    """Right everywhere, and least sure at the middle."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([2 + (x - 0.5).abs().sum(1), torch.zeros(len(x))], 1)


def test_where_no_draw_is_better_the_sample_stays():
    x, y = torch.full((5, FEATURES), 0.5), torch.zeros(5, dtype=torch.int64)
    found = random_search(0.2, draws=9)(Peak(), x, y)
    assert torch.equal(found.x, x) and not found.success.any()
    assert found.iteration.tolist() == [0] * 5 and found.evaluations.tolist() == [11] * 5


def test_points_lie_in_ball_and_box(case):
    net, x, y = case
    for norm in ("linf", "l2", "l1"):
        found = random_search(0.5, norm, 40)(net, x.round(), y)
        assert Ball(norm, 0.5).contains(found.x, x.round()).all()
    free = random_search(0.5, box=EVERYWHERE, draws=40)(net, 10 * x, y)
    assert (free.x - 10 * x).abs().max() <= 0.5 + 1e-9 and free.x.max() > 1


def test_bf16_claims_nothing_that_float32_denies():
    """Behind 0.5371 bfloat16 already sees the plane, which lies at 0.5377: the search goes on, to the same draws."""
    x, y = torch.full((100, FEATURES), 0.5), torch.zeros(100, dtype=torch.int64)
    net = first_axis(0.0377)
    exact, rough = (random_search(0.04, draws=60, precision=p)(net, x, y) for p in ("32", "bf16"))
    assert torch.equal(exact.success, rough.success) and 50 < exact.success.sum() < 100
    assert torch.equal(exact.iteration[exact.success], rough.iteration[exact.success])


class Masked(nn.Module):
    """A model that hides its slope: no gradient, but wrong on half of the ball."""

    def forward(self, x: Tensor) -> Tensor:
        wrong = (x[:, :1] > 0.5 + 1e-4).float()
        return torch.cat([3 - wrong, 4 * wrong], 1) + 0 * x[:, :2]


def test_after_a_gradient_attack_it_finds_what_that_one_missed():
    x, y = torch.full((50, FEATURES), 0.5), torch.zeros(50, dtype=torch.int64)
    chain = Chain((("pgd", pgd(0.1, steps=5, start="zero")), ("random-search", random_search(0.1, draws=30))))
    found = chain(Masked(), x, y)
    assert found.success.all() and (found.part == 1).all() and (found.zero_gradients > 0).all()
    assert abs(found.iteration.double().mean() - 2) < 0.8


@pytest.mark.unchecked
def test_refuses():
    net, x, y = first_axis(0.1), torch.full((4, FEATURES), 0.5), torch.zeros(4, dtype=torch.int64)
    for options, message in (
        ({"eps": float("inf")}, "draws from a finite ball: eps is infinite"),
        ({"draws": 0}, "draws = 0: expected an integer >= 1"),
        ({"precision": "bf61"}, "unknown precision 'bf61': did you mean 'bf16'"),
        ({"norm": "l3"}, "unknown norm 'l3'"),
    ):
        with pytest.raises(EquipoiseError, match=message):
            random_search(**({"eps": 0.1} | options))
    with pytest.raises(EquipoiseError, match="random-search needs the labels y"):
        random_search(0.1)(net, x)
    with pytest.raises(EquipoiseError, match="lie outside"):
        random_search(0.1)(net, x + 1, y)
    coupled = nn.Sequential(nn.BatchNorm1d(FEATURES, track_running_stats=False), net).eval()
    with pytest.raises(EquipoiseError, match="a prediction depends on its batch"):
        random_search(0.1)(coupled, torch.rand(4, FEATURES), y)


def test_it_says_what_it_is():
    assert random_search(0.1, "l2", 7, Box(-1, 1), "bf16") == RandomSearch(Ball("l2", 0.1, Box(-1, 1)), 7, "bf16")
    assert str(random_search(0.1, "l2", 7)) == "random-search(l2 0.1, 7 draws)"
    assert random_search(0.1).settings() == {
        "attack": "random-search",
        "geometry": {"norm": "linf", "eps": 0.1, "box": {"kind": "Box", "low": 0.0, "high": 1.0}},
        "draws": 10_000,
        "precision": "32",
    }

"""The square attack against closed forms, a plain loop, and what every attack must satisfy."""

import copy
import json
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from equipoise.attacks.black_box.square import _HALVINGS, Square, hills, square
from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import Stream, Streams, fold
from equipoise.geometry import Ball, Box
from equipoise.nets import build

pytestmark = pytest.mark.unchecked

EPS = {"linf": 0.08, "l2": 0.6, "l1": 3.0}
LOGITS = 1e-6


def blobs(batch: int, classes: int = 4, side: int = 10, seed: int = 0, channels: int = 1) -> tuple[Tensor, Tensor]:
    """Images with a soft blob in one of the corners, whose corner is their class, under noise."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (batch,), generator=g)
    grid = torch.linspace(0, 1, side)
    rows, columns = 0.25 + 0.5 * (y // 2), 0.25 + 0.5 * (y % 2)
    far = (grid[None, :, None] - rows[:, None, None]) ** 2 + (grid[None, None] - columns[:, None, None]) ** 2
    x = 0.15 * torch.exp(-8 * far)[:, None] + 0.7 * torch.rand(batch, channels, side, side, generator=g)
    return x.clamp(0, 1), y


def trained(net: nn.Module, x: Tensor, y: Tensor, steps: int = 60) -> nn.Module:
    """`net` after a short training."""
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ELU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3), nn.ELU(), nn.Flatten(), nn.Linear(72, 4),
        )  # fmt: skip
        net = trained(net, *blobs(256))
    return net, *blobs(40, seed=1)


def margin(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        z = net(x)
    return z.gather(1, y[:, None])[:, 0] - z.scatter(1, y[:, None], -math.inf).amax(1)


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_what_it_returns(norm, precision, case):
    net, x, y = case
    found = square(EPS[norm], norm, 60, precision=precision)(net, x, y, seed=3)
    ball = Ball(norm, EPS[norm])
    assert ball.contains(found.x, x).all() and found.x.min() >= 0 and found.x.max() <= 1
    with torch.no_grad():
        predicted = net(found.x).argmax(1)
    assert torch.equal(found.prediction, predicted) and torch.equal(found.success, predicted != y)
    assert torch.allclose(found.distance, ball.distance(found.x, x), rtol=1e-5)
    clean = margin(net, x, y) < 0
    assert torch.equal(found.x[clean], x[clean]) and (found.evaluations[clean] == 1).all()
    searched = ~clean
    assert 0 < (found.success & searched).sum() < searched.sum()
    assert (found.evaluations[searched] >= 3).all() and (found.evaluations <= 65).all()
    assert (found.iteration <= 60).all() and found.nan_gradients.sum() == 0
    left = ~found.success
    start = square(EPS[norm], norm, 1, precision=precision)(net, x, y, seed=3)
    slack = 1e-5 if precision == "32" else 0.1
    assert (margin(net, found.x, y) <= margin(net, start.x, y) + slack)[left].all()
    assert (margin(net, found.x, y) < margin(net, x, y))[left].float().mean() > 0.9


@pytest.mark.parametrize("norm", EPS)
def test_more_queries_find_more(norm, case):
    net, x, y = case
    few, many = (square(EPS[norm], norm, q, horizon=q)(net, x, y).success.sum() for q in (3, 100))
    assert many > few


def test_plain_loop(case):
    """The published step, written out for whole images, with the same draws, gives the same points."""
    net, x, y = copy.deepcopy(case[0]).double(), case[1].double(), case[2]
    eps, queries, seed = 0.06, 150, 7
    streams = Streams.of(seed, torch.arange(len(x))).fold(Stream.SQUARE_RESTART, 0)
    signs = 1 - 2 * (streams.fold(Stream.SQUARE_START).bits(1, 1, 10) & 1).double()
    best = (x + eps * signs).clamp(0, 1)
    smallest = margin(net, best, y)
    inside = margin(net, x, y) > 0
    asked = torch.full((len(x),), 2)
    for i in range(queries):
        searching = (smallest >= 0) & inside
        p = 0.8 / 2 ** sum(int(i / queries * 10000) > t for t in _HALVINGS)
        s = max(round(math.sqrt(p * 100)), 1)
        windows = fold(fold(seed, Stream.SQUARE_RESTART, 0), Stream.SQUARE_WINDOW)
        u = Streams.of(windows, torch.tensor([i])).uniform(5, dtype=torch.float64)[0]
        a, b = int(u[0] * (11 - s)), int(u[1] * (11 - s))
        sign = 1 - 2 * ((streams.fold(Stream.SQUARE_SIGN, i // 64).bits(1) >> (i % 64)) & 1).double()
        new = best.clone()
        new[:, :, a : a + s, b : b + s] += 2 * eps * sign[:, :, None, None]
        new = torch.minimum(torch.maximum(new, x - eps), x + eps).clamp(0, 1)
        asked += searching & ~torch.isclose(new, best, atol=1e-12, rtol=0).flatten(1).all(1)
        here = margin(net, new, y)
        better = searching & (here < smallest - 1e-13)
        best[better], smallest[better] = new[better], here[better]
    found = square(eps, queries=queries, horizon=queries)(net, x, y, seed=seed)
    best[~inside] = x[~inside]
    assert torch.allclose(found.x, best, atol=1e-12)
    assert torch.equal(found.success, ~inside | (smallest < 0)) and 0 < found.success[inside].sum() < inside.sum()
    # One more for every success, which is confirmed, and one for the result.
    assert torch.equal(found.evaluations, torch.where(inside, asked + 1 + (smallest < 0), 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_linear_model(channels):
    """Linf: the margin falls by at most `eps·‖w_y - w_t‖₁`, which the search comes close to, in the box or not."""
    g = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(channels * 36, 2)).eval()
    x = 0.3 + 0.4 * torch.rand(60, channels, 6, 6, generator=g)
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(2, channels * 36, generator=g))
        y = net(x).argmax(1)
        w = net[1].weight[1 - y] - net[1].weight[y]
        slack = margin(net, x, y) / w.abs().sum(1)
    eps = float(slack.median())
    exact = margin(net, x, y) - eps * w.abs().sum(1)
    found = square(eps, queries=600)(net, x, y)
    assert not found.success[exact > 1e-4].any()
    assert found.success[margin(net, x, y) < 0.8 * eps * w.abs().sum(1)].all()
    assert (exact > 1e-4).any() and found.success.any()


@pytest.mark.parametrize("norm", EPS)
def test_batches_and_order_do_not_matter(norm, case):
    net, x, y = copy.deepcopy(case[0]).double(), case[1].double(), case[2]
    attack, index = square(EPS[norm], norm, 70), torch.arange(len(x))
    whole = attack(net, x, y, seed=5)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    other = attack(net, x[order], y[order], seed=5, index=index[order], batch_size=7)
    assert torch.allclose(other.x, whole.x[order], atol=1e-9)
    assert torch.equal(other.iteration, whole.iteration[order])
    assert not torch.equal(attack(net, x, y, seed=6).x, whole.x)


def test_everything_is_left_as_it_was(case):
    net, x, y = copy.deepcopy(case[0]), *case[1:]
    net.train()
    net[1].eval()
    modes, state = [m.training for m in net.modules()], {k: v.clone() for k, v in net.state_dict().items()}
    random, before = torch.get_rng_state(), x.clone()
    square(0.05, queries=20)(net, x, y)
    assert [m.training for m in net.modules()] == modes and torch.equal(x, before)
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())
    assert torch.equal(random, torch.get_rng_state()) and all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("norm", EPS)
def test_no_radius(norm, case):
    net, x, y = case
    found = square(0.0, norm, 30)(net, x, y)
    assert torch.allclose(found.x, x, atol=1e-7) and torch.equal(found.success, margin(net, x, y) < 0)


@pytest.mark.parametrize("norm", EPS)
def test_features(norm):
    g = torch.Generator().manual_seed(0)
    net = nn.Linear(30, 3).eval()
    with torch.no_grad():
        net.weight.copy_(torch.randn(3, 30, generator=g))
    x = torch.rand(20, 30, generator=g)
    with torch.no_grad():
        y = net(x).argmax(1)
    found = square(EPS[norm], norm, 200)(net, x, y)
    assert Ball(norm, EPS[norm]).contains(found.x, x).all() and found.success.any()


@pytest.mark.parametrize("shape", [(1, 1, 7), (2, 9, 3), (1, 3, 3), (3, 1, 1), (2, 4, 1)])
@pytest.mark.parametrize("norm", EPS)
def test_shapes(shape, norm):
    """Images of any shape, in another box."""
    g = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 3)).eval()
    x = 4 * torch.rand(8, *shape, generator=g) - 1
    ball = Ball(norm, EPS[norm], Box(-1, 3))
    with torch.no_grad():
        y = net(x).argmax(1)
    found = Square(ball, 30)(net, x, y)
    assert ball.contains(found.x, x).all() and (found.x - x).abs().sum() > 0


class Coarse(nn.Module):
    """Takes bfloat16 for fooled, always; in float32 it is a line."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1) * self.weight
        score = mean - 0.5 if not torch.is_autocast_enabled("cpu") else torch.ones_like(mean)
        return torch.stack([-score, score], 1)


def test_what_only_bf16_takes_for_fooled_goes_on():
    x, y = torch.full((5, 1, 4, 4), 0.47), torch.zeros(5, dtype=torch.int64)
    found = square(0.04, queries=400, precision="bf16")(Coarse(), x, y)
    assert found.success.all() and (found.iteration > 0).any()
    assert not square(0.02, queries=100, precision="bf16")(Coarse(), x, y).success.any()


def test_restarts_only_help(case):
    net, x, y = case
    once, thrice = (square(0.05, queries=20, restarts=n)(net, x, y) for n in (1, 3))
    assert (thrice.success >= once.success).all() and thrice.success.sum() > once.success.sum()
    assert torch.equal(thrice.x[once.success], once.x[once.success])
    left = ~thrice.success
    assert (margin(net, thrice.x, y) <= margin(net, once.x, y) + LOGITS)[left].all()
    assert (thrice.evaluations >= once.evaluations).all()


@given(st.integers(0, 4999), st.sampled_from(sorted(EPS)), st.integers(1, 40), st.integers(1, 40))
def test_windows_fit(iteration, norm, height, width):
    attack = square(1.0, norm)
    high, wide = attack.window(iteration, height, width)
    assert 1 <= high <= height and 1 <= wide <= width
    assert attack.share(iteration) >= attack.share(iteration + 1)


def test_schedule():
    attack = square(0.1, horizon=5000)
    sides = [attack.window(i, 28, 28)[0] for i in (0, 5, 6, 25, 26, 101, 251, 501, 1001, 2001, 3001, 4001)]
    assert sides == [25, 25, 18, 18, 13, 9, 6, 4, 3, 2, 2, 1]
    # AutoAttack's 5000 queries end halfway of the schedule.
    assert [square(0.1).window(i, 28, 28)[0] for i in (10, 11, 4000, 4001, 4999)] == [25, 18, 3, 2, 2]
    assert square(1.0, "l2").window(4999, 28, 28) == (3, 3) and square(1.0, "l1").window(12, 28, 28) == (19, 19)


@pytest.mark.parametrize("p", [1, 2])
def test_hills(p):
    """Written out for a window of 5: the lower hill is three rows high, the upper two."""
    q = 4 if p == 1 else 2
    level = [1 + 2**-q + 3**-q, 2**-q + 3**-q, 3**-q]
    near = torch.tensor([[max(abs(i - 1), abs(j - 2)) for j in range(5)] for i in range(3)])
    lower = torch.tensor(level)[near]
    upper = lower[:2]
    both = torch.cat([upper / upper.norm(p), -lower / lower.norm(p)])
    assert torch.allclose(hills(5, 5, p), both / both.norm(p))
    assert torch.equal(hills(5, 5, p, True), hills(5, 5, p).T)
    assert hills(1, 1, p).tolist() == [[-1.0]] and hills(1, 6, p).shape == (1, 6)


class Published(SquareAttack):
    """The published implementation, whose windows never reach the last row and column: here they may, as ours do."""

    def random_int(self, low: int = 0, high: int = 1, shape: Sequence[int] = (1,)) -> Tensor:
        return super().random_int(low, high + 1, shape)


@pytest.mark.parametrize("norm", EPS)
def test_as_strong_as_the_reference(norm, case):
    """At equal queries on the same schedule about as many samples resist as resist the published implementation."""
    net, (x, y) = case[0], blobs(300, seed=2)
    eps = {"linf": 0.05, "l2": 0.5, "l1": 2.5}[norm]
    ours = ~square(eps, norm, 200)(net, x, y).success
    name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
    with torch.random.fork_rng():
        theirs = Published(net, norm=name, n_queries=200, eps=eps, resc_schedule=False).perturb(x, y)
    resist = margin(net, theirs, y) > 0
    assert 0.05 < resist.float().mean() < 0.9
    assert abs(float(ours.float().mean() - resist.float().mean())) <= 0.04


@pytest.mark.parametrize("resc_schedule", [False, True])
def test_same_schedule_as_the_reference(resc_schedule):
    """Window sides for 10 000 iterations, or, rescaled, for as many as there are queries."""
    theirs = SquareAttack(None, norm="Linf", n_queries=500, resc_schedule=resc_schedule)
    ours = square(0.1, queries=500, horizon=500 if resc_schedule else 10_000)
    assert [ours.share(i) for i in range(500)] == [theirs.p_selection(i) for i in range(500)]


def test_it_describes_itself():
    attack = square(0.1, "l1", 50, restarts=2)
    settings = json.loads(json.dumps(attack.settings()))
    assert (
        settings["attack"] == "square"
        and settings["queries"] == 50
        and settings["geometry"]["norm"] == "l1"
        and settings["restarts"] == 2
    )
    assert str(attack) == "square(l1 0.1, 50 queries)" and hash(attack) == hash(square(0.1, "l1", 50, restarts=2))


def test_refuses(case):
    net, x, y = case
    for options, message in (
        ({"queries": 0}, "queries = 0"),
        ({"p_init": 0.0}, "p_init"),
        ({"restarts": 0}, "restarts = 0"),
        ({"precision": "16"}, "unknown precision"),
    ):
        with pytest.raises(EquipoiseError, match=message):
            square(0.1, **options)
    with pytest.raises(EquipoiseError, match="finite"):
        square(math.inf)
    with pytest.raises(EquipoiseError, match="labels"):
        square(0.1)(net, x)
    coupled = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten(), nn.Linear(100, 4))
    with pytest.raises(EquipoiseError, match="depends on its batch"):
        square(0.1)(coupled, x, y)


class Behind(nn.Module):
    """A network behind an operation that is no layer."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(1 - (1 - x))


def test_lenet_in_parts_and_whole():
    """The network in parts finds what the whole network finds."""
    net = build("lenet", shape=(1, 12, 12), classes=4, seed=0).double().eval()
    x, y = blobs(12, side=12, seed=3)
    x = x.double()
    with torch.no_grad():
        y = net(x).argmax(1)
    attack = square(0.02, queries=80)
    in_parts, whole = (attack(m, x, y) for m in (net, Behind(net)))
    assert torch.allclose(in_parts.x, whole.x, atol=1e-12) and torch.equal(in_parts.evaluations, whole.evaluations)

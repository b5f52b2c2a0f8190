"""HopSkipJump against the paper's algorithm in plain loops, a plane of known distance, and foolbox."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equipoise.attacks import hop_skip_jump
from equipoise.attacks.black_box import hop_skip_jump as module
from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import Stream, Streams
from equipoise.geometry import EVERYWHERE
from equipoise.models import BlackBox
from equipoise.testing.attacks import small_network, small_samples


def plane(features: int = 20) -> tuple[nn.Module, Tensor]:
    """Class 1 where `w · (x - 0.5) > 0.1‖w‖₂`, and the weights."""
    weight = torch.randn(features, generator=torch.Generator().manual_seed(4))
    net = nn.Linear(features, 2)
    with torch.no_grad():
        net.weight.copy_(torch.stack([-weight, weight]))
        bias = -0.5 * weight.sum() - 0.1 * weight.norm()
        net.bias.copy_(torch.stack([-bias, bias]))
    return net.eval(), weight


@pytest.mark.parametrize(("norm", "slack"), [("l2", 1.05), ("linf", 1.2)])
def test_it_finds_the_distance_to_a_plane(norm, slack):
    net, weight = plane()
    exact = 0.1 * weight.norm() / (weight.norm() if norm == "l2" else weight.abs().sum())
    found = hop_skip_jump(norm=norm, queries=1000)(net, torch.full((3, 20), 0.5), torch.zeros(3, dtype=torch.int64))
    assert bool(found.success.all())
    assert bool((found.distance >= exact * (1 - 1e-5)).all()) and float(found.distance.median()) <= slack * exact


def plain_walk(wrong, x: np.ndarray, streams: Streams, norm: str, queries: int, directions: int) -> np.ndarray:
    """Algorithm 2 of the paper for one sample, with the attack's own random numbers; `wrong` is φ > 0."""
    asked, d = 0, x.size

    def ask(point: np.ndarray) -> bool:
        nonlocal asked
        asked += 1
        return wrong(point)

    def length(point: np.ndarray) -> float:
        move = np.abs(point - x)
        return float(np.sqrt((move**2).sum()) if norm == "l2" else move.max())

    def bisect(far: np.ndarray) -> np.ndarray:
        low, high = 0.0, 1.0 if norm == "l2" else length(far)
        theta = d**-1.5 if norm == "l2" else d**-2 * min(high, 1.0)
        point = far
        while high - low > theta and asked < queries:
            middle = (low + high) / 2
            trial = x + middle * (far - x) if norm == "l2" else np.clip(far, x - middle, x + middle)
            if ask(trial):
                high, point = middle, trial
            else:
                low = middle
        return point

    first = streams.fold(0, 0).uniform(*x.shape, dtype=torch.float64)[0].numpy()
    assert ask(first), "take a sample whose first noise is wrong"
    at = best = bisect(first)
    reserve, step = math.ceil(math.log2(d**1.5 if norm == "l2" else d**2)) + 3, 0
    while queries - asked > reserve + 1:
        step += 1
        distance = length(at)
        delta = distance / d if step > 1 else 0.1
        count = min(int(directions * math.sqrt(step)), queries - asked - reserve)
        us, phis = [], []
        for number in range(count):
            u = module._unit(streams.fold(step, number // 32), 32, torch.from_numpy(x)[None], norm)[0, number % 32]
            point = np.clip(at + delta * u.numpy(), 0, 1)
            us.append((point - at) / delta)
            phis.append(1.0 if ask(point) else -1.0)
        mean = float(np.mean(phis))
        weights = [phi if abs(mean) == 1 else phi - mean for phi in phis]
        v = sum(w * u for w, u in zip(weights, us, strict=True))
        v = v / np.sqrt((v**2).sum()) if norm == "l2" else np.sign(v)
        size, far = distance / math.sqrt(step), at
        for _ in range(20):
            if asked >= queries:
                break
            if ask(trial := np.clip(at + size * v, 0, 1)):
                far = trial
                break
            size /= 2
        at = bisect(far)
        best = at if length(at) < length(best) else best
    return best


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_it_is_the_algorithm_of_the_paper(norm):
    net, x = small_network().double(), small_samples(small_network())[0].double()
    y = net(x).argmax(1)
    streams = Streams.of(5, torch.arange(16)).fold(Stream.HOP_SKIP_JUMP, 0)
    noise = net(streams.fold(0, 0).uniform(2, 4, 4, dtype=torch.float64)).argmax(1)
    index = (noise != y).nonzero()[:2, 0]
    found = hop_skip_jump(norm=norm, queries=200, directions=30)(net, x[index], y[index], seed=5, index=index)
    for row, i in enumerate(index.tolist()):

        def wrong(point: np.ndarray, label: int = int(y[i])) -> bool:
            with torch.no_grad():
                return int(net(torch.from_numpy(point)[None]).argmax()) != label

        expected = plain_walk(wrong, x[i].numpy(), streams[torch.tensor([i])], norm, 200, 30)
        assert np.allclose(found.x[row].numpy(), expected, atol=1e-9)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.unchecked
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_it_comes_as_near_as_foolbox_with_as_many_queries(norm):
    foolbox = pytest.importorskip("foolbox")
    net = small_network()
    x, y = small_samples(net, 12)
    asked = 0

    class Counted(nn.Module):
        def forward(self, points):
            nonlocal asked
            asked += len(points)
            return net(points)

    theirs = foolbox.attacks.HopSkipJumpAttack(
        foolbox.attacks.LinearSearchBlendedUniformNoiseAttack(directions=20, steps=10), steps=3, constraint=norm
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        np.random.seed(0)
        point = theirs.run(foolbox.PyTorchModel(Counted().eval(), (0, 1)), x, foolbox.criteria.Misclassification(y))
    move = (point - x).flatten(1)
    distance = move.norm(dim=1) if norm == "l2" else move.abs().amax(1)
    found = hop_skip_jump(norm=norm, queries=asked // len(x) - 2)(net, x, y)
    assert bool(found.success.all()) and int(found.evaluations.max()) <= asked // len(x)
    assert float(found.distance.median()) <= float(distance.median())


class Counting:
    """A function of arrays to labels that counts what it is asked."""

    def __init__(self) -> None:
        self.net, self.asked = small_network(), 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.asked += len(x)
        with torch.no_grad():  # one by one, so that rounding is alike in every batch
            return np.array([int(self.net(torch.from_numpy(row)[None]).argmax()) for row in x])


def test_queries_are_counted_and_never_more_than_allowed():
    x, y = small_samples(small_network(), 1)
    for queries in (1, 40, 150):
        function = Counting()
        found = hop_skip_jump(queries=queries)(BlackBox(function, 5, "labels"), x, y)
        examination = 6  # of the model, before the attack: a sample four times, and its mirror image between two
        assert function.asked == int(found.evaluations) + examination
        assert int(found.evaluations) <= queries + 2, "those of the clean point and of the outcome"


def test_a_first_success_within_the_radius_ends_the_search():
    x, y = small_samples(small_network(), 6)
    model = BlackBox(Counting(), 5, "labels")
    long = hop_skip_jump(0.3, "l2", 400)(model, x, y)
    short = hop_skip_jump(0.3, "l2", 400, return_point="first_success")(model, x, y)
    assert torch.equal(long.success, short.success) and bool(short.success.any())
    assert bool((short.evaluations[short.success] < long.evaluations[short.success]).all())
    assert bool((short.distance[short.success] <= 0.3).all())


def test_labels_alone_in_any_batch_and_order():
    x, y = small_samples(small_network(), 4)
    model, attack = BlackBox(Counting(), 5, "labels"), hop_skip_jump(queries=70, directions=10)
    found = attack(model, x, y)
    order = torch.tensor([3, 0, 2, 1])
    other = attack(model, x[order], y[order], index=order, batch_size=3)
    assert torch.equal(other.x, found.x[order]) and torch.equal(other.evaluations, found.evaluations[order])


def test_targets_are_reached_from_given_points():
    net = small_network()
    x, y = small_samples(net, 64)
    of_class = {int(label): x[y == label][0] for label in y.unique()}
    target = torch.tensor([next(c for c in of_class if c != label) for label in y[:8].tolist()])
    start = torch.stack([of_class[c] for c in target.tolist()])
    found = hop_skip_jump(queries=200)(net, x[:8], y[:8], target=target, start=start)
    assert bool(found.success.all()) and torch.equal(net(found.x).argmax(1), target)
    assert bool((found.distance < (start - x[:8]).flatten(1).norm(dim=1)).all())


@pytest.mark.unchecked
def test_refuses_what_it_cannot_walk():
    with pytest.raises(EquipoiseError, match=r"hop-skip-jump walks in l2 and linf, not in l1"):
        hop_skip_jump(norm="l1")
    with pytest.raises(EquipoiseError, match=r"hop-skip-jump starts anywhere in the box: give it bounds"):
        hop_skip_jump(box=EVERYWHERE)
    with pytest.raises(EquipoiseError, match=r"queries = 0: expected an integer >= 1"):
        hop_skip_jump(queries=0)

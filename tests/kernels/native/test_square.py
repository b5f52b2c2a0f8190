"""Queries of the square attack by the kernel: against a plain loop, and the attack against its way step by step."""

import copy
from dataclasses import dataclass

import pytest
import torch
from native_networks import Residual, residual_network
from torch import Tensor, nn

from equipoise import nets
from equipoise.attacks import AttackResult
from equipoise.attacks.black_box import square as module
from equipoise.attacks.black_box.square import Square, square
from equipoise.core import progress
from equipoise.core.types import Predict, Prediction
from equipoise.geometry import Ball, Box
from equipoise.kernels.native import (
    NativeForward,
    NativeNetwork,
    SquarePlan,
    SquareSamples,
    compiler,
    native_prediction,
    search_squares,
)
from equipoise.losses.objectives import margin
from equipoise.models import Ensemble, Single

pytestmark = [pytest.mark.unchecked, pytest.mark.skipif(compiler() is None, reason="there is no C compiler")]

CLASSES = 4
SHAPES = {
    "lenet": (1, 14, 15),
    "cnn4": (1, 16, 16),
    "perceptron": (2, 6, 5),
    "features": (30,),
    "one row": (2, 1, 9),
    "odd": (3, 9, 11),
    "strides": (1, 14, 15),
    "leaky": (2, 9, 8),
    "one linear layer": (2, 5, 6),
    "residual": (2, 11, 12),
    "groups": (2, 11, 11),
    "linear, residual": (2, 6, 5),
    "pixels, residual": (2, 6, 5),
}
RADII = {
    "lenet": 0.014, "cnn4": 0.022, "perceptron": 0.038, "features": 0.14,
    "residual": 0.16, "groups": 0.011, "linear, residual": 0.055,
    "pixels, residual": 0.23, "one row": 0.048, "odd": 0.05, "leaky": 0.022, "strides": 0.03, "one linear layer": 0.056,
}  # fmt: skip
"""At which about half of the samples are robust."""


def network(kind: str) -> nn.Module:
    """Networks of all supported layers, with random weights, and logits of about 1."""
    torch.manual_seed(2)
    shape = SHAPES[kind]
    odd = nn.Conv2d(3, 5, (3, 2), padding=(1, 1)), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(5, 9, 3, padding=2)
    leaky = nn.Conv2d(2, 4, 3), nn.LeakyReLU(0.2), nn.MaxPool2d(2), nn.Conv2d(4, 6, 2), nn.LeakyReLU(0.1)
    if kind in ("residual", "groups"):
        blocks = ["pre-activated", "strided", "three"] if kind == "residual" else ["depthwise", "dilated", "groups"]
        return residual_network(blocks, [5, 4, 6, 4], SHAPES[kind], flat=kind == "groups", seed=0)
    if kind in ("lenet", "cnn4"):
        net = nets.build(kind, shape=shape, classes=CLASSES, seed=0).eval()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(3 if parameter.ndim > 1 else 0)
        return net
    built = {
        "perceptron": lambda: (nn.Flatten(), nn.Linear(60, 20), nn.ReLU(), nn.Linear(20, CLASSES)),
        "features": lambda: (nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, CLASSES)),
        "one row": lambda: (nn.Conv2d(2, 4, (1, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(28, CLASSES)),
        "odd": lambda: (nets.Normalize((0.4, 0.5, 0.6), (0.3, 0.2, 0.25)), *odd, nn.Flatten(), nn.LazyLinear(CLASSES)),
        "strides": lambda: (
            nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, (1, 2)), nn.MaxPool2d((3, 1)), nn.Flatten(),
            nn.LazyLinear(CLASSES),
        ),
        "leaky": lambda: (*leaky, nn.Flatten(), nn.LazyLinear(CLASSES)),
        "linear, residual": lambda: (
            nn.Flatten(), nn.Linear(60, 20), nn.ReLU(),
            Residual(nn.Linear(20, 20), nn.Identity()), nn.Linear(20, CLASSES),
        ),
        "pixels, residual": lambda: (
            nn.Flatten(), Residual(nn.Linear(60, 60), nn.Identity()), nn.ReLU(), nn.Linear(60, CLASSES),
        ),
        "one linear layer": lambda: (nn.Flatten(), nn.Linear(60, CLASSES)),
    }  # fmt: skip
    net = nn.Sequential(*built[kind]()).eval()
    net(torch.rand(1, *shape))  # sets the size of the last layer
    return net


def samples(kind: str, n: int = 53) -> tuple[nn.Module, Tensor, Tensor, float]:
    """A network, images, the predicted classes, and a radius."""
    net, x = network(kind), torch.rand(n, *SHAPES[kind], generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return net, x, net(x).argmax(1), RADII[kind]


@pytest.fixture
def taken(monkeypatch) -> list[bool]:
    """Whether the kernel took each of the searches."""
    monkeypatch.delenv("EQUIPOISE_NATIVE", raising=False)
    found, native_network = [], module.native_network

    def noted(predict: Predict, x: Tensor, images: Tensor) -> NativeNetwork | None:
        network = native_network(predict, x, images)
        found.append(network is not None)
        return network

    monkeypatch.setattr(module, "native_network", noted)
    return found


def stepwise(monkeypatch, attack: Square, *args, **options) -> AttackResult:
    with monkeypatch.context() as patched:
        patched.setattr(module, "native_network", lambda *_: None)
        return attack(*args, **options)


def assert_same(found: AttackResult, expected: AttackResult, rows: Tensor | slice = slice(None)) -> None:
    for field in ("x", "success", "evaluations", "iteration"):
        assert torch.equal(getattr(found, field), getattr(expected, field)[rows]), field


def assert_alike(found: AttackResult, expected: AttackResult, share: float = 0.95) -> None:
    """The same up to rounding, which may tip the balance in a few samples."""
    same = (found.x - expected.x).abs().flatten(1).amax(1) < 1e-5
    assert same.double().mean() >= share
    assert torch.equal(found.success[same], expected.success[same])
    for field in ("evaluations", "iteration"):
        assert (getattr(found, field) == getattr(expected, field))[same].double().mean() >= share, field


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_step_by_step_the_same_is_found(kind, factor, taken, monkeypatch):
    net, x, y, eps = samples(kind)
    attack = square(factor * eps, queries=150, horizon=300)
    found = attack(net, x, y, seed=1)
    assert taken == [True]
    assert_alike(found, stepwise(monkeypatch, attack, net, x, y, seed=1))
    assert found.success.any()
    if factor == 1.0:
        assert_alike(found, attack(copy.deepcopy(net).double(), x.double(), y, seed=1), 0.9)
        assert taken == [True, False]
        assert (found.iteration[~found.success] > 64).any()


@pytest.mark.parametrize("kind", ["lenet", "perceptron", "features", "residual"])
def test_towards_given_classes_too(kind, taken, monkeypatch):
    net, x, y, eps = samples(kind)
    attack, target = square(2 * eps, queries=150, horizon=300), (y + 1 + torch.arange(len(y)) % (CLASSES - 1)) % CLASSES
    found = attack(net, x, y, target=target, seed=1)
    assert taken == [True]
    assert_alike(found, stepwise(monkeypatch, attack, net, x, y, target=target, seed=1))
    assert torch.equal(found.success, found.prediction == target)
    assert 0 < int(found.success.sum()) < len(y) and not torch.equal(found.x, attack(net, x, y, seed=1).x)


def plain_search(
    network: NativeNetwork, plan: SquarePlan, samples: SquareSamples
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The queries of each sample for itself, on whole images."""
    point, value, query = samples.point.clone(), samples.value.clone(), samples.query.clone()
    kept, evaluations = torch.full_like(query, -1), torch.zeros_like(query)
    for i in range(len(point)):
        for q in range(int(query[i]), len(plan.windows)):
            top, bottom, left, right = plan.windows[q]
            new = point[i : i + 1].clone()
            moved = samples.origin[i] + plan.eps * samples.signs[i, :, q, None, None]
            new[0, :, top:bottom, left:right] = moved.clamp(plan.low, plan.high)[:, top:bottom, left:right]
            if torch.equal(new[0], point[i]):
                continue
            label = samples.label[i : i + 1]
            prediction = native_prediction([network], new)
            reached = margin(prediction, None, None if plan.targeted else label, label if plan.targeted else None)
            if reached > 0:
                query[i] = q
                break
            evaluations[i] += 1
            if reached > value[i] + prediction.resolution(label):
                point[i], value[i], kept[i] = new[0], reached[0], q
        else:
            query[i] = len(plan.windows)
    return point, value, query, kept, evaluations


@pytest.mark.parametrize(
    ("kind", "lost", "targeted"),
    [
        *((kind, False, False) for kind in SHAPES if kind not in ("odd", "cnn4")),
        ("one row", True, False),
        ("lenet", False, True),
        ("perceptron", False, True),
    ],
)
def test_every_query_is_that_of_the_whole_network(kind, lost, targeted):
    """To the last bit: the activations stay those of the best points, whatever is taken back in which lane. With `lost`
    one logit is never a number, and no change is kept.
    """
    net, x, y, eps = samples(kind, 21)
    with torch.no_grad():
        list(net.parameters())[-1].add_(1e4)  # a constant that coarsens the logits: some margins grow by rounding alone
        y = net(x).topk(2, 1).indices[:, int(targeted)]
        list(net.parameters())[-1][3] *= torch.nan if lost else 1.0
    predictive = Single(net.requires_grad_(False))
    weights = dict([*net.named_parameters(), *net.named_buffers()])
    forward = NativeForward(predictive.draw(), predictive.draw(), weights)
    network = forward.network(x)
    assert network is not None and network.scale is None
    x = x.reshape(len(x), *(SHAPES[kind] if len(SHAPES[kind]) == 3 else (1, 1, 30)))
    g = torch.Generator().manual_seed(4)
    height, width = x.shape[2:]
    windows = []
    for _ in range(90):
        top, left = (int(torch.randint(side, (), generator=g)) for side in (height, width))
        bottom, right = (
            int(torch.randint(first, side, (), generator=g)) + 1 for first, side in ((top, height), (left, width))
        )
        windows.append((top, bottom, left, right))
    plan = SquarePlan(float(torch.tensor(eps)), 0.1, 0.9, windows, targeted)
    signs = torch.randint(2, (21, x.shape[1], 90), generator=g) * 2.0 - 1
    point = (x + eps).clamp(0.1, 0.9)
    value = margin(native_prediction([network], point), None, *((None, y) if targeted else (y,)))
    value[:: 1 if lost else 5] = -torch.inf
    query = torch.arange(21) % 7 * 10
    given = SquareSamples(x, signs, y, point, value, query)
    found, expected = search_squares(network, plan, given), plain_search(network, plan, given)
    for name, mine, plain in zip(vars(found), vars(found).values(), expected, strict=True):
        assert torch.equal(mine, plain), name
    assert lost or ((found.kept >= 0).any() and (found.query < 90).any() and (found.query == 90).any())


@pytest.mark.parametrize("kind", SHAPES)
def test_neither_order_nor_batch_nor_threads_matter(kind, taken):
    net, x, y, eps = samples(kind, 101)
    attack = square(eps, queries=150, horizon=300)
    whole = attack(net, x, y, seed=1)
    order = torch.randperm(101, generator=torch.Generator().manual_seed(0))
    mixed = attack(net, x[order], y[order], seed=1, index=order, batch_size=13)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        threaded = attack(net, x, y, seed=1)
    finally:
        torch.set_num_threads(threads)
    assert all(taken) and 0 < whole.success.sum() < 101
    assert_same(mixed, whole, order)
    assert_same(threaded, whole)


@pytest.mark.parametrize("box", [Box(), Box(-1, 2)])
def test_the_points_stay_in_ball_and_box(box, taken):
    net, x, y, eps = samples("odd")
    x = box.low + (box.high - box.low) * x
    y = net(x).argmax(1)
    ball = Ball("linf", 5 * eps, box)
    found = Square(ball, 30)(net, x, y)
    assert taken == [True] and ball.contains(found.x, x).all()
    assert (found.x == box.low).any() and (found.x == box.high).any()


@pytest.mark.parametrize("lead", [0.02, 100.0])
def test_a_success_that_pytorch_denies_goes_on(lead, taken, monkeypatch):
    """With the value that PyTorch gives: here it sees a lead of the true class that the kernel does not know of."""
    net, x, y, eps = samples("lenet")
    truth, attack = module.prediction_of, square(eps, queries=150, horizon=300)
    expected = attack(net, x, y, seed=1)

    def deny(predictive, point: Tensor, streams) -> Prediction:
        nearest = torch.cdist(point.flatten(1), x.flatten(1), p=torch.inf).argmin(1)
        logits = truth(predictive, point, streams).logits
        return Prediction(logits + lead * nn.functional.one_hot(y[nearest], CLASSES))

    monkeypatch.setattr(module, "prediction_of", deny)
    taken.clear()
    found = attack(net, x, y, seed=1)
    assert taken == [True]
    assert_alike(found, stepwise(monkeypatch, attack, net, x, y, seed=1))
    assert (found.evaluations > expected.evaluations).any()


def test_logits_that_are_not_finite_are_no_success(taken, monkeypatch):
    """Overflow in some samples where the first pixels become large."""
    net, x, y, _ = samples("perceptron")
    with torch.no_grad():
        net[1].weight[:, 0] = torch.where(torch.arange(20) % 2 == 0, 3e38, -3e38)
        net[1].weight[:, 1] = net[1].weight[:, 0]
        net[3].weight[:, ::2] = 0.0  # times infinity is no number
    x[:, 0, 0, :2] = torch.where(torch.arange(len(x)) % 2 == 0, 0.9, 0.0)[:, None]
    y = net(x).argmax(1)
    attack = square(0.2, queries=100)
    found, expected = attack(net, x, y), stepwise(monkeypatch, attack, net, x, y)
    assert taken == [True] and not net(found.x).isfinite().all()
    for field in ("success", "prediction", "not_finite", "evaluations", "iteration"):
        assert torch.equal(getattr(found, field), getattr(expected, field)), field


@pytest.mark.parametrize("at_once", [1, 1024])
def test_a_search_reports_how_far_it_is_and_can_be_stopped(at_once, taken, monkeypatch):
    bound = "equipoise.kernels.native.layers.NativeLayers.samples_at_once"
    monkeypatch.setattr(bound, lambda layers, evaluations: at_once)
    net, x, y, eps = samples("lenet")
    attack, told = square(0.5 * eps, queries=150), []
    with progress.listening(lambda done, of, what: told.append((done, of, what))):
        whole = attack(net, x, y)
    assert told == [(done, 150, f"query {done} of 150") for done in (0, 64, 128)]

    def stop(done: int, of: int, what: str) -> None:
        if done == 64:
            raise KeyboardInterrupt

    with progress.listening(stop), pytest.raises(KeyboardInterrupt):
        attack(net, x, y)
    assert_same(attack(net, x, y), whole)
    assert taken == [True] * 3


class Shuffled(nn.Module):
    """A network behind an operation that is no layer."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flip(2))


@dataclass(frozen=True)
class Other:
    """What is searched in PyTorch."""

    options: dict[str, object]
    double: bool = False
    ensemble: bool = False
    shuffled: bool = False


@pytest.mark.parametrize(
    ("other", "asked"),
    [
        (Other({"norm": "l2"}), []),
        (Other({"norm": "l1"}), []),
        (Other({"eot_samples": 2}), [False]),
        (Other({}, double=True), [False]),
        (Other({}, ensemble=True), []),
        (Other({}, shuffled=True), [False]),
    ],
    ids=str,
)
def test_what_the_kernel_does_not_know_is_searched_in_pytorch(other, asked, taken):
    net, x, y, eps = samples("lenet", 7)
    model = Ensemble(nn.ModuleList([net, copy.deepcopy(net)])) if other.ensemble else net
    if other.shuffled:
        model = Shuffled(net)
        y = model(x).argmax(1)
    if other.double:
        model, x = copy.deepcopy(net).double(), x.double()
    found = square(eps, queries=5, **other.options)(model, x, y)
    assert found.x.isfinite().all() and taken == asked


@pytest.mark.parametrize("shape", [(64,), (8, 8), (4, 4, 4)])
def test_samples_of_another_shape_than_the_first_layers_images(shape, monkeypatch):
    """The windows are those of the samples as the attack sees them."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 3),
    ).eval()  # fmt: skip
    x = torch.rand(16, *shape, generator=torch.Generator().manual_seed(0))
    y, attack = net(x).argmax(1), square(0.05, queries=300)
    found = attack(net, x, y)
    monkeypatch.setenv("EQUIPOISE_NATIVE", "0")
    expected = attack(net, x, y)
    assert torch.equal(found.success, expected.success) and torch.equal(found.evaluations, expected.evaluations)

"""The native kernels against PyTorch in float64, and what they leave to PyTorch."""

import copy
import random
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_networks import close, is_right, natively, network, points, shifted
from torch import Tensor, nn
from torch.nn.functional import linear

from equipoise import attacks, methods, nets
from equipoise.attacks import apgd_t, fab, square, udp
from equipoise.attacks.execution import frozen_model, value_and_gradient
from equipoise.core.errors import EquipoiseError, EquipoiseWarning
from equipoise.core.rng import Streams
from equipoise.kernels.native import NativeForward, compiler, layers
from equipoise.losses.objectives import margin
from equipoise.models import Ensemble, as_predictive
from equipoise.nets import Normalize

pgd = partial(attacks.pgd, start="zero", return_point="last")

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")


@given(
    channels=st.integers(1, 4),
    filters=st.integers(1, 20),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    stride=st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3), (3, 2)]),
    window=st.sampled_from([(2, 2), (2, 2), (3, 3), (1, 2), (3, 1)]),
    size=st.tuples(st.integers(5, 11), st.integers(5, 11)),
    follows=st.sampled_from(["", "relu", "pool", "relu pool", "pool relu", "leaky", "leaky pool", "pool leaky"]),
    bias=st.booleans(),
    batch=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_a_convolution_is_that_of_the_library(
    channels, filters, kernel, padding, stride, window, size, follows, bias, batch, seed
):
    padding = tuple(min(p, k - 1) for p, k in zip(padding, kernel, strict=True))
    sides = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(size, padding, kernel, stride, strict=True)]
    if "pool" in follows and any(side < w for side, w in zip(sides, window, strict=True)):
        follows = ""
    left = [side // w if "pool" in follows else side for side, w in zip(sides, window, strict=True)]
    parts = {"relu": nn.ReLU(), "pool": nn.MaxPool2d(window), "leaky": nn.LeakyReLU(0.2)}
    net = network(
        nn.Conv2d(channels, filters, kernel, stride, padding, bias=bias),
        *[parts[name] for name in follows.split()],
        nn.Flatten(),
        nn.Linear(filters * left[0] * left[1], 3),
        seed=seed,
    )
    assert is_right(net, points(batch, channels, *size, seed=seed))


NETS = {
    "lenet": lambda: nets.build("lenet", (1, 28, 28), classes=10, seed=0),
    "lenet, colour": lambda: nets.build("lenet", (3, 32, 32), classes=7, seed=0),
    "cnn4": lambda: nets.build("cnn4", (1, 28, 28), classes=10, seed=0),
    "normalised": lambda: nn.Sequential(
        Normalize([0.3, 0.4, 0.5], [0.2, 0.3, 0.4]), nets.build("lenet", (3, 16, 16), classes=3, seed=0)
    ),
    "dropout": lambda: nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.Dropout2d(0.5), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(180, 4)
    ),
    "three convolutions": lambda: nn.Sequential(
        nn.Conv2d(2, 9, 3, padding=1), nn.ReLU(), nn.Conv2d(9, 31, (1, 3)), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2),
        nn.Conv2d(31, 4, 3, padding=(2, 0)), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3 * 4, 2),
    ),
    "strides": lambda: nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 49, 100), nn.ReLU(), nn.Linear(100, 10),
    ),
    "large windows": lambda: nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.LeakyReLU(0.1), nn.MaxPool2d((3, 7)), nn.Conv2d(5, 6, 2, stride=(2, 1)),
        nn.Flatten(), nn.Linear(24, 4),
    ),
    "one row": lambda: nn.Sequential(
        nn.Conv2d(2, 3, (1, 3), padding=(0, 1)), nn.ReLU(), nn.Conv2d(3, 4, (1, 3), padding=(0, 1)), nn.Flatten(),
        nn.Linear(36, 3),
    ),
    "one pixel left": lambda: nn.Sequential(nn.Conv2d(1, 6, 8), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.Flatten()),
}  # fmt: skip
SHAPES = {
    "lenet": (1, 28, 28),
    "lenet, colour": (3, 32, 32),
    "cnn4": (1, 28, 28),
    "strides": (1, 28, 28),
    "large windows": (2, 15, 21),
    "normalised": (3, 16, 16),
    "three convolutions": (2, 8, 13),
    "one row": (2, 1, 9),
}


FOLDED = {
    "padding by name": lambda: conv(padding="same"),
    "many filters": lambda: nn.Sequential(nn.Conv2d(2, 40, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1440, 3)),
    "mean pooling": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    ),
    "mean of all pixels": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ),
    "logits are means": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ),
    "batch-norm": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), shifted(nn.BatchNorm2d(4)), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 2), shifted(nn.BatchNorm2d(6)), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(24, 3),
    ),
    "batch-norm after the rectifier": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), shifted(nn.BatchNorm2d(4)), nn.Conv2d(4, 6, 2), nn.ReLU(), nn.MaxPool2d(2),
        shifted(nn.BatchNorm2d(6)), nn.Flatten(), shifted(nn.BatchNorm1d(24)), nn.Linear(24, 3),
        shifted(nn.BatchNorm1d(3)),
    ),
    "batch-norm between linear layers": lambda: nn.Sequential(
        *conv()[:3], nn.Linear(144, 5), nn.ReLU(), shifted(nn.BatchNorm1d(5)), nn.Linear(5, 3)
    ),
    "a mean of features": lambda: Calls(
        lambda net, x: linear(net(x).relu().mean(1, keepdim=True), net[3].bias[:, None])
    ),
    "logits of a rectifier": lambda: Calls(lambda net, x: 1 - net(x).relu()),
    "batch-norm first": lambda: nn.Sequential(shifted(nn.BatchNorm2d(2)), *conv(padding=1)),
    "two rectifiers": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.LeakyReLU(0.5), nn.LeakyReLU(0.25), nn.Flatten(), nn.ReLU(), nn.Linear(144, 3)
    ),
    "arithmetic": lambda: Calls(lambda net, x: 10 * (0.5 - net[1:]((net[0](2 * x - 1) - 0.1) / 0.3)) + net[3].bias),
}  # fmt: skip


class Calls(nn.Module):
    """A function of a convolutional network and the input."""

    def __init__(self, function) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
        self.function = function

    def forward(self, x):
        return self.function(self.net, x)


@pytest.mark.filterwarnings("ignore:Using padding='same'", "ignore:Lazy modules")
@pytest.mark.parametrize("name", FOLDED)
def test_what_is_affine_is_folded_into_the_weights(name):
    net, x = FOLDED[name]().eval(), points(5, 2, 8, 8)
    with torch.no_grad():
        net(x)
    assert is_right(net, x)


@pytest.mark.parametrize("name", ["batch-norm after the rectifier", "logits are means", "arithmetic"])
def test_the_default_dtype_is_of_no_consequence(name):
    net, x = FOLDED[name]().eval(), points(5, 2, 8, 8)
    expected = natively(net, x)
    try:
        torch.set_default_dtype(torch.float64)
        found = natively(net, x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found[2] and torch.equal(found[0], expected[0])


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("batch", [1, 16, 37])
def test_whole_networks_are_those_of_the_library(name, batch):
    net = NETS[name]().eval()
    assert is_right(net, points(batch, *SHAPES.get(name, (1, 8, 8))))


def test_an_ensemble_is_computed_member_by_member():
    """Members may differ, and share weights: one takes the first's convolutions with a head of its own."""
    first = network(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(45, 4))
    second = network(*first[:4], nn.Linear(45, 6), nn.ReLU(), nn.Linear(6, 4), seed=1)
    members = [first, second, network(nn.Conv2d(1, 3, 5), nn.Flatten(), nn.Linear(48, 4), seed=2)]
    x = points(37, 1, 8, 8)
    predictive = Ensemble(members)
    with frozen_model(predictive, x) as draw:
        predict, at = draw(Streams.of(0, torch.arange(37))), x.clone().requires_grad_()
        logits = predict(at).logits
        grad = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
        (found,) = torch.autograd.grad(logits, at, grad)
        assert isinstance(predict, NativeForward) and predict.is_supported
        assert predict.network(x) is None, "whole climbs are of single networks"
    exact, there = [copy.deepcopy(member).double() for member in members], x.double().requires_grad_()
    expected = torch.stack([member(there) for member in exact])
    assert close(logits.detach(), expected.detach())
    assert close(found, torch.autograd.grad(expected, there, grad.double())[0])


def test_neither_place_nor_batch_nor_threads_change_a_bit():
    """Every sample has a lane of its own, which computes as the others do."""
    net, x = NETS["lenet"](), points(50, 1, 28, 28)
    grad = torch.randn(50, 10, generator=torch.Generator().manual_seed(1))
    logits, found, _ = natively(net, x, grad)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(2))
    for rows in (order, order[:7], order[7:8]):
        again = natively(net, x[rows], grad[rows])
        assert torch.equal(again[0], logits[rows]) and torch.equal(again[1], found[rows])
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            again = natively(net, x, grad)
            assert torch.equal(again[0], logits) and torch.equal(again[1], found)
    finally:
        torch.set_num_threads(threads)


def test_of_equal_pixels_the_first_counts_and_a_dead_one_gets_nothing():
    net = network(nn.Conv2d(1, 2, 1), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten())
    for parameter, value in zip(net.parameters(), (1.0, -0.5), strict=True):
        nn.init.constant_(parameter, value)
    x = torch.tensor([[0.7, 0.7], [0.7, 0.7], [0.5, 0.2], [0.1, 0.5]]).reshape(2, 1, 2, 2)
    logits, found, native = natively(net, x, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert native and torch.allclose(logits, torch.tensor([[0.2, 0.2], [0.0, 0.0]]))
    assert found.flatten(1).tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]


def test_what_is_not_a_number_stays_so():
    net, x = network(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)), points(3, 1, 4, 4)
    x[1, 0, 2, 3] = torch.nan
    logits, found, native = natively(net, x, torch.ones(3, 3))
    assert native and logits[1].isnan().all() and logits[[0, 2]].isfinite().all()
    assert found[[0, 2]].isfinite().all()


class Of(nn.Module):
    """A network that is a function of a convolution's logits and the input."""

    def __init__(self, function) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4))
        self.register_buffer("shift", torch.tensor([0.1]))
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def conv(*options, **more):
    return nn.Sequential(nn.Conv2d(2, 4, 3, *options, **more), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))


NOT_CHAINS = {
    "mirrored edges": lambda: conv(padding=1, padding_mode="reflect"),
    "overlapping pooling": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.MaxPool2d(3, 1), nn.Flatten(), nn.Linear(64, 3)
    ),
    "padded pooling": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.MaxPool2d(2, padding=1), nn.Flatten(), nn.Linear(64, 3)
    ),
    "pooling of what is left": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 2), nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(64, 3)
    ),
    "mean pooling before a convolution": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.AvgPool2d(2), nn.Conv2d(4, 3, 3), nn.Flatten()
    ),
    "sigmoid": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(144, 3)),
    "a dense network": lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 3)),
    "linear layers of pixels": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Linear(6, 2), nn.Flatten(), nn.Linear(48, 3)
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same'", "ignore:Lazy modules")
@pytest.mark.parametrize("name", NOT_CHAINS)
def test_what_the_kernels_do_not_know_is_left_to_the_library(name):
    net, x = NOT_CHAINS[name](), points(5, 2, 8, 8)
    with torch.no_grad():
        net(x)
    found = natively(net.eval(), x) if any(p.ndim > 2 for p in net.parameters()) else (net(x), None, False)
    assert not found[2] and torch.allclose(found[0], net(x), atol=1e-6)


def hooked(hidden, rest):
    if hidden.requires_grad:
        hidden.register_hook(lambda grad: 0 * grad)
    return rest(hidden)


def guarded(self):
    if not self.net[0]._backward_hooks:
        self.net[0].register_full_backward_hook(lambda module, grads, outputs: (0 * grads[0],))
    return self.net


@torch.no_grad()
def without_gradient(net, x):
    return net(x)


OWN = {
    "a shortcut around": lambda self, x: self.net(x) + x.mean((1, 2, 3))[:, None],
    "less its mean": lambda self, x: self.net(x - x.mean()),
    "noise of its own": lambda self, x: self.net(x + 0.01 * torch.randn(x.shape[1:])),
    "noise like a weight": lambda self, x: self.net(x + torch.randn_like(self.shift)),
    "an image": lambda self, x: self.net(x + torch.linspace(0, 1, 64).reshape(1, 8, 8)),
    "rounded": lambda self, x: self.net((8 * x).round() / 8),
    "no gradient": lambda self, x: self.net(x.data),
    "another order": lambda self, x: self.net(x.flip(0)).flip(0),
    "a hook on a gradient": lambda self, x: hooked(self.net[1](self.net[0](x)), self.net[2:]),
    "a hook on a layer": lambda self, x: guarded(self)(x),
    "blocked": lambda self, x: without_gradient(self.net, x),
    "a look at the values": lambda self, x: self.net(x) if self.net[0](x).max() > 0 else -self.net(x),
}


@pytest.mark.parametrize("name", OWN)
def test_a_network_of_ones_own_is_never_taken_for_another(name):
    net, x = Of(OWN[name]).eval(), points(5, 1, 8, 8)
    torch.manual_seed(0)
    expected = net(x)
    torch.manual_seed(0)
    with frozen_model(as_predictive(net), x) as draw:
        predict = draw(Streams.of(0, torch.arange(5)))
        found = predict(x)
        assert not predict.is_supported
    expected = expected if isinstance(expected, Tensor) else expected.logits
    expected = expected.detach()
    assert torch.allclose(found.logits[0], expected, atol=1e-6), "and the random state is as it was"


def test_a_network_that_looks_at_the_size_of_the_batch_is_left_to_the_library():
    net = Of(lambda self, x: self.net(x * (len(x) / 5))).eval()
    with frozen_model(as_predictive(net), points(5, 1, 8, 8)) as draw:
        predict = draw(Streams.of(0, torch.arange(5)))
        for batch in (5, 2, 1):
            x = points(batch, 1, 8, 8)
            assert torch.allclose(predict(x).logits[0], net(x), atol=1e-6)


@pytest.mark.parametrize("name", ["a hook on a gradient", "a hook on a layer"])
def test_gradients_that_a_network_hides_are_found_as_it_shows_them(name):
    """Else a defence that masks its gradients would not be seen to."""
    net, x = Of(OWN[name]).eval(), points(5, 1, 8, 8)
    found = pgd(0.1, 0.02, 3)(net, x, net(x).argmax(1))
    assert found.zero_gradients.tolist() == [3] * 5


def test_a_network_without_gradient_is_refused():
    net, x = Of(OWN["blocked"]).eval(), points(5, 1, 8, 8)
    with pytest.raises(EquipoiseError, match="the model's output has no gradient"):
        pgd(0.1, 0.02, 3)(net, x, net(x).argmax(1))


def test_a_network_that_changes_its_mind_is_followed():
    """A way is not remembered but seen anew in every batch: here it is drawn by a generator that nobody knows of."""
    dice = random.Random(0)
    net = Of(lambda self, x: self.net(x * 1) if dice.random() < 0.5 else self.net(x * 0.5)).eval()
    x = points(5, 1, 8, 8)
    with frozen_model(as_predictive(net), x) as draw:
        predict = draw(Streams.of(0, torch.arange(5)))
        found = [predict(x).logits[0] for _ in range(12)]
        assert predict.is_supported
    ways = [net.net(x), net.net(x / 2)]
    seen = [[torch.allclose(one, way, atol=1e-5) for way in ways] for one in found]
    assert all(sum(row) == 1 for row in seen) and len({tuple(row) for row in seen}) == 2


@pytest.mark.parametrize("attack", [fab(0.1, steps=12), square(0.05, queries=100)])
def test_a_search_looks_at_the_network_once(attack):
    """Of the calls with a single sample there are only those of the checks, and one for each search."""
    net, x = NETS["cnn4"](), points(6, 1, 28, 28)
    looks = []
    net.register_forward_pre_hook(lambda module, args: looks.append(len(args[0])))
    attack(net, x, net(x).argmax(1))
    assert looks.count(1) < 12 and len(looks) < 50


def test_weights_that_learn_are_left_to_the_library():
    """The kernels hold weights still: of one that is not frozen a gradient may be asked for."""
    net, x = NETS["cnn4"](), points(3, 1, 28, 28)
    predict = as_predictive(net).draw()
    way = NativeForward(predict, predict, dict(net.named_parameters()))
    loss = way(x).logits.sum()
    assert not way.is_supported and loss.requires_grad


def test_in_train_mode_buffers_are_not_touched_by_a_look():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2)).train()
    pgd(0.1, 0.05, 4, mode="train")(net, points(6, 1, 8, 8), torch.zeros(6, dtype=torch.int64))
    assert net[1].num_batches_tracked == 4


@pytest.mark.parametrize("attack", [pgd(0.1, steps=5), udp(0.2, 0.02, 10), apgd_t(0.1, steps=10), fab(0.1, steps=10)])
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_attacks_are_those_of_the_library(attack, precision, monkeypatch):
    """bf16 is float32 there. A sign of a gradient near 0 may differ, and with it one sample's way."""
    net, x = NETS["lenet"](), points(40, 1, 28, 28)
    y = net(x).argmax(1)
    mine = replace(attack, precision=precision)(net, x, y)
    monkeypatch.setenv("EQUIPOISE_NATIVE", "0")
    theirs = attack(net, x, y)
    assert (mine.success == theirs.success).float().mean() >= 0.95
    alike = ((mine.x - theirs.x).abs() < 1e-4).flatten(1).float().mean(1)
    assert alike.median() > 0.99


def test_square_confirms_what_it_takes_for_a_success():
    net, x = NETS["cnn4"](), points(20, 1, 28, 28)
    found = square(0.3, queries=200)(net, x, net(x).argmax(1))
    assert torch.equal(found.prediction, net(found.x).argmax(1))


def test_training_climbs_natively_and_learns_the_same():
    net, x = NETS["cnn4"](), points(32, 1, 28, 28)
    y = net(x).argmax(1)
    method = methods.udp(0.2, 0.02, 5)
    streams = Streams.of(0, torch.arange(32))
    (found,) = method.points(as_predictive(net), x, y, streams)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQUIPOISE_NATIVE", "0")
        (expected,) = method.points(as_predictive(net), x, y, streams)
    assert ((found - expected).abs() < 1e-5).flatten(1).float().mean(1).median() > 0.99


def test_large_networks_and_images_are_left_to_the_library():
    wide = network(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4000), nn.Linear(4000, 3))
    high = network(nn.Conv2d(3, 16, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 95 * 95, 2))
    assert not natively(wide, points(2, 1, 8, 8))[2] and not natively(high, points(2, 3, 192, 192))[2]


def test_the_value_and_the_gradient_of_an_objective():
    net, x = NETS["lenet"](), points(20, 1, 28, 28)
    y = torch.arange(20) % 10
    with frozen_model(as_predictive(net), x) as draw:
        value, gradient, here = value_and_gradient(margin, draw(Streams.of(0, torch.arange(20))), x, None, y)
    exact, at = copy.deepcopy(net).double(), x.double().requires_grad_()
    scores = exact(at)
    own = scores.gather(1, y[:, None])[:, 0]
    gap = scores.scatter(1, y[:, None], -torch.inf).amax(1) - own
    assert close(value, gap.detach()) and close(here.logits[0], scores.detach())
    assert close(gradient, torch.autograd.grad(gap.sum(), at)[0])


def test_kernels_that_find_something_else_are_not_used(monkeypatch):
    logits = layers.NativeLayers.logits

    def wrong(self, x, traced):
        found, *rest = logits(self, x, traced)
        return found + 0.1 * found.abs().max(), *rest

    monkeypatch.setattr(layers.NativeLayers, "logits", wrong)
    net, x = NETS["cnn4"](), points(4, 1, 28, 28)
    with pytest.warns(EquipoiseWarning, match="find other logits than PyTorch"):
        found, _, native = natively(net, x)
    assert not native and torch.allclose(found, net(x), atol=1e-6)


def test_every_tile_of_the_kernels_is_reached():
    """All numbers of filters and of pixels of a row for which there is a case of its own."""
    for filters, columns in product((1, 2, 3, 4, 5, 6, 7, 8, 9), range(1, 10)):
        net = network(nn.Conv2d(1, filters, (1, 2)), nn.Flatten(), nn.Linear(filters * columns, 2))
        assert is_right(net, points(3, 1, 1, columns + 1)), (filters, columns)


def test_a_logit_that_is_a_small_difference_of_large_numbers_is_no_disagreement():
    """At the decision boundary of a linear model rounding is as large as the logit."""
    net = network(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2, bias=False))
    x = points(2, 1, 8, 8)
    with torch.no_grad():
        net[2].weight *= 100
        h = net[1](net[0](x)).double()
        net[2].weight -= (net[2].weight.double() @ h.T @ torch.linalg.pinv(h).T).float()  # zero at both samples
        assert net(x).abs().max() < 1e-2
    assert natively(net, x)[2]

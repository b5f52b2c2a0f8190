"""Training steps on native layers: gradients of the weights against float64, and what is left to PyTorch."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_networks import BLOCKS, Residual, residual_network
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from equipoise import methods, nets
from equipoise.core.rng import Streams
from equipoise.kernels.native import compiler
from equipoise.models import Ensemble, as_predictive, live

pytestmark = [pytest.mark.unchecked, pytest.mark.skipif(compiler() is None, reason="there is no C compiler")]


def batch(*shape: int, classes: int = 4, n: int = 45) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, *shape, generator=generator), torch.randint(classes, (n,), generator=generator)


def logits_of(net: nn.Module, x: Tensor) -> tuple[Tensor, bool]:
    """The live logits, and whether it was the kernels that found them."""
    logits = live(as_predictive(net), Streams.of(0, torch.arange(len(x))))(x).logits
    node, names = logits.grad_fn, []
    while node is not None:
        names.append(type(node).__name__)
        node = node.next_functions[0][0] if node.next_functions else None
    return logits[0], any("TrainingFunction" in name for name in names)


def gradients(net: nn.Module, x: Tensor, y: Tensor, natively: bool) -> tuple[list[Tensor], bool]:
    """The gradients with respect to input and parameters, and whether it was the kernels that found them."""
    x = x.clone().requires_grad_()
    logits, native = logits_of(net, x) if natively else (net(x), False)
    loss = nn.functional.cross_entropy(logits, y)
    return list(torch.autograd.grad(loss, [x, *(p for p in net.parameters() if p.requires_grad)])), native


def agree(found: list[Tensor], exact: list[Tensor]) -> bool:
    return all(
        torch.allclose(one.double(), other, rtol=0, atol=2e-5 * float(other.abs().max()) + 1e-9)
        for one, other in zip(found, exact, strict=True)
    )


@given(
    channels=st.integers(1, 3),
    filters=st.tuples(st.integers(1, 9), st.integers(1, 17)),
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 5)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    stride=st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2)]),
    pool=st.sampled_from([(1, 1), (2, 2), (3, 2)]),
    slope=st.sampled_from([0.0, 0.1]),
    bias=st.booleans(),
    n=st.integers(32, 70),
    seed=st.integers(0, 100),
)
@settings(max_examples=80, deadline=None)
def test_gradients_of_the_weights_are_those_of_float64(
    channels, filters, kernel, padding, stride, pool, slope, bias, n, seed
):
    padding = tuple(min(p, k - 1) for p, k in zip(padding, kernel, strict=True))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Conv2d(channels, filters[0], kernel, stride, padding, bias=bias), nn.LeakyReLU(slope)]
        outputs = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip((12, 11), padding, kernel, stride, strict=True)]
        layers += [nn.MaxPool2d(pool)] if pool != (1, 1) and min(outputs) >= 3 else []
        layers += [nn.Conv2d(filters[0], filters[1], 3, padding=1, bias=bias), nn.ReLU(), nn.Flatten()]
        side = nn.Sequential(*layers)(torch.zeros(1, channels, 12, 11)).shape[1]
        net = nn.Sequential(*layers, nn.Linear(side, 6), nn.ReLU(), nn.Linear(6, 4, bias=bias))
    x, y = batch(channels, 12, 11, n=n)
    found, native = gradients(net, x, y, natively=True)
    exact, _ = gradients(copy.deepcopy(net).double(), x.double(), y, natively=False)
    assert native and agree(found, exact)


@given(
    kinds=st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=3),
    channels=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    flat=st.booleans(),
    n=st.integers(32, 70),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_gradients_of_residual_networks_are_those_of_float64(kinds, channels, flat, n, seed):
    try:
        net = residual_network(kinds, channels, (2, 9, 8), flat, seed)
    except RuntimeError:  # its images are too small for a window
        return
    x, y = batch(2, 9, 8, n=n)
    found, native = gradients(net, x, y, natively=True)
    exact, _ = gradients(copy.deepcopy(net).double(), x.double(), y, natively=False)
    assert native and agree(found, exact)


def test_gradients_pass_through_what_is_folded_into_the_weights():
    """Batch-norm with running statistics learns too, and so do the layers before and behind it."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.AvgPool2d(2), nn.BatchNorm2d(5), nn.Flatten(),
        nn.Linear(125, 4), nn.BatchNorm1d(4),
    )  # fmt: skip
    net(torch.randn(64, 2, 12, 12))
    for norm in (net[1], net[4], net[7]):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    x, y = batch(2, 12, 12, n=40)
    found, native = gradients(net.eval(), x, y, natively=True)
    exact, _ = gradients(copy.deepcopy(net).double(), x.double(), y, natively=False)
    assert native and agree(found, exact)


def test_the_members_of_an_ensemble_learn_together():
    members, (x, y) = [convolutional(), convolutional()], batch(1, 28, 28)
    ensemble = Ensemble(members)
    prediction = live(ensemble, Streams.of(0, torch.arange(len(x))))(x)
    loss = -prediction.log_probs.gather(1, y[:, None]).mean()
    loss.backward()
    exact = [copy.deepcopy(member).double() for member in members]
    mean = torch.stack([member(x.double()).softmax(1) for member in exact]).mean(0)
    expected = torch.autograd.grad(-mean.log().gather(1, y[:, None]).mean(), [p for m in exact for p in m.parameters()])
    assert "TrainingFunction" in str(prediction.logits.grad_fn.next_functions)
    assert agree([p.grad for m in members for p in m.parameters()], list(expected))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(threads):
    net, (x, y) = nets.build("lenet", (1, 28, 28), 4), batch(1, 28, 28, n=77)
    expected, native = gradients(net, x, y, natively=True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found, _ = gradients(net, x, y, natively=True)
    finally:
        torch.set_num_threads(before)
    assert native and agree(found, [gradient.double() for gradient in expected])
    convolutions = [i + 1 for i, p in enumerate(net.parameters()) if p.ndim == 4]
    assert all(torch.equal(found[i], expected[i]) for i in [0, *convolutions])


def test_a_training_descends_as_in_pytorch(monkeypatch):
    """Ten steps of UDP from the same weights: the losses agree, and so do the weights."""
    x, y = batch(1, 28, 28, n=64)
    outcomes = []
    for setting in ("1", "0"):
        monkeypatch.setenv("EQUIPOISE_NATIVE", setting)
        net = nets.build("lenet", (1, 28, 28), 4, seed=0)
        optimizer, method, losses = torch.optim.SGD(net.parameters(), 0.05, 0.9), methods.udp(0.1, 0.02, 5), []
        for step in range(10):
            optimizer.zero_grad()
            loss = method.loss(net, x, y, step=step)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        outcomes.append((losses, [p.detach() for p in net.parameters()]))
    (losses, weights), (expected, in_pytorch) = outcomes
    assert losses == pytest.approx(expected, rel=1e-4) and losses[-1] < losses[0]
    for one, other in zip(weights, in_pytorch, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=0.02 * float(other.abs().max()))


def test_a_frozen_weight_gets_no_gradient():
    net, (x, y) = nets.build("lenet", (1, 28, 28), 4), batch(1, 28, 28)
    next(net.parameters()).requires_grad_(False)
    found, native = gradients(net, x, y, natively=True)
    exact, _ = gradients(copy.deepcopy(net).double(), x.double(), y, natively=False)
    assert native and agree(found, exact)


def test_weights_changed_before_the_backward_pass_are_an_error():
    net, (x, _) = nets.build("lenet", (1, 28, 28), 4), batch(1, 28, 28)
    logits, native = logits_of(net, x)
    with torch.no_grad():
        next(net.parameters()).add_(1)
    assert native
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()


class Remembers(nn.Module):
    """Keeps its features for a penalty."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.net[:-1](x)
        return self.net[-1](self.features)


class Counts(nn.Module):
    """Keeps what it has seen in a list."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.seen = net, []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return self.net(x)


def convolutional() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 4))


def hooked() -> nn.Module:
    net = convolutional()
    net.sizes = []
    net[0].register_forward_hook(lambda layer, args, output: net.sizes.append(len(output)))
    return net


OTHERS = {
    "batch-norm": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), *convolutional()[1:]),
    "dropout": lambda: nn.Sequential(*convolutional()[:3], nn.Dropout(0.5), convolutional()[3]),
    "a hook": hooked,
    "remembers": lambda: Remembers(convolutional()),
    "counts": lambda: Counts(convolutional()),
    "a computed weight": lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(1, 4, 3)), *convolutional()[1:]),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 4)),
    "float64": lambda: convolutional().double(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_network_is_left_to_pytorch_and_sees_the_batch_once(name):
    torch.manual_seed(0)
    net, (x, y) = OTHERS[name](), batch(1, 28, 28)
    x = x.double() if name == "float64" else x
    reference = copy.deepcopy(net)
    torch.manual_seed(1)
    found, native = gradients(net, x, y, natively=True)
    if name == "remembers":
        assert len(net.features) == len(x)
    if name in ("counts", "a hook"):
        assert (net.seen if name == "counts" else net.sizes) == [len(x)]
    torch.manual_seed(1)
    expected, _ = gradients(reference, x, y, natively=False)
    assert not native and all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    if name == "batch-norm":
        assert torch.equal(net[1].running_mean, reference[1].running_mean)


class Keeps(nn.Module):
    """Keeps its features under a key of a dictionary, as hooks and penalties do."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.kept = convolutional(), {}

    def forward(self, x: Tensor) -> Tensor:
        self.kept["features"] = self.net[:-1](x)
        return self.net[-1](self.kept["features"])


class Averages(nn.Module):
    """A running mean of its own, in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = convolutional()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean())
        self.calls += 1
        return self.net(x)


class Divides(nn.Module):
    """Looks at how many samples there are."""

    def __init__(self) -> None:
        super().__init__()
        self.net = convolutional()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x / len(x) if len(x) > 1 else x)


class Insists(nn.Module):
    """Takes 40 and 50 samples, and no few."""

    def __init__(self) -> None:
        super().__init__()
        self.net = convolutional()

    def forward(self, x: Tensor) -> Tensor:
        assert len(x) > 3
        return self.net(x)


class Shifts(nn.Module):
    """Changes its input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = convolutional()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x.sub_(0.5)
        return self.net(x)


@pytest.mark.parametrize(
    "make",
    [
        Keeps,
        Averages,
        Divides,
        Insists,
        Shifts,
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(1, 4, 3)), *convolutional()[1:]),
    ],
    ids=["keeps", "averages", "divides", "insists", "shifts", "spectral norm"],
)
def test_a_network_that_does_more_than_compute_does_it_once_for_each_batch(make):
    """Two steps, as it would take without a kernel: logits, gradients, buffers, and what it has kept."""
    torch.manual_seed(0)
    net = make()
    reference = copy.deepcopy(net)
    for n in (40, 50):
        (x, y), (again, _) = batch(1, 28, 28, n=n), batch(1, 28, 28, n=n)
        found, native = logits_of(net, x)
        expected = reference(again)
        assert not native and torch.allclose(found, expected, atol=1e-5) and torch.equal(x, again)
        nn.functional.cross_entropy(found, y).backward()
        nn.functional.cross_entropy(expected, y).backward()
        for one, other in zip(net.parameters(), reference.parameters(), strict=True):
            assert torch.allclose(one.grad, other.grad, atol=1e-6)
        for one, other in zip(net.buffers(), reference.buffers(), strict=True):
            assert torch.allclose(one, other, atol=1e-6)
        if isinstance(net, Keeps):
            assert len(net.kept["features"]) == n


def test_a_normalisation_before_the_first_layer_is_native_too():
    net, (x, y) = nn.Sequential(nets.Normalize((0.3,), (0.4,)), convolutional()), batch(1, 28, 28)
    found, native = gradients(net, x, y, natively=True)
    exact, _ = gradients(copy.deepcopy(net).double(), x.double(), y, natively=False)
    assert native and agree(found, exact)


def test_a_gradient_can_be_differentiated_again():
    """A penalty on the gradient at the input, as of the network itself."""
    torch.manual_seed(0)
    shortcut = Residual(nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2), nn.Identity(), "linear")
    layers = convolutional()[0], nn.LeakyReLU(0.1), shortcut, nn.LeakyReLU(0.1), *convolutional()[2:]
    net, (x, y) = nn.Sequential(*layers), batch(1, 28, 28)
    outcomes = []
    for natively in (True, False):
        at = x.clone().requires_grad_()
        logits, native = logits_of(net, at) if natively else (net(at), False)
        assert native == natively
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y), at, create_graph=True)
        outcomes.append(torch.autograd.grad(slope.square().sum(), list(net.parameters())[:-1]))
    for one, other in zip(*outcomes, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_default_dtype_is_of_no_consequence(threads):
    net, (x, y) = convolutional(), batch(1, 28, 28, n=70)
    expected, _ = gradients(net, x, y, natively=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float64)
        found, native = gradients(net, x, y, natively=True)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(before)
    assert native and agree(found, [gradient.double() for gradient in expected])


def test_a_hook_that_comes_after_the_prediction_function_sees_the_batch_once():
    net, (x, _), seen = convolutional(), batch(1, 28, 28), []
    predict = live(as_predictive(net), Streams.of(0, torch.arange(len(x))))
    predict(x)
    net[0].register_forward_hook(lambda layer, args, output: seen.append(len(output)))
    predict(x)
    assert seen == [len(x)]


def test_few_samples_and_other_contexts_are_left_to_pytorch():
    net, (x, _) = convolutional(), batch(1, 28, 28)
    assert logits_of(net, x)[1]
    assert not logits_of(net, x[:31])[1]
    with torch.autocast("cpu", torch.bfloat16):
        assert not logits_of(net, x)[1]
    with torch.no_grad():
        assert not logits_of(net, x)[1]


def test_a_change_of_behaviour_between_calls_is_seen():
    """Whatever the network does at this call: here it depends on a flag."""

    class Switched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.doubled = convolutional(), False

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x + x) if self.doubled else self.net(x)

    net, (x, _) = Switched(), batch(1, 28, 28)
    assert torch.allclose(logits_of(net, x)[0], net(x), atol=1e-5)
    net.doubled = True
    assert torch.allclose(logits_of(net, x)[0], net(x), atol=1e-5)

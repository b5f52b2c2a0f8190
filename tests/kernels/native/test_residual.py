"""Residual networks, groups and dilations in the native kernels, against PyTorch in float64."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_networks import BLOCKS, close, is_right, natively, network, norm, points, residual_network, shifted
from torch import Tensor, nn

from equipoise import attacks, nets
from equipoise.attacks import apgd_t, udp
from equipoise.kernels.native import compiler

pytestmark = [pytest.mark.unchecked, pytest.mark.skipif(compiler() is None, reason="there is no C compiler")]


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("flat", [True, False])
def test_every_block_is_that_of_the_library(kind, flat):
    net = residual_network([kind], [6, 4], (2, 9, 9), flat, seed=1)
    assert is_right(net, points(19, 2, 9, 9))


@given(
    kinds=st.lists(st.sampled_from(BLOCKS), min_size=2, max_size=4),
    channels=st.lists(st.integers(1, 9), min_size=5, max_size=5),
    size=st.integers(8, 13),
    flat=st.booleans(),
    batch=st.integers(1, 20),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_blocks_in_any_order_are_those_of_the_library(kinds, channels, size, flat, batch, seed):
    try:
        net = residual_network(kinds, channels, (2, size, size), flat, seed)
    except RuntimeError:  # its images are too small for a window
        return
    assert is_right(net, points(batch, 2, size, size, seed=seed))


@given(
    groups=st.integers(1, 4),
    inputs=st.integers(1, 3),
    filters=st.integers(1, 9),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    dilation=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    stride=st.sampled_from([(1, 1), (2, 2), (1, 3), (3, 2)]),
    follows=st.sampled_from(["", "relu", "pool", "leaky pool"]),
    batch=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_a_convolution_with_groups_and_dilation_is_that_of_the_library(
    groups, inputs, filters, kernel, padding, dilation, stride, follows, batch, seed
):
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    padding = tuple(min(p, e - 1) for p, e in zip(padding, extent, strict=True))
    layers: list[nn.Module] = [nn.Conv2d(groups * inputs, groups * filters, kernel, stride, padding, dilation, groups)]
    outputs = nn.Sequential(*layers)(torch.zeros(1, groups * inputs, 14, 13)).shape[2:]
    if "pool" not in follows or min(outputs) >= 2:
        parts = {"relu": nn.ReLU(), "pool": nn.MaxPool2d(2), "leaky": nn.LeakyReLU(0.2)}
        layers += [parts[name] for name in follows.split()]
    features = nn.Sequential(*layers, nn.Flatten())(torch.zeros(1, groups * inputs, 14, 13)).shape[1]
    net = network(*layers, nn.Flatten(), nn.Linear(features, 3), seed=seed)
    assert is_right(net, points(batch, groups * inputs, 14, 13, seed=seed))


class Shared(nn.Module):
    """Several readers of the input, of features, and of logits."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.point = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 1)
        self.norm, self.features = norm(2), shifted(nn.BatchNorm1d(192))
        self.one, self.two, self.out = nn.Linear(192, 20), nn.Linear(20, 20), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        normed = self.norm(x) if "norm" in self.kind else x
        h = self.conv(normed).relu() + self.point(x if "raw" in self.kind else normed)
        h = h.flatten(1)
        if "features" in self.kind:
            h = self.features(h).relu() + h
        h = self.one(h)
        h = h + self.two(h.relu())
        return self.out(h) + h[:, :1] if "part" in self.kind else self.out(h) + self.out(h.relu())


@pytest.mark.parametrize("kind", ["plain", "norm", "norm raw"])
def test_input_and_features_may_have_several_readers(kind):
    torch.manual_seed(2)
    assert is_right(Shared(kind).eval(), points(21, 2, 8, 8))


class Flat(nn.Module):
    """Features that a padded convolution and a linear layer read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.again, self.out = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 3, padding=1), nn.Linear(108, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        h = self.conv(x).relu()
        return self.out(h.flatten(1)) + self.out(self.again(h).flatten(1))


@pytest.mark.parametrize("net", [Flat(), Shared("part"), Shared("features")], ids=["flat", "part", "features"])
def test_what_the_kernels_do_not_know_is_left_to_the_library(net):
    x = points(5, 2, 8, 8)
    found, _, native = natively(net.eval(), x)
    assert not native and torch.allclose(found, net(x), atol=1e-6)


FOLDED = {
    "pooling twice": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.MaxPool2d(2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    ),
    "pooling before batch-norm before padding": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), shifted(nn.BatchNorm2d(4)), nn.Conv2d(4, 3, 3, padding=1), nn.Flatten(),
        nn.Linear(27, 3),
    ),
    "batch-norm before padding": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), shifted(nn.BatchNorm2d(4)), nn.Conv2d(4, 3, 3, padding=1), nn.Flatten(), nn.Linear(108, 3)
    ),
    "batch-norm before groups": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), shifted(nn.BatchNorm2d(4)), nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(),
        shifted(nn.BatchNorm1d(96)), nn.Linear(96, 3),
    ),
    "batch-norm of features of images": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Flatten(), shifted(nn.BatchNorm1d(144)), nn.ReLU(), nn.Linear(144, 3)
    ),
    "a convolution of one pixel": lambda: nn.Sequential(
        nn.Conv2d(2, 6, 8), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=3), nn.ReLU(), nn.Conv2d(6, 4, 1, groups=2),
        nn.Flatten(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDED)
def test_what_finds_no_layer_gets_one_of_its_own(name):
    torch.manual_seed(0)
    assert is_right(FOLDED[name]().eval(), points(20, 2, 8, 8))


@pytest.mark.parametrize(
    ("name", "options"), [("resnet20", {}), ("wide-resnet", {"depth": 10, "widen": 1})], ids=["resnet20", "wide"]
)
def test_networks_of_the_registry(name, options):
    """In a deep network rounding turns a ReLU of a sample now and then, in PyTorch too."""
    net, x = nets.build(name, (3, 16, 16), classes=5, seed=0, **options).eval(), points(33, 3, 16, 16)
    torch.manual_seed(0)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.3)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.normal_(layer.bias, std=0.3)
    exact, at = copy.deepcopy(net).double(), x.double().requires_grad_()
    expected, grad = exact(at), torch.randn(33, 5, generator=torch.Generator().manual_seed(1))
    (slope,) = torch.autograd.grad(expected, at, grad.double())
    logits, found, native = natively(net, x, grad)
    assert native and close(logits, expected.detach())
    assert sum(close(one, exact) for one, exact in zip(found, slope, strict=True)) >= 32


@pytest.mark.parametrize("attack", [attacks.pgd(0.1, steps=5), udp(0.2, 0.02, 10), apgd_t(0.1, steps=10)], ids=str)
def test_climbs_are_those_of_the_library(attack, monkeypatch):
    """A sign of a gradient near 0 may differ, and with it one sample's way."""
    net, x = (
        residual_network(["pre-activated", "projection", "groups"], [5, 6, 4, 4], (2, 11, 9), False, 0),
        points(40, 2, 11, 9),
    )
    y = net(x).argmax(1)
    found = attack(net, x, y)
    monkeypatch.setenv("EQUIPOISE_NATIVE", "0")
    expected = attack(net, x, y)
    assert (found.success == expected.success).float().mean() >= 0.95
    alike = ((found.x - expected.x).abs() < 1e-4).flatten(1).float().mean(1)
    assert alike.median() > 0.99 and (found.x != x).any()


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_goes_where_it_goes_in_pytorch(number):
    """Groups, shortcuts and layers of one's own mix no channels."""
    net = nn.Sequential(
        conv := nn.Conv2d(4, 4, 1, groups=4, bias=False), nn.ReLU(), norm(4), nn.ReLU(),
        nn.Conv2d(4, 4, (1, 3), padding=(0, 2), dilation=(1, 2), groups=2, bias=False), nn.ReLU(), nn.Flatten(),
    ).eval()  # fmt: skip
    nn.init.constant_(conv.weight, 1.0)
    x = points(3, 4, 1, 5)
    x[1, 2, 0, 1] = number
    expected, (found, _, native) = net(x), natively(net, x)
    assert native and torch.allclose(found, expected, atol=1e-6, equal_nan=True)
    assert torch.isfinite(found[1, :10]).all()

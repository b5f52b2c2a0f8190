"""Networks with constants that are no weights, such as frozen masks of dropout, in the native kernels."""

import copy

import pytest
import torch
from native_networks import close, natively, points
from torch import Tensor, nn

from equipoise import attacks
from equipoise.attacks.execution import frozen_model
from equipoise.core.rng import Streams
from equipoise.core.types import Predictive
from equipoise.kernels.native import NativeForward, compiler
from equipoise.models import MonteCarloDropout

pytestmark = [pytest.mark.unchecked, pytest.mark.skipif(compiler() is None, reason="there is no C compiler")]


def dropout_network(*first: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 5, 3), nn.ReLU(), *first, nn.Conv2d(5, 7, 3), nn.ReLU(), nn.Dropout2d(0.3), nn.MaxPool2d(2)
    return nn.Sequential(
        *layers, nn.Dropout(0.4), nn.Flatten(), nn.Linear(63, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 3)
    ).eval()


def members(predictive: Predictive, x: Tensor, mode: str = "eval") -> tuple[Tensor, Tensor, bool]:
    """The logits of all members, the gradient of their sum along a direction, and whether the kernels found them."""
    with frozen_model(predictive, x, mode) as draw:
        predict, at = draw(Streams.of(3, torch.arange(len(x)))), x.clone().requires_grad_()
        logits = predict(at).logits
        grad = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
        (found,) = torch.autograd.grad(logits, at, grad.to(x.dtype))
        return logits.detach(), found, isinstance(predict, NativeForward) and predict.is_supported


@pytest.mark.parametrize("first", [[], [nn.Dropout2d(0.5)], [nn.Dropout2d(0.0)]], ids=["none", "channels", "no one"])
def test_frozen_masks_are_folded_into_the_weights(first):
    net, x = dropout_network(*first), points(21, 1, 10, 10)
    logits, found, native = members(MonteCarloDropout(net, 4), x)
    exact, slope, _ = members(MonteCarloDropout(copy.deepcopy(net).double(), 4), x.double())
    assert native and close(logits, exact) and close(found, slope)
    assert (logits.std(0) > 0.01).any(), "the members differ"


@pytest.mark.parametrize(("first", "mode"), [([], "train"), ([nn.Dropout(0.5)], "eval")], ids=["samples", "pixels"])
def test_masks_of_samples_and_of_pixels_are_left_to_the_library(first, mode):
    net, x = dropout_network(*first), points(21, 1, 10, 10)
    logits, found, native = members(MonteCarloDropout(net, 4), x, mode)
    exact, slope, _ = members(MonteCarloDropout(copy.deepcopy(net).double(), 4), x.double(), mode)
    assert not native and close(logits, exact) and close(found, slope)


@pytest.mark.parametrize("resample", [False, True])
def test_attacks_on_dropout_are_those_of_the_library(resample, monkeypatch):
    """A sign of a gradient near 0 may differ, and with it one sample's way."""
    predictive, x = MonteCarloDropout(dropout_network(), 3), points(40, 1, 10, 10)
    y = predictive.module(x).argmax(1)
    attack = attacks.pgd(0.1, 0.02, 8, resample=resample)
    found = attack(predictive, x, y)
    monkeypatch.setenv("EQUIPOISE_NATIVE", "0")
    expected = attack(predictive, x, y)
    assert (found.success == expected.success).float().mean() >= 0.95
    alike = ((found.x - expected.x).abs() < 1e-5).flatten(1).all(1)
    assert alike.float().mean() >= 0.9 and (found.x != x).any()


class Scaled(nn.Module):
    """A network with constants that are not registered."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(320, 3))
        self.kept = [torch.tensor([0.3]), torch.rand(3)]

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.net(x - self.kept[0]) * self.kept[1]


def test_constants_that_are_not_registered_are_constants_too():
    net, x = Scaled().eval(), points(21, 1, 10, 10)
    logits, _, native = natively(net, x)
    assert native and torch.allclose(logits, net(x), atol=1e-5)


def test_a_constant_that_changes_is_seen_to():
    net, x = Scaled().eval(), points(21, 1, 10, 10)
    with frozen_model(MonteCarloDropout(nn.Sequential(net, nn.Dropout(0.0)), 1), x) as draw:
        predict = draw(Streams.of(0, torch.arange(21)))
        before = predict(x).logits[0]
        assert torch.allclose(before, net(x), atol=1e-5)
        net.kept[1].mul_(2)
        after = predict(x).logits[0]
        assert predict.is_supported and torch.allclose(after, 2 * before, atol=1e-5)


class Noisy(nn.Module):
    """Draws into the same tensor in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Scaled()
        self.noise = [torch.zeros(3)]

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.net(x) + torch.randn(3, out=self.noise[0])


def test_noise_is_no_constant_wherever_it_lies():
    net, x = Noisy().eval(), points(21, 1, 10, 10)
    torch.manual_seed(5)
    expected = net(x)
    torch.manual_seed(5)
    logits, _, native = natively(net, x)
    assert not native and torch.allclose(logits, expected, atol=1e-6), "and the random state is as it was"

"""What certificates refuse, and what they leave as it was."""

import copy
import math

import pytest
import torch
from bounded_nets import global_seed, points
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.bounds.layers import Affine
from equipoise.certified import bounds, certified, certified_margin, certified_radius, translate
from equipoise.core.errors import EquipoiseError
from equipoise.geometry import Ball, Box
from equipoise.models import Ensemble, MonteCarloDropout, Single
from equipoise.nets import MLP

pytestmark = pytest.mark.unchecked


def test_the_model_and_the_random_state_stay_as_they_were():
    net = global_seed(
        lambda: nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 3))
    )
    net[1].eval()
    before, modes, random = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()], torch.get_rng_state()
    found = certified_margin(net, points(4, 6), None, Ball("l2", 0.1))
    assert not found.requires_grad and all(p.grad is None for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(random, torch.get_rng_state()) and modes == [m.training for m in net.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


class Function(nn.Module):
    """A function as a network, followed by a linear layer."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.last = function, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(x))


def changed_through_a_view(x: Tensor) -> Tensor:
    y = x + 1
    y.view(len(y), 2, 3).relu_()
    return y


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Softplus())), "a Softplus layer at '1.0': softplus"),
        (nn.Sequential(nn.Linear(6, 6), nn.ELU(0.5), nn.Linear(6, 3)), "an? ELU layer at '1': elu"),
        (nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, track_running_stats=False)), "samples depend on each other"),
        (nn.Sequential(nn.Linear(6, 3), nn.Softmax(1)), "returns probabilities"),
        (nn.Sequential(nn.Linear(6, 3), nn.LogSoftmax(1)), "a LogSoftmax layer at '1': log_softmax"),
        (Function(lambda x: F.dropout(x, 0.01)), "random: its dropout stays on"),
        (Function(lambda x: x + 1e-3 * torch.randn_like(x)), r"randn_like\(\) is none of the functions"),
        (Function(lambda x: x + 1e-3 * torch.randn(6)), "may be random"),
        (Function(lambda x: x if x.sum() > 0 else -x), r"this network: sum\(\) is none"),
        (Function(lambda x: x + torch.from_numpy(x.numpy())), r"numpy\(\) looks at values"),
        (Function(lambda x: x * x), "multiplies tensors with each other"),
        (Function(lambda x: x / (x + 1)), "divides by what depends on the input"),
        (Function(lambda x: x - x.mean(0)), "adds tensors of different shapes|mixes samples"),
        (Function(lambda x: F.leaky_relu(x, -0.5)), "slope of -0.5 for negative numbers is not in"),
        (Function(lambda x: F.leaky_relu(x, 1)), "slope of 1 for negative numbers is not in"),
        (Function(lambda x: x.flip(0)), r"flip\(\) is none"),
        (Function(lambda x: torch.cat([x, x], 1)[:, :6]), r"cat\(\) is none"),
        (Function(changed_through_a_view), "changed in place through a view"),
        (Function(lambda x: x.to(torch.float64).float()), "changes the precision"),
        (Function(torch.zeros_like), r"zeros_like\(\) is none"),
        (Function(lambda x: torch.ones(x.shape)), "not computed from its input"),
        (Ensemble([MLP((6,), 3), MLP((6,), 3)]), "cannot bound a Ensemble"),
        (MonteCarloDropout(nn.Sequential(nn.Dropout(), nn.Linear(6, 3))), "cannot bound a MonteCarloDropout"),
        (Single(nn.Sequential(nn.Linear(6, 3), nn.Softmax(1)), "probabilities"), "cannot bound probabilities"),
    ],
)
def test_refuses_what_cannot_be_bounded_by_name(net, message):
    with pytest.raises(EquipoiseError, match=message):
        certified_margin(net, points(4, 6), None, Ball("linf", 0.1))


def test_refuses_options_that_make_no_sense():
    net, x = nn.Linear(6, 3), points(4, 6)
    with pytest.raises(EquipoiseError, match="did you mean 'crown'"):
        certified_margin(net, x, None, Ball("linf", 0.1), "crwn")
    with pytest.raises(EquipoiseError, match="infinite ball without a box"):
        certified_margin(net, x, None, Ball("l2", math.inf, Box(-math.inf, math.inf)))
    with pytest.raises(EquipoiseError, match="holds class 3"):
        certified(net, x, torch.full((4,), 3), Ball("linf", 0.1))
    with pytest.raises(EquipoiseError, match="lie outside"):
        bounds(net, x + 1, Ball("linf", 0.1))
    with pytest.raises(EquipoiseError, match="upper = 0"):
        certified_radius(net, x, upper=0)
    with pytest.raises(EquipoiseError, match="halvings = 0"):
        certified_radius(net, x, halvings=0)
    with pytest.raises(EquipoiseError, match="unknown norm"):
        certified_radius(net, x, norm="l3")


def test_a_wrong_call_gets_a_sentence():
    net = MLP((6,), 3)
    with pytest.raises(EquipoiseError, match=r"geometry = 0.1: expected a Ball such as Ball\('linf', 8 / 255\)"):
        certified_margin(net, points(4, 6), None, 0.1)
    with pytest.raises(EquipoiseError, match="missing a required argument: 'geometry'"):
        certified_margin(net, points(4, 6), None)


def test_certificates_in_inference_mode_are_those_outside():
    net, x = MLP((6,), 3), points(4, 6)
    expected = certified_margin(net, x, None, Ball("linf", 0.01))
    with torch.inference_mode():
        assert torch.equal(certified_margin(net, x, None, Ball("linf", 0.01)), expected)


def test_a_mean_over_rows_and_columns_rounds_as_often_as_it_adds():
    """Pooling of (batch, height, width) is over both."""
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    layer = next(node.layer for node in translate(net, torch.rand(2, 6, 6)).nodes if isinstance(node.layer, Affine))
    assert layer.roundings > 36

"""The parts of a bound, the networks it takes, and certified radii."""

import math

import pytest
import torch
from bounded_nets import DUAL, EPS, WIDE, global_seed, margins, mlp, points
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise import attacks
from equipoise.bounds.layers import Max, ReLU
from equipoise.bounds.propagation import enclosures, minima_by_layers, minima_from_input
from equipoise.certified import Region, bounds, certified, certified_margin, certified_radius, translate
from equipoise.certified.margins import Problem
from equipoise.geometry import Ball, Box
from equipoise.models import Single
from equipoise.nets import build

pytestmark = pytest.mark.unchecked


@given(
    low=st.floats(-2, 2),
    width=st.one_of(st.just(0.0), st.floats(1e-6, 3)),
    share=st.floats(0, 1),
    slope=st.one_of(st.just(0.0), st.floats(0, 0.99)),
)
def test_the_lines_of_a_relu_bound_it(low, width, share, slope):
    lower, upper = torch.tensor([low], dtype=torch.float64), torch.tensor([low + width], dtype=torch.float64)
    below, above, constant, _ = ReLU(slope).lines(lower, upper)
    assert below.dtype == above.dtype == constant.dtype == torch.float64
    z = lower + share * (upper - lower)
    value = F.leaky_relu(z, slope)
    assert below * z <= value + 1e-12 and value <= above * z + constant + 1e-12
    if low < 0 < low + width:  # the line from above meets the function at both ends
        for end in (lower, upper):
            assert float(above * end + constant) == pytest.approx(float(F.leaky_relu(end, slope)), abs=1e-9)
        assert float(below) == (1.0 if low + width > -low else slope)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("slope", [0.01, 0.1, 0.3, 2 / 3])
def test_the_rounding_of_a_leaky_relu_is_within_its_bounds(slope, dtype):
    """The library's slope is the nearest number of its precision, and its product is rounded."""
    z = 4 * points(1000, 2, dtype=dtype) - 3
    net = nn.LeakyReLU(slope)
    lower, upper = bounds(net, z, Ball("linf", 0.0, WIDE), "ibp")
    exact = z.double().clamp_min(0) + slope * z.double().clamp_max(0)
    assert (lower <= net(z)).all() and (net(z) <= upper).all()
    assert dtype == torch.float64 or (net(z).double() != exact).any()
    layer = translate(net, z).nodes[1].layer
    assert isinstance(layer, ReLU)
    low, high = layer.interval(z.double(), z.double())
    assert (low <= net(z).double()).all() and (net(z).double() <= high).all()
    below, above, constant, _ = layer.lines(z.double() - 1, z.double() + 1)
    assert (below * z <= net(z)).all() and (net(z) <= above * z + constant + 1e-15).all()


@given(seed=st.integers(0, 10**6), width=st.floats(0, 2))
def test_the_lines_of_a_maximum_bound_it(seed, width):
    g = torch.Generator().manual_seed(seed)
    lower = torch.randn(6, 4, generator=g, dtype=torch.float64)
    upper = lower + width * torch.rand(6, 4, generator=g, dtype=torch.float64)
    layer = Max(torch.ones(4, dtype=torch.bool), torch.relu)
    below, above, constant, _ = layer.lines(lower, upper)
    share = torch.rand(200, 6, 4, generator=g, dtype=torch.float64)
    z = lower + share.round() * (upper - lower) if seed % 2 else lower + share * (upper - lower)
    assert ((below * z).sum(-1) <= z.amax(-1) + 1e-12).all()
    assert (z.amax(-1) <= (above * z).sum(-1) + constant + 1e-12).all()
    rest = upper.scatter(1, lower.argmax(1, keepdim=True), -math.inf).amax(1)
    ruled = lower.amax(1) >= rest  # one entry is always the largest: both lines are that entry
    assert torch.allclose(((above * z).sum(-1) + constant)[:, ruled], z.amax(-1)[:, ruled])
    assert torch.allclose((below * z).sum(-1)[:, ruled], z.amax(-1)[:, ruled])


def test_affine_layers_are_the_modules_they_come_from(image_net):
    """Jacobians by automatic differentiation of every affine layer's own function, and of the network itself."""
    network = translate(image_net, points(1, 2, 8, 8))
    for node in network.nodes:
        if not hasattr(node.layer, "linear"):
            continue
        shape = network.nodes[node.parents[0]].shape
        z = torch.zeros(1, *shape, dtype=torch.float64)
        matrix = torch.autograd.functional.jacobian(lambda z, layer=node.layer: layer.linear(z), z)
        matrix = matrix.reshape(node.shape.numel(), shape.numel())
        rows = torch.eye(node.shape.numel(), dtype=torch.float64).reshape(-1, *node.shape)
        assert torch.allclose(node.layer.transposed(rows).flatten(1), matrix)
        one = points(1, *shape, dtype=torch.float64)
        assert torch.allclose(node.layer.magnitude(one).flatten(), matrix.abs() @ one.flatten())


@pytest.mark.parametrize("name", ["mlp", "lenet", "cnn4"])
def test_takes_the_librarys_own_networks(name):
    net = build(name, (1, 16, 16), normalize=((0.5,), (0.3,)))
    x = points(3, 1, 16, 16)
    y = net(x).argmax(1)
    assert certified(net, x, None, Ball("linf", 1e-5), "crown-ibp").any()
    margin = certified_margin(net, x, y, Ball("linf", 0.003))
    found = attacks.pgd(0.003, steps=10, start="zero", return_point="last")(net, x, y).x
    assert (margin <= margins(net(found), y)).all() and (margin > margins(net(x), y) - 0.2).all()


def test_takes_residual_networks():
    net = build("resnet20", (3, 8, 8)).eval()
    network = translate(net, points(1, 3, 8, 8))
    x = points(2, 3, 8, 8)
    lower, upper = bounds(net, x, Ball("linf", 0.0), "crown-ibp")
    assert (lower <= net(x)).all() and (net(x) <= upper).all() and len(network.nodes) > 60


def test_returns_a_sample_by_sample_answer_whatever_wraps_the_logits():
    class Output:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    class Wrapped(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Output:
            return Output(self.net(x.view(len(x), -1)))

    net, x = mlp(6, 8, 3), points(4, 2, 3)
    plain = certified_margin(net, x.flatten(1), None, Ball("linf", 0.02))
    assert torch.allclose(certified_margin(Single(Wrapped(net)), x, None, Ball("linf", 0.02)), plain, atol=1e-6)


# Radii


@pytest.mark.parametrize("norm", EPS)
def test_the_radius_of_a_linear_model_is_its_distance_to_the_boundary(norm):
    net, x = global_seed(lambda: nn.Linear(12, 4)), points(30, 12)
    z = net(x)
    y = z.argmax(1)
    y[:3] = (y[:3] + 1) % 4
    slopes = (net.weight[y][:, None] - net.weight[None]).norm(DUAL[norm], dim=2)
    ratio = ((z.gather(1, y[:, None]) - z) / slopes).scatter(1, y[:, None], math.inf).amin(1)
    found = certified_radius(net, x, y, norm, upper=0.8, halvings=16, box=WIDE)
    assert (found[:3] == 0).all() and (found[3:] <= ratio[3:]).all()
    assert torch.allclose(found[3:], ratio[3:].clamp_max(0.8), atol=3e-5)
    assert certified_radius(net, x, None, norm, upper=0.8, box=WIDE)[:3].gt(0).all()


@pytest.mark.parametrize("norm", EPS)
def test_first_layers_are_bounded_from_the_few_coordinates_they_look_at_as_from_all(norm, image_net):
    x = points(3, 2, 8, 8)
    network = translate(image_net, x)
    region = Region.of(x, torch.tensor([0.05, 0.3, 1.0]).double(), norm, Box())
    known = enclosures(network, region, refine=False)
    assert len(network.first) > 0
    for i in network.first:
        units = network.nodes[i].shape.numel()
        sample, place = torch.arange(3).repeat_interleave(units), torch.arange(units).repeat(3)
        few, all_ = (of(network, i, known, region) for of in (minima_from_input, minima_by_layers))
        for sign in (1.0, -1.0):
            assert torch.allclose(few(sign, sample, place), all_(sign, sample, place), atol=1e-5)
            assert (few(sign, sample, place) <= all_(sign, sample, place) + 1e-12).all()
    assert any(network.first[i].values.shape[1] < 40 for i in network.first), "a window, not the image"


def test_the_radius_is_found_from_small_ones_on(monkeypatch):
    """Radii far beyond are never tried, and the grid is as fine as it is asked to be."""
    net, x = mlp(6, 16, 16, 3), points(20, 6)
    tried = []
    margins_at = Problem.margins
    monkeypatch.setattr(Problem, "margins", lambda self, eps: tried.append(float(eps.max())) or margins_at(self, eps))
    radius = certified_radius(net, x, None, "l2", upper=50.0, halvings=14)
    assert max(tried) <= 2 * float(radius.max()) + 50 * 2**-14 and len(tried) <= 2 * 14
    assert ((radius / (50 * 2**-14)).round() * (50 * 2**-14) == radius).all()
    for factor, holds in ((0, True), (1, False)):  # one step more is not certified any more
        margins_there = certified_margins(net, x, radius + factor * 50 * 2**-14)
        assert ((margins_there > 0) == holds).all()


def certified_margins(net: nn.Module, x: Tensor, radius: Tensor) -> Tensor:
    each = [certified_margin(net, one[None], None, Ball("l2", float(eps))) for one, eps in zip(x, radius, strict=True)]
    return torch.cat(each)


def test_the_radius_is_certified_and_no_attack_comes_nearer():
    net, x = mlp(6, 16, 16, 3), points(20, 6)
    y = net(x).argmax(1)
    radius = certified_radius(net, x, y, "l2", upper=2.0)
    assert (radius > 0).all()
    for one, label, eps in zip(x, y, radius, strict=True):
        assert certified(net, one[None], label[None], Ball("l2", float(eps))).all()
    found = attacks.minimal_l2()(net, x, y)
    assert (radius < found.distance)[found.success].all() and found.success.any()
    coarse = certified_radius(net, x, y, "l2", upper=2.0, halvings=1)
    assert torch.isin(coarse, torch.tensor([0.0, 1.0, 2.0])).all() and (coarse <= radius).all()


def test_an_infinite_ball_is_the_box():
    net, x = mlp(3, 8, 2), points(5, 3)
    at_most = certified_margin(net, x, None, Ball("linf", 1.0))
    for norm in EPS:
        assert torch.allclose(certified_margin(net, x, None, Ball(norm, math.inf)), at_most, atol=1e-4)

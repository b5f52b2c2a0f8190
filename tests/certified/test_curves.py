"""Activations that are linear nowhere: what is known of them, their lines, and networks of them."""

import math

import pytest
import torch
from bounded_nets import CURVES, WIDE, margins, mlp, points
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from equipoise.bounds import translate
from equipoise.bounds.curves import SHAPES, Curve
from equipoise.certified import METHODS, bounds, certified_margin
from equipoise.geometry import Ball

pytestmark = pytest.mark.unchecked


def curve(name: str, dtype: torch.dtype = torch.float32) -> Curve:
    layer = translate(CURVES[name](), torch.zeros(1, 2, dtype=dtype)).nodes[1].layer
    assert isinstance(layer, Curve)
    return layer


def derivatives(name: str, z: Tensor) -> tuple[Tensor, Tensor]:
    """Of the first and, by differences, of the second order."""
    z = z.clone().requires_grad_()
    first = torch.autograd.grad(CURVES[name]()(z).sum(), z)[0]
    return first, first.diff() / z.detach().diff()


@pytest.mark.parametrize("name", CURVES)
def test_what_is_known_of_a_function(name):
    """Between the kinks the second derivative stays below its bound, and comes near; the function falls up to its
    lowest point only.
    """
    shape, z = curve(name).shape, torch.linspace(-12, 12, 480_001, dtype=torch.float64)
    first, second = derivatives(name, z)
    smooth = torch.ones_like(second, dtype=torch.bool)
    for kink in shape.kinks:
        smooth &= (z[1:] < kink - 1e-6) | (z[:-1] > kink + 1e-6)
    largest = float(second[smooth].abs().max())
    assert 0.99 * shape.curvature - 1e-9 <= largest <= shape.curvature + 1e-6
    assert (first[z < shape.lowest - 1e-4] <= 0).all() and (first[z > shape.lowest + 1e-4] >= 0).all()
    assert math.isinf(shape.lowest) == bool((first >= -1e-15).all())
    if not math.isinf(shape.lowest):
        at = torch.tensor([shape.lowest], dtype=torch.float64)
        assert derivatives(name, torch.cat([at, at + 1]))[0][0].abs() < 1e-12


@given(
    name=st.sampled_from(sorted(CURVES)),
    low=st.floats(-8, 8),
    width=st.one_of(st.just(0.0), st.floats(1e-12, 1e-3), st.floats(1e-3, 12)),
    seed=st.integers(0, 1000),
)
def test_interval_and_lines_of_a_function_hold_it(name, low, width, seed):
    layer = curve(name, torch.float64)
    lower = torch.tensor([low], dtype=torch.float64)
    upper = lower + width
    z = lower + (upper - lower) * torch.cat([points(200, seed=seed, dtype=torch.float64), torch.tensor([0.0, 1.0])])
    value = CURVES[name]()(z)
    smallest, largest = layer.interval(lower, upper)
    assert (smallest <= value).all() and (value <= largest).all()
    assert smallest > value.min() - 0.05 * width - 1e-9 and largest < value.max() + 0.05 * width + 1e-9
    below, above, intercept, floor = layer.lines(lower, upper)
    assert floor is not None
    assert (below * z + floor <= value + 1e-12).all() and (value <= above * z + intercept + 1e-12).all()
    # As close as the extremes over many points of the interval allow, but for the slack.
    gap = (value - above * z).max() - (value - above * z).min()
    slack = 2 * layer.shape.curvature * (width / 32) ** 2 / 8
    assert float(intercept - floor) <= float(gap) + slack + 0.05 * width + 1e-9


@pytest.mark.parametrize("name", CURVES)
def test_the_rounding_of_a_function_is_within_its_bounds(name):
    """PyTorch in float32 against itself in float64, far out too."""
    z = torch.cat([16 * points(20_000, 2, seed=1) - 8, 200 * points(2000, 2) - 100])
    layer, wide = curve(name), z.double()
    low, high = layer.interval(wide, wide)
    value = CURVES[name]()(z).double()
    assert (low <= value).all() and (value <= high).all()
    error = (value - CURVES[name]()(wide)).abs() / wide.abs().clamp_min(1)
    assert error.max() < 0.5 * layer.error, "the allowance is at least twice what is seen"


@pytest.mark.parametrize("name", CURVES)
def test_never_above_a_grid_in_the_plane(name):
    net = mlp(2, 10, 10, 3, seed=1, activation=name)
    x, ball = points(12, 2), Ball("linf", 0.1)
    y = net(x).argmax(1)
    side = torch.linspace(-1, 1, 101) * ball.eps
    grid = torch.cartesian_prod(side, side)
    truth = torch.stack([margins(net((x[i] + grid).clamp(0, 1)), y[i].expand(len(grid))).min() for i in range(len(x))])
    found = {method: certified_margin(net, x, y, ball, method) for method in METHODS}
    for value in found.values():
        assert (value <= truth + 1e-6).all()
    assert (found["ibp"] <= found["crown-ibp"]).all() and (found["ibp"] <= found["crown"]).all()
    assert (truth - found["crown"]).mean() < 0.5 * (truth - found["ibp"]).mean()


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_of_a_tested_activation(name):
    assert name in {"gelu", "gelu of tanh"} or any(curve(c).shape == SHAPES[name] for c in CURVES)


def test_clamping_with_numbers():
    class Clamped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.clamp(max=0.5).clamp_min(-0.25)

    z = 2 * points(50, 2) - 1
    lower, upper = bounds(Clamped(), z, Ball("linf", 0.1, WIDE), "crown")
    for step in (-0.1, 0.0, 0.1):
        value = (z + step).clamp(-0.25, 0.5)
        assert (lower <= value).all() and (value <= upper).all()
    assert torch.allclose(lower, (z - 0.1).clamp(-0.25, 0.5), atol=1e-4)

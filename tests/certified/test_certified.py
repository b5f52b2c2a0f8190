"""Certificates: closed forms, brute force, attacks that must stay above, rounding."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from bounded_nets import CURVES, DUAL, EPS, WIDE, global_seed, margins, mlp, points
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise import attacks
from equipoise.certified import METHODS, Region, bounds, certified, certified_margin
from equipoise.certified.margins import rounded_down
from equipoise.core.rng import Streams
from equipoise.geometry import NORMS, Ball, Box

pytestmark = pytest.mark.unchecked


# The truth, where it is known.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("norm", EPS)
def test_a_linear_margin_is_the_closed_form(norm, method):
    net, x, y, eps = global_seed(lambda: nn.Linear(12, 4)), points(20, 12), torch.arange(20) % 4, 0.3
    slopes = net.weight[y][:, None] - net.weight[None]
    worst = margins_after(net(x), slopes.norm(DUAL[norm], dim=2) * eps, y)
    found = certified_margin(net, x, y, Ball(norm, eps, WIDE), method)
    assert (found <= worst).all() and torch.allclose(found, worst, atol=1e-5)


def margins_after(logits: Tensor, loss: Tensor, y: Tensor) -> Tensor:
    gaps = logits.gather(1, y[:, None]) - logits - loss
    return gaps.scatter(1, y[:, None], math.inf).amin(1)


@pytest.mark.parametrize("norm", EPS)
def test_the_minimum_over_ball_and_box_is_that_of_an_optimiser(norm):
    g = torch.Generator().manual_seed(1)
    rows, x = torch.randn(12, 6, generator=g, dtype=torch.float64), points(12, 6, dtype=torch.float64)
    eps = {"linf": 0.3, "l2": 0.6, "l1": 1.1}[norm]
    region = Region.of(x, torch.full((12,), eps, dtype=torch.float64), norm, Box())
    found = region.minimum(rows, torch.arange(12)).numpy()
    for a, c, value in zip(rows.numpy(), x.numpy(), found, strict=True):
        assert value == pytest.approx(optimum(a, c, eps, norm), abs=2e-6)


def optimum(a: np.ndarray, c: np.ndarray, eps: float, norm: str) -> float:
    n = len(a)
    if norm == "linf":
        return linprog(a, bounds=list(zip(np.maximum(c - eps, 0), np.minimum(c + eps, 1), strict=True))).fun
    if norm == "l1":  # z and the distances t >= |z - c|
        eye = np.eye(n)
        matrix = np.block([[eye, -eye], [-eye, -eye], [np.zeros((1, n)), np.ones((1, n))]])
        limits = [(0, 1)] * n + [(0, None)] * n
        return linprog(np.r_[a, np.zeros(n)], matrix, np.r_[c, -c, eps], bounds=limits).fun
    ball = {"type": "ineq", "fun": lambda z: eps**2 - ((z - c) ** 2).sum()}
    options = {"ftol": 1e-12, "maxiter": 500}
    return minimize(lambda z: a @ z, c, jac=lambda z: a, bounds=[(0, 1)] * n, constraints=ball, options=options).fun


def test_coefficients_that_are_zero_are_left_out_at_no_loss():
    """Rows of a convolution, as many as one of them has, beside the same rows in a wider input."""
    rows, x = torch.zeros(4, 40, dtype=torch.float64), points(4, 40, dtype=torch.float64)
    rows[:, 3:8] = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for norm in ("l2", "l1"):
        eps = torch.full((4,), 0.4, dtype=torch.float64)
        wide, narrow = Region(x, eps, norm, Box()), Region(x[:, 3:8], eps, norm, Box())
        owner = torch.tensor([0, 1, 1, 3])
        assert torch.allclose(wide.minimum(rows, owner), narrow.minimum(rows[:, 3:8], owner), atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_never_above_the_exact_minimum_in_one_dimension(method):
    """A network of one input is piecewise linear: its smallest margin lies at a kink or at an end."""
    net = mlp(1, 12, 2, seed=3)
    x, eps = torch.linspace(0.05, 0.95, 19)[:, None], 0.04
    kinks = (-net[0].bias / net[0].weight[:, 0]).detach()
    y = net(x).argmax(1)
    gaps = []
    for one, label in zip(x[:, 0], y, strict=True):
        inside = kinks[(kinks - one).abs() <= eps]
        ends = torch.stack([one - eps, one + eps]).clamp(0, 1)
        at = torch.cat([inside.clamp(0, 1), ends])[:, None]
        truth = margins(net(at), label.expand(len(at))).min()
        gaps.append(truth - certified_margin(net, one[None, None], label[None], Ball("linf", eps), method)[0])
    gaps = torch.stack(gaps)
    assert (gaps > -1e-7).all()
    if method != "ibp":  # where no ReLU has its kink in the interval the bound is the minimum
        quiet = ((kinks[None] - x).abs() > eps + 1e-3).all(1)
        assert quiet.any() and gaps[quiet].max() < 1e-4


@pytest.mark.parametrize("norm", EPS)
def test_never_above_a_grid_in_the_plane_and_crown_is_close(norm):
    net = mlp(2, 10, 10, 3, seed=1)
    x = points(24, 2)
    y = net(x).argmax(1)
    ball = Ball(norm, 0.1)
    side = torch.linspace(-1, 1, 101) * ball.eps
    grid = torch.cartesian_prod(side, side)
    grid = grid[grid.norm(NORMS[norm].order, dim=1) <= ball.eps]
    lowest = [margins(net((x[i] + grid).clamp(0, 1)), y[i].expand(len(grid))).min() for i in range(len(x))]
    truth = torch.stack(lowest)
    found = {method: certified_margin(net, x, y, ball, method) for method in METHODS}
    for value in found.values():
        assert (value <= truth + 1e-6).all()
    assert (found["ibp"] <= found["crown-ibp"]).all() and (found["ibp"] <= found["crown"]).all()
    assert found["ibp"].mean() < found["crown-ibp"].mean() <= found["crown"].mean() + 1e-6
    assert (truth - found["crown"]).mean() < 0.3 * (truth - found["ibp"]).mean()


# certified <= attacked


@pytest.mark.parametrize("norm", EPS)
def test_no_attack_and_no_random_point_gets_below_a_certificate(norm, image_net):
    x, ball = points(4, 2, 8, 8), Ball(norm, EPS[norm])
    y = image_net(x).argmax(1)
    found = attacks.pgd(ball.eps, steps=15, norm=norm, start="zero", return_point="last")(image_net, x, y).x
    tried = [found, *(ball.draw(Streams.of(seed, torch.arange(4)), x, surface=True) for seed in range(20))]
    lowest = torch.stack([margins(image_net(z), y) for z in tried]).amin(0)
    previous = torch.full((4,), -math.inf)
    for method in METHODS:
        lower, upper = bounds(image_net, x, ball, method)
        for z in tried:
            assert (lower <= image_net(z)).all() and (image_net(z) <= upper).all()
        margin = certified_margin(image_net, x, y, ball, method)
        assert (margin <= lowest).all()
        assert torch.equal(certified(image_net, x, y, ball, method), margin > 0)
        assert margin.mean() >= previous.mean()
        previous = margin
    gap = margins(image_net(x), y) - previous
    assert (gap > 0).all() and (gap < 60 * (margins(image_net(x), y) - lowest).clamp_min(1e-3)).all()


@settings(max_examples=300)
@given(
    seed=st.integers(0, 10**6),
    eps=st.floats(0, 0.5),
    norm=st.sampled_from(sorted(EPS)),
    method=st.sampled_from(METHODS),
    where=st.integers(0, 99),
    slope=st.sampled_from([0.0, 0.0, 0.1, 0.7]),
    activation=st.sampled_from(["", "", "", *CURVES]),
    double=st.booleans(),
)
def test_random_nets_stay_within_their_bounds(seed, eps, norm, method, where, slope, activation, double):
    dtype = torch.float64 if double else torch.float32
    net = mlp(3, 7, 6, 3, seed=seed, slope=slope, activation=activation).to(dtype)
    x, ball = points(2, 3, seed=seed, dtype=dtype), Ball(norm, eps)
    y = torch.tensor([0, 2])
    z = ball.draw(Streams.of(where, torch.arange(2)), x, surface=bool(where % 2))
    lower, upper = bounds(net, x, ball, method)
    logits = net(z)
    assert (lower <= logits).all() and (logits <= upper).all()
    assert (certified_margin(net, x, y, ball, method) <= margins(logits, y)).all()


def test_at_radius_zero_it_is_the_margin_itself(image_net):
    x = points(5, 2, 8, 8)
    y = torch.arange(5) % 3
    margin = margins(image_net(x), y)
    for method in METHODS:
        found = certified_margin(image_net, x, y, Ball("linf", 0.0), method)
        assert (found <= margin).all() and torch.allclose(found, margin, atol=2e-3)


@pytest.mark.parametrize("norm", EPS)
def test_a_larger_ball_has_no_larger_margin(norm):
    net, x, y = mlp(5, 16, 16, 4), points(12, 5), torch.arange(12) % 4
    for method in METHODS:
        values = [certified_margin(net, x, y, Ball(norm, eps), method) for eps in (0, 0.01, 0.03, 0.1, 0.3)]
        assert all((b < a).all() for a, b in pairwise(values))


def test_a_sample_is_bounded_the_same_in_every_batch(image_net, monkeypatch):
    x, ball = points(4, 2, 8, 8), Ball("l2", 0.3)
    y = torch.arange(4) % 3
    together = certified_margin(image_net, x, y, ball)
    alone = torch.cat([certified_margin(image_net, x[i : i + 1], y[i : i + 1], ball) for i in range(4)])
    monkeypatch.setattr("equipoise.certified.margins.NUMBERS", 1)
    monkeypatch.setattr("equipoise.bounds.propagation.NUMBERS", 5000)
    in_pieces = certified_margin(image_net, x, y, ball)
    assert torch.allclose(together, alone, rtol=0, atol=1e-6) and torch.allclose(together, in_pieces, rtol=0, atol=1e-6)


# Rounding


def test_the_network_in_float32_stays_within_bounds_that_the_exact_one_would_break():
    """Sums of large terms that nearly cancel: at radius 0 the exact logits are not those that float32 gives."""
    net = mlp(20, 300, 300, 3)
    net.requires_grad_(False)
    for i in (0, 2, 4):
        net[i].weight *= 30
    x = points(50, 20)
    exact = copy.deepcopy(net).double()(x.double())
    lower, upper = bounds(net, x, Ball("linf", 0.0))
    moved = torch.stack([(x + sign * 6e-8).clamp(0, 1) for sign in (1, -1)])  # ball.contains takes these for x
    for z in (x, *moved):
        assert Ball("linf", 0.0).contains(z, x).all()
        assert (lower <= net(z)).all() and (net(z) <= upper).all()
    assert ((net(x).double() - exact).abs() > 1e-3).any()
    assert ((upper - lower) > 2 * (net(x).double() - exact).abs()).all()


@pytest.mark.parametrize("norm", EPS)
def test_the_region_holds_every_point_that_the_ball_accepts(norm):
    ball, x = Ball(norm, 0.25), 0.3 + 0.4 * points(8, 10)
    way = torch.randn(8, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    way = {"linf": way.sign(), "l2": way, "l1": F.one_hot(way.argmax(1), 10).double()}[norm]  # where -way is smallest
    unit = way / way.norm(NORMS[norm].order, dim=1, keepdim=True)
    z = x.double() + (ball.eps + 0.9 * 2**-23) * unit
    assert ball.contains(z, x.double()).all() and (ball.distance(z, x.double()) > ball.eps).all()
    region = Region.of(x, torch.full((8,), ball.eps, dtype=torch.float64), norm, ball.box)
    assert (region.minimum(-way, torch.arange(8)) <= -(way * z).sum(1)).all()
    lower, upper = region.interval()
    assert (lower <= z).all() and (z <= upper).all()


def test_bounds_are_rounded_outwards():
    lower, upper = bounds(nn.Linear(3, 2).double(), points(40, 3, dtype=torch.float64), Ball("linf", 0.1))
    assert lower.dtype == upper.dtype == torch.float64
    value = points(1000, seed=2, dtype=torch.float64) - 0.5
    down = rounded_down(value, torch.float32)
    assert down.dtype == torch.float32 and (down.double() <= value).all() and (value - down).max() < 1e-7

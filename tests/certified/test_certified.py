"""Certificates: closed forms, brute force, attacks that must stay above, rounding, refusals."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise import attacks
from equipoise.certified import METHODS, Region, bounds, certified, certified_margin, certified_radius, translate
from equipoise.certified.layers import Affine, Max, ReLU
from equipoise.certified.margins import Problem, rounded_down
from equipoise.certified.propagation import enclosures, minima_by_layers, minima_from_input
from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import Streams
from equipoise.geometry import NORMS, Ball, Box
from equipoise.models import Ensemble, MonteCarloDropout, Single
from equipoise.nets import MLP, Normalize, build

pytestmark = pytest.mark.unchecked

WIDE = Box(-10, 10)
DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}
EPS = {"linf": 0.05, "l2": 0.2, "l1": 0.5}


def global_seed(make, seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def points(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mlp(*sizes: int, seed: int = 0, slope: float = 0.0) -> nn.Sequential:
    """(Leaky) ReLU layers with larger weights than at initialisation, so that margins are worth bounding."""
    g = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        linear = nn.Linear(inputs, outputs)
        linear.weight.data = torch.randn(outputs, inputs, generator=g) * 1.5 / math.sqrt(inputs)
        linear.bias.data = 0.3 * torch.randn(outputs, generator=g)
        layers += [linear, nn.LeakyReLU(slope) if slope else nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def margins(logits: Tensor, y: Tensor) -> Tensor:
    own = logits.gather(1, y[:, None])[:, 0]
    return own - logits.scatter(1, y[:, None], -math.inf).amax(1)


class Residual(nn.Module):
    """Written as networks are: functions, in place, a shortcut, an average, a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn(self.conv1(2 * x - 1)), inplace=True)
        h = F.relu(self.conv2(h).add_(h) / 2)
        return self.linear(h.mean(dim=(2, 3))) - 0.1


class Shared(nn.Module):
    """One layer twice, with a hook that changes its output, in place and not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(128, 3)
        self.conv.register_forward_hook(lambda layer, inputs, output: 1 - 0.5 * output)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu_(self.conv(x))
        return self.linear(F.relu(self.conv(h)).flatten(1))


NETS = {
    "strides, padding, dilation, groups": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(4, 4, 2, dilation=2, padding="same"),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(64, 3),
    ),
    "max-pooling, overlapping and padded": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)
    ),
    "max-pooling of ReLUs": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Dropout(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 8),
        nn.ReLU(), nn.Linear(8, 3)
    ),
    "average pooling, batch-norm, normalised": lambda: nn.Sequential(
        Normalize([0.4, 0.5], [0.3, 0.2]), nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AvgPool2d(3, 2, padding=1), nn.Conv2d(4, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten(),
        nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)
    ),
    "residual": Residual,
    "shared weights and a hook": Shared,
    "leaky": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.LeakyReLU(0.3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.LeakyReLU(0.01, True),
        nn.Flatten(), nn.Linear(16, 3)
    ),
}  # fmt: skip


def with_statistics(layer: nn.Module) -> None:
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        nn.init.normal_(layer.running_mean, std=0.3)
        nn.init.uniform_(layer.running_var, 0.2, 2)
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias, std=0.3)


@pytest.fixture(scope="module", params=NETS)
def image_net(request) -> nn.Module:
    return global_seed(lambda: NETS[request.param]().apply(with_statistics)).eval().requires_grad_(False)


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


@settings(max_examples=200)
@given(
    seed=st.integers(0, 10**6),
    eps=st.floats(0, 0.5),
    norm=st.sampled_from(sorted(EPS)),
    method=st.sampled_from(METHODS),
    where=st.integers(0, 99),
    slope=st.sampled_from([0.0, 0.0, 0.1, 0.7]),
    double=st.booleans(),
)
def test_random_nets_stay_within_their_bounds(seed, eps, norm, method, where, slope, double):
    dtype = torch.float64 if double else torch.float32
    net = mlp(3, 7, 6, 3, seed=seed, slope=slope).to(dtype)
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
    monkeypatch.setattr("equipoise.certified.propagation.NUMBERS", 5000)
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


# The parts


@given(
    low=st.floats(-2, 2),
    width=st.one_of(st.just(0.0), st.floats(1e-6, 3)),
    share=st.floats(0, 1),
    slope=st.one_of(st.just(0.0), st.floats(0, 0.99)),
)
def test_the_lines_of_a_relu_bound_it(low, width, share, slope):
    lower, upper = torch.tensor([low], dtype=torch.float64), torch.tensor([low + width], dtype=torch.float64)
    below, above, constant = ReLU(slope).lines(lower, upper)
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
    below, above, constant = layer.lines(z.double() - 1, z.double() + 1)
    assert (below * z <= net(z)).all() and (net(z) <= above * z + constant + 1e-15).all()


@given(seed=st.integers(0, 10**6), width=st.floats(0, 2))
def test_the_lines_of_a_maximum_bound_it(seed, width):
    g = torch.Generator().manual_seed(seed)
    lower = torch.randn(6, 4, generator=g, dtype=torch.float64)
    upper = lower + width * torch.rand(6, 4, generator=g, dtype=torch.float64)
    layer = Max(torch.ones(4, dtype=torch.bool))
    below, above, constant = layer.lines(lower, upper)
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


# What stays


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
        (nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.GELU()), nn.Linear(6, 3)), "a GELU layer at '1.0': gelu"),
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

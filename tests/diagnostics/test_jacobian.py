"""Spectral norms against full decompositions, closed forms of linear models, and the margin theorem."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from equipoise import attacks
from equipoise.core.errors import EquipoiseError, EquipoiseWarning, NoGradient
from equipoise.diagnostics.jacobian import (
    correlation,
    decision_margin,
    jacobian,
    nonlinearity,
    normalised_margin,
    spectral_norm,
)
from equipoise.geometry import EVERYWHERE
from equipoise.models import Ensemble, MonteCarloDropout
from equipoise.nets import MLP

pgd = partial(attacks.pgd, start="zero", return_point="last")


def global_seed(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def conv_net() -> nn.Module:
    """Convolution, batch-norm with statistics of its own, both kinds of pooling, dropout."""
    net = global_seed(
        lambda: nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 6, 3),
            nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(6, 5),
        )
    ).double()  # fmt: skip
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.running_mean.copy_(torch.linspace(-0.2, 0.2, 8))  # pyright: ignore[reportOptionalMemberAccess]
        norm.running_var.copy_(torch.linspace(0.1, 2, 8))  # pyright: ignore[reportOptionalMemberAccess]
    return net


def images(n: int = 12) -> torch.Tensor:
    return torch.rand(n, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def full(function, x: torch.Tensor) -> torch.Tensor:
    """Every sample's Jacobian by torch's own reverse mode, one sample at a time."""
    one = [torch.autograd.functional.jacobian(lambda z: function(z[None])[0], row) for row in x]
    return torch.stack([j.flatten(1) for j in one])  # pyright: ignore[reportAttributeAccessIssue]


def test_power_iteration_finds_the_largest_singular_value():
    net, x = conv_net(), images()
    expected = torch.linalg.svdvals(full(net.eval(), x))[:, 0]
    for tolerance in (1e-2, 1e-4, 1e-8):
        found = spectral_norm(net, x, exact=False, iterations=3000, tolerance=tolerance)
        assert (found <= expected * (1 + 1e-12)).all()
        assert (found >= expected * (1 - tolerance)).all()


def test_the_exact_matrix_is_torchs_own():
    net, x = conv_net(), images()
    expected = full(net.eval(), x)
    assert torch.allclose(jacobian(net, x, batch_size=5), expected, rtol=1e-12)
    assert torch.allclose(spectral_norm(net, x, exact=True), torch.linalg.svdvals(expected)[:, 0], rtol=1e-12)


def test_a_result_does_not_depend_on_the_batch():
    net, x = conv_net(), images()
    together = spectral_norm(net, x, exact=False)
    assert torch.allclose(spectral_norm(net, x, exact=False, batch_size=5)[:5], together[:5], rtol=1e-9)
    assert torch.allclose(spectral_norm(net, x[:1], exact=False), together[:1], rtol=1e-9)


def test_few_classes_are_computed_exactly():
    """One power step is far off, so that a value which is right was not found by it."""
    x = torch.rand(3, 120, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    few, many = (global_seed(lambda c=c: nn.Linear(120, c)).double() for c in (100, 101))
    truth = float(torch.linalg.svdvals(few.weight.detach())[0])
    assert spectral_norm(few, x, iterations=1).tolist() == pytest.approx([truth] * 3, rel=1e-9)
    with pytest.warns(EquipoiseWarning, match="3 of 3 samples"):
        spectral_norm(many, x, iterations=1)


def test_several_members_have_the_jacobian_of_their_mean():
    members = [global_seed(lambda: MLP((6,), 4, (9,))).double() for _ in range(3)]
    for k, member in enumerate(members):
        with torch.no_grad():
            for p in member.parameters():
                p.mul_(1 + k)
    x = torch.rand(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    mean = lambda z: torch.stack([m(z).softmax(-1) for m in members]).mean(0).log()  # noqa: E731
    expected = torch.linalg.svdvals(full(mean, x))[:, 0]
    assert torch.allclose(
        spectral_norm(Ensemble(members), x, tolerance=1e-7, iterations=2000, exact=False), expected, rtol=1e-6
    )


def test_a_random_model_is_drawn_once():
    net, x = conv_net(), images(4)
    model = MonteCarloDropout(net, samples=3)
    power = spectral_norm(model, x, tolerance=1e-7, iterations=2000, exact=False, seed=3)
    assert torch.allclose(power, spectral_norm(model, x, exact=True, seed=3), rtol=1e-6)
    assert not torch.allclose(power, spectral_norm(model, x, exact=True, seed=4), rtol=1e-3)


def test_a_linear_model_is_its_own_jacobian():
    linear = global_seed(lambda: nn.Linear(7, 3)).double()
    x = torch.rand(6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(jacobian(linear, x), linear.weight.detach().expand(6, 3, 7), rtol=1e-12)
    sigma = torch.linalg.svdvals(linear.weight.detach())[0]
    assert torch.allclose(
        spectral_norm(linear, x, tolerance=1e-9, iterations=5000, exact=False), sigma.expand(6), rtol=1e-8
    )
    assert (nonlinearity(linear, x, x + 0.3 * torch.rand_like(x)) < 1e-13).all()


def test_nonlinearity_of_a_square_is_known():
    """f(x) = (x², 0): f(x+d) - f(x) = 2xd + d², so that Q = |d| / |2x|."""

    class Square(nn.Module):
        def forward(self, x):
            return torch.cat([x**2, 0 * x], 1)

    x = torch.tensor([[1.0], [2.0], [0.5], [3.0]], dtype=torch.float64)
    d = torch.tensor([[0.2], [-0.4], [1.0], [0.0]], dtype=torch.float64)
    found = nonlinearity(Square(), x, x + d, batch_size=2)
    assert torch.allclose(found[:3], (d.abs() / (2 * x))[:3, 0], rtol=1e-12)
    assert found[3].isnan()


def test_a_model_that_is_flat_has_norm_zero():
    class Flat(nn.Module):
        def forward(self, x):
            return F.relu(x.flatten(1)[:, :3] - 5) + torch.tensor([1.0, 0.0, 0.5])

    x = torch.rand(4, 5)
    assert all(spectral_norm(Flat(), x, exact=e).tolist() == [0.0] * 4 for e in (False, True))
    assert normalised_margin(Flat(), x, torch.tensor([0, 0, 1, 2])).tolist() == [
        math.inf,
        math.inf,
        -math.inf,
        -math.inf,
    ]


def test_tiny_slopes_do_not_underflow():
    class Tiny(nn.Module):
        def forward(self, x):
            return x @ torch.tensor([[3e-25, 0.0], [0.0, 4e-25]])

    assert torch.allclose(
        spectral_norm(Tiny(), torch.rand(3, 2), exact=False), torch.tensor(4e-25).expand(3), rtol=1e-2
    )


@pytest.mark.parametrize("exact", [False, True])
def test_a_slope_that_is_not_finite_spoils_its_own_sample_alone(exact):
    class Root(nn.Module):
        def forward(self, x):
            return torch.cat([x.sqrt(), x[:, :1]], 1)

    x = torch.tensor([[0.25, 1.0], [0.0, 1.0], [1.0, 0.25]])
    found = spectral_norm(Root(), x, exact=exact)
    assert found.isnan().tolist() == [False, True, False]
    assert found[0] == pytest.approx(math.sqrt(2), rel=1e-3)  # (1, 0), (0, 1/2) and (1, 0)


def test_margins():
    class Outputs(nn.Module):
        def forward(self, x):
            return x

    z = torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0], [3.0, 3.0, 0.0]])
    y = torch.tensor([1, 2, 0])
    assert decision_margin(Outputs(), z, y, batch_size=2).tolist() == [2.0, -2.0, 0.0]
    assert torch.allclose(normalised_margin(Outputs(), z, y), torch.tensor([2.0, -2.0, 0.0]), rtol=1e-3)


def test_no_attack_breaks_the_margin_theorem():
    """R, Eq. 9: with l_f at least the Lipschitz constant, no perturbation below M/(√2 l_f) changes the class.

    The product of the layers' spectral norms bounds l_f (ReLU is 1-Lipschitz), and the Jacobian's norm from above.
    """
    net = global_seed(lambda: nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 4))).double()
    lipschitz = math.prod(float(torch.linalg.svdvals(net[i].weight.detach())[0]) for i in (0, 2))
    x = torch.randn(400, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    y = net(x).argmax(1)
    assert (spectral_norm(net, x, exact=True) <= lipschitz).all()
    radius = decision_margin(net, x, y) / (math.sqrt(2) * lipschitz)
    toward = torch.stack(
        [pgd(1.0, 0.05, 60, "l2", box=EVERYWHERE, return_point="best")(net, x, y).x, torch.randn_like(x) + x]
    )
    direction = F.normalize(toward - x, dim=-1)
    inside = x + 0.999 * radius[:, None] * direction
    assert all((net(points).argmax(1) == y).all() for points in inside)
    assert any((net(x + 8 * radius[:, None] * d).argmax(1) != y).any() for d in direction)  # the attack is one


def test_the_model_is_left_as_it_was():
    net, x = conv_net(), images(4)
    net.train()
    net[4].eval()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    before, rng = [m.training for m in net.modules()], torch.get_rng_state()
    y = torch.zeros(4, dtype=torch.int64)
    normalised_margin(net, x, y)
    nonlinearity(net, x, x + 0.1)
    assert [m.training for m in net.modules()] == before
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_an_unfinished_iteration_warns():
    x = torch.rand(3, 7, dtype=torch.float64)
    with pytest.warns(EquipoiseWarning, match=r"of 3 samples is not within 1e-06: their values are lower bounds"):
        found = spectral_norm(
            global_seed(lambda: nn.Linear(7, 3)).double(), x, iterations=1, tolerance=1e-6, exact=False
        )
    assert (found > 0).all()


def test_correlations():
    rng = np.random.default_rng(0)
    a = rng.normal(size=60)
    b = a + rng.normal(size=60)
    found = correlation(torch.from_numpy(a), b)
    expected = stats.pearsonr(a, b)
    assert found.pearson == pytest.approx(expected.statistic, rel=1e-12)
    assert found.pearson_interval == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-9)
    ranks = stats.pearsonr(stats.rankdata(a), stats.rankdata(b)).statistic
    assert found.spearman == pytest.approx(ranks, rel=1e-9)
    assert correlation(a, np.exp(a)).spearman_interval[1] <= 1
    assert correlation(a, -2 * a).pearson_interval == pytest.approx((-1.0, -1.0))


def test_the_interval_of_spearman_covers():
    """Of bivariate normals with correlation r, Spearman's rho is (6/π) asin(r/2)."""
    rng, truth = np.random.default_rng(1), 6 / math.pi * math.asin(0.6 / 2)
    hits = 0
    for _ in range(400):
        a, b = rng.normal(size=(2, 50))
        low, high = correlation(a, 0.6 * a + 0.8 * b).spearman_interval
        hits += low <= truth <= high
    assert 0.92 <= hits / 400 <= 0.98


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n, x: spectral_norm(n, x, iterations=0), "iterations = 0: expected an integer >= 1"),
        (lambda n, x: spectral_norm(n, x, tolerance=0.0), "tolerance = 0.0: expected a relative error > 0"),
        (lambda n, x: nonlinearity(n, x, x[:1]), r"x_moved must be points like x: a tensor of shape \(4, 1, 8, 8\)"),
        (lambda n, x: correlation([1.0, 2.0], [1.0, 2.0]), "needs at least 4 samples, got 2"),
        (lambda n, x: correlation([1.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]), "is the same for every sample"),
        (lambda n, x: correlation([1.0] * 5, [1.0] * 4), "5 values of a and 4 of b"),
        (lambda n, x: correlation([1.0, 2, 3, math.nan], [1.0, 2, 3, 4]), "needs finite values"),
        (lambda n, x: spectral_norm(nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), n).double(), x),
         "depends on its batch"),
    ],
)  # fmt: skip
def test_refuses(call, message):
    with pytest.raises(EquipoiseError, match=message):
        call(conv_net(), images(4))


def test_refuses_a_model_without_gradient():
    class Cut(nn.Module):
        def forward(self, x):
            return x.detach().flatten(1)

    with pytest.raises(NoGradient, match="has no gradient"):
        spectral_norm(Cut(), torch.rand(2, 3))


def test_a_first_layer_may_work_in_place():
    x, net = torch.rand(4, 3), global_seed(lambda: nn.Linear(3, 4))
    in_place, by_copy = (spectral_norm(nn.Sequential(nn.ReLU(inplace=yes), net), x) for yes in (True, False))
    assert np.array_equal(in_place, by_copy)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 3 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 3 * grad


def test_refuses_products_with_what_is_differentiable_once():
    class Custom(nn.Module):
        def forward(self, x):
            return Once.apply(x)

    x = torch.rand(4, 3)
    assert torch.allclose(spectral_norm(Custom(), x, exact=True), torch.full((4,), 3.0))
    with pytest.raises(EquipoiseError, match="can be differentiated twice, for the spectral norm use exact=True"):
        spectral_norm(Custom(), x, exact=False)

"""Surfaces of models whose loss is known everywhere, and measures of maps with known answers."""

import numpy as np
import pytest
import torch
from torch import nn

from equipoise.core.errors import EquipoiseError
from equipoise.diagnostics.surfaces import Surface, roughness, surface
from equipoise.models import Ensemble
from equipoise.nets import MLP
from equipoise.report.studies import draw


def linear() -> nn.Linear:
    model = nn.Linear(6, 3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.weight.copy_(torch.randn(3, 6, dtype=torch.float64, generator=generator))
    return model


def inputs(n: int = 5, dtype=torch.float64):
    return torch.rand(n, 6, dtype=dtype, generator=torch.Generator().manual_seed(1)), torch.arange(n) % 3


class Wave(nn.Module):
    """Binary logits (-g, g) with g = sin(40·Σx): the loss of class 0 rises and falls along every direction."""

    def forward(self, x):
        g = torch.sin(40 * x.flatten(1).sum(1, keepdim=True))
        return torch.cat([-g, g], 1)


def test_a_linear_binary_model_has_planes_and_no_holes():
    x, y = inputs()
    model = nn.Linear(6, 2, dtype=torch.float64)
    found = surface(model, x, y % 2, points=11)
    assert (found.roughness["margin"] < 1e-10).all()
    assert (found.holes == 0).all() and not found.stuck.any()


def test_the_plane_is_the_one_meant():
    """Of a linear model the margin along d1 is known: Δ = ±‖w_y - w_other‖ terms, from the sign of the gradient."""
    model, (x, y) = linear(), inputs()
    found = surface(model, x, y, reach=0.02, points=5, seed=3)
    point = x.clone().requires_grad_()
    loss = nn.functional.cross_entropy(model(point), y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, point)
    with torch.no_grad():
        for column, e in enumerate((-0.02, -0.01, 0.0, 0.01, 0.02)):
            z = model(x + e * gradient.sign())
            expected = nn.functional.cross_entropy(z, y, reduction="none")
            assert found.loss[:, 2, column] == pytest.approx(expected.numpy(), rel=1e-12)
            others = z.masked_fill(nn.functional.one_hot(y, 3).bool(), -torch.inf).amax(1)
            assert found.margin[:, 2, column] == pytest.approx((z[range(5), y] - others).numpy(), rel=1e-9)


def test_a_gradient_that_is_not_finite_gives_no_direction():
    """√x at 0, whose slope is infinite: along that coordinate nothing is moved by d1, along the other everything."""

    class Root(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0].clamp_min(0).sqrt() - 3 * x[:, 1], 0 * x[:, 0]], 1)

    x, y = torch.tensor([[0.0, 0.5]], dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    found = surface(Root(), x, y, points=3)
    assert found.margin[0, 1] == pytest.approx([-1.5 + 0.12, -1.5, -1.5 - 0.12])


def test_the_second_direction_is_random_signs():
    class First(nn.Module):
        """Logit 0 is one coordinate: a map shows how far that coordinate was moved."""

        def __init__(self, i):
            super().__init__()
            self.i = i

        def forward(self, x):
            return torch.stack([x[:, self.i], 0 * x[:, 0]], 1)

    x, y = inputs(20)
    signs = []
    for i in range(6):
        found = surface(First(i), x, 0 * y, points=3)
        moved = found.margin[:, :, 1] - found.margin[:, 1:2, 1]
        assert abs(moved[:, [0, 2]]) == pytest.approx(0.04)
        signs.append(np.sign(moved[:, 2]))
    assert 35 < (np.array(signs) > 0).sum() < 85  # of 120
    again = surface(First(0), x, 0 * y, points=3, seed=1)
    assert not np.array_equal(np.sign(again.margin[:, 2, 1] - again.margin[:, 1, 1]), signs[0])


def test_holes_are_where_the_loss_falls():
    x, y = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    found = surface(Wave(), x, y, reach=0.2, points=401)
    e = found.e[200:]
    expected = np.diff(np.sin(40 * (e[None, :] + found.e[:, None]))) < 0
    assert found.holes[0] == pytest.approx(expected.mean(), abs=0.01)
    assert found.stuck[0]
    assert not surface(Wave(), x, y, reach=0.03).stuck[0]  # the first crest is at π/80 = .039
    assert surface(Wave(), x, y, reach=0.05).stuck[0]


def test_what_lies_downhill_of_the_sample_is_no_hole():
    """A valley behind the sample: against the gradient the loss falls, and then rises, but a climb never goes there."""

    class Valley(nn.Module):
        def forward(self, x):
            g = 100 * (x + 0.01) ** 2
            return torch.cat([-g, g], 1)

    x, y = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    found = surface(Valley(), x, y)
    assert (np.diff(found.loss[0, 20]) < 0).any()
    assert not found.stuck[0]


def test_rounding_makes_no_holes():
    """Two large outputs whose difference grows slowly: in float32 it goes up and down, in truth it only grows."""

    class Close(nn.Module):
        def forward(self, x):
            s = x.sum(1, keepdim=True)
            return torch.cat([100 + 3 * s, 100 + 3.0001 * s], 1)

    x, y = inputs(4, torch.float32)
    found = surface(Close(), x, 0 * y)
    assert (np.diff(found.loss[:, 20, 20:]) < 0).any()
    assert not found.stuck.any()


@pytest.mark.parametrize("fill", [-1e9, -np.inf])
def test_an_absent_class_hides_no_hole(fill):
    class Absent(Wave):
        def forward(self, x):
            z = super().forward(x)
            return torch.cat([z, torch.full_like(z[:, :1], fill)], 1)

    x, _ = inputs(dtype=torch.float32)
    y = torch.zeros(5, dtype=torch.long)
    plain, found = (surface(model, x, y, reach=0.1, points=11) for model in (Wave(), Absent()))
    assert plain.stuck.all() and (found.stuck == plain.stuck).all() and np.allclose(found.holes, plain.holes)


def test_roughness_of_known_maps():
    t = np.linspace(-1, 1, 401)
    first, second = np.meshgrid(t, t)
    maps = np.stack([3 * first - second + 1, abs(first), first**2, 5 * abs(first), 0 * first, abs(second)])
    assert roughness(maps) == pytest.approx([0, 2, 4, 2, 0, 2], abs=0.02)
    assert roughness(maps[:, ::8, ::8]) == pytest.approx([0, 2, 4, 2, 0, 2], abs=0.2)


def test_a_result_depends_on_the_seed_alone():
    x, y = inputs(7)
    model = Ensemble([MLP((6,), 3, (8,)).double() for _ in range(2)])
    whole = surface(model, x, y, points=5)
    parts = surface(model, x, y, points=5, batch_size=10)
    assert np.allclose(whole.loss, parts.loss, rtol=1e-10)
    assert np.allclose(whole.margin, parts.margin, rtol=1e-10)


def test_the_picture_has_a_loss_and_a_margin_of_each_sample():
    x, y = inputs()
    found = surface(linear(), x, y, points=7)
    picture = found.picture(samples=3)
    assert [p.meaning for p in picture.panels] == ["cross-entropy in nats"] * 3 + ["margin of the true class"] * 3
    assert picture.columns == 3
    assert np.array_equal(picture.panels[4].values, found.margin[1])
    assert picture.panels[0].extent == pytest.approx((-0.04 * 7 / 6, 0.04 * 7 / 6) * 2)
    assert draw(picture).startswith(b"\x89PNG")
    assert [n.unit for n in found.numbers()] == ["samples"] * 4
    assert isinstance(found, Surface)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 4}, "points = 4: expected an odd integer >= 3"),
        ({"reach": 0.0}, "reach = 0.0: expected a length > 0"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(EquipoiseError, match=message):
        surface(linear(), *inputs(), **options)

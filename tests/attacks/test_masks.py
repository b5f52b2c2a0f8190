"""Attacks on a part of a sample: closed forms for planes, uniform starts, places of patches, one move for all."""

import math

import pytest
import torch
from torch import nn

from equipoise import Ball, Box, EquipoiseError, attacks, nets
from equipoise.core.rng import Streams
from equipoise.geometry import EVERYWHERE, Masked

pytestmark = pytest.mark.unchecked
MASK = torch.tensor([[True, False], [False, True]])


def plane(weight: torch.Tensor, bias: float = 0.0) -> nn.Module:
    """Two classes with `z_1 - z_0 = ⟨w, x⟩ + b`."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(weight.numel(), 2)).to(weight.dtype)
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([-weight.flatten() / 2, weight.flatten() / 2]))
        net[1].bias.copy_(torch.tensor([-bias / 2, bias / 2]))
    return net


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1.0), ("l2", 2.0), ("l1", math.inf)])
@pytest.mark.parametrize("each", [False, True])
def test_a_plane_is_crossed_where_the_masked_weights_reach(norm: str, dual: float, each: bool) -> None:
    """The largest change of `⟨w, x⟩` within the mask is `eps·‖w_mask‖` in the dual norm; with any less no attack of the
    mask succeeds, with any more one does.
    """
    weight = torch.tensor([[3.0, 50.0], [40.0, -2.0]], dtype=torch.float64)
    x = torch.full((6, 1, 2, 2), 0.5, dtype=torch.float64)
    mask = MASK.expand(6, 2, 2) if each else MASK
    reach = 0.1 * torch.linalg.vector_norm(weight[MASK], dual)
    net = plane(weight, float(-0.5 * weight.sum() - reach))
    y = torch.zeros(6, dtype=torch.long)
    for factor, succeeds in ((0.98, False), (1.02, True)):
        attack = attacks.masked(attacks.pgd(0.1 * factor, steps=30, norm=norm), mask, each)
        found = attack(net, x, y, batch_size=4)
        assert bool(found.success.all()) is succeeds and bool(found.success.any()) is succeeds
        assert torch.equal(found.x[:, 0, 0, 1], x[:, 0, 0, 1]) and torch.equal(found.x[:, 0, 1, 0], x[:, 0, 1, 0])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_random_points_are_uniform_on_the_masked_ball(norm: str) -> None:
    """The share within half the radius is `2^-m` for m free features, and the signs are balanced."""
    n, free = 4000, 3
    mask = torch.tensor([True, False, True, False, False, True, False])
    ball = Masked(norm, 1.0, EVERYWHERE, mask=mask[None])
    centre = torch.zeros(n, 7)
    points = ball.draw(Streams.of(0, torch.arange(n)), centre)
    assert torch.equal(points[:, ~mask], centre[:, ~mask])
    share = float((ball.distance(points, centre) <= 0.5).float().mean())
    assert share == pytest.approx(2.0**-free, abs=4 * math.sqrt(2.0**-free / n))
    assert points[:, mask].gt(0).float().mean(0).sub(0.5).abs().max() < 4 * 0.5 / math.sqrt(n)


def test_points_that_moved_elsewhere_are_not_contained() -> None:
    ball, centre = Masked("linf", 0.1, mask=MASK[None]), torch.full((2, 1, 2, 2), 0.5)
    moved = centre.clone()
    moved[0, 0, 0, 0] += 0.05
    moved[1, 0, 0, 1] += 0.05
    assert ball.contains(moved, centre).tolist() == [True, False]


@pytest.mark.parametrize("place", [(0, 0), (1, 2), (3, 3)])
def test_a_patch_covers_a_square_somewhere(place: tuple[int, int]) -> None:
    """Every place is drawn, and a network that looks at one pixel falls to the patches that reach it."""
    weight = torch.zeros(5, 5)
    weight[place] = 1.0
    net, x = plane(weight, -0.9), torch.zeros(300, 1, 5, 5)
    found = attacks.patch(2, 10, places=1)(net, x, torch.zeros(300, dtype=torch.long))
    changed = (found.x != x)[:, 0]
    rows, columns = changed.any(2).sum(1), changed.any(1).sum(1)
    assert rows.max() <= 2 and columns.max() <= 2
    along = [sum(1 for first in range(4) if first <= at < first + 2) / 4 for at in place]
    share = along[0] * along[1]
    assert float(found.success.float().mean()) == pytest.approx(share, abs=4 * math.sqrt(share / 300))
    several = attacks.patch(2, 10, places=6)(net, x, torch.zeros(300, dtype=torch.long))
    expected = 1 - (1 - share) ** 6
    assert float(several.success.float().mean()) == pytest.approx(expected, abs=4 * math.sqrt(expected / 300))


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1.0), ("l2", 2.0)])
def test_the_universal_perturbation_of_a_plane_is_the_steepest(norm: str, dual: float) -> None:
    """All samples of class 0 lie beside one plane: the best common move is `eps` times its steepest direction."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(6, generator=g)
    x = 0.4 + 0.2 * torch.rand(50, 6, generator=g)
    net, y = plane(weight, float(-2 - weight.sum() * 0.5)), torch.zeros(50, dtype=torch.long)
    found = attacks.universal(net, x, y, 0.1, norm, epochs=20, batch_size=16)
    gain = float(found.delta @ weight)
    assert gain == pytest.approx(0.1 * float(torch.linalg.vector_norm(weight, dual)), rel=0.01)
    judged = found(net, x, y)
    assert torch.allclose(judged.x, x + found.delta)


def test_a_universal_perturbation_fools_samples_it_was_not_made_of(digits_net) -> None:
    net, train, test = digits_net
    found = attacks.universal(net, *train, 0.25, epochs=5)
    noise = attacks.random_search(0.25, draws=1)
    fooled, by_noise = (attack(net, *test).success.float().mean() for attack in (found, noise))
    assert fooled > by_noise + 0.2


@pytest.fixture(scope="module")
def digits_net():
    from equipoise import data, load

    digits = data.load("digits")
    net = load("digits/standard")[0]
    return net, (digits.train.x[:300], digits.train.y[:300]), (digits.test.x[:100], digits.test.y[:100])


def test_refusals() -> None:
    net = nets.build("mlp", (1, 2, 2), classes=2, seed=0)
    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.long)
    with pytest.raises(EquipoiseError, match=r"square.* does not keep to a mask: take an ascent in the input"):
        attacks.masked(attacks.square(0.1), MASK)
    with pytest.raises(EquipoiseError, match="expected booleans, such as mask > 0"):
        attacks.masked(attacks.pgd(0.1), torch.ones(2, 2))
    with pytest.raises(EquipoiseError, match="false everywhere"):
        attacks.masked(attacks.pgd(0.1), MASK & False)
    with pytest.raises(EquipoiseError, match=r"samples of shape \(3, 2\), these have \(1, 2, 2\)"):
        attacks.masked(attacks.pgd(0.1), torch.ones(3, 2, dtype=torch.bool))(net, x, y)
    with pytest.raises(EquipoiseError, match="2 masks, one per sample, but 3 samples"):
        attacks.masked(attacks.pgd(0.1), MASK.expand(2, 2, 2), each=True)(net, x, y)
    with pytest.raises(EquipoiseError, match=r"3 x 3 pixels does not fit samples of shape \(1, 2, 2\)"):
        attacks.patch(3)(net, x, y)
    with pytest.raises(EquipoiseError, match="give it bounds"):
        attacks.patch(3, box=EVERYWHERE)
    with pytest.raises(EquipoiseError, match="lies outside of"):
        attacks.Universal(Ball("linf", 0.1, Box()), torch.full((4,), 0.2))
    with pytest.raises(EquipoiseError, match=r"shape \(4,\), a sample \(1, 2, 2\)"):
        attacks.Universal(Ball("linf", 0.1, Box()), torch.full((4,), 0.05))(net, x, y)


def test_balls_of_other_masks_are_other_balls() -> None:
    """Else a chain would judge the points of one part by the mask of another, and lose them."""
    left, right = (Masked("linf", 0.1, mask=mask[None]) for mask in (MASK, ~MASK))
    assert left != right and left == Masked("linf", 0.1, mask=MASK.clone()[None]) and left != Ball("linf", 0.1)
    parts = tuple((name, attacks.masked(attacks.pgd(0.1), mask)) for name, mask in (("a", MASK), ("b", ~MASK)))
    with pytest.raises(EquipoiseError, match="must share one ball"):
        attacks.Chain(parts)


def test_a_masked_start_has_the_precision_of_the_points() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        ball = Masked("l2", 0.1, mask=MASK[None])
        drawn = ball.draw(Streams.of(0, torch.arange(3)), torch.full((3, 1, 2, 2), 0.5, dtype=torch.float32))
    finally:
        torch.set_default_dtype(torch.float32)
    assert drawn.dtype == torch.float32

"""Distances to the boundary against closed forms on linear models and a scan of all directions in the plane."""

import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from equipoise import attacks
from equipoise.attacks import Bisected, Chain, fab, fgsm, minimal_l2, random_search, uta
from equipoise.attacks.ascent import Ascent
from equipoise.attacks.inputs import validated_inputs
from equipoise.attacks.result import AttackResult, Criterion, confirm
from equipoise.attacks.spaces import Latent
from equipoise.core.errors import EquipoiseError
from equipoise.evaluation import evaluate, verify_outcome
from equipoise.geometry import EVERYWHERE, Ball, Box
from equipoise.losses.objectives import cross_entropy, margin

pgd = partial(attacks.pgd, start="zero", return_point="last")

pytestmark = pytest.mark.unchecked

STEP = 0.02


def linear(features: int, classes: int, seed: int = 0) -> nn.Module:
    g = torch.Generator().manual_seed(seed)
    net = nn.Linear(features, classes).double().requires_grad_(False).eval()
    net.weight.copy_(torch.randn(classes, features, generator=g, dtype=torch.float64))
    net.bias.copy_(-net.weight.sum(1) / 2)  # every plane goes through the middle of the box
    return net


def samples(n: int, features: int) -> Tensor:
    return torch.rand(n, features, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def nearest(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The smallest distance to a plane z_j = z_y: (z_y - z_j) / ‖w_y - w_j‖."""
    z, w = net(x), net.weight
    gap = z.gather(1, y[:, None]) - z
    far = (w[y][:, None] - w).norm(dim=2)  # `cdist` need not find 0 between a row and itself
    return torch.where(far > 0, gap / far.clamp_min(1e-9), torch.inf).amin(1)


@pytest.mark.parametrize("objective", [cross_entropy, margin])
def test_two_classes_without_a_box(objective):
    """The path is straight, so that bisection finds the distance to the plane to a step's 2^-20."""
    net, x = linear(8, 2), samples(60, 8)
    y = net(x).argmax(1)
    found = minimal_l2(objective=objective, box=EVERYWHERE)(net, x, y)
    d = nearest(net, x, y)
    assert found.success.all() and (found.distance >= d * (1 - 1e-9)).all()
    assert (found.distance <= d * (1 + 2**-19) + 1e-9).all() and d.min() < 5 * STEP < d.max()
    assert torch.equal(found.iteration, (d / STEP).ceil().long())
    assert torch.allclose((found.x - x).norm(dim=1), found.distance)


def test_several_classes_side_by_side():
    """Towards every class along its own normal: the first to arrive is, up to a step, the nearest plane."""
    net, x = linear(8, 5), samples(80, 8)
    y = net(x).argmax(1)
    d = nearest(net, x, y)
    plain = minimal_l2(box=EVERYWHERE)(net, x, y)
    several = minimal_l2(box=EVERYWHERE, num_targets=4, objective=margin)(net, x, y)
    for found in (plain, several):
        assert found.success.all() and (found.distance >= d * (1 - 1e-9)).all()
    assert (several.distance <= d + STEP).all()
    assert (plain.distance > d + STEP).any() and plain.distance.mean() > several.distance.mean()


def test_within_the_box():
    """The nearest point of the half-space in the box is clip(x + s·w) for the s that reaches the plane."""
    net, x = linear(8, 2), samples(60, 8).round(decimals=1)
    y = net(x).argmax(1)
    w = (2 * y - 1)[:, None] * (net.weight[0] - net.weight[1])
    gap = net(x)[:, 0] - net(x)[:, 1]
    inside = 0
    for i, found in enumerate(minimal_l2()(net, x, y).distance.tolist()):

        def beyond(s: float, i: int = i) -> float:
            moved = (x[i] + s * w[i]).clamp(0, 1) - x[i]
            return float(moved @ w[i]) - abs(float(gap[i]))

        if beyond(100.0) < 0:  # the plane does not meet the box
            continue
        s = brentq(beyond, 0.0, 100.0, xtol=1e-12)
        d = float(((x[i] + s * w[i]).clamp(0, 1) - x[i]).norm())
        assert d * (1 - 1e-9) <= found <= d + STEP
        inside += 1
    assert inside > 50


def test_nothing_is_nearer_than_a_scan_of_the_plane_finds():
    """On a curved boundary: rays in all directions, along which the first wrong point is searched for."""
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 3)).double().eval().requires_grad_(False)
    g = torch.Generator().manual_seed(3)
    for p in net.parameters():
        p.copy_(torch.randn(p.shape, generator=g, dtype=p.dtype))
    net[0].weight.mul_(3)
    x = samples(12, 2)
    y = net(x).argmax(1)
    angle = torch.linspace(0, 2 * math.pi, 181, dtype=torch.float64)
    ray = torch.stack([angle.cos(), angle.sin()], 1)
    radius = torch.linspace(0, 1.5, 751, dtype=torch.float64)
    points = x[:, None, None] + radius[:, None, None] * ray
    wrong = (net(points).argmax(-1) != y[:, None, None]).any(2)
    d = torch.where(wrong.any(1), radius[wrong.int().argmax(1)], torch.inf)
    found = minimal_l2(0.005, 400, box=EVERYWHERE)(net, x, y)
    reached = found.success
    assert reached.sum() > 8 and (found.distance[reached] > d[reached] - 4e-3).all()
    assert (found.distance[reached] / d[reached]).median() < 1.2


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.3), ("l1", 0.4)])
def test_any_attack_comes_back_to_where_its_segment_crosses(norm, eps):
    """On a linear model the crossing is t = gap(x) / (gap(x) - gap(x_adv)); those not fooled stay."""
    net, x = linear(6, 2), samples(60, 6)
    y = net(x).argmax(1)

    def gap(z: Tensor) -> Tensor:
        logits = net(z)
        return (logits[:, 0] - logits[:, 1]) * (1 - 2 * y)

    attack = pgd(eps, steps=10, norm=norm)
    far, near = attack(net, x, y), Bisected(attack, 30)(net, x, y)
    s = far.success
    assert torch.equal(s, near.success) and 10 < s.sum() < 60
    t = gap(x)[s] / (gap(x)[s] - gap(far.x)[s])
    crossing = x[s] + t[:, None] * (far.x - x)[s]
    assert torch.allclose(near.x[s], crossing, atol=1e-7)
    assert torch.equal(near.x[~s], far.x[~s]) and torch.equal(near.evaluations[~s], far.evaluations[~s])
    assert torch.equal(near.evaluations[s], far.evaluations[s] + 16 + 30 + 1)
    assert torch.equal(near.distance, Ball(norm, eps).distance(near.x, x))


class Stripes(nn.Module):
    """Class 1 where the first coordinate lies in (0.3, 0.4), (0.5, 0.6) or beyond 0.75, else class 0."""

    def forward(self, x: Tensor) -> Tensor:
        side = torch.stack([x[:, 0] - edge for edge in (0.3, 0.4, 0.5, 0.6, 0.75)], 1).prod(1)
        return torch.stack([-side, side], 1)


@dataclass(frozen=True)
class Far:
    """Moves the first coordinate to 0.8."""

    geometry: Ball = Ball("l2", math.inf)

    def settings(self) -> dict[str, Any]:
        return {"attack": "far", "geometry": asdict(self.geometry)}

    def __call__(self, model: Any, x: Tensor, y: Tensor | None = None, **options: Any) -> AttackResult:
        none = torch.zeros(len(x), dtype=torch.int64)
        far = torch.cat([torch.full_like(x[:, :1], 0.8), x[:, 1:]], 1)
        counts = {"evaluations": none, "iteration": none}
        with validated_inputs(model, x, y, self.geometry) as case:
            return confirm(case.predictive, self.geometry, Criterion(none), x, far, case.streams, **counts)[0]


def test_the_first_of_several_crossings_and_how_many_there_were():
    """On the way from 0.8 back to 0.1 the class changes five times; plain bisection ends at the farthest change."""
    x = torch.tensor([[0.1, 0.2], [0.45, 0.3], [0.65, 0.1]], dtype=torch.float64)
    y = torch.zeros(3, dtype=torch.int64)
    for labels in (y, None):
        found = Bisected(Far())(Stripes(), x, labels)
        assert found.success.all() and found.crossings.tolist() == [5, 3, 1]
        assert torch.allclose(found.distance, torch.tensor([0.2, 0.05, 0.1], dtype=torch.float64), atol=1e-6)
    blind = Bisected(Far(), looks=1)(Stripes(), x, y)
    assert blind.distance[0] == pytest.approx(0.65, abs=1e-5) and blind.crossings.tolist() == [1, 1, 1]
    assert not Far()(Stripes(), x, y).crossings.any()


def test_what_is_wrong_already_is_at_distance_0():
    net, x = linear(6, 2), samples(20, 6)
    y = 1 - net(x).argmax(1)
    for attack in (minimal_l2(), Bisected(pgd(0.1, steps=3)), Bisected(fgsm(0.01))):
        found = attack(net, x, y)
        assert found.success[found.distance == 0].all() and torch.equal(found.x[found.success], x[found.success])
        assert found.success.any()


def test_without_labels_it_goes_back_to_where_the_prediction_changes():
    net, x = linear(6, 2), samples(20, 6)
    attack = uta(0.5, 0.1, steps=6, norm="l2", box=EVERYWHERE)
    far, near = attack(net, x), Bisected(attack)(net, x)
    s = near.success
    assert torch.equal(s, far.success) and s.sum() > 3
    assert torch.allclose(near.distance[s], nearest(net, x, net(x).argmax(1))[s], rtol=1e-5)


def test_out_of_reach_is_said():
    net, x = linear(8, 2), samples(40, 8)
    y = net(x).argmax(1)
    d = nearest(net, x, y)
    found = minimal_l2(STEP, 10, box=EVERYWHERE)(net, x, y)
    assert torch.equal(found.success, d < 10 * STEP) and 0 < found.success.sum() < 40


def test_batches_and_order_do_not_matter():
    net, x = linear(8, 5), samples(40, 8)
    y = net(x).argmax(1)
    for attack in (minimal_l2(), Bisected(random_search(0.3, draws=40))):
        whole, order = attack(net, x, y, seed=2), torch.arange(39, -1, -1)
        other = attack(net, x[order], y[order], seed=2, index=order, batch_size=7)
        assert torch.allclose(other.x, whole.x[order], atol=1e-9)
        assert torch.equal(other.success, whole.success[order]) and whole.success.any()


def test_the_outcome_is_verified_in_float32_and_fits_an_evaluation():
    net, x = linear(8, 5).float(), samples(40, 8).float()
    y = net(x).argmax(1)
    attack = minimal_l2(box=Box(-1, 2), precision="bf16")
    found = attack(net, x, y)
    checked = verify_outcome(net, x, found.x, y, attack.geometry)
    assert torch.equal(checked.success, found.success) and found.success.all()
    assert torch.allclose(checked.distance.float(), found.distance)
    near = nearest(net, x, y)
    assert (found.distance > near * (1 - 1e-3) - 1e-4).all()
    chain = Chain((("pgd", pgd(0.2, norm="l2")), ("fab", fab(0.2, "l2"))))
    assert set(chain(net, x, y).part.tolist()) == {0, 1} and not Bisected(chain)(net, x, y).part.any()
    for name, one in (("minimal-l2", minimal_l2()), ("both", Bisected(chain))):
        result = evaluate(net, x, y, [(name, one)])[1]
        assert result.eps == one.geometry.eps and set(result.winner) <= {name, None}


def test_refuses():
    for halvings in (0, -3):
        with pytest.raises(EquipoiseError, match=f"halvings = {halvings}: expected an integer"):
            minimal_l2(halvings=halvings)
    with pytest.raises(EquipoiseError, match="the attack perturbs a latent space: leave out its space"):
        Bisected(pgd(0.1, space=Latent("fc1")))
    with pytest.raises(EquipoiseError, match=r"step_size = 0\.0 moves nothing"):
        minimal_l2(0.0)
    with pytest.raises(EquipoiseError, match="steps = 0: expected an integer"):
        minimal_l2(steps=0)
    net, x = linear(6, 2).float(), torch.rand(4, 6)
    with pytest.raises(EquipoiseError, match="needs the labels y"):
        minimal_l2()(net, x)
    coupled = nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), net).eval()
    with pytest.raises(EquipoiseError, match="a prediction depends on its batch"):
        minimal_l2()(coupled, x, torch.zeros(4, dtype=torch.int64))


def test_it_says_what_it_is():
    attack = minimal_l2(0.05, 30, box=Box(-1, 1), halvings=7)
    inner = Ascent(cross_entropy, Ball("l2", math.inf, Box(-1, 1)), 0.05, 30, return_point="first_success")
    assert attack == Bisected(inner, 7) and attack.geometry == inner.geometry
    told = attack.settings()
    assert (told["attack"], told["halvings"], told["looks"], told["of"]) == ("bisected", 7, 16, inner.settings())
    assert str(attack) == f"{inner}, back to the boundary"

"""DDN, PDPGD and sigma-zero step by step against plain re-statements in float64; proximal maps; L0 by brute force."""

import copy
import math
from itertools import combinations, product

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor, nn
from torch.nn import functional

from equipoise import attacks
from equipoise.attacks.minimum_norm.pdpgd import proximal
from equipoise.core.errors import EquipoiseError
from equipoise.geometry import Ball, Box, Sparse

pytestmark = pytest.mark.unchecked

F64 = torch.float64
ORDER = {"linf": math.inf, "l2": 2, "l1": 1, "l0": 0}


@pytest.fixture(scope="module")
def case(separated) -> tuple[nn.Module, Tensor, Tensor]:
    """A net in float64, and 8 samples that it gets right."""
    net, x, y = separated(220, 180)
    net, right = copy.deepcopy(net).double(), (net(x).argmax(1) == y).nonzero()[:8, 0]
    return net, x[right].double(), y[right]


class Best:
    """The nearest wrong iterate of one sample, and its number."""

    def __init__(self, net: nn.Module, x: Tensor, y: int, order: float, target: int | None):
        self.net, self.x, self.y, self.order, self.target = net, x, y, order, target
        self.point, self.distance, self.step = x, math.inf, 0

    def look(self, delta: Tensor, step: int) -> tuple[Tensor, bool]:
        logits = self.net((self.x + delta)[None])[0]
        label = int(logits.argmax())
        wrong = label != self.y if self.target is None else label == self.target
        distance = float(delta.detach().flatten().norm(self.order))
        if wrong and distance < self.distance:
            self.point, self.distance, self.step = (self.x + delta).detach(), distance, step
        return logits, wrong

    def margin(self, logits: Tensor) -> Tensor:
        own = self.y if self.target is None else self.target
        others = torch.cat([logits[:own], logits[own + 1 :]]).max()
        return (others - logits[own]) * (1 if self.target is None else -1)


def plain_ddn(best: Best, steps: int, levels: int | None) -> None:
    x, delta, radius = best.x, torch.zeros_like(best.x), 1.0
    farthest = float(torch.maximum(x, 1 - x).norm())
    for k in range(steps):
        delta.requires_grad_()
        logits, wrong = best.look(delta, k)
        label = best.y if best.target is None else best.target
        loss = functional.cross_entropy(logits[None], torch.tensor([label])) * (1 if best.target is None else -1)
        (g,) = torch.autograd.grad(loss, delta)
        alpha = 0.01 + 0.99 * (1 + math.cos(math.pi * k / steps)) / 2
        delta = delta.detach() + alpha * g / g.norm()
        radius = min(radius * (0.95 if wrong else 1.05), farthest)
        point = (x + radius * delta / delta.norm()).clamp(0, 1)
        delta = (point if levels is None else (point * (levels - 1)).round() / (levels - 1)) - x
    best.look(delta, steps)


def plain_prox(z: np.ndarray, u: float, norm: str) -> np.ndarray:
    """The minimiser of `u·‖d‖ + ½‖d - z‖²`, by its optimality condition."""
    a = np.abs(z)
    if norm == "l1":
        return np.sign(z) * np.maximum(a - u, 0)
    if norm == "l2":
        return z * max(0.0, 1 - u / max(np.linalg.norm(z), 1e-300))
    if norm == "linf":
        if a.sum() <= u:
            return np.zeros_like(z)
        level = brentq(lambda t: np.maximum(a - t, 0).sum() - u, 0, a.max(), xtol=1e-15)
        return np.clip(z, -level, level)
    found = np.zeros_like(z)
    for i, v in enumerate(a):
        lowest = (2 / 9 * u) ** 0.75  # where the slope `d - v + 2/3 u d^(-1/3)` is least
        if lowest - v + 2 / 3 * u * lowest ** (-1 / 3) < 0:
            d = brentq(lambda d, v=v: d - v + 2 / 3 * u * d ** (-1 / 3), lowest, v, xtol=1e-15)
            if u * d ** (2 / 3) + (d - v) ** 2 / 2 < v**2 / 2:
                found[i] = math.copysign(d, z[i])
    return found


def plain_pdpgd(best: Best, steps: int, norm: str) -> None:
    x = best.x
    delta = torch.zeros_like(x, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=0.0)
    v, weight = math.log(100.0), 1 / 101
    for k in range(steps):
        logits, _ = best.look(delta, k)
        margin = best.margin(logits)
        loss = functional.softplus((-margin).clamp(min=0))
        adam.zero_grad()
        loss.backward()
        alpha = 0.1 * 0.01 ** (k / steps)
        adam.param_groups[0]["lr"] = alpha
        adam.step()
        metric = (adam.state[delta]["exp_avg_sq"] / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8
        moved = (x + delta.detach()).clamp(0, 1) - x
        largest = float(metric.max())
        z = moved
        for _ in range(5):
            pulled = z + (moved - z) * metric / largest
            new = plain_prox(pulled.flatten().numpy(), weight / (1 - weight) * alpha / largest, norm)
            new = (x + torch.from_numpy(new).reshape(x.shape)).clamp(0, 1) - x
            change, z = float((new - z).norm()), new
            if change <= 0.01 * float(new.norm()):
                break
        with torch.no_grad():
            delta.copy_(z)
        v -= 0.1 * (0.1 + 0.9 * (1 - k / (steps - 1))) * float(margin.detach().sign())
        v = max(min(v, math.log(1e6)), -math.log(1e6))
        weight = 0.9 * weight + 0.1 / (1 + math.exp(v))
    best.look(delta.detach(), steps)


def plain_sigma_zero(best: Best, steps: int) -> None:
    x, tau = best.x, 0.3
    delta = torch.zeros_like(x, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps, 0.1)
    for k in range(steps):
        logits, wrong = best.look(delta, k)
        count = (delta**2 / (delta**2 + 0.001)).sum() / x.numel()
        (g,) = torch.autograd.grad((-best.margin(logits)).clamp(min=0) + count, delta)
        delta.grad = g / max(float(g.abs().max()), 1e-12)
        adam.step()
        schedule.step()
        tau = min(max(tau + (0.01 if wrong else -0.01) * schedule.get_last_lr()[0], 0.0), 1.0)
        with torch.no_grad():
            delta.copy_((x + delta).clamp(0, 1) - x)
            delta[delta.abs() < tau] = 0.0
    best.look(delta.detach(), steps)


LOOPS = {
    "ddn": (lambda steps: attacks.ddn(steps=steps), "l2", lambda best, steps: plain_ddn(best, steps, None)),
    "ddn, rounded": (lambda steps: attacks.ddn(steps=steps, levels=64), "l2", lambda b, steps: plain_ddn(b, steps, 64)),
    **{
        f"pdpgd {norm}": (
            lambda steps, norm=norm: attacks.pdpgd(norm=norm, steps=steps),
            norm,
            lambda best, steps, norm=norm: plain_pdpgd(best, steps, norm),
        )
        for norm in ORDER
    },
    "sigma-zero": (lambda steps: attacks.sigma_zero(steps=steps), "l0", plain_sigma_zero),
}


@pytest.mark.parametrize("towards", [False, True])
@pytest.mark.parametrize("name", LOOPS)
def test_the_published_loop(name, towards, case):
    (net, x, y), (make, norm, plain) = case, LOOPS[name]
    target = (y + 1) % 5 if towards else None
    steps, late = 200 if name.startswith("pdpgd") else 60, 0
    found = make(steps)(net, x, y, target=target)
    for i in range(len(x)):
        best = Best(net, x[i], int(y[i]), ORDER[norm], None if target is None else int(target[i]))
        plain(best, steps)
        assert bool(found.success[i]) == (best.distance < math.inf)
        assert torch.allclose(found.x[i], best.point, atol=1e-7)
        if found.success[i]:
            assert int(found.iteration[i]) == best.step
            assert float(found.distance[i]) == pytest.approx(best.distance, rel=1e-7)
        late += best.step > 5
    assert late >= 3


@pytest.mark.parametrize("norm", ORDER)
def test_proximal_maps(norm):
    z = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=F64)
    strength = torch.tensor([1e-6, 0.01, 0.1, 0.5, 1.0, 20.0], dtype=F64)
    found = proximal(z, strength, norm)
    for i in range(6):
        assert np.allclose(found[i].numpy(), plain_prox(z[i].numpy(), float(strength[i]), norm), atol=1e-12)
    assert found[5].abs().max() < 1e-15 and not (found[2] == 0).all()


def fewest(net: nn.Module, x: Tensor, y: int) -> float:
    """The least number of features whose change to an end of the box changes the class, by trying all of them."""
    for count in range(1, x.numel() + 1):
        for where in combinations(range(x.numel()), count):
            for ends in product((0.0, 1.0), repeat=count):
                point = x.clone()
                point[list(where)] = torch.tensor(ends, dtype=F64)
                if int(net(point[None]).argmax()) != y:
                    return count
    return math.inf


def test_the_fewest_features_by_brute_force():
    """Of a linear model, whose extreme points are at the ends of the box."""
    g = torch.Generator().manual_seed(3)
    net = nn.Linear(8, 2).double().requires_grad_(False)
    weight = torch.randn(8, generator=g, dtype=F64).sign() * (0.7 + 0.3 * torch.rand(8, generator=g))
    net.weight.copy_(torch.stack([weight, -weight]))
    net.bias.copy_(-net.weight.sum(1) / 2)
    x = torch.rand(16, 8, generator=g, dtype=F64)
    y = net(x).argmax(1)
    aligned = (net.weight[y] > net.weight[1 - y]).double()
    x = torch.lerp(x, aligned, torch.linspace(0, 1, 16, dtype=F64)[:, None])  # the farther from the boundary
    best = torch.tensor([fewest(net, x[i], int(y[i])) for i in range(len(x))])
    assert len(best.unique()) >= 3
    for attack, share in ((attacks.sigma_zero(), 0.9), (attacks.pdpgd(norm="l0"), 0.8)):
        found = attack(net, x, y)
        assert not found.success[best.isinf()].any()
        there = found.success
        assert there.sum() >= 0.9 * best.isfinite().sum()
        assert (found.distance[there] >= best[there]).all()
        assert (found.distance[there] == best[there]).double().mean() >= share
        assert torch.equal(found.distance[there], (found.x != x).sum(1)[there].double())


def test_within_some_features_only_few_changes_count(case):
    net, x, y = case
    far = attacks.sigma_zero(steps=100)(net, x, y)
    near = attacks.sigma_zero(1, steps=100)(net, x, y)
    assert 0 < int((far.distance <= 1).sum()) < len(x)
    assert torch.equal(near.success, far.distance <= 1) and torch.equal(near.x[~near.success], x[~near.success])


def test_another_box_is_only_another_unit(case):
    net, x, y = case
    wide = nn.Sequential(Shifted(), net)
    for make in (attacks.ddn, attacks.pdpgd, attacks.sigma_zero):
        usual, scaled = make(steps=40)(net, x, y), make(steps=40, box=Box(-1, 3))(wide, 4 * x - 1, y)
        assert torch.allclose(scaled.x, 4 * usual.x - 1, atol=1e-6) and torch.equal(scaled.success, usual.success)


class Shifted(nn.Module):
    """Inputs of [-1, 3] as those of [0, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 1) / 4


def test_levels_are_kept(case):
    net, x, y = case
    x = (x * 15).round() / 15
    found = attacks.ddn(levels=16)(net, x, y)
    assert found.success.any() and torch.allclose(found.x * 15, (found.x * 15).round(), atol=1e-9)


def test_a_sparse_ball_measures_and_does_nothing_else():
    ball, x = Sparse(eps=2), torch.zeros(3, 1, 2, 2)
    point = torch.tensor([[0.0, 0, 0, 0], [0.5, 0, 0, 1], [0.5, 0.5, 0.5, 0]]).reshape(3, 1, 2, 2)
    assert ball.distance(point, x).tolist() == [0, 2, 3] and ball.contains(point, x).tolist() == [True, True, False]
    assert ball.contains(-point, x).tolist() == [True, False, False]
    for act in (lambda: ball.project(point, x), lambda: ball.steepest(x, point, 0.1)):
        with pytest.raises(EquipoiseError, match="l0 counts changed features, without steps"):
            act()
    with pytest.raises(EquipoiseError, match=r"eps = 0.5 in l0 is a number of features"):
        Sparse(eps=0.5)
    with pytest.raises(EquipoiseError, match="unknown norm 'l0'"):
        attacks.pgd(3, norm="l0")


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (attacks.ddn, {"norm": "l1"}, "ddn rescales perturbations in l2, not in l1: take fmn or pdpgd"),
        (attacks.ddn, {"steps": 0}, "steps = 0"),
        (attacks.ddn, {"gamma": 1.0}, "gamma = 1.0: expected a number between 0 and 1"),
        (attacks.ddn, {"first_radius": 0.0}, "first_radius = 0.0"),
        (attacks.ddn, {"step_size": 0.001}, r"step_size = 0.001, last_step_size = 0.01: expected 0 < last <= first"),
        (attacks.ddn, {"levels": 1}, "levels = 1: expected an integer >= 2"),
        (attacks.ddn, {"levels": 9, "box": Box(-math.inf, math.inf)}, "levels are spaced over the box"),
        (attacks.pdpgd, {"steps": 0}, "steps = 0"),
        (attacks.pdpgd, {"proximal_steps": 0}, "proximal_steps = 0"),
        (attacks.pdpgd, {"tolerance": 0.0}, "tolerance = 0.0: expected a number > 0"),
        (attacks.pdpgd, {"ratio": 0.0}, "ratio = 0.0: expected a number from 1e-06 to 1"),
        (attacks.pdpgd, {"smoothing": 1.0}, "smoothing = 1.0: expected a number from 0 to below 1"),
        (attacks.pdpgd, {"norm": "l3"}, "unknown norm 'l3'"),
        (attacks.sigma_zero, {"norm": "l1"}, "norm = 'l1': a sparse ball counts changed features"),
        (attacks.sigma_zero, {"steps": 0}, "steps = 0"),
        (attacks.sigma_zero, {"sigma": 0.0}, "sigma = 0.0: expected a number > 0"),
        (attacks.sigma_zero, {"threshold": 2.0}, "threshold = 2.0: expected a number from 0 to 1"),
    ],
)
def test_refuses_options_that_make_no_sense(make, options, message):
    with pytest.raises(EquipoiseError, match=message):
        make(**options)
    with pytest.raises(EquipoiseError, match="sigma-zero counts changed features, which is l0, not l2"):
        attacks.SigmaZero(Ball("l2", 1.0))

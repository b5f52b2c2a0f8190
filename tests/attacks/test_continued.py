"""PMA against a plain re-statement, Auto-PGD from one FGSM step, ascents that go on where another ended."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from equipoise import attacks
from equipoise.attacks import Continued, apgd, apgd_fgsm, fgsm, pgd, pma
from equipoise.attacks.spaces import Latent
from equipoise.attacks.steps import Cosine, Uniform
from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import Stream, Streams
from equipoise.geometry import Ball

pytestmark = pytest.mark.unchecked

F64 = torch.float64


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = nn.Sequential(nn.Flatten(), nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 4)).double()
    net.requires_grad_(False)[1].weight.mul_(20)
    net[3].weight.mul_(4)
    x = torch.rand(40, 6, 2, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    return net, x, net(x).argmax(1)


def part(p: Tensor, y: int, kind: str) -> Tensor:
    rival = torch.cat([p[:y], p[y + 1 :]]).max()
    return {"true": -p[y], "rival": rival, "margin": rival - p[y]}[kind]


def plain_pma(net: nn.Module, x: Tensor, y: int, start: Tensor, eps: float, steps: int) -> Tensor | None:
    """The first point at which the class has changed, if any."""
    for first in ("true", "rival"):
        point = start
        for kind in (first, "margin"):
            for j in range(steps // 2):
                point = point.detach().requires_grad_()
                logits = net(point[None])[0]
                if int(logits.argmax()) != y:
                    return point.detach()
                (g,) = torch.autograd.grad(part(logits.softmax(0), y, kind), point)
                size = eps * (1 + math.cos(math.pi * j / (steps // 2)))
                point = ((point + size * g.sign()).clamp(x - eps, x + eps)).clamp(0, 1)
        if int(net(point[None]).argmax()) != y:
            return point.detach()
    return None


def test_pma_is_that_of_the_authors(case):
    net, x, y = case
    eps, steps = 0.03, 12
    found = pma(eps, steps=steps)(net, x, y, seed=4)
    streams = Streams.of(4, torch.arange(len(x)))
    start = Uniform().draw(streams.fold(Stream.RESTART, 0).fold(Stream.START), x, Ball("linf", eps))
    expected = [plain_pma(net, x[i], int(y[i]), start[i], eps, steps) for i in range(len(x))]
    assert found.success.tolist() == [point is not None for point in expected]
    for i in found.success.nonzero()[:, 0].tolist():
        assert torch.allclose(found.x[i], expected[i], atol=1e-9)
    assert 5 < int(found.success.sum()) < 35


def test_pma_in_other_norms_and_by_the_kernels(case):
    net, x, y = case
    for norm, eps in (("l2", 0.12), ("l1", 0.4)):
        found = pma(eps, norm, 40)(net, x, y)
        assert found.success.sum() >= 0.9 * apgd(eps, norm, 40)(net, x, y).success.sum() > 3
    small = net.float()
    found = pma(0.03, steps=20)(small, x.float(), y)
    net.double()
    assert (found.success == pma(0.03, steps=20)(net, x, y).success).float().mean() > 0.9
    assert not pma(0.0, steps=4)(net, x, y).success.any()


def fgsm_l1(x: Tensor, g: Tensor, eps: float) -> Tensor:
    """The coordinates of largest slope, one after the other, to the end of the box, until eps is spent."""
    point, flat = x.clone().flatten(), g.flatten()
    for i in flat.abs().argsort(descending=True).tolist():
        room = float(1 - point[i] if flat[i] > 0 else point[i])
        move = min(room, eps)
        point[i] += math.copysign(move, float(flat[i]))
        eps -= move
    return point.reshape(x.shape)


def test_auto_pgd_from_one_fgsm_step(case):
    net, x, y = case
    eps, index = 0.35, torch.arange(len(x))
    at = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(nn.functional.cross_entropy(net(at), y, reduction="sum"), at)
    step = torch.stack([fgsm_l1(x[i], g[i], eps) for i in range(len(x))])
    fooled = net(step).argmax(1) != y
    found = apgd_fgsm(eps, steps=20)(net, x, y, index=index)
    assert torch.allclose(found.x[fooled], step[fooled]) and found.success[fooled].all() and fooled.any()
    rest = (~fooled).nonzero()[:, 0]
    alone = apgd(eps, "l1", 20, restarts=2)(net, x[rest], y[rest], index=index[rest], start=step[rest])
    assert torch.allclose(found.x[rest], alone.x) and torch.equal(found.success[rest], alone.success)
    assert torch.equal(found.evaluations[rest], alone.evaluations + fgsm(eps, "l1")(net, x, y).evaluations[rest])
    assert int(found.success.sum()) > int(fooled.sum())


def test_the_cosine():
    sizes = [Cosine(2.0, 1.0).at(i, 4) for i in range(4)]
    assert sizes == pytest.approx([2.0, 1.5 + math.sqrt(0.125), 1.5, 1.5 - math.sqrt(0.125)])
    with pytest.raises(EquipoiseError, match=r"last = 3.0: expected a number from 0 to first = 1.0"):
        Cosine(1.0, 3.0)


def test_refusals():
    with pytest.raises(EquipoiseError, match="both ascents must share one ball"):
        Continued(pgd(0.1), pgd(0.2))
    with pytest.raises(EquipoiseError, match="an ascent of a latent space ends at codes"):
        Continued(replace(pgd(0.1), space=Latent("0")), pgd(0.1))
    with pytest.raises(EquipoiseError, match="steps = 1: expected an integer >= 2"):
        pma(0.1, steps=1)
    with pytest.raises(EquipoiseError, match="restarts = 0"):
        attacks.apgd_fgsm(1.0, restarts=0)
    assert str(Continued(fgsm(0.1), pgd(0.1, steps=3))).endswith("after " + str(fgsm(0.1)))

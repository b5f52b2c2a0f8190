"""The attacks of R by name: what they are, a plain loop, and what an adaptive attack finds that PGD does not."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.attacks import Chain, adaptive, cw_k, fgsm_k, pgd_k, pgd_l2
from equipoise.attacks.ascent import Ascent
from equipoise.attacks.steps import Constant, Fixed, Gaussian
from equipoise.core.errors import EquipoiseError
from equipoise.geometry import Ball
from equipoise.losses.objectives import cross_entropy, margin, smoothed_cross_entropy


def test_what_they_are():
    start = {"start": Gaussian(0.005), "restarts": 5, "return_point": "last"}
    ball = Ball("linf", 8 / 255)
    assert fgsm_k(8) == Ascent(cross_entropy, ball, 8 / 255, 1, **start)
    assert pgd_k(40, 8) == Ascent(cross_entropy, ball, 8 / 255 / 10, 40, **start)
    assert cw_k(20, 16) == Ascent(margin, Ball("linf", 16 / 255), 16 / 255 / 10, 20, **start)
    assert pgd_l2() == Ascent(cross_entropy, Ball("l2", 0.5), 0.05, 20, **start)
    assert pgd_k(10, 4).step_size.size == pytest.approx(4 / 2550)
    quick = pgd_k(10, 4, return_point="first_success", restarts=2, precision="bf16")
    assert (quick.return_point, quick.restarts, quick.precision, quick.start) == (
        "first_success",
        2,
        "bf16",
        Gaussian(0.005),
    )


def test_what_the_adaptive_attack_is():
    chain = adaptive(0.1, steps=50)
    assert isinstance(chain, Chain)
    assert chain.names == tuple(f"g={g}" for g in ("0", *(f"0.{n}" for n in range(1, 10)), "1"))
    assert [part.objective for _, part in chain.parts] == [smoothed_cross_entropy(g / 10) for g in range(11)]
    for _, part in chain.parts:
        assert (part.steps, part.step_size, part.geometry) == (Fixed(50), Constant(0.2 / 50), Ball("linf", 0.1))
        assert (part.start, part.restarts, part.return_point) == (Gaussian(0.005), 5, "first_success")
    steps = {k: adaptive(8 / 255, steps=k).parts[0][1].step_size.size for k in (8, 32, 256)}
    assert steps == {8: pytest.approx(2 / 255), 32: pytest.approx(1 / 510), 256: pytest.approx(1 / 510)}


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 4)).double().eval().requires_grad_(False)
    x = torch.rand(60, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    net[0].weight.mul_(4)
    net[2].bias.sub_(net(x).mean(0))
    return net, x, net(x).argmax(1)


@pytest.mark.parametrize(("attack", "steps"), [(fgsm_k(12), 1), (pgd_k(10, 12), 10), (cw_k(10, 12), 10)])
def test_as_strong_as_a_plain_loop(attack, steps, case):
    """Five climbs written out, with noise of their own; the shares of fooled samples agree."""
    net, x, y = case
    eps, g = 12 / 255, torch.Generator().manual_seed(4)
    fooled = torch.zeros(len(x), dtype=torch.bool)
    for _ in range(5):
        z = x + (0.005 * torch.randn(x.shape, generator=g, dtype=x.dtype))
        for _ in range(steps):
            z = z.clamp(x - eps, x + eps).clamp(0, 1).requires_grad_()
            scores = net(z)
            if attack.objective is margin:
                others = scores.masked_fill(F.one_hot(y, 4).bool(), -torch.inf).amax(1)
                loss = (others - scores.gather(1, y[:, None])[:, 0]).sum()
            else:
                loss = F.cross_entropy(scores, y, reduction="sum")
            (slope,) = torch.autograd.grad(loss, z)
            z = z.detach() + (eps if steps == 1 else eps / 10) * slope.sign()
        fooled |= net(z.clamp(x - eps, x + eps).clamp(0, 1)).argmax(1) != y
    found = attack(net, x, y)
    assert 5 < fooled.sum() < 55 and (found.success != fooled).sum() <= 1


def test_stopping_at_the_first_success_is_as_strong(case):
    net, x, y = case
    last, first = (pgd_k(10, 8, return_point=keep)(net, x, y) for keep in ("last", "first_success"))
    assert (first.success | ~last.success).all() and first.evaluations.sum() < last.evaluations.sum()


class Trapped(nn.Module):
    """Two classes, of which class 1 wins beyond x = 0.54, but until there its logit falls: uphill leads away.

    The logit difference is t = -2 - 10(x - 0.5), the slope of the smoothed cross-entropy in t is sigmoid(t) - g/2: from
    g = 0.3 > 2 sigmoid(-2) = 0.24 on the climb goes the other way.
    """

    def forward(self, x: Tensor) -> Tensor:
        t = torch.where(x[:, 0] > 0.54, 3.0, -2 - 10 * (x[:, 0] - 0.5))
        return torch.stack([-t / 2, t / 2], 1)


def test_the_best_smoothing_wins():
    x, y = torch.full((20, 3), 0.5), torch.zeros(20, dtype=torch.int64)
    found = adaptive(0.1, steps=20, restarts=2)(Trapped(), x, y)
    assert found.success.all() and found.part.tolist() == [3] * 20
    assert not pgd_k(20, 25)(Trapped(), x, y).success.any()


def test_it_fools_whom_any_of_its_parts_fools(case):
    net, x, y = case
    chain = adaptive(0.03, steps=6, restarts=2)
    alone = torch.stack([part(net, x, y, seed=3).success for _, part in chain.parts])
    found = chain(net, x, y, seed=3)
    assert torch.equal(found.success, alone.any(0)) and 5 < found.success.sum() < 55
    first = alone.int().argmax(0)
    assert torch.equal(found.part[found.success], first[found.success])


def test_refuses():
    for make in (fgsm_k, lambda k: pgd_k(10, k), lambda k: cw_k(10, k)):
        with pytest.raises(EquipoiseError, match=r"k = 0.031 is in units of 1/255: expected a number >= 1"):
            make(0.031)
        with pytest.raises(EquipoiseError, match=r"k = -8 is in units"):
            make(-8)
        assert make(0).geometry == Ball("linf", 0.0)
    with pytest.raises(EquipoiseError, match="steps = 0: expected an integer"):
        pgd_k(0, 8)
    with pytest.raises(EquipoiseError, match="steps = 0: expected an integer"):
        adaptive(0.1, steps=0)
    with pytest.raises(EquipoiseError, match="unknown norm 'l3'"):
        adaptive(0.1, "l3")

"""Auto-PGD: closed-form optima, the published loop from the same start, several targets side by side, phases, draws."""

import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack
from torch import Tensor, nn

from equipoise import attacks
from equipoise.attacks.apgd import apgd, apgd_t
from equipoise.attacks.auto_step import AutoStep, checkpoints
from equipoise.attacks.steps import Boundary, Uniform, UniformUpTo
from equipoise.core.errors import EquipoiseError
from equipoise.core.types import Prediction
from equipoise.geometry import Ball
from equipoise.losses.objectives import cross_entropy, dlr, margin

pgd = partial(attacks.pgd, start="zero", return_point="last")

EPS = {"linf": 0.17, "l2": 0.8, "l1": 2.6}


def trained(classes: int = 5, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """A small net in float64 that separates noisy prototypes, and samples it gets right."""
    g = torch.Generator().manual_seed(seed)
    prototypes = torch.rand(classes, 1, 6, 6, generator=g, dtype=torch.float64)
    y = torch.randint(classes, (240,), generator=g)
    x = (prototypes[y] + 0.25 * torch.randn(240, 1, 6, 6, generator=g, dtype=torch.float64)).clamp(0, 1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(36, 48), nn.ReLU(), nn.Linear(48, classes)).double()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    right = net(x).argmax(1) == y
    return net.eval().requires_grad_(False), x[right][:120], y[right][:120]


def test_checkpoints_are_the_published_ones():
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert all(at <= 7 for at in checkpoints(7)) and checkpoints(1) == {1: 1}


@pytest.mark.parametrize("norm", EPS)
def test_reaches_the_optimum_of_a_linear_model(norm):
    g = torch.Generator().manual_seed(3)
    net = nn.Linear(12, 2).double()
    net.weight.data = torch.randn(2, 12, generator=g, dtype=torch.float64)
    x = 0.3 + 0.4 * torch.rand(20, 12, generator=g, dtype=torch.float64)
    y = net(x).argmax(1).detach()
    eps = {"linf": 0.05, "l2": 0.2, "l1": 0.3}[norm]
    slope = net.weight[1 - y] - net.weight[y]
    order = {"linf": 1, "l2": 2, "l1": float("inf")}[norm]
    best = (margin(Prediction(net(x)[None]), None, y) + eps * slope.norm(order, dim=1)).detach()
    found = apgd(eps, norm, objective=margin, return_point="best")(net, x, y)
    reached = margin(Prediction(net(found.x)[None]), None, y)
    short = (best - reached) / (best - margin(Prediction(net(x)[None]), None, y))  # sparse steps do not end exactly
    assert (short >= -1e-9).all() and (short <= (0.3 if norm == "l1" else 1e-6)).all()


@pytest.mark.parametrize("norm", EPS)
def test_follows_the_published_loop(norm):
    """The reference from the same start, one radius. Its first check reads a loss that is not there, its L2 and L1
    projections are not onto ball and box: most samples agree to the last digits in Linf, the losses everywhere.
    """
    net, x, y = trained()
    start = (x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double() * 0.05).clamp(0, 1)
    start = Ball(norm, EPS[norm]).project(start, x)
    theirs = APGDAttack(net, n_iter=100, norm=norm.replace("l", "L", 1), eps=EPS[norm], loss="ce", device="cpu")
    theirs.init_hyperparam(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        best, robust, loss, _ = theirs.attack_single_run(x, y, x_init=start.clone())
    ours = apgd(EPS[norm], norm, return_point="best", eps_schedule=())(net, x, y, start=start)
    value = nn.functional.cross_entropy(net(ours.x), y, reduction="none")
    assert value.mean() > 0.99 * loss.mean()
    if norm == "linf":
        same = (ours.x - best).abs().flatten(1).amax(1) < 1e-9
        assert same.double().mean() > 0.9 and (value - loss).abs().median() < 1e-9
    fooled = apgd(EPS[norm], norm, eps_schedule=())(net, x, y, start=start).success
    n, reference = int(fooled.sum()), int((~robust.bool()).sum())
    assert reference - 2 <= n <= reference + 5 and 10 < n < 110


@pytest.mark.parametrize("norm", EPS)
def test_side_by_side_falls_what_falls_towards_one_target_at_a_time(norm):
    net, x, y = trained()
    together = apgd_t(EPS[norm], norm, 20, start=Uniform())(net, x, y, seed=2)
    clean = net(x)
    one = replace(apgd_t(EPS[norm], norm, 20, start=Uniform()), num_targets=None)
    by_target = []
    for rank in range(4):
        t = clean.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)[:, rank]
        by_target.append(one(net, x, y, target=t, seed=2).success)
    alone = torch.stack(by_target).any(0)
    # Towards a target any other error is a success too, which reaching that target is not.
    assert (together.success | ~alone).all() and 0 < int(together.success.sum()) < len(x)
    assert (net(together.x).argmax(1) != y).eq(together.success).all()
    few = apgd_t(EPS[norm], norm, 20, start=Uniform())(net, x, y, seed=2, batch_size=90)
    assert torch.equal(few.success, together.success) and torch.equal(few.iteration, together.iteration)
    assert torch.allclose(few.x, together.x, atol=1e-9)


def test_the_winner_is_the_earliest_and_its_step_is_told():
    net, x, y = trained()
    found = apgd_t(0.17, steps=20)(net, x, y)
    won = found.success.nonzero()[:, 0]
    assert len(won) > 10 and (found.iteration[won] <= 20).all() and found.iteration[won].unique().numel() > 2
    # All four climbs of a sample stop at that step; the clean point tells the likely classes, and one look confirms.
    assert torch.equal(found.evaluations[won], 4 * (found.iteration[won] + 1) + 2)


def test_a_cycle_ends_the_climb_without_changing_it():
    net, x, y = trained()
    attack = pgd(0.05, step_size=0.05, steps=200, return_point="best")
    assert attack._may_cycle
    quick = attack(net, x, y)
    slow = replace(attack, steps=UniformUpTo(1))  # any other schedule does not look for cycles
    assert not slow._may_cycle
    plain = x
    best, value = x, nn.functional.cross_entropy(net(x).double(), y, reduction="none")
    for _ in range(200):
        point = plain.clone().requires_grad_()
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(net(point).double(), y, reduction="sum"), point)
        plain = Ball("linf", 0.05).project(plain + 0.05 * g.sign(), x)
        now = nn.functional.cross_entropy(net(plain).double(), y, reduction="none")
        best = torch.where((now > value)[:, None, None, None], plain, best)
        value = value.maximum(now)
    assert torch.allclose(quick.x, best, rtol=0, atol=1e-15) and quick.evaluations.double().mean() < 60


def test_an_approach_from_larger_balls_ends_in_the_ball():
    net, x, y = trained()
    found = apgd(1.5, "l1", 60, restarts=2)(net, x, y)
    assert (found.distance <= 1.5 + 1e-6).all() and (found.x != x).any()
    direct = apgd(1.5, "l1", 60, eps_schedule=(), restarts=2)(net, x, y)
    assert found.success.sum() >= direct.success.sum() - 3 and found.success.any()
    assert (found.iteration[found.success] >= 36).all()  # earlier phases are in larger balls


class Noisy(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.3 * torch.randn_like(x))


def test_averaging_over_draws_of_a_random_model():
    net, x, y = trained()
    noisy = Noisy(net)
    one, many = (apgd(0.1, steps=10, return_point="best", eot_samples=draws)(noisy, x, y, seed=1) for draws in (1, 20))
    truth = [nn.functional.cross_entropy(net(found.x), y) for found in (one, many)]
    assert truth[1] > truth[0] and int(many.evaluations[0]) > 19 * 10


@pytest.mark.unchecked
def test_refuses_what_it_cannot_climb():
    net, x, y = trained(classes=3)
    with pytest.raises(EquipoiseError, match=r"targeted dlr needs at least 4 classes, the model has 3"):
        apgd_t(0.1)(net, x, y)
    with pytest.raises(EquipoiseError, match=r"num_targets = 0 leaves no target"):
        apgd(0.1, num_targets=0)
    with pytest.raises(EquipoiseError, match=r"target = -1 is no class"):
        apgd(0.1, target=-1)
    with pytest.raises(EquipoiseError, match=r"target = 3 is no class: the model has 3, numbered from 0"):
        apgd(0.1, target=3, objective=cross_entropy)(net, x, y)
    with pytest.raises(EquipoiseError, match=r"target = 1 is the class of \d+ of \d+ samples: leave them out"):
        apgd(0.1, target=1, objective=cross_entropy)(net, x, y)
    with pytest.raises(EquipoiseError, match=r"targets = 0: expected an integer"):
        apgd_t(0.1, targets=0)
    with pytest.raises(EquipoiseError, match=r"eot_samples = 0: expected an integer"):
        apgd(0.1, eot_samples=0)
    with pytest.raises(EquipoiseError, match=r"eps_schedule needs a fixed number of steps and return_point"):
        apgd(0.1, eps_schedule=((2, 0.5),), return_point="last")
    with pytest.raises(
        EquipoiseError, match=r"eps_schedule = \(\(0.5, 0.5\),\): expected pairs \(radius >= 1, share > 0\)"
    ):
        apgd(0.1, eps_schedule=((0.5, 0.5),))
    with pytest.raises(EquipoiseError, match=r"steps = 1: too few to approach the ball in 2 phases"):
        apgd(0.1, "l1", steps=1)(net, x, y)
    with pytest.raises(
        EquipoiseError, match=r"inner maximisation of training runs once; several targets are for attacks"
    ):
        cross_entropy @ apgd(0.1, objective=cross_entropy, num_targets=3)
    with pytest.raises(EquipoiseError, match=r"start must be points like x: a tensor of shape \(\d+, 1, 6, 6\)"):
        apgd(0.1)(net, x, y, start=x[:1])
    assert AutoStep().inertia == 0.75 and Boundary() == Boundary() and dlr.classes == (3, 4)

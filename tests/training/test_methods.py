"""One whole training step of each method against the same mathematics written plainly, in float64."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise import methods
from equipoise.attacks import udp
from equipoise.attacks.steps import Gaussian, Uniform
from equipoise.core.rng import Streams
from equipoise.models import Single

F64 = torch.float64
EPS, SIZE, K = 0.15, 0.03, 6
X = torch.rand(20, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
Y = torch.randint(3, (20,), generator=torch.Generator().manual_seed(1))
STREAMS = Streams.of(7, torch.arange(20))


def net(norm: bool = False) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(5, 12), nn.BatchNorm1d(12) if norm else nn.Tanh(), nn.ReLU(), nn.Linear(12, 3)
        ).double()


def climb(model, loss, steps, start=None, counts=None, size=SIZE):
    """The textbook loop: everything in the graph, samples that are finished masked."""
    delta = torch.zeros_like(X) if start is None else start - X
    for i in range(steps):
        delta = delta.detach().requires_grad_(True)
        g = torch.autograd.grad(loss(model(X + delta)).sum(), delta)[0]
        moved = (X + (delta + size * g.sign()).clamp(-EPS, EPS)).clamp(0, 1) - X
        delta = moved if counts is None else torch.where((i < counts)[:, None], moved, delta)
    return (X + delta).detach()


def ce(z: Tensor) -> Tensor:
    return F.cross_entropy(z, Y, reduction="none")


def entropy(z: Tensor) -> Tensor:
    return -(z.softmax(1) * z.log_softmax(1)).sum(1)


def divergence(kind: str, clean: Tensor, here: Tensor) -> Tensor:
    q, p = clean.softmax(1), here.softmax(1)
    return {
        "clean||here": (q * (q / p).log()).sum(1),
        "here||clean": (p * (p / q).log()).sum(1),
        "soft-cross-entropy": -(q * p.log()).sum(1),
    }[kind]


def start_of(method, rule, place):
    ascent = method.perturbations[place]
    return rule.draw(STREAMS.fold(place).fold(0), X, ascent.geometry)


def plainly(name: str, method, model: nn.Module) -> Tensor:
    """The loss of the batch."""
    if name == "standard":
        return ce(model(X)).mean()
    if name == "fgsm":
        return ce(model(climb(model, ce, 1, size=EPS))).mean()
    if name == "r-fgsm":
        return ce(model(climb(model, ce, 1, start_of(method, Uniform(), 0), size=1.25 * EPS))).mean()
    if name == "pgd":
        return ce(model(climb(model, ce, K))).mean()
    if name == "uta":
        return ce(model(climb(model, entropy, K))).mean()
    place = len(method.perturbations) - 1
    if name in ("udp", "udpr", "udp-trades"):
        counts = method.perturbations[place].steps.draw(STREAMS.fold(place).fold(1))
        assert 1 <= counts.min() < counts.max() <= K
        moved = climb(model, entropy, K, counts=counts)
        if name == "udp":
            return ce(model(moved)).mean()
        if name == "udpr":
            return (ce(model(X)) + 0.5 * ce(model(moved))).mean()
        return (ce(model(X)) + divergence("soft-cross-entropy", model(X), model(moved))).mean()
    kind = name.removeprefix("trades ")
    fixed = model(X).detach()
    moved = climb(model, lambda z: divergence(kind, fixed, z), K, start_of(method, Gaussian(0.001), place))
    return (ce(model(X)) + 6.0 * divergence(kind, model(X), model(moved))).mean()


EVERY = {
    "standard": methods.standard(),
    "fgsm": methods.fgsm_at(EPS),
    "r-fgsm": methods.r_fgsm_at(EPS),
    "pgd": methods.pgd_at(EPS, SIZE, K),
    "uta": methods.uta(EPS, SIZE, K),
    "udp": methods.udp(EPS, SIZE, K),
    "udpr": methods.udpr(EPS, SIZE, K, weight=0.5),
    "udp-trades": methods.udp_trades(EPS, SIZE, K),
    **{
        f"trades {d}": methods.trades(EPS, SIZE, K, divergence=d)
        for d in ("clean||here", "here||clean", "soft-cross-entropy")
    },
}


@pytest.mark.parametrize("name", EVERY)
def test_one_training_step(name):
    model, method = net(), EVERY[name]
    predictive = Single(model)
    points = method.points(predictive, X, Y, STREAMS)
    assert all(p.grad is None for p in model.parameters())
    loss = method.losses(predictive, X, Y, points, STREAMS)[0].mean()
    loss.backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    expected = plainly(name, method, model)
    model.zero_grad()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-13)
    for a, p in zip(ours, model.parameters(), strict=True):
        assert (a - p.grad).abs().max() < 1e-13


def test_a_step_of_trades_in_train_mode():
    """With mode="train" the perturbation sees batch statistics, as in the papers' runs."""
    model = net(norm=True).train()
    method = methods.pgd_at(EPS, SIZE, K, mode="train")
    (point,) = method.points(Single(model), X, Y, STREAMS)
    assert (point - climb(net(norm=True).train(), ce, K)).abs().max() < 1e-12
    evaluated = methods.pgd_at(EPS, SIZE, K).points(Single(model), X, Y, STREAMS)[0]
    assert not torch.allclose(point, evaluated) and model.training


def test_uncertainty_methods_ignore_the_labels_while_climbing():
    model = net()
    a = udp(EPS, SIZE, K).perturb(Single(model), X, Y, STREAMS)
    b = udp(EPS, SIZE, K).perturb(Single(model), X, (Y + 1) % 3, STREAMS)
    assert torch.equal(a, b)


def test_options_reach_the_ascent():
    assert methods.udp(0.1, mode="train").perturbations == [replace(udp(0.1, steps=20), mode="train")]
    assert methods.trades(0.1, beta=3.0).terms[1].weight == 3.0
    assert methods.udpr(0.1).terms[1].weight == 1.0

"""What people write by mistake: it works where the meaning is plain, else one sentence says what to write."""

import numpy as np
import pytest
import torch
from torch import nn

from equipoise import attacks, methods
from equipoise.attacks.ascent import Ascent
from equipoise.attacks.steps import Uniform
from equipoise.core.errors import EquipoiseError
from equipoise.evaluation import evaluate
from equipoise.geometry import Ball, Box
from equipoise.losses.objectives import cross_entropy
from equipoise.models import Ensemble

pytestmark = pytest.mark.unchecked  # annotations are not what tells a user
X = torch.rand(8, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 3


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(6, 3)


def test_a_single_attack_or_a_dictionary_is_a_suite():
    attack = attacks.pgd(0.1, steps=3)
    expected = evaluate(net(), X, Y, [("pgd", attack)])
    for meant in (attack, {"pgd": attack}, (("pgd", attack),)):
        assert evaluate(net(), X, Y, meant)[-1].correct == expected[-1].correct
    for wrong in ("pgd", ["pgd"], [attack], 3):
        with pytest.raises(EquipoiseError, match=r"expected pairs of a name and an attack, such as .*'pgd', attacks"):
            evaluate(net(), X, Y, wrong)


def test_inputs_that_require_gradients():
    x = X.clone().requires_grad_()
    assert evaluate(net(), x, Y, attacks.pgd(0.1, steps=3))[-1].n == 8
    assert not attacks.pgd(0.1, steps=3)(net(), x, Y).x.requires_grad


def test_starts_by_name_and_unknown_options():
    assert attacks.pgd(0.1, start="uniform") == attacks.pgd(0.1, start=Uniform())
    with pytest.raises(EquipoiseError, match=r"unknown start 'unifrom': did you mean 'uniform'\?"):
        attacks.pgd(0.1, start="unifrom")
    with pytest.raises(EquipoiseError, match=r"random_start is not an option: write start='uniform'"):
        attacks.pgd(0.1, random_start=True)
    with pytest.raises(EquipoiseError, match=r"unknown option of apgd 'restart': did you mean 'restarts'\?"):
        attacks.apgd(0.1, restart=3)


@pytest.mark.parametrize("wrong", [nn.CrossEntropyLoss(), lambda z, y: z.sum()])
def test_an_objective_is_no_plain_function(wrong):
    with pytest.raises(EquipoiseError, match=r"objective is a \w+: expected an Objective such as cross_entropy"):
        Ascent(wrong, Ball("linf", 0.1), 0.01, 3)


def test_members_of_an_ensemble_are_one_list():
    with pytest.raises(EquipoiseError, match=r"takes its members as one list: write Ensemble\(\[first, second\]\)"):
        Ensemble(net(), net())  # pyright: ignore[reportArgumentType]


def test_a_radius_from_numpy():
    assert Ball("linf", np.float32(0.125)) == Ball("linf", 0.125)
    assert attacks.pgd(np.float64(0.1)).geometry.eps == 0.1


def test_a_training_loop_of_ones_own_draws_anew_at_every_step():
    model, method = net(), methods.udp(0.3, 0.05, 5)
    first, again, other = (method.loss(model, X, Y, step=step).item() for step in (0, 0, 1))
    assert first == again != other
    method.loss(model, X, Y, step=2).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["pgd", "trades", "fmn", "minimal_l2", "nearest", "pgd_k", "adaptive", "autoattack"])
def test_no_constant_means_pixels_of_0_to_1(name):
    """What is found in [0, 1] is found in [0, 255], scaled, with the defaults of every attack."""

    class Bytes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net().double()

        def forward(self, x):
            return self.net(x / 255)

    box, x = Box(0, 255), X.double()
    make = {
        "pgd": lambda box: attacks.pgd(0.1 * box.scale, box=box),
        "trades": lambda box: attacks.ATTACKS["trades"](0.1 * box.scale, box=box),
        "fmn": lambda box: attacks.fmn(box=box),
        "minimal_l2": lambda box: attacks.minimal_l2(box=box),
        "nearest": lambda box: attacks.nearest(box=box, steps=20, looks=4),
        "pgd_k": lambda box: attacks.pgd_k(5, 20, box=box),
        "adaptive": lambda box: attacks.adaptive(0.1 * box.scale, steps=5, box=box),
        "autoattack": lambda box: attacks.autoattack(0.1 * box.scale, box=box),
    }[name]
    small, large = make(Box())(net().double(), x, Y), make(box)(Bytes(), x * 255, Y)
    assert torch.equal(small.success, large.success) and small.success.any()
    assert torch.allclose(small.distance * 255, large.distance, rtol=1e-3, atol=1e-6)


def test_cross_entropy_stays_an_objective():
    assert Ascent(cross_entropy, Ball("linf", 0.1), 0.01, 3).objective is cross_entropy

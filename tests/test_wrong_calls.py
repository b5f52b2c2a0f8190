"""What people write by mistake: it works where the meaning is plain, else one sentence says what to write."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from equipoise import attacks, methods
from equipoise.attacks.ascent import Ascent
from equipoise.attacks.steps import Uniform
from equipoise.core.errors import EquipoiseError
from equipoise.data import load
from equipoise.evaluation import evaluate
from equipoise.geometry import Ball, Box
from equipoise.losses import Method, Term, cross_entropy, entropy, kl
from equipoise.masking.investigate import investigate
from equipoise.models import Ensemble, Single
from equipoise.nets import build
from equipoise.training import fit

pytestmark = pytest.mark.unchecked  # annotations are not what tells a user
X = torch.rand(8, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 3
BALL = Ball("linf", 0.1)


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
    with pytest.raises(EquipoiseError, match=r"objective .*: expected an Objective such as cross_entropy"):
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


TERM = cross_entropy @ attacks.pgd(0.1, 0.02, 3)
METHOD = methods.udp(0.1, 0.02, 3)
COMPOSITIONS = {
    "a function": (lambda: kl + cross_entropy, r"^kl is a function: write kl\(\)\.$"),
    "a function on the right": (lambda: METHOD + kl, r"^kl is a function: write kl\(\)\.$"),
    "a product": (lambda: entropy * cross_entropy, r"^entropy \* cross-entropy: a weight is a number, such as 2 \*"),
    "a product of methods": (lambda: METHOD * METHOD, r": a weight is a number"),
    "a weight in words": (lambda: "2" * TERM, r"\* '2': a weight is a number"),
    "a tensor as weight": (lambda: torch.tensor(2.0) * cross_entropy, r"\* tensor\(2\.\): a weight is a number"),
    "divided by 0": (lambda: cross_entropy / 0, r"^cross-entropy / 0: expected a number other than 0\.$"),
    "a number added": (lambda: 2 + cross_entropy, r"^2 is a number: numbers weigh terms, as in 2 \* cross_entropy\.$"),
    "a number after a method": (lambda: METHOD - 1, r"^1 is a number: numbers weigh terms"),
    "a number as the point": (
        lambda: cross_entropy @ 3,
        r"^cross-entropy @ 3: expected an ascent on the right, such as",
    ),
    "a name as the point": (lambda: cross_entropy @ "pgd", r"^cross-entropy @ 'pgd': expected an ascent on the right"),
    "an objective as the point": (
        lambda: cross_entropy @ entropy,
        r"^cross-entropy @ entropy: expected an ascent on",
    ),
    "the wrong way round": (
        lambda: attacks.pgd(0.1) @ cross_entropy,
        r"@ cross-entropy: expected an objective on the le",
    ),
    "a term at a point": (lambda: TERM @ attacks.pgd(0.1), r"expected an objective on the left and an ascent on"),
    "an attack added": (
        lambda: METHOD + attacks.pgd(0.1),
        r"is an attack: write cross_entropy @ attack for the loss at",
    ),
    "a loss of PyTorch": (
        lambda: cross_entropy + nn.CrossEntropyLoss(),
        r"^a CrossEntropyLoss is not part of a training",
    ),
    "a penalty added": (
        lambda: TERM + (lambda module, x, y: 0.0),
        r"a penalty is added by method\.with_penalty\(weight",
    ),
    "a model called": (
        lambda: cross_entropy(net(), X, Y),
        r"^here is a Linear|^here = Linear.*: expected logits, as in cro",
    ),
    "labels as the clean prediction": (
        lambda: cross_entropy(net()(X), Y),
        r"^clean is a Tensor: expected logits, as in cr",
    ),
    "a step left out": (
        lambda: METHOD.loss(net(), X, Y),
        r"^loss cannot be called like this: missing .*'step'; it takes",
    ),
    "a term of a number": (lambda: Term(3), r"^objective = 3 is an int: expected an Objective such as cross_entropy"),
    "a method of a list": (lambda: Method([cross_entropy]), r"^terms = .*: expected a tuple of a Term each\.$"),
}


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_what_is_no_sum_of_terms(name):
    compose, sentence = COMPOSITIONS[name]
    with pytest.raises(EquipoiseError, match=sentence):
        compose()


def test_sums_and_multiples_that_mean_something():
    assert cross_entropy / 2 == 0.5 * cross_entropy and 0 + cross_entropy is cross_entropy
    assert sum([cross_entropy, entropy]) == cross_entropy + entropy
    assert METHOD / 2 == 0.5 * METHOD and sum([TERM, METHOD]) == TERM + METHOD
    assert (entropy - TERM).terms == (Term(entropy), -TERM) and 0 - TERM == -TERM
    logits = net()(X)
    expected = nn.functional.cross_entropy(logits, Y, reduction="none")
    assert torch.allclose(cross_entropy(logits, labels=Y), expected)


MISTYPED = {
    "a number as box": (
        lambda: attacks.pgd(0.1, box=3),
        r"^box = 3 is an int: expected a Box such as Box\(0, 255\)\.$",
    ),
    "a pair as box": (lambda: Ball("linf", 0.1, (1, 0)), r"^box = \(1, 0\) is a tuple: expected a Box such as"),
    "a name as box": (lambda: methods.udp(0.1, box="x"), r"^box = 'x' is a str: expected a Box"),
    "an empty box": (lambda: attacks.pgd(0.1, box=Box(1, 0)), r"low = 1 must be smaller than high = 0"),
    "a norm as ball": (
        lambda: attacks.FAB("linf", "0.1"),
        r"^geometry = 'linf' is a str: expected a Ball such as Ball\(",
    ),
    "a radius as ball": (lambda: Ascent(cross_entropy, 0.1, 0.01, 3), r"^geometry = 0\.1: expected a Ball such as"),
    "steps in words": (lambda: attacks.FAB(BALL, "3"), r"^steps = '3' is a str: expected an integer\.$"),
    "a step size in words": (
        lambda: Ascent(cross_entropy, BALL, "0.01", 3),
        r"^step_size = '0\.01' is a str: expected a S",
    ),
    "a step rule in words": (lambda: attacks.pgd(0.1, step="sign"), r"^step = 'sign' is a str: expected a StepRule\.$"),
    "a class as start": (
        lambda: attacks.pgd(0.1, start=Uniform),
        r"^start is the class Uniform: expected a Start, 'zero'",
    ),
    "a choice that is none": (
        lambda: attacks.FAB(BALL, precision="16"),
        r"^unknown precision '16': did you mean 'bf16'",
    ),
    "attacks without names": (
        lambda: attacks.Chain([attacks.pgd(0.1)]),
        r"^parts = .*: expected a tuple of \(a string, an A",
    ),
    "a number as attack": (lambda: attacks.Bisected(3), r"^attack = 3 is an int: expected an AttackLike\.$"),
    "a model as radius": (lambda: attacks.pgd(net(), X, Y), r"^eps .*: expected a number or a Tensor\.$"),
    "a recipe of its own": (
        lambda: fit(METHOD, net(), load("digits"), recipe={}),
        r"^recipe = \{\} is a dict: expected a Re",
    ),
    "an option of the recipe": (
        lambda: fit(METHOD, net(), load("digits"), epochs=3),
        r"^epochs is a field of Recipe: write recipe=Recipe\(epochs=\.\.\.\)\.$",
    ),
    "no attack": (
        lambda: evaluate(net(), X, Y),
        r"^evaluate\(model, x, y\) has no attacks: give them last, such as \[\('pgd', attacks.pgd",
    ),
    "a radius in words": (lambda: investigate(net(), X, Y, "0.1"), r"^eps = '0\.1' is a str: expected a number\.$"),
    "classes in words": (lambda: build("mlp", (6,), "3"), r"^classes = '3' is a str: expected an integer\.$"),
    "a number as module": (lambda: Single(3), r"^module = 3 is an int: expected a Module\.$"),
}


@pytest.mark.parametrize("name", MISTYPED)
def test_arguments_of_a_wrong_type(name):
    call, sentence = MISTYPED[name]
    with pytest.raises(EquipoiseError, match=sentence):
        call()


def test_the_fields_of_an_attack_of_ones_own_are_checked():
    @dataclass(frozen=True)
    class Own(attacks.SearchAttack):
        kind = "own"
        geometry: Ball
        share: float = 0.5

        def search(self, batch):
            return attacks.Candidates.unmoved(batch.x)

    with pytest.raises(EquipoiseError, match=r"^share = 'half' is a str: expected a number\.$"):
        Own(BALL, "half")
    assert Own(BALL, 1).share == 1

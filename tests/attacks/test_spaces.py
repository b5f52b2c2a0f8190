"""Latent spaces: the input as the identity's code, codes against plain forward passes, gradients to both parts."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from equipoise import attacks
from equipoise.attacks import cw, trades, udp
from equipoise.attacks.spaces import Input, Latent
from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import Streams
from equipoise.evaluation import evaluate
from equipoise.geometry import EVERYWHERE, Ball, Box
from equipoise.models import Ensemble, Single, frozen
from equipoise.nets import build
from equipoise.nets.split import split
from equipoise.training import Recipe, fit
from equipoise.training.methods import ls_pgd, ls_trades, ls_udp, ls_udpr
from equipoise.training.methods import udp as udp_training

pgd = partial(attacks.pgd, start="zero", return_point="last")

X, Y = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
STREAMS = Streams.of(0, torch.arange(8))


def lenet() -> nn.Module:
    return build("lenet", (1, 16, 16), 4)


@pytest.mark.parametrize("attack", [udp, pgd, cw, trades])
def test_the_identity_as_encoder_makes_it_the_input(attack):
    """Latent UDP equals input UDP, in an attack and in training."""
    model = lenet()
    plain = attack(0.1, 0.02, 5, box=EVERYWHERE)
    latent = attack(0.1, 0.02, 5, space=Latent("input"))
    a, b = plain(model, X, Y), latent(model, X, Y)
    assert torch.equal(a.x, b.x) and torch.equal(a.success, b.success) and torch.equal(a.distance, b.distance)
    predictive = Single(model)
    assert torch.equal(plain.perturb(predictive, X, Y, STREAMS) - X, latent.perturb(predictive, X, Y, STREAMS))


def test_an_identity_encoder_trains_the_same():
    inside, outside = ls_udp(0.1, "input", 0.02, 5), udp_training(0.1, 0.02, 5, box=EVERYWHERE)
    losses = []
    for method in (inside, outside):
        model = Single(lenet())
        value, _ = method.losses(model, X, Y, method.points(model, X, Y, STREAMS), STREAMS)
        value.sum().backward()
        losses.append((value.detach(), [p.grad for p in model.module.parameters()]))
    assert torch.allclose(losses[0][0], losses[1][0], atol=1e-6)
    assert all(torch.allclose(g, h, atol=1e-5) for g, h in zip(losses[0][1], losses[1][1], strict=True))


def test_an_attack_on_codes_is_one_on_the_classifier():
    model = lenet()
    encoder, classifier = split(model, "fc1")
    codes = encoder(X).detach()
    found = pgd(0.5, 0.1, 8, space=Latent("fc1"))(model, X, Y)
    assert found.x.shape == codes.shape == (8, 120)
    assert torch.equal(found.x, pgd(0.5, 0.1, 8, box=EVERYWHERE)(classifier, codes, Y).x)
    assert (found.x - codes).abs().max() <= 0.5 + 1e-6 and torch.equal(found.prediction, classifier(found.x).argmax(1))
    in_range = pgd(0.5, 0.1, 8, space=Latent("fc1", Box(0, 100)))(model, X, Y)
    assert in_range.x.min() >= 0 and found.x.min() < 0


def test_both_parts_learn_from_a_moved_code():
    """Value and gradient are those of CE(C(E(x) + d)) with d held fixed."""
    model = lenet()
    method = ls_pgd(0.3, "fc1", 0.05, 6)
    predictive = Single(model)
    (shift,) = method.points(predictive, X, Y, STREAMS)
    value, _ = method.losses(predictive, X, Y, [shift], STREAMS)
    gradients = torch.autograd.grad(value.sum(), list(model.parameters()))
    encoder, classifier = split(model, "fc1")
    assert 0.29 < shift.abs().max() <= 0.3 + 1e-6
    plain = nn.functional.cross_entropy(classifier(encoder(X) + shift), Y, reduction="none")
    expected = torch.autograd.grad(plain.sum(), list(model.parameters()))
    assert torch.allclose(value, plain, atol=1e-5)
    for mine, theirs in zip(gradients, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4) and mine.abs().max() > 0


def test_the_perturbation_of_a_batch_norm_network_stays_in_its_ball():
    """Climbed in eval mode, trained in train mode, whose codes are others: the loss is CE(C(E(x) + d)), |d| <= eps."""
    model = build("resnet18", (1, 16, 16), 4, seed=0).train()
    method, predictive = ls_udp(0.2, "block8", 0.05, 5), Single(model)
    (shift,) = method.points(predictive, X, Y, STREAMS)
    value, _ = method.losses(predictive, X, Y, [shift], STREAMS)
    encoder, classifier = split(model, "block8")
    with torch.no_grad():
        trained, standing = encoder(X), split(model.eval(), "block8")[0](X)
        model.train()
        expected = nn.functional.cross_entropy(classifier(trained + shift), Y, reduction="none")
    assert 0.19 < shift.abs().max() <= 0.2 + 1e-6 and (trained - standing).abs().max() > 1
    assert torch.allclose(value, expected, atol=1e-5)


@pytest.mark.parametrize("make", [ls_pgd, ls_udp, ls_udpr, ls_trades])
def test_every_latent_method_trains_and_is_validated_in_the_input(make, small_digits):
    run = fit(make(0.02, "fc1", 0.01, 4), build("mlp", small_digits.shape, 10), small_digits, Recipe(epochs=3, lr=0.01))
    assert run.last["train_accuracy"] > 0.3 and run.recipe["valid_eps"] == 0.1 and run.recipe["valid_norm"] == "linf"
    assert run.method["terms"][-1]["at"]["space"] == {"kind": "Latent", "layer": "fc1", "box": run_box()}


def run_box() -> dict:
    return {"kind": "Box", "low": -math.inf, "high": math.inf}


def test_an_ensemble_perturbs_the_codes_of_all_members():
    model = Ensemble([build("lenet", (1, 16, 16), 4, seed=s) for s in range(3)])
    found = udp(0.5, 0.1, 5, space=Latent("fc1"), uncertainty="mutual_information")(model, X)
    assert found.x.shape == (8, 3, 120)
    method = ls_udp(0.5, "fc1", 0.1, 5).per_member()
    value, _ = method.losses(model, X, Y, method.points(model, X, Y, STREAMS), STREAMS)
    value.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.module.parameters())


def test_the_classifiers_batch_norm_sees_codes_in_train_mode():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).train()
    before = model[2].running_mean.clone()
    pgd(0.1, 0.05, 2, space=Latent("1"), mode="eval").perturb(Single(model), X, Y, STREAMS)
    assert torch.equal(model[2].running_mean, before) and model.training
    pgd(0.1, 0.05, 2, space=Latent("1"), mode="train").perturb(Single(model), X, Y, STREAMS)
    assert not torch.equal(model[2].running_mean, before)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_without_walls_a_projection_is_the_textbook_one(norm):
    """Against the box so wide that it never binds, and for large coordinates."""
    centre = 100 * torch.randn(5, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = centre + 3 * torch.randn(5, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    here, wide = Ball(norm, 2.0, EVERYWHERE), Ball(norm, 2.0, Box(-1e6, 1e6))
    point = here.project(x, centre)
    assert torch.allclose(point, wide.project(x, centre), atol=1e-9)
    assert here.contains(point, centre).all() and here.contains(point.float(), centre.float()).all()
    gradient = torch.randn(5, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.allclose(here.steepest(x, gradient, 0.5), wide.steepest(x, gradient, 0.5), atol=1e-9)
    everything = Ball(norm, math.inf, EVERYWHERE)
    assert torch.equal(everything.project(x, centre), x)


def test_evaluating_in_a_latent_space_is_refused():
    attack = pgd(0.5, 0.1, 2, space=Latent("fc1"), box=EVERYWHERE)
    with pytest.raises(EquipoiseError, match=r"ls perturbs a latent space: robustness is measured in the input"):
        evaluate(lenet(), X, Y, [("ls", attack)])


def test_what_cannot_be_split_is_refused():
    class Own:
        module = lenet()

        def draw(self, streams=None, weights=None):
            return Single(self.module).draw(streams, weights)

    with pytest.raises(EquipoiseError, match=r"an Own cannot be split at 'fc1': perturb it in the input"):
        pgd(0.5, 0.1, 2, space=Latent("fc1"))(Own(), X, Y)
    with pytest.raises(EquipoiseError, match=r"unknown layer 'fc9'"):
        fit_one = ls_udp(0.5, "fc9", 0.1, 2)
        fit_one.points(Single(lenet()), X, Y, STREAMS)


def test_the_input_is_a_space_too():
    still = frozen(Single(lenet()))
    assert Input().enter(still, X) == (still, X) and Input().box is None

"""Ensembles: against plain means, members trained alone, and themselves computed the other way."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from equipoise import attacks
from equipoise.attacks import udp
from equipoise.attacks.spaces import Latent
from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import Streams
from equipoise.core.types import Prediction
from equipoise.losses.objectives import mutual_information
from equipoise.models import Ensemble, Single, frozen_weights, with_module
from equipoise.nets import build
from equipoise.training import Recipe, build_model, fit
from equipoise.training.methods import standard, trades
from equipoise.training.methods import udp as udp_training

pgd = partial(attacks.pgd, start="zero", return_point="last")

X, Y = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3


def nets(count: int = 3, name: str = "mlp", **options) -> list[nn.Module]:
    return [build(name, (1, 8, 8), 3, seed=seed, **options) for seed in range(count)]


@pytest.mark.parametrize("vectorize", [True, False])
def test_it_is_the_mean_of_its_members(vectorize):
    members = nets()
    prediction = Ensemble(members, vectorize=vectorize).draw()(X)
    logits = torch.stack([member(X) for member in members])
    assert torch.allclose(prediction.logits, logits, atol=1e-6)
    assert torch.allclose(prediction.log_probs.exp(), logits.softmax(-1).mean(0), atol=1e-6)


@pytest.mark.parametrize("vectorize", [None, True, False])
def test_an_ensemble_of_one_equals_the_network_bit_for_bit(vectorize):
    (net,) = nets(1)
    alone, of_one = Single(net), Ensemble([net], vectorize=vectorize)
    assert torch.equal(alone.draw()(X).logits, of_one.draw()(X).logits)
    for attack in (pgd(0.1, 0.02, 5), udp(0.1, 0.02, 5)):
        assert torch.equal(attack(alone, X, Y).x, attack(of_one, X, Y).x)


def test_side_by_side_equals_one_after_the_other():
    """Predictions, input gradients and the gradients of the weights."""
    members = nets()
    losses = []
    for vectorize in (True, False):
        model = Ensemble(copy.deepcopy(members), vectorize=vectorize)
        method = udp_training(0.1, 0.02, 3, uncertainty="mutual_information").per_member()
        streams = Streams.of(0, torch.arange(9))
        points = method.points(model, X, Y, streams)
        loss = method.losses(model, X, Y, points, streams)[0].mean()
        loss.backward()
        losses.append((loss, points[0], [p.grad for p in model.module.parameters()]))
    (a, x, first), (b, z, second) = losses
    assert torch.allclose(a, b, atol=1e-6) and torch.allclose(x, z, atol=1e-6)
    assert all(torch.allclose(g, h, atol=1e-6) for g, h in zip(first, second, strict=True))


def test_members_may_differ(small_digits):
    members = [*nets(1), build("mlp", (1, 8, 8), 3, widths=(16, 16)), nn.Sequential(nn.Flatten(), nn.Linear(64, 3))]
    found = pgd(0.2, 0.05, 5)(Ensemble(members), X, Y)
    logits = torch.stack([member(found.x) for member in members])
    assert torch.equal(found.prediction, logits.softmax(-1).mean(0).argmax(1))


def test_trained_apart_each_member_takes_the_steps_it_takes_alone(small_digits):
    recipe = Recipe(epochs=2, batch_size=32, optimizer="sgd", lr=0.1, seed=3)
    alone = [build("mlp", small_digits.shape, 10, seed=s) for s in range(2)]
    together = Ensemble(copy.deepcopy(alone))
    for member in alone:
        fit(standard(), member, small_digits, recipe)
    fit(standard().per_member(), together, small_digits, recipe)
    for one, other in zip(alone, together.module, strict=True):
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.allclose(p, q, atol=1e-5)


def test_trained_together_the_mean_descends():
    model = Ensemble(nets())
    streams = Streams.of(0, torch.arange(9))
    losses, shown = standard().losses(model, X, Y, [None], streams)
    p = torch.stack([member(X) for member in model.module]).softmax(-1).mean(0)
    assert torch.allclose(losses, -p[torch.arange(9), Y].log(), atol=1e-6) and len(shown.logits) == 3


def test_every_member_is_compared_with_its_own_clean_output():
    model = Ensemble(nets())
    streams = Streams.of(0, torch.arange(9))
    method = trades(0.1, 0.02, 3).per_member()
    points = method.points(model, X, Y, streams)
    losses, _ = method.losses(model, X, Y, points, streams)
    expected = torch.zeros(9)
    (moved,) = [p for p in points if p is not None]
    for member in model.module:
        clean, here = member(X).log_softmax(1), member(moved).log_softmax(1)
        expected = expected - clean[torch.arange(9), Y] + 6 * (clean.exp() * (clean - here)).sum(1)
    assert torch.allclose(losses, expected, atol=1e-5)


def test_with_frozen_weights_it_does_not_see_later_steps():
    for vectorize in (True, False):
        model = Ensemble(nets(), vectorize=vectorize)
        frozen = model.draw(None, {n: w.clone() for n, w in frozen_weights(model.module, "eval").items()})
        live, before = model.draw(), frozen(X).logits
        with torch.no_grad():
            next(model.module.parameters()).add_(1.0)
        assert torch.equal(frozen(X).logits, before) and not torch.allclose(live(X).logits, before)


@pytest.mark.parametrize("vectorize", [True, False])
def test_members_may_share_weights(vectorize):
    """A common first layer is held still for all members, whatever its name in each."""
    first, second = nets(2)
    second.layers[1] = first.layers[1]
    model = Ensemble([first, second], vectorize=vectorize)
    frozen = model.draw(None, frozen_weights(model.module, "eval"))(X)
    assert torch.allclose(frozen.logits, torch.stack([first(X), second(X)]), atol=1e-6)
    assert not frozen.logits.requires_grad


def test_a_split_ensemble_has_a_code_for_every_member():
    model = Ensemble(nets())
    for vectorize in (True, False):
        encoder, rest = Ensemble(model.module, vectorize=vectorize).split("fc1")
        codes = encoder(X)
        assert codes.shape == (9, 3, 256)
        assert torch.allclose(rest.draw()(codes).logits, model.draw()(X).logits, atol=1e-6)


def test_a_run_of_an_ensemble_can_be_built_again():
    net = {"name": "mlp", "shape": [1, 8, 8], "classes": 3, "seed": 5, "members": 3}
    first, again = build_model(net), build_model(net)
    assert isinstance(first, Ensemble) and isinstance(again, Ensemble) and len(first) == 3
    assert torch.equal(first.draw()(X).logits, again.draw()(X).logits)
    alone = build_model(net | {"members": 1})
    assert isinstance(alone, nn.Module) and torch.equal(alone(X), first.draw()(X).logits[0])
    assert mutual_information(first.draw()(X)).min() > 1e-6, "the members differ"


def test_averaged_weights_make_the_same_kind_of_model():
    first, second = Ensemble(nets()), Ensemble(nets(4)[1:])
    moved = with_module(first, second.module)
    assert isinstance(moved, Ensemble) and torch.equal(moved.draw()(X).logits, second.draw()(X).logits)


def test_batch_norm_in_train_mode_is_computed_one_after_the_other():
    """Predictions and running statistics, where vmap would stop."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        members = [
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
            for _ in range(2)
        ]
    side, plain = (Ensemble(copy.deepcopy(members), vectorize=v) for v in (True, False))
    attack = udp(0.1, 0.05, 2, mode="train")
    streams = Streams.of(0, torch.arange(9))
    assert torch.equal(attack.perturb(side, X, Y, streams), attack.perturb(plain, X, Y, streams))
    mine, theirs = side.module.state_dict(), plain.module.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    attack = udp(0.1, 0.05, 2)
    assert torch.allclose(attack(side, X, Y).x, attack(plain, X, Y).x, atol=1e-4)


def test_members_whose_codes_differ_in_shape_are_refused_together():
    model = Ensemble([*nets(1), build("mlp", (1, 8, 8), 3, widths=(4,))])
    with pytest.raises(EquipoiseError, match=r"codes at 'fc1' have different shapes, \(\d+,\) and \(4,\): perturb"):
        udp(0.1, 0.05, 3, space=Latent("fc1"))(model, X, Y)


def test_in_l2_the_members_share_one_ball():
    model = Ensemble(nets())
    found = pgd(0.1, 0.05, 5, "l2", space=Latent("fc1"))(model, X, Y)
    encoder, _ = model.split("fc1")
    moved = found.x - encoder(X).detach()
    together, each = moved.flatten(1).norm(dim=1), moved.flatten(2).norm(dim=2)
    assert torch.allclose(together, torch.full((9,), 0.1), atol=1e-5) and each.max() < 0.1


def test_bad_ensembles_are_refused():
    with pytest.raises(EquipoiseError, match=r"an ensemble needs at least one network"):
        Ensemble([])
    with pytest.raises(EquipoiseError, match=r"a str is no member of an ensemble: expected torch.nn.Modules"):
        Ensemble(["lenet"])
    with pytest.raises(EquipoiseError, match=r"vectorize = True needs members of one architecture"):
        Ensemble([*nets(1), build("mlp", (1, 8, 8), 3, widths=(4,))], vectorize=True)
    with pytest.raises(EquipoiseError, match=r"members = 0: expected an integer"):
        build_model({"name": "mlp", "shape": [4], "classes": 2, "members": 0})
    with pytest.raises(EquipoiseError, match=r"exclude each other: choose one of them"):
        build_model({"name": "mlp", "shape": [4], "classes": 2, "members": 2, "dropout_samples": 3})


def test_what_needs_members_is_refused_for_one_network(small_digits):
    with pytest.raises(EquipoiseError, match=r"mutual information compares members, the model has 1"):
        udp(0.1, uncertainty="mutual_information")(nets(1)[0], X, Y)
    method = udp_training(0.1, uncertainty="mutual_information")
    with pytest.raises(EquipoiseError, match=r"mutual information compares members, the model has 1"):
        fit(method, build("mlp", small_digits.shape, 10), small_digits, Recipe(epochs=1))


def test_averaged_weights_of_a_model_that_cannot_take_them_are_refused():
    class Own:
        module = nets(1)[0]

        def draw(self, streams=None, weights=None):
            return lambda x: Prediction(self.module(x)[None])

    with pytest.raises(EquipoiseError, match=r"an Own cannot take averaged weights: make it a dataclass"):
        with_module(Own(), nets(1)[0])

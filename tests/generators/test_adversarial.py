"""The adversarial generator and the robustness term, against loops by hand and a classifier whose margin is known."""

import math

import pytest
import torch
from torch import nn

from equipoise import methods
from equipoise.core.errors import EquipoiseError
from equipoise.generators import AdversarialGenerator, Adversary, GeneratedMargin
from equipoise.models import Ensemble, as_predictive
from equipoise.models.inference import frozen_weights

SHAPES = [(1, 8, 8), (3, 9, 11), (1, 28, 28), (3, 4, 4), (12,), (1,)]


def inputs(shape: tuple[int, ...], n: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def moving(shape: tuple[int, ...], size: float = 0.3) -> AdversarialGenerator:
    """A generator that moves: its last layer is no longer zero."""
    generator = AdversarialGenerator(shape)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in generator.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=source))
    return generator


def linear(features: int = 12, classes: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(features, classes))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_starts_as_the_identity_and_stays_in_the_box(shape):
    x = inputs(shape)
    assert AdversarialGenerator(shape)(x).equal(x)
    moved = moving(shape)(x)
    assert moved.shape == x.shape and not moved.equal(x)
    assert moved.min() >= 0 and moved.max() <= 1


def test_a_sample_does_not_depend_on_its_batch():
    x, generator = inputs((1, 8, 8)), moving((1, 8, 8))
    torch.testing.assert_close(generator(x)[2:3], generator(x[2:3]), rtol=1e-5, atol=1e-6)


def test_its_weights_come_from_the_seed_alone():
    state = torch.get_rng_state()
    first, again, other = (AdversarialGenerator((1, 8, 8), seed=seed).move.down.weight for seed in (3, 3, 4))
    assert first.equal(again) and not first.equal(other)
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("scores", ["logits", "probabilities"])
def test_its_loss_is_the_formula(scores):
    """½ ‖g(x) - x‖² + a · max(s_c - best other s_j, 0), sample by sample, in float64."""
    net, generator, x = linear(64).double(), moving((1, 8, 8)).double(), inputs((1, 8, 8), 20).double()
    adversary = Adversary(generator, crossing=3.0, scores=scores)
    losses, shown = adversary.losses(as_predictive(net).draw(), x)
    for i in range(len(x)):
        c, moved = int(net(x[i : i + 1]).argmax()), generator(x[i : i + 1])
        s = net(moved)[0] if scores == "logits" else net(moved)[0].softmax(0)
        other = max(s[j].item() for j in range(3) if j != c)
        expected = (moved - x[i]).pow(2).sum().item() / 2 + 3.0 * max(s[c].item() - other, 0)
        assert losses[i].item() == pytest.approx(expected, rel=1e-9)
        assert shown["crossed"][i] == float(s.argmax() != c)
        assert shown["distance"][i].item() == pytest.approx((moved - x[i]).norm().item(), rel=1e-9)
    assert 0 < shown["crossed"].sum() < len(x)


def test_it_finds_the_margin_of_a_linear_classifier():
    """Against `w·x + b` on vectors the nearest point of the other side is |w·x + b| / ‖w‖ away. g cannot know it
    exactly for every x; it crosses for nearly all of them at distances of at most 1.6 times that, never below it.
    """
    features, n = 8, 512
    w = torch.tensor([1.0, -1.0] * 4)
    net = nn.Linear(features, 2)
    with torch.no_grad():
        net.weight.copy_(torch.stack([-2 * w, 2 * w]))
        net.bias.zero_()
    x = 0.25 + 0.5 * inputs((features,), n)  # far from the walls
    adversary = Adversary(crossing=10.0, lr=3e-3).build_for((features,), 0)
    predict, optimizer = as_predictive(net).draw(None, frozen_weights(net, "eval")), adversary.make_optimizer()
    first = adversary.losses(predict, x)[0].mean().item()
    for _ in range(300):
        losses, shown = adversary.losses(predict, x)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    # Just over the boundary the hinge is 0 and the distance pulls back: look a hair's breadth further.
    gone = 1.02 * (adversary.network()(x) - x) + x
    crossed = net(gone).argmax(1) != net(x).argmax(1)
    margins = (x @ w).abs() / w.norm()
    assert losses.mean() < 0.3 * first
    assert crossed.double().mean() > 0.8
    assert (shown["distance"][shown["crossed"].bool()] >= margins[shown["crossed"].bool()] - 1e-5).all()
    assert shown["distance"].mean() < 1.6 * margins.mean()
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("softness", [0.0, 0.5, 1.0])
def test_the_margin_is_the_formula(softness):
    net, generator, x = linear(), moving((12,)), inputs((12,), 20)
    y = torch.zeros(20, dtype=torch.int64)
    value = GeneratedMargin(Adversary(generator), softness, 0)(net, x, y)
    expected = 0.0
    for i in range(len(x)):
        there = generator(x[i : i + 1])
        p, q = net(x[i : i + 1])[0].softmax(0), net(there)[0].softmax(0)
        difference = -sum(p[k].item() * math.log(q[k].item()) for k in range(3))
        expected += (there - x[i]).norm().item() / (softness + difference) / len(x)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    if softness == 1:
        assert 0 < value <= (generator(x) - x).norm(dim=1).mean()


def test_the_published_margin_has_a_floor():
    """A classifier that is certain everywhere: CE = 0, which counts as 0.001."""
    net, generator, x = nn.Linear(12, 2), moving((12,)), inputs((12,))
    with torch.no_grad():
        net.weight.zero_()
        net.bias.copy_(torch.tensor([100.0, 0.0]))
    distance = (generator(x) - x).norm(dim=1).mean().item()
    y = torch.zeros(6, dtype=torch.int64)
    assert GeneratedMargin(Adversary(generator), 0.0, 0)(net, x, y).item() == pytest.approx(1000 * distance, rel=1e-4)
    assert GeneratedMargin(Adversary(generator), 1.0, 0)(net, x, y).item() == pytest.approx(distance, rel=1e-4)


@pytest.mark.parametrize("clean", ["held", "live"])
def test_the_gradient_goes_through_the_clean_prediction_if_it_is_live(clean):
    """F, Eq. 12, against the formula written out, with and without a constant first argument of CE."""
    net, generator, x = linear().double(), moving((12,)).double(), inputs((12,), 20).double()
    y = torch.zeros(20, dtype=torch.int64)
    GeneratedMargin(Adversary(generator), 0.0, 0, clean)(net, x, y).backward()
    weight = net[1].weight
    got, weight.grad = weight.grad.clone(), None
    there = generator(x).detach()
    p = net(x).softmax(1)
    p = p.detach() if clean == "held" else p
    cross_entropy = -(p * net(there).log_softmax(1)).sum(1)
    ((there - x).norm(dim=1) / cross_entropy).mean().backward()
    torch.testing.assert_close(got, weight.grad, rtol=1e-9, atol=1e-12)
    assert f"clean {clean}" in str(GeneratedMargin(clean=clean).__name__) or clean == "held"


def test_each_quirk_of_the_published_training_can_be_had_by_itself():
    """And all of them together; the penalty is subtracted, as Eq. 7 has it, for every positive weight."""
    published = {"softness": 0.0, "halvings": 0, "crossing": 1.0, "scores": "probabilities", "clean": "live"}
    for quirks in ({}, published, *({name: value} for name, value in published.items())):
        ((weight, penalty),) = methods.r2(weight=0.1, **quirks).penalties
        assert weight == -0.1
        for name, value in published.items():
            of = penalty.auxiliary_network if name in ("crossing", "scores") else penalty
            usual = getattr(type(of)(), name)
            assert getattr(of, name) == (value if name in quirks else usual) and value != usual


def test_each_network_has_gradients_of_its_own():
    net, generator, x = linear(), moving((12,)), inputs((12,))
    GeneratedMargin(Adversary(generator), halvings=0)(net, x, torch.zeros(6, dtype=torch.int64)).backward()
    assert all(p.grad is None for p in generator.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    net.zero_grad()
    predict = as_predictive(net).draw(None, frozen_weights(net, "eval"))
    Adversary(generator).losses(predict, x)[0].mean().backward()
    assert all(p.grad is None for p in net.parameters())
    assert all(p.grad is not None for p in generator.parameters())


def test_the_margin_grows_by_agreement_at_the_generated_point():
    """Only the prediction at x* is varied: the gradient is that of eps*/(1 + CE(p, f(x*))) with p a constant."""
    net, generator, x = linear().double(), moving((12,)).double(), inputs((12,)).double()
    GeneratedMargin(Adversary(generator), halvings=0)(net, x, torch.zeros(6, dtype=torch.int64)).backward()
    weight = net[1].weight
    got, weight.grad = weight.grad.clone(), None
    p, there = net(x).softmax(1).detach(), generator(x).detach()
    difference = nn.functional.cross_entropy(net(there), p, reduction="none")
    ((there - x).norm(dim=1) / (1 + difference)).mean().backward()
    torch.testing.assert_close(got, weight.grad)


def test_for_an_ensemble_it_is_that_of_the_mean():
    members, generator, x = [linear(), linear(classes=3).apply(_shift)], moving((12,)), inputs((12,))
    y = torch.zeros(6, dtype=torch.int64)
    value = GeneratedMargin(Adversary(generator), halvings=0)(Ensemble(members).module, x, y)
    p, q = (sum(m(z).softmax(1) for m in members) / 2 for z in (x, generator(x)))
    expected = (generator(x) - x).norm(dim=1) / (1 - (p * q.log()).sum(1))
    torch.testing.assert_close(value, expected.mean())


def test_what_is_generated_is_moved_back_to_the_boundary():
    """Of two classes that a plane divides: x* lies where the segment to g(x) meets it, `w·x + b` over its rate of
    change along the segment, and at most 2^-halvings of the segment beyond; a g(x) on the same side counts 0.
    """
    net, generator, x = linear(12, 2).double(), moving((12,), 0.5).double(), inputs((12,), 40).double()
    with torch.no_grad():
        net[1].bias -= net(x).mean(0)  # a plane through the midst of the points
        score = net(x)[:, 0] - net(x)[:, 1]
        there = net(generator(x))[:, 0] - net(generator(x))[:, 1]
        length = (generator(x) - x).norm(dim=1)
    crossed = score.sign() != there.sign()
    assert 5 < crossed.sum() < 35
    margins = torch.where(crossed, score / (score - there) * length, 0.0)
    y, adversary = torch.zeros(40, dtype=torch.int64), Adversary(generator)
    # With a softness beyond all cross-entropies R is the mean of eps* over that softness.
    for halvings in (1, 6, 30):
        found = GeneratedMargin(adversary, 1e9, halvings)(net, x, y) * 1e9
        assert margins.mean() <= found + 1e-6 <= (margins + length * crossed * 2.0**-halvings).mean() + 2e-6


def test_moving_back_looks_with_the_statistics_of_evaluation_and_leaves_the_mode():
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), linear()).train()
    before = net[1].running_mean.clone()
    GeneratedMargin(Adversary(moving((12,))))(net, inputs((12,)), torch.zeros(6, dtype=torch.int64))
    once = net[1].running_mean - before
    assert all(m.training for m in net.modules())
    assert net[1].num_batches_tracked == 2 and once.abs().sum() > 0  # x and x*, and no bisection


def _shift(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        module.weight.data.mul_(-1)


REFUSED = [
    (lambda: AdversarialGenerator((1, 3, 8)), r"a generator needs images .* of at least 4x4 pixels or vectors .*3, 8"),
    (lambda: AdversarialGenerator((8, 8)), r"a generator needs images .* got inputs of shape \(8, 8\)"),
    (lambda: AdversarialGenerator((8,), width=0), r"width = 0: expected an integer >= 1"),
    (lambda: Adversary(crossing=0.0), r"crossing = 0.0: expected a weight > 0"),
    (lambda: Adversary(lr=0.0), r"generator lr = 0.0 trains nothing"),
    (lambda: Adversary(scores="probability"), r"unknown kind of scores 'probability': did you mean 'probabilities'\?"),
    (lambda: GeneratedMargin(softness=-1.0), r"softness = -1.0: expected a number >= 0"),
    (lambda: GeneratedMargin(halvings=-1), r"halvings = -1: expected an integer >= 0"),
    (lambda: Adversary().network(), r"the generator is not built yet: give one, or train by `fit`"),
    (
        lambda: Adversary(AdversarialGenerator((8,))).build_for((9,), 0),
        r"the generator was made for inputs of shape \(8,\), the data has \(9,\): train another",
    ),
]


@pytest.mark.unchecked
@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_what_is_refused(call, message):
    with pytest.raises(EquipoiseError, match=message):
        call()

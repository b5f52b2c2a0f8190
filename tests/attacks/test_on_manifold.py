"""Methods of the robustness framework: its penalties against plain sums, ascents in codes against those in pixels."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from equipoise import attacks, methods
from equipoise.attacks.spaces import OnManifold
from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import Streams
from equipoise.evaluation import evaluate
from equipoise.generators import Manifold, auto_encoder
from equipoise.geometry import Box
from equipoise.models import Ensemble, Single
from equipoise.nets import build
from equipoise.training import Recipe, fit, fit_manifold
from equipoise.training.penalties import CrossLipschitz, ManifoldAgreement, radial_weights

F64 = torch.float64
X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=F64)
Y = torch.arange(6) % 3
STREAMS = Streams.of(0, torch.arange(6))
PIXELS = Manifold(nn.Flatten(), nn.Unflatten(1, (1, 8, 8)))  # the codes are the pixels


def net(seed: int = 0) -> nn.Module:
    """With batch-norm that has seen something, in train mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
        model = nn.Sequential(*layers).double()
        for _ in range(5):
            model(torch.randn(20, 1, 8, 8, dtype=F64))
        return model.train()


def cross_lipschitz_by_hand(model: nn.Module) -> float:
    """Every pair of classes and every sample by itself, in eval mode."""
    model = copy.deepcopy(model).eval()
    total = 0.0
    for image in X:
        point = image[None].clone().requires_grad_()
        logits = model(point)[0]
        gradients = [torch.autograd.grad(logit, point, retain_graph=True)[0] for logit in logits]
        total += sum(float((g - h).square().sum()) for g in gradients for h in gradients)
    return total / (len(X) * 9)


def test_cross_lipschitz_is_the_mean_over_pairs_of_classes():
    model = net()
    before = copy.deepcopy(model.state_dict())
    value = CrossLipschitz()(model, X, Y)
    assert value.item() == pytest.approx(cross_lipschitz_by_hand(model), rel=1e-10) and value > 1e-3
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    pair = Ensemble([net(), net(1)])
    both = (cross_lipschitz_by_hand(net()) + cross_lipschitz_by_hand(net(1))) / 2
    assert CrossLipschitz()(pair.module, X, Y).item() == pytest.approx(both, rel=1e-10)


def test_cross_lipschitz_along_random_directions_is_unbiased():
    model, exact = net(), cross_lipschitz_by_hand(net())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = torch.stack([CrossLipschitz(1)(model, X, Y).detach() for _ in range(400)])
        many = CrossLipschitz(400)(model, X, Y)
    error = drawn.std() / 20
    assert error < 0.02 * exact
    assert drawn.mean().item() == pytest.approx(exact, abs=3 * float(error))
    assert many.item() == pytest.approx(exact, abs=4 * float(error))


def slope_of(penalty, model: nn.Module, weight: torch.Tensor, move: torch.Tensor) -> tuple[float, float]:
    """The derivative of a penalty along a move of a weight: from its graph, and by a difference."""

    def value() -> torch.Tensor:
        torch.manual_seed(0)
        return penalty(model, X, Y)

    with torch.random.fork_rng():
        (gradient,) = torch.autograd.grad(value(), weight)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.add_(sign * 1e-5 * move)
            ends.append(value().item())
            with torch.no_grad():
                weight.sub_(sign * 1e-5 * move)
    return float((gradient * move).sum()), (ends[0] - ends[1]) / 2e-5


@pytest.mark.parametrize("penalty", [CrossLipschitz(), CrossLipschitz(2), ManifoldAgreement(PIXELS, 4, 0.3)])
def test_penalties_have_their_gradient(penalty):
    model = net()
    move = torch.randn(3, 36, generator=torch.Generator().manual_seed(0), dtype=F64)
    from_graph, by_difference = slope_of(penalty, model, model[5].weight, move)
    assert from_graph == pytest.approx(by_difference, rel=1e-5) and abs(from_graph) > 1e-4


def test_penalties_stand_beside_each_other():
    """A forward pass in train mode, which moves batch-norm's buffers, does not spoil the graph of the one before."""
    method = methods.hein(0.1) + methods.r4(PIXELS, samples=3)
    model = Single(net())
    value, _ = method.losses(model, X, Y, method.points(model, X, Y, STREAMS), STREAMS)
    value.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.module.parameters())


def test_radial_weights_are_the_double_sum():
    """F, Eqs. 8 and 9, with an empty S_ε for radii below every distance."""
    draw = torch.Generator().manual_seed(0)
    distance, radii = torch.rand(5, 4, generator=draw, dtype=F64) + 0.2, torch.rand(7, 4, generator=draw, dtype=F64)
    costs = torch.rand(5, 4, generator=draw, dtype=F64)
    expected, empty = [], 0
    for x in range(4):
        total = 0.0
        for eps in radii[:, x]:
            inside = [float(costs[i, x]) for i in range(5) if distance[i, x] <= eps]
            empty += not inside
            total += sum(inside) / len(inside) / float(eps) if inside else 0.0
        expected.append(total / 7)
    assert (radial_weights(distance, radii) * costs).sum(0).tolist() == pytest.approx(expected, rel=1e-12)
    assert empty > 0 and radial_weights(distance, 0 * radii).eq(0).all()


@pytest.mark.parametrize("radii", ["distances", "uniform"])
def test_r4_in_plain_sums(radii):
    """CE + lam · mean over eps of 1/eps · mean over the samples within eps of the soft cross-entropy; batch-norm is in
    eval mode, so that every sample stands for itself.
    """
    model = net().eval()
    method = methods.r4(PIXELS, weight=0.7, samples=5, sigma=0.3, radii=radii)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        value, _ = method.losses(Single(model), X, Y, [None], STREAMS)
        torch.manual_seed(3)
        streams = Streams.of(int(torch.randint(2**62, ())), torch.arange(6))
    near = PIXELS.sample(X, 5, 0.3, streams.fold(0))
    assert not torch.equal(near[0], near[1])
    uniform = 8 * streams.fold(1).uniform(5, dtype=F64)
    total = 0.0
    with torch.no_grad():
        p_clean, log_p_near = model(X).softmax(1), torch.stack([model(one).log_softmax(1) for one in near])
    for i in range(6):
        costs = [float(-(p_clean[i] * one[i]).sum()) for one in log_p_near]
        found = list(zip([float((one[i] - X[i]).norm()) for one in near], costs, strict=True))
        for j in range(5):
            eps = found[j][0] if radii == "distances" else float(uniform[i, j])
            inside = [cost for far, cost in found if far <= eps]
            total += sum(inside) / len(inside) / eps / 5 if inside else 0.0
    expected = F.cross_entropy(model(X), Y, reduction="none") + 0.7 * total / 6
    assert torch.allclose(value, expected, rtol=1e-9) and total > 0.1


def test_the_samples_of_r4_are_those_of_the_seed():
    penalty = ManifoldAgreement(PIXELS, 3, 0.3)
    values = []
    with torch.random.fork_rng():
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            values.append(penalty(net(), X, Y).item())
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("attack", [attacks.udp, attacks.pgd, attacks.cw, attacks.fgsm])
def test_codes_that_are_pixels_make_it_the_input(attack):
    model, x = build("mlp", (1, 8, 8), 3), X.float()
    options = {"start": "zero"} | ({} if attack is attacks.fgsm else {"step_size": 0.02, "steps": 5})
    plain, coded = attack(0.1, **options), attack(0.1, **options, space=OnManifold(PIXELS, Box()))
    a, b = plain(model, x, Y), coded(model, x, Y)
    assert torch.equal(a.x.flatten(1), b.x) and torch.equal(a.success, b.success)
    assert torch.allclose(a.distance, b.distance)
    predictive = Single(model)
    points = [one.perturb(predictive, x, Y, STREAMS) for one in (plain, coded)]
    assert torch.equal(points[0].flatten(1), points[1])
    here, there = (
        one.predict_at(predictive, x, point, STREAMS) for one, point in zip((plain, coded), points, strict=True)
    )
    assert torch.equal(here.logits, there.logits)


def test_an_ascent_on_the_manifold_is_one_on_the_decoder():
    """The loss of f(dec(z)) rises within the ball around enc(x); the auto-encoder and the model stay as they were."""
    manifold, model, x = auto_encoder((1, 8, 8), codes=4), build("small-cnn", (1, 8, 8), 3).eval(), X.float()
    whole = nn.Sequential(manifold.decoder, model)
    before = copy.deepcopy([*manifold.state_dict().values(), *model.state_dict().values()])
    attack = attacks.pgd(0.5, 0.1, 8, norm="l2", space=OnManifold(manifold), start="zero", return_point="last")
    found = attack(model, x, Y, seed=4)
    codes = manifold.encode(x)
    by_hand = attacks.pgd(0.5, 0.1, 8, norm="l2", box=Box(-math.inf, math.inf), start="zero", return_point="last")(
        whole, codes, Y, seed=4
    )
    assert torch.allclose(found.x, by_hand.x, atol=1e-6) and found.x.shape == (6, 4)
    assert (found.x - codes).norm(dim=1).max() <= 0.5 + 1e-5
    with torch.no_grad():
        rose = F.cross_entropy(whole(found.x), Y, reduction="none") - F.cross_entropy(whole(codes), Y, reduction="none")
    assert (rose > 0).all()
    after = [*manifold.state_dict().values(), *model.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_on_manifold_training_descends_at_the_decoded_point():
    manifold, model, x = auto_encoder((1, 8, 8), codes=4), build("small-cnn", (1, 8, 8), 3), X.float()
    method = methods.on_manifold_at(manifold, 0.5, 0.1, 3)
    (point,) = method.points(Single(model), x, Y, STREAMS)
    value, _ = method.losses(Single(model), x, Y, [point], STREAMS)
    plain = F.cross_entropy(model(manifold.decode(point)), Y, reduction="none")
    assert torch.allclose(value, plain, atol=1e-6)
    value.sum().backward()
    assert all(p.grad is not None for p in model.parameters()) and all(p.grad is None for p in manifold.parameters())
    assert method.settings()[0]["at"]["space"]["manifold"] == str(manifold)
    half = methods.on_manifold_at(manifold, 0.5, 0.1, 3, clean_share=0.25)
    points = half.points(Single(model), x, Y, STREAMS)
    mixed, _ = half.losses(Single(model), x, Y, points, STREAMS)
    clean, moved = (F.cross_entropy(model(at), Y, reduction="none") for at in (x, manifold.decode(points[-1])))
    assert torch.allclose(mixed, 0.25 * clean + 0.75 * moved, atol=1e-5)
    with pytest.raises(EquipoiseError, match=r"clean_share = 2.*between 0 and 1"):
        methods.on_manifold_at(manifold, 0.5, clean_share=2)


@pytest.mark.parametrize(
    "make",
    [
        lambda manifold: methods.r4(manifold, samples=3),
        lambda manifold: methods.on_manifold_at(manifold, 0.3, 0.1, 3),
        lambda manifold: methods.hein(0.001),
    ],
)
def test_they_train_in_both_precisions(make, small_digits, tmp_path):
    manifold = auto_encoder(small_digits.shape, codes=8)
    fit_manifold(manifold, small_digits, Recipe(epochs=10, batch_size=32, lr=3e-3))
    run = fit(
        make(manifold), build("mlp", small_digits.shape, 10), small_digits, Recipe(epochs=6, lr=0.01), out=tmp_path
    )
    assert run.last["train_accuracy"] > 0.3 and run.recipe["valid_eps"] == 0.1
    fit(make(manifold), build("mlp", small_digits.shape, 10), small_digits, Recipe(epochs=1, precision="bf16"))


def test_another_manifold_is_refused_when_a_run_is_resumed(small_digits, tmp_path):
    model = build("mlp", small_digits.shape, 10)
    first, other = auto_encoder(small_digits.shape, codes=4), auto_encoder(small_digits.shape, codes=4, seed=1)
    fit(methods.r4(first, samples=2), model, small_digits, Recipe(epochs=1), out=tmp_path)
    with pytest.raises(EquipoiseError, match=r"it was started with another method"):
        fit(methods.r4(other, samples=2), model, small_digits, Recipe(epochs=1), out=tmp_path, resume=True)


def test_evaluating_on_a_manifold_is_refused():
    attack = attacks.pgd(0.5, 0.1, 2, space=OnManifold(PIXELS))
    with pytest.raises(EquipoiseError, match=r"on perturbs a latent space: robustness is measured in the input"):
        evaluate(build("mlp", (1, 8, 8), 3), X.float(), Y, [("on", attack)])


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: methods.hein(directions=-1), "directions = -1: expected a number of directions, or 0 for all"),
        (lambda: methods.r4(PIXELS, samples=0), "samples = 0: expected an integer >= 1"),
        (lambda: methods.r4(PIXELS, sigma=-1), "sigma = -1 is not a standard deviation: expected a number >= 0"),
        (lambda: methods.r4(PIXELS, radii="distance"), "unknown radii 'distance': did you mean 'distances'"),
        (lambda: auto_encoder((1, 8, 8)).encode(X[:, :, :, :7]), r"inputs of shape \(1, 8, 8\), got .* \(1, 8, 7\)"),
    ],
)
def test_refused(make, message):
    with pytest.raises(EquipoiseError, match=message):
        make()

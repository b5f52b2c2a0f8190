"""Losses of worst-case logits: their values, restated in numpy; their gradients; their warm-up."""

import math
import pickle

import numpy as np
import pytest
import torch
from bounded_nets import NETS, global_seed, mlp, points, with_statistics
from torch import Tensor, nn

from equipoise import attacks, methods
from equipoise.certified import certified
from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import Streams
from equipoise.core.schedules import ramp
from equipoise.geometry import Ball, Box
from equipoise.losses import Bounds, Method, Term, WarmedUp, as_method, cross_entropy, crown_ibp, ibp, kl
from equipoise.losses.worst_case import during
from equipoise.models import Ensemble, MonteCarloDropout, Single
from equipoise.nets import MLP
from equipoise.training.perturbations import Alternating

pytestmark = pytest.mark.unchecked
LINEAR = (1.0, 1.0)


def numbers(net: nn.Sequential) -> list[tuple[np.ndarray, np.ndarray]]:
    layers = (layer for layer in net if isinstance(layer, nn.Linear))
    return [(layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()) for layer in layers]


def hidden_interval(net: nn.Sequential, x: np.ndarray, eps: float, activation) -> tuple[np.ndarray, np.ndarray]:
    """Interval arithmetic through all layers but the last, end by end: `W⁺ l + W⁻ u + b`."""
    low, high = np.clip(x - eps, 0, 1), np.clip(x + eps, 0, 1)
    for weight, bias in numbers(net)[:-1]:
        positive, negative = np.maximum(weight, 0), np.minimum(weight, 0)
        low, high = positive @ low + negative @ high + bias, positive @ high + negative @ low + bias
        low, high = activation(low), activation(high)
    return low, high


def relu(z: np.ndarray) -> np.ndarray:
    return np.maximum(z, 0)


@pytest.mark.parametrize(("name", "activation"), [("", relu), ("tanh", np.tanh)])
@pytest.mark.parametrize("eps", [0.0, 0.03, 0.2])
def test_worst_case_logits_are_those_of_interval_arithmetic(eps, name, activation):
    net, x, y = mlp(4, 9, 7, 3, activation=name), points(6, 4), torch.arange(6) % 3
    logits = ibp(eps).worst_case(Single(net), x, y).logits[0].detach()
    for sample in range(6):
        low, high = hidden_interval(net, x[sample].double().numpy(), eps, activation)
        (weight, bias), label = numbers(net)[-1], int(y[sample])
        for other in range(3):
            row = weight[label] - weight[other]
            margin = np.maximum(row, 0) @ low + np.minimum(row, 0) @ high + bias[label] - bias[other]
            assert float(logits[sample, other]) == pytest.approx(-margin, abs=2e-5)
    assert (logits.gather(1, y[:, None]) == 0).all()


def test_linear_bounds_are_those_of_crown():
    """One hidden layer: `max(z, 0)` between `αz` and `u (z - l) / (u - l)`, put into the rows of the last layer."""
    net, x, y, eps = mlp(4, 12, 3), points(5, 4), torch.arange(5) % 3, 0.1
    logits = crown_ibp(eps, LINEAR).worst_case(Single(net), x, y).logits[0].detach()
    half = crown_ibp(eps, (0.25, 0.25)).worst_case(Single(net), x, y).logits[0].detach()
    by_intervals = ibp(eps).worst_case(Single(net), x, y).logits[0].detach()
    (w1, b1), (w2, b2) = numbers(net)
    for sample in range(5):
        point = x[sample].double().numpy()
        start, end = np.clip(point - eps, 0, 1), np.clip(point + eps, 0, 1)
        centre, radius = w1 @ (start + end) / 2 + b1, np.abs(w1) @ (end - start) / 2
        low, high = centre - radius, centre + radius
        above = np.where(low >= 0, 1.0, np.maximum(high, 0) / np.where(low >= 0, 1, np.maximum(high, 0) - low))
        intercept = np.where((low < 0) & (high > 0), -above * low, 0.0)
        below = np.where(high > -low, 1.0, 0.0)
        for other in range(3):
            row = w2[y[sample]] - w2[other]
            a = np.where(row > 0, below, above) * row
            constant = b2[y[sample]] - b2[other] + np.minimum(row, 0) @ intercept + a @ b1
            slope = a @ w1
            margin = np.maximum(slope, 0) @ start + np.minimum(slope, 0) @ end + constant
            assert float(logits[sample, other]) == pytest.approx(-margin, abs=2e-5)
    assert torch.allclose(half, 0.25 * logits + 0.75 * by_intervals, atol=1e-5)
    assert (logits < by_intervals - 1e-3).any() and not torch.allclose(logits, by_intervals, atol=1e-2)


@pytest.mark.parametrize("at", [ibp(0.05), crown_ibp(0.05, LINEAR)], ids=str)
def test_no_point_of_the_ball_has_a_larger_loss(at, bounded_net):
    x, y = points(8, 2, 8, 8), torch.arange(8) % 3
    worst = cross_entropy(at.worst_case(Single(bounded_net), x, y), None, y)
    found = attacks.pgd(0.05, steps=10, start="zero", return_point="last")(bounded_net, x, y).x
    draws = (at.geometry.draw(Streams.of(seed, torch.arange(8)), x, surface=True) for seed in range(5))
    for z in (x, found, *draws):
        assert (cross_entropy(bounded_net(z), None, y) <= worst + 1e-4).all()


@pytest.fixture(params=NETS)
def bounded_net(request) -> nn.Module:
    return global_seed(lambda: NETS[request.param]().apply(with_statistics)).eval()


def test_where_the_worst_case_is_right_the_sample_is_certified():
    net, x = mlp(6, 16, 16, 3), points(200, 6)
    y = net(x).argmax(1)
    for method, at in (("ibp", ibp(0.02)), ("crown-ibp", crown_ibp(0.02, LINEAR))):
        logits = at.worst_case(Single(net), x, y).logits[0].detach()
        right = logits.scatter(1, y[:, None], -math.inf).amax(1) < -1e-4
        assert right.any() and not right.all()
        assert certified(net, x, y, Ball("linf", 0.02), method)[right].all()


@pytest.mark.parametrize("at", [ibp(0.05), crown_ibp(0.05, LINEAR), crown_ibp(0.05, (0.5, 0.5))], ids=str)
def test_gradients_of_the_weights_are_finite_differences(at, bounded_net):
    net = bounded_net.double()
    x, y = points(3, 2, 8, 8, dtype=torch.float64), torch.arange(3)
    method, weights = as_method(cross_entropy @ at), list(net.parameters())

    def loss() -> Tensor:
        return method.loss(net, x, y, step=0)

    gradients = torch.autograd.grad(loss(), weights)
    assert sum(bool(g.abs().sum() > 0) for g in gradients) >= len(weights) - 1, "a bias before batch-norm has none"
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        ways = [torch.randn(w.shape, generator=g, dtype=w.dtype) for w in weights]
        values = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                torch._foreach_add_(weights, ways, alpha=step)
            values.append(loss().item())
        with torch.no_grad():
            torch._foreach_add_(weights, ways, alpha=1e-6)
        slope = sum(float((way * gradient).sum()) for way, gradient in zip(ways, gradients, strict=True))
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_at_radius_zero_it_is_the_loss_itself(bounded_net):
    x, y = points(5, 2, 8, 8), torch.arange(5) % 3
    clean = as_method(cross_entropy).loss(bounded_net, x, y, step=0)
    expected = torch.autograd.grad(clean, list(bounded_net.parameters()))
    for at in (ibp(0.0), crown_ibp(0.3, LINEAR).during(0.0)):
        worst = as_method(cross_entropy @ at).loss(bounded_net, x, y, step=0)
        assert worst.item() == pytest.approx(clean.item(), abs=1e-4)
        for mine, true in zip(torch.autograd.grad(worst, list(bounded_net.parameters())), expected, strict=True):
            assert mine.isfinite().all() and torch.allclose(mine, true, atol=1e-3)


def test_batch_norm_has_its_running_statistics_and_the_model_keeps_its_mode():
    net = global_seed(lambda: NETS["average pooling, batch-norm, normalised"]().apply(with_statistics)).train()
    x, y = points(6, 2, 8, 8), torch.arange(6) % 3
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    training = ibp(0.02).worst_case(Single(net), x, y).logits
    assert all(module.training for module in net.modules())
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    assert torch.equal(training, ibp(0.02).worst_case(Single(net.eval()), x, y).logits)
    alone = torch.cat([ibp(0.02).worst_case(Single(net), x[i : i + 1], y[i : i + 1]).logits for i in range(6)], 1)
    assert torch.allclose(training, alone, atol=1e-4)
    net.train()
    (0.5 * as_method(cross_entropy) + 0.5 * (cross_entropy @ ibp(0.02))).loss(net, x, y, step=0).backward()
    moved = [name for name, buffer in net.named_buffers() if not torch.equal(buffer, before[name])]
    assert any("running_mean" in name for name in moved), "the clean term updates them"


# Warm-up


def test_a_method_warms_up():
    method = methods.ibp(0.4, kappa=0.25, warmup=(0.2, 0.6))
    assert isinstance(method.terms[0], WarmedUp)
    weights, radii = [], []
    for done in (0.0, 0.2, 0.3, 0.6, 1.0):
        clean, worst = during(method, done).terms
        assert clean.at is None and isinstance(worst.at, Bounds) and type(clean) is Term
        weights.append((clean.weight, worst.weight))
        radii.append(worst.at.warmed * worst.at.geometry.eps)
    assert radii == pytest.approx([0, 0, 0.1, 0.4, 0.4])
    assert torch.allclose(torch.tensor(weights).sum(1), torch.ones(5))
    assert [clean for clean, _ in weights] == pytest.approx([1, 1, 0.8125, 0.25, 0.25])


def test_the_whole_method_is_that_after_the_warm_up():
    net, x, y = mlp(4, 9, 3), points(6, 4), torch.arange(6) % 3
    for method in (methods.ibp(0.1), methods.crown_ibp(0.1), methods.mtl_ibp(0.1, steps=2)):
        values = [m.loss(net, x, y, step=3).item() for m in (method, during(method, 1.0), during(method, 0.0))]
        assert values[0] == values[1] != values[2]
    clean = as_method(cross_entropy).loss(net, x, y, step=3).item()
    assert during(methods.ibp(0.1), 0.0).loss(net, x, y, step=3).item() == pytest.approx(clean, abs=1e-6)


def test_weights_multiply_the_term_from_its_beginning():
    term = 3 * WarmedUp(cross_entropy, ibp(0.1), 0.5, initial=1.0)
    assert isinstance(term, WarmedUp) and (term.weight, term.initial) == (1.5, 3.0)
    total = 2 * methods.ibp(0.1) + cross_entropy
    assert [t.weight for t in during(total, 0.0).terms] == [2.0, 0.0, 1.0]


def test_the_ball_of_an_attack_grows_too():
    method = methods.mtl_ibp(0.2, alpha=0.3, warmup=(0, 0.5))
    attack, bounds = during(method, 0.25).terms
    assert isinstance(attack.at, attacks.pgd(0.1).__class__) and attack.at.geometry.eps == pytest.approx(0.1)
    assert (attack.weight, bounds.weight) == pytest.approx((0.7, 0.3))
    assert attack.at.step_size == attacks.pgd(0.1, steps=8).step_size


def test_a_term_that_warms_up_keeps_what_it_compares_with():
    teacher = mlp(4, 9, 3)
    term = WarmedUp(kl(), attacks.uta(0.1)).against(teacher).on_unlabelled()
    now = during(as_method(term), 0.25).terms[0]
    assert type(now) is Term and now.reference == term.reference is not None and now.unlabelled


def test_radii_of_bounds_may_be_scheduled():
    assert methods.ibp(ramp(0, 0.4), warmup=(0, 0)).at(0.5) == methods.ibp(0.2, warmup=(0, 0))
    assert methods.mtl_ibp(ramp(0, 0.4)).at(0.5) == methods.mtl_ibp(0.2)
    assert methods.crown_ibp(ramp(0, 0.4)).at(0.5) == methods.crown_ibp(0.2)


def test_mtl_ibp_is_a_convex_combination():
    net, x, y = mlp(4, 9, 3), points(6, 4), torch.arange(6) % 3
    ends = [methods.mtl_ibp(0.1, alpha, steps=3).loss(net, x, y, step=0).item() for alpha in (0.0, 1.0)]
    pgd = attacks.pgd(0.1, steps=3, start="zero", return_point="last")
    assert ends[0] == pytest.approx(as_method(cross_entropy @ pgd).loss(net, x, y, step=0).item())
    assert ends[1] == pytest.approx(as_method(cross_entropy @ ibp(0.1)).loss(net, x, y, step=0).item())
    mixed = methods.mtl_ibp(0.1, 0.25, steps=3).loss(net, x, y, step=0).item()
    assert mixed == pytest.approx(0.75 * ends[0] + 0.25 * ends[1])


# Use and refusals


def test_terms_say_what_they_are():
    method = methods.crown_ibp(0.1, kappa=0.3, linear=0.25, warmup=(0.1, 0.4))
    assert str(method) == (
        "0.3·(cross-entropy) (weight from 1, warm-up 0.1 to 0.4) + 0.7·(cross-entropy) @ "
        "bounds(crown-ibp 1 to 0.25, linf 0.1) (weight from 0, warm-up 0.1 to 0.4)"
    )
    assert method.settings()[1]["at"] == {
        "bounds": {"norm": "linf", "eps": 0.1, "box": [0.0, 1.0]},
        "linear": [1.0, 0.25],
    }
    assert pickle.loads(pickle.dumps(method)) == method
    assert isinstance(cross_entropy @ ibp(0.1), Term) and isinstance(cross_entropy + cross_entropy @ ibp(0.1), Method)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: methods.ibp(0.1, kappa=1.5), r"kappa = 1.5: expected a share"),
        (lambda: methods.mtl_ibp(0.1, alpha=-0.1), r"alpha = -0.1: expected a share"),
        (lambda: methods.ibp(0.1, warmup=(0.5,)), r"warmup = \(0.5,\): expected its beginning and its end"),
        (lambda: methods.ibp(0.1, warmup=(0.5, 0.2)), r"warmup = \(0.5, 0.2\): expected its beginning and its end"),
        (lambda: methods.crown_ibp(0.1, linear=2), r"linear = \(1.0, 2\): expected two shares"),
        (lambda: crown_ibp(0.1, norm="l2"), "linear bounds are descended in linf, not in l2"),
        (lambda: ibp(math.inf, box=Box(-math.inf, math.inf)), "infinite ball without a box"),
        (lambda: Bounds(Ball("linf", 0.1)).during(1.5), "warmed = 1.5"),
        (lambda: WarmedUp(cross_entropy, Alternating((attacks.pgd(0.1), None))), "has no ball of its own"),
        (lambda: 2 * ibp(0.1), "unsupported operand"),
    ],
)
def test_refuses_values_that_make_no_sense(make, message):
    with pytest.raises((EquipoiseError, TypeError), match=message):
        make()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Ensemble([MLP((4,), 3), MLP((4,), 3)]), "cannot bound a Ensemble"),
        (MonteCarloDropout(nn.Sequential(nn.Dropout(), nn.Linear(4, 3))), "cannot bound a MonteCarloDropout"),
        (nn.Sequential(nn.Linear(4, 3), nn.Softplus()), "a Softplus layer at '1': softplus"),
    ],
)
def test_refuses_what_cannot_be_bounded_by_name(model, message):
    with pytest.raises(EquipoiseError, match=message):
        methods.ibp(0.1).loss(model, points(4, 4), torch.arange(4) % 3, step=0)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_intervals_hold_in_every_norm(norm):
    """The box around the ball is what intervals see of it."""
    net, x, y = mlp(4, 9, 3), points(6, 4), torch.arange(6) % 3
    there = [ibp(0.1, n).worst_case(Single(net), x, y).logits for n in (norm, "linf")]
    assert torch.equal(*there)

"""Regularised methods and their relatives against their papers' equations, written plainly."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from equipoise import attacks, methods
from equipoise.cli import main
from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import Streams
from equipoise.geometry import Ball
from equipoise.losses.objectives import cross_entropy, entropy, regularised
from equipoise.models import Ensemble, Single
from equipoise.nets import build
from equipoise.training import Recipe, fit
from equipoise.training.awp import perturbed_weights
from equipoise.training.penalties import GradientAlignment

F64 = torch.float64
X = torch.rand(9, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
Y = torch.arange(9) % 3
STREAMS = Streams.of(0, torch.arange(9))


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()


def losses(method, model) -> torch.Tensor:
    return method.losses(model, X, Y, method.points(model, X, Y, STREAMS), STREAMS)[0]


def entm(z: torch.Tensor, lam: float) -> torch.Tensor:
    p = z.softmax(1)
    return F.cross_entropy(z, Y, reduction="none") + lam * (p * p.log()).sum(1)


def smooth(z: torch.Tensor, g: float) -> torch.Tensor:
    return F.cross_entropy(z, Y, reduction="none", label_smoothing=g)


@pytest.mark.parametrize(
    ("loss", "plain"),
    [(regularised(2.0), lambda z: entm(z, 2.0)), (regularised(smoothing=0.74), lambda z: smooth(z, 0.74))],
)
def test_pat_mixes_the_loss_and_its_greatest_value(loss, plain):
    """R, Eqs. 4-6: the inner maximum climbs the same regularised loss."""
    model = net()
    method = methods.pat(0.1, 0.02, 5, loss=loss, clean_share=0.3)
    climbed = replace(attacks.pgd(0.1, 0.02, 5, start="zero", return_point="last"), objective=loss).perturb(
        Single(model), X, Y, STREAMS.fold(1)
    )
    assert torch.allclose(losses(method, Single(model)), 0.3 * plain(model(X)) + 0.7 * plain(model(climbed)))
    gained = plain(model(climbed)) - plain(model(X))
    of_cross_entropy = attacks.pgd(0.1, 0.02, 5, start="zero", return_point="last").perturb(
        Single(model), X, Y, STREAMS
    )
    assert gained.min() > 0 and not torch.allclose(climbed, of_cross_entropy)


def test_every_method_has_its_regularised_form():
    model, loss = Single(net()), regularised(2.0)
    for make in (methods.udp, methods.uta, methods.pgd_at, methods.fgsm_at, methods.r_fgsm_at, methods.friendly_at):
        terms = make(0.1, loss=loss).terms
        assert [term.objective for term in terms] == [loss]
    assert torch.allclose(losses(methods.standard(loss), model), entm(model.module(X), 2.0))
    assert torch.allclose(losses(methods.entm(2.0), model), entm(model.module(X), 2.0))
    assert torch.allclose(losses(methods.label_smoothing(0.74), model), smooth(model.module(X), 0.74))
    udpr = methods.udpr(0.1, loss=loss, weight=0.5)
    assert [t.weight for t in udpr.terms] == [1.0, 0.5] and {t.objective for t in udpr.terms} == {loss}
    trades = methods.trades(0.1, 0.02, 3, beta=3, divergence="here||clean", loss=loss)
    assert trades.terms[0].objective == loss and trades.terms[1].weight == 3


def test_adp_in_plain_formulas():
    """Pang et al. 2019, Eq. 5, with members that are trained by their own cross-entropy."""
    model = Ensemble([net(seed) for seed in range(3)])
    p = torch.stack([member(X).softmax(1) for member in model.module])
    ce = -p[:, torch.arange(9), Y].log().sum(0)
    mean = p.mean(0)
    diversity = []
    for row, y in enumerate(Y.tolist()):
        others = torch.stack([torch.cat([q[:y], q[y + 1 :]]) for q in p[:, row]])
        unit = others / others.norm(dim=1, keepdim=True)
        diversity.append(torch.logdet(unit @ unit.T + 1e-6 * torch.eye(3, dtype=F64)))
    expected = ce + 2.0 * (mean * mean.log()).sum(1) - 0.5 * torch.stack(diversity)
    assert torch.allclose(losses(methods.adp(), model), expected)


def test_a_term_that_compares_members_is_not_taken_apart():
    method = methods.adp() + methods.standard()
    assert method.per_member().terms[0] == method.terms[0] and method.per_member().terms[1] != method.terms[1]


def test_n_fgsm_is_not_projected_back():
    """de Jorge et al. 2022, Alg. 1, with the noise it drew."""
    model = net()
    method = methods.n_fgsm_at(0.05, noise=2.0)
    (point,) = method.points(Single(model), X, Y, STREAMS)
    ascent = method.terms[0].at
    start = ascent.start.draw(STREAMS.fold(0).fold(0), X, ascent.geometry)
    assert 0.05 < (start - X).abs().max() <= 0.1 + 1e-12
    noisy = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(noisy), Y, reduction="sum"), noisy)
    assert torch.allclose(point, (start + 0.05 * gradient.sign()).clamp(0, 1))
    assert (point - X).abs().max() > 0.1, "further than eps, by design"


def test_friendly_perturbations_stop_where_the_prediction_is_wrong():
    model = net()
    full = attacks.pgd(0.4, 0.02, 15, start="zero", return_point="last").perturb(Single(model), X, Y, STREAMS)
    (friendly,) = methods.friendly_at(0.4, 0.02, 15).points(Single(model), X, Y, STREAMS)
    wrong = model(friendly).argmax(1) != Y
    moved, whole = (friendly - X).abs().amax(1), (full - X).abs().amax(1)
    assert wrong.any() and (moved <= whole + 1e-12).all() and (moved[wrong] < whole[wrong]).any()
    # One step before it stopped the prediction was still right, or it was wrong from the start.
    step = (moved / 0.02).round().long()
    for row in wrong.nonzero()[:, 0]:
        if step[row] > 0:
            before = attacks.pgd(0.4, 0.02, int(step[row]) - 1 or 1, start="zero", return_point="last").perturb(
                Single(model), X, Y, STREAMS
            )[row]
            assert step[row] == 1 or model(before).argmax() == Y[row]


@pytest.mark.parametrize("tau", [0, 1, 3])
def test_friendly_perturbations_are_those_of_the_papers_algorithm(tau):
    model, steps, size, eps = net(), 12, 0.01, 0.1
    labels = model(X).argmax(1)
    labels[0] = (labels[0] + 1) % 3
    (friendly,) = methods.friendly_at(eps, size, steps, tau).points(Single(model), X, labels, STREAMS)
    stopped = 0
    for x, y, found in zip(X, labels, friendly, strict=True):
        point, left = x.clone(), tau  # Zhang et al. 2020, Alg. 1, for one sample
        for _ in range(steps):
            if model(point[None]).argmax() != y:
                if left == 0:
                    stopped += 1
                    break
                left -= 1
            at = point.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(at[None]), y[None]), at)
            point = (point + size * gradient.sign()).clamp(x - eps, x + eps).clamp(0, 1)
        assert torch.allclose(found, point)
    assert 0 < stopped < len(X), "some stop early, some do not"


def test_tau_is_refused_with_the_best_point():
    with pytest.raises(EquipoiseError, match="tau = 1: goes with return_point='last'"):
        attacks.pgd(0.1, tau=1, return_point="best")
    with pytest.raises(EquipoiseError, match="tau = -1"):
        attacks.pgd(0.1, tau=-1)


def test_mart_in_plain_formulas():
    model = net()
    method = methods.mart(0.1, 0.02, 5, beta=5)
    (point,) = (p for p in method.points(Single(model), X, Y, STREAMS) if p is not None)
    p, q = model(point).softmax(1), model(X).softmax(1)
    rows = torch.arange(9)
    others = p.scatter(1, Y[:, None], 0.0).amax(1)
    expected = -p[rows, Y].log() - (1 - others).log() + 5 * (q * (q / p).log()).sum(1) * (1 - q[rows, Y])
    assert torch.allclose(losses(method, Single(model)), expected, atol=1e-4)


def test_gradients_of_a_linear_loss_are_aligned():
    """Gradients of a margin of a linear model do not turn; those of a curved one do, by the cosine written plainly."""
    linear = nn.Linear(6, 2).double()
    ball = Ball("linf", 0.3)
    loss = cross_entropy
    assert GradientAlignment(ball, loss)(linear, X, Y % 2).item() == pytest.approx(0, abs=1e-9)
    model = net()
    torch.manual_seed(3)
    value = GradientAlignment(ball, loss)(model, X, Y)
    torch.manual_seed(3)
    other = ball.draw(Streams.of(int(torch.randint(2**62, ())), torch.arange(9)), X)
    a, b = (
        torch.autograd.grad(F.cross_entropy(model(v), Y, reduction="sum"), v)[0]
        for v in (X.clone().requires_grad_(), other.clone().requires_grad_())
    )
    expected = 1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    assert value.item() == pytest.approx(expected.mean().item()) and value > 1e-4


def test_the_alignment_penalty_has_a_gradient():
    model = net()
    penalty = GradientAlignment(Ball("linf", 0.3))

    def value(weight: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        with torch.no_grad():
            model[0].weight.copy_(weight)
        return penalty(model, X, Y)

    base = model[0].weight.detach().clone()
    (gradient,) = torch.autograd.grad(value(base), model[0].weight)
    move = torch.randn(base.shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    difference = (value(base + 1e-5 * move) - value(base - 1e-5 * move)) / 2e-5
    assert (gradient * move).sum().item() == pytest.approx(difference.item(), rel=1e-5)


def test_weights_are_perturbed_by_their_own_norm():
    """Wu et al. 2020: w + gamma |w| g/|g| for matrices; biases, buffers and the weights afterwards as they were."""
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double().train()
    before = copy.deepcopy(model.state_dict())
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(X), Y).backward()

    def climb() -> None:
        F.cross_entropy(model(X), Y).backward()

    with perturbed_weights(model, 0.1, climb):
        for (name, weight), other in zip(model.named_parameters(), twin.parameters(), strict=True):
            assert weight.grad is None
            assert other.grad is not None
            step = 0.1 * other.norm() * other.grad / other.grad.norm() if other.ndim >= 2 else 0
            assert torch.allclose(weight, before[name] + step), name
        assert torch.equal(model[1].running_mean, before["1.running_mean"])
        climb()
    for name, value in model.state_dict().items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(value, before[name]), name
    assert all(p.grad is not None for p in model.parameters())


def test_training_with_perturbed_weights(small_digits):
    """A step of SGD is another one than without, and the same before it sets in."""
    recipe = Recipe(epochs=1, batch_size=1000, optimizer="sgd", lr=1.0, momentum=0.0, nesterov=False, awp=0.05)
    model = build("mlp", small_digits.shape, 10)
    start = copy.deepcopy(model)
    fit(methods.standard(), model, small_digits, recipe)
    plain = copy.deepcopy(start)
    fit(methods.standard(), plain, small_digits, replace(recipe, awp=0.0))
    for p, q, w in zip(model.parameters(), plain.parameters(), start.parameters(), strict=True):
        assert not torch.equal(p, w) and not torch.allclose(p, q, atol=1e-6)
    warm = build("mlp", small_digits.shape, 10)
    fit(methods.standard(), warm, small_digits, replace(recipe, awp_warmup=1))
    for p, q in zip(warm.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)


def test_one_member_is_refused_for_adp(small_digits):
    with pytest.raises(EquipoiseError, match=r"log ensemble diversity compares members, the model has 1"):
        fit(methods.adp(), build("mlp", small_digits.shape, 10), small_digits, Recipe(epochs=1))


def test_one_member_is_refused_for_adp_on_the_command_line(tmp_path, capsys):
    assert main(["train", "adp", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: adp compares the members of an ensemble: add --members 3, as its paper has."
    ]
    assert not (tmp_path / "run").exists()


def test_losses_that_promote_nothing_are_refused():
    with pytest.raises(EquipoiseError, match=r"entropy_weight = -2 would punish uncertainty"):
        methods.entm(-2)
    with pytest.raises(EquipoiseError, match=r"smoothing = 1.5 is not in \[0, 1\]"):
        methods.label_smoothing(1.5)
    assert (cross_entropy - 2.0 * entropy) == regularised(2)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: methods.adp(-1), "entropy_weight"),
        (lambda: methods.adp(2, -1), "diversity_weight"),
        (lambda: methods.n_fgsm_at(0.1, noise=-1), "noise"),
        (lambda: methods.gradalign_at(0.1, weight=-1), "weight"),
        (lambda: methods.mart(0.1, beta=-1), "beta"),
        (lambda: methods.trades(0.1, beta=-1), "beta"),
        (lambda: methods.udp_trades(0.1, beta=-1), "beta"),
        (lambda: methods.udpr(0.1, weight=-1), "weight"),
        (lambda: methods.ls_udpr(0.1, "fc1", weight=-1), "weight"),
        (lambda: methods.hein(-1), "weight"),
    ],
)
def test_weights_that_reward_the_opposite_are_refused(make, name):
    with pytest.raises(EquipoiseError, match=rf"{name} = -1: expected a number >= 0"):
        make()


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_shares_of_clean_samples_beyond_all_of_them_are_refused(share):
    """With a share of 2 the loss would be *raised* at the perturbed points."""
    with pytest.raises(EquipoiseError, match=rf"clean_share = {share}: expected a share between 0 and 1"):
        methods.pat(0.1, clean_share=share)

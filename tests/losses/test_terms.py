"""Methods as sums: the algebra, and the losses against plain formulas."""

import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from equipoise import attacks
from equipoise.attacks import trades, udp
from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import Streams
from equipoise.losses.objectives import cross_entropy, dlr, entropy, kl, smoothed_cross_entropy
from equipoise.losses.terms import Method, Perturbation, Term, as_method
from equipoise.models import Single

pgd = partial(attacks.pgd, start="zero", return_point="last")

F64 = torch.float64
PGD, UDP = pgd(0.1, 0.02, 5), udp(0.1, 0.02, 5)


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


X = torch.rand(7, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
Y = torch.arange(7) % 3
STREAMS = Streams.of(0, torch.arange(7))


def total(method: Method, model: nn.Module) -> torch.Tensor:
    predictive = Single(model)
    return method.losses(predictive, X, Y, method.points(predictive, X, Y, STREAMS), STREAMS)[0]


def test_sums_of_objectives_terms_and_methods():
    method = cross_entropy + 0.5 * (cross_entropy @ UDP)
    assert method.terms == (Term(cross_entropy), Term(cross_entropy, UDP, 0.5))
    assert method == as_method(cross_entropy) + (cross_entropy @ UDP) * 0.5
    assert cross_entropy @ PGD + entropy == Method((Term(cross_entropy, PGD), Term(entropy)))
    assert 2 * method == Method((Term(cross_entropy, None, 2.0), Term(cross_entropy, UDP, 1.0)))
    assert method + method == Method(method.terms * 2)
    assert isinstance(PGD, Perturbation)
    assert str(method).startswith("(cross-entropy) + 0.5·(cross-entropy) @ ascent(entropy, linf 0.1, up to 5 steps")


def test_terms_at_one_point_share_it():
    method = cross_entropy @ PGD + 0.5 * (entropy @ pgd(0.1, 0.02, 5)) + cross_entropy + kl() @ UDP
    assert method.perturbations == [PGD, None, UDP]
    points = method.points(Single(net()), X, Y, STREAMS)
    assert len(points) == 3 and points[1] is None and points[0] is not None and not points[0].requires_grad


def test_losses_against_plain_formulas():
    model = net()
    method = cross_entropy + 0.7 * (cross_entropy @ PGD) + 2.0 * (kl("here||clean") @ PGD)
    moved = PGD.perturb(Single(model), X, Y, STREAMS)
    p, q = model(moved).softmax(1), model(X).softmax(1)
    plain = F.cross_entropy(model(X), Y, reduction="none") + 0.7 * F.cross_entropy(model(moved), Y, reduction="none")
    plain = plain + 2.0 * (p * (p / q).log()).sum(1)
    assert torch.allclose(total(method, model), plain)
    ours = torch.autograd.grad(total(method, model).mean(), list(model.parameters()))
    for a, b in zip(ours, torch.autograd.grad(plain.mean(), list(model.parameters())), strict=True):
        assert torch.allclose(a, b, atol=1e-12), "the clean prediction of a divergence is live"


def test_a_divergence_alone_still_sees_the_clean_prediction():
    model = net()
    attack = trades(0.1, 0.02, 3)
    moved = attack.perturb(Single(model), X, Y, STREAMS.fold(0))
    q, log_p = model(X).softmax(1), model(moved).log_softmax(1)
    ours, plain = total(as_method(kl() @ attack), model), (q * (q.log() - log_p)).sum(1)
    assert torch.allclose(ours, plain)
    for a, b in zip(*(torch.autograd.grad(v.sum(), list(model.parameters())) for v in (ours, plain)), strict=True):
        assert torch.allclose(a, b, atol=1e-12), "live, with its gradient"


def test_the_first_prediction_is_shown():
    model = net()
    method = cross_entropy @ PGD + cross_entropy
    predictive = Single(model)
    points = method.points(predictive, X, Y, STREAMS)
    assert torch.equal(method.losses(predictive, X, Y, points, STREAMS)[1].logits[0], model(points[0]))


def test_penalties():
    model = net()

    def weight_decay(module, x, y):
        return sum((p**2).sum() for p in module.parameters())

    method = 3.0 * as_method(cross_entropy).with_penalty(0.1, weight_decay)
    plain = 3.0 * (F.cross_entropy(model(X), Y, reduction="none") + 0.1 * weight_decay(model, X, Y))
    assert torch.allclose(total(method, model), plain)
    assert str(method) == "3·(cross-entropy) + 0.3·weight_decay"
    assert (method + entropy).penalties == method.penalties


def test_each_place_draws_its_own_numbers():
    """Two attacks that differ only in what they climb take different numbers of steps for a sample."""
    drawn = []
    streams = Streams.of(0, torch.arange(100))
    for i in (0, 1):
        drawn.append(UDP.steps.draw(streams.fold(i).fold(1)))
    assert not torch.equal(*drawn)


def test_refuses_what_is_no_term():
    for thing in ("cross_entropy", None, nn.CrossEntropyLoss()):
        with pytest.raises(EquipoiseError, match=r"is not part of a training method: expected an objective such as"):
            as_method(thing)
    with pytest.raises(EquipoiseError, match=r"needs at least one term"):
        Method(())
    with pytest.raises(EquipoiseError, match=r"dlr needs at least 3 classes, the model has 2"):
        (cross_entropy + 0.1 * (dlr @ PGD)).check(2)
    with pytest.raises(EquipoiseError, match=r"dlr needs at least 3 classes, the model has 2"):
        from dataclasses import replace

        as_method(cross_entropy @ replace(PGD, objective=dlr)).check(2)
    (cross_entropy + 0.1 * (dlr @ PGD)).check(3)


def test_terms_subtract_negate_and_sum():
    term, other = entropy @ attacks.pgd(0.1, 0.02, 2), cross_entropy @ attacks.pgd(0.1, 0.02, 2)
    assert (cross_entropy - term).terms == (Term(cross_entropy), -term)
    assert (other - term).terms == (other, -1.0 * term)
    assert (as_method(other) - term).terms == (other, -term)
    assert (-(other + term)).terms == (-other, -term)
    assert sum([other, term]).terms == (other, term)


def test_settings_tell_apart_what_words_do_not():
    plain, noisy = (cross_entropy @ attacks.pgd(0.1, 0.02, 2, return_point=keep) for keep in ("last", "best"))
    assert str(as_method(plain)) == str(as_method(noisy))
    assert as_method(plain).settings() != as_method(noisy).settings()
    smooth = [as_method(smoothed_cross_entropy(g) - 0.5 * entropy).settings() for g in (0.1, 0.2)]
    assert smooth[0] != smooth[1]
    assert json.loads(json.dumps(smooth)) == smooth


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": X.numpy()}, "x is a ndarray: expected a torch tensor"),
        ({"x": X[:0], "y": Y[:0]}, "x is empty"),
        ({"y": Y.float()}, "y has dtype torch.float32: expected int64 class indices"),
        ({"y": Y[:2]}, r"y has shape \(2,\): expected"),
        ({"step": 1.5}, "step = 1.5: expected an integer"),
        ({"seed": 2**64}, "seed = 18446744073709551616: expected an integer"),
        ({"index": [1, 2]}, "index must be a tensor of"),
    ],
)
def test_the_loss_of_a_batch_refuses_what_it_cannot_use(changes, message):
    given = {"x": X, "y": Y, "step": 0} | changes
    with pytest.raises(EquipoiseError, match=message):
        as_method(cross_entropy @ UDP).loss(net(), given.pop("x"), given.pop("y"), **given)


def test_one_term_is_a_method_too():
    term = 0.5 * (cross_entropy @ attacks.pgd(0.1, 0.02, 2))
    assert torch.equal(term.loss(net(), X, Y, step=3), as_method(term).loss(net(), X, Y, step=3))
    assert not torch.equal(term.loss(net(), X, Y, step=3), term.loss(net(), X, Y, step=4))


def test_an_old_name_of_the_auxiliary_network_is_refused():
    class Old:
        player = None

        def __call__(self, module, x, y):
            return torch.zeros(())

    with pytest.raises(EquipoiseError, match=r"Old\.player is called auxiliary_network now"):
        as_method(cross_entropy).with_penalty(1.0, Old())


def test_the_old_name_of_perturbations():
    method = cross_entropy @ PGD + cross_entropy
    with pytest.warns(DeprecationWarning, match=r"Method\.places has been renamed: write perturbations$"):
        assert method.places == method.perturbations == [PGD, None]

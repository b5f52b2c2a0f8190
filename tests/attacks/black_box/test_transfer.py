"""Points made on one model and judged on another: closed forms for linear models, records, refusals."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from equipoise import attacks
from equipoise.attacks import Chain, Transfer, apgd, autoattack, fgsm, random_search, transfer
from equipoise.attacks.spaces import Latent
from equipoise.core.errors import EquipoiseError
from equipoise.evaluation import evaluate, fingerprint, suite
from equipoise.geometry import Ball
from equipoise.models import Ensemble

pgd = partial(attacks.pgd, start="zero", return_point="last")

pytestmark = pytest.mark.unchecked

EPS = 0.1


def plane(weight: Tensor) -> nn.Module:
    """Two classes, divided by the plane through the middle of the box with this normal."""
    net = nn.Linear(len(weight), 2).requires_grad_(False).eval()
    net.weight.copy_(torch.stack([-weight, weight]) / 2)
    net.bias.copy_(torch.stack([weight.sum(), -weight.sum()]) / 4)
    return net


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """Model, proxy with a normal of its own, samples, and the model's classes of them."""
    g = torch.Generator().manual_seed(0)
    w = torch.randn(12, generator=g)
    v = w + torch.randn(12, generator=g)
    x = 0.2 + 0.6 * torch.rand(300, 12, generator=g)
    model = plane(w)
    return model, plane(v), x, model(x).argmax(1)


def normal(net: nn.Module) -> Tensor:
    return net.weight[1] - net.weight[0]


def test_one_step_on_a_linear_proxy(case):
    """The proxy moves x by -s·eps·sign(v), s = ±1 the sign of its class; the margin m falls by eps·w·sign(v)."""
    model, proxy, x, y = case
    found = transfer(proxy, fgsm(EPS), "v")(model, x, y)
    w, v = normal(model), normal(proxy)
    m = (2 * y - 1) * ((x - 0.5) @ w)
    expected = m < EPS * (w @ v.sign())
    assert torch.equal(found.success, expected) and 20 < expected.sum() < 280
    assert torch.equal(found.x, (x - EPS * (2 * y - 1)[:, None] * v.sign()).clamp(0, 1))
    white = fgsm(EPS)(model, x, y)
    assert white.success.sum() > expected.sum()


def test_success_is_that_of_the_model_under_test(case):
    model, proxy, x, y = case
    attack = pgd(EPS, steps=5)
    made, found = attack(proxy, x, y), transfer(proxy, attack, "v")(model, x, y)
    assert torch.equal(made.x, found.x)
    seen = model(found.x).argmax(1)
    assert torch.equal(found.prediction, seen) and torch.equal(found.success, seen != y)
    for fooled_there in (False, True):
        assert {bool(s) for s in found.success[made.success == fooled_there]} == {False, True}
    assert torch.equal(found.evaluations, made.evaluations + 1)


def test_from_the_model_itself_it_is_the_attack(case):
    model, _, x, y = case
    attack = apgd(EPS, steps=10, return_point="best")
    plain, found = attack(model, x, y, seed=4), transfer(model, attack, "itself")(model, x, y, seed=4)
    assert torch.equal(plain.x, found.x) and torch.equal(plain.success, found.success)


def test_it_climbs_on_after_the_first_success(case):
    """A point just behind the proxy's boundary seldom lies behind the model's."""
    model, proxy, x, y = case
    attack = pgd(EPS, EPS / 20, steps=40, return_point="first_success")
    short, far = Transfer(proxy, attack, "v")(model, x, y), transfer(proxy, attack, "v")(model, x, y)
    assert far.success.sum() > short.success.sum() + 20
    assert transfer(proxy, attack, "v") == Transfer(proxy, replace(attack, return_point="best"), "v")


def test_batches_and_order_do_not_matter(case):
    model, proxy, x, y = case
    attack = transfer(proxy, random_search(EPS, draws=20), "v")
    whole, order = attack(model, x, y, seed=2), torch.arange(len(x) - 1, -1, -1)
    other = attack(model, x[order], y[order], seed=2, index=order, batch_size=37)
    assert torch.equal(other.x, whole.x[order]) and torch.equal(other.success, whole.success[order])


def test_in_a_chain_a_sample_leaves_when_it_fools_the_model(case):
    model, proxy, x, y = case
    parts = (("fgsm", fgsm(EPS)), ("search", random_search(EPS, draws=60)))
    chain = transfer(proxy, Chain(parts), "v", "abc")
    assert isinstance(chain, Chain) and chain.names == ("fgsm", "search")
    assert [part.settings()["proxy"] for _, part in chain.parts] == [{"name": "v", "sha256": "abc"}] * 2
    found = chain(model, x, y, seed=1)
    alone = [transfer(proxy, part, "v")(model, x, y, seed=1).success for _, part in parts]
    assert torch.equal(found.success, alone[0] | alone[1])
    assert (found.part[found.success] == (~alone[0])[found.success].long()).all()
    both = Chain((("white", random_search(EPS, draws=5)), ("black", transfer(proxy, fgsm(EPS), "v"))))
    assert both(model, x, y).success.sum() >= alone[0].sum()


def test_a_whole_suite_on_a_proxy_of_few_classes(case):
    """Parts that a model of two classes cannot have are fitted on the way; the record says which proxy and how."""
    model, proxy, x, y = case
    x, y = x[:30], y[:30]
    sha = fingerprint(proxy)["sha256"]
    attacks = [(f"{n} from v", transfer(proxy, a, "v", sha)) for n, a in suite(["pgd5", "apgd-dlr6"], [EPS])]
    clean, _, dlr, worst = evaluate(model, x, y, attacks, seed=3, batch_size=13)
    assert clean.accuracy == 1 and 0 < worst.accuracy < 1
    assert dlr.settings["notes"] == ["apgd-dlr6 from v: margin instead of dlr, the model has 2 classes"]
    assert dlr.settings["proxy"] == {"name": "v", "sha256": sha} and dlr.settings["of"]["objective"] == "margin"
    assert dlr.winner == ["apgd-dlr6 from v" if not right else None for right in dlr.correct]
    whole = evaluate(model, x[:6], y[:6], [("aa", transfer(proxy, autoattack(EPS), "v"))])[1]
    assert set(whole.winner) <= {None, "apgd-ce", "apgd-t", "fab-t", "square"}


def test_the_proxy_may_be_any_predictive(case):
    model, proxy, x, y = case
    both = Ensemble([proxy, model])
    assert transfer(both, fgsm(EPS), "both")(model, x, y).success.any()


def test_refuses(case):
    model, proxy, x, y = case
    attack = transfer(proxy, fgsm(EPS), "v")
    with pytest.raises(EquipoiseError, match="needs the labels y"):
        attack(model, x)
    with pytest.raises(EquipoiseError, match="lie outside"):
        attack(model, x + 1, y)
    with pytest.raises(EquipoiseError, match="name is empty: say which model the proxy is"):
        transfer(proxy, fgsm(EPS), "")
    with pytest.raises(EquipoiseError, match="perturbs a latent space of the proxy"):
        transfer(proxy, fgsm(EPS, space=Latent("fc1")), "v")
    three = nn.Linear(12, 3).eval()
    with pytest.raises(EquipoiseError, match="the proxy 'v': it has 3 classes, the model under test has 2"):
        transfer(three, fgsm(EPS), "v")(model, x, y)
    with pytest.raises(EquipoiseError, match=r"the proxy 'v': x is torch.float32 but the model is torch.float64"):
        transfer(plane(normal(proxy)).double(), fgsm(EPS), "v")(model, x, y)
    with pytest.raises(EquipoiseError, match="the proxy 'v': the model does not take inputs of shape"):
        transfer(nn.Linear(5, 2), fgsm(EPS), "v")(model, x, y)


def test_it_says_what_it_is(case):
    _, proxy, _, _ = case
    attack = transfer(proxy, pgd(EPS, steps=3), "pat", "1f")
    assert str(attack) == f"{pgd(EPS, steps=3)} on pat" and attack.geometry == Ball("linf", EPS)
    told = attack.settings()
    assert told["attack"] == "transfer" and told["of"] == pgd(EPS, steps=3).settings()
    assert told["geometry"] == told["of"]["geometry"] and told["proxy"] == {"name": "pat", "sha256": "1f"}

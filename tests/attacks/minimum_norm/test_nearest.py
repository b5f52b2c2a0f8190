"""The nearest of several attacks: the closed form on linear models, brute force over the parts, who won, refusals."""

import copy
import json
import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from equipoise import attacks
from equipoise.attacks import (
    Bisected,
    Chain,
    Nearest,
    bg,
    deepfool,
    fgsm,
    fmn,
    margin_attack,
    nearest,
    published_margin_attack,
    share_won,
)
from equipoise.core.errors import EquipoiseError
from equipoise.evaluation import evaluate
from equipoise.geometry import EVERYWHERE, Ball, Box

pgd = partial(attacks.pgd, start="zero", return_point="last")

pytestmark = pytest.mark.unchecked

ORDER = {"linf": math.inf, "l2": 2.0, "l1": 1.0}


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, Tensor, Tensor]:
    """A random net with curved boundaries, and samples of which one is wrong."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first, last = nn.Linear(6, 24), nn.Linear(24, 4)
    net = nn.Sequential(first, nn.Tanh(), last).double().eval().requires_grad_(False)
    first.weight.mul_(4)
    x = torch.rand(12, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = net(x).argmax(1)
    y[3] = (y[3] + 1) % 4
    return net, x, y


def back(attack: object) -> Bisected:
    return Bisected(attack)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("norm", ORDER)
def test_the_margin_of_a_linear_model(norm):
    """`(z_y - max z) / ‖w_y - w_t‖` in the dual norm, for two and for several classes."""
    for classes in (2, 5):
        g = torch.Generator().manual_seed(classes)
        net = nn.Linear(8, classes).double().requires_grad_(False)
        net.weight.copy_(torch.randn(classes, 8, generator=g, dtype=torch.float64))
        x = torch.randn(25, 8, generator=g, dtype=torch.float64)
        z = net(x)
        y = z.argmax(1)
        slope = net.weight[None] - net.weight[y][:, None]
        dual = {"linf": 1.0, "l2": 2.0, "l1": math.inf}[norm]
        far = (z.gather(1, y[:, None]) - z) / slope.norm(dual, dim=2)
        best = far.scatter(1, y[:, None], math.inf).amin(1)
        for attack in (
            margin_attack(norm, box=EVERYWHERE, radii=(1.0,), steps=5),
            nearest(norm, box=EVERYWHERE, radii=(1.0,), steps=8),
        ):
            found = attack(net, x)
            assert found.success.all() and torch.allclose(found.distance, best, rtol=4e-6)


def test_attacks_that_search_in_one_norm_are_compared_in_another(case):
    """The smallest L2 distance of the Linf attacks and of BG, and whose it was; a radius is one of L2 too."""
    net, x, _ = case
    parts = (("linf", back(pgd(0.4, 0.02, 30, return_point="first_success"))), ("l2", back(bg())))
    found = Nearest(parts, norm="l2")(net, x)
    apart = [attack(net, x, net(x).argmax(1)) for _, attack in parts]
    lengths = torch.stack([torch.where(one.success, (one.x - x).norm(dim=1), math.inf) for one in apart])
    assert torch.equal(found.success, lengths.amin(0).isfinite())
    assert torch.allclose(found.distance[found.success], lengths.amin(0)[found.success], atol=1e-12)
    assert torch.equal(found.part[found.success], lengths.argmin(0)[found.success])
    near = float(found.distance.median())
    few = Nearest(parts, near, norm="l2")(net, x)
    assert torch.equal(few.success, found.distance <= near)
    with pytest.raises(EquipoiseError, match="norm"):
        Nearest(parts, norm="l3")
    with pytest.raises(EquipoiseError, match="different norms or boxes"):
        Nearest(parts)


def test_the_published_reading_is_weaker_than_the_corrected_one(case):
    net, x, _ = case
    published, ours = published_margin_attack()(net, x), margin_attack()(net, x)
    assert (ours.success | ~published.success).all()
    both = published.success & ours.success
    assert (published.distance >= ours.distance - 1e-6)[both].float().mean() > 0.8
    assert torch.allclose(published.distance[both], (published.x - x).norm(dim=1)[both])


def test_it_is_the_nearest_of_its_parts(case):
    net, x, y = case
    parts = tuple(
        (a.settings()["of"]["attack"].replace("ascent", "pgd"), a)
        for a in map(back, (pgd(0.8, norm="l2", return_point="first_success"), bg(), deepfool(), fmn(steps=30)))
    )
    found = Nearest(parts)(net, x, y)
    each = [attack(net, x, y) for _, attack in parts]
    lengths = torch.stack([torch.where(one.success, one.distance, math.inf) for one in each])
    assert torch.equal(found.distance, lengths.amin(0)) and found.success.all()
    right = net(x).argmax(1) == y
    assert torch.equal(found.part[right], lengths.argmin(0)[right]) and len(set(found.part.tolist())) > 1
    assert torch.equal(found.x[3], x[3]) and not found.distance[3]
    spent = torch.stack([one.evaluations for one in each]).sum(0)
    assert torch.equal(found.evaluations[right], spent[right] + 1)
    won = share_won(Nearest(parts), found)
    assert list(won) == ["pgd", "bg", "deepfool", "fmn"] and sum(won.values()) == pytest.approx(1)
    for number, name in enumerate(won):
        assert won[name] == pytest.approx(float((found.part == number)[right].double().mean()))


def test_shares_where_nobody_fell(case):
    net, x, y = case
    attack = margin_attack(eps=0.0, radii=(0.5,))
    found = attack(net, x, y)
    assert found.success.tolist() == [i == 3 for i in range(12)]
    assert share_won(attack, found) == {"fgsm": 0.0, "pgd": 0.0, "bg": 0.0}
    chain = Chain((("fgsm", fgsm(0.4)), ("pgd", pgd(0.4))))
    assert sum(share_won(chain, chain(net, x, y)).values()) == pytest.approx(1)


@pytest.mark.parametrize("norm", ORDER)
def test_more_attacks_come_nearer_and_a_radius_cuts_off(norm, case):
    net, x, y = case
    few, many = margin_attack(norm)(net, x, y), nearest(norm, steps=40)(net, x, y)
    assert few.success.all() and many.success.all() and (many.distance <= few.distance).all()
    assert (many.distance < few.distance).any()
    eps = float(few.distance.median())
    cut = margin_attack(norm, eps)(net, x, y)
    assert torch.equal(cut.success, few.distance <= eps * (1 + 1e-6)) and Ball(norm, eps).contains(cut.x, x).all()
    assert torch.equal(cut.x[~cut.success], x[~cut.success])


def test_without_labels_from_the_prediction(case):
    """Robustness has nothing to do with labels: nothing is wrong already (F, Eq. 14)."""
    net, x, y = case
    free = margin_attack()(net, x)
    assert (free.distance > 0).all() and (free.prediction != net(x).argmax(1)).all()
    assert torch.equal(free.x[y == net(x).argmax(1)], margin_attack()(net, x, y).x[y == net(x).argmax(1)])


def test_neither_batch_size_nor_order_matters(case):
    net, x, y = case
    attack, order = nearest(steps=20), torch.arange(12).flip(0)
    whole = attack(net, x, y)
    parts = attack(net, x.flip(0), y.flip(0), index=order, batch_size=5)[order]
    assert torch.equal(whole.part, parts.part) and torch.allclose(whole.x, parts.x, atol=1e-9)


def test_in_an_evaluation_the_winners_are_named(case):
    net, x, y = case
    attack = nearest(eps=0.5, steps=20)
    found = attack(net, x, y)
    result = evaluate(copy.deepcopy(net), x, y, [("nearest", attack)])[-1]
    assert result.correct == (~found.success).tolist() and result.winner[3] == "clean"
    for i in range(12):
        if i != 3:
            assert result.winner[i] == (attack.names[int(found.part[i])] if found.success[i] else None)


def test_it_says_what_it_is():
    attack = nearest("linf", 0.1, box=Box(-1, 1), halvings=7, looks=3)
    assert attack.geometry == Ball("linf", 0.1, Box(-1, 1)) and attack.names == ("fgsm", "pgd", "bg", "deepfool", "fmn")
    told = json.loads(json.dumps(attack.settings()))
    assert [part["name"] for part in told["parts"]] == list(attack.names) and told["geometry"]["eps"] == 0.1
    assert [(p["halvings"], p["looks"]) for p in told["parts"][2:]] == [(7, 3)] * 3
    assert str(attack) == "nearest of fgsm, pgd, bg, deepfool, fmn" and hash(attack) == hash(attack)


def test_refuses_what_cannot_be_compared():
    with pytest.raises(EquipoiseError, match="there is no attack to take the nearest point of"):
        Nearest(())
    with pytest.raises(EquipoiseError, match="distances in different norms or boxes cannot be compared"):
        Nearest((("a", bg()), ("b", bg(norm="linf"))))
    with pytest.raises(EquipoiseError, match="the names a, a are not all different"):
        Nearest((("a", bg()), ("a", deepfool())))
    with pytest.raises(EquipoiseError, match="unknown norm"):
        nearest("l3")
    with pytest.raises(EquipoiseError, match=r"radii = \(\): give FGSM and PGD at least one radius"):
        margin_attack(radii=())

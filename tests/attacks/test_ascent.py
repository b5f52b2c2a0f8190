"""The loop against plain re-statements, step by step, and what it promises about the caller's model."""

import json
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise import attacks
from equipoise.attacks import fgsm, targeted, trades, udp, uta
from equipoise.attacks.ascent import Ascent, choose_target
from equipoise.attacks.execution import value_and_gradient
from equipoise.attacks.steps import (
    Constant,
    Fixed,
    Gaussian,
    Momentum,
    Normalized,
    Sign,
    Steepest,
    Triangular,
    Uniform,
    UniformUpTo,
)
from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import Streams
from equipoise.core.types import Prediction
from equipoise.geometry import Ball, Box
from equipoise.losses.objectives import cross_entropy, dlr, entropy, kl, margin
from equipoise.models import Single

pgd = partial(attacks.pgd, start="zero", return_point="last")
cw = partial(attacks.cw, start="zero", return_point="last")

F64 = torch.float64


@dataclass(frozen=True)
class Recorded:
    """A step rule that keeps a copy of every iterate it is given."""

    rule: object = Steepest()
    seen: list = field(default_factory=list, compare=False)

    def init(self, x):
        self.seen.clear()
        return self.rule.init(x)

    def __call__(self, here, memory):
        self.seen.append((here.point.clone(), here.gradient.clone(), here.size))
        return self.rule(here, memory)


# ---------------------------------------------------------------- Alg. 1 of U, PGD and TRADES, step by step


def test_uta_is_algorithm_one_with_fixed_k(mlp, batch, plain_pgd, plain_entropy):
    net, (x, y) = mlp(), batch()
    spy = Recorded()
    found = uta(0.2, 0.03, 12, step=spy)(net, x, y)
    plain = plain_pgd(net, x, y, 0.2, 0.03, 12, plain_entropy)
    assert len(spy.seen) == 12
    for (ours, _, size), theirs in zip(spy.seen, plain, strict=False):
        assert size == 0.03 and (ours - theirs).abs().max() < 1e-14
    assert (found.x - plain[-1]).abs().max() < 1e-14


@pytest.mark.parametrize("keep", ["last", "best", "first_success"])
def test_udp_is_algorithm_one_with_drawn_k(keep, mlp, batch, plain_pgd, plain_entropy, Drawn):
    net, (x, _) = mlp(), batch(40)
    counts = Drawn(UniformUpTo(9))
    attack = replace(udp(0.3, 0.03, 9, return_point=keep), steps=counts)
    found = attack(net, x, seed=3)
    (k,) = counts.drawn
    plain = plain_pgd(net, x, None, 0.3, 0.03, 9, plain_entropy)
    assert set(k.tolist()) == set(range(1, 10)), "every number of steps from 1 to K occurs"
    own = net(x).argmax(1)
    for i in range(40):
        path = torch.stack([plain[j][i] for j in range(int(k[i]) + 1)])
        chosen = len(path) - 1
        if keep != "last":
            chosen = int(plain_entropy(net(path)).argmax())
        if keep == "first_success":
            fooled = (net(path).argmax(1) != own[i]).nonzero()
            chosen = int(fooled[0]) if len(fooled) else chosen
        assert (found.x[i] - path[chosen]).abs().max() < 1e-14
    assert udp(0.3, 0.03, 9) == replace(uta(0.3, 0.03, 9), steps=UniformUpTo(9))


def test_drawn_k_is_uniform_and_belongs_to_the_sample():
    k = UniformUpTo(5).draw(Streams.of(0, torch.arange(20_000)))
    assert (k.bincount(minlength=6)[1:] - 4000).abs().max() < 250 and k.min() == 1 and k.max() == 5


def test_pgd_step_by_step(mlp, batch, plain_pgd, plain_cross_entropy):
    net, (x, y) = mlp(), batch()
    spy = Recorded()
    found = pgd(0.1, 0.02, 15, step=spy)(net, x, y)
    plain = plain_pgd(net, x, y, 0.1, 0.02, 15, plain_cross_entropy)
    for (ours, _, _), theirs in zip(spy.seen, plain, strict=False):
        assert (ours - theirs).abs().max() < 1e-14
    assert (found.x - plain[-1]).abs().max() < 1e-14
    assert torch.equal(found.success, net(plain[-1]).argmax(1) != y)
    assert torch.equal(found.prediction, net(plain[-1]).argmax(1))
    assert torch.allclose(found.distance, (plain[-1] - x).abs().amax(1))


def test_trades_inner_step_by_step(mlp, batch, plain_pgd, Drawn):
    net, (x, y) = mlp(), batch()
    start, spy = Drawn(Gaussian(0.001)), Recorded()
    found = trades(0.1, 0.02, 8, start=start, step=spy)(net, x, y)
    q = net(x).softmax(1).detach()

    def divergence(logits, _):
        return F.kl_div(logits.log_softmax(1), q, reduction="none").sum(1)

    (noisy,) = start.drawn
    assert 0 < (noisy - x).abs().max() < 0.006
    plain = plain_pgd(net, x, y, 0.1, 0.02, 8, divergence, start=noisy)
    for (ours, _, _), theirs in zip(spy.seen, plain, strict=False):
        assert (ours - theirs).abs().max() < 1e-14
    assert (found.x - plain[-1]).abs().max() < 1e-14


def test_l2_pgd_step_by_step(mlp, batch, plain_cross_entropy):
    net, (x, y) = mlp(), batch()
    spy = Recorded()
    pgd(0.3, 0.1, 6, norm="l2", step=spy)(net, x, y)
    point = x.clone()
    for ours, _, _ in spy.seen:
        assert (ours - point).abs().max() < 1e-12
        at = point.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(plain_cross_entropy(net(at), y).sum(), at)
        moved = point + 0.1 * g / g.norm(dim=1, keepdim=True)
        point = Ball("l2", 0.3).project(moved, x)


def test_mi_fgsm(mlp, batch, plain_cross_entropy):
    """Dong et al. 2018, Eqs. 6 and 7, written plainly."""
    net, (x, y) = mlp(), batch()
    found = pgd(0.2, 0.02, 10, step=Momentum(0.9))(net, x, y)
    point, m = x.clone(), torch.zeros_like(x)
    for _ in range(10):
        at = point.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(plain_cross_entropy(net(at), y).sum(), at)
        m = 0.9 * m + g / g.abs().sum(1, keepdim=True)
        point = torch.min(torch.max(point + 0.02 * m.sign(), x - 0.2), x + 0.2).clamp(0, 1)
    assert (found.x - point).abs().max() < 1e-13


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_momentum_zero_is_no_momentum(norm, mlp, batch):
    net, (x, y) = mlp(), batch()
    plain = pgd(0.2, 0.05, 5, norm=norm)(net, x, y)
    assert torch.allclose(plain.x, pgd(0.2, 0.05, 5, norm=norm, step=Momentum(0.0))(net, x, y).x)


def test_triangular_steps(mlp, batch):
    spy = Recorded()
    net, (x, y) = mlp(), batch()
    pgd(1.0, Triangular(0.01, 0.2), 8, step=spy)(net, x, y)
    slope = 0.19 / 3
    expected = [0.01 + slope * min(i, 7 - i) for i in range(8)]
    assert [size for _, _, size in spy.seen] == pytest.approx(expected)
    assert [Triangular(0.1, 0.05).at(i, 6) for i in range(6)] == [0.1] * 6, "a peak below alpha changes nothing"


# ---------------------------------------------------------------- what is kept


def test_best_never_falls_below_the_start_or_the_path(mlp, batch, plain_cross_entropy):
    net, (x, y) = mlp(), batch(30)
    spy = Recorded()
    found = pgd(0.5, 0.2, 8, return_point="best", step=spy)(net, x, y)
    path = torch.stack([plain_cross_entropy(net(p), y) for p, _, _ in spy.seen])
    reached = plain_cross_entropy(net(found.x), y)
    assert (reached >= path.max(0).values - 1e-12).all()
    last = pgd(0.5, 0.2, 8)(net, x, y)
    assert (reached >= plain_cross_entropy(net(last.x), y) - 1e-12).all()


def test_best_keeps_a_start_that_no_step_improves():
    """An uncertain clean point is already the summit of the entropy; long steps only fall from it."""
    net = nn.Linear(1, 2, dtype=F64)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[10.0], [-10.0]])), net.bias.copy_(torch.tensor([-5.0, 5.0]))
    x = torch.full((1, 1), 0.5 + 1e-6, dtype=F64)
    assert torch.equal(uta(0.3, 0.3, 1, return_point="best")(net, x).x, x)
    assert not torch.equal(uta(0.3, 0.3, 1)(net, x).x, x)


class Counting(nn.Module):
    """Counts how often each sample, known by its last pixel, passes; that pixel does not reach the network."""

    def __init__(self, net):
        super().__init__()
        self.net, self.tally = net, SimpleNamespace(calls=[])  # an object, which copies share

    def forward(self, x):
        self.tally.calls += x[:, -1].detach().tolist()
        return self.net(x[:, :-1])


@pytest.mark.parametrize("kind", ["pgd", "udp", "trades", "best", "first", "restarts"])
def test_evaluations_are_counted(kind, mlp, batch):
    x, y = batch(12)
    x = torch.cat([x, torch.linspace(0.1, 0.9, 12, dtype=F64)[:, None]], 1)
    model = Counting(mlp())
    attack = {
        "pgd": pgd(0.2, 0.05, 6),
        "udp": udp(0.2, 0.05, 6),
        "trades": trades(0.2, 0.05, 6, start=Uniform()),
        "best": pgd(0.2, 0.05, 6, return_point="best"),
        "first": pgd(0.2, 0.05, 6, return_point="first_success"),
        "restarts": pgd(0.2, 0.05, 3, start=Uniform(), restarts=3),
    }[kind]
    tag = replace(attack, start=_KeepLastPixel(attack.start), step=_KeepLastPixel(attack.step))
    found = tag(model, x, y)
    counted = [model.tally.calls.count(v) for v in x[:, -1].tolist()]
    # Before the attack the model looks at the first two samples twice, at the first one alone, and on both sides of its
    # mirror image, which has the last pixel of the last sample.
    looks = {0: 5, 1: 2, 11: 1}
    counted = [c - looks.get(i, 0) for i, c in enumerate(counted)]
    assert found.evaluations.tolist() == counted
    if kind == "pgd":
        assert counted == [6 + 1] * 12
    if kind == "first":
        assert len(set(counted)) > 2, "samples leave when they are fooled"


@dataclass(frozen=True)
class _KeepLastPixel:
    """A start or step rule that leaves the last pixel alone."""

    rule: object

    def init(self, x):
        return self.rule.init(x)

    def draw(self, streams, x, geometry):
        return torch.cat([self.rule.draw(streams, x, geometry)[:, :-1], x[:, -1:]], 1)

    def __call__(self, here, memory):
        moved, memory = self.rule(here, memory)
        return torch.cat([moved[:, :-1], here.point[:, -1:]], 1), memory


@pytest.mark.parametrize("towards", [False, True])
def test_first_success_is_the_first_misclassified_iterate(towards, mlp, batch, plain_pgd, plain_cross_entropy):
    net, (x, y) = mlp(seed=3), batch(60)
    target = (y + 1) % 4 if towards else None
    sign = -1 if towards else 1

    def loss(logits, _):
        return sign * plain_cross_entropy(logits, target if towards else y)

    path = plain_pgd(net, x, y, 0.4, 0.02, 15, loss)
    found = pgd(0.4, 0.02, 15, return_point="first_success")(net, x, y, target=target)
    for i in range(60):
        labels = torch.tensor([int(net(p[i : i + 1]).argmax()) for p in path])
        fooled = (labels == target[i] if towards else labels != y[i]).nonzero()[:, 0]
        if len(fooled):
            assert (found.x[i] - path[fooled[0]][i]).abs().max() < 1e-14
            assert found.success[i] and found.evaluations[i] == min(int(fooled[0]) + 1, 16) + 1
        else:
            values = torch.stack([loss(net(p), None)[i] for p in path])
            assert not found.success[i] and (found.x[i] - path[int(values.argmax())][i]).abs().max() < 1e-14
    assert 0 < found.success.sum() < 60


def test_restarts_only_help(mlp, batch, plain_cross_entropy):
    net, (x, y) = mlp(sharp=1.0), batch(40)
    options = {"start": Uniform(), "return_point": "best"}
    single = [pgd(0.15, 0.03, 4, **options, restarts=r)(net, x, y, seed=5) for r in (1, 2, 5)]
    values = [plain_cross_entropy(net(f.x), y) for f in single]
    for (few, many), (worse, better) in (((single[i], single[i + 1]), (values[i], values[i + 1])) for i in (0, 1)):
        assert (many.success >= few.success).all()
        same = many.success == few.success
        assert (better[same] >= worse[same] - 1e-12).all() and (better > worse + 1e-9).any()
        assert (many.evaluations > few.evaluations).all()


def test_restarts_with_first_success_leave_fooled_samples_alone(mlp, batch):
    net, (x, _) = mlp(), batch(40)
    y = net(x).argmax(1)
    one, more = (
        pgd(0.12, 0.01, 4, start=Uniform(), return_point="first_success", restarts=r)(net, x, y) for r in (1, 4)
    )
    won = one.success
    assert torch.equal(one.x[won], more.x[won]) and torch.equal(one.evaluations[won], more.evaluations[won])
    assert more.success.sum() > won.sum() and (more.evaluations > one.evaluations)[~won].all()


# ---------------------------------------------------------------- targets


def test_targets_are_climbed_towards(mlp, batch):
    net, (x, y) = mlp(), batch(20)
    target = (y + 2) % 4
    for attack in (pgd(0.2, 0.02, 10), cw(0.2, 0.02, 10), replace(pgd(0.2, 0.02, 10), objective=dlr)):
        found = attack(net, x, y, target=target)
        here, clean = Prediction(net(found.x)[None]), Prediction(net(x)[None])
        assert (attack.objective(here, None, y, target) > attack.objective(clean, None, y, target)).all()
        assert torch.equal(found.success, here.labels == target) and found.success.any()


def test_target_rules():
    scores = torch.tensor([[[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]]], dtype=F64)
    clean, streams = Prediction(scores), Streams.of(0, torch.arange(2))
    y = torch.tensor([0, 0])
    assert choose_target("least_likely", clean, y, streams).tolist() == [3, 1]
    assert choose_target("runner_up", clean, y, streams).tolist() == [2, 3]
    assert choose_target("least_likely", clean, None, streams).tolist() == [3, 0]
    many = Prediction(scores[:, :1].expand(1, 3000, 4))
    drawn = choose_target("random", many, torch.ones(3000, dtype=torch.int64), Streams.of(0, torch.arange(3000)))
    assert drawn.bincount(minlength=4)[1] == 0 and drawn.bincount(minlength=4)[[0, 2, 3]].min() > 850


def test_a_rule_chooses_as_the_classes_given_by_hand(mlp, batch):
    net, (x, y) = mlp(), batch(20)
    by_rule = targeted(pgd(0.2, 0.02, 10))(net, x, y)
    scores = net(x).detach().clone()
    scores[torch.arange(20), y] = torch.inf
    by_hand = pgd(0.2, 0.02, 10)(net, x, y, target=scores.argmin(1))
    assert torch.equal(by_rule.x, by_hand.x) and torch.equal(by_rule.success, by_hand.success)


def test_targets_count_in_a_training_method_too(mlp, batch):
    net, (x, y) = mlp(), batch(20)
    attack = targeted(pgd(0.2, 0.02, 10))
    point = attack.perturb(Single(net), x, y, Streams.of(0, torch.arange(20)))
    assert torch.equal(point, attack(net, x, y).x) and not torch.equal(point, pgd(0.2, 0.02, 10)(net, x, y).x)


# ---------------------------------------------------------------- the optimum of a linear model


def linear(classes: int, features: int = 8, seed: int = 0) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    net = nn.Linear(features, classes, dtype=F64)
    with torch.no_grad():
        net.weight.copy_(torch.randn(classes, features, generator=generator, dtype=F64))
        net.bias.zero_()
    return net


def linear_maximum(name: str, w: Tensor, x: Tensor, eps: float) -> Tensor:
    """argmax ⟨w, z⟩ over the ball around x met with [0, 1], each norm by its own closed form."""
    room = torch.where(w > 0, 1 - x, x)
    slope = w.abs()
    if name == "linf":
        d = room.clamp_max(eps)
    elif name == "l1":  # fill the steepest coordinate first
        d, left = torch.zeros_like(x), eps
        for i in slope.argsort(descending=True).tolist():
            d[i] = min(float(room[i]), left)
            left -= float(d[i])
    else:  # d = min(s·|w|, room) with ‖d‖ = eps, s by bisection
        low, high = 0.0, 1e6
        for _ in range(200):
            s = (low + high) / 2
            low, high = (s, high) if torch.minimum(s * slope, room).norm() < eps else (low, s)
        d = torch.minimum(high * slope, room)
    return x + d * w.sign()


@pytest.mark.parametrize("attack", [pgd, cw])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_closed_form_optimum_of_a_binary_linear_model(norm, attack, batch):
    """Both objectives grow with the one margin, so that the summit is the linear maximum over ball ∩ box."""
    net, eps = linear(2), {"linf": 0.3, "l2": 0.8, "l1": 1.7}[norm]
    x, y = batch(12, 8, classes=2)
    found = attack(eps, eps / 2, 80, norm=norm)(net, x, y)
    w = net.weight.detach()
    for i in range(12):
        direction = w[1 - y[i]] - w[y[i]]
        best = linear_maximum(norm, direction, x[i], eps)
        assert direction @ found.x[i] == pytest.approx(float(direction @ best), abs=1e-5)
        assert (found.x[i] - best).abs().max() < 1e-5


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_closed_form_optimum_towards_each_class(norm, batch):
    """In three classes the margin is the larger of two linear functions; where one stays it, the summit is its."""
    net, eps = linear(3, seed=2), {"linf": 0.1, "l2": 0.3, "l1": 0.5}[norm]
    x, y = batch(30, 8, classes=3)
    w = net.weight.detach()
    # Samples whose strongest rival stays the strongest in the whole ball have a single linear margin.
    ends = []
    for i in range(30):
        rivals = [c for c in range(3) if c != y[i]]
        top = max(rivals, key=lambda c: float(w[c] @ x[i]))
        other = next(c for c in rivals if c != top)
        worst = linear_maximum(norm, w[other] - w[top], x[i], eps)
        ends.append(top if (w[other] - w[top]) @ worst < 0 else -1)
    found = cw(eps, eps / 2, 80, norm=norm)(net, x, y)
    single = [i for i, top in enumerate(ends) if top >= 0]
    assert len(single) >= 10
    for i in single:
        best = linear_maximum(norm, w[ends[i]] - w[y[i]], x[i], eps)
        assert (found.x[i] - best).abs().max() < 1e-5


# ---------------------------------------------------------------- parts


def test_rules_that_ignore_the_norm(mlp, batch):
    net, (x, y) = mlp(), batch()
    box = Box(-10.0, 10.0)
    for rule, step in ((Sign(), lambda g: g.sign()), (Normalized(), lambda g: g / g.norm(dim=1, keepdim=True))):
        for norm in ("linf", "l2", "l1"):
            found = Ascent(cross_entropy, Ball(norm, 9.0, box), 0.01, 1, step=rule)(net, x, y)
            _, gradient, _ = value_and_gradient(cross_entropy, Single(net).draw(), x, labels=y)
            assert torch.allclose(found.x, x + 0.01 * step(gradient))


def test_a_gaussian_start_has_its_deviation():
    x = torch.full((4000, 5), 0.5, dtype=F64)
    noise = Gaussian(0.01).draw(Streams.of(0, torch.arange(4000)), x, Ball("linf", 1.0)) - x
    assert noise.std().item() == pytest.approx(0.01, rel=0.03) and abs(noise.mean().item()) < 3e-4


def test_numbers_become_parts():
    ascent = Ascent(entropy, Ball("linf", 0.1), 0.02, 5)
    assert ascent.step_size == Constant(0.02) and ascent.steps == Fixed(5)
    assert ascent == Ascent(entropy, Ball("linf", 0.1), Constant(0.02), Fixed(5)) and hash(ascent) is not None
    assert str(ascent) == "ascent(entropy, linf 0.1, 5 steps of 0.02)"
    assert "up to 7 steps" in str(udp(0.1, 0.02, 7))


def test_settings_are_plain_data():
    settings = trades(0.1, Triangular(0.01, 0.02), 5, norm="l2").settings()
    text = json.loads(json.dumps(settings))
    assert text["geometry"]["eps"] == 0.1 and text["step_size"]["kind"] == "Triangular" and text["steps"]["most"] == 5


def test_a_model_with_logits_attribute_and_half_the_world(mlp, batch):
    @dataclass
    class Output:
        logits: Tensor

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x):
            return Output(self.net(x))

    x, y = batch()
    assert torch.equal(pgd(0.1, 0.02, 5)(Wrapped(), x, y).x, pgd(0.1, 0.02, 5)(mlp(), x, y).x)


def test_parts_of_an_outcome(mlp, batch):
    net, (x, y) = mlp(), batch()
    found = fgsm(0.1)(net, x, y)
    assert len(found) == 10 and len(found[slice(3)]) == 3
    again = found.with_rows(torch.tensor([1, 4]), found[torch.tensor([0, 2])])
    assert torch.equal(again.x[[1, 4]], found.x[[0, 2]]) and torch.equal(again.x[0], found.x[0])


def test_a_training_term_takes_the_point_after_all_steps():
    attack = attacks.pgd(0.1, 0.02, 5)
    assert attack.return_point == "first_success" and (cross_entropy @ attack) == (
        cross_entropy @ replace(attack, return_point="last")
    )
    best = replace(attack, return_point="best")
    assert (cross_entropy @ best).at == best


def test_refuses_what_it_cannot_run():
    with pytest.raises(EquipoiseError, match=r"restarts = 3: the inner maximisation of training runs once"):
        cross_entropy @ pgd(0.1, 0.02, 5, restarts=3)
    with pytest.raises(EquipoiseError, match=r"output has no gradient: it detaches its input"):

        class Detached(nn.Module):
            def forward(self, x):
                return x.detach()[:, :2]

        margin_attack = Ascent(margin, Ball("linf", 0.1), 0.01, 1)
        margin_attack(Detached(), torch.rand(2, 3), torch.tensor([0, 1]))
    with pytest.raises(EquipoiseError, match=r"KL\(clean\|\|here\) @ 3: expected an ascent on the right"):
        _ = kl() @ 3


def test_a_model_of_the_sum_of_its_input():
    """The gradient of a sum is one number, expanded: not to be written to."""

    class OfTheSum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            total = x.flatten(1).sum(1, keepdim=True)
            return torch.cat([total - 1, 1 - total], 1)

    x, y = torch.full((3, 4), 0.2), torch.ones(3).long()
    found = pgd(0.1, 0.025, 4)(OfTheSum(), x, y)
    assert torch.allclose(found.x, x + 0.1) and found.success.all()

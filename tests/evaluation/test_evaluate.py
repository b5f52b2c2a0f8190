"""Evaluation against a model whose robust accuracy is known in closed form, and the check of every success."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from equipoise.attacks import pgd
from equipoise.attacks.result import AttackResult
from equipoise.core.errors import EquipoiseError
from equipoise.evaluation import WORST, evaluate, result_warnings, samples, suite, verify_outcome
from equipoise.geometry import Ball
from equipoise.results.records import AttackRecord

pytestmark = pytest.mark.unchecked

DUAL = {"linf": 1, "l2": 2, "l1": math.inf}
EPS = {"linf": 0.03, "l2": 0.08, "l1": 0.12}
FEATURES = 8


def linear(seed: int = 0) -> nn.Linear:
    """A linear classifier of two classes, with a boundary near the middle of the box."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(FEATURES, 2)
    with torch.no_grad():
        model.weight.copy_(torch.randn(2, FEATURES, generator=generator))
        model.bias.copy_(-0.5 * model.weight.sum(1))
    return model


def far_from_the_box(n: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Points that no ball used here takes out of the box, and labels that are mostly the model's."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.3 + 0.4 * torch.rand(n, FEATURES, generator=generator)
    y = linear()(x).argmax(1)
    y[::7] = 1 - y[::7]
    return x, y


def margins(model: nn.Linear, x: Tensor, y: Tensor, norm: str) -> np.ndarray:
    """Distance to the decision boundary, `(w_y - w_other) x + b / dual norm`, negative where the model is wrong."""
    w = (model.weight[0] - model.weight[1]).double().detach()
    b = (model.bias[0] - model.bias[1]).double().detach()
    sign = 1 - 2 * y.double()
    return (sign * (x.double() @ w + b) / torch.linalg.vector_norm(w, DUAL[norm])).numpy()


@pytest.mark.parametrize("norm", DUAL)
@pytest.mark.parametrize("name", ["pgd", "cw", "fgsm", "apgd-ce", "apgd-t", "fab-t"])
def test_robust_accuracy_of_a_linear_model_is_the_closed_form(norm, name):
    model, (x, y) = linear(), far_from_the_box(300)
    distance = margins(model, x, y, norm)
    clean, attacked = evaluate(model, x, y, suite([name], [EPS[norm]], norm))
    correct = np.array(attacked.correct)
    assert np.array_equal(clean.correct, distance > 0)
    # On the L2 sphere, steps of constant length from a random start approach the optimum, 40 of them to some percent.
    # APGD for L1 spreads its steps over several coordinates; the optimum moves one.
    slack = 0.05 * EPS[norm] if norm == "l2" and name not in ("fgsm", "fab-t") else 1e-6
    if norm == "l1" and name.startswith("apgd"):
        slack = 0.3 * EPS[norm]
    assert not correct[distance < EPS[norm] - slack].any()
    assert correct[distance > EPS[norm] + 1e-6].all()
    assert 0.1 < attacked.accuracy < clean.accuracy - 0.1


@pytest.mark.parametrize("norm", DUAL)
def test_reported_distances_are_those_of_an_attack_on_the_boundary_or_beyond(norm):
    model, (x, y) = linear(), far_from_the_box(100)
    _, result = evaluate(model, x, y, suite(["pgd"], [EPS[norm]], norm))
    boundary = margins(model, x, y, norm)
    for correct, distance, least, prediction, label in zip(
        result.correct, result.distance, boundary, result.prediction, y.tolist(), strict=True
    ):
        if correct:
            assert distance is None and prediction == label
        elif least < 0:
            assert distance == 0 and prediction != label
        else:
            assert least - 1e-6 <= distance <= EPS[norm] + 1e-6 and prediction != label


def test_samples_wrong_without_an_attack_are_not_attacked():
    model, (x, y) = linear(), far_from_the_box(70)
    seen = []

    @dataclass(frozen=True)
    class Spy:
        attack: object
        geometry: Ball

        def settings(self):
            return {}

        def __call__(self, model, x, y=None, **options):
            seen.append(len(x))
            return self.attack(model, x, y, **options)

    attack = pgd(0.03)
    clean, _ = evaluate(model, x, y, [("spy", Spy(attack, attack.geometry))], batch_size=16)
    assert sum(seen) == sum(clean.correct) == 60
    assert max(seen) <= 16


def test_the_result_depends_on_neither_batch_size_nor_order():
    model, (x, y) = linear(), far_from_the_box(60)
    attacks = suite(["pgd5", "r-fgsm"], [0.02], "linf", restarts=2)
    whole = evaluate(model, x, y, attacks, seed=3)
    small = evaluate(model, x, y, attacks, seed=3, batch_size=7)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    mixed = evaluate(model, x[order], y[order], attacks, seed=3, index=order)
    for a, b, c in zip(whole, small, mixed, strict=True):
        assert list(a.correct) == list(b.correct)
        assert [a.correct[i] for i in order.tolist()] == list(c.correct)
        for other, rows in ((b, range(60)), (c, order.tolist())):
            expected = [a.distance[i] for i in rows] if a.distance else []
            assert list(other.distance) == pytest.approx(expected, abs=1e-6)


def test_the_worst_case_is_per_sample_the_nearest_success_of_each_ball():
    model, (x, y) = linear(), far_from_the_box(80)
    results = evaluate(model, x, y, suite(["fgsm", "pgd1"], [0.01, 0.02], "linf", step_size=0.004))
    by = {(r.attack, r.eps): r for r in results}
    assert [r.attack for r in results] == ["clean", *2 * ["fgsm", "pgd1", WORST]]
    for eps in (0.01, 0.02):
        fgsm, weak, worst = (by[name, eps] for name in ("fgsm", "pgd1", WORST))
        assert list(worst.correct) == [a and b for a, b in zip(fgsm.correct, weak.correct, strict=True)]
        for a, b, c in zip(fgsm.distance, weak.distance, worst.distance, strict=True):
            found = [d for d in (a, b) if d is not None]
            assert c == (min(found) if found else None)
        assert sum(weak.correct) > sum(worst.correct)


@dataclass(frozen=True)
class Cheat:
    """An attack that claims success for points it may not use."""

    geometry: Ball
    shift: float

    def settings(self):
        return {}

    def __call__(self, model, x, y=None, **options):
        direction = (1 - 2 * y.float())[:, None] * (model.weight[1] - model.weight[0]).detach().sign()
        n = len(x)
        none = torch.zeros(n, dtype=torch.int64)
        everyone = torch.ones(n, dtype=torch.bool)
        return AttackResult(x + self.shift * direction, everyone, torch.zeros(n), 1 - y, *[none] * 6)


def test_claims_of_an_attack_that_leaves_its_ball_do_not_count():
    model, (x, y) = linear(), far_from_the_box(50)

    @dataclass(frozen=True)
    class Outside:
        geometry: Ball = Ball("linf", 0.01)

        def settings(self):
            return {"steps": 1}

        def __call__(self, predictive, x, y=None, **options):
            return Cheat(self.geometry, 0.2)(predictive.module, x, y)

    clean, attacked = evaluate(model, x, y, [("outside", Outside())])
    assert list(attacked.correct) == list(clean.correct)
    assert attacked.settings == {"steps": 1, "refused": sum(clean.correct)}
    assert list(attacked.prediction) == list(clean.prediction)
    assert any("42 successes that it claimed failed the check" in c for c in result_warnings([clean, attacked]))


@pytest.mark.parametrize("norm", DUAL)
def test_verify_accepts_what_the_geometry_projects_and_refuses_a_tampered_point(norm):
    model, (x, y) = linear(), far_from_the_box(40)
    eps = 4 * EPS[norm]
    ball = Ball(norm, eps)
    found = pgd(eps, norm=norm, return_point="best")(model, x, y)
    honest = verify_outcome(model, x, found.x, y, ball)
    assert honest.success.sum() > 20
    assert torch.equal(honest.success, found.success)
    out_of_the_ball = x + 1.01 * (found.x - x)
    assert not verify_outcome(model, x, out_of_the_ball, y, ball).success[found.distance > 0.995 * eps].any()
    assert not verify_outcome(model, x, x, model(x).argmax(1), ball).success.any()
    assert not verify_outcome(model, x, found.x.index_fill(1, torch.tensor([3]), torch.nan), y, ball).success.any()


def test_verify_refuses_a_point_outside_the_box_by_any_amount():
    model = linear()
    x = torch.full((1, FEATURES), 0.02)
    y = 1 - model(x).argmax(1)
    point = x.clone()
    assert verify_outcome(model, x, point, y, Ball("linf", 0.1)).success.all()
    point[0, 0] = -1e-7
    assert not verify_outcome(model, x, point, y, Ball("linf", 0.1)).success.any()
    point[0, 0] = 1.0
    assert verify_outcome(model, x, point, 1 - model(point).argmax(1), Ball("linf", 1.0)).success.all()
    point[0, 0] = 1.0 + 1e-6
    assert not verify_outcome(model, x, point, 1 - model(point).argmax(1), Ball("linf", 1.0)).success.any()


@given(st.sampled_from(sorted(DUAL)), st.floats(1e-3, 1.0), st.integers(0, 10_000))
def test_projected_points_always_pass_the_check_of_the_ball(norm, eps, seed):
    generator = torch.Generator().manual_seed(seed)
    x, v = torch.rand(4, 50, generator=generator), torch.randn(4, 50, generator=generator)
    model = nn.Linear(50, 2)
    ball = Ball(norm, eps)
    point = ball.project(x + v, x)
    checked = verify_outcome(model, x, point, torch.full((4,), -1), ball)
    assert checked.success.all()
    exact = np.linalg.norm((point.double() - x.double()).numpy(), ord={"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
    assert checked.distance.numpy() == pytest.approx(exact, rel=1e-12)


def test_predictions_that_count_are_those_of_eval_mode_and_modes_are_restored():
    model = nn.Sequential(linear(), nn.Dropout(0.5)).train()
    x, y = far_from_the_box(30)
    results = evaluate(model, x, y, suite(["pgd3"], [0.01]))
    assert list(results[0].prediction) == linear()(x).argmax(1).tolist()
    assert model.training and model[1].training and not any(p.grad is not None for p in model.parameters())


def result(attack: str, eps: float, right: int, n: int = 100, **fields) -> AttackRecord:
    return AttackRecord(attack, "linf", eps, [i < right for i in range(n)], evaluations=1000, **fields)


def test_one_class_for_all_is_said():
    def told(n: int, right: int, predictions: list[int]) -> list[str]:
        return result_warnings([result("clean", 0, right, n, prediction=predictions), result("pgd", 0.1, right, n)])

    (text,) = told(20, 10, [1] * 20)
    assert text.startswith("the model predicts class 1 for all 20 samples: what ignores its input is robust")
    assert not told(20, 10, [1] * 19 + [0]), "two classes"
    assert not told(20, 20, [1] * 20), "samples of one class"
    assert not told(5, 2, [1] * 5), "too few to tell"


def test_cautions_name_what_is_suspicious_and_nothing_else():
    fine = [result("clean", 0, 90), result("fgsm", 0.1, 60), result("pgd", 0.1, 50), result("pgd", 0.2, 30)]
    assert result_warnings(fine) == []
    (masked,) = result_warnings([result("fgsm", 0.1, 40), result("pgd", 0.1, 50)])
    assert "fgsm, 40.0%" in masked and "masked gradients" in masked
    (rising,) = result_warnings([result("pgd", 0.2, 50), result("pgd", 0.1, 30)])
    assert "rises from 30.0% at eps 0.1 to 50.0% at 0.2" in rising
    # 4 of 4 samples that only one of two attacks fools are no evidence (p = 1/16), 5 of 5 are (p = 1/32).
    assert result_warnings([result("fgsm", 0.1, 46), result("pgd", 0.1, 50)]) == []
    assert len(result_warnings([result("fgsm", 0.1, 45), result("pgd", 0.1, 50)])) == 1
    (nan,) = result_warnings([result("pgd", 0.1, 30, nan_gradients=20)])
    assert "2% of its gradients held a NaN" in nan
    (zero,) = result_warnings([result("pgd", 0.1, 30, zero_gradients=500)])
    assert "50% of its gradients were exactly 0" in zero
    (none,) = result_warnings([result("pgd", 0.0, 30)])
    assert "radius 0" in none


def test_saturated_logits_are_reported_as_zero_gradients():
    model = linear()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e4)
    x, y = far_from_the_box(50)
    warnings = result_warnings(evaluate(model, x, y, suite(["pgd"], [0.001])))
    assert any("were exactly 0" in w for w in warnings)


def test_progress_counts_every_sample_of_every_attack_once():
    seen = []
    x, y = far_from_the_box(50)
    evaluate(linear(), x, y, suite(["pgd2", "fgsm"], [0.01, 0.02]), batch_size=20, progress=lambda *a: seen.append(a))
    assert seen[-1][1:] == (200, 200)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_suite_defaults_and_numbers_in_names():
    (_, pgd40), (_, cw7), (_, fgsm) = suite(["clean", "pgd", "cw7", "fgsm"], [0.1], "l2", restarts=3)
    assert (pgd40.steps.most, pgd40.step_size.size, pgd40.restarts) == (40, pytest.approx(2.5 * 0.1 / 40), 3)
    assert (cw7.steps.most, cw7.objective.name, cw7.return_point) == (7, "margin", "first_success")
    assert (fgsm.steps.most, fgsm.restarts, fgsm.geometry) == (1, 1, Ball("l2", 0.1))
    assert [a.geometry.eps for _, a in suite(["pgd"], [0.3, 0.1, 0.3])] == [0.1, 0.3]
    assert suite(["clean"], []) == []


@pytest.mark.parametrize(
    ("names", "eps", "norm", "options", "message"),
    [
        (["pgdd"], [0.1], "linf", {}, "unknown attack 'pgdd': did you mean 'pgd'"),
        (["fgsm3"], [0.1], "linf", {}, "fgsm takes a single step"),
        (["pgd", "fgsm", "pgd40"], [0.1], "linf", {}, "pgd and pgd40 are the same attack: name one of them"),
        (["pgd４"], [0.1], "linf", {}, "unknown attack 'pgd４'"),
        (["pgd"], [], "linf", {}, "at least one radius"),
        (["pgd"], [-0.1], "linf", {}, "eps = -0.1 is not a radius"),
        (["pgd"], [0.1], "l3", {}, "unknown norm 'l3'"),
        (["pgd0"], [0.1], "linf", {}, "steps = 0: expected an integer"),
        (["pgd"], [0.1], "linf", {"steps": 0}, "steps = 0: expected an integer"),
        (["pgd"], [0.1], "linf", {"step_size": 0.0}, "step_size = 0.0 moves nothing"),
        (["pgd"], [0.1], "linf", {"restarts": 0}, "restarts = 0: expected an integer"),
    ],
)
def test_suite_refuses(names, eps, norm, options, message):
    with pytest.raises(EquipoiseError, match=message):
        suite(names, eps, norm, **options)


def test_evaluate_refuses_what_no_attack_could_take():
    model, (x, y) = linear(), far_from_the_box(10)
    for arguments, message in (
        ((model, x * 2, y), "lie outside"),
        ((model, x[:, :3], y), r"does not take inputs of shape \(3,\)"),
        ((model, x, y + 5), "holds class 6, but the model has 2 classes"),
        ((model, x, y.int()), "expected int64"),
        ((nn.Sequential(model, nn.Softmax(1)), x, y), "returns probabilities"),
        ((model, x[:0], y[:0]), "x is empty"),
    ):
        with pytest.raises(EquipoiseError, match=message):
            evaluate(*arguments, suite(["clean"], []))
    with pytest.raises(EquipoiseError, match="batch_size = 0"):
        evaluate(model, x, y, [], batch_size=0)
    ball = replace(Ball("linf", 0.1))
    object.__setattr__(ball, "norm", "l7")
    with pytest.raises(EquipoiseError, match="unknown norm 'l7'"):
        verify_outcome(model, x, x, y, ball)


def test_samples_are_the_first_right_ones_of_each_class_in_turn():
    x = torch.rand(40, 1, 2, 4, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), linear())
    y = model(x).argmax(1)
    y[0] = 1 - y[0]
    arrays = samples(model, x, y, eps=0.3, n=6, judged=("l2", 0.1))
    right = [[i for i in range(1, 40) if y[i] == c] for c in (0, 1)]
    expected = [rows[turn] for turn in range(3) for rows in right]
    assert np.array_equal(arrays["clean"], x[expected].numpy())
    assert arrays["labels"].tolist() == [0, 1] * 3 == arrays["clean_prediction"].tolist()
    moved = ("udp", "pgd", "judged")
    assert set(arrays) == {f"{k}{p}" for k in ("clean", *moved) for p in ("", "_prediction")} | {"labels"} | {
        f"{k}_{p}" for k in moved for p in ("norm", "eps")
    }
    for kind in moved:
        move = np.abs(arrays[kind].astype(np.float64) - arrays["clean"])
        size, norm = float(arrays[f"{kind}_eps"]), str(arrays[f"{kind}_norm"])
        assert (size, norm) == ((0.1, "l2") if kind == "judged" else (0.3, "linf"))
        assert (move.max() if norm == "linf" else np.sqrt((move**2).sum((1, 2, 3))).max()) <= size + 1e-6
        assert arrays[kind].min() >= 0 and arrays[kind].max() <= 1
        predicted = model(torch.from_numpy(arrays[kind])).argmax(1).tolist()
        assert arrays[f"{kind}_prediction"].tolist() == predicted

    def entropy(images):
        log = model(torch.from_numpy(images)).log_softmax(1)
        return -(log.exp() * log).sum(1).detach().numpy()

    assert (entropy(arrays["udp"]) >= entropy(arrays["clean"])).all()
    assert (arrays["pgd_prediction"] != arrays["labels"]).any()


def test_samples_fall_back_on_wrong_ones_when_nothing_is_right():
    x = torch.rand(5, 1, 2, 4, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), linear())
    y = 1 - model(x).argmax(1)
    assert len(samples(model, x, y, n=10)["labels"]) == 5


def test_two_attacks_of_one_name_in_one_ball_are_refused():
    x, y = far_from_the_box(2)
    two = [("mine", pgd(0.1, steps=1)), ("mine", pgd(0.1, steps=2))]
    with pytest.raises(EquipoiseError, match=r"holds two of the name 'mine' in linf with eps 0.1: give each a name of"):
        evaluate(linear(), x, y, two)
    assert len(evaluate(linear(), x, y, [two[0], ("mine", pgd(0.2, steps=1))])) == 3

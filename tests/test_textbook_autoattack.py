"""The plain AutoAttack does what was published, and the benchmark compares ours with it; nothing is timed here."""

import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import autoattack
import textbook_autoattack as plain
from textbook_autoattack import STAGES, Budget
from training_step import images, warmed_up

NORMS = {"linf": ("Linf", 0.05), "l2": ("L2", 0.6)}


def linear(norm, seed=0):
    """Ten linear scores of images in the middle of the box, which stays out of reach, and per sample the distance to
    the nearest wrong class: the smallest of `(z_y - z_t) / ‖w_y - w_t‖`, in the dual norm.
    """
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(10, 64, generator=g))
        model[1].bias.zero_()
    x = 0.5 + 0.15 * (2 * torch.rand(60, 1, 8, 8, generator=g) - 1)
    with torch.no_grad():
        scores = model(x)
    y = scores.argmax(1)
    gaps = scores.gather(1, y[:, None]) - scores
    differences = model[1].weight.detach()[y][:, None] - model[1].weight.detach()[None]
    dual = differences.abs().sum(2) if norm == "linf" else differences.norm(dim=2)
    distances = torch.where(torch.arange(10) == y[:, None], torch.inf, gaps / dual).amin(1)
    return model, x, y, distances


def between(distances):
    """A radius in the widest gap between the middle distances, so that rounding decides nothing."""
    middle = distances.sort().values[20:40]
    at = int(middle.diff().argmax())
    return float(middle[at : at + 2].mean())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["apgd-t", "fab-t"])
def test_the_optimum_of_a_linear_model_is_reached(norm, name):
    model, x, y, distances = linear(norm)
    eps = between(distances)
    left, adv = plain.stage(
        STAGES[name], model, x, y, torch.ones(60, dtype=torch.bool), eps, norm, Budget(30, 9, 0), batch=25
    )
    assert torch.equal(left, distances > eps)
    assert ((model(adv).argmax(1) == y) == left).all()
    assert plain.length(adv - x, norm).max() <= eps * (1 + 1e-5) and adv.min() >= 0 and adv.max() <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_all_stages_together_reach_it_too_and_fool_no_more_than_there_is_to_fool(norm):
    model, x, y, distances = linear(norm, seed=1)
    y[:5] = (y[:5] + 1) % 10  # misclassified from the start: none of them is attacked
    eps = between(distances)
    accuracy, adv, seconds = plain.standard(model, x, y, eps, norm, 25, 0, Budget(30, 9, 20))
    assert accuracy["clean"] == pytest.approx(55 / 60)
    assert accuracy["square"] == pytest.approx(float((distances[5:] > eps).sum()) / 60)
    assert list(accuracy) == ["clean", *STAGES] and list(seconds) == [*STAGES]
    assert sorted(accuracy.values(), reverse=True) == list(accuracy.values())
    assert torch.equal(adv[:5], x[:5])


@pytest.mark.parametrize("norm", NORMS)
def test_square_fools_within_the_ball_and_never_where_it_cannot(norm):
    model, x, y, distances = linear(norm)
    eps = float(distances.median()) * 2
    left, adv = plain.stage(
        STAGES["square"], model, x, y, torch.ones(60, dtype=torch.bool), eps, norm, Budget(0, 0, 300)
    )
    assert (distances[~left] <= eps).all() and (~left).sum() > 15
    assert plain.length(adv - x, norm).max() <= eps * (1 + 1e-5) and adv.min() >= 0 and adv.max() <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_the_move_onto_a_plane_is_the_shortest_within_the_box(norm):
    from scipy.optimize import linprog, minimize

    g = torch.Generator().manual_seed(3)
    x, w = torch.rand(12, 5, generator=g), torch.randn(12, 5, generator=g)
    w[0, 2] = 0
    corner = torch.where(w > 0, 1.0, 0.0)
    b = (w * (x + 0.6 * (corner - x))).sum(1)  # most rows meet the box on their way
    b[6:] -= 2 * (w[6:] * 0.6 * (corner - x)[6:]).sum(1) * 0.3
    moves = plain.shortest_move(x, w, b, norm).double()
    assert torch.allclose((w * (x + moves)).sum(1), b.double(), atol=1e-4)
    for at, normal, offset, move in zip(x.double(), w.double(), b.double(), moves, strict=True):
        low, high, gap = -at.numpy(), (1 - at).numpy(), float(offset - normal @ at)
        if norm == "linf":  # minimise r with -r <= d_i <= r
            eye = torch.eye(5).numpy()
            rows = [[*row, -1] for row in (*eye, *-eye)]
            best = linprog(
                [0] * 5 + [1], rows, [0] * 10, [[*normal.numpy(), 0]], [gap], [*zip(low, high, strict=True), (0, 1)]
            ).fun
        else:
            best = (
                minimize(
                    lambda d: d @ d,
                    move.numpy() * 0,
                    jac=lambda d: 2 * d,
                    bounds=[*zip(low, high, strict=True)],
                    constraints={"type": "eq", "fun": lambda d, n=normal.numpy(), c=gap: n @ d - c},
                    method="SLSQP",
                ).fun
                ** 0.5
            )
        assert float(plain.length(move[None], norm)) == pytest.approx(best, rel=2e-3, abs=1e-4)
        assert (move.numpy() >= low - 1e-6).all() and (move.numpy() <= high + 1e-6).all()


def test_a_plane_out_of_reach_is_approached_as_far_as_the_box_allows():
    x, w = torch.full((2, 3), 0.5), torch.tensor([[1.0, -1.0, 0.0], [1.0, -2.0, 3.0]])
    b = torch.tensor([50.0, -50.0])
    for norm in NORMS:
        moves = plain.shortest_move(x, w, b, norm)
        assert torch.allclose(moves, torch.tensor([[0.5, -0.5, 0.0], [-0.5, 0.5, -0.5]]))


@pytest.fixture(scope="module")
def small():
    x, y = images("lenet", 300, "cpu")
    return warmed_up("lenet", x, y, 40).eval(), x[:80], y[:80]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", STAGES)
@pytest.mark.filterwarnings("ignore")
def test_as_many_samples_fall_as_to_the_published_code(small, norm, name):
    model, x, y = small
    (their_norm, eps), budget = NORMS[norm], Budget(10, 2, 60)
    common = {"norm": their_norm, "eps": eps, "seed": 0, "device": "cpu"}
    silent = logging.getLogger("pyautoattack")
    silent.setLevel(logging.CRITICAL)
    theirs = {
        "apgd-ce": lambda: APGDAttack(model, n_iter=10, logger=silent, **common),
        "apgd-t": lambda: APGDAttack_targeted(model, n_iter=10, n_target_classes=2, logger=silent, **common),
        "fab-t": lambda: FABAttack_PT(model, n_iter=10, targeted=True, n_target_classes=2, **common),
        "square": lambda: SquareAttack(model, n_queries=60, p_init=0.8, resc_schedule=False, **common),
    }
    robust = model(x).argmax(1) == y
    left, _ = plain.stage(STAGES[name], model, x, y, robust, eps, norm, budget)
    with torch.random.fork_rng():
        found = theirs[name]().perturb(x[robust], y[robust])
    standing = int((model(found).argmax(1) == y[robust]).sum())
    assert 5 < standing < int(robust.sum()) - 2  # the attack did something, and not everything
    assert abs(standing - int(left.sum())) <= 2


def test_a_small_case_is_compared_and_described(small, tmp_path, monkeypatch):
    model, x, y = small
    case = autoattack.Case("lenet", 40, 0.05, Budget(10, 2, 40), "32", 0.0)
    found = autoattack.measure(case, model, x[:40], y[:40], "cpu", 2)
    assert [s["stage"] for s in found["stages"]] == list(STAGES) and found["passed"] and found["as_strong"]
    by_stage = [s["robust_accuracy"]["ours"] for s in found["stages"]]
    assert sorted(by_stage, reverse=True) == by_stage and by_stage[-1] < found["clean_accuracy"]
    assert found["unconfirmed"] == {"textbook": 0, "ours": 0}
    assert found["robust_accuracy"] == found["stages"][-1]["robust_accuracy"]
    text = autoattack.described(found)
    assert case.name in text and "pass (floor 0)" in text and "FAIL" not in text

    monkeypatch.setattr(autoattack, "case_of", lambda *args: autoattack.replace(case, samples=10, floor=None))
    monkeypatch.setattr(autoattack, "DATA_ROOT", tmp_path / "none")
    monkeypatch.setattr(autoattack, "trained", lambda *args: model)
    monkeypatch.setattr(sys, "argv", ["autoattack.py", "--device", "cpu", "--out", str(tmp_path / "found" / "small")])
    assert autoattack.main() == 0
    record = json.loads((tmp_path / "found" / "small.json").read_text())
    assert record["data"] == "digits" and record["case"]["samples"] == 10
    assert "no floor" in (tmp_path / "found" / "small.txt").read_text()


def test_a_weaker_attack_is_seen(small, monkeypatch):
    model, x, y = small
    case = autoattack.Case("lenet", 80, 0.1, Budget(10, 2, 20), "32", 1e9)
    weak = autoattack.replace(case, budget=Budget(1, 1, 1), eps=0.001)
    parts = autoattack.attacks_of
    monkeypatch.setattr(autoattack, "attacks_of", lambda case: parts(weak))
    found = autoattack.measure(case, model, x, y, "cpu", 1)
    assert not found["as_strong"] and not found["passed"]
    assert autoattack.described(found).count("FAIL") == 2


def test_errors_outside_the_ball_do_not_count(small):
    model, x, y = small
    robust = model(x).argmax(1) == y
    far = 1 - x
    wrong = model(far).argmax(1) != y
    assert (robust & wrong).any()
    assert autoattack.still_robust(model, x, y, far, 0.1).all()
    assert torch.equal(autoattack.still_robust(model, x, y, far, 1.0), ~wrong)


def test_how_likely_a_difference_is_by_chance():
    assert autoattack.sign_test(0, 0) == 1 and autoattack.sign_test(0, 7) == 1
    assert autoattack.sign_test(5, 0) == 1 / 32 and autoattack.sign_test(1, 1) == 0.75


def test_what_is_timed_in_full_is_our_autoattack():
    from equipoise import attacks

    for precision in ("32", "bf16"):
        full = autoattack.case_of("lenet", precision, None, False)
        assert autoattack.attacks_of(full) == dict(attacks.autoattack(full.eps, precision=precision).parts)

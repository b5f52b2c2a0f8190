"""The shortest way onto a hyperplane in a box: generic solvers, degenerate rows, invariants, scale."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq, linprog

from equipoise.geometry import EVERYWHERE, Box, hyperplane
from equipoise.geometry.hyperplane import move_onto

NORMS = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}


def rows(seed: int, features: int = 7, count: int = 24, dtype: torch.dtype = torch.float64):
    """Random rows, with zero weights, ties, points on faces of the box, on the plane, and planes that miss the box."""
    g = torch.Generator().manual_seed(seed)
    x = (torch.rand(count, features, generator=g, dtype=dtype) * 1.6 - 0.3).clamp(0, 1)
    w = torch.randn(count, features, generator=g, dtype=dtype)
    w = torch.where(torch.rand(count, features, generator=g) < 0.2, 0.0, w)
    w[1::4] = (w[1::4] * 2).round() / 2
    w[-1] = 0
    z = torch.rand(count, features, generator=g, dtype=dtype)
    rise = (w * (z - x)).sum(1)
    rise[2] = 0
    rise[3::5] *= 4
    rise[-1] = 1
    return x, w, rise


def reachable(x, w, rise):
    """The rise nearest to the one wanted that the box allows."""
    direction = w * rise.sign()[:, None]
    most = (direction.abs() * torch.where(direction > 0, 1 - x, x)).sum(1)
    return rise.sign() * torch.minimum(rise.abs(), most)


def shortest(x, w, rise, norm):
    """Length of the shortest move with `w·d = rise` by a generic solver."""
    x, w, n = x.numpy(), w.numpy(), len(x)
    if norm == "l2":  # the multiplier of the dual problem, by bisection
        if not rise or not w.any():
            return 0.0
        move = lambda t: np.clip(x + t * w, 0, 1) - x  # noqa: E731
        excess = lambda t: float(w @ move(t)) - rise  # noqa: E731
        end = np.sign(rise) * 10 / np.abs(w[w != 0]).min()
        return float(np.linalg.norm(move(end if excess(end) * rise <= 0 else brentq(excess, 0, end, xtol=1e-14))))
    bounds = [(-a, 1 - a) for a in x]
    eye = np.eye(n)
    if norm == "linf":  # variables d, t; minimise t with |d_i| <= t
        cost = np.r_[np.zeros(n), 1]
        upper = np.block([[eye, -np.ones((n, 1))], [-eye, -np.ones((n, 1))]])
        answer = linprog(cost, upper, np.zeros(2 * n), np.r_[w, 0][None], [rise], [*bounds, (0, None)])
    else:  # variables d, u; minimise Σu with |d_i| <= u_i
        cost = np.r_[np.zeros(n), np.ones(n)]
        upper = np.block([[eye, -eye], [-eye, -eye]])
        answer = linprog(cost, upper, np.zeros(2 * n), np.r_[w, np.zeros(n)][None], [rise], [*bounds, *[(0, None)] * n])
    assert answer.status == 0, answer.message
    return answer.fun


@pytest.mark.parametrize("few", [2, 64])
@pytest.mark.parametrize("norm", NORMS)
def test_agrees_with_a_generic_solver(norm, few, monkeypatch):
    monkeypatch.setattr(hyperplane, "FEW", few)
    for seed in range(3):
        x, w, rise = rows(seed)
        move = move_onto(x, w, rise, norm, Box())
        wanted = reachable(x, w, rise)
        assert torch.allclose((w * move).sum(1), wanted, atol=1e-9)
        assert (x + move).min() >= -1e-12 and (x + move).max() <= 1 + 1e-12
        length = move.norm(NORMS[norm], dim=1)
        # A hair inside, because the solver calls a plane through a corner of the box infeasible.
        best = [shortest(x[i], w[i], float(wanted[i]) * (1 - 1e-9), norm) for i in range(len(x))]
        assert torch.allclose(length, torch.tensor(best, dtype=length.dtype), atol=1e-6)
        assert int((wanted.abs() < rise.abs()).sum()) >= 2 and int((wanted == rise).sum()) >= 10


@pytest.mark.parametrize("norm", NORMS)
def test_without_a_box_it_is_the_gap_in_the_dual_norm(norm):
    x, w, rise = (v[:-1] for v in rows(5))
    dual = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}[norm]
    move = move_onto(x, w, rise, norm, EVERYWHERE)
    assert torch.allclose((w * move).sum(1), rise, atol=1e-12)
    assert torch.allclose(move.norm(NORMS[norm], dim=1), rise.abs() / w.norm(dual, dim=1), atol=1e-12)


@given(
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(sorted(NORMS)),
    features=st.sampled_from([1, 2, 30, 300]),
    scale=st.sampled_from([1e-30, 1e-4, 1.0, 1e6]),
)
def test_invariants_in_float32(seed, norm, features, scale):
    x, w, rise = rows(seed, features, dtype=torch.float32)
    move = move_onto(x, w * scale, rise * scale, norm, Box())
    point = x + move
    assert point.min() >= 0 and point.max() <= 1 and bool(move.isfinite().all())
    wanted = reachable(x.double(), w.double(), rise.double())
    size = (w.abs() * move.abs()).sum(1).double() + rise.abs()
    assert (((w.double() * move.double()).sum(1) - wanted).abs() <= 1e-5 * size + 1e-9).all()
    assert ((move == 0) | (move.sign() == (w * rise[:, None]).sign())).all()
    # No shorter move reaches as far: in float64 the same rows give the same length.
    exact = move_onto(x.double(), w.double(), rise.double(), norm, Box())
    ours, theirs = (m.double().norm(NORMS[norm], dim=1) for m in (move, exact))
    assert (ours <= theirs * (1 + 1e-4) + 1e-5).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_row_does_not_depend_on_the_others(norm):
    x, w, rise = rows(5, 200, 40, torch.float32)
    together = move_onto(x, w, rise, norm, Box())
    alone = torch.cat([move_onto(x[i : i + 1], w[i : i + 1], rise[i : i + 1], norm, Box()) for i in range(40)])
    assert torch.allclose(together, alone, atol=2e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_many_kinks_of_every_size_are_all_passed(norm):
    """Rooms and weights that span many powers of two, where Newton's method needs its most steps."""
    n = 60
    power = torch.arange(n, dtype=torch.float64)
    x = (1 - 2.0 ** (-power / 3)).repeat(3, 1)
    w = torch.stack([2.0 ** (power / 3), 2.0 ** (-power / 3), torch.ones(n, dtype=torch.float64)])
    room = 1 - x
    rise = (w * room).sum(1) * torch.tensor([0.999, 0.9, 0.5])
    move = move_onto(x, w, rise, norm, Box())
    assert torch.allclose((w * move).sum(1), rise, rtol=1e-12)
    for i in range(3):
        assert abs(float(move[i].norm(NORMS[norm])) - shortest(x[i], w[i], float(rise[i]), norm)) < 1e-8


@pytest.mark.parametrize("norm", NORMS)
def test_what_rounding_left_over_moves_no_tiny_weight(norm):
    """All rooms of the large weights together just suffice: nothing is left for those whose weight is near 0."""
    g = torch.Generator().manual_seed(0)
    x = torch.cat([0.7 + 0.3 * torch.rand(200, 90, generator=g), torch.zeros(200, 90)], 1)
    w = torch.cat([0.5 + torch.rand(200, 90, generator=g), torch.full((200, 90), 1e-12)], 1)
    rise = (w.double() * (1 - x.double()))[:, :90].sum(1).float()
    move = move_onto(x, w, rise, norm, Box())
    assert (move[:, 90:] <= 0.31).all() and (norm == "linf" or move[:, 90:].max() < 1e-3)
    assert torch.allclose(move[:, :90], 1 - x[:, :90], atol=1e-4)


def test_without_weights_or_way_nothing_moves():
    x = torch.tensor([[0.0, 1.0], [0.2, 0.3]])
    for norm in NORMS:
        assert move_onto(x, torch.tensor([[-1.0, 1.0], [0.0, 0.0]]), torch.ones(2), norm, Box()).eq(0).all()
        assert move_onto(x, torch.ones(2, 2), torch.zeros(2), norm, Box()).eq(0).all()


def test_the_box_may_be_another():
    move = move_onto(torch.zeros(1, 2), torch.tensor([[2.0, 1.0]]), torch.tensor([-5.0]), "linf", Box(-2, 2))
    assert torch.allclose(move, torch.full((1, 2), -5 / 3))

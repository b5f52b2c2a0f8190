"""The kernel of FAB's moves against the same in float64 by PyTorch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.geometry import Box
from equipoise.geometry.hyperplane import move_onto
from equipoise.kernels import native

pytestmark = pytest.mark.skipif(native.compiler() is None, reason="there is no C compiler")
F32, F64 = torch.float32, torch.float64


@given(
    rows=st.integers(1, 5),
    features=st.integers(1, 70),
    norm=st.sampled_from(["linf", "l2"]),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e6]),
    walls=st.booleans(),
    share=st.floats(0, 2),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=200, deadline=None)
def test_the_move_is_that_in_float64(rows, features, norm, scale, walls, share, seed):
    """Within reach the moves agree; `share` of what the walls leave is asked for, where there are any."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, features, generator=generator)
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.3, x.round(), x)  # at a wall
    w = torch.randn(rows, features, generator=generator)
    w = scale * torch.where(torch.rand(w.shape, generator=generator) < 0.2, 0.0, w)
    box = Box(0, 1) if walls else Box(-math.inf, math.inf)
    most = (w.double() * torch.where(w > 0, 1 - x, -x).double()).sum(1)
    sign = 1 - 2 * torch.randint(2, (rows,), generator=generator)
    least = (w.double() * torch.where(w > 0, -x, 1 - x).double()).sum(1)
    rise = (share * torch.where(sign > 0, most, least)).float()
    found = native.move_onto(x, w, rise, norm, box.low, box.high)
    assert found is not None and found.dtype == F32
    exact = move_onto(x.double(), w.double(), rise.double(), norm, box)
    reached = (w.double() * found.double()).sum(1)
    assert torch.allclose(reached, (w.double() * exact).sum(1), rtol=1e-4, atol=2e-6 * float(w.abs().sum(1).max()))
    if walls:
        assert (x + found).min() >= -1e-6 and (x + found).max() <= 1 + 1e-6
    if not walls or share < 0.99:  # at the very end of its reach a move hangs on rounding
        assert torch.allclose(found.double(), exact, rtol=1e-3, atol=1e-5 * float(exact.abs().max()) + 1e-7)
    assert (found[w == 0] == 0).all()


def test_what_it_does_not_know_is_left_to_the_library(monkeypatch):
    x, w, rise = torch.rand(2, 5), torch.rand(2, 5), torch.ones(2)
    assert native.move_onto(x, w, rise, "l1", 0, 1) is None
    assert native.move_onto(x.double(), w.double(), rise.double(), "l2", 0, 1) is None
    assert native.move_onto(x[:0], w[:0], rise[:0], "l2", 0, 1) is None
    monkeypatch.setenv("EQUIPOISE_NATIVE", "0")
    assert native.move_onto(x, w, rise, "l2", 0, 1) is None


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_neither_batch_nor_threads_change_a_bit(norm):
    generator = torch.Generator().manual_seed(0)
    x, w, rise = (torch.randn(*size, generator=generator) for size in ((9, 30), (9, 30), (9,)))
    whole = native.move_onto(x, w, rise, norm, -3, 3)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            parts = [native.move_onto(x[i : i + 2], w[i : i + 2], rise[i : i + 2], norm, -3, 3) for i in range(0, 9, 2)]
            assert torch.equal(torch.cat(parts), whole)
    finally:
        torch.set_num_threads(threads)

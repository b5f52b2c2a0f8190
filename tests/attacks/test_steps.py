"""Step sizes, numbers of steps and starts on their own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equipoise.attacks.steps import Constant, Fixed, Gaussian, Momentum, Triangular, Uniform, UniformUpTo, Zero
from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import Streams
from equipoise.core.types import AscentState
from equipoise.geometry import Ball


@given(size=st.floats(1e-4, 1), peak=st.floats(1e-4, 1), steps=st.integers(1, 50))
def test_a_triangle_is_symmetric_and_its_first_and_last_step_are_alpha(size, peak, steps):
    sizes = [Triangular(size, peak).at(i, steps) for i in range(steps)]
    assert sizes == pytest.approx(sizes[::-1])
    assert sizes[0] == sizes[-1] == size
    assert max(sizes) <= max(size, peak) * (1 + 1e-12) and min(sizes) >= size
    if steps > 2:
        assert sizes[steps // 2] == pytest.approx(max(size, peak)), "the peak is reached"
    assert [Constant(size).at(i, steps) for i in range(steps)] == [size] * steps


@given(most=st.integers(1, 30), seed=st.integers(0, 2**32))
def test_drawn_numbers_of_steps_lie_between_one_and_k(most, seed):
    k = UniformUpTo(most).draw(Streams.of(seed, torch.arange(50)))
    assert k.min() >= 1 and k.max() <= most and k.dtype == torch.int64
    assert Fixed(most).draw(Streams.of(seed, torch.arange(2))) is None


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("start", [Zero(), Uniform(), Gaussian(0.5)])
def test_starts_lie_in_ball_and_box(start, norm):
    x = torch.rand(20, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    ball = Ball(norm, 0.3)
    point = start.draw(Streams.of(0, torch.arange(20)), x, ball)
    assert point.shape == x.shape and ball.contains(point, x).all()
    assert torch.equal(point, x) == (start == Zero())
    assert point.data_ptr() != x.data_ptr()


def test_a_uniform_start_fills_the_ball():
    x = torch.full((5000, 1), 0.5)
    moved = Uniform().draw(Streams.of(0, torch.arange(5000)), x, Ball("linf", 0.2)) - x
    assert moved.abs().max() > 0.198 and moved.abs().mean().item() == pytest.approx(0.1, rel=0.03)


def test_momentum_remembers_per_sample():
    rule, ball = Momentum(0.5), Ball("linf", 1.0)
    x = torch.full((2, 2), 0.5)
    memory, none = rule.init(x), torch.zeros(2)
    first = torch.tensor([[3.0, -1.0], [0.0, 0.0]])
    x, memory = rule(AscentState(x, none, first, x, 0.1, 0, 2, ball), memory)
    assert torch.allclose(memory[0], torch.tensor([[0.75, -0.25], [0.0, 0.0]])) and torch.allclose(
        x[0], torch.tensor([0.6, 0.4])
    )
    x, memory = rule(AscentState(x, none, torch.tensor([[-1.0, 1.0], [2.0, 2.0]]), x, 0.1, 1, 2, ball), memory)
    assert torch.allclose(memory[0], torch.tensor([[-0.125, 0.375], [0.5, 0.5]]))
    assert torch.allclose(x, torch.tensor([[0.5, 0.5], [0.6, 0.6]]))


def test_refuses_parts_that_do_nothing():
    for make in (Constant, lambda size: Triangular(size, 0.1)):
        for size in (0.0, -0.1, float("nan")):
            with pytest.raises(EquipoiseError, match=r"moves nothing: expected a number > 0, such as 2/255"):
                make(size)
        with pytest.raises(EquipoiseError, match=r"step_size = inf: expected a finite number"):
            make(float("inf"))
        with pytest.raises(EquipoiseError, match=r"step_size = 1e\+300 is too large to compute with"):
            make(1e300)
    for rule in (Fixed, UniformUpTo):
        with pytest.raises(EquipoiseError, match=r"steps = 0: expected an integer >= 1"):
            rule(0)
    with pytest.raises(EquipoiseError, match=r"std = 0.0 is no noise"):
        Gaussian(0.0)
    with pytest.raises(EquipoiseError, match=r"decay = -1.0 must be >= 0"):
        Momentum(-1.0)

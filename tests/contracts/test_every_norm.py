"""What every norm must satisfy. A new norm needs no line here: it is read from `NORMS`."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equipoise.core.rng import Streams
from equipoise.geometry import NORMS, Ball, Box

EVERY = list(NORMS)


@st.composite
def cases(draw):
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    shape = draw(st.sampled_from([(2, 1), (3, 5), (2, 3, 4, 4)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    centre = torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)
    if draw(st.booleans()):
        centre = centre.round()  # corners of the box
    scale = draw(st.sampled_from([1e-6, 0.1, 1.0, 100.0]))
    moved = centre + (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    return centre, moved, draw(st.sampled_from([0.0, 0.01, 0.3, 1.0]))


@pytest.mark.parametrize("norm", EVERY)
@given(case=cases())
def test_projection_lies_inside_and_is_idempotent(norm, case):
    centre, moved, eps = case
    ball = Ball(norm, eps)
    found = ball.project(moved, centre)
    assert found.dtype == centre.dtype and found.shape == centre.shape and ball.contains(found, centre).all()
    assert torch.allclose(ball.project(found, centre), found, atol=1e-6)


@pytest.mark.parametrize("norm", EVERY)
@given(case=cases())
def test_no_point_of_the_set_is_nearer(norm, case):
    """The variational inequality ⟨v - Π(v), z - Π(v)⟩ <= 0 at random points z of ball ∩ box, which defines Π."""
    centre, moved, eps = (part.double() if isinstance(part, torch.Tensor) else part for part in case)
    ball = Ball(norm, eps)
    found = ball.project(moved, centre)
    for seed in range(5):
        z = ball.draw(Streams.of(seed, torch.arange(len(centre))), centre)
        assert (((moved - found) * (z - found)).flatten(1).sum(1) <= 1e-6).all()


@pytest.mark.parametrize("norm", EVERY)
@given(case=cases())
def test_what_lies_inside_stays(norm, case):
    centre, _, eps = case
    ball = Ball(norm, eps)
    inside = ball.project(ball.draw(Streams.of(0, torch.arange(len(centre))), centre), centre)
    assert torch.allclose(ball.project(inside, centre), inside, atol=1e-6)
    assert torch.equal(ball.project(centre, centre), centre)


@pytest.mark.parametrize("norm", EVERY)
@given(case=cases())
def test_a_step_and_projection_does_not_descend_a_linear_function(norm, case):
    centre, gradient, eps = case
    centre, gradient = centre.double(), gradient.double() - 0.5
    ball = Ball(norm, eps)
    point = centre
    for _ in range(3):
        further = ball.project(ball.steepest(point, gradient, 0.1), centre)
        assert (((further - point) * gradient).flatten(1).sum(1) >= -1e-6).all()
        point = further


@pytest.mark.parametrize("norm", EVERY)
def test_a_scaled_box_scales_the_geometry(norm):
    generator = torch.Generator().manual_seed(0)
    c = torch.rand(4, 6, generator=generator, dtype=torch.float64)
    v = c + torch.randn(4, 6, generator=generator, dtype=torch.float64)
    small = Ball(norm, 0.4).project(v, c)
    large = Ball(norm, 40.0, Box(-50.0, 50.0)).project(100 * v - 50, 100 * c - 50)
    assert torch.allclose(large, 100 * small - 50)


@pytest.mark.parametrize("norm", EVERY)
def test_draws_belong_to_their_samples(norm):
    centre = torch.full((10, 3), 0.5)
    ball = Ball(norm, 0.2)
    whole = ball.draw(Streams.of(1, torch.arange(10)), centre)
    assert torch.equal(ball.draw(Streams.of(1, torch.arange(10)[4:7]), centre[4:7]), whole[4:7])
    assert len(whole.unique(dim=0)) == 10

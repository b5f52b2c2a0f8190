"""Projections, steepest steps and random points against generic solvers and exact laws."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import minimize
from torch import Tensor

from equipoise.core.errors import EquipoiseError, EquipoiseWarning
from equipoise.core.rng import Streams
from equipoise.geometry import EVERYWHERE, NORMS, Ball, Box

NAMES = list(NORMS)
F64 = torch.float64


def slow_projection(name: str, v: Tensor, c: Tensor, eps: float, box: Box) -> Tensor:
    """The KKT conditions solved by bisection on the multiplier, one sample at a time, in float64 numpy."""
    rows = []
    for vi, ci in zip(v.double().flatten(1).numpy(), c.double().flatten(1).numpy(), strict=True):

        def at(multiplier: float, vi: np.ndarray = vi, ci: np.ndarray = ci) -> np.ndarray:
            move = vi - ci
            if name == "l1":
                move = np.sign(move) * np.maximum(np.abs(move) - multiplier, 0)
            elif name == "l2":
                move = move / (1 + multiplier)
            return np.clip(ci + move, box.low, box.high)

        if name == "linf":
            rows.append(np.clip(vi, np.maximum(ci - eps, box.low), np.minimum(ci + eps, box.high)))
            continue
        order = NORMS[name].order
        low, high = 0.0, 1.0
        if np.linalg.norm(at(0.0) - ci, order) <= eps:
            rows.append(at(0.0))
            continue
        while np.linalg.norm(at(high) - ci, order) > eps and high < 1e30:
            high *= 2
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if np.linalg.norm(at(middle) - ci, order) > eps else (low, middle)
        rows.append(at(high))
    return torch.from_numpy(np.stack(rows)).reshape(v.shape)


def arrays(features: int, low: float, high: float) -> st.SearchStrategy[Tensor]:
    """Three samples of float64, with many ties, zeros and faces of the box among them."""
    numbers = st.one_of(st.floats(low, high), st.sampled_from([low, high, 0.0, 0.25, 0.5, 1.0]))
    return hnp.arrays(np.float64, (3, features), elements=numbers.map(lambda u: min(max(u, low), high))).map(
        torch.from_numpy
    )


@st.composite
def situations(draw):
    features = draw(st.integers(1, 8))
    far = draw(st.sampled_from([1.5, 3.0, 1000.0]))
    eps = draw(st.one_of(st.floats(0, 3), st.sampled_from([0.0, 1e-9, 0.25, 0.5, 1.0])))
    return draw(arrays(features, -far, far)), draw(arrays(features, 0, 1)), eps


@pytest.mark.filterwarnings("ignore::equipoise.core.errors.EquipoiseWarning")
@pytest.mark.parametrize("name", NAMES)
@given(situation=situations())
def test_projection_against_bisection(name, situation):
    v, c, eps = situation
    ball = Ball(name, float(eps))
    found = ball.project(v, c)
    assert (found - slow_projection(name, v, c, eps, ball.box)).abs().max() < 1e-9
    assert (ball.project(found, c) - found).abs().max() < 1e-12, "projecting twice is projecting once"
    assert ball.contains(found, c).all()
    assert (torch.linalg.vector_norm(found - c, NORMS[name].order, 1) <= eps + 1e-12).all()
    assert found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(6))
def test_projection_against_a_general_solver(name, seed):
    """SLSQP on min ½‖z - v‖² over the box, with ‖z - c‖ <= eps written as smooth constraints."""
    rng = np.random.default_rng(seed)
    n, eps = 5, [0.2, 0.5, 0.9][seed % 3]
    c, v = rng.uniform(0, 1, n), rng.normal(0.5, 1, n)
    c[0] = seed % 2  # on a face of the box
    # z = c + u - w with u, w >= 0 makes the L1 norm linear; the others use z itself.
    if name == "l1":
        split = minimize(
            lambda s: 0.5 * np.sum((c + s[:n] - s[n:] - v) ** 2),
            np.zeros(2 * n),
            bounds=[(0, 1 - ci) for ci in c] + [(0, ci) for ci in c],
            constraints={"type": "ineq", "fun": lambda s: eps - s.sum()},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        expected = c + split.x[:n] - split.x[n:]
    else:
        bounds = [(max(0, ci - eps), min(1, ci + eps)) if name == "linf" else (0, 1) for ci in c]
        ball = {"type": "ineq", "fun": lambda z: eps**2 - np.sum((z - c) ** 2)}
        expected = minimize(
            lambda z: 0.5 * np.sum((z - v) ** 2),
            c,
            bounds=bounds,
            constraints=ball if name == "l2" else (),
            options={"ftol": 1e-14, "maxiter": 500},
        ).x
    found = Ball(name, eps).project(torch.from_numpy(v)[None], torch.from_numpy(c)[None])[0]
    assert np.abs(found.numpy() - expected).max() < 1e-5


@pytest.mark.filterwarnings("ignore::equipoise.core.errors.EquipoiseWarning")
@pytest.mark.parametrize("name", NAMES)
@given(situation=situations(), shift=st.floats(-1, 1), seed=st.integers(0, 1000))
def test_projection_is_nonexpansive(name, situation, shift, seed):
    v, c, eps = situation
    w = v + shift * torch.randn(v.shape, dtype=F64, generator=torch.Generator().manual_seed(seed))
    ball = Ball(name, float(eps))
    apart = (ball.project(v, c) - ball.project(w, c)).norm(dim=1)
    assert (apart <= (v - w).norm(dim=1) + 1e-9).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_projection_of_an_image_batch(name, dtype):
    """Many coordinates: the exact distance, checked in float64, and agreement with bisection."""
    generator = torch.Generator().manual_seed(0)
    c = torch.rand(4, 3, 16, 16, generator=generator, dtype=F64).to(dtype)
    v = c + torch.randn(c.shape, generator=generator, dtype=F64).to(dtype)
    eps = {"linf": 0.1, "l2": 1.5, "l1": 12.0}[name]
    found = Ball(name, eps).project(v, c)
    assert found.dtype == dtype and found.shape == c.shape
    tolerance = 1e-6 if dtype == torch.float32 else 1e-10
    assert (found.double() - slow_projection(name, v, c, eps, Box())).abs().max() < tolerance
    distance = Ball(name, eps).distance(found.double(), c.double())
    assert (distance - eps).abs().max() < 1e-5 * eps, "the surface is reached"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e6, 1e30])
def test_projection_of_tiny_and_huge_moves(name, dtype, scale):
    generator = torch.Generator().manual_seed(1)
    c = torch.rand(5, 20, generator=generator, dtype=F64).to(dtype).clamp(0.1, 0.9)
    v = c + (scale * torch.randn(c.shape, generator=generator, dtype=F64)).to(dtype)
    ball = Ball(name, 0.3)
    found = ball.project(v, c)
    assert found.isfinite().all() and ball.contains(found, c).all()
    if scale < 1:
        assert torch.equal(found, v), "what lies inside stays where it is"
    elif scale == 1e6:
        assert (found.double() - slow_projection(name, v, c, 0.3, Box())).abs().max() < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_ball_far_away(name):
    c, v = torch.full((1, 3), 0.5, dtype=F64), torch.tensor([[1e4, -3e3, 0.5]], dtype=F64)
    found = Ball(name, 1e-10).project(v, c)
    assert (Ball(name, 1.0).distance(found, c) - 1e-10).abs().max() < 1e-15


@pytest.mark.parametrize("name", NAMES)
def test_radius_zero_and_infinity(name):
    c = torch.tensor([[0.0, 0.3, 1.0]])
    v = torch.tensor([[2.0, -1.0, 0.5]])
    assert torch.equal(Ball(name, 0.0).project(v, c), c)
    assert torch.equal(Ball(name, math.inf).project(v, c), v.clamp(0, 1))


@pytest.mark.parametrize("box", [Box(), EVERYWHERE])
@pytest.mark.parametrize("name", NAMES)
def test_a_radius_per_sample_is_that_of_its_own_ball(name, box):
    g = torch.Generator().manual_seed(0)
    centre = torch.rand(6, 2, 3, 3, generator=g)
    x = centre + torch.randn(centre.shape, generator=g)
    radii = torch.tensor([0.0, 0.01, 0.3, 1.0, 6.0, math.inf])
    found = Ball(name, 0.5, box).project(x, centre, radii)
    for i, eps in enumerate(radii.tolist()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EquipoiseWarning)
            alone = Ball(name, eps, box).project(x[i : i + 1], centre[i : i + 1])
        assert torch.allclose(found[i], alone[0], atol=1e-6)
    assert torch.equal(found[0], centre[0]) and torch.equal(found[5], box.clamp(x)[5])


@pytest.mark.parametrize("name", NAMES)
def test_without_a_box(name):
    """An unbounded box leaves the textbook projection onto the ball."""
    free = Box(-math.inf, math.inf)
    c, v = torch.tensor([[0.5, -3.0, 7.0]], dtype=F64), torch.tensor([[1.5, -1.0, 6.5]], dtype=F64)
    found = Ball(name, 0.8, free).project(v, c)
    assert (found - slow_projection(name, v, c, 0.8, free)).abs().max() < 1e-10
    stepped = Ball(name, 0.8, free).steepest(c, v - c, 0.6)
    assert stepped.isfinite().all() and Ball(name, 0.6, free).contains(stepped, c).all()


@pytest.mark.parametrize("name", NAMES)
@given(situation=situations(), size=st.floats(0.01, 2))
def test_the_steepest_step_is_the_linear_maximum(name, situation, size):
    """⟨g, d⟩ reaches size · ‖g‖ in the dual norm; for L1 within the box, against every other order of filling."""
    gradient, x, _ = situation
    assume(bool((gradient.abs().amax(1) > 1e-6).all()))
    moved = Ball(name, 1.0).steepest(x, gradient, size)
    d = (moved.clamp(0, 1) if name == "l1" else moved) - x
    assert (torch.linalg.vector_norm(d, NORMS[name].order, 1) <= size + 1e-9).all()
    gain = (gradient * d).sum(1)
    if name == "l1":
        room = torch.where(gradient > 0, 1 - x, x)
        best = []
        for g, r in zip(gradient.abs().tolist(), room.tolist(), strict=True):
            left, total = size, 0.0
            for slope, space in sorted(zip(g, r, strict=True), reverse=True):
                total, left = total + slope * min(space, left), left - min(space, left)
            best.append(total)
        assert torch.allclose(gain, torch.tensor(best, dtype=F64), atol=1e-5)
    else:
        dual = {"linf": 1, "l2": 2}[name]
        assert torch.allclose(gain, size * torch.linalg.vector_norm(gradient, dual, 1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e30])
def test_the_steepest_step_does_not_depend_on_the_gradient_scale(name, scale):
    gradient = torch.tensor([[3.0, -4.0, 1.0], [1.0, 0.0, 0.0]])
    x = torch.full((2, 3), 0.5)
    assert torch.allclose(
        Ball(name, 1.0).steepest(x, gradient * scale, 0.1), Ball(name, 1.0).steepest(x, gradient, 0.1), atol=1e-3
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_zero_gradient_moves_nothing(name):
    x = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Ball(name, 1.0).steepest(x, torch.zeros(2, 3), 0.1), x)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("features", [1, 2, 5])
def test_draws_are_uniform_on_the_ball(name, features):
    """Far from the box: moments of one coordinate and the law of the radius, P(‖u‖ <= r) = (r/eps)^n."""
    n, eps = 40_000, 0.7
    centre = torch.full((n, features), 50.0, dtype=F64)
    drawn = (Ball(name, eps, Box(0.0, 100.0)).draw(Streams.of(0, torch.arange(n)), centre) - centre) / eps
    radius = torch.linalg.vector_norm(drawn, NORMS[name].order, 1)
    assert radius.max() <= 1 + 1e-9
    # Second moment of a coordinate, by integrating over the unit ball.
    d = features
    exact = {"linf": 1 / 3, "l2": 1 / (d + 2), "l1": 2 / ((d + 1) * (d + 2))}[name]
    assert abs((drawn**2).mean().item() / exact - 1) < 0.03
    assert drawn.mean(0).abs().max() < 4.5 * math.sqrt(exact / n)
    for power in (0.25, 0.5, 0.75):
        assert abs((radius**features <= power).double().mean().item() - power) < 0.012
    if features > 1:
        correlation = drawn.T.corrcoef() - torch.eye(features)
        assert correlation.abs().max() < 0.03


@pytest.mark.parametrize("name", NAMES)
@given(situation=situations(), seed=st.integers(0, 2**63))
def test_draws_lie_in_ball_and_box(name, situation, seed):
    _, c, eps = situation
    ball = Ball(name, min(float(eps), 1.0))
    drawn = ball.draw(Streams.of(seed, torch.arange(3)), c)
    assert drawn.shape == c.shape and ball.contains(drawn, c).all()


def test_a_direction_of_length_zero_draws_the_centre():
    """All bits zero make every normal and exponential number 0, which has no direction."""

    class Zeros(Streams):
        def fold(self, *data):
            return self

        def bits(self, *shape):
            return torch.zeros(1, *shape, dtype=torch.int64)

    for name in ("l2", "l1"):
        drawn = Ball(name, 0.1).draw(Zeros(torch.zeros(1, dtype=torch.int64)), torch.full((1, 2), 0.5))
        assert torch.equal(drawn, torch.full((1, 2), 0.5)), name


def test_contains_refuses_what_is_outside():
    ball = Ball("l2", 0.1)
    c = torch.full((4, 2), 0.5)
    x = c + torch.tensor([[0.1, 0.0], [0.1, 0.01], [math.nan, 0.0], [0.0, 0.6]])
    assert ball.contains(x, c).tolist() == [True, False, False, False]
    x = torch.tensor([[0.0, 1.0], [-0.1, 0.5], [0.5, 1.1], [math.nan, 0.0]])
    assert Box().contains(x).tolist() == [True, False, False, False]


def test_distance_is_summed_in_double():
    x, c = torch.full((1, 10_000), 0.6), torch.full((1, 10_000), 0.5)
    step = float(torch.tensor(0.6)) - 0.5
    assert Ball("l1", 1.0).distance(x, c).item() == pytest.approx(10_000 * step, rel=1e-7)
    assert Ball("l2", 1.0).distance(x, c).item() == pytest.approx(100 * step, rel=1e-7)
    assert Ball("linf", 1.0).distance(x, c).item() == pytest.approx(step, rel=1e-7)


def test_refuses_an_unusable_ball():
    with pytest.raises(EquipoiseError, match=r"eps = -0.1 is not a radius"):
        Ball("linf", -0.1)
    with pytest.raises(EquipoiseError, match=r"eps = nan is not a radius"):
        Ball("linf", math.nan)
    for large in (1e300, 10**400):
        with pytest.raises(EquipoiseError, match=r"is too large to compute with: expected at most 1e\+38, or infinity"):
            Ball("l2", large)
    assert Ball("l1", math.inf).eps == math.inf
    with pytest.raises(EquipoiseError, match=r"unknown norm 'l3': did you mean 'l"):
        Ball("l3", 0.1)
    with pytest.raises(EquipoiseError, match=r"low = 1.0 must be smaller than high = 0.0"):
        Box(1.0, 0.0)
    with pytest.raises(EquipoiseError, match=r"eps is infinite; start from zero"):
        Ball("l2", math.inf).draw(Streams.of(0, torch.arange(1)), torch.zeros(1, 2))


def test_warns_of_pixels_in_255():
    with pytest.warns(EquipoiseWarning, match=r"eps = 8 is larger than the box: .* \[0, 1\]; did you mean 8/255\?"):
        Ball("linf", 8.0)
    Ball("linf", 8.0, Box(0.0, 255.0))
    Ball("linf", 1.0), Ball("linf", math.inf), Ball("l2", 8.0)

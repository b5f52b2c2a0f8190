"""The problems in the plane: their distances against points sampled from the supports, and their gaps."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equipoise.core.errors import EquipoiseError
from equipoise.reproduce.studies.toys import Toy, lms5, narrow_corridor, two_distance

TOYS = {"narrow-corridor": narrow_corridor, "lms5": lms5, "two-distance": two_distance}
NAMES = sorted(TOYS)


def outline(toy: Toy, label: int, per_edge: int = 1500) -> np.ndarray:
    """Points along every edge of a class's support."""
    t = np.linspace(0, 1, per_edge)[:, None]
    edges = [(p[i], p[(i + 1) % len(p)]) for p in toy.supports[label] for i in range(len(p))]
    return np.concatenate([(1 - t) * a + t * b for a, b in edges])


def lengths(move: np.ndarray, norm: str) -> np.ndarray:
    return np.linalg.norm(move, axis=-1) if norm == "l2" else np.abs(move).max(-1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_distances_are_those_to_the_nearest_of_many_sampled_points(name: str, norm: str) -> None:
    toy = TOYS[name]()
    left, right, bottom, top = toy.extent
    x = np.random.default_rng(0).uniform((left, bottom), (right, top), (150, 2))
    for label in (0, 1):
        exact, sampled = toy.distance(x, label, norm), outline(toy, label)
        brute = np.array([lengths(sampled - point, norm).min() for point in x])
        outside = exact > 0
        assert outside.sum() > 50
        assert np.allclose(exact[outside], brute[outside], atol=1e-3)
        assert (exact <= brute + 1e-12).all()


@pytest.mark.parametrize("name", NAMES)
def test_drawn_points_lie_on_their_support_and_nowhere_else(name: str) -> None:
    toy = TOYS[name]()
    points, labels = toy.draw(301, 5)
    assert (labels == 0).sum() == 151
    for label in (0, 1):
        inside = points[labels == label] + 1e-9 * (np.mean(points) - points[labels == label])
        assert (toy.distance(inside, label) < 1e-8).all()
        assert (toy.distance(inside, 1 - label) >= toy.narrow_gap() - 1e-8).all()
    assert np.array_equal(points, toy.draw(301, 5)[0]) and not np.array_equal(points, toy.draw(301, 6)[0])


def test_points_are_uniform_on_a_support() -> None:
    toy = two_distance()
    points, labels = toy.draw(40_000, 0)
    own = points[labels == 1]
    left, right = 0.8 * 0.35, 0.9 * 0.7  # areas of its two rectangles
    share, expected = (own[:, 0] < 0).mean(), left / (left + right)
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / len(own))
    inner = own[own[:, 0] > 0]
    assert np.allclose(inner.mean(0), (0.75, 0.65), atol=0.01)
    assert np.allclose(inner.var(0), (0.9**2 / 12, 0.7**2 / 12), rtol=0.05)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_gaps_are_those_between_sampled_points_and_the_boundary_has_half_as_margin(name: str, norm: str) -> None:
    toy = TOYS[name]()
    first, second = outline(toy, 0, 150), outline(toy, 1, 150)
    gap = min(lengths(second - point, norm).min() for point in first)
    assert toy.narrow_gap(norm) == pytest.approx(gap, abs=0.02)
    assert toy.narrow_gap(norm) <= toy.wide_gap(norm)
    # On the boundary both distances are equal; no point of it is nearer to the data than half the gap, and one is.
    grid = toy.grid(400).reshape(-1, 2)
    near = np.abs(toy.max_margin(grid, norm)) < 0.01
    margins = toy.distance(grid[near], 0, norm)
    assert margins.min() >= toy.narrow_gap(norm) / 2 - 0.01
    assert margins.min() <= toy.narrow_gap(norm) / 2 + 0.02


@pytest.mark.parametrize("name", NAMES)
def test_max_margin_is_positive_on_class_1_and_negative_on_class_0(name: str) -> None:
    toy = TOYS[name]()
    points, labels = toy.draw(200, 0)
    assert ((toy.max_margin(points) > 0) == (labels == 1)).all()


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_units_are_undone(x: float, y: float) -> None:
    toy = narrow_corridor()
    point = np.array([[x, y]])
    assert np.allclose(toy.from_unit(toy.to_unit(point)), point, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_datasets_hold_the_points_in_the_unit_square_with_room(name: str) -> None:
    toy = TOYS[name]()
    data = toy.dataset(100, 40, seed=3)
    assert (len(data.train), len(data.test), data.classes) == (100, 40, ("0", "1"))
    assert float(data.train.x.min()) > 0.05 and float(data.train.x.max()) < 0.95
    assert np.allclose(toy.distance(toy.from_unit(data.train.x)[data.train.y.numpy() == 1], 1), 0, atol=1e-6)
    assert not torch.equal(data.train.x[:40], data.test.x)
    assert data.sha256 != toy.dataset(100, 40, seed=4).sha256


def test_the_corridor_widens_and_begins_with_half_the_largest_eps() -> None:
    toy = narrow_corridor()
    gaps = toy.gaps("linf")
    assert gaps[0] == pytest.approx(0.225, abs=1e-9)
    assert (np.diff(gaps) > 0).all() and toy.wide_gap("linf") > 3 * toy.narrow_gap("linf")


def test_the_line_of_lms5_separates_with_less_than_the_largest_margin() -> None:
    toy = lms5(margin=0.05, gap=0.3, height=1.0)
    points, labels = toy.draw(500, 0)
    assert ((points[:, 0] > 0) == (labels == 1)).all()
    assert np.abs(points[:, 0]).min() < 0.06
    assert toy.narrow_gap() == pytest.approx(np.hypot(0.1, 0.3))
    assert toy.narrow_gap("linf") == pytest.approx(0.3)
    slabs = np.floor((points[:, 1] + 1) / ((2 - 4 * 0.3) / 5 + 0.3)).astype(int)
    assert (slabs % 2 == labels).all() and set(slabs) == set(range(5))


def test_unusable_problems_are_refused() -> None:
    square = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    for first, second, extent, message in (
        (square[::-1], square + 2, (-3.0, 3.0, -3.0, 3.0), "counter-clockwise"),
        (square, square + 0.5, (-3.0, 3.0, -3.0, 3.0), "touch"),
        (square, square + 1.5, (-4.0, 3.0, -3.0, 3.0), "does not fit"),
    ):
        with pytest.raises(EquipoiseError, match=message):
            Toy("t", ((first,), (second,)), extent)
    with pytest.raises(EquipoiseError, match="l2 and linf"):
        lms5().distance(square, 0, "l1")

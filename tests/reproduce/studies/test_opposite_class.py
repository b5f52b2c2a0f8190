"""Distances to the nearest sample of another class, against brute force."""

from pathlib import Path

import numpy as np
import pytest
import torch

from equipoise.reproduce.studies import Options
from equipoise.reproduce.studies.opposite_class import nearest_of_another_class, run, verdict
from equipoise.results.findings import Histogram


def brute_force(x: np.ndarray, y: np.ndarray, norm: str) -> np.ndarray:
    gap = x[:, None, :].astype(np.longdouble) - x[None].astype(np.longdouble)
    table = np.abs(gap).max(2) if norm == "linf" else np.sqrt((gap**2).sum(2))
    table[y[:, None] == y[None]] = np.inf
    return table.min(1).astype(np.float64)


def silent(what: str, share: float) -> None:
    assert 0 <= share <= 1


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(("n", "d", "classes"), [(40, 7, 2), (1500, 3, 2), (700, 5, 9)])
def test_distances_are_those_of_brute_force(norm: str, n: int, d: int, classes: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.random((n, d), dtype=np.float32), rng.integers(classes, size=n)
    found = nearest_of_another_class(torch.from_numpy(x), torch.from_numpy(y), norm)
    np.testing.assert_allclose(found.numpy(), brute_force(x, y, norm), rtol=1e-12)


def test_a_class_number_without_samples_is_passed_over() -> None:
    x = torch.tensor([[0.0], [0.25], [1.0]])
    assert nearest_of_another_class(x, torch.tensor([0, 5, 5]), "l2").tolist() == [0.25, 0.25, 1.0]


def test_small_distances_far_from_zero_lose_no_digits() -> None:
    x = torch.full((3, 784), 0.7)
    x[1, 5] += 2.0**-20
    x[2, :] = 0.1
    gap = float(x[1, 5].double() - x[0, 5].double())
    found = nearest_of_another_class(x, torch.tensor([0, 1, 2]), "l2")
    np.testing.assert_allclose(found[:2].numpy(), gap, rtol=1e-12)


def test_equal_samples_of_different_classes_are_at_distance_zero() -> None:
    x = torch.rand(1, 50, generator=torch.Generator().manual_seed(0)).repeat(4, 1)
    for norm in ("l2", "linf"):
        assert nearest_of_another_class(x, torch.tensor([0, 1, 1, 2]), norm).tolist() == [0.0] * 4


def test_run_on_digits() -> None:
    found = run(Options(quick=True), silent)
    values = {n.name: n.values[0] for n in found.numbers}
    for panel in found.pictures[0].panels:
        assert isinstance(panel, Histogram)
        assert int(panel.counts["nearest sample of another class"].sum()) == 500 == found.settings["data"]["train"]
    quartiles = [
        values[f"L2 distance to the nearest sample of another class, {q}"]
        for q in ("minimum", "lower quartile", "median", "upper quartile")
    ]
    assert quartiles == sorted(quartiles)
    shares = [values[f"samples with one of another class within 2·eps, Linf, eps {e}"] for e in ("0.1", "0.3", "0.5")]
    assert shares == sorted(shares)
    assert shares[-1] == 1  # 2·eps is the whole box


@pytest.mark.filterwarnings("ignore:dataset .* samples are training samples")
def test_run_on_features_of_the_users_own(tmp_path: Path) -> None:
    x = np.array([[0.0, 0.0], [0.0, 0.2], [0.9, 0.0], [0.9, 0.4]], dtype=np.float32)
    y = np.array([0, 1, 0, 1])
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    found = run(Options(data=str(tmp_path / "mine.npz")), silent)
    values = {n.name: n.values[0] for n in found.numbers}
    assert values["Linf distance to the nearest sample of another class, minimum"] == pytest.approx(0.2)
    assert values["samples with one of another class within 2·eps, Linf, eps 0.1"] == 0.5  # 2·eps exactly
    assert found.verdict.startswith("As in the paper")
    assert "no eps above 0.1 (Linf)" in found.verdict


def test_the_verdict_follows_the_distances() -> None:
    assert verdict(np.full(10, 0.4), np.full(10, 2.0)).startswith("The distances differ by less")
    assert verdict(np.linspace(0.1, 0.4, 10), np.full(10, 2.0)).startswith("As in the paper")

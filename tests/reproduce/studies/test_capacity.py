"""Capacity against accuracy, and what the studies on images share."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from equipoise.core.errors import EquipoiseError
from equipoise.data import Dataset, load
from equipoise.nets import build
from equipoise.reproduce.studies import Options
from equipoise.reproduce.studies.capacity import Capacity, run
from equipoise.reproduce.studies.design import Case
from equipoise.reproduce.studies.images import (
    accuracy,
    band,
    dataset,
    difference,
    direction,
    images,
    recipe,
    train,
)
from equipoise.results.findings import Lines, Number
from equipoise.training.methods import standard

pytestmark = [
    pytest.mark.unchecked,
    pytest.mark.filterwarnings("ignore:dataset .* samples are training samples"),
]


def silent(what: str, share: float) -> None:
    assert 0 <= share <= 1


def parameters(width: int, side: int) -> int:
    """Of the LeNet of U Table 6 with `width` times the filters and the first linear layer, counted by hand."""
    left = (side // 2 - 4) // 2
    conv = (25 * 1 + 1) * 6 * width + (25 * 6 * width + 1) * 16 * width
    return conv + (16 * width * left**2 + 1) * 120 * width + (120 * width + 1) * 84 + 85 * 10


def test_widths_can_be_chosen() -> None:
    found = run(Options(quick=True, limit=64, seeds=1, widths=(1, 3)), silent)
    assert found.settings["parameters"] == [parameters(1, 16), parameters(3, 16)]
    assert "clean accuracy, UDP, width 3" in {n.name for n in found.numbers}


def test_quick_run() -> None:
    found = run(Options(quick=True, limit=200, seeds=1, seed=2), silent)
    assert found.settings["parameters"] == [parameters(1, 16), parameters(2, 16)]
    values = {n.name: list(n.values) for n in found.numbers}
    for panel in found.pictures[0].panels:
        assert isinstance(panel, Lines)
        assert panel.series[-1].dashed
        assert panel.series[-1].y.tolist() == [panel.series[0].y[0]] * 2
    # The network of width 2 trained here once more, has the accuracy at that place of the table.
    data = images(load("digits").limit(200, 2))
    model = train(standard(), data, recipe(data, 20, 2, lr=2e-3, batch_size=64), width=2)
    assert values["clean accuracy, standard, width 2"][0] == accuracy(model, data.test)


def table(udp: list[list[float]]) -> dict[Case, dict[str, float]]:
    plain = [[0.90, 0.92], [0.90, 0.92], [0.91, 0.92]]
    return {
        Case(name, width, seed): {"clean": value, "PGD-20": value}
        for name, rows in (("standard", plain), ("UDP", udp))
        for seed, row in enumerate(rows)
        for width, value in zip((1, 4), row, strict=True)
    }


@pytest.mark.parametrize(
    ("udp", "start"),
    [
        ([[0.88, 0.95], [0.87, 0.95], [0.88, 0.96]], "As in the paper"),
        ([[0.80, 0.89], [0.81, 0.90], [0.80, 0.91]], "UDP gains with capacity"),
        ([[0.95, 0.95], [0.96, 0.95], [0.95, 0.96]], "The paper's point is not seen"),
    ],
)
def test_the_verdict_follows_the_numbers(udp: list[list[float]], start: str) -> None:
    study = Capacity(Options(widths=(1, 4)))
    study.results = table(udp)
    assert study._conclude().startswith(start)


@pytest.mark.parametrize(("side", "enlarged"), [(5, 15), (8, 16), (11, 22), (12, 12), (28, 28)])
def test_small_images_are_enlarged_by_repeating_pixels(tmp_path: Path, side: int, enlarged: int) -> None:
    rng = np.random.default_rng(side)
    x, y = rng.integers(256, size=(6, side, side, 3), dtype=np.uint8), np.arange(6) % 2
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    small = load(tmp_path / "mine.npz")
    large = images(small)
    factor = enlarged // side
    expected = np.kron(small.train.x.numpy(), np.ones((1, 1, factor, factor), np.float32))
    np.testing.assert_array_equal(large.train.x.numpy(), expected)
    assert large.shape == large.test.x.shape[1:] == (3, enlarged, enlarged)


def test_inputs_that_are_not_images_are_refused(tmp_path: Path) -> None:
    x, y = np.zeros((4, 9), np.float32), np.arange(4) % 2
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    with pytest.raises(EquipoiseError, match=r"needs images with one channel or three, mine has inputs of shape \(9,"):
        run(Options(quick=True, data=str(tmp_path / "mine.npz")), silent)


def test_no_repeats_are_refused() -> None:
    with pytest.raises(EquipoiseError, match="seeds = 0: expected an integer"):
        Options(seeds=0).repeats()


def test_the_seeds_of_the_repeats() -> None:
    assert Options(seed=7).repeats() == [7, 8, 9]
    assert Options(quick=True).repeats() == [0, 1]
    assert Options(seeds=4).repeats(2) == [0, 1, 2, 3]


def test_the_default_dataset_and_its_limit() -> None:
    assert dataset(Options()).name == "digits"
    assert len(dataset(Options(data="digits", limit=50)).train) == 50


def test_a_training_takes_about_the_steps_asked_for_and_sees_all_data() -> None:
    digits: Dataset = images(load("digits"))
    taken: list[int] = []
    for steps in (50, 1):
        how = recipe(digits, steps, 0)
        taken.append(0)
        train(standard(), digits, how, every=1, measure=lambda _, step: taken.__setitem__(-1, step))
    per_epoch = math.ceil(0.95 * len(digits.train) / 128)
    assert abs(taken[0] - 50) <= per_epoch / 2
    assert taken[1] == 3 * per_epoch  # never less than three epochs


def test_a_training_depends_on_its_seed_alone() -> None:
    digits = images(load("digits").limit(100))
    a, b, c = (train(standard(), digits, recipe(digits, 5, seed)) for seed in (1, 1, 2))
    pairs = [list(m.parameters()) for m in (a, b, c)]
    assert all(torch.equal(p, q) for p, q in zip(pairs[0], pairs[1], strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(pairs[0], pairs[2], strict=True))


def test_a_training_begins_with_the_network_of_its_seed() -> None:
    digits = images(load("digits").limit(100))
    barely = train(standard(), digits, recipe(digits, 1, 2, lr=1e-9), width=2)
    for mine, drawn in zip(
        barely.parameters(), build("lenet", digits.shape, seed=2, width=2).parameters(), strict=True
    ):
        torch.testing.assert_close(mine, drawn, atol=1e-6, rtol=0)


def test_a_difference_is_told_where_the_t_test_tells_it() -> None:
    rng = np.random.default_rng(0)
    told = set()
    for shift in (-0.1, 0.0, 0.1, 0.02, -0.02) * 4:
        a, b = rng.normal(shift, 0.03, 4), rng.normal(0, 0.03, 4)
        test = stats.ttest_rel(a, b)
        expected = "not told apart" if test.pvalue > 0.05 else "higher" if test.statistic > 0 else "lower"
        assert direction(difference("a minus b", list(a), list(b))) == expected
        told.add(expected)
    assert len(told) == 3
    assert direction(Number("one value", [0.5])) == "not told apart"


def test_a_band_spans_the_repeats() -> None:
    series = band("x", [[1.0, 5.0], [2.0, 3.0], [6.0, 4.0]])
    assert series.low is not None and series.high is not None
    assert (series.y.tolist(), series.low.tolist(), series.high.tolist()) == ([3.0, 4.0], [1.0, 3.0], [6.0, 5.0])

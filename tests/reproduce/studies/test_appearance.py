"""Unbounded perturbations of images: where they end, and how that is measured."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from equipoise import attacks
from equipoise.attacks import uta
from equipoise.core.errors import EquipoiseError
from equipoise.data import Split, load
from equipoise.reproduce.studies import Options
from equipoise.reproduce.studies.appearance import STEP_SIZE, STEPS, Appearance, Seen, correct, look, run
from equipoise.reproduce.studies.design import Case
from equipoise.results.findings import Histogram, Images, Number

pgd = partial(attacks.pgd, start="zero", return_point="last")

pytestmark = pytest.mark.unchecked


def silent(what: str, share: float) -> None:
    assert 0 <= share <= 1


def line(slope: float = 20.0) -> nn.Module:
    """Logits `(-s, s)` with `s = slope·(mean(x) - 1/2)`: the boundary is where the mean is a half."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[-1.0], [1.0]]) * slope / 4)
        net[1].bias.copy_(torch.tensor([0.5, -0.5]) * slope)
    return net


def dots(*values: float) -> Split:
    x = torch.tensor(values)[:, None, None, None].expand(-1, 1, 2, 2).contiguous()
    return Split(x, (x[:, 0, 0, 0] > 0.5).long())


def test_on_a_line_udp_stops_at_the_boundary_and_pgd_at_the_end_of_the_box() -> None:
    samples = dots(0.1, 0.3, 0.8)
    net = line()
    there = look(net, samples, uta(math.inf, STEP_SIZE, STEPS)(net, samples.x, samples.y).x)
    torch.testing.assert_close(there.x.mean((1, 2, 3)), torch.full((3,), 0.5), atol=2 * STEP_SIZE, rtol=0)
    torch.testing.assert_close(there.entropy, torch.full((3,), math.log(2)), atol=1e-2, rtol=0)
    beyond = look(net, samples, pgd(math.inf, STEP_SIZE, STEPS)(net, samples.x, samples.y).x)
    torch.testing.assert_close(beyond.x.mean((1, 2, 3)), torch.tensor([1.0, 1.0, 0.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(beyond.distance, 2 * torch.tensor([0.9, 0.7, 0.8]), atol=1e-2, rtol=0)


def test_what_is_seen_at_a_point_is_the_closed_form() -> None:
    samples = dots(0.3, 0.8)
    points = dots(0.45, 0.2).x
    seen = look(line(), samples, points)
    p = 1 / (1 + np.exp(-40 * (np.array([0.45, 0.2]) - 0.5)))  # of class 1: a logistic function of z_1 - z_0
    np.testing.assert_allclose(seen.own.numpy(), [1 - p[0], p[1]], rtol=1e-4)
    np.testing.assert_allclose(seen.confidence.numpy(), np.maximum(p, 1 - p), rtol=1e-5)
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    np.testing.assert_allclose(seen.entropy.numpy(), entropy, rtol=1e-3)
    np.testing.assert_allclose(seen.distance.numpy(), [2 * 0.15, 2 * 0.6], rtol=1e-5)
    assert seen.labels.tolist() == [0, 0]


def test_only_correct_samples_are_kept_and_none_is_refused() -> None:
    samples = Split(dots(0.1, 0.9, 0.3).x, torch.tensor([0, 0, 0]))
    torch.testing.assert_close(correct(line(), samples).x, samples.x[[0, 2]])
    with pytest.raises(EquipoiseError, match="classifies no test sample correctly: use more training samples"):
        correct(line(), Split(dots(0.9).x, torch.tensor([0])))


def made_up(labels: list[int], confidence: list[float]) -> Seen:
    values = torch.tensor(confidence)
    x = torch.tensor([0.2, 0.2, 0.8, 0.8])[:, None, None, None]
    return Seen(x, torch.tensor(labels), values, 1 - values, values, values)


def test_points_are_counted_as_crossed_deep_and_recognised() -> None:
    samples = Split(torch.full((4, 1, 1, 1), 0.2), torch.zeros(4, dtype=torch.int64))
    seen = {"clean": made_up([0] * 4, [1.0] * 4), "UDP": made_up([0, 1, 0, 0], [0.99, 0.6, 0.5, 0.5])}
    seen["PGD"] = made_up([1, 1, 1, 0], [0.95, 0.99, 0.8, 0.99])
    study = Appearance(Options(seeds=1))
    study.judge = KNeighborsClassifier(1).fit(np.array([[0.0], [1.0]]), np.array([0, 1]))
    study.results[Case("standard", 0.0, 0)] = samples, seen
    found = {n.name: n.values[0] for n in study.numbers.values()}
    assert found["points predicted as another class, UDP"] == 0.25
    assert found["points predicted as another class, PGD"] == 0.75
    assert found["points deep in another class (probability over 0.9), UDP"] == 0
    assert found["points deep in another class (probability over 0.9), PGD"] == 0.5
    assert found["accuracy of a nearest-neighbour judge, PGD"] == 0.5


@pytest.fixture(scope="module")
def quick() -> tuple[Images, Histogram]:
    found = run(Options(quick=True, seed=1), silent)
    (grid,), (histogram,) = (picture.panels for picture in found.pictures)
    assert isinstance(grid, Images) and isinstance(histogram, Histogram)
    assert {len(n.values) for n in found.numbers} == {2}
    mean = {n.name: n.mean for n in found.numbers}
    assert mean["entropy in nats, UDP"] > mean["entropy in nats, clean"]  # each climbs its own objective
    assert mean["probability of the true class, PGD"] < 0.1 * mean["probability of the true class, UDP"]
    return grid, histogram


def test_pictures_lie_in_the_box_and_begin_with_samples_of_the_dataset(quick: tuple[Images, Histogram]) -> None:
    pixels = quick[0].pixels
    assert pixels.shape[1:] == (3, 1, 16, 16)
    assert (pixels.min(), pixels.max()) == (0, 1)
    digits = load("digits").test
    rows = {row.tobytes(): int(c) for row, c in zip(digits.x.numpy(), digits.y, strict=True)}
    for row, (clean, *climbed) in zip(quick[0].rows, pixels, strict=True):
        assert rows[np.ascontiguousarray(clean[:, ::2, ::2]).tobytes()] == int(row)
        for image in climbed:
            assert 0 < np.abs(image - clean).max() <= 100 * 0.01 + 1e-5  # steps times their size
    assert all(note[0].split()[0] == row for note, row in zip(quick[0].notes, quick[0].rows, strict=True))


def test_every_climb_is_in_the_histogram(quick: tuple[Images, Histogram]) -> None:
    assert {name: int(count.sum()) for name, count in quick[1].counts.items()} == {"UDP": 40, "PGD": 40}


def test_the_verdict_follows_the_numbers() -> None:
    def verdict(deep: tuple[float, float], judged: tuple[float, float]) -> str:
        values = {
            "points deep in another class (probability over 0.9)": deep,
            "accuracy of a nearest-neighbour judge": judged,
        }
        found = {
            f"{what}, {name}": Number(f"{what}, {name}", [v, v + 0.01, v - 0.01] if name == "PGD" else [v] * 3)
            for what, pair in values.items()
            for name, v in zip(("UDP", "PGD"), pair, strict=True)
        }
        found["accuracy of a nearest-neighbour judge, clean"] = Number("clean", [1.0] * 3)
        study = Appearance(Options())
        study.numbers = found
        return study._conclude()

    assert verdict((0.0, 0.9), (0.8, 0.1)).startswith("As in the paper")
    assert verdict((0.0, 0.9), (0.1, 0.1)).startswith("UDP stops at the boundary, as in the paper, but")
    assert verdict((0.9, 0.9), (0.1, 0.1)).startswith("3 seeds are too few to tell the two apart")
    assert verdict((0.9, 0.1), (0.1, 0.1)).startswith("The paper's point is not seen")

"""The benchmark's two sides compute the same; nothing is timed here."""

import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import reproductions
import textbook
import training_step
from training_step import Case, Ours, Textbook, compare

from equipoise.core.rng import Streams


@pytest.fixture(scope="module")
def digits():
    x, y = training_step.images("lenet", 24, "cpu")
    return x, y, training_step.warmed_up("lenet", x, y, 10)


@pytest.mark.parametrize("method", list(textbook.METHODS))
def test_both_find_the_same_perturbations(digits, method):
    x, y, model = digits
    case = Case(method, "lenet", len(x), 5, "32", 0)
    assert compare(case, model, x, y, torch.float64) == {"share": 0, "samples": 0}
    if method != "trades":  # its first gradient is at the level of rounding
        assert compare(case, model, x, y, torch.float32)["share"] < 0.02


@pytest.mark.parametrize("method", list(textbook.METHODS))
def test_both_take_the_same_training_step(digits, method):
    x, y, model = digits
    x, model, streams = x.double(), deepcopy(model).double(), Streams.of(0, torch.arange(len(x)))
    case = Case(method, "lenet", len(x), 3, "32", 0)
    ours = Ours(case, model)
    theirs = Textbook(case, model, ours.ascent)
    ours(x, y, streams)
    theirs(x, y, ours.streams(streams))
    for mine, other, start in zip(ours.model.parameters(), theirs.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=1e-12) and not torch.equal(mine, start)


def test_the_yardstick_masks_samples_that_have_taken_their_steps(digits):
    x, _, model = digits
    model = deepcopy(model).double()
    climb = textbook.Climb(0.3, 0.05, 4)
    counts = torch.arange(len(x)) % 4 + 1
    mixed = textbook.perturb(model, x.double(), climb, textbook.entropy, counts=counts)
    for k in range(1, 5):
        alone = textbook.perturb(model, x.double(), textbook.Climb(0.3, 0.05, k), textbook.entropy)
        assert torch.equal(mixed[counts == k], alone[counts == k])


def test_a_toy_case_is_measured_and_described(monkeypatch):
    monkeypatch.setattr(training_step, "peak", lambda device, dtype: 1e11)
    case = Case("udp", "lenet", 8, 2, "32", 0.0)
    found = training_step.measure(case, "cpu", 1, {"32": 1e11})
    assert found["passed"] and found["agreement"]["float64"]["share"] == 0 and found["share_of_peak"] > 0
    assert case.name in training_step.described(found)


def test_the_page_of_reproductions_is_made_from_its_records():
    for path, text in ((reproductions.PAGE, reproductions.page()), (reproductions.DATA, reproductions.data())):
        assert path.read_text() == text, "run python benchmarks/reproductions.py"

"""The benchmark's two sides compute the same; nothing is timed here."""

import re
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import backends
import reproductions
import speedrun
import textbook
import training_step
from training_step import Case, Ours, Textbook, compare

from equipoise.core.rng import Streams
from equipoise.data import Dataset, Split


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


@pytest.mark.unchecked
def test_backends_find_the_same_gradient_and_missing_ones_are_listed(monkeypatch):
    def missing(model, x, y):
        import a_backend_that_nobody_has  # pyright: ignore[reportMissingImports]  # noqa: F401

    monkeypatch.setitem(backends.BACKENDS, "missing", missing)
    names = ["equipoise", "PyTorch, default layout", "PyTorch, channels-last", "missing"]
    found = backends.measure(names, batch=8, repeats=1)
    assert list(found["cpu_ms"]) == names[:3] and max(found["max_relative_difference"].values()) < 1e-4
    assert found["absent"] == {"missing": "not installed (a_backend_that_nobody_has)"}
    assert any(line.startswith("missing") for line in backends.described(found))


def test_the_gradient_written_by_hand_is_that_of_pytorch(digits):
    x, y, model = digits
    exact = backends.constant(model, torch.float64)
    target = torch.nn.functional.one_hot(y, 10).double()
    found = backends.WrittenByHand(exact)(x.double(), target)
    assert torch.allclose(found, backends.by_torch(exact, x.double(), y), atol=1e-12)


def test_the_row_to_reach_is_that_of_the_paper():
    row = [(target.name, round(100 * target.published, 1), target.norm, target.eps) for target in speedrun.row_of_udp()]
    assert row[0] == ("clean", 84.2, "linf", 0) and row[-1] == ("mean with L2 1.5", 53.7, "l2", 1.5) and len(row) == 5


@pytest.mark.unchecked
def test_a_short_race_is_run_and_judged():
    g = torch.Generator().manual_seed(0)
    split = Split(torch.rand(40, 1, 12, 12, generator=g), torch.arange(40) % 4)
    data = Dataset("noise", split, split, tuple("abcd"), "")
    track = speedrun.TRACKS["fashion-mnist"]
    recipe = replace(track.recipe, epochs=1, batch_size=20, validation=0.2)
    easy = [speedrun.Target("clean", 0.1), speedrun.Target("mean with Linf 0.05", 0.99, "linf", 0.05, is_mean=True)]
    found = speedrun.run(replace(track, recipe=recipe, targets=easy), data, n=12, seed=0, device="cpu", validate=False)
    clean, mean = (found.correct[target.name] for target in easy)
    assert len(clean) == len(mean) == 12 and found.wall_minutes > 0
    assert all(m in ((c + 1) / 2, c / 2) and m <= c for c, m in zip(clean, mean, strict=True))
    certain = replace(found, correct={"clean": [1.0] * 9 + [0.0], "mean with Linf 0.05": [0.5] * 10})
    assert [speedrun.judged(target, [certain])["passed"] for target in easy] == [True, False]


def test_a_race_on_a_gpu_is_refused_where_there_is_none(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["speedrun.py", "--track", "cifar10"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert speedrun.main() == 2 and "--device cpu" in capsys.readouterr().out


def test_no_record_names_a_place_on_the_machine_that_made_it():
    texts = {path.name: path.read_text() for path in reproductions.RECORDS.glob("*.json")}
    assert texts and [name for name, text in texts.items() if re.search(r'[" ]/(?:\w+/)+\w', text)] == []

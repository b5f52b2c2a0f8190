"""Which epoch is the best, and what is said of a training that goes wrong."""

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from equipoise import methods
from equipoise.core.errors import EquipoiseWarning
from equipoise.data import Dataset, Split
from equipoise.training import Recipe, fit, load_run, load_weights
from equipoise.training.monitoring import alarms_of, improves

FAST = Recipe(epochs=3, batch_size=40, lr=0.01, validation=0.2, valid_steps=3)


def blobs() -> Dataset:
    """Three separable clusters in [0, 1]^6."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(0.2, 0.8, (3, 6))

    def split(m: int) -> Split:
        y = np.arange(m) % 3
        x = np.clip(centres[y] + rng.normal(0, 0.08, (m, 6)), 0, 1)
        return Split(torch.tensor(x, dtype=torch.float32), torch.tensor(y))

    return Dataset("blobs", split(240), split(120), tuple("abc"), "0" * 64)


def mlp() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def epoch(clean: float, pgd: float) -> dict[str, float]:
    return {"valid_clean": clean, "valid_pgd": pgd}


def withstood(count: int, n: int = 200) -> torch.Tensor:
    """Which of n samples withstand: the first `count`."""
    return torch.arange(n) < count


@pytest.mark.parametrize(
    ("now", "top", "expected"),
    [
        (100, 100, (True, False)),  # a tie goes to the later
        (97, 100, (True, False)),  # 3 lost, none won: p = 1/8
        (96, 100, (True, False)),  # p = 1/16
        (95, 100, (False, False)),  # p = 1/32: significantly worse
        (101, 100, (True, True)),
    ],
)
def test_noise_does_not_decide_which_epoch_is_the_best(now: int, top: int, expected: tuple[bool, bool]) -> None:
    one, other = epoch(0.9, now / 200), epoch(0.9, top / 200)
    assert improves(one, withstood(now), other, withstood(top), 0.2) == expected


@pytest.mark.parametrize(
    ("now", "top", "expected"),
    [
        ((0.4, 0.4), (0.7, 0.3), False),  # a constant classifier withstands everything, and is not the best
        ((0.7, 0.3), (0.4, 0.4), True),
        ((0.7, 0.45), (0.7, 0.3), True),
        ((0.7, 0.4), (0.7, 0.41), False),  # at the majority share, where another epoch is above
        ((0.3, 0.3), (0.4, 0.4), False),
    ],
)
def test_an_epoch_at_the_majority_share_is_not_the_best(
    now: tuple[float, float], top: tuple[float, float], expected: bool
) -> None:
    correct = [withstood(round(200 * pgd)) for _, pgd in (now, top)]
    assert improves(epoch(*now), correct[0], epoch(*top), correct[1], 0.4)[0] is expected


def test_the_best_of_a_run_that_collapses_is_from_before(tmp_path: Path) -> None:
    """From the third epoch on the network is made a constant classifier, which no attack can fool."""
    model = mlp()

    def collapse(progress: object) -> None:
        if progress.metrics and progress.epoch >= 2:
            with torch.no_grad():
                last = model[2]
                last.weight.zero_()
                last.bias.copy_(torch.tensor([50.0, 0, 0]))

    recipe = dataclasses.replace(FAST, epochs=5, lr=1e-2, valid_eps=0.5)
    with pytest.warns(EquipoiseWarning, match="predicts one class for all 48 validation samples after epoch 3"):
        run = fit(methods.standard(), model, blobs(), recipe, out=tmp_path / "run", progress=collapse)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(lines, key=lambda line: line["valid_pgd"])["epoch"] > 2, "the collapsed epochs have the higher number"
    assert run.best["epoch"] <= 2 and run.best["valid_clean"] > 1 / 3
    assert len(run.alarms) == 1, "said once"
    best = mlp()
    load_weights(best, tmp_path / "run" / "best.safetensors")
    assert len(best(blobs().test.x).argmax(1).unique()) > 1


def said(past: int, clean: float, n: int, majority: float, **more: float) -> list[str]:
    now = {"epoch": 1.0, "valid_clean": clean, "valid_fgsm": clean, "valid_pgd": clean, **more}
    return [alarm.kind for alarm in alarms_of([now] * past, now, 3, n, False, majority)]


def test_chance_is_an_alarm_only_where_the_samples_tell() -> None:
    assert said(1, 0.625, 16, 0.375) == []  # 10 of 16 are significantly more than 6 (p = 0.037)
    assert said(1, 5 / 16, 16, 0.375) == []  # too few to rule out a network that has learnt something
    assert said(1, 0.35, 1000, 0.34) == ["no better than chance"]
    assert said(1, 0.40, 1000, 0.34) == []  # p = 5e-5
    assert said(0, 0.34, 1000, 0.34) == []  # the first epoch may be there
    assert said(1, 0.9, 1000, 0.9) == ["no better than chance"]  # of the samples 90 % are of one class
    assert said(1, 0.34, 1000, 0.34, valid_predicted_classes=1) == ["one class for all"]
    assert said(1, 0.5, 4, 0.5, valid_predicted_classes=1) == []  # four samples of one class say nothing


def test_advice_is_about_causes_that_apply() -> None:
    now = {"epoch": 1.0, "valid_clean": 0.34, "valid_fgsm": 0.34, "valid_pgd": 0.34}
    for climbs in (True, False):
        (alarm,) = alarms_of([now], now, 3, 1000, climbs, 0.34)
        assert ("eps" in alarm.text) is climbs


def test_alarms_that_differ_in_their_number_are_one() -> None:
    data = blobs()
    order = torch.randperm(240, generator=torch.Generator().manual_seed(0))
    shuffled = dataclasses.replace(data, train=Split(data.train.x, data.train.y[order]))
    frozen = nn.Sequential(nn.Linear(6, 3))
    with torch.no_grad():
        frozen[0].weight.zero_()
    recipe = Recipe(epochs=8, batch_size=40, lr=1e-6, validation=0.4, valid_steps=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = fit(methods.standard(), frozen, shuffled, recipe)
    assert len(run.alarms) == len([w for w in caught if issubclass(w.category, EquipoiseWarning)]) == 1


def test_the_record_of_a_network_of_the_library_builds_it_again(tmp_path: Path) -> None:
    from equipoise import nets
    from equipoise.models import Ensemble

    plain = nets.build("mlp", (6,), 3, seed=1, normalize=([0.5], [0.2]), widths=(8, 4))
    ensemble = Ensemble([nets.build("mlp", (6,), 3, seed=seed, widths=(8,)) for seed in range(2)])
    x = blobs().test.x
    for name, model in (("plain", plain), ("ensemble", ensemble)):
        fit(methods.standard(), model, blobs(), dataclasses.replace(FAST, epochs=1), out=tmp_path / name)
        again, _ = load_run(tmp_path / name, "last")
        if isinstance(model, Ensemble):
            assert isinstance(again, Ensemble)
            assert all(a.equal(b) for a, b in zip(again.module.parameters(), model.module.parameters(), strict=True))
        else:
            assert again(x).equal(model.eval()(x))
    changed = nets.build("mlp", (6,), 3, widths=(8,))
    changed.extra = nn.Linear(3, 3)
    fit(methods.standard(), changed, blobs(), dataclasses.replace(FAST, epochs=1), out=tmp_path / "changed")
    with pytest.raises(
        ValueError, match=r"load_weights\(net, .*last.safetensors'\); at the command line .*--checkpoint"
    ):
        load_run(tmp_path / "changed", "last")


def test_a_radius_of_zero_is_said_once(tmp_path: Path) -> None:
    with pytest.warns(EquipoiseWarning, match="eps = 0: the ball holds the sample alone, so nothing is pert") as caught:
        fit(methods.udp(0.0, steps=1), mlp(), blobs(), dataclasses.replace(FAST, epochs=1), out=tmp_path / "run")
    assert len(caught) == 1

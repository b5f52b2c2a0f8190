"""The training loop: same steps after a kill, the algebra's gradient, alarms, and refusals."""

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from equipoise import attacks, methods
from equipoise.core.errors import EquipoiseError, EquipoiseWarning
from equipoise.core.rng import Streams, fold
from equipoise.data import Dataset, Split
from equipoise.losses.objectives import cross_entropy, entropy
from equipoise.models import as_predictive
from equipoise.training import Progress, Recipe, fit, load_run, load_weights
from equipoise.training.checkpoint import load_tensors
from equipoise.training.monitoring import alarms_of

pytestmark = pytest.mark.unchecked


def blobs(n: int = 240, features: int = 6, classes: int = 3, seed: int = 0) -> Dataset:
    """Separable clusters in [0, 1], small enough to train on in no time."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0.2, 0.8, (classes, features))

    def split(m: int) -> Split:
        y = np.arange(m) % classes
        x = np.clip(centres[y] + rng.normal(0, 0.08, (m, features)), 0, 1)
        return Split(torch.tensor(x, dtype=torch.float32), torch.tensor(y))

    return Dataset("blobs", split(n), split(n // 2), tuple("abc"[:classes]), "0" * 64)


def images(n: int = 48) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 2
    x = (0.3 * torch.rand(n, 3, 8, 8, generator=generator) + 0.5 * y[:, None, None, None]).clamp(0, 1)
    return Dataset("images", Split(x, y), Split(x[:8], y[:8]), ("dark", "light"), "1" * 64)


def mlp(features: int = 6, classes: int = 3, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(features, 16), nn.ReLU(), nn.Linear(16, classes))


def convnet() -> nn.Module:
    """Batch-norm and dropout: what makes a resumed run differ if anything does."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 2),
        )


FAST = Recipe(epochs=3, batch_size=40, lr=0.01, validation=0.2, valid_steps=3)
METHODS = {
    "standard": methods.standard(),
    "fgsm": methods.fgsm_at(0.05),
    "r-fgsm": methods.r_fgsm_at(0.05),
    "pgd": methods.pgd_at(0.05, 0.02, 4),
    "udp": methods.udp(0.1, 0.02, 6),
    "uta": methods.uta(0.1, 0.02, 6),
    "udpr": methods.udpr(0.1, 0.02, 6),
    "trades": methods.trades(0.05, 0.02, 4, beta=2.0),
    "udp-trades": methods.udp_trades(0.1, 0.02, 4),
    "own": cross_entropy - 0.1 * entropy + 0.5 * (cross_entropy @ attacks.cw(0.05, 0.02, 3, norm="l2")),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_separable_data(name: str) -> None:
    model = mlp()
    run = fit(METHODS[name], model, blobs(), dataclasses.replace(FAST, epochs=12))
    assert run.status == "finished"
    assert run.last["valid_clean"] > 0.9
    assert 0 < run.last["train_loss"] < 1.2
    assert run.last["valid_pgd"] <= run.last["valid_clean"]


@pytest.mark.parametrize("name", ["standard", "udpr", "trades"])
def test_a_step_is_the_gradient_of_the_plain_sum(name: str) -> None:
    """One SGD step of the loop against the same step written out."""
    data, method, model, plain = blobs(), METHODS[name], mlp(), mlp()
    recipe = Recipe(epochs=1, batch_size=1000, optimizer="sgd", momentum=0.0, nesterov=False, lr=0.1, validation=0.2)
    fit(method, model, data, recipe)
    train, _ = data.split_validation(0.2, seed=fold(0, 0))
    order = torch.randperm(len(train.y), generator=torch.Generator().manual_seed(abs(fold(fold(0, 0), 1))))
    x, y = train.x[order], train.y[order]
    streams = Streams.of(fold(fold(0, 0), 3), order)
    predictive = as_predictive(plain)
    points = method.points(predictive, x, y, streams)
    ce = nn.functional.cross_entropy
    if name == "standard":
        loss = ce(plain(x), y)
    elif name == "udpr":
        loss = ce(plain(x), y) + ce(plain(points[1]), y)
    else:
        kl = nn.functional.kl_div(plain(points[1]).log_softmax(1), plain(x).softmax(1), reduction="batchmean")
        loss = ce(plain(x), y) + 2.0 * kl
    loss.backward()
    for got, start in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.detach(), start.detach() - 0.1 * start.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("filters", "asked", "last"), [(32, None, True), (31, None, False), (31, True, True), (32, False, False)]
)
def test_wide_convolutions_are_trained_in_channels_last_order(filters: int, asked: bool | None, last: bool) -> None:
    """Whatever the order, the weights become the same up to rounding."""
    nets = [nn.Sequential(nn.Conv2d(3, filters, 3), nn.Flatten(), nn.Linear(36 * filters, 2)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    recipe = Recipe(epochs=1, batch_size=16, optimizer="sgd", lr=0.01, validation=0.2, valid_steps=1)
    for net, order in zip(nets, (asked, not last), strict=True):
        fit(methods.standard(), net, images(), dataclasses.replace(recipe, channels_last=order))
    assert [net[0].weight.is_contiguous(memory_format=torch.channels_last) for net in nets] == [last, not last]
    torch.testing.assert_close(list(nets[0].parameters()), list(nets[1].parameters()), rtol=1e-4, atol=1e-6)


class Killed(Exception):
    """A kill, as far as the loop can tell."""


RECIPES = {
    "adam": Recipe(epochs=3, batch_size=7, lr=0.01, validation=0.2, valid_steps=2),
    "sgd, everything": Recipe(
        epochs=3,
        batch_size=7,
        optimizer="sgd",
        lr=0.05,
        schedule="triangular",
        ema=0.9,
        channels_last=True,
        augment="crop-flip",
        validation=0.2,
        valid_steps=2,
        seed=3,
    ),
    "bf16": Recipe(epochs=2, batch_size=7, lr=0.01, validation=0.2, valid_steps=2, precision="bf16"),
}


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("at", [(1, 1), (1, 5), (2, 2), (2, 6)])
def test_resuming_continues_bit_for_bit(kind: str, at: tuple[int, int], tmp_path: Path) -> None:
    """Killed anywhere, with a checkpoint after every step, the weights and metrics are those of a run left alone."""
    recipe = dataclasses.replace(RECIPES[kind], checkpoint_minutes=1e-9)
    method = methods.udpr(0.1, 0.02, 4, mode="train")
    whole = convnet()
    expected = fit(method, whole, images(), recipe, out=tmp_path / "whole")

    def kill(progress: Progress) -> None:
        if (progress.epoch, progress.step) == at and progress.metrics is None:
            raise Killed

    with pytest.raises(Killed):
        fit(method, convnet(), images(), recipe, out=tmp_path / "cut", progress=kill)
    resumed = convnet()
    run = fit(method, resumed, images(), recipe, out=tmp_path / "cut", resume=True)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert a.equal(b)
    assert run.last == expected.last
    for name in ("metrics.jsonl", "best.safetensors", "last.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    states = [load_tensors(tmp_path / place / "checkpoint.safetensors")[1] for place in ("whole", "cut")]
    for state in states:
        del state["memory"]["seconds"]
    assert states[0] == states[1]
    best = (tmp_path / "cut" / "best.safetensors").read_bytes()
    assert states[1]["memory"]["weights"]["best.safetensors"] == hashlib.sha256(best).hexdigest()


SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_fit import *
recipe = Recipe(epochs=3, batch_size=8, checkpoint_minutes=1e-9, valid_steps=2)
fit(methods.udp(0.1, 0.05, 4), mlp(), blobs(), recipe, out={out!r}, resume={resume})
"""


def run_script(out: Path, resume: bool) -> subprocess.Popen[bytes]:
    code = SCRIPT.format(tests=str(Path(__file__).parent), out=str(out), resume=resume)
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_real_kill_loses_nothing(tmp_path: Path) -> None:
    """SIGKILL in the middle of writing checkpoints: what is on disk is whole, and continues to the same end."""
    process = run_script(tmp_path / "cut", resume=False)
    while not (tmp_path / "cut" / "run.json").exists():
        assert process.poll() is None, "ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["status"] == "running"
    assert run_script(tmp_path / "cut", resume=True).wait() == 0
    assert run_script(tmp_path / "whole", resume=False).wait() == 0
    for name in ("last.safetensors", "best.safetensors", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_two_processes_train_as_one() -> None:
    """Batches are shared out and gradients averaged: the same run up to the order of additions."""
    data, one, two = blobs(), mlp(), mlp()
    recipe = dataclasses.replace(FAST, epochs=2, batch_size=33)
    alone = fit(methods.udpr(0.1, 0.02, 4), one, data, recipe)
    together = fit(methods.udpr(0.1, 0.02, 4), two, data, dataclasses.replace(recipe, devices=2))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert together.last["train_loss"] == pytest.approx(alone.last["train_loss"], rel=1e-4)
    assert together.last["train_accuracy"] == pytest.approx(alone.last["train_accuracy"])


def test_an_error_in_a_process_is_still_a_sentence() -> None:
    recipe = Recipe(epochs=5, optimizer="sgd", lr=1e30, validation=0.2, devices=2)
    with pytest.raises(EquipoiseError, match=r"^the .* no longer finite .*lower lr[^\n]*$"):
        fit(methods.standard(), mlp(), blobs(), recipe)


def test_the_same_seed_is_the_same_run_and_another_is_not() -> None:
    runs = []
    for seed in (0, 0, 1):
        model = mlp()
        fit(methods.udp(0.1, 0.02, 4), model, blobs(), dataclasses.replace(FAST, seed=seed))
        runs.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert runs[0].equal(runs[1])
    assert not runs[0].equal(runs[2])


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    fit(methods.standard(), convnet(), images(), dataclasses.replace(FAST, epochs=1))
    assert torch.get_rng_state().equal(before)


def test_modes_are_given_back() -> None:
    model = mlp()
    model.eval()
    fit(methods.standard(), model, blobs(), dataclasses.replace(FAST, epochs=1))
    assert not any(m.training for m in model.modules())


def test_ema_is_the_average_of_the_weights(tmp_path: Path) -> None:
    """Decay 0.5 over two steps from w0: (w0 -> w1) starts at w1, then (w1 + w2) / 2."""
    seen: list[torch.Tensor] = []
    model = mlp()

    def look(progress: Progress) -> None:
        if progress.metrics is None:
            seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]).clone())

    recipe = Recipe(epochs=1, batch_size=96, ema=0.5, lr=0.05, validation=0.2, valid_steps=1)
    fit(methods.standard(), model, blobs(), recipe, out=tmp_path / "run", progress=look)
    assert len(seen) == 2
    averaged = mlp()
    load_weights(averaged, tmp_path / "run" / "last.safetensors")
    got = torch.cat([p.detach().flatten() for p in averaged.parameters()])
    torch.testing.assert_close(got, (seen[0] + seen[1]) / 2)


def test_with_ema_the_model_ends_as_the_average(tmp_path: Path) -> None:
    model, saved = mlp(), mlp()
    fit(methods.standard(), model, blobs(), dataclasses.replace(FAST, ema=0.5), out=tmp_path / "run")
    load_weights(saved, tmp_path / "run" / "last.safetensors")
    assert all(a.equal(b) for a, b in zip(model.parameters(), saved.parameters(), strict=True))


def test_a_last_batch_of_one_joins_the_one_before() -> None:
    """43 training samples in batches of 21: batch-norm could not take the last one alone."""
    told: list[Progress] = []
    run = fit(methods.standard(), batch_normed(), blobs(48), Recipe(epochs=1, batch_size=21), progress=told.append)
    assert run.status == "finished"
    assert told[-1].steps == 2


def batch_normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def test_a_term_or_an_objective_alone_is_a_method() -> None:
    for part in (cross_entropy, cross_entropy @ attacks.pgd(0.05, 0.02, 2)):
        assert fit(part, mlp(), blobs(), dataclasses.replace(FAST, epochs=1)).status == "finished"


def test_buffers_may_be_infinite(tmp_path: Path) -> None:
    model = mlp()
    model.register_buffer("mask", torch.tensor(float("-inf")))
    assert fit(methods.standard(), model, blobs(), FAST, out=tmp_path / "run").status == "finished"


def test_a_compiled_network_saves_plain_names(tmp_path: Path) -> None:
    compiled = torch.compile(mlp(), backend="eager")
    fit(methods.standard(), compiled, blobs(), dataclasses.replace(FAST, epochs=1), out=tmp_path / "run")
    load_weights(mlp(), tmp_path / "run" / "best.safetensors")


def test_an_ascent_keeps_its_own_precision() -> None:
    from equipoise.training.job import in_precision

    method = methods.pgd_at(0.1, 0.02, 2, precision="bf16")
    assert in_precision(method, Recipe()).terms[0].at.precision == "bf16"
    assert in_precision(methods.pgd_at(0.1, 0.02, 2), Recipe(precision="bf16")).terms[0].at.precision == "bf16"


TORCHRUN = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_fit import *
model, start = mlp(), mlp()
fit(methods.standard(), model, blobs(), Recipe(epochs=1, batch_size=32))
assert not any(a.equal(b) for a, b in zip(model.parameters(), start.parameters()))
"""


def test_under_torchrun_the_model_is_trained_in_place(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TORCHRUN.format(tests=str(Path(__file__).parent)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(launch, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_early_stopping_keeps_the_best(tmp_path: Path) -> None:
    recipe = dataclasses.replace(FAST, epochs=60, patience=2, lr=0.02)
    run = fit(methods.standard(), mlp(), blobs(), recipe, out=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert run.status == "stopped early"
    highest = max(lines, key=lambda line: line["valid_pgd"])  # the first one
    assert len(lines) == highest["epoch"] + 2 < 60
    assert highest["epoch"] <= run.best["epoch"], "of epochs that noise cannot tell apart the later is the best"


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_learning_rate_schedules_reach_the_optimiser(precision: str) -> None:
    rates: list[float] = []
    recipe = Recipe(epochs=10, batch_size=192, schedule="multistep", lr=0.01, validation=0.2, precision=precision)
    fit(
        methods.standard(),
        mlp(),
        blobs(),
        recipe,
        progress=lambda p: rates.append(p.metrics["lr"]) if p.metrics else None,
    )
    assert rates == pytest.approx([0.01] * 5 + [0.001] * 3 + [0.0001] * 2)


def test_remaining_time_shrinks_to_zero() -> None:
    told: list[Progress] = []
    fit(methods.standard(), mlp(), blobs(), FAST, progress=told.append)
    assert told[-1].remaining == 0
    assert [p.epoch for p in told if p.metrics] == [1, 2, 3]
    assert all(p.steps == 5 for p in told)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    recipe = Recipe(epochs=5, optimizer="sgd", lr=1e30, validation=0.2)
    with pytest.raises(EquipoiseError, match=r"no longer finite.*lower lr"):
        fit(methods.pgd_at(0.05, 0.02, 3), mlp(), blobs(), recipe, out=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"].startswith("failed: the ")


def history(*triples: tuple[float, float, float]) -> list[dict[str, float]]:
    return [{"epoch": i + 1, "valid_clean": c, "valid_fgsm": f, "valid_pgd": p} for i, (c, f, p) in enumerate(triples)]


def test_alarm_for_catastrophic_overfitting() -> None:
    *past, now = history((0.8, 0.5, 0.4), (0.85, 0.55, 0.42), (0.84, 0.95, 0.02))
    assert "catastrophic overfitting: since epoch 2" in str(*alarms_of(past, now, 10, 1000, True))
    assert alarms_of(past, now, 10, 1000, climbs=False) == []  # what is trained on no attack cannot overfit to it
    *past, now = history((0.8, 0.5, 0.4), (0.84, 0.45, 0.2))  # both fall: not that
    assert alarms_of(past, now, 10, 1000, True) == []
    *past, now = history((0.8, 0.5, 0.4), (0.85, 0.6, 0.39))  # within noise
    assert alarms_of(past, now, 10, 1000, True) == []


def test_alarm_for_collapse_to_chance() -> None:
    *past, now = history((0.12, 0.1, 0.1), (0.11, 0.1, 0.1))
    assert "no better than chance" in str(*alarms_of(past, now, 10, 1000, True))
    assert alarms_of([], now, 10, 1000, True) == []  # the first epoch may be at chance
    assert alarms_of(past, now | {"valid_clean": 0.2}, 10, 1000, True) == []


def test_collapse_is_warned_about_while_training() -> None:
    data = blobs()
    shuffled = Split(data.train.x, data.train.y[torch.randperm(240, generator=torch.Generator().manual_seed(0))])
    with pytest.warns(EquipoiseWarning, match="no better than chance"):
        run = fit(methods.standard(), mlp(), dataclasses.replace(data, train=shuffled), FAST)
    assert run.alarms


def test_a_run_directory_gives_its_network_back(tmp_path: Path) -> None:
    from equipoise import nets

    data = images()
    net = nets.build("mlp", (3, 8, 8), 2, seed=0, widths=(8, 4))
    record = {"name": "mlp", "shape": [3, 8, 8], "classes": 2, "seed": 0, "options": {"widths": [8, 4]}}
    fit(methods.standard(), net, data, FAST, out=tmp_path / "run", net_record=record)
    model, run = load_run(tmp_path / "run", "last")
    assert run.status == "finished"
    assert not model.training
    assert model(data.test.x).equal(net.eval()(data.test.x))


def test_tensorboard_events(tmp_path: Path) -> None:
    fit(methods.standard(), mlp(), blobs(), dataclasses.replace(FAST, tensorboard=True), out=tmp_path / "run")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("valid_pgd")] == [1, 2, 3]


def start(tmp_path: Path) -> Path:
    fit(methods.udp(0.1, 0.02, 4), mlp(), blobs(), FAST, out=tmp_path / "run")
    return tmp_path / "run"


def test_refuses_to_augment_what_is_no_image() -> None:
    with pytest.raises(EquipoiseError, match=r"augment = 'crop-flip' needs images, blobs has inputs of shape \(6,\)"):
        fit(methods.standard(), mlp(), blobs(), dataclasses.replace(FAST, augment="crop-flip"))


def test_refuses_more_processes_than_samples() -> None:
    with pytest.raises(EquipoiseError, match="2 processes cannot share batches of 1"):
        fit(methods.standard(), mlp(), blobs(), Recipe(batch_size=1, devices=2, epochs=1))


def test_refuses_to_send_what_does_not_pickle() -> None:
    class Local(nn.Linear):
        pass

    with pytest.raises(EquipoiseError, match="does not pickle"):
        fit(methods.standard(), Local(6, 3), blobs(), Recipe(devices=2, epochs=1))


def test_refuses_to_overwrite_a_run(tmp_path: Path) -> None:
    with pytest.raises(EquipoiseError, match="already holds a run"):
        fit(methods.standard(), mlp(), blobs(), FAST, out=start(tmp_path))


def test_refuses_to_resume_something_else(tmp_path: Path) -> None:
    out = start(tmp_path)
    with pytest.raises(EquipoiseError, match="another method"):
        fit(methods.standard(), mlp(), blobs(), FAST, out=out, resume=True)
    with pytest.raises(EquipoiseError, match=r"started with lr = 0\.01"):
        fit(methods.udp(0.1, 0.02, 4), mlp(), blobs(), dataclasses.replace(FAST, lr=0.1), out=out, resume=True)
    with pytest.raises(EquipoiseError, match="other data"):
        fit(methods.udp(0.1, 0.02, 4), mlp(), blobs(300), FAST, out=out, resume=True)
    with pytest.raises(EquipoiseError, match="another method"):  # alike in words
        fit(methods.udp(0.1, 0.02, 4, mode="train"), mlp(), blobs(), FAST, out=out, resume=True)
    with pytest.raises(EquipoiseError, match="nothing to resume"):
        fit(methods.udp(0.1, 0.02, 4), mlp(), blobs(), FAST, out=tmp_path / "other", resume=True)


@pytest.mark.parametrize("damage", ["truncated", "other"])
def test_refuses_an_unreadable_checkpoint(damage: str, tmp_path: Path) -> None:
    out = start(tmp_path)
    path = out / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if damage == "truncated" else b"no tensors here")
    with pytest.raises(EquipoiseError, match="not a readable safetensors file"):
        fit(methods.udp(0.1, 0.02, 4), mlp(), blobs(), FAST, out=out, resume=True)


def test_refuses_weights_of_another_network(tmp_path: Path) -> None:
    out = start(tmp_path)
    with pytest.raises(EquipoiseError, match="has shape"):
        load_weights(mlp(features=7), out / "best.safetensors")
    with pytest.raises(EquipoiseError, match="not those of this network"):
        load_weights(convnet(), out / "best.safetensors")
    with pytest.raises(EquipoiseError, match="a network of your own"):
        load_run(out)


def test_refuses_a_network_that_does_not_fit() -> None:
    with pytest.raises(EquipoiseError, match="has 4 classes, blobs has 3"):
        fit(methods.standard(), mlp(classes=4), blobs(), FAST)
    with pytest.raises(EquipoiseError, match=r"does not take inputs of shape \(6,\)"):
        fit(methods.standard(), mlp(features=5), blobs(), FAST)
    with pytest.raises(EquipoiseError, match="probabilities"):
        fit(methods.standard(), nn.Sequential(mlp(), nn.Softmax(1)), blobs(), FAST)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"epochs": 0}, "epochs = 0 is out of range"),
        ({"lr": 0.0}, "lr = 0.0 trains nothing"),
        ({"lr": 1e300}, r"lr = 1e\+300 trains nothing"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"optimizer": "adan"}, "did you mean 'adam'"),
        ({"schedule": "triangle"}, "did you mean 'triangular'"),
        ({"validation": 0.0}, "validation = 0.0"),
        ({"ema": 1.0}, "ema = 1.0 is not a decay"),
        ({"epochs": 1.5}, "epochs = 1.5: expected an integer"),
        ({"epochs": "3"}, "epochs = '3': expected an integer"),
        ({"epochs": True}, "epochs = True: expected an integer"),
        ({"seed": np.int64(3)}, "expected an integer"),
        ({"lr": None}, "lr = None: expected a number"),
        ({"lr": True}, "lr = True: expected a number"),
        ({"nesterov": "3"}, "nesterov = '3': expected True or False"),
        ({"lr": float("inf")}, "lr = inf"),
        ({"valid_eps": 0.0}, "valid_eps = 0.0 is out of range"),
        ({"optimizer": "sgd", "momentum": 0.0}, "nesterov needs momentum"),
        ({"milestones": (30.0,)}, "shares of the training"),
        ({"lr_peak": 1.0}, "lr_peak = 1.0 is a share of the training"),
        ({"decay": 0.0}, "decay = 0.0: expected a factor"),
    ],
)
def test_refused_recipes(field: dict[str, object], message: str) -> None:
    with pytest.raises(EquipoiseError, match=message):
        Recipe(**field)


@pytest.mark.unchecked
def test_what_is_no_dataset_and_no_method_is_refused_by_name() -> None:
    data = blobs()
    with pytest.raises(EquipoiseError, match=r"data is an int: expected a pair \(x, y\) of arrays or tensors"):
        fit(methods.standard(), mlp(), 3, FAST)
    with pytest.raises(EquipoiseError, match=r"Sequential is not part of a training method: expected an objective"):
        fit(mlp(), methods.standard(), data, FAST)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("multistep", [1, 1, 0.1, 0.01, 0.01]),
        ("triangular", [0, 0.625, 5 / 6, 5 / 12, 0]),
        ("cyclic", [0, 0.625, 5 / 6, 5 / 12, 0]),
    ],
)
def test_learning_rates(schedule: str, expected: list[float]) -> None:
    recipe = Recipe(lr=1.0, schedule=schedule)
    assert [recipe.learning_rate(t) for t in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx(expected)


def test_a_learning_rate_can_peak_in_the_middle_and_decay_by_another_factor() -> None:
    middle = Recipe(lr=0.14, schedule="triangular", lr_peak=0.5)
    assert [middle.learning_rate(t) for t in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx([0, 0.07, 0.14, 0.07, 0])
    steps = Recipe(lr=1.0, schedule="multistep", decay=1 / 15)
    assert [steps.learning_rate(t) for t in (0, 0.6, 0.9)] == pytest.approx([1, 1 / 15, 1 / 225])


def test_the_datas_usual_share_is_held_out_and_recorded() -> None:
    data = dataclasses.replace(blobs(), validation=0.25)
    run = fit(methods.standard(), mlp(), data, Recipe(epochs=1, valid_steps=1))
    assert run.recipe["validation"] == 0.25 and run.data["n_valid"] == round(0.25 * len(data.train))
    assert fit(methods.standard(), mlp(), blobs(), Recipe(epochs=1, valid_steps=1)).recipe["validation"] == 0.1

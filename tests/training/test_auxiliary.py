"""Training with an auxiliary network: its steps, its place in checkpoints and metrics, its files."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from equipoise import methods
from equipoise.cli.main import main
from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import fold
from equipoise.data import Dataset, Split
from equipoise.generators import AdversarialGenerator, Adversary, GeneratedMargin
from equipoise.losses.objectives import cross_entropy
from equipoise.losses.terms import as_method
from equipoise.training import Progress, Recipe, fit, load_generator
from equipoise.training.checkpoint import load_tensors

pytestmark = [
    pytest.mark.unchecked,
    pytest.mark.filterwarnings("ignore:.*no better than chance:equipoise.core.errors.EquipoiseWarning"),
]
FAST = Recipe(epochs=3, batch_size=12, lr=0.01, validation=0.2, valid_steps=2)


def images(n: int = 60) -> Dataset:
    """Dark and light ones."""
    y = torch.arange(n) % 2
    x = 0.3 * torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.35 * y[:, None, None, None]
    return Dataset("images", Split(x, y), Split(x[:8], y[:8]), ("dark", "light"), "1" * 64)


def net(batch_norm: bool = True) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        noisy = [nn.BatchNorm2d(4), nn.Dropout(0.2)] if batch_norm else []
        return nn.Sequential(nn.Conv2d(1, 4, 3), *noisy, nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


def test_a_step_is_that_of_the_algorithm():
    """One step of the loop against F's Alg. 1 written out: first f, at x* = g(x), then g, on a batch of its own."""
    data, f, plain = images(), net(batch_norm=False), net(batch_norm=False)
    g, own = AdversarialGenerator((1, 8, 8)), AdversarialGenerator((1, 8, 8))
    recipe = Recipe(epochs=1, batch_size=24, optimizer="sgd", momentum=0.0, nesterov=False, lr=0.1, validation=0.2)
    fit(methods.r2(g, weight=0.5, halvings=0, crossing=2.0, generator_lr=0.01), f, data, recipe)

    train, _ = data.split_validation(0.2, seed=fold(0, 0))
    shuffles = [torch.randperm(48, generator=torch.Generator().manual_seed(abs(fold(fold(0, 0), k)))) for k in (1, 5)]
    optimizer = torch.optim.Adam(own.parameters(), 0.01)
    for batch, other in zip(*(shuffle.split(24) for shuffle in shuffles), strict=True):
        x, y, z = train.x[batch], train.y[batch], train.x[other]
        there = own(x).detach()
        ce = nn.functional.cross_entropy
        between = ce(plain(there), plain(x).softmax(1).detach(), reduction="none")
        loss = ce(plain(x), y) - 0.5 * ((there - x).flatten(1).norm(dim=1) / (1 + between)).mean()
        for weight, slope in zip(plain.parameters(), torch.autograd.grad(loss, list(plain.parameters())), strict=True):
            weight.data -= 0.1 * slope
        moved = own(z)
        s, c = plain(moved), plain(z).argmax(1)
        hinge = (s.gather(1, c[:, None]) - s.gather(1, 1 - c[:, None]))[:, 0].clamp_min(0)
        optimizer.zero_grad()
        ((moved - z).flatten(1).pow(2).sum(1) / 2 + 2.0 * hinge).mean().backward()
        optimizer.step()
    for mine, theirs in [(f, plain), (g, own)]:
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert not any(
        a.equal(b) for a, b in zip(g.parameters(), AdversarialGenerator((1, 8, 8)).parameters(), strict=True)
    )


class Killed(Exception):
    """A kill, as far as the loop can tell."""


RECIPES = {
    "adam": dataclasses.replace(FAST, checkpoint_minutes=1e-9),
    "everything": dataclasses.replace(
        FAST,
        optimizer="sgd",
        ema=0.9,
        awp=0.01,
        channels_last=True,
        augment="crop-flip",
        precision="bf16",
        checkpoint_minutes=1e-9,
        seed=3,
    ),
}


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("at", [(1, 1), (2, 3), (3, 4)])
def test_resuming_continues_bit_for_bit(kind: str, at: tuple[int, int], tmp_path: Path) -> None:
    """Killed anywhere, both networks, the metrics and the pictures are those of a run left alone."""
    recipe, method = RECIPES[kind], methods.r2(weight=0.3)
    expected = fit(method, net(), images(), recipe, out=tmp_path / "whole")

    def kill(progress: Progress) -> None:
        if (progress.epoch, progress.step) == at and progress.metrics is None:
            raise Killed

    with pytest.raises(Killed):
        fit(method, net(), images(), recipe, out=tmp_path / "cut", progress=kill)
    run = fit(method, net(), images(), recipe, out=tmp_path / "cut", resume=True)
    assert run.last == expected.last
    names = {file.name for file in (tmp_path / "whole").iterdir()} - {"run.json", "checkpoint.safetensors"}
    assert names >= {"generator.safetensors", "generator_pictures.safetensors", "last.safetensors", "metrics.jsonl"}
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_the_same_method_is_the_same_run_and_another_seed_is_not() -> None:
    """`fit` builds the generator anew: the method holds nothing of an earlier run."""
    method, ends = methods.r2(weight=0.3), []
    for seed in (0, 0, 1):
        model = net()
        run = fit(method, model, images(), dataclasses.replace(FAST, epochs=1, seed=seed))
        ends.append((torch.cat([p.detach().flatten() for p in model.parameters()]), run.last["generator_loss"]))
    assert ends[0][0].equal(ends[1][0]) and ends[0][1] == ends[1][1]
    assert ends[0][1] != ends[2][1]


def test_an_epoch_records_what_the_generator_did(tmp_path: Path) -> None:
    """The means over an epoch of one step: those of the untrained generator, which moves nothing."""
    run = fit(methods.r2(), net(), images(), dataclasses.replace(FAST, epochs=1, batch_size=60), out=tmp_path / "run")
    assert run.last["generator_distance"] == run.last["generator_crossed"] == 0.0
    assert run.last["generator_loss"] > 0
    assert "R2(softness 1, halvings 6)" in run.method["sum"]


def test_two_processes_train_both_networks_as_one() -> None:
    found = []
    for devices in (1, 2):
        f, g = net(batch_norm=False), AdversarialGenerator((1, 8, 8))
        recipe = dataclasses.replace(FAST, epochs=2, batch_size=13, devices=devices)
        found.append((f, g, fit(methods.r2(g, weight=0.3, generator_lr=1e-3), f, images(), recipe).last))
    (f, g, alone), (f2, g2, together) = found
    for one, two in [(f, f2), (g, g2)]:
        for a, b in zip(one.parameters(), two.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    for name in ("generator_loss", "generator_crossed", "generator_distance"):
        assert together[name] == pytest.approx(alone[name], rel=1e-3)


def test_the_generator_can_be_loaded_and_trained_on(tmp_path: Path) -> None:
    fit(methods.r2(), net(), images(), FAST, out=tmp_path / "run")
    generator, x = load_generator(tmp_path / "run"), images().test.x
    assert not generator(x).equal(x)
    assert generator(x).equal(load_generator(tmp_path / "run" / "generator.safetensors")(x))
    on = fit(methods.r2(generator), net(), images(), dataclasses.replace(FAST, epochs=1, batch_size=60))
    assert on.last["generator_distance"] > 0  # in its first step already


def test_its_progress_is_kept_in_pictures(tmp_path: Path) -> None:
    """The inputs, then what g makes of them after each epoch, in 256 steps."""
    matplotlib = pytest.importorskip("matplotlib.image")
    generator = AdversarialGenerator((1, 8, 8))
    fit(methods.r2(generator), net(), images(), FAST, out=tmp_path / "run")
    tensors, _ = load_tensors(tmp_path / "run" / "generator_pictures.safetensors")
    _, valid = images().split_validation(0.2, seed=fold(0, 0))
    assert tensors["pictures"].shape == (4, 8, 1, 8, 8)
    for row, expected in [(0, valid.x[:8]), (-1, generator(valid.x[:8]))]:
        assert (tensors["pictures"][row] / 255 - expected).abs().max() <= 0.5 / 255 + 1e-6
    drawn = matplotlib.imread(tmp_path / "run" / "generator.png")
    assert drawn.shape[:2] == (3 * 4 * 8, 3 * 8 * 8)
    assert abs(drawn[0, 0, 0] - valid.x[0, 0, 0, 0].item()) < 1 / 255
    assert abs(drawn[-1, -1, 0] - tensors["pictures"][-1, 7, 0, 7, 7].item() / 255) < 1e-6


def test_vectors_have_a_generator_and_no_image(tmp_path: Path) -> None:
    y = torch.arange(40) % 2
    split = Split(torch.rand(40, 5, generator=torch.Generator().manual_seed(0)), y)
    data = Dataset("vectors", split, split, ("a", "b"), "2" * 64)
    fit(methods.r2(), nn.Linear(5, 2), data, dataclasses.replace(FAST, epochs=1), out=tmp_path / "run")
    assert load_generator(tmp_path / "run").shape == (5,)
    assert not (tmp_path / "run" / "generator.png").exists()


def test_an_auxiliary_network_of_two_penalties_is_one() -> None:
    """It is made once, and takes one step."""
    adversary = Adversary()
    method = as_method(cross_entropy).with_penalty(-0.1, GeneratedMargin(adversary, 1.0))
    method = method.with_penalty(-0.1, GeneratedMargin(adversary, 0.5)).build_for((5,), 0)
    assert len(method.auxiliary_networks) == 1
    assert method.penalties[0][1].auxiliary_network.network() is method.penalties[1][1].auxiliary_network.network()


def test_refused(tmp_path: Path) -> None:
    first, second = (GeneratedMargin(Adversary(crossing=c)) for c in (1.0, 2.0))
    twice = as_method(cross_entropy).with_penalty(-1.0, first).with_penalty(-1.0, second)
    with pytest.raises(
        EquipoiseError, match=r"two auxiliary networks of the method have one name, .* let the penalties have the"
    ):
        fit(twice, net(), images(), FAST)
    with pytest.raises(EquipoiseError, match=r"made for inputs of shape \(3, 8, 8\), the data has \(1, 8, 8\)"):
        fit(methods.r2(AdversarialGenerator((3, 8, 8))), net(), images(), FAST)
    with pytest.raises(EquipoiseError, match=r"generator\.safetensors: No such file"):
        load_generator(tmp_path)
    run = fit(methods.standard(), net(), images(), dataclasses.replace(FAST, epochs=1), out=tmp_path / "run")
    assert "generator_loss" not in run.last
    with pytest.raises(EquipoiseError, match=r"holds no adversarial generator: give a run of r2, or its generator"):
        load_generator(tmp_path / "run" / "last.safetensors")
    with pytest.raises(EquipoiseError, match=r"^cannot resume .* started with another method; give the same options"):
        fit(methods.r2(), net(), images(), dataclasses.replace(FAST, epochs=1), out=tmp_path / "run", resume=True)
    with pytest.raises(EquipoiseError, match=r"the loss of the generator is no longer finite in epoch 1: lower"):
        fit(methods.r2(crossing=1e39), net(), images(), dataclasses.replace(FAST, epochs=1, batch_size=60))


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["--epochs", "1", "--examples", "100", "--evaluate-examples", "0", "--valid-steps", "2"]
    assert main(["train", "r2", "--weight", "0.5", "--out", "first", *tiny]) == 0
    metrics = json.loads((tmp_path / "first" / "metrics.jsonl").read_text())
    assert metrics["generator_loss"] > 0
    assert main(["train", "r2", "--weight", "0.5", "--out", "second", "--generator", "first", *tiny]) == 0
    then = json.loads((tmp_path / "second" / "metrics.jsonl").read_text())
    assert then["generator_distance"] > metrics["generator_distance"] >= 0
    run = json.loads((tmp_path / "second" / "run.json").read_text())
    assert (run["method"]["name"], run["method"]["weight"], run["method"]["generator"]) == ("r2", 0.5, "first")
    assert main(["train", "r2", "--out", "third", "--generator", "nowhere", *tiny]) == 2

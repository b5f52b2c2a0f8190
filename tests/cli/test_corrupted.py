"""evaluate --corruptions as typed: with and without attacks, in shards, with published images, and verified."""

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from equipoise.cli import main
from equipoise.corruptions import COLLECTIONS, CORRUPTIONS
from equipoise.results.records import digest, load

pytestmark = pytest.mark.unchecked

OWN = """
import torch
from torch import nn

def make():
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.rand(3, 784, generator=g) - 0.5)
        model[1].bias.zero_()
    return model
"""
WORDS = "evaluate own_nets:make --data my.npz --batch-size 8 --out r.json --corruptions"


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    """A directory with a model of three classes, data of 28x28, and corrupted images of its test set as published."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)
    (tmp_path / "own_nets.py").write_text(OWN)
    import own_nets  # pyright: ignore[reportMissingImports]

    x = torch.zeros(40, 1, 28, 28)
    x[..., 8:20, 8:20] = torch.rand(40, 1, 12, 12, generator=torch.Generator().manual_seed(1)).round()
    y = own_nets.make()(x).argmax(1)
    y[::7] = (y[::7] + 1) % 3
    np.savez(tmp_path / "my.npz", x_train=x[:20].numpy(), y_train=y[:20], x_test=x[20:].numpy(), y_test=y[20:])
    for name in ("fog", "stripe"):
        (tmp_path / "mnist_c" / name).mkdir(parents=True)
        images = (255 * x[20:].flip(3)).to(torch.uint8).permute(0, 2, 3, 1)
        np.save(tmp_path / "mnist_c" / name / "test_images.npy", images.numpy())
        np.save(tmp_path / "mnist_c" / name / "test_labels.npy", y[20:].numpy())
    return tmp_path


def ask(*words: object) -> int:
    return main([str(w) for w in words])


def test_all_corruptions_and_no_attack(mine, capsys):
    assert ask(*shlex.split(WORDS), "mnist-c", "--attacks", "clean") == 0
    out, record = capsys.readouterr().out, load("r.json")
    assert [r.corruption for r in record.corruptions] == list(CORRUPTIONS) and len(record.results) == 1
    lines = {line.split("│")[1].strip(): line for line in out.splitlines() if line.count("│") == 3}
    for result in record.corruptions:
        low, high = result.interval
        assert f"{result.accuracy:.1%}  [{low:.1%}, {high:.1%}]" in lines[result.corruption.replace("_", " ")]
    assert f"{record.corrupted.accuracy:.1%}" in lines["mean"]
    assert ask("verify", "r.json") == 0
    assert f"{16 * 20} claims inferred again" in capsys.readouterr().out


def test_with_an_attack_in_shards(mine, capsys):
    words = [*shlex.split(WORDS.replace("--out r.json ", "")), "fog", "rotate", "--attacks", "pgd3", "--eps", "0.1"]
    assert ask(*words, "--out", "r.json") == 0
    for number in (1, 2):
        assert ask(*words, "--shard", f"{number}/2", "--out", f"{number}.json") == 0
    assert ask("merge", "1.json", "2.json", "--out", "two.json") == 0
    assert digest(load("two.json")) == digest(load("r.json"))
    assert ask("verify", "two.json") == ask("verify", "1.json") == 0
    record = json.loads(Path("r.json").read_text())
    assert record["provenance"]["options"]["corruptions"] == ["fog", "rotate"]
    record["provenance"]["options"]["corruptions"] = ["fog"]
    Path("r.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert ask("verify", "r.json") == 2
    assert "its corruptions are not those that its command asks for" in capsys.readouterr().out


def test_published_images_are_used_and_looked_for_when_verified(mine, capsys):
    assert ask(*shlex.split(WORDS), "fog", "--corruptions-root", "mnist_c", "--attacks", "clean", "--examples", 9) == 0
    record = load("r.json")
    assert len(record.corruptions[0].source) == 64 and record.corruptions[0].n == 9
    assert ask("verify", "r.json") == 0
    Path("mnist_c").rename("moved")
    assert ask("verify", "r.json") == 2
    assert "there is no folder mnist_c" in capsys.readouterr().err
    assert ask("verify", "r.json", "--corruptions-root", "moved") == 0


def test_refuses_to_train_on_corruptions_of_what_is_no_image_before_it_begins(mine, capsys):
    x, y = np.random.default_rng(0).random((40, 6), np.float32), np.arange(40) % 3
    np.savez(mine / "features.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert ask("train", "corruption", "--data", "features.npz", "--epochs", 1, "--out", "run") == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: corruptions need images") and not Path("run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("frog", "unknown corruption 'frog': did you mean 'fog'"),
        ("fog --corruptions-root nowhere", "there is no folder nowhere"),
        ("fog rotate --corruptions-root mnist_c", "mnist_c has no folder rotate"),
        ("--corruptions-root mnist_c", "--corruptions-root needs --corruptions"),
    ],
)
def test_what_is_refused_is_said(mine, words, message, capsys):
    assert ask(*shlex.split(WORDS), *words.split(), "--attacks", "clean") == 2
    assert message in capsys.readouterr().err and not Path("r.json").exists()


def test_a_colour_model_on_the_corruptions_of_cifar_10_c(mine, capsys):
    words = "evaluate own_nets:coloured --data coloured.npz --attacks clean --out r.json --corruptions cifar-c"
    with (mine / "own_nets.py").open("a") as file:
        file.write("\ndef coloured():\n    torch.manual_seed(0)\n")
        file.write("    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 12, 3))\n")
    sys.modules.pop("own_nets")
    x = np.random.default_rng(0).random((20, 3, 8, 12), np.float32)
    np.savez("coloured.npz", x_train=x, y_train=np.arange(20) % 3, x_test=x, y_test=np.arange(20) % 3)
    assert ask(*shlex.split(words)) == 0
    out, record = capsys.readouterr().out, load("r.json")
    names, rights = [r.corruption for r in record.corruptions], [r.correct for r in record.corruptions]
    assert names == list(COLLECTIONS["cifar-c"]) and np.shape(rights) == (95, 20)
    assert record.corrupted.error == pytest.approx(1 - np.mean(rights))
    lines = {line.split("│")[1].strip(): line for line in out.splitlines() if line.count("│") == 4}
    assert len(lines) == 19 + 2 and f" {1 - np.mean(rights):.1%} " in lines["mean corruption error"]
    by_severity = 100 * np.mean(rights[5:10], 1)
    assert " ".join(f"{share:.0f}" for share in by_severity) in lines["cifar-c/shot noise"]
    assert f"{by_severity.mean() / 100:.1%} " in lines["cifar-c/shot noise"]
    assert ask("verify", "r.json") == 0
    assert f"{96 * 20} claims inferred again" in capsys.readouterr().out
    assert ask(*shlex.split(words.replace("coloured", "make", 1).replace("coloured", "my"))) == 2
    assert "cifar-c/saturate/1 needs images of 3 channels, got 1: leave it out" in capsys.readouterr().err

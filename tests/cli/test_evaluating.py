"""evaluate with AutoAttack, verify, merge: as typed, as stopped and continued, as divided, and what is refused."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from equipoise.cli import main
from equipoise.records import digest, load

OWN = """
import torch
from torch import nn

def make():
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 5))
    with torch.no_grad():
        model[1].weight.copy_(8 * (torch.rand(5, 36, generator=g) - 0.5))
        model[1].bias.copy_(-model[1].weight.mean(1) * 18)
    return model
"""
WORDS = shlex.split(
    "evaluate own_nets:make --data my.npz --attacks apgd-ce5 apgd-t5 square20 --eps 0.05 --batch-size 8"
)


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    """A directory with a model of five classes and data that it classifies without an error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)
    (tmp_path / "own_nets.py").write_text(OWN)
    import own_nets  # pyright: ignore[reportMissingImports]
    import torch

    x = torch.rand(90, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    y = own_nets.make()(x).argmax(1).numpy()
    assert len(set(y[:50])) == len(set(y[50:])) == 5
    np.savez(tmp_path / "my.npz", x_train=x[:50].numpy(), y_train=y[:50], x_test=x[50:].numpy(), y_test=y[50:])
    return tmp_path


def ask(*words: object) -> int:
    return main([str(w) for w in words])


def test_evaluate_verify_and_a_changed_record(mine, capsys):
    assert ask(*WORDS, "--out", "aa.json") == 0
    record = load("aa.json")
    assert [r.attack for r in record.results] == ["clean", "apgd-ce5", "apgd-t5", "square20", "worst case"]
    assert 0 < record.results[-1].accuracy < 1 and (mine / "aa.images.npz").is_file() and not record.flags
    capsys.readouterr()
    assert ask("verify", "aa.json") == 0
    out = capsys.readouterr().out
    assert "aa.json holds:" in out and digest(record)[:16] in out
    data = json.loads((mine / "aa.json").read_text())
    row = data["results"][1]["correct"].index(False)
    data["results"][1]["prediction"][row] = (data["results"][1]["prediction"][row] + 1) % 5
    (mine / "aa.json").write_text(json.dumps(data))
    assert ask("verify", "aa.json") == 2
    said = capsys.readouterr()
    assert f"sample {row}: class" in said.out and "aa.json does not hold: 3 of its statements" in said.err


def as_typed(*words: object) -> str:
    """What a process of its own prints, without the checks of annotations that these tests add."""
    env = {"PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "equipoise.cli", *map(str, words)]
    return subprocess.run(command, env=os.environ | env, check=True, capture_output=True, text=True).stdout


def test_autoattack_and_cascade_as_typed(mine):
    words = shlex.split("--data my.npz --eps 0.02 --examples 8 --out aa.json --robustbench rb.json")
    out = as_typed("evaluate", "own_nets:make", "--attacks", "autoattack", *words)
    assert "apgd-ce" in out and "fab-t" in out and "accuracy left" in out and "digest" in out
    entry = json.loads((mine / "rb.json").read_text())
    standard = load("aa.json").results[1]
    assert entry["autoattack_acc"] == f"{100 * standard.accuracy:.2f}" and entry["threat_model"] == "Linf"
    assert entry["clean_acc"] == "100.00" and entry["eps"] == 0.02 and entry["n_examples"] == 8
    as_typed("evaluate", "own_nets:make", "--attacks", "cascade", *words, "--norm", "l2")
    assert load("aa.json").results[1].norm == "l2"
    assert ask("verify", "aa.json") == 0


def test_shards_processes_and_one_make_the_same_record(mine):
    assert ask(*WORDS, "--out", "one.json") == 0
    for i in (1, 2):
        assert ask(*WORDS, "--shard", f"{i}/2", "--out", f"{i}.json") == 0
    assert ask("merge", "1.json", "2.json", "--out", "both.json") == 0
    as_typed(*WORDS, "--processes", "2", "--out", "two.json")
    assert digest(load("one.json")) == digest(load("both.json")) == digest(load("two.json"))
    assert not list(mine.glob("two.*of*"))
    assert ask("verify", "two.json") == ask("verify", "1.json") == ask("verify", "both.json") == 0


def test_a_killed_evaluation_is_resumed_to_the_same_record(mine, capsys):
    words = [*WORDS, "--attacks", "square1500", "--batch-size", "4"]
    env = {"PYTHONPATH": os.pathsep.join(map(str, [mine, *sys.path])), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "equipoise.cli", *words, "--out", "aa.json"],
        env=os.environ | env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 100
    while not (mine / "aa.json.partial" / "block-000001.json").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (mine / "aa.json").exists()
    assert ask(*words, "--out", "aa.json") == 2
    assert "continue it with --resume" in capsys.readouterr().err
    as_typed(*words, "--out", "aa.json", "--resume")
    as_typed(*words, "--out", "whole.json", "--resume")  # where there is nothing to continue it simply starts
    assert digest(load("aa.json")) == digest(load("whole.json"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*WORDS, "--shard", "3/2"], "shard 3/2: expected i/n with i from 1 to n"),
        ([*WORDS, "--shard", "1/2", "--processes", "2"], "--processes 2 and --shard 1/2 both divide the work"),
        ([*WORDS, "--processes", "0"], "--processes 0 computes nothing"),
        ([*WORDS, "--shard", "9/9"], "shard 9/9 is empty: the samples make 5 blocks"),
        (["evaluate", "own_nets:make", "--data", "my.npz", "--attacks", "autoatack", "--eps", "0.1"], "autoattack"),
        ([*WORDS, "--attacks", "autoattack", "--steps", "3"], "not for autoattack"),
        (["verify", "missing.json"], "cannot read missing.json"),
        (["verify", "my.npz"], "my.npz is not JSON"),
        (["merge", "missing.json"], "cannot read missing.json"),
        (["merge"], "records"),
        (["verfy", "aa.json"], "did you mean 'verify'"),
        ([*WORDS, "--reported", "85"], "reported = 85"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(mine, words, message, capsys):
    before = sorted(mine.iterdir())
    try:
        code = ask(*words)
    except SystemExit as leaving:
        code = leaving.code
    said = capsys.readouterr()
    assert code == 2 and message in said.err + said.out and "Traceback" not in said.err
    assert sorted(mine.iterdir()) == before


def test_verify_refuses_other_data_weights_and_missing_images(mine, capsys):
    assert ask(*WORDS, "--no-images", "--out", "bare.json") == 0
    assert ask("verify", "bare.json") == 2
    assert "which were not checked" in capsys.readouterr().err
    assert ask(*WORDS, "--out", "aa.json") == 0
    with np.load("my.npz") as arrays:
        other = dict(arrays)
    other["x_test"] = other["x_test"][::-1].copy()
    np.savez("other.npz", **other)
    assert ask("verify", "aa.json", "--data", "other.npz") == 2
    assert "is not the data that aa.json is about" in capsys.readouterr().err
    Path("own_nets.py").write_text(OWN.replace("8 *", "9 *"))
    shutil.rmtree("__pycache__", ignore_errors=True)
    del sys.modules["own_nets"]
    assert ask("verify", "aa.json") == 2
    assert "these are not the weights that aa.json is about" in capsys.readouterr().err

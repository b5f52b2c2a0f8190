"""Signals, killed processes, and stray variables: a training ends with a checkpoint and a sentence, or goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from equipoise.cli.main import main
from equipoise.core.errors import EquipoiseError
from equipoise.core.torchrun import World
from equipoise.results.records import Run, load
from equipoise.training import Interrupted
from equipoise.training.interruption import Stop, listening
from equipoise.training.recipe import require_devices

SMALL = ["udp", "--eps", "0.1", "--steps", "2", "--examples", "100", "--evaluate-examples", "0", "--lr", "0.002"]
LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")


def begun(out: Path, *more: object, env: "dict[str, str] | None" = None) -> "subprocess.Popen[str]":
    """A training of many epochs, which has finished the first one."""
    words = ["train", *SMALL, "--epochs", "100000", "--out", str(out), *map(str, more)]
    process = subprocess.Popen(
        [sys.executable, "-m", "equipoise", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )
    metrics = out / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


def stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["Z", "0"]


def ended(pids: list[int], seconds: float = 5) -> bool:
    """Whether all these processes end within so many seconds."""
    deadline = time.monotonic() + seconds
    while alive := [pid for pid in pids if stat(pid)[0] != "Z"]:
        if time.monotonic() > deadline:
            print("still there:", *(Path(f"/proc/{pid}/cmdline").read_text() for pid in alive))
            return False
        time.sleep(0.05)
    return True


def children(pid: int) -> list[int]:
    pids = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return [child for child in pids if stat(child)[1] == str(pid)]


def status(out: Path) -> str:
    run = load(out / "run.json")
    assert isinstance(run, Run)
    return run.status


def test_sigterm_leaves_a_checkpoint_that_resume_alone_continues(tmp_path: Path) -> None:
    out, whole = tmp_path / "run", tmp_path / "whole"
    process = begun(out)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in err
    assert err.splitlines()[-1].startswith("interrupted; continue with: equipoise train")
    assert status(out) == "failed: interrupted"
    epochs = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["epoch"] + 2
    assert main(["train", "--resume", "--out", str(out), "--epochs", str(epochs)]) == 0
    assert main(["train", *SMALL, "--epochs", str(epochs), "--out", str(whole)]) == 0
    assert status(out) == "finished"
    for name in ("last.safetensors", "best.safetensors", "metrics.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@LINUX
def test_sigint_to_the_parent_alone_ends_all_processes(tmp_path: Path) -> None:
    process = begun(tmp_path / "run", "--devices", 2)
    family = children(process.pid)
    assert len(family) >= 2
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT and "Traceback" not in err
    assert ended(family)
    assert status(tmp_path / "run") == "failed: interrupted"
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()


@LINUX
def test_a_killed_process_and_a_stray_environment(tmp_path: Path) -> None:
    """One of two processes is killed, in what looks like a job of two tasks on a cluster."""
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    process = begun(tmp_path / "run", "--devices", 2, env={**slurm, "RANK": "3", "LOCAL_RANK": "1"})
    family = children(process.pid)
    ranks = [pid for pid in family if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(ranks[1], signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "Traceback" not in err
    assert "training" in out, "a stray RANK makes nothing mute"
    assert "one of the 2 training processes was killed (SIGKILL)" in " ".join(err.split())
    assert ended(family)
    assert status(tmp_path / "run").startswith("failed: one of the 2 training processes was killed")


def test_a_lost_reader_of_the_progress_ends_nothing(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "equipoise", "train", *SMALL, "--epochs", "3", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    with process.stderr as errors:
        err = errors.read()
    assert process.wait(timeout=60) == 0, err
    assert status(tmp_path / "run") == "finished"


def test_signals_are_granted_where_it_suits_and_then_at_once() -> None:
    stop = Stop()
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with listening(stop):
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        signal.raise_signal(signal.SIGTERM)  # the copy that a scheduler sends
        with pytest.raises(Interrupted, match="SIGTERM"):
            time.sleep(10)  # a step that takes too long
    with pytest.raises(Interrupted) as ended, listening(None):
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.signal == signal.SIGTERM and isinstance(ended.value, KeyboardInterrupt)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    heard: list[int] = []
    mine = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with listening(Stop()):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, mine)
    assert heard == [signal.SIGTERM], "a handler of the caller's own is left alone"


TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}


def test_the_environment_is_that_of_torchrun_or_none() -> None:
    assert World.from_environment({}) is None
    assert World.from_environment({"RANK": "3", "LOCAL_RANK": "1"}) is None
    assert World.from_environment({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}) is None
    assert World.from_environment(TORCHRUN) == World(1, 4, 1, 4, "host", 29500)
    assert World.from_environment({**TORCHRUN, "LOCAL_WORLD_SIZE": "2"}) == World(1, 4, 1, 2, "host", 29500)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"WORLD_SIZE": "abc"},
            "WORLD_SIZE=abc, expected a whole number: start the training by torchrun",
        ),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE=999"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE=2 but no LOCAL_RANK and no MASTER_ADDR and no MASTER_PORT"),
        ({**TORCHRUN, "RANK": "x"}, "RANK=x, expected a whole number"),
        ({**TORCHRUN, "RANK": "4"}, "RANK=4 but WORLD_SIZE=4"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(variables: dict[str, str], message: str) -> None:
    with pytest.raises(EquipoiseError, match=message):
        World.from_environment(variables)


def test_more_devices_than_there_are_is_refused_before_anything_starts(tmp_path: Path, capsys: object) -> None:
    with pytest.raises(EquipoiseError, match=r"devices = 4000: this machine has \d+ processors?; expected at most"):
        require_devices(4000, "cpu")
    began = time.monotonic()
    assert main(["train", *SMALL, "--devices", "4000", "--out", str(tmp_path / "run")]) == 2
    assert "devices = 4000: this machine has" in " ".join(capsys.readouterr().err.split())
    assert time.monotonic() - began < 30 and not (tmp_path / "run").exists()


def test_resume_alone_needs_a_run_and_its_method(tmp_path: Path, capsys: object) -> None:
    out = str(tmp_path / "run")
    assert main(["train", *SMALL, "--epochs", "1", "--out", out]) == 0
    for words, told in (
        (["--resume"], "--resume needs the run that it continues: add --out"),
        (["--resume", "--out", str(tmp_path / "other")], "to resume: start it without --resume"),
        (["pgd", "--eps", "0.1", "--resume", "--out", out], "was started with method = udp, not pgd"),
        (["--resume", "--out", out, "--eps", "0.2"], "it was started with eps = 0.1, not 0.2"),
        (["--resume", "--out", out, "--seed", "4"], "it was started with seed = 0, not 4"),
    ):
        capsys.readouterr()
        assert main(["train", *words]) == 2, words
        assert told in " ".join(capsys.readouterr().err.split()), words
    assert main(["train", *SMALL, "--out", ""]) == 2

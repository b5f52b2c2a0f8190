"""evaluate with AutoAttack, verify, merge: as typed, as stopped and continued, as divided, and what is refused."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from equipoise.cli import main
from equipoise.cli.evaluating import _from_here
from equipoise.results.records import digest, load

pytestmark = pytest.mark.unchecked

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


def line(words: Iterable[object]) -> list[str]:
    """The words, of every flag only the last: `WORDS`, and what replaces some of them."""
    options: dict[str, list[str]] = {}
    flag = ""
    for word in map(str, words):
        if word.startswith("--"):
            flag = word.partition("=")[0]
            options.pop(flag, None)
        options.setdefault(flag, []).append(word)
    return [word for option in options.values() for word in option]


def ask(*words: object) -> int:
    return main(line(words))


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


def test_few_changed_features_as_typed(mine, capsys):
    words = "evaluate own_nets:make --data my.npz --attacks sigma-zero60 pdpgd60 --norm l0 --eps 1 2 --out l0.json"
    assert ask(*words.split()) == 0
    record = load("l0.json")
    assert [(r.norm, r.eps) for r in record.results[1:]] == [("l0", 1.0)] * 3 + [("l0", 2.0)] * 3
    few, more = (record.results[i] for i in (1, 4))
    assert 0 <= more.accuracy < few.accuracy < 1 and set(more.distance) - {None, 0.0} == {1.0, 2.0}
    capsys.readouterr()
    assert ask("verify", "l0.json") == 0
    assert "l0.json holds:" in capsys.readouterr().out
    assert ask("report", "l0.json", "--out", "page.html") == 0 and "L0" in Path("page.html").read_text()
    assert ask(*words.replace("sigma-zero60", "pgd").replace("l0.json", "no.json").split()) == 2
    assert "unknown norm 'l0'" in capsys.readouterr().err


def test_newer_attacks_as_typed(mine):
    words = "evaluate own_nets:make --data my.npz --attacks pma20 apgd-fgsm10 --norm linf --eps 0.05 --out a.json"
    assert ask(*words.split()) == 0 and ask("verify", "a.json") == 0
    assert [r.attack for r in load("a.json").results] == ["clean", "pma20", "apgd-fgsm10", "worst case"]
    words = "evaluate own_nets:make --data my.npz --attacks ddn pdpgd200 --norm l2 --eps 0.25 --out b.json"
    assert ask(*words.split()) == 0 and ask("verify", "b.json") == 0
    assert 0 < load("b.json").results[-1].accuracy < 1


def test_a_record_of_the_first_version_still_holds(mine, capsys):
    for file in (Path(__file__).parent / "records").iterdir():
        shutil.copy(file, mine)
    record = load("first-version.json")
    assert not record.provenance.options and record.provenance.command.startswith("equipoise evaluate own_nets:make")
    assert ask("verify", "first-version.json") == 0
    assert "first-version.json holds: 18 claims" in capsys.readouterr().out
    words = "evaluate own_nets:make --data my.npz --attacks apgd-ce5 --eps 0.05 --examples 10 --out first-version.json"
    assert ask(*words.split()) == 0
    assert "finished before: first-version.json" in capsys.readouterr().out


def test_verify_reads_options_not_the_text_of_a_command(mine, capsys):
    words = "evaluate own_nets:make --data my.npz --attacks fgsm --eps 1/20 --examples 10 --out aa.json"
    assert ask(*words.split()) == 0
    data = json.loads(Path("aa.json").read_text())
    assert data["provenance"]["options"] | {"eps": [0.05], "attacks": ["fgsm"]} == data["provenance"]["options"]
    data["provenance"]["command"] = "equipoise evaluate nothing --like 'this"
    Path("aa.json").write_text(json.dumps(data))
    assert ask("verify", "aa.json") == 0
    for key, value, told in (
        ("eps", [0.06], "its attacks, with their settings, are not those that its command asks for"),
        ("seed", 4, "its command asks for seed 4, it has 0"),
        ("eps", 0.05, "aa.json is damaged: eps: expected list, got number"),
    ):
        changed = json.loads(json.dumps(data))
        changed["provenance"]["options"][key] = value
        Path("aa.json").write_text(json.dumps(changed))
        capsys.readouterr()
        assert ask("verify", "aa.json") == 2
        assert told in "".join(capsys.readouterr())


def as_typed(*words: object) -> str:
    """What a process of its own prints, without the checks of annotations that these tests add."""
    env = {"PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "equipoise.cli", *line(words)]
    return subprocess.run(command, env=os.environ | env, check=True, capture_output=True, text=True).stdout


def test_autoattack_and_cascade_as_typed(mine):
    words = shlex.split("--data my.npz --eps 0.02 --examples 8 --out aa.json --robustbench rb.json")
    out = as_typed("evaluate", "own_nets:make", "--attacks", "autoattack", *words)
    assert "apgd-ce" in out and "fab-t" in out and "accuracy left" in out and "digest" in out
    entry = json.loads((mine / "rb.json").read_text())
    standard = load("aa.json").results[1]
    assert entry["autoattack_acc"] == f"{100 * standard.accuracy:.2f}" and entry["threat_model"] == "Linf"
    assert entry["clean_acc"] == "100.00" and entry["eps"] == 0.02 and entry["n_examples"] == 8
    as_typed("evaluate", "own_nets:make", "--attacks", "cascade", *words, "--norm", "l2", "--overwrite")
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


@pytest.mark.timeout(300)
def test_a_ray_cluster_makes_the_same_record(mine, capsys):
    pytest.importorskip("ray", reason="a cluster needs Ray")
    assert ask(*WORDS, "--out", "one.json") == 0
    assert ask(*WORDS, "--address", "auto", "--out", "ray.json") == 2
    assert "--address needs --processes" in capsys.readouterr().err
    here = {"PYTHONPATH": os.pathsep.join(map(str, [mine, *sys.path])), "OMP_NUM_THREADS": "1"}
    words = line([*WORDS, "--processes", "2", "--address", "local", "--out", "ray.json"])
    done = subprocess.run(
        [sys.executable, "-m", "equipoise.cli", *words],
        env=os.environ | here | {"RAY_worker_niceness": "0"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert digest(load("one.json")) == digest(load("ray.json")) and not list(mine.glob("ray.*of*"))


def test_a_killed_evaluation_is_resumed_to_the_same_record(mine, capsys):
    words = line([*WORDS, "--attacks", "square600", "--batch-size", "4"])
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
        ([*WORDS, "--shard", f"{'9' * 5000}/1"], "expected i/n with i from 1 to n"),
        ([*WORDS, "--shard", f"1/{'9' * 5000}"], "expected i/n with i from 1 to n"),
        ([*WORDS, "--shard", "1/2", "--processes", "2"], "--processes 2 and --shard 1/2 both divide the work"),
        ([*WORDS, "--processes", "0"], "--processes = 0: expected an integer >= 1"),
        ([*WORDS, "--shard", "9/9"], "shard 9/9 is empty: the samples make 5 blocks"),
        (["evaluate", "own_nets:make", "--data", "my.npz", "--attacks", "autoatack", "--eps", "0.1"], "autoattack"),
        ([*WORDS, "--attacks", "autoattack", "--steps", "3"], "not for autoattack"),
        (["verify", "missing.json"], "cannot read missing.json"),
        (["verify", "my.npz"], "my.npz is not JSON"),
        (["merge", "missing.json"], "cannot read missing.json"),
        (["merge"], "records"),
        (["verfy", "aa.json"], "did you mean 'verify'"),
        ([*WORDS, "--expected-clean-accuracy", "85"], "reported = 85"),
        (["evaluate", "own_nets.py", "--data", "my.npz"], "name the function in it that makes the model, as own_nets:"),
        (["evaluate", "my.npz", "--data", "my.npz"], "as package.module:function --checkpoint my.npz"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(mine, words, message, capsys):
    before = sorted(mine.iterdir())
    code = ask(*words)
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


def in_processes(*words: object) -> "subprocess.CompletedProcess[str]":
    """`WORDS` in two processes, with an exit code and what was said."""
    env = {"PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "equipoise.cli", *line([*WORDS, "--processes", "2", "--out", "aa.json", *words])]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True)


def dying(who: str, how: str) -> str:
    """The source of `own_nets`, whose model cannot be made in the process of that shard."""
    return f"import multiprocessing, os, time\n{OWN}".replace(
        "def make():", f"def make():\n    if {who!r} == multiprocessing.current_process().name:\n        {how}"
    )


def test_processes_continue_only_what_was_asked(mine, capsys):
    finished = mine / "aa.json.partial" / "1of2.json"
    how = f"while not os.path.exists({str(finished)!r}): time.sleep(0.01)\n        os._exit(7)"
    (mine / "own_nets.py").write_text(dying("2/2", how))
    done = in_processes()
    assert (done.returncode, done.stderr) == (2, "error: process 2/2 ended with code 7.\n")
    assert finished.is_file() and not (mine / "aa.json").exists()
    (mine / "own_nets.py").write_text(dying("1/2", "os._exit(9)"))  # which must not be needed any more
    for words, message in (
        ([], "an unfinished evaluation lies in aa.json.partial: continue it with --resume"),
        (["--resume", "--eps", "0.07"], "aa.json.partial is of another evaluation, with other attacks: give the same"),
        (["--resume", "--processes", "3"], "with other processes: give the same"),
        (["--resume", "--no-images", "--seed", "4"], "with other seed, images: give the same"),
    ):
        assert ask(*WORDS, "--processes", "2", "--out", "aa.json", *words) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    more = ["--resume", "--robustbench=rb.json"]
    done = in_processes(*more)
    assert done.returncode == 0, done.stderr
    record = load("aa.json")
    assert record.provenance.command == shlex.join(["equipoise", *WORDS, "--processes", "2", "--out", "aa.json", *more])
    assert not (mine / "aa.json.partial").exists() and (mine / "rb.json").is_file()
    assert ask(*WORDS, "--out", "one.json") == 0
    assert digest(record) == digest(load("one.json"))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise ValueError('boom')", "error: net 'own_nets:make' could not be made: ValueError: boom.\n"),
        ("from equipoise.core.errors import EquipoiseError as E; raise E('no luck.')", "error: no luck.\n"),
    ],
)
def test_the_first_process_that_fails_ends_the_others(mine, how, message):
    slow = "    if multiprocessing.current_process().name == '2/2':\n        time.sleep(100)\n    g ="
    (mine / "own_nets.py").write_text(dying("1/2", how).replace("    g =", slow))
    begin = time.monotonic()
    done = in_processes()
    assert (done.returncode, done.stderr) == (2, message) and time.monotonic() - begin < 60


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGTERM, 2), (signal.SIGKILL, 2), (signal.SIGINT, 1)])
def test_a_signal_ends_all_processes_and_leaves_what_can_be_continued(mine, number, processes):
    noted = f"open({str(mine)!r} + '/pids', 'a').write(str(os.getpid()) + ' ')"
    (mine / "own_nets.py").write_text(f"import os, sys\n{OWN}".replace("def make():", f"def make():\n    {noted}"))
    words = line([*WORDS, "--attacks", "square600", "--batch-size", "4", "--processes", processes, "--out", "aa.json"])
    env = {"PYTHONPATH": os.pathsep.join(map(str, [mine, *sys.path])), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "equipoise.cli", *words],
        env=os.environ | env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 100
    running, pids = (1 if processes == 1 else 3), []
    while len(pids) < running or not list((mine / "aa.json.partial").rglob("block-*.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
        pids = [int(pid) for pid in (mine / "pids").read_text().split()] if (mine / "pids").is_file() else []
    process.send_signal(number)
    begin = time.monotonic()
    said = process.communicate()[1]
    again = shlex.join([*words, "--resume"])
    if number != signal.SIGKILL:
        told, again = said.split("; continue with: equipoise ")
        assert process.returncode == 128 + number
        assert re.fullmatch(r"interrupted; \d+ of 10 blocks.* (is|are) kept", told)
    while any(_lives(pid) for pid in pids):
        assert time.monotonic() - begin < 5
        time.sleep(0.05)
    as_typed(*shlex.split(again))
    assert load("aa.json").results[0].n == 40
    assert not list(mine.glob("aa.json.*")) and not list(mine.glob(".*"))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--robustbench", "aa.json"], "--robustbench aa.json would overwrite the record: choose another"),
        (["--robustbench", "./aa.json"], "would overwrite the record"),
        (["--robustbench", "aa.images.npz"], "aa.images.npz would overwrite the adversarial images: choose another"),
        (["--robustbench", "my.npz/rb.json"], "cannot write into my.npz: "),
        (["--attacks", "square2", "apgd-ce2", "--norm", "l1"], "steps = 2: too few to approach the ball"),
        (["--corruptions", "fog"], "corruptions need images"),
        (["--attacks", "pgd", "pgd40"], "pgd and pgd40 are the same attack: name one of them."),
        (["--eps", "1e300", "--norm", "l1"], "eps = 1e+300 is too large to compute with"),
        (["--attacks", "pgd2", "--step-size", "1e300"], "step_size = 1e+300 is too large to compute with"),
        (["--robustbench", "."], "--robustbench . is a directory: expected a file"),
        (["--robustbench", "rb.json", "--attacks", "clean"], "a RobustBench entry needs an attack"),
        (["--robustbench", "rb.json", "--shard", "1/2"], "--robustbench is of a whole evaluation, not of shard 1/2"),
        (["--processes", "6"], "shard 6/6 is empty: the samples make 5 blocks"),
        (["--processes", "2", "--batch-size", "0"], "batch-size = 0: expected an integer >= 1"),
        (["--processes", "2", "--examples", "-1"], "examples = -1: expected an integer >= 0"),
    ],
)
def test_what_could_not_be_written_is_refused_before_the_work(mine, words, message, capsys):
    before = sorted(mine.iterdir())
    assert ask(*WORDS, "--out", "aa.json", *words) == 2
    assert message in capsys.readouterr().err and sorted(mine.iterdir()) == before


def test_the_usual_places_tell_evaluations_apart(mine, capsys):
    assert (
        ask("train", "standard", "--data", "digits", "--epochs", "1", "--out", "run", "--evaluate-examples", "0") == 0
    )
    asked = {
        "run --attacks clean": "run/evaluation-clean-linf.json",
        "run --attacks fgsm pgd2 --eps 0.1 0.05": "run/evaluation-fgsm-pgd2-linf-0.05-0.1.json",
        "run --attacks fgsm pgd2 --eps 0.2": "run/evaluation-fgsm-pgd2-linf-0.2.json",
        "run --attacks fgsm --eps 0.2 --norm l2": "run/evaluation-fgsm-l2-0.2.json",
        "run --attacks fgsm --eps 0.2 --weights last": "run/evaluation-fgsm-linf-0.2-last.json",
        "own_nets:make --data my.npz --attacks fgsm --eps 8/255": "eval-own_nets-make-my-fgsm-linf-0.0313725.json",
        "own_nets:other --data my.npz --attacks fgsm --eps 8/255": "eval-own_nets-other-my-fgsm-linf-0.0313725.json",
        "own_nets:make --data my.npz --attacks fgsm --eps .1 --shard 1/2 --batch-size 8": (
            "eval-own_nets-make-my-fgsm-linf-0.1-1of2.json"
        ),
        "own_nets:make --data my.npz --attacks fgsm --eps .1 --shard 2/2 --batch-size 8": (
            "eval-own_nets-make-my-fgsm-linf-0.1-2of2.json"
        ),
    }
    with Path("own_nets.py").open("a") as source:
        source.write("\nother = make\n")
    shutil.rmtree("__pycache__", ignore_errors=True)
    sys.modules.pop("own_nets", None)
    for words, place in asked.items():
        assert ask("evaluate", *words.split(), "--examples", "20") == 0 and Path(place).is_file(), words
    halves = sorted(mine.glob("*of2.json"))
    assert ask("merge", *halves) == 0 and Path("eval-own_nets-make-my-fgsm-linf-0.1.json").is_file()


def test_a_finished_record_is_kept_or_answers(mine, capsys):
    assert ask(*WORDS, "--out", "aa.json") == 0
    content = Path("aa.json").read_bytes()
    capsys.readouterr()
    for more in ([], ["--resume"], ["--processes", "2"], ["--robustbench", "rb.json", "--eps", "0.05"]):
        assert ask(*WORDS, "--out", "aa.json", *more) == 0
        assert "finished before: aa.json, digest" in capsys.readouterr().out
    assert Path("rb.json").is_file()
    Path("rb.json").write_text("mine")
    assert ask(*WORDS, "--out", "aa.json", "--robustbench", "rb.json") == 2
    assert "rb.json exists already, with other content: add --overwrite" in capsys.readouterr().err
    for more, told in (
        (["--eps", "0.1"], "apgd-ce5 linf 0.05: present before, absent now"),
        (["--seed", "1"], "seed: 0 before, 1 now"),
        (["--seed", "1", "--processes", "2"], "seed: 0 before, 1 now"),
        (["--no-images", "--resume"], "images: True before, False now"),
    ):
        assert ask(*WORDS, "--out", "aa.json", *more) == 2
        said = capsys.readouterr().err
        assert told in said and "add --overwrite to replace it, or choose another place with --out" in said
    assert Path("aa.json").read_bytes() == content and Path("rb.json").read_text() == "mine"
    assert not Path("aa.json.partial").exists()
    assert ask(*WORDS, "--out", "aa.json", "--seed", "1", "--overwrite", "--robustbench", "rb.json") == 0
    assert load("aa.json").provenance.seed == 1 and Path("rb.json").read_text() != "mine"
    for i in (1, 2):
        assert ask(*WORDS, "--shard", f"{i}/2", "--out", f"{i}.json") == 0
    capsys.readouterr()
    assert ask("merge", "1.json", "2.json", "--out", "aa.json") == 2
    assert "seed: 1 before, 0 now" in capsys.readouterr().err
    assert ask("merge", "1.json", "2.json", "--out", "aa.json", "--overwrite") == 0
    assert load("aa.json").provenance.seed == 0
    assert ask("merge", "1.json", "2.json") == 2
    assert "say where to write the whole record, with --out" in capsys.readouterr().err


def test_the_time_that_is_left_follows_from_the_work_of_this_process():
    seen = []
    report = _from_here(lambda what, done, total: seen.append((what, done, total)))
    for done in (30, 35, 40):
        report("pgd", done, 40)
    assert seen == [("pgd", 0, 10), ("pgd", 5, 10), ("pgd", 10, 10)]

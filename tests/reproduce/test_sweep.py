"""Sweeps: every task once, in order, resumed after any end, with failures that stop nothing else."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import nn

from equipoise import data, methods
from equipoise.core.errors import EquipoiseError
from equipoise.evaluation import evaluate_dataset, suite
from equipoise.nets import build, registry
from equipoise.reproduce import (
    Call,
    Cell,
    Evaluated,
    Experiment,
    MeasureTask,
    Net,
    Part,
    Plan,
    PublishedValue,
    Setting,
    StudyTask,
    Table,
    Task,
    Training,
    call,
    clean,
    cost,
    experiment,
    found,
    names,
    sweep,
    sweep_folder,
    workers,
)
from equipoise.reproduce.experiment import cells
from equipoise.reproduce.running import result_in, run
from equipoise.reproduce.stand_in import KINDS, stand_in
from equipoise.results.findings import Study
from equipoise.results.records import Evaluation, Run, digest
from equipoise.training import Recipe, fit, load_run

pytestmark = [
    pytest.mark.unchecked,
    pytest.mark.filterwarnings("ignore::equipoise.core.errors.EquipoiseWarning"),  # so little trains nothing
]

autoattack = import_module("equipoise.attacks.chain")

UDP = call(methods.udp, eps=0.1, step_size=0.02, steps=5)


def training(seed: int = 0, epochs: int = 2, samples: int | None = 200) -> Training:
    return Training(UDP, Net("mlp", {"widths": [16]}), "digits", Recipe(epochs=epochs, seed=seed), samples)


def evaluated(seed: int = 0, epochs: int = 2, samples: int | None = 200) -> Evaluated:
    return Evaluated(training(seed, epochs, samples), ["pgd5"], [0.1], examples=40)


def toy(*tasks: Task) -> Experiment:
    """A table with a row per task."""
    rows = [Cell(str(i), "clean", [task], clean, paper=50.0) for i, task in enumerate(tasks)]
    return Experiment("toy", "A toy.", "nowhere", lambda variant: [Table("toy", rows)])


def plan(seeds: int = 2, **options: int) -> Plan:
    return toy(*(evaluated(seed, **options) for seed in range(seeds))).plan()


def records(plan: Plan, setting: Setting) -> list[str]:
    """What the sweep found, to the last bit, without times and places."""
    found = []
    for task in plan.tasks():
        place, record = setting.folder_of(task), result(task, setting)
        if isinstance(record, Evaluation):
            found.append(digest(replace(record, target="")))
        else:
            weights = [(place / f"{which}.safetensors").read_bytes() for which in ("best", "last")]
            found.append((place / "metrics.jsonl").read_text() + str([hash(w) for w in weights]))
    return found


def result(task: Task, setting: Setting) -> Run | Evaluation | Study:
    return result_in(task, setting.folder_of(task))


@pytest.fixture
def here(tmp_path) -> Setting:
    return Setting(tmp_path / "out", command="a test")


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Progress is looked at after every step."""
    monkeypatch.setattr(workers, "_INTERVAL", 0.0)


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_a_transferred_attack_is_made_on_the_weights_that_are_asked_for(here):
    """Whatever lies in the proxy's best weights, here those of the target, its last ones count."""
    of, proxy = training(0, epochs=1), training(1, epochs=1)
    moved = Evaluated(of, ["pgd5"], [0.3], examples=100, weights="last", proxies=[proxy])
    own = replace(moved, proxies=())
    sweep.sweep(toy(moved, own).plan(), here, workers=1)
    first, white_box = result(moved, here), result(own, here)
    shutil.rmtree(here.folder_of(moved))
    shutil.copy(here.folder_of(of) / "last.safetensors", here.folder_of(proxy) / "best.safetensors")
    sweep.sweep(toy(moved, own).plan(), here, workers=1)
    again = result(moved, here)
    assert [one.correct for one in again.results] == [one.correct for one in first.results]
    assert again.results[-1].correct != white_box.results[-1].correct, "or the weights would not matter"


def test_every_task_is_done_once_and_never_again(here, monkeypatch):
    done = []
    monkeypatch.setattr(workers, "run", lambda task, *rest: (done.append(task), run(task, *rest))[1])
    outcome = sweep.sweep(plan(), here, workers=1)
    assert len(outcome.finished) == len(done) == 4 and not outcome.failed and not outcome.not_begun
    assert sorted(map(repr, done)) == sorted(map(repr, plan().tasks()))
    assert all(done.index(one.of) < done.index(one) for one in done if isinstance(one, Evaluated))
    assert sweep.sweep(plan(), here, workers=1).finished == outcome.finished
    assert len(done) == 4
    (here.folder_of(training(1)) / "done.json").unlink()
    sweep.sweep(plan(), here, workers=1)
    assert done[4:] == [training(1)]


def test_what_is_finished_in_another_folder_is_taken_from_there(here, tmp_path, monkeypatch):
    """Only what is finished: the training of the second evaluation lies there too, begun and no more."""
    sweep.sweep(plan(1), here, workers=1)
    begun = here.folder_of(training(1))
    begun.mkdir()
    (begun / "progress.json").write_text("{}")
    done = []
    monkeypatch.setattr(workers, "run", lambda task, *rest: (done.append(task), run(task, *rest))[1])
    other = replace(here, folder=tmp_path / "other")
    copytree = sweep_folder.copytree

    def killed(found, scratch, **options):
        copytree(found, scratch, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep_folder, "copytree", killed)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(plan(2), other, workers=1, reuse=[here.folder])
    assert not sweep_folder.is_done(other.folder_of(training(0))) and list(other.folder.glob("*.copying"))
    monkeypatch.setattr(sweep_folder, "copytree", copytree)
    outcome = sweep.sweep(plan(2), other, workers=1, reuse=[here.folder])
    assert len(outcome.finished) == 4 and done == [training(1), evaluated(1)]
    assert records(plan(1), other) == records(plan(1), here) and not list(other.folder.glob("*.copying"))


def test_folders_to_take_from_are_refused_by_name(here, tmp_path, monkeypatch):
    with pytest.raises(EquipoiseError, match=r"nowhere holds no experiment to take finished tasks from: expected the"):
        sweep.sweep(plan(1), here, workers=1, reuse=[tmp_path / "nowhere"])
    assert not here.folder.exists()
    sweep.sweep(plan(1), here, workers=1)
    other = replace(here, folder=tmp_path / "other")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sweep_folder, "copytree", full)
    with pytest.raises(EquipoiseError, match=r"cannot copy .*: No space left on device; free some space and run the"):
        sweep.sweep(plan(1), other, workers=1, reuse=[here.folder])
    monkeypatch.undo()
    assert len(sweep.sweep(plan(1), other, workers=1, reuse=[here.folder]).finished) == 2


def test_what_is_found_is_what_the_parts_find_by_hand(here):
    sweep.sweep(plan(1), here, workers=1)
    digits, one = data.load("digits"), training()
    net = build("mlp", digits.shape, classes=10, seed=0, widths=(16,))
    run = fit(methods.udp(eps=0.1, step_size=0.02, steps=5), net, digits.limit(200, 0), one.recipe)
    kept = result(one, here)
    assert (kept.last, kept.best) == (run.last, run.best)
    best, _ = load_run(here.folder_of(one))
    expected = evaluate_dataset(best, digits, suite(["pgd5"], [0.1]), target="x", examples=40, seed=0)
    other = result(evaluated(), here)
    assert [one.correct for one in other.results] == [list(one.correct) for one in expected.results]


def test_the_folder_is_readable_without_the_library(here):
    sweep.sweep(plan(1), here, workers=1)
    about = read(here.folder / "experiment.json")
    assert (about["name"], about["scale"], about["variant"], about["status"]) == ("toy", 1.0, "corrected", "finished")
    assert about["data"]["digits"]["sha256"] == data.load("digits").sha256
    assert [entry["kind"] for entry in about["tasks"]] == ["training", "evaluation"]
    assert about["tasks"][1]["needs"] == [about["tasks"][0]["folder"]]
    for entry in about["tasks"]:
        place = here.folder / entry["folder"]
        assert read(place / "task.json")["label"] == entry["label"]
        done = read(place / "done.json")
        assert done["seconds"] > 0 and done["provenance"]["command"] == "a test" and done["sittings"] == 1
        assert not (place / "progress.json").exists()
    words = read(here.folder / about["tasks"][0]["folder"] / "task.json")["task"]
    assert words["method"] == {"call": "equipoise.training.methods:udp", "eps": 0.1, "step_size": 0.02, "steps": 5}


def test_the_progress_is_that_of_the_grid(here):
    seen: list[sweep.Progress] = []
    sweep.sweep(plan(), here, workers=1, report_progress=seen.append)
    assert [now.total for now in seen] == [4] * len(seen)
    assert [now.done for now in seen] == sorted(now.done for now in seen) and seen[-1].done == 4
    assert seen[-1].remaining == 0 and all(now.remaining > 0 for now in seen if now.done < 3)
    shares = [share for now in seen for label, share in now.running if label == training().label]
    assert shares == sorted(shares) and 0 < max(shares) <= 1
    assert {label for now in seen for label, _ in now.running} == {task.label for task in plan().tasks()}


class Stop:
    """Ctrl-C once a training is past its first epoch."""

    def __call__(self, now: sweep.Progress) -> None:
        if any(0.5 <= share < 1 and label.startswith("udp") for label, share in now.running):
            raise KeyboardInterrupt


def test_an_interrupted_sweep_continues_to_the_same_numbers(here, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(plan(1), here, workers=1, report_progress=Stop())
    assert read(here.folder / "experiment.json")["status"] == "interrupted"
    place = here.folder_of(training())
    assert 0.5 <= read(place / "progress.json")["share"] < 1
    assert not (place / "done.json").exists()
    assert sweep.sweep(plan(1), here, workers=1).failed == {}
    assert read(place / "done.json")["sittings"] == 2
    whole = replace(here, folder=tmp_path / "whole")
    sweep.sweep(plan(1), whole, workers=1)
    assert records(plan(1), here) == records(plan(1), whole)


def test_a_second_sweep_on_the_folder_is_refused(here):
    said = []

    def second(now: sweep.Progress) -> None:
        with pytest.raises(EquipoiseError) as error:
            sweep.sweep(plan(1), here, workers=1)
        said.append(str(error.value))

    assert sweep.sweep(plan(1), here, workers=1, report_progress=second).failed == {}
    assert f"experiment.json is in use by process {os.getpid()} on " in said[0]


HELD = """
import os, sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1] + "/.experiment.json.lock")
lock.acquire()
open(sys.argv[1] + "/.experiment.json.owner", "w").write('{"pid": %d, "host": "here", "since": "then"}' % os.getpid())
print("held", flush=True)
time.sleep(100)
"""


def test_the_lock_of_a_process_that_was_killed_does_not_block(here):
    here.folder.mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HELD, str(here.folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(EquipoiseError, match=f"is in use by process {holder.pid} on here since then"):
        sweep.sweep(plan(1), here, workers=1)
    holder.kill()
    holder.communicate()
    assert sweep.sweep(plan(1), here, workers=1).failed == {}


def test_a_task_that_another_process_holds_is_left_to_it(here, monkeypatch):
    monkeypatch.setattr(workers, "_PATIENCE", 0.1)
    place = here.folder_of(training())
    place.mkdir(parents=True)
    with FileLock(place / "task.lock"):
        assert "is still held by process" in (workers.work(training(), here) or "")
    assert workers.work(training(), here) is None


def test_a_damaged_checkpoint_is_named_and_loses_nothing_else(here, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(plan(), here, workers=1, report_progress=Stop())
    begun = next(one for one in (training(0), training(1)) if (here.folder_of(one) / "checkpoint.safetensors").exists())
    place = here.folder_of(begun)
    content = (place / "checkpoint.safetensors").read_bytes()
    (place / "checkpoint.safetensors").write_bytes(content[: len(content) // 2])
    outcome = sweep.sweep(plan(), here, workers=1)
    (sentence,) = outcome.failed.values()
    assert list(outcome.failed) == [place] and len(outcome.finished) == 2 and len(outcome.not_begun) == 1
    assert f"{begun.label}: {place / 'checkpoint.safetensors'} is not a readable safetensors file" in sentence
    assert f"remove {place} and run the same command again" in sentence
    assert read(here.folder / "experiment.json")["status"] == "failed"
    for file in place.iterdir():
        file.unlink()
    assert sweep.sweep(plan(), here, workers=1).failed == {}
    whole = replace(here, folder=tmp_path / "whole")
    sweep.sweep(plan(), whole, workers=1)
    assert records(plan(), here) == records(plan(), whole)


def test_damaged_or_lost_weights_of_a_finished_training_are_named(here):
    assert workers.work(training(), here) is None
    place = here.folder_of(training())
    (place / "best.safetensors").write_bytes(b"")
    sentence = workers.work(evaluated(), here) or ""
    assert f"{place / 'best.safetensors'} is not" in sentence and f"; remove {place} and run" in sentence
    (place / "best.safetensors").unlink()
    sentence = workers.work(evaluated(), here) or ""
    assert f"cannot read {place / 'best.safetensors'}" in sentence and f"; remove {place} and run" in sentence


def test_a_full_disk_is_said_and_what_is_there_is_continued(here, monkeypatch):
    place, flush = here.folder_of(training(1)), os.fsync

    def full(file: int) -> None:
        if os.readlink(f"/proc/self/fd/{file}").startswith(f"{place}/.last.safetensors"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(file)

    monkeypatch.setattr(os, "fsync", full)
    outcome = sweep.sweep(plan(), here, workers=1)
    (sentence,) = outcome.failed.values()
    assert list(outcome.failed) == [place] and len(outcome.finished) == 2 and len(outcome.not_begun) == 1
    assert "last.safetensors: No space left on device; free some space and run the same command again" in sentence
    monkeypatch.undo()
    assert sweep.sweep(plan(), here, workers=1).failed == {}


def test_a_mistake_in_one_task_does_not_stop_the_others(here):
    broken = MeasureTask(call(failing), [training()], "Does it work?")
    outcome = sweep.sweep(toy(evaluated(1), broken).plan(), here, workers=1)
    (sentence,) = outcome.failed.values()
    assert len(outcome.finished) == 3 and "ZeroDivisionError: division by zero (the traceback is in" in sentence
    assert "ZeroDivisionError" in (here.folder_of(broken) / "error.txt").read_text()


def failing(*_: object) -> None:
    raise ZeroDivisionError("division by zero")


def test_a_library_that_changed_meanwhile_is_refused(here):
    assert "the library was changed since the sweep began" in (
        workers.work(training(), replace(here, code="old")) or ""
    )


def test_without_ray_a_cluster_is_refused(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EquipoiseError, match=r"Ray, which is not installed: pip install 'equipoise\[sweeps\]', or"):
        sweep.sweep(plan(), here, address="auto")


def test_a_folder_of_something_else_is_refused(here, tmp_path):
    sweep.sweep(plan(1), here, workers=1)
    with pytest.raises(EquipoiseError, match=r"holds toy at scale 1\.0, corrected: ask for the same to"):
        sweep.sweep(toy(evaluated()).plan(0.5), here, workers=1)
    with pytest.raises(EquipoiseError, match=r"holds toy at scale 1\.0"):
        sweep.sweep(replace(toy(evaluated()), name="other").plan(), here, workers=1)
    other = replace(here, sources={"digits": str(stand_in("digits", tmp_path))})
    with pytest.raises(EquipoiseError, match="was begun with another digits, digits of SHA-256"):
        sweep.sweep(plan(1), other, workers=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("Dear")
    with pytest.raises(EquipoiseError, match="is not empty and holds no experiment"):
        sweep.sweep(plan(1), Setting(tmp_path / "mine"), workers=1)
    with pytest.raises(EquipoiseError, match=r"letter\.txt is a file: expected a folder"):
        sweep.sweep(plan(1), Setting(tmp_path / "mine" / "letter.txt"), workers=1)
    with pytest.raises(EquipoiseError, match="workers = 0: expected"):
        sweep.sweep(plan(1), here, workers=0)


def test_the_record_of_an_earlier_version_is_continued_and_of_a_later_one_refused(here):
    """Versions before these options left them out of the record."""
    sweep.sweep(plan(1), here, workers=1)
    file = here.folder / "experiment.json"
    about = read(file)
    old = {name: value for name, value in about.items() if name not in ("seeds", "only", "examples", "changes")}
    file.write_text(json.dumps(old))
    assert len(sweep.sweep(plan(1), here, workers=1).finished) == 2
    assert {**read(file), "provenance": {}, "tasks": []} == {**about, "provenance": {}, "tasks": []}
    with pytest.raises(EquipoiseError, match=r"holds toy at scale 1\.0"):
        sweep.sweep(replace(plan(1), seeds=1), here, workers=1)
    file.write_text(json.dumps(about | {"schema": 2}))
    with pytest.raises(EquipoiseError, match=r"experiment\.json has schema 2, this version reads schema 1"):
        sweep.sweep(plan(1), here, workers=1)
    file.write_text(json.dumps(about | {"scale": "all"}))
    with pytest.raises(EquipoiseError, match=r"experiment\.json is damaged: scale: expected number, got text"):
        sweep.sweep(plan(1), here, workers=1)


# Several workers.

LONG = plan(2, epochs=6, samples=1400)
DRIVER = """
import sys
from pathlib import Path
from equipoise.reproduce import Setting, sweep
sys.path.insert(0, sys.argv[2])
import test_sweep
if __name__ == "__main__":
    outcome = sweep.sweep(test_sweep.LONG, Setting(Path(sys.argv[1])), workers=2)
    print(len(outcome.finished), *outcome.failed.values())
"""


def begun(folder: Path, since: set[int]) -> int:
    """The process of a running task that is not among those of `since`."""
    for state in folder.glob("*/progress.json"):
        try:
            pid = read(state)["pid"]
        except (OSError, ValueError):
            continue
        if pid not in since:
            return pid
    return 0


@pytest.mark.timeout(300)
def test_killed_workers_change_nothing(tmp_path):
    folder, dead, rng = tmp_path / "out", set(), random.Random(0)
    env = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder), str(Path(__file__).parent)],
        env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while len(dead) < 3:
        assert driver.poll() is None, driver.communicate()
        if pid := begun(folder, dead):
            time.sleep(rng.uniform(0, 0.5))
            dead.add(pid)
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    out, err = driver.communicate(timeout=200)
    assert (driver.returncode, out) == (0, "4\n"), err
    here = Setting(folder)
    assert sum(read(here.folder_of(task) / "done.json")["sittings"] for task in LONG.tasks()) > 4
    alone = Setting(tmp_path / "alone")
    sweep.sweep(LONG, alone, workers=1)
    assert records(LONG, here) == records(LONG, alone)


def test_a_task_that_always_loses_its_worker_fails_and_stops_no_other(here, tmp_path, monkeypatch):
    (tmp_path / "dying.py").write_text("import os, signal\ndef now(*_): os.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(workers, "_RETRIES", 1)
    dying = MeasureTask(Call("dying:now"), [training()], "Does it work?")
    outcome = sweep.sweep(toy(evaluated(), evaluated(1), dying).plan(), here, workers=2)
    assert list(outcome.failed) == [here.folder_of(dying)] and len(outcome.finished) == 4
    assert "its worker was lost 2 times (killed or out of memory)" in outcome.failed[here.folder_of(dying)]
    assert read(here.folder_of(dying) / "progress.json")["sittings"] == 2


CLUSTER = """
import subprocess, sys
import ray
ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=80 << 20)
address = ray.get_runtime_context().gcs_address
sys.exit(subprocess.run([sys.executable, "-c", sys.argv[1], *sys.argv[2:], address]).returncode)
"""
ON_A_CLUSTER = """
import sys
from pathlib import Path
from equipoise.reproduce import Setting, sweep
sys.path.insert(0, sys.argv[2])
import test_sweep
outcome = sweep.sweep(test_sweep.plan(), Setting(Path(sys.argv[1])), address=sys.argv[3])
print(len(outcome.finished), *outcome.failed.values())
"""


@pytest.mark.timeout(300)
def test_a_ray_cluster_finds_what_one_process_finds(tmp_path):
    pytest.importorskip("ray", reason="a cluster needs Ray")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    there, alone = Setting(tmp_path / "out"), Setting(tmp_path / "alone")
    words = [sys.executable, "-c", CLUSTER, ON_A_CLUSTER, str(there.folder), str(Path(__file__).parent)]
    driver = subprocess.run(words, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert driver.stdout.splitlines()[-1:] == ["4"], driver.stdout + driver.stderr
    sweep.sweep(plan(), alone, workers=1)
    assert records(plan(), there) == records(plan(), alone)


def test_a_cluster_that_is_not_there_is_refused(here):
    pytest.importorskip("ray", reason="a cluster needs Ray")
    with pytest.raises(EquipoiseError, match=r"there is no Ray cluster at nowhere \(.*leave out --address"):
        sweep.sweep(plan(), here, address="nowhere")
    assert read(here.folder / "experiment.json")["status"] == "interrupted"


# What things cost.


def test_passes_are_counted():
    """By hand: 0.9 of 1000 samples, a step of descent and (K + 1)/2 of ascent; validation after each epoch."""
    one = Training(call(methods.udp, eps=0.1, steps=9), Net("mlp"), "digits", Recipe(epochs=3), 1000)
    assert cost.passes(one, {"digits": 2000}) == pytest.approx(3 * (900 * (1 + 5) + 900 * 11))
    assert cost.passes(one, {"digits": 500}) == pytest.approx(3 * (450 * (1 + 5) + 450 * 11))
    whole = replace(one, method=call(methods.udp, eps=0.1, steps=9, mode="train"))  # the batch goes all the way
    assert cost.passes(whole, {"digits": 2000}) == pytest.approx(3 * (900 * (1 + 9) + 900 * 11))
    trades = replace(one, method=call(methods.trades, eps=0.1, steps=9))  # descends at two places
    assert cost.passes(trades, {"digits": 2000}) == pytest.approx(3 * (900 * (2 + 9) + 900 * 11))
    for method, each in ((call(methods.hein, directions=2), 1 + 2 * 2), (call(methods.hein), 1 + 2 * 10),
                         (call(methods.r2, halvings=3), 1 + 7 + 3 / 3),
                         (call(methods.ls_udp, eps=0.1, layer="fc1", steps=9), 1 + 5 / 20)):  # fmt: skip
        assert cost.passes(replace(one, method=method), {"digits": 2000}) == pytest.approx(3 * (900 * each + 900 * 11))
    strong = Evaluated(one, ["autoattack"], [0.1, 0.2], examples=300)
    assert cost.passes(strong) == pytest.approx(300 * (1 / 3 + 0.5 * 2 * (100 + 900 + 900 + 5000 / 3)))
    assert cost.passes(Evaluated(one, ["pgd10-8"], examples=300)) == pytest.approx(300 * (1 / 3 + 0.5 * 5 * 10))


def test_several_workers_share_the_cost_but_a_chain_stays_one():
    trainings = [StudyTask(name) for name in ("theorem", "due")]
    assert cost.work(trainings).by(1) == sum(cost.STUDIES[name].seconds for name in ("theorem", "due"))
    assert cost.work(trainings).by(2) == max(cost.STUDIES["due"].seconds, 0.5 * cost.work(trainings).by(1))
    chain = [training(), evaluated()]
    assert cost.work(chain).by(2) == pytest.approx(cost.work(chain).by(1))


def test_what_a_pass_costs_does_not_hang_on_what_else_the_machine_does(monkeypatch):
    """Time in which the thread does not compute, as when others have the processor, does not count."""
    look = cost.value_and_gradient

    def waiting(*arguments):
        time.sleep(0.2)
        return look(*arguments)

    monkeypatch.setattr(cost, "value_and_gradient", waiting)
    assert cost.per_pass(Net("mlp", {"widths": (31,)}), "digits") < 0.2 / 256


def test_a_larger_network_costs_more():
    costs = [cost.per_pass(Net(net), "mnist") for net in ("mlp", "lenet", "resnet20")]
    assert costs == sorted(costs) and costs[0] > 0


# Stand-ins.


@pytest.mark.parametrize("name", KINDS)
def test_stand_ins_have_the_shape_and_the_classes_and_can_be_learned(name, tmp_path):
    one = data.load(stand_in(name, tmp_path))
    kind = KINDS[name]
    assert one.name == f"synthetic-{name}" and one.shape == kind.shape and len(one.classes) == kind.classes
    means = np.stack([one.train.x[one.train.y == c].flatten(1).numpy().mean(0) for c in range(kind.classes)])
    x = one.test.x.flatten(1).numpy()
    nearest = ((x[:, None] - means[None]) ** 2).sum(2).argmin(1)
    assert (nearest == one.test.y.numpy()).mean() > 0.9
    assert one.sha256 == data.load(stand_in(name, tmp_path / "again")).sha256


def test_an_unknown_stand_in_is_refused(tmp_path):
    with pytest.raises(EquipoiseError, match="unknown dataset 'mnits': did you mean 'mnist'"):
        stand_in("mnits", tmp_path)


# All experiments, at a hundredth, on stand-ins, with narrow networks.


def narrow(shape: tuple[int, ...], classes: int = 10, **_: object) -> nn.Module:
    """In place of the residual networks: eight channels, with batch norm, and stages of the same names."""
    stem = nn.Sequential(nn.Conv2d(shape[0], 8, 5, stride=4), nn.BatchNorm2d(8), nn.ReLU())
    layers = {"stem": stem, "block8": nn.Conv2d(8, 8, 3, stride=4), "features": nn.Flatten()}
    size = nn.Sequential(OrderedDict(layers)).eval()(torch.zeros(1, *shape)).numel()
    return nn.Sequential(OrderedDict(layers | {"linear": nn.Linear(size, classes)}))


def shallow(shape: tuple[int, ...], classes: int = 10, **_: object) -> nn.Module:
    """In place of the others."""
    size = 4 * len(range(0, shape[1] - 4, 4)) ** 2
    conv, fc1 = nn.Sequential(nn.Conv2d(shape[0], 4, 5, stride=4), nn.ReLU(), nn.Flatten()), nn.Linear(size, 16)
    return nn.Sequential(OrderedDict({"conv": conv, "fc1": fc1, "relu": nn.ReLU(), "fc2": nn.Linear(16, classes)}))


def dropping(shape: tuple[int, ...], classes: int = 10, **_: object) -> nn.Module:
    return nn.Sequential(nn.Dropout(0.2), narrow(shape, classes))


RESIDUAL = dict.fromkeys(("preact-resnet18", "preact-resnet18-udp", "resnet18", "resnet20", "wide-resnet"), narrow)
SMALL = RESIDUAL | dict.fromkeys(("lenet", "lenet-wide", "cnn4", "small-cnn"), shallow) | {"resnet18-dropout": dropping}


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Setting:
    """One folder for all, so that what two experiments share is done once."""
    folder = tmp_path_factory.mktemp("all")
    return Setting(folder, sources={name: str(stand_in(name, folder / "data")) for name in KINDS})


def word(task: Task) -> str:
    """What a task does, whatever the data, the network, the radius and the seed."""
    match task:
        case Training():
            return task.method.function
        case Evaluated():
            return " ".join(sorted({re.sub(r"[\d.-]+", "", name) for name in task.attacks}))
        case MeasureTask():
            return task.function.function
    return task.label


def words(task: Task) -> set[str]:
    return {word(task)}.union(*(words(one) for one in task.needs))


SHORTER = {"accuracy_by_eps": {"radii": (10,)}, "accuracy_by_steps": {"steps": (8,)}, "behind_pgd": {"draws": 100}}


def shortened(task: Task) -> Task:
    """With measurements of fewer radii, steps and draws."""
    if isinstance(task, MeasureTask) and (fewer := SHORTER.get(task.function.function.partition(":")[2])):
        known = {name: value for name, value in task.function.options.items() if name not in fewer}
        return replace(task, function=replace(task.function, options=known | fewer))
    return task


def new(plan: Plan, seen: set[str]) -> Plan:
    """What does something of which nothing was seen yet, and in any case the first number or picture."""

    def kept(task: Task, first: bool) -> bool:
        fresh = not words(task) <= seen
        seen.update(words(task))
        return fresh or first

    parts: list[Part] = []
    for part in plan.parts:
        if isinstance(part, PublishedValue):
            if kept(part.task, not parts):
                parts.append(replace(part, task=shortened(part.task)))
            continue
        # The start of every line: what is shortened has no more.
        all_cells = part.cells if isinstance(part, Table) else [line.points[0][1] for line in part.lines]
        few = [one for i, one in enumerate(all_cells) if kept(one.tasks[0], not parts and i == 0)]
        if few:
            parts.append(Table(part.title, [replace(one, tasks=[shortened(one.tasks[0])]) for one in few]))
    return replace(plan, parts=parts)


SEEN: set[str] = set()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", names())
def test_every_experiment_runs_at_a_hundredth(name, shared, monkeypatch):
    monkeypatch.setattr(registry, "_NETS", registry._NETS | SMALL)
    for attack, budget in (("apgd", {"steps": 10}), ("apgd_t", {"steps": 10}), ("fab", {"steps": 5})):
        monkeypatch.setattr(autoattack, attack, partial(getattr(autoattack, attack), **budget))
    monkeypatch.setattr(autoattack, "square", partial(autoattack.square, queries=50))
    small = new(experiment(name).plan(0.01), SEEN)
    assert small.tasks()
    for task in small.tasks():
        if isinstance(task, StudyTask):
            continue  # their quick forms have tests of their own
        assert workers.work(task, shared) is None, task.label
    for part in small.parts:
        for cell in cells(part):
            mean = found(cell, [result(task, shared) for task in cell.tasks]).mean
            assert mean is not None and np.isfinite(mean)

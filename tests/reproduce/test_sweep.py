"""Sweeps: every task once, in order, resumed after any end, with failures that stop nothing else."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from filelock import FileLock
from sweeps import evaluated, plan, read, records, result, toy, training

from equipoise import data, methods
from equipoise.core.errors import EquipoiseError
from equipoise.evaluation import evaluate_dataset, suite
from equipoise.nets import build
from equipoise.reproduce import (
    Evaluated,
    MeasureTask,
    Setting,
    call,
    outcome,
    reproduction,
    sweep,
    sweep_folder,
    workers,
)
from equipoise.reproduce.running import run
from equipoise.reproduce.stand_in import stand_in
from equipoise.training import fit, load_run

pytestmark = [
    pytest.mark.unchecked,
    pytest.mark.usefixtures("often"),
    pytest.mark.filterwarnings("ignore::equipoise.core.errors.EquipoiseWarning"),  # so little trains nothing
]


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


def test_what_another_version_of_the_code_finished_is_taken_too_and_the_page_says_so(here, tmp_path, monkeypatch):
    old = replace(here, folder=tmp_path / "old")
    one, both = (toy(*(evaluated(seed) for seed in range(count))) for count in (1, 2))
    with monkeypatch.context() as before:
        for module in (sweep, workers):
            before.setattr(module, "code_version", lambda: "of-before")
        sweep.sweep(one.plan(), old, workers=1)
    monkeypatch.setattr(outcome, "experiment", lambda name: both)
    finished = sweep.sweep(both.plan(), here, workers=1, reuse=[old.folder]).finished
    assert len(finished) == 4 and {folder.parent for folder in finished} == {here.folder}
    assert not {folder.name for folder in finished} & {folder.name for folder in old.folder.iterdir()}
    (caution,) = reproduction(here.folder).cautions
    assert caution.startswith("Its tasks were computed by 2 versions of the code, at commits ")
    shutil.rmtree(here.folder)
    monkeypatch.setattr(outcome, "experiment", lambda name: one)
    monkeypatch.setattr(workers, "run", lambda task, *rest: pytest.fail(f"{task} was computed again"))
    sweep.sweep(one.plan(), here, workers=1, reuse=[old.folder])
    assert reproduction(here.folder).cautions == []


@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_what_an_earlier_version_finished_is_found_when_a_later_one_has_begun_there(place, here, tmp_path, monkeypatch):
    """The later one is interrupted before it finishes anything, if it is not the one that takes the results."""
    one = toy(evaluated(0)).plan()
    with monkeypatch.context() as before:
        for module in (sweep, workers):
            before.setattr(module, "code_version", lambda: "of-before")
        sweep.sweep(one, here, workers=1)

    def interrupted(*_):
        raise KeyboardInterrupt

    to = here
    if place == "elsewhere":
        to = replace(here, folder=tmp_path / "elsewhere")
        with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
            stopped.setattr(sweep, "_run_all", interrupted)
            sweep.sweep(one, here, workers=1)
    monkeypatch.setattr(workers, "run", lambda task, *rest: pytest.fail(f"{task} was computed again"))
    result = sweep.sweep(one, to, workers=1, reuse=[here.folder])
    assert len(result.finished) == 2 and not result.failed


def test_a_damaged_result_elsewhere_is_computed_again(here, tmp_path):
    sweep.sweep(plan(1), here, workers=1)
    other = replace(here, folder=tmp_path / "other")
    (here.folder_of(evaluated(0)) / "evaluation.json").write_text("{")
    outcome = sweep.sweep(plan(1), other, workers=1, reuse=[here.folder])
    assert len(outcome.finished) == 2 and result(evaluated(0), other).results


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

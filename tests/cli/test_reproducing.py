"""The commands experiments and reproduce, as they are typed."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from equipoise import methods
from equipoise import reproduce as experiments
from equipoise.cli import main, reproducing
from equipoise.cli.listing import Experiments
from equipoise.cli.parsing import parse
from equipoise.reproduce import (
    Cell,
    Chart,
    Evaluated,
    Experiment,
    Line,
    Net,
    PublishedValue,
    StudyTask,
    Table,
    Training,
    call,
    clean,
    names,
    outcome,
)
from equipoise.reproduce.sweep_folder import ExperimentRecord, write_record
from equipoise.results.costs import kept
from equipoise.results.records import load
from equipoise.results.reproduction import agreement
from equipoise.training import Recipe

pytestmark = [
    pytest.mark.unchecked,
    pytest.mark.filterwarnings("ignore::equipoise.core.errors.EquipoiseWarning"),  # so little trains nothing
]


def evaluated(seed: int, epochs: int = 100, data: str = "mnist") -> Evaluated:
    recipe = Recipe(epochs=epochs, batch_size=50, seed=seed)
    return Evaluated(
        Training(call(methods.standard), Net("mlp", {"widths": [8]}), data, recipe), ["clean"], examples=50
    )


def parts(variant: str, epochs: int = 100) -> list:
    one = evaluated(0, epochs)
    cells = [Cell("standard", "clean", [one], clean, 98.0), Cell("other", "clean", [evaluated(1, epochs)], clean)]
    curve = Chart("Accuracy", "eps", "%", [Line("standard", [(0.0, cells[0])])])
    return [Table("Accuracy of a toy", cells), curve, PublishedValue("A study", StudyTask("theorem"))]


TOY = Experiment("toy", "Clean accuracy of a toy", "nowhere", parts, quirks="shorter")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "cache"))
    stand_for_all(monkeypatch, TOY)
    return tmp_path


def stand_for_all(monkeypatch, one: Experiment) -> None:
    """Whatever the name of an experiment, this one is meant."""
    for place in (experiments, outcome):
        monkeypatch.setattr(place, "experiment", lambda name: one)


def ask(line: str) -> int:
    return main(shlex.split(line))


def test_every_experiment_is_listed_with_its_data_and_its_time(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "400")
    np.savez(tmp_path / "mine.npz")
    assert ask(f"experiments --scale 0.1 --workers 2 --data fashion-mnist={tmp_path}/mine.npz") == 0
    said = capsys.readouterr().out
    assert "Scale 0.1, 2 workers; time estimated on" in said
    for name in names():
        (line,) = [line for line in said.splitlines() if f" {name} " in line]
        needed = experiments.experiment(name).plan(0.1).datasets()
        assert all((f"{one} (missing)" in line) == (one not in ("fashion-mnist", "digits")) for one in needed)


def test_the_overview_is_that_of_the_experiments():
    listed = kept().experiments
    assert list(listed) == names()
    for name, one in listed.items():
        experiment = experiments.experiment(name)
        assert (one.title, one.source) == (experiment.title, experiment.source)
        assert list(one.data) == experiment.plan().datasets()
        assert all(0 < one.chain[v] <= one.seconds[v] for v in ("corrected", "as published"))


@pytest.mark.parametrize("scale", [1, 0.1])
def test_times_are_measured_here_on_request_alone(scale, capsys, monkeypatch):
    rate = {words: 10.0 for words in kept().rates}
    monkeypatch.setattr(experiments.cost, "_measured", lambda words: rate[words])
    monkeypatch.setenv("COLUMNS", "200")
    assert ask(f"experiments --scale {scale}") == 0
    estimated = capsys.readouterr().out
    assert ask(f"experiments --scale {scale} --measure --workers 3") == 0
    measured = capsys.readouterr().out
    assert f"Scale {scale}, 3 workers; time measured on this machine" in measured

    def seconds(said: str) -> float:
        (line,) = [line for line in said.splitlines() if " udp-table-2 " in line]
        number, unit = re.search(r"([\d.,]+) (min|h|days) ", line).groups()
        return float(number.replace(",", "")) * {"min": 60, "h": 3600, "days": 86400}[unit]

    assert seconds(measured) > 100 * seconds(estimated)


def test_the_numbers_stand_beside_the_papers(toy, capsys):
    assert ask("reproduce toy --scale 0.02 --synthetic --workers 1 --out out") == 0
    said = capsys.readouterr().out
    headline = "nowhere: Clean accuracy of a toy; at scale 0.02 of the paper's, corrected; SYNTHETIC data"
    assert said.count(headline) == 2
    assert "5 tasks; about " in said and "next: equipoise report out --out out.html" in said
    found = [load(path) for path in sorted(Path("out").glob("evaluation-*/evaluation.json"))]
    assert {one.data["name"] for one in found} == {"synthetic-mnist"}
    (mine,) = [one for one in found if one.provenance.seed == 0]
    line, in_the_chart = (line for line in said.splitlines() if line.startswith("│ standard"))
    assert in_the_chart.split("│")[2].strip() == "0"
    _, row, column, paper, ours, interval, agrees, _ = (word.strip() for word in line.split("│"))
    right = sum(mine.results[0].correct)
    low, high = binomtest(right, 10).proportion_ci(method="wilson")
    assert (row, column, paper, ours) == ("standard", "clean", "98", f"{10 * right:.3g}")
    assert interval == f"[{100 * low:.3g}, {100 * high:.3g}]"
    assert agrees == agreement((100 * low, 100 * high), 98.0, 0.0, 2.0)
    (kept,) = Path("out").glob("study-*/study.json")
    kept = json.loads(kept.read_text())
    assert kept["quick"] and kept["seconds"] > 0
    assert "mean decision boundary" in said or "measured" in said  # the study's numbers
    assert ask("reproduce toy --scale 0.02 --synthetic --workers 1 --out out") == 0
    assert "5 tasks, 5 of them finished before; about 0 s on 1 worker" in capsys.readouterr().out


def test_a_setting_is_changed_recorded_and_asked_for_again(toy, capsys):
    line = "reproduce toy --scale 0.02 --synthetic --workers 1 --out out"
    assert ask(f"{line} --set lr=0.5 batch_size=32") == 0
    said = capsys.readouterr().out
    assert said.count("with lr = 0.5 in place of its own, with batch_size = 32 in place of its own") >= 2
    record, numbers = (json.loads(Path("out", name).read_text()) for name in ("experiment.json", "reproduction.json"))
    assert record["changes"] == numbers["changes"] == {"lr": 0.5, "batch_size": 32}
    assert "with lr = 0.5 in place of its own" in numbers["verdict"]
    trained = [json.loads(path.read_text()) for path in Path("out").glob("training-*/run.json")]
    assert trained and all((one["recipe"]["lr"], one["recipe"]["batch_size"]) == (0.5, 32) for one in trained)
    assert ask(line) == 2 and "lr = 0.5" in capsys.readouterr().err
    for word, message in (("lr", "not of the form key=value"), ("lrr=1", "did you mean 'lr'"), ("lr=x", "a number")):
        assert ask(f"{line}2 --set {word}") == 2
        assert message in capsys.readouterr().err and not Path("out2").exists()


def test_tasks_finished_in_another_folder_are_not_computed_again(toy, capsys):
    line = "reproduce toy --scale 0.02 --synthetic --workers 1"
    assert ask(f"{line} --out nowhere/first --reuse out") == 2
    assert "out holds no experiment to take finished tasks from" in capsys.readouterr().err
    assert not Path("nowhere").exists()
    assert ask(f"{line} --out first") == 0 and ask(f"{line} --out second --reuse first") == 0
    assert "5 tasks, 5 of them finished before; about 0 s on 1 worker" in capsys.readouterr().out
    numbers = [json.loads(Path(folder, "reproduction.json").read_text())["parts"] for folder in ("first", "second")]
    assert numbers[0] == numbers[1]


def two_of_each(variant: str) -> list:
    tasks = [evaluated(seed) for seed in (0, 1)]
    elsewhere = [evaluated(seed, data="svhn") for seed in (0, 1)]
    cells = [Cell("standard", "mnist", tasks, clean, 98.0), Cell("standard", "svhn", elsewhere, clean, 90.0)]
    return [Table("Accuracy of a toy", cells)]


PAIR = Experiment("toy", "Clean accuracy of a toy", "nowhere", two_of_each)


def test_seeds_and_datasets_are_chosen_and_the_report_has_the_same_numbers(toy, capsys, monkeypatch):
    stand_for_all(monkeypatch, PAIR)
    line = "reproduce toy --scale 0.02 --seeds 2 --select mnist --synthetic --workers 1 --out out"
    assert ask(line) == 0
    assert "at scale 0.02 of the paper's, 2 seeds, mnist only, corrected" in capsys.readouterr().out
    assert len(list(Path("out").glob("training-*"))) == 2
    assert json.loads(Path("out/reproduction.json").read_text())["seeds"] == 2, "without a report"
    assert ask("reproduce toy --scale 0.02 --seeds 1 --select mnist --synthetic --workers 1 --out out") == 2
    assert "out holds toy at scale 0.02, corrected, 2 seeds, mnist only: ask for the same" in capsys.readouterr().err
    assert ask("report out --out page.html") == 0
    assert re.search("Of 1 numbers of the paper [01] agree within 2 points", capsys.readouterr().out)
    (number,) = json.loads(Path("out/reproduction.json").read_text())["parts"][0]["numbers"]
    found = [load(path).results[0] for path in Path("out").glob("evaluation-*/evaluation.json")]
    right = np.mean([result.correct for result in found], 0)
    assert number["mean"] == pytest.approx(100 * right.mean()) and (number["seeds"], number["n"]) == (2, len(right))
    page = Path("page.html").read_text("utf-8")
    assert "synthetic-mnist stood in for mnist" in page and "svhn" not in page
    assert ask("report out out --out page.html") == 2
    assert "out holds an experiment, whose page stands alone" in capsys.readouterr().err


def test_the_variant_is_said_with_its_quirks(toy, capsys):
    line = "reproduce toy --scale 0.01 --variant as-published --examples 20 --synthetic --workers 1 --out out"
    assert ask(line) == 0
    said = "at scale 0.01 of the paper's, at most 20 test samples, as published (shorter); SYNTHETIC"
    assert said in capsys.readouterr().out
    assert "on at most 20 test samples" in json.loads(Path("out/reproduction.json").read_text())["verdict"]
    assert json.loads(Path("out/experiment.json").read_text())["variant"] == "as published"


def test_a_task_that_fails_is_said_and_the_rest_is_shown(toy, capsys, monkeypatch):
    stand_for_all(monkeypatch, BROKEN)
    assert ask("reproduce toy --scale 0.01 --synthetic --workers 1 --out out") == 1
    out, err = capsys.readouterr()
    first, second = err.splitlines()
    assert first == "failed: standard() on mnist, cnn4, seed 1: net 'cnn4' takes no options, got 'filters'."
    assert second == "1 tasks failed; 1 that need them were not begun; 2 are finished and stay in out."
    assert next(line for line in out.splitlines() if line.startswith("│ broken")).split("│")[4].strip() == "-"


HOPELESS = Training(call(methods.standard), Net("cnn4", {"filters": 3}), "mnist", Recipe(seed=1))  # no such option


def with_a_hopeless_one(variant: str) -> list:
    tasks = {"standard": evaluated(0), "broken": Evaluated(HOPELESS, ["clean"], examples=50)}
    return [Table("Accuracy of a toy", [Cell(row, "clean", [task], clean) for row, task in tasks.items()])]


BROKEN = Experiment("toy", "Clean accuracy of a toy", "nowhere", with_a_hopeless_one)

REFUSED = [
    (
        "toy",
        r"toy needs mnist, not found in the cache: name the folder with --data-root, a copy with --data mnist=PATH",
    ),
    ("toy --data-root nowhere", r"toy needs mnist, not found in nowhere or the cache: name the folder"),
    ("toy --data mnits=x.npz", r"unknown dataset 'mnits': did you mean 'mnist'"),
    ("toy --data mnist", r"--data 'mnist': expected NAME=PATH, such as cifar10=my.npz"),
    ("toy --data mnist=x.npz", r"--data mnist=x.npz: there is no file or folder x.npz"),
    ("toy --synthetic --data mnist=mine.npz", r"--data and --synthetic exclude each other"),
    ("toy --synthetic --workers 0", r"--workers = 0: expected an integer >= 1"),
    ("toy --synthetic --seeds 0", r"seeds = 0: expected at least one training of each kind"),
    ("toy --synthetic --select svhn", r"toy needs no data of the name svhn: it needs mnist"),
    ("toy --synthetic --scale 2", r"scale 2: expected a share in (0, 1]"),
    ("toy --synthetic --out mine.npz", r"mine.npz is a file: expected a folder"),
    ("toy --synthetic --out other", r"other holds another at scale 1.0, corrected: ask for the same"),
    ("toy --synthetic --out full", r"full is not empty and holds no experiment"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_is_refused_before_anything_runs(toy, words, message, capsys):
    np.savez(toy / "mine.npz")
    for folder in ("other", "full"):
        (toy / folder).mkdir()
    (toy / "full" / "letter.txt").write_text("Dear")
    write_record(toy / "other", ExperimentRecord("another", 1.0, "corrected", *[""] * 6, {}, "", [], {}))
    before = sorted(toy.rglob("*"))
    assert ask(f"reproduce {words}") == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and "tasks" not in out
    assert sorted(toy.rglob("*")) == before


def test_an_unknown_experiment_is_refused(capsys):
    assert ask("reproduce udp-table-99") == 2
    assert "unknown experiment 'udp-table-99': did you mean" in capsys.readouterr().err


def test_the_documented_commands_are_understood():
    one = parse(shlex.split("reproduce udp-table-2 --scale 0.2 --data-root ../shared/data --out repro/u2 --workers 2"))
    assert one == reproducing.Reproduce(
        "udp-table-2", scale=0.2, data_root=Path("../shared/data"), out=Path("repro/u2"), workers=2
    )
    assert parse(["experiments"]) == Experiments()


DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
from test_reproducing import Experiment, parts
from equipoise import reproduce as experiments
from equipoise.cli import main
if __name__ == "__main__":
    endless = Experiment("toy", "An endless toy", "nowhere", lambda variant: parts(variant, 10**6))
    experiments.experiment = lambda name: endless
    sys.exit(main(["reproduce", "toy", "--synthetic", "--workers", "2", "--out", "out"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_workers_and_says_how_to_continue(tmp_path, number):
    env = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(Path(__file__).parent)],
        env=os.environ | env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    pids: set[int] = set()
    while len(pids) < 2:
        assert driver.poll() is None, driver.communicate()
        for state in (tmp_path / "out").glob("training-*/progress.json"):
            pids.add(json.loads(state.read_bytes())["pid"])
        time.sleep(0.1)
    driver.send_signal(number)
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 128 + number
    again = "equipoise reproduce toy --synthetic --workers 2 --out out"
    assert err == f"interrupted; continue with: {again}\n"
    assert (
        "Traceback" not in out and json.loads((tmp_path / "out/experiment.json").read_text())["status"] == "interrupted"
    )
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a worker is left"
        time.sleep(0.1)

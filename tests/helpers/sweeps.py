"""A toy experiment, and what a sweep of it has found."""

import json
from dataclasses import replace
from pathlib import Path

from equipoise import methods
from equipoise.reproduce import (
    Cell,
    Evaluated,
    Experiment,
    Net,
    Plan,
    Setting,
    Table,
    Task,
    Training,
    call,
    clean,
)
from equipoise.reproduce.running import result_in
from equipoise.results.findings import Study
from equipoise.results.records import Evaluation, Run, digest
from equipoise.training import Recipe

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


def read(path: Path) -> dict:
    return json.loads(path.read_text())

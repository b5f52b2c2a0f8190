"""All experiments, at a hundredth, on synthetic data, with narrow networks."""

import re
from collections import OrderedDict
from dataclasses import replace
from functools import partial
from importlib import import_module

import numpy as np
import pytest
import torch
from sweeps import result
from torch import nn

from equipoise.nets import registry
from equipoise.reproduce import (
    Evaluated,
    MeasureTask,
    Part,
    Plan,
    PublishedValue,
    Setting,
    StudyTask,
    Table,
    Task,
    Training,
    experiment,
    found,
    names,
    workers,
)
from equipoise.reproduce.experiment import Claims, cells
from equipoise.reproduce.stand_in import KINDS, stand_in

pytestmark = [
    pytest.mark.unchecked,
    pytest.mark.filterwarnings("ignore::equipoise.core.errors.EquipoiseWarning"),  # so little trains nothing
]

autoattack = import_module("equipoise.attacks.chain")


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
        if isinstance(part, Claims):
            continue  # of the cells of other parts, or of what is seen by its name
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

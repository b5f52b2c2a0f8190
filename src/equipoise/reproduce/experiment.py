"""A table or figure of a paper: what to compute, the paper's numbers with their place, and when they are reproduced."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from equipoise.core.errors import EquipoiseError, require, unknown
from equipoise.reproduce.tasks import TEST_SIZES, Evaluated, Measured, Task, Training, datasets
from equipoise.results.findings import Number, Study
from equipoise.results.records import AttackRecord, Evaluation, Run
from equipoise.results.reproduction import Outcome
from equipoise.results.statistics import wilson

Record = Run | Evaluation | Study
Read = Callable[[Record], Sequence[float]]
"""Takes from a task's record one value per sample (or per repeat), whose mean is the number."""

Variant = Literal["as published", "corrected"]
"""With the quirks of the paper's own code, or without."""


@dataclass(frozen=True)
class Cell:
    """A number of a table, in its unit, and how to get it here."""

    row: str
    """The row it is in."""
    column: str
    """The column it is in."""
    tasks: Sequence[Task]
    """What it is read from: one task per seed."""
    read: Read
    """How, from each."""
    paper: float | None = None
    """What the paper says; None if it is silent."""
    deviation: float = 0.0
    """Its stated deviation, or the rounding of the printed number, in the same unit."""
    scale: float = 100.0
    """What the values are multiplied by to have the table's unit: 100 for shares in percent."""

    def scaled(self, scale: float, seeds: int | None = None) -> "Cell":
        """The same cell from tasks with a share of the work and of the seeds, of which one stays, or so many seeds."""
        kept = self.tasks[: max(round(len(self.tasks) * scale), 1) if seeds is None else seeds]
        return replace(self, tasks=tuple(task.scaled(scale) for task in kept))


def found(cell: Cell, records: Sequence[Record], folders: Sequence[str] = ()) -> Outcome:
    """The cell's number: the mean over its tasks of the mean of what is read from each; of no tasks, none.

    Its interval is that of the samples, whose values are averaged over the tasks first, as two trainings judged on the
    same samples are no more samples: Wilson's for accuracies, Student's for other numbers. With three tasks or more it
    is Student's over them instead; with two, or where not the whole test set was taken, it reaches from the lowest to
    the highest end of both; for accuracies cut to [0, 1]. Only the interval of one task leaves out what another
    training would change.
    """
    if not records:
        none = (None, None, 0, 0, "samples", folders, cell.scale == 100)
        return Outcome(cell.row, cell.column, cell.paper, cell.deviation, *none)
    values = [np.asarray(cell.read(record), float) for record in records]
    require(all(len(v) > 0 for v in values), f"{cell.row}, {cell.column}: nothing to take a mean of.")
    means, by_seeds = [float(v.mean()) for v in values], len(values) >= 2
    samples = np.mean(values, 0) if len({len(v) for v in values}) == 1 else np.concatenate(values)
    shares = all(isinstance(one, Evaluation) for one in records) or all(np.isin(v, (0.0, 1.0)).all() for v in values)
    few = len(values) < 3 or any(
        isinstance(task, Evaluated) and task.examples < TEST_SIZES.get(task.data, 0) for task in cell.tasks
    )
    intervals = []
    if by_seeds:
        intervals.append(Number(cell.column, means, signed=True).interval)
    if few or not by_seeds:
        drawn = Number(cell.column, samples.tolist(), signed=True).interval
        intervals.append(wilson(float(samples.sum()), len(samples)) if shares else drawn)
    known = [one for one in intervals if one is not None]
    interval = (min(low for low, _ in known), max(high for _, high in known)) if known else None
    if interval is not None and shares:
        interval = (max(interval[0], 0.0), min(interval[1], 1.0))
    return Outcome(
        cell.row,
        cell.column,
        cell.paper,
        cell.deviation,
        float(np.mean(means)) * cell.scale,
        None if interval is None else (interval[0] * cell.scale, interval[1] * cell.scale),
        len(samples),
        len(means),
        "samples" if not by_seeds else "seeds and samples" if few else "seeds",
        folders,
        cell.scale == 100,
    )


@dataclass(frozen=True)
class Table:
    """A table: its cells, row by row."""

    title: str
    """What it shows."""
    cells: Sequence[Cell]
    """Its numbers."""
    corner: str = "method"
    """What the rows are."""
    unit: str = "%"
    """Unit of the numbers."""


@dataclass(frozen=True)
class Line:
    """A curve of a chart."""

    name: str
    """What it is of."""
    points: Sequence[tuple[float, Cell]]
    """Abscissa and number; the cells' row and column are free."""


@dataclass(frozen=True)
class Chart:
    """A figure that is drawn through numbers."""

    title: str
    """What it shows."""
    x: str
    """What is to the right."""
    y: str
    """What is upwards."""
    lines: Sequence[Line]
    """Its curves."""


@dataclass(frozen=True)
class PublishedValue:
    """The pictures, numbers and verdict of a study or a measurement, as it made them."""

    title: str
    """What they show."""
    task: Task
    """The study or measurement."""


Part = Table | Chart | PublishedValue


@dataclass(frozen=True)
class Experiment:
    """A table or figure of a paper."""

    name: str
    """Name on the command line, such as `udp-table-2`."""
    title: str
    """What it is about, in a sentence."""
    source: str
    """Its place, such as `U Table 2`."""
    parts: Callable[[Variant], Sequence[Part]]
    """Its tables and figures at the paper's scale; called only when the experiment is looked at."""
    quirks: str = ""
    """How "as published" differs from "corrected", in a sentence; empty if they are the same."""
    notes: str = ""
    """What one should know to read it: choices where the paper is silent or unclear."""

    def plan(
        self,
        scale: float = 1.0,
        variant: Variant = "corrected",
        seeds: int | None = None,
        only: Sequence[str] = (),
        examples: int | None = None,
        changes: Mapping[str, Any] = {},
    ) -> "Plan":
        """What to compute at a scale in (0, 1]: with so many of the paper's seeds, if given, instead of that share of
        them, `only` what needs no other datasets than these, and every network tested on at most so many `examples`.
        `changes` are settings of every training that deviate from the paper: fields of its recipe, such as `lr`, and
        options of its method, such as `method.softness`. Raises `EquipoiseError` for another scale, for no seeds or
        examples, for a setting that no training has, and if nothing is left.
        """
        require(0 < scale <= 1, f"scale {scale:g}: expected a share in (0, 1], such as 0.1.")
        require(seeds is None or seeds >= 1, f"seeds = {seeds}: expected at least one training of each kind.")
        require(examples is None or examples >= 1, f"examples = {examples}: expected at least one test sample.")
        parts = [_changed(part, changes) for part in self.parts(variant)]
        _require_known(changes, Plan(self, 1.0, variant, parts).tasks())
        parts = [_tested(_scaled(part, scale, seeds), examples) for part in parts]
        needed = Plan(self, scale, variant, parts).datasets()
        wrong = [name for name in only if name not in needed]
        require(not wrong, f"{self.name} needs no data of the name {', '.join(wrong)}: it needs {', '.join(needed)}.")
        if only:
            parts = [kept for part in parts if (kept := _restricted(part, frozenset(only))) is not None]
            require(len(parts) > 0, f"no part of {self.name} needs {' and '.join(only)} alone.")
        return Plan(self, scale, variant, tuple(parts), seeds, tuple(only), examples, dict(changes))


def _changed(part: Part, changes: Mapping[str, Any]) -> Part:
    """With settings of its trainings changed."""
    if not changes:
        return part
    if isinstance(part, PublishedValue):
        return replace(part, task=part.task.changed(changes))
    return _with_cells(part, lambda cell: replace(cell, tasks=tuple(task.changed(changes) for task in cell.tasks)))


def _require_known(changes: Mapping[str, Any], tasks: Sequence[Task]) -> None:
    """Raise `EquipoiseError` for a setting that no training has."""
    trainings = [task for task in tasks if isinstance(task, Training)]
    known = {name for one in trainings for name in one.settings}
    for name in changes:
        if name not in known:
            raise (
                unknown("setting", name, sorted(known))
                if known
                else EquipoiseError(f"{name} cannot be set: this experiment trains no network by a recipe.")
            )


def _scaled(part: Part, scale: float, seeds: int | None) -> Part:
    if scale == 1 and seeds is None:
        return part
    if isinstance(part, PublishedValue):
        return replace(part, task=part.task.scaled(scale))
    return _with_cells(part, lambda cell: cell.scaled(scale, seeds))


def _tested(part: Part, examples: int | None) -> Part:
    """With at most so many test samples for each task."""

    def fewer(task: Task) -> Task:
        if examples is None or not isinstance(task, Evaluated | Measured):
            return task
        return replace(task, examples=min(task.examples, examples))

    if isinstance(part, PublishedValue):
        return replace(part, task=fewer(part.task))
    return _with_cells(part, lambda cell: replace(cell, tasks=tuple(fewer(task) for task in cell.tasks)))


def _restricted(part: Part, only: frozenset[str]) -> Part | None:
    """What of a part needs no other data; None if nothing does."""

    def fits(task: Task) -> bool:
        return all(fits(one) for one in task.needs) and only.issuperset(datasets(task))

    if isinstance(part, PublishedValue):
        return part if fits(part.task) else None
    kept = _with_cells(part, lambda cell: cell if all(fits(task) for task in cell.tasks) else None)
    return kept if cells(kept) else None


def _with_cells(part: Table | Chart, change: Callable[[Cell], Cell | None]) -> Table | Chart:
    """The same part of other cells, without those that become None."""
    if isinstance(part, Table):
        return replace(part, cells=tuple(cell for one in part.cells if (cell := change(one)) is not None))
    lines = [
        replace(line, points=tuple((x, cell) for x, one in line.points if (cell := change(one)) is not None))
        for line in part.lines
    ]
    return replace(part, lines=tuple(line for line in lines if line.points))


@dataclass(frozen=True)
class Plan:
    """An experiment at a scale."""

    experiment: Experiment
    """Which one."""
    scale: float
    """The share of the paper's epochs, samples and seeds."""
    variant: Variant
    """As published, or corrected."""
    parts: Sequence[Part]
    """Tables and figures."""
    seeds: int | None = None
    """So many trainings of each kind; None is the share of the paper's number."""
    only: Sequence[str] = ()
    """What needs no other datasets than these; all if empty."""
    examples: int | None = None
    """Every network is tested on at most so many samples; None is the scale's share of the paper's number."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the trainings that deviate from the paper."""

    def tasks(self) -> list[Task]:
        """All it needs, each once, every task after those it builds on."""
        order: dict[str, Task] = {}
        for part in self.parts:
            for task in _of(part):
                _add(task, order)
        return list(order.values())

    def datasets(self) -> list[str]:
        """The names of the datasets it needs."""
        return sorted({name for task in self.tasks() for name in datasets(task)})


def cells(part: Part) -> list[Cell]:
    """The numbers of a part."""
    if isinstance(part, Table):
        return list(part.cells)
    return [cell for line in part.lines for _, cell in line.points] if isinstance(part, Chart) else []


def _of(part: Part) -> Iterator[Task]:
    if isinstance(part, PublishedValue):
        yield part.task
    for cell in cells(part):
        yield from cell.tasks


def _add(task: Task, order: dict[str, Task]) -> None:
    """Put the task behind those it needs, unless it is there."""
    word = repr(task)
    if word not in order:
        for one in task.needs:
            _add(one, order)
        order[word] = task


def clean(record: Record) -> Sequence[float]:
    """Per sample: whether it is classified correctly."""
    return [float(right) for right in _result(record, "clean", 0.0, "").correct]


def robust(eps: float, norm: str = "linf", attack: str | None = None) -> Read:
    """Reads per sample whether it stays correct under that attack, or under the worst of all, in a ball."""

    def look(record: Record) -> Sequence[float]:
        return [float(right) for right in _result(record, attack, eps, norm).correct]

    return look


def trade_off(eps: float, norm: str = "linf", attack: str | None = None) -> Read:
    """Reads per sample the mean of its clean and its robust correctness (U, T)."""
    under = robust(eps, norm, attack)
    return lambda record: [(a + b) / 2 for a, b in zip(clean(record), under(record), strict=True)]


def number(name: str) -> Read:
    """Reads the values of a number of a study or measurement."""

    def look(record: Record) -> Sequence[float]:
        known = record.findings.numbers if isinstance(record, Study) else []
        for one in known:
            if one.name == name:
                return one.values
        raise EquipoiseError(f"there is no number {name!r}: there are {', '.join(repr(one.name) for one in known)}.")

    return look


def _result(record: Record, attack: str | None, eps: float, norm: str) -> AttackRecord:
    """The result of the attack, or the one with the fewest correct samples, in that ball."""
    known = record.results if isinstance(record, Evaluation) else []
    fit = [
        one
        for one in known
        if (attack is None or one.attack == attack)
        and (attack == "clean" or (math.isclose(one.eps, eps, rel_tol=1e-6) and one.norm == norm))
    ]
    if not fit:
        raise EquipoiseError(f"the record holds no result of {attack or 'an attack'} in {norm} with eps {eps:g}.")
    return min(fit, key=lambda one: sum(one.correct))

"""A table or figure of a paper: what to compute, the paper's numbers, and when a number counts as reproduced."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from equipoise.core.errors import EquipoiseError, require, unknown
from equipoise.reproduce.tasks import TEST_SIZES, Evaluated, MeasureTask, Task, Training, datasets, with_settings
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
    """A number of a table, in its unit, and how it is computed."""

    row: str
    column: str
    tasks: Sequence[Task]
    """What it is read from: one task per seed."""
    read: Read
    """Takes its values from the record of each task."""
    paper: float | None = None
    """The published value; None if the paper gives none."""
    deviation: float = 0.0
    """Its stated deviation, or its rounding, in the same unit."""
    scale: float = 100.0
    """Factor from the values to the table's unit: 100 for shares in percent."""


def found(cell: Cell, records: Sequence[Any], folders: Sequence[str] = (), signed: bool = False) -> Outcome:
    """Return the cell's number: the mean over its tasks of the mean of what is read from each; of no tasks, none.

    Its interval is that of the samples, whose values are averaged over the tasks first, as two trainings judged on the
    same samples are no more samples: Wilson's for accuracies, Student's for other numbers. With three tasks or more it
    is Student's over them instead; with two, or where not the whole test set was taken, it reaches from the lowest to
    the highest end of both; for accuracies, which are not `signed`, cut to [0, 1]. Only the interval of one task leaves
    out what another training would change.
    """
    percent = cell.scale == 100
    if not records:
        none = (None, None, 0, 0, "samples", folders, percent)
        return Outcome(cell.row, cell.column, cell.paper, cell.deviation, *none)
    values = [np.asarray(cell.read(record), float) for record in records]
    require(all(len(v) > 0 for v in values), f"{cell.row}, {cell.column}: nothing to take a mean of.")
    means = [float(v.mean()) for v in values]
    samples = np.mean(values, 0) if len({len(v) for v in values}) == 1 else np.concatenate(values)
    outcomes = all(isinstance(one, Evaluation) for one in records) or all(np.isin(v, (0.0, 1.0)).all() for v in values)
    shares = outcomes and not signed
    part_of_test_set = any(
        isinstance(task, Evaluated | MeasureTask) and task.examples < TEST_SIZES.get(task.data, 0)
        for task in cell.tasks
    )
    over = "samples" if len(means) == 1 else "seeds and samples" if len(means) == 2 or part_of_test_set else "seeds"
    intervals = []
    if "seeds" in over:
        intervals.append(Number(cell.column, means, signed=True).interval)
    if "samples" in over:
        students = Number(cell.column, samples.tolist(), signed=True).interval
        if signed and students is not None and students[0] == students[1]:
            students = _of_equal_differences(samples, percent)
        intervals.append(wilson(float(samples.sum()), len(samples)) if shares else students)
    ends = np.array([interval for interval in intervals if interval is not None])
    interval = None
    if len(ends):
        ends = (np.clip(ends, 0.0, 1.0) if shares else ends) * cell.scale
        interval = (float(ends[:, 0].min()), float(ends[:, 1].max()))
    mean = float(np.mean(means)) * cell.scale
    result = (mean, interval, len(samples), len(means), over, folders, percent)
    return Outcome(cell.row, cell.column, cell.paper, cell.deviation, *result)


def _of_equal_differences(samples: np.ndarray, percent: bool) -> tuple[float, float] | None:
    """The interval of the mean of n equal differences, where Student's has no width: of accuracies that of
    no event in n, `± (1 - .025^(1/n))`; None of other numbers, of which so few tell nothing.
    """
    half = 1 - 0.025 ** (1 / len(samples))
    return (float(samples[0]) - half, float(samples[0]) + half) if percent else None


def difference(claim: "Claim", records: Sequence[tuple[Record, Record | None]], folders: Sequence[str]) -> Outcome:
    """Return the first number of a claim less the second, sample by sample and seed by seed, from the records of both
    for each seed: see `found`.
    """

    def read(pair: tuple[Record, Record | None]) -> Sequence[float]:
        own = np.asarray(claim.larger.read(pair[0]), float)
        if claim.smaller is None or pair[1] is None:
            return own.tolist()
        other = np.asarray(claim.smaller.read(pair[1]), float)
        return (own - other).tolist() if len(own) == len(other) else [float(own.mean() - other.mean())]

    cell = replace(claim.larger, row=claim.statement, column="difference", read=read, paper=None)
    return found(cell, records, folders, signed=True)


@dataclass(frozen=True)
class Table:
    """A table: its cells, row by row."""

    title: str
    cells: Sequence[Cell]
    corner: str = "method"
    """What the rows are."""
    unit: str = "%"

    def at(self, row: str, column: str) -> Cell:
        """Return the cell in that place."""
        return next(cell for cell in self.cells if (cell.row, cell.column) == (row, column))


@dataclass(frozen=True)
class Line:
    """A curve of a chart."""

    name: str
    points: Sequence[tuple[float, Cell]]
    """Abscissa and number; the cells' row and column are free."""


@dataclass(frozen=True)
class Chart:
    """A figure that is drawn through numbers."""

    title: str
    x: str
    """Label of the horizontal axis."""
    y: str
    """Label of the vertical axis."""
    lines: Sequence[Line]


@dataclass(frozen=True)
class PublishedValue:
    """The pictures, numbers and verdict of a study or a measurement, as it made them."""

    title: str
    task: Task


@dataclass(frozen=True)
class Claim:
    """A statement of a paper that one number exceeds another, put to the test."""

    statement: str
    """What is claimed, in a sentence."""
    source: str
    """Where, such as `U Sec. 5.1`."""
    larger: Cell
    """The number that is claimed to be larger; its row says of what it is."""
    smaller: Cell | None = None
    """The number it is compared with, of as many tasks, seed by seed; None for 0."""
    by: float = 0.0
    """What the difference has to exceed, in the cells' unit; below 0 the claim is that the number is hardly smaller."""
    unit: str = "points"


@dataclass(frozen=True)
class Claims:
    """Claims that are tested on the same networks."""

    title: str
    claims: Sequence[Claim]


Part = Table | Chart | PublishedValue | Claims


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
        """Return what to compute at a scale in (0, 1]: with this number of seeds instead of that share of the
        paper's, `only` what needs no other datasets than these, and every network tested on at most this number of
        `examples`. `changes` are settings of every training that deviate from the paper: fields of its recipe, such as
        `lr`, and options of its method, such as `method.softness`. Raises `EquipoiseError` for another scale, for no
        seeds or examples, for a setting that no training has, and if nothing is left.
        """
        require(0 < scale <= 1, f"scale {scale:g}: expected a share in (0, 1], such as 0.1.")
        require(seeds is None or seeds >= 1, f"seeds = {seeds}: expected at least one training of each kind.")
        require(examples is None or examples >= 1, f"examples = {examples}: expected at least one test sample.")
        parts = list(self.parts(variant))
        if changes:
            _require_known(changes, Plan(self, 1.0, variant, parts).tasks())
            parts = [_with_tasks(part, lambda task: with_settings(task, changes)) for part in parts]
        if scale != 1 or seeds is not None:
            parts = [_with_tasks(_with_seeds(part, scale, seeds), lambda task: task.scaled(scale)) for part in parts]
        if examples is not None:
            parts = [_with_tasks(part, lambda task, most=examples: _tested(task, most)) for part in parts]
        needed = Plan(self, scale, variant, parts).datasets()
        wrong = [name for name in only if name not in needed]
        require(not wrong, f"{self.name} needs no data of the name {', '.join(wrong)}: it needs {', '.join(needed)}.")
        if only:
            parts = [kept for part in parts if (kept := _restricted(part, frozenset(only))) is not None]
            require(len(parts) > 0, f"no part of {self.name} needs {' and '.join(only)} alone.")
        return Plan(self, scale, variant, tuple(parts), seeds, tuple(only), examples, dict(changes))


def _require_known(changes: Mapping[str, Any], tasks: Sequence[Task]) -> None:
    """Raise `EquipoiseError` for a setting that no training has."""
    known = {name for task in tasks if isinstance(task, Training) for name in task.settings}
    for name in changes:
        require(len(known) > 0, f"{name} cannot be set: this experiment trains no network by a recipe.")
        if name not in known:
            raise unknown("setting", name, sorted(known))


def _tested(task: Task, examples: int) -> Task:
    """The task with at most this number of test samples."""
    if not isinstance(task, Evaluated | MeasureTask):
        return task
    return replace(task, examples=min(task.examples, examples))


def _restricted(part: Part, only: frozenset[str]) -> Part | None:
    """What of a part needs no other data; None if nothing does."""

    def possible(task: Task) -> bool:
        return all(possible(one) for one in task.needs) and only.issuperset(datasets(task))

    if isinstance(part, PublishedValue):
        return part if possible(part.task) else None
    rest = _with_cells(part, lambda cell: cell if all(possible(task) for task in cell.tasks) else None)
    return rest if cells(rest) else None


def _with_seeds(part: Part, scale: float, seeds: int | None) -> Part:
    """The part with a share of the seeds, at least one, or with this number of them."""
    if isinstance(part, PublishedValue):
        return part

    def fewer(cell: Cell) -> Cell:
        return replace(cell, tasks=cell.tasks[: seeds or max(round(len(cell.tasks) * scale), 1)])

    return _with_cells(part, fewer)


def _with_tasks(part: Part, change: Callable[[Task], Task]) -> Part:
    """The same part from other tasks."""
    if isinstance(part, PublishedValue):
        return replace(part, task=change(part.task))
    return _with_cells(part, lambda cell: replace(cell, tasks=tuple(change(task) for task in cell.tasks)))


def _with_cells(part: Table | Chart | Claims, change: Callable[[Cell], Cell | None]) -> Table | Chart | Claims:
    """The same part of other cells, without those that become None."""
    if isinstance(part, Claims):
        changed = [(one, change(one.larger), one.smaller and change(one.smaller)) for one in part.claims]
        rest = [
            (one, larger, smaller) for one, larger, smaller in changed if larger and bool(smaller) == bool(one.smaller)
        ]
        return replace(part, claims=tuple(replace(one, larger=a, smaller=b) for one, a, b in rest))
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
    scale: float
    """The share of the paper's epochs, samples and seeds."""
    variant: Variant
    parts: Sequence[Part]
    seeds: int | None = None
    """Number of trainings of each kind; None is the share of the paper's number."""
    only: Sequence[str] = ()
    """What needs no other datasets than these; all if empty."""
    examples: int | None = None
    """Maximum number of test samples of every network; None is the scale's share of the paper's number."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the trainings that deviate from the paper."""

    def tasks(self) -> list[Task]:
        """All it needs, each once, every task after those it needs."""
        order: dict[str, Task] = {}

        def add(task: Task) -> None:
            word = repr(task)
            if word not in order:
                for needed in task.needs:
                    add(needed)
                order[word] = task

        for part in self.parts:
            shown = [part.task] if isinstance(part, PublishedValue) else []
            for task in (*shown, *(task for cell in cells(part) for task in cell.tasks)):
                add(task)
        return list(order.values())

    def datasets(self) -> list[str]:
        """The names of the datasets it needs."""
        return sorted({name for task in self.tasks() for name in datasets(task)})


def cells(part: Part) -> list[Cell]:
    """Return the numbers of a part."""
    if isinstance(part, Table):
        return list(part.cells)
    if isinstance(part, Claims):
        return [cell for one in part.claims for cell in (one.larger, one.smaller) if cell is not None]
    return [cell for line in part.lines for _, cell in line.points] if isinstance(part, Chart) else []


def clean(record: Record) -> Sequence[float]:
    """Return per sample whether it is classified correctly."""
    return [float(correct) for correct in _result(record, "clean", 0.0, "").correct]


def robust(eps: float, norm: str = "linf", attack: str | None = None) -> Read:
    """Read per sample whether it stays correct under that attack, or under the worst of all, in a ball."""

    def look(record: Record) -> Sequence[float]:
        return [float(correct) for correct in _result(record, attack, eps, norm).correct]

    return look


def trade_off(eps: float, norm: str = "linf", attack: str | None = None) -> Read:
    """Read per sample the mean of its clean and its robust correctness (U, T)."""
    under = robust(eps, norm, attack)
    return lambda record: [(a + b) / 2 for a, b in zip(clean(record), under(record), strict=True)]


def number(name: str) -> Read:
    """Read the values of a number of a study or measurement."""

    def look(record: Record) -> Sequence[float]:
        numbers = record.findings.numbers if isinstance(record, Study) else []
        for one in numbers:
            if one.name == name:
                return one.values
        raise EquipoiseError(f"there is no number {name!r}: there are {', '.join(repr(one.name) for one in numbers)}.")

    return look


def _result(record: Record, attack: str | None, eps: float, norm: str) -> AttackRecord:
    """The result of the attack, or the one with the fewest correct samples, in that ball."""
    results = [
        one
        for one in (record.results if isinstance(record, Evaluation) else [])
        if (attack is None or one.attack == attack)
        and (attack == "clean" or (math.isclose(one.eps, eps, rel_tol=1e-6) and one.norm == norm))
    ]
    if not results:
        raise EquipoiseError(f"the record holds no result of {attack or 'an attack'} in {norm} with eps {eps:g}.")
    return min(results, key=lambda one: sum(one.correct))

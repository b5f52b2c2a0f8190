"""Tables of accuracies for papers: a row per model, a column per attack and radius, over seeds the mean. No torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.core.errors import require
from equipoise.core.tables import Row, Tabular
from equipoise.report.accuracy import Column, Comparison, compare
from equipoise.report.accuracy import Row as ModelRow
from equipoise.report.reading import Source, read
from equipoise.results.records import Evaluation
from equipoise.results.statistics import student


@dataclass(frozen=True)
class Cell:
    """An accuracy with its interval."""

    accuracy: float
    """In [0, 1]; of several seeds the mean."""
    interval: tuple[float, float]
    """95 % interval: of the mean over seeds by Student's t, of one model by Wilson's method over its samples."""
    n: int
    """Number of samples."""
    seeds: int
    """Number of trainings."""


@dataclass(frozen=True, repr=False)
class AccuracyTable(Tabular):
    """Accuracies of several models, in percent as a table, and in [0, 1] as numbers, a row for each accuracy."""

    rows: Sequence[tuple[str, str, Mapping[Column, Cell]]]
    """Name of the model, of the data, and its accuracies."""

    def _table(self) -> tuple[Row, list[Row]]:
        columns = list(dict.fromkeys(column for *_, cells in self.rows for column in cells))
        several = len({data for _, data, _ in self.rows}) > 1
        seeds = any(cell.seeds > 1 for *_, cells in self.rows for cell in cells.values())
        header = "model", *(["data"] if several else []), *(["seeds"] if seeds else []), *map(_title, columns)
        rows = []
        for name, data, cells in self.rows:
            about = [name, *([data] if several else [])]
            about += [str(max(cell.seeds for cell in cells.values()))] if seeds else []
            rows.append((*about, *(_shown(cells.get(column)) for column in columns)))
        return header, rows

    def _columns(self) -> dict[str, list[Any]]:
        entries = [
            (name, data, c.attack, c.norm or None, c.eps, cell.seeds, cell.n, cell.accuracy, *cell.interval)
            for name, data, cells in self.rows
            for c, cell in cells.items()
        ]
        names = "model", "data", "attack", "norm", "eps", "seeds", "n", "accuracy", "low", "high"
        return {name: [entry[number] for entry in entries] for number, name in enumerate(names)}


def tabulate(records: "Sequence[Path | str | Evaluation]") -> AccuracyTable:
    """Return the accuracies of run directories, published models, files of evaluations, or evaluations in memory.

    Runs whose records differ only in the seed, measured on the same samples, are one row: its accuracies are means,
    with the interval `mean ± t s / sqrt(seeds)`. Of a run its best weights count. Raises `EquipoiseError` for what
    cannot be read, and if nothing was evaluated.
    """
    paths = [Path(record) for record in records if not isinstance(record, Evaluation)]
    sources = read(paths) if paths else []
    given = [record for record in records if isinstance(record, Evaluation)]
    sources += [Source(record.target, Path(str(number)), evaluations=[(Path(str(number)), record)])
                for number, record in enumerate(given)]  # fmt: skip
    rows = [row for comparison in compare(sources) for row in _grouped(comparison)]
    require(len(rows) > 0, "there is no evaluation to tabulate: evaluate the runs first, by equipoise evaluate.")
    return AccuracyTable(rows)


def _grouped(comparison: Comparison) -> list[tuple[str, str, Mapping[Column, Cell]]]:
    """The rows of one test set, with runs that differ in their seed alone put together."""
    groups: dict[str, list[ModelRow]] = {}
    for number, row in enumerate(comparison.candidates):
        groups.setdefault(_but_for_seed(row) or str(number), []).append(row)
    methods = [_method(group[0]) for group in groups.values()]
    data = str(comparison.data.get("name", ""))
    rows = []
    for group, method in zip(groups.values(), methods, strict=True):
        name = method if len(group) > 1 and methods.count(method) == 1 else group[0].source.name
        name += f", {group[0].weights} weights" if group[0].weights == "last" else ""
        name += f", {group[0].shown_files}" if group[0].shown_files else ""
        cells = {}
        for column in comparison.columns:
            results = [row.results[column] for row in group if column in row.results]
            if results:
                cells[column] = _cell([r.accuracy for r in results], results[0].interval, results[0].n)
        rows.append((name, data, cells))
    return rows


def _method(row: ModelRow) -> str:
    return str(row.source.run.method.get("name", "")) if row.source.run else row.source.name


def _but_for_seed(row: ModelRow) -> str:
    """Everything that a training was asked for, but for its seed; empty for a model that was trained elsewhere."""
    run = row.source.run
    if run is None:
        return ""
    parts = ({k: v for k, v in part.items() if k != "seed"} for part in (run.method, run.recipe, run.net))
    return json.dumps([*parts, run.data.get("sha256"), row.weights, row.shown_files], sort_keys=True, default=str)


def _cell(accuracies: Sequence[float], interval: tuple[float, float], n: int) -> Cell:
    seeds, mean = len(accuracies), float(np.mean(accuracies))
    if seeds > 1:
        half = student(seeds - 1) * float(np.std(accuracies, ddof=1)) / seeds**0.5
        interval = max(mean - half, 0.0), min(mean + half, 1.0)
    return Cell(mean, interval, n, seeds)


def _title(column: Column) -> str:
    return f"{column.attack}, {column.norm} {column.eps:.4g}" if column.norm else column.attack


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return ""
    low, high = (100 * end for end in cell.interval)
    return f"{100 * cell.accuracy:.1f} [{low:.1f}, {high:.1f}]"

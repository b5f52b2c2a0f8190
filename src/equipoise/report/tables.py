"""Tables of accuracies for papers: a row per model, a column per attack and radius, over seeds the mean. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.core.errors import require
from equipoise.core.tables import Row, Tabular
from equipoise.report.accuracy import Attacked, Column, Comparison, compare
from equipoise.report.reading import Source, read
from equipoise.report.seeds import grouped
from equipoise.results.records import Evaluation
from equipoise.results.seeds import single_runs


@dataclass(frozen=True, repr=False)
class AccuracyTable(Tabular):
    """Accuracies of several models, in percent as a table, and in [0, 1] as numbers, a row for each accuracy."""

    rows: Sequence[tuple[str, str, Mapping[Column, Attacked]]]
    """Name of the model, of the data, and its accuracies."""

    def _table(self) -> tuple[Row, list[Row]]:
        columns = list(dict.fromkeys(column for *_, cells in self.rows for column in cells))
        several = len({data for _, data, _ in self.rows}) > 1
        seeds = any(_seeds(cell) > 1 for *_, cells in self.rows for cell in cells.values())
        header = "model", *(["data"] if several else []), *(["seeds"] if seeds else []), *map(_title, columns)
        rows = []
        for name, data, cells in self.rows:
            about = [name, *([data] if several else [])]
            about += [str(max(map(_seeds, cells.values())))] if seeds else []
            rows.append((*about, *(_shown(cells.get(column)) for column in columns)))
        return header, rows

    def _columns(self) -> dict[str, list[Any]]:
        entries = [
            (name, data, c.attack, c.norm or None, c.eps, _seeds(cell), cell.n, cell.accuracy, *cell.interval)
            for name, data, cells in self.rows
            for c, cell in cells.items()
        ]
        names = "model", "data", "attack", "norm", "eps", "seeds", "n", "accuracy", "low", "high"
        return {name: [entry[number] for entry in entries] for number, name in enumerate(names)}


def tabulate(records: "Sequence[Path | str | Evaluation]") -> AccuracyTable:
    """Return the accuracies of run directories, published models, files of evaluations, or evaluations in memory.

    Runs whose records differ only in the seed, measured on the same samples, are one row: its accuracies are means,
    with the intervals of `equipoise.results.statistics.mean_of_seeds`. Of a run its best weights count. Raises
    `EquipoiseError` for what cannot be read, and if nothing was evaluated.
    """
    paths = [Path(record) for record in records if not isinstance(record, Evaluation)]
    sources = read(paths) if paths else []
    given = [record for record in records if isinstance(record, Evaluation)]
    sources += [Source(record.target, Path(str(number)), evaluations=[(Path(str(number)), record)])
                for number, record in enumerate(given)]  # fmt: skip
    rows = [row for comparison in compare(sources) for row in _named(grouped(comparison))]
    require(len(rows) > 0, "there is no evaluation to tabulate: evaluate the runs first, by equipoise evaluate.")
    return AccuracyTable(rows)


def _named(comparison: Comparison) -> list[tuple[str, str, Mapping[Column, Attacked]]]:
    """The rows of one test set, with the name of the model and of the data."""
    data, rows = str(comparison.data.get("name", "")), []
    for row in comparison.candidates:
        name = row.name + (", last weights" if row.weights == "last" else "")
        name += f", {row.shown_files}" if row.shown_files else ""
        rows.append((name, data, {c: row.results[c] for c in comparison.columns if c in row.results}))
    return rows


def _seeds(cell: Attacked) -> int:
    """The number of trainings behind an accuracy."""
    return len(single_runs(cell))


def _title(column: Column) -> str:
    return f"{column.attack}, {column.norm} {column.eps:.4g}" if column.norm else column.attack


def _shown(cell: Attacked | None) -> str:
    if cell is None:
        return ""
    low, high = (100 * end for end in cell.interval)
    return f"{100 * cell.accuracy:.1f} [{low:.1f}, {high:.1f}]"

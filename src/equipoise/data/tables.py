"""Tables of numbers as `.csv` files: a row for each sample, a column of which is the class."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from equipoise.core.errors import EquipoiseError, require, unknown
from equipoise.core.files import printable
from equipoise.data.array_files import numbered
from equipoise.data.files import content
from equipoise.data.formats import Arrays, count
from equipoise.data.reading import SPLITS, Reading

_LABELS = ("label", "labels", "class", "target", "category", "species", "breed", "y")
"""What the column of the class is usually called."""


@dataclass(frozen=True, eq=False)
class Table:
    """The cells of a `.csv` file as text."""

    header: tuple[str, ...]
    """Names of the columns; `column 1`, ... if the file has none."""
    rows: Sequence[Sequence[str]]
    """Cells by row."""
    first_row: int
    """Line of the file that holds the first row."""

    @property
    def usual_labels(self) -> list[int]:
        """The columns that are called as that of the class usually is."""
        return [i for i, name in enumerate(self.header) if name.lower() in _LABELS]

    def label_column(self, given: str | None, where: str) -> int:
        """Return the index of the column that holds the class: the one that is given, or usually so called, or else
        the last. Raises `EquipoiseError` if no column has the given name.
        """
        if given is not None:
            if given not in self.header:
                raise unknown(f"column of {where}", given, self.header)
            return self.header.index(given)
        return self.usual_labels[0] if len(self.usual_labels) == 1 else len(self.header) - 1


def parse_table(data: bytes, where: str) -> Table:
    """Return the cells of a `.csv` file, whose separator is the most frequent one of `,`, `;` and tab in its first
    line. The first line is a header unless all its cells but one are numbers. Raises `EquipoiseError` for no text, no
    rows, and rows of different lengths.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EquipoiseError(f"{where} is not a text in UTF-8: expected a table as .csv.") from error
    first, counts = text.partition("\n")[0], Counter(text.partition("\n")[0])
    separator = max(",;\t", key=lambda character: counts[character])
    require(counts[separator] > 0, f"{where} has one column ({first.strip()[:40]!r}): expected features and a class.")
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), delimiter=separator)]
    except csv.Error as error:
        raise EquipoiseError(f"{where} is not a readable table: {error}.") from error
    rows = [row for row in rows if any(row)]
    require(len(rows) > 0, f"{where} has no rows.")
    width = len(rows[0])
    for line, row in enumerate(rows, 1):
        require(
            len(row) == width, f"{where}, row {line} has {len(row)} cells, the first has {width}: expected as many."
        )
    headed = sum(_number(cell) is None for cell in rows[0]) > 1 or (len(rows) > 1 and _is_header(rows[0], rows[1]))
    header = tuple(map(printable, rows[0])) if headed else tuple(f"column {i}" for i in range(1, width + 1))
    require(len(rows) > headed, f"{where} has no rows.")
    twice = [name for name, n in Counter(header).items() if n > 1]
    require(not twice, f"{where} has two columns of the name {''.join(twice[:1])!r}.")
    return Table(header, rows[headed:], 1 + headed)


def _is_header(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether there is a text where the next row has a number."""
    return any(_number(a) is None and _number(b) is not None for a, b in zip(first, second, strict=True))


def _number(cell: str) -> float | None:
    try:
        value = float(cell) if "_" not in cell else None
    except ValueError:
        return None
    return value if value is not None and np.isfinite(value) else None


def table_files(folder: Path) -> dict[str, Path]:
    """Return the tables of a folder by split: `train.csv`, and if they are there `test.csv` and `val.csv`."""
    found = {file.name.lower().partition(".")[0]: file for file in sorted(folder.glob("*.[cC][sS][vV]"))}
    files = {SPLITS[name]: file for name, file in found.items() if name in SPLITS}
    return files if "train" in files else {}


def read_tables(files: Mapping[str, Path], reading: Reading) -> Arrays:
    """Read tables by split. All columns but that of the class are features, and have the same names in all tables.

    Raises `EquipoiseError` for a cell that is no finite number, unless `reading.skip_unreadable` leaves its row out.
    """
    x: dict[str, np.ndarray] = {}
    y: dict[str, np.ndarray] = {}
    notes: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    for split, file in files.items():
        where = printable(file)
        table = parse_table(content(file), where)
        label = table.label_column(reading.label_column, where)
        features = tuple(name for i, name in enumerate(table.header) if i != label)
        header = header or table.header
        require(
            table.header == header,
            f"{where} has the columns {', '.join(table.header[:8])}, {printable(files['train'])} has "
            f"{', '.join(header[:8])}: expected the same ones.",
        )
        rows, skipped = _numbers(table, label, where, reading.skip_unreadable)
        if skipped:
            left_out = count(len(skipped), ("row", ""))
            notes += (f"{left_out} of {file.name} left out for a cell that is no number ({skipped[0]})",)
        x[split] = np.array([numbers for numbers, _ in rows], np.float64).reshape(len(rows), len(features))
        y[split] = np.array([name for _, name in rows], str)
        if split == "train":
            notes += (f"the class is in the column {table.header[label]!r}; {len(features)} others are features",)
    labels, classes = numbered(y, None, next(iter(files.values())))
    return Arrays({split: (x[split], labels[split]) for split in x}, classes, notes, is_table=True)


def _numbers(table: Table, label: int, where: str, skip: bool) -> tuple[list[tuple[list[float], str]], list[str]]:
    """The rows as numbers with their class, and where those are that were left out."""
    rows: list[tuple[list[float], str]] = []
    skipped: list[str] = []
    for line, row in enumerate(table.rows, table.first_row):
        numbers = [_number(cell) for i, cell in enumerate(row) if i != label]
        if None not in numbers and row[label]:
            rows.append(([number for number in numbers if number is not None], row[label]))
            continue
        bad = next((i for i, cell in enumerate(row) if i != label and _number(cell) is None), label)
        fault = f"row {line}, column {table.header[bad]!r}"
        require(
            skip,
            f"{where}, {fault} holds {row[bad]!r:.40}, which is no {'class' if bad == label else 'number'}: turn the "
            "column into numbers or drop it, name the column of the class with --label-column, or leave such rows out "
            "with --skip-unreadable.",
        )
        skipped.append(fault)
    require(bool(rows), f"{where} has no row of numbers (the first fault: {''.join(skipped[:1])}).")
    return rows, skipped

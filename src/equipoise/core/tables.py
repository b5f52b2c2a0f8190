"""Results that print as a line or a small table, in a terminal and in a notebook, and that are data for other tools."""

import csv
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from equipoise.core.errors import EquipoiseError
from equipoise.core.files import write_atomically

Row = tuple[str, ...]

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def as_markdown(header: Row, rows: Sequence[Row]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ("---",) * len(header), *rows))


def as_latex(header: Row, rows: Sequence[Row]) -> str:
    r"""Return a LaTeX `tabular` with the rules of `booktabs`: text on the left, cells that begin with a digit on the
    right; needs `\usepackage{booktabs}`.
    """
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    sides = "".join("r" if any(cell[:1].isdigit() for cell in column) else "l" for column in columns)
    top, *lines = (
        " & ".join("".join(_LATEX.get(character, character) for character in cell) for cell in row) + r" \\"
        for row in (header, *rows)
    )
    body = (rf"\begin{{tabular}}{{{sides}}}", r"\toprule", top, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}")
    return "\n".join(body)


class Tabular(ABC):
    """Base class of results. `repr` gives one line for a single row, else a table of text; notebooks show HTML."""

    @abstractmethod
    def _table(self) -> tuple[Row, Sequence[Row]]:
        """The names of the columns, and the rows, as they are read."""

    @abstractmethod
    def _columns(self) -> Mapping[str, Sequence[Any]]:
        """The columns by name, as plain Python numbers and texts; None where there is no value."""

    def __repr__(self) -> str:
        header, rows = self._table()
        name = type(self).__name__
        if len(rows) == 1:
            return f"{name}({', '.join(f'{key}: {cell}' for key, cell in zip(header, rows[0], strict=True) if cell)})"
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in (header, *rows))
        return "\n".join([name, *lines])

    def _repr_html_(self) -> str:
        header, rows = self._table()
        head = "".join(f"<th>{escape(name)}</th>" for name in header)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def to_frame(self) -> Any:
        """Return the numbers as a pandas `DataFrame`. Raises `EquipoiseError` if pandas is not installed."""
        try:
            import pandas  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise EquipoiseError("a DataFrame needs pandas: pip install 'equipoise[frames]'.") from error
        return pandas.DataFrame({name: list(values) for name, values in self._columns().items()})

    def to_csv(self, path: "str | os.PathLike[str] | None" = None) -> str:
        """Return the numbers as comma-separated values, a line per row, and write them to `path` if one is given."""
        text, columns = io.StringIO(), self._columns()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([list(columns), *zip(*columns.values(), strict=True)])
        if path is not None:
            write_atomically(path, text.getvalue())
        return text.getvalue()

    def to_latex(self) -> str:
        """Return the table that `repr` prints, for LaTeX with the package `booktabs`."""
        return as_latex(*self._table())

    def to_markdown(self) -> str:
        """Return the table that `repr` prints, in Markdown."""
        return as_markdown(*self._table())

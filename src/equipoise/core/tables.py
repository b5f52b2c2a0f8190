"""Results that print as a line or a small table, in a terminal and in a notebook."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from html import escape

Row = tuple[str, ...]


def as_markdown(header: Row, rows: Sequence[Row]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ("---",) * len(header), *rows))


class Tabular(ABC):
    """Base class of results. `repr` gives one line for a single row, else a table of text; notebooks show HTML."""

    @abstractmethod
    def _table(self) -> tuple[Row, Sequence[Row]]:
        """The names of the columns, and the rows."""

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

"""The command table: accuracies of several models for a paper, a spreadsheet or a page."""

from collections.abc import Callable

from rich.table import Table as Shown

from equipoise.cli.console import say
from equipoise.cli.recorded import require_file
from equipoise.cli.using_requests import Table
from equipoise.core.errors import require, unknown
from equipoise.core.files import write_once
from equipoise.report.tables import AccuracyTable  # fmt: skip
from equipoise.report.tables import tabulate as tabulated

_FORMATS: dict[str, Callable[[AccuracyTable], str]] = {
    "latex": AccuracyTable.to_latex,
    "csv": AccuracyTable.to_csv,
    "markdown": AccuracyTable.to_markdown,
}
_ENDINGS = {".tex": "latex", ".csv": "csv", ".md": "markdown"}


def tabulate(options: Table) -> None:
    """Print the table, or write it into a file."""
    asked = [name for name in _FORMATS if getattr(options, name)]
    require(len(asked) <= 1, f"--{' and --'.join(asked)} exclude each other: choose one.")
    if options.out is not None and not asked:
        if options.out.suffix not in _ENDINGS:
            raise unknown("ending of --out", options.out.suffix, _ENDINGS)
        asked = [_ENDINGS[options.out.suffix]]
    table = tabulated(options.runs)
    if not asked:
        header, rows = table._table()
        shown = Shown()
        for number, name in enumerate(header):
            shown.add_column(name, justify="right" if number else "left", overflow="fold")
        for row in rows:
            shown.add_row(*row)
        say(shown)
        return
    text = _FORMATS[asked[0]](table).rstrip("\n") + "\n"
    if options.out is None:
        print(text, end="")
        return
    require_file(options.out)
    say(f"wrote {write_once(options.out, text.encode('utf-8', 'backslashreplace'), options.overwrite)}")

"""What the papers publish: tables as they are printed, in `papers/PAPER.txt`, and what there is to know of each table
and figure, in `papers/PAPER.toml`.
"""

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files

from equipoise.core.errors import unknown
from equipoise.reproduce.experiment import Cell, Experiment, Part, PublishedValue, Read, Table, Variant
from equipoise.reproduce.tasks import StudyTask, Task


def experiments(paper: str, parts: Mapping[str, Callable[[Variant], Sequence[Part]]]) -> list[Experiment]:
    """Return the experiments of `udp`, `uta`, `rethinking` or `framework`: `parts` gives the tables and figures of each
    by its name; of others the file of the paper names the studies that they show.
    """
    content = tomllib.loads(_text(f"{paper}.toml"))
    texts: dict[str, str] = {}
    for name, text in {**tomllib.loads(_text("shared.toml"))["shared"], **content.pop("shared")}.items():
        texts[name] = text.format_map(texts)
    found = []
    for name, entry in content.items():
        quirks, notes = (entry.get(which, "").format_map(texts) for which in ("quirks", "notes"))
        build = parts[name] if name in parts else _studies(entry["studies"], entry.get("data", ""))
        found.append(Experiment(name, entry["title"], entry["source"], build, quirks, notes))
    return found


def _studies(studies: Mapping[str, str], data: str) -> Callable[[Variant], list[Part]]:
    shown: list[Part] = [PublishedValue(title, StudyTask(name, data=data)) for title, name in studies.items()]
    return lambda variant: shown


def published_table(
    title: str,
    paper: str,
    name: str,
    source: Callable[[str, str], tuple[Sequence[Task], Read]],
    *,
    corner: str = "method",
    unit: str = "%",
    scale: float | Callable[[str, str], float] = 100.0,
    decimals: int = 2,
) -> Table:
    """Return the table of that `name`, with the tasks and the reading of its rows and columns as `source` gives them;
    `scale` is as in `Cell`, for all or by row and column.
    """
    cells = []
    for row, column, value, deviation in published_values(paper, name, decimals):
        factor = scale(row, column) if callable(scale) else scale
        cells.append(Cell(row, column, *source(row, column), value, deviation, factor))
    return Table(title, cells, corner, unit)


def published_values(paper: str, name: str, decimals: int = 2) -> Iterator[tuple[str, str, float | None, float]]:
    """Return what `table_values` finds in the table of that name, such as `Table 2, robust`."""
    sections = (section.partition("\n") for section in _text(f"{paper}.txt").split("\n# ")[1:])
    tables = {title: body for title, _, body in sections}
    if name not in tables:
        raise unknown("table", name, tables)
    return table_values(tables[name], decimals)


@cache
def _text(name: str) -> str:
    return files("equipoise.reproduce").joinpath("papers", name).read_text("utf-8")


def table_values(text: str, decimals: int = 2) -> Iterator[tuple[str, str, float | None, float]]:
    """Return row, column, number and deviation of every entry of a table, row by row; a dash stands for no entry, `?`
    for a number that the paper does not give.

    The first line names the columns, in one word each, an underscore for a space; every other line is a row: its name,
    and a word per column, such as `61.8±0.8`. The deviation is what is stated, and at least the rounding: half a unit
    of the last of the `decimals` that the paper prints, some of which it may have dropped as zeros.
    """
    head, *lines = text.strip().splitlines()
    columns = [word.replace("_", " ") for word in head.split()]
    for line in lines:
        words = line.split()
        row = " ".join(words[: -len(columns)])
        for column, word in zip(columns, words[-len(columns) :], strict=True):
            number, _, stated = word.partition("±")
            if number != "-":
                value = None if number == "?" else float(number)
                yield row, column, value, max(float(stated or 0), rounding(number, decimals))


def rounding(word: str, decimals: int = 2) -> float:
    """Return half a unit of the last digit printed, or of the last of `decimals` where fewer are printed."""
    return 0.5 * 10.0 ** -max(len(word.partition(".")[2]), decimals)

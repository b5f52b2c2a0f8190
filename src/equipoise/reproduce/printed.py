"""Tables as they are printed: `papers/PAPER.txt` holds those of a paper, line by line as in print."""

from collections.abc import Iterator, Mapping
from importlib.resources import files

from equipoise.core.errors import unknown


def table(paper: str, name: str) -> str:
    """The table of that name of `udp`, `uta`, `rethinking` or `framework`, such as `Table 2, robust`."""
    tables = _tables(files("equipoise.reproduce").joinpath("papers", f"{paper}.txt").read_text("utf-8"))
    if name not in tables:
        raise unknown("table", name, tables)
    return tables[name]


def _tables(text: str) -> Mapping[str, str]:
    """The tables of a text by their headings, which follow a `#`."""
    parts = (part.partition("\n") for part in text.split("\n# ")[1:])
    return {name: body for name, _, body in parts}


def printed(text: str, decimals: int = 2) -> Iterator[tuple[str, str, float | None, float]]:
    """Row, column, number and deviation of every entry of a table, row by row; a dash is none, `?` a number that the
    paper does not give.

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
    """Half a unit of the last digit, or of the last of so many decimals where fewer are printed."""
    return 0.5 * 10.0 ** -max(len(word.partition(".")[2]), decimals)

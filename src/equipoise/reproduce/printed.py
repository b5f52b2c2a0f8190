"""Tables as they are printed, so that they can be compared with the paper line by line."""

from collections.abc import Iterator


def printed(text: str) -> Iterator[tuple[str, str, float, float]]:
    """Row, column, number and deviation of every number of a table; a dash is none.

    The first line names the columns, in one word each, an underscore for a space; every other line is a row: its name,
    and a word per column.
    The deviation is half a unit of a number's last digit, but at most of its second decimal, as R drops trailing zeros.
    """
    head, *lines = text.strip().splitlines()
    columns = [word.replace("_", " ") for word in head.split()]
    for line in lines:
        words = line.split()
        row = " ".join(words[: -len(columns)])
        for column, word in zip(columns, words[-len(columns) :], strict=True):
            if word != "-":
                yield row, column, float(word), rounding(word)


def rounding(word: str) -> float:
    """Half a unit of the last digit, or of the second decimal where fewer are printed."""
    return 0.5 * 10.0 ** -max(len(word.partition(".")[2]), 2)

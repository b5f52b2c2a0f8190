"""Writes docs/reproductions.md from the records in benchmarks/results/reproductions.

A record is the `reproduction.json` that `equipoise report` writes into the folder of an `equipoise reproduce`, kept
under the experiment's name; what is to be said of it stands in a `.md` of the same name beside it.
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "benchmarks" / "results" / "reproductions"
PAGE = ROOT / "docs" / "reproductions.md"
HEAD = """# Reproductions

What was measured with `equipoise reproduce`, beside the papers' numbers. Each cell is ours, its 95 % interval, and the
paper's number in brackets; **bold** where our interval holds the paper's number or ours lies within its stated
deviation. Intervals are of the test samples where one or two trainings were made, and over trainings from three on.
A scale below 1 shortens the paper's epochs, test samples and seeds together. The page is made from the records in
`benchmarks/results/reproductions` by `benchmarks/reproductions.py`.
"""


def page() -> str:
    """The page of all records, in the order of their names."""
    return "\n".join([HEAD, *(_experiment(path) for path in sorted(RECORDS.glob("*.json")))])


def _experiment(path: Path) -> str:
    record, said = json.loads(path.read_text()), path.with_suffix(".md")
    origin = record["provenance"]
    commit = (origin.get("commit") or "outside a repository")[:12]
    lines = [
        f"## {record['source']}: {record['title']}\n",
        f"{record['verdict']}\n",
        *(_part(part) for part in record["parts"]),
        *([f"{record['notes']}\n"] if record["notes"] else []),
        *([f"{record['variant'].capitalize()}. {record['quirks']}\n"] if record["quirks"] else []),
        f"`{origin['command']}`, {record['seconds'] / 60:.0f} minutes of computing, {origin['device']}, "
        f"{origin['date'][:10]}, commit {commit}.\n",
        *([said.read_text()] if said.exists() else []),
    ]
    return "\n".join(lines)


def _part(part: dict[str, Any]) -> str:
    if "lines" in part:
        rows = [[name, f"{x:.4g}", _cell(one)] for name, line in part["lines"].items() for x, one in line]
        return _table(part["title"], ["curve", part["x"], part["y"]], rows)
    if "unit" not in part:
        rows = [[n["name"], _number(n["mean"]), _span(n["interval"]), n["paper"] or "–"] for n in part["numbers"]]
        return (f"{part['verdict']}\n\n" if part["verdict"] else "") + _table(
            part["title"], ["measured", "mean", "95 % interval", "the paper"], rows
        )
    numbers = part["numbers"]
    columns = list(dict.fromkeys(n["column"] for n in numbers))
    at = {(n["row"], n["column"]): n for n in numbers}
    rows = [
        [row, *(_cell(at[row, column]) if (row, column) in at else "–" for column in columns)]
        for row in dict.fromkeys(n["row"] for n in numbers)
    ]
    corner = f"{part['corner']}, {part['unit']}" if part["unit"] else part["corner"]
    return _table(part["title"], [corner, *columns], rows)


def _table(title: str, head: list[str], rows: list[list[str]]) -> str:
    lines = [f"*{title}*\n", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), ""])


def _cell(number: dict[str, Any]) -> str:
    if number["mean"] is None:
        return "not run"
    ours = _number(number["mean"])
    ours = f"**{ours}**" if number["reproduced"] else ours
    span = f" {_span(number['interval'])}" if number["interval"] else ""
    paper = "" if number["paper"] is None else f" [{_number(number['paper'])}]"
    return f"{ours}{span}{paper}"


def _span(interval: list[float] | None) -> str:
    return "–" if interval is None else f"({_number(interval[0])} to {_number(interval[1])})"


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(ROOT)}")

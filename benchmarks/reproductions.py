"""Keep what `equipoise reproduce` measured: `python benchmarks/reproductions.py [FOLDER ...]`.

The record of each folder, its numbers without the weights, goes into `benchmarks/results/reproductions` under the
experiment's name, without the paths of this machine; its studies' pictures, half as large, into
`docs/images/reproductions`. Remarks on a record stand in a `.md` of the same name beside it. Then
`docs/reproductions.md` is written from all records.
"""

import io
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from equipoise.report.reproduction import written
from equipoise.report.studies import draw
from equipoise.reproduce import in_words, reproduction
from equipoise.results.reproduction import ShownOutcome

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "benchmarks" / "results" / "reproductions"
PAGE = ROOT / "docs" / "reproductions.md"
DATA = PAGE.with_name("claims.json")
PICTURES = PAGE.parent / "images" / "reproductions"
HEAD = """# Reproductions

What was measured with `equipoise reproduce`, beside the papers' numbers. Each cell is ours, its 95 % interval, and the
paper's number in brackets; **bold** where ours agrees with the paper's. A number *agrees* if the 95 % interval of ours
minus the paper's lies within 2 points (of a number that is no percentage, within 2 % of the paper's), it *differs* if
the interval lies wholly beyond, and is *undecided* otherwise, so that few samples decide nothing. Intervals hold the
noise of training where they come from two trainings or more; a star marks a table whose intervals are of the test
samples alone. Kendall's tau compares the order of the methods, place by place: 1 is the paper's order, -1 its reverse;
its interval comes from errors as wide as ours. A scale below 1 shortens the paper's epochs, test samples and seeds
together. The page is made from the records in `benchmarks/results/reproductions` by `benchmarks/reproductions.py`; the
claims and the counts are also in [claims.json](claims.json).
"""
CLAIMS = """## Claims

What the papers say beyond their tables. A claim *holds* if the 95 % interval of a difference, sample by sample and seed
by seed, lies above what is claimed, it *fails* if the interval lies below, and is *undecided* otherwise. A star marks
what comes from one training of each kind, whose noise the interval does not include.
"""


def keep(folder: Path) -> None:
    """Keep the record of a folder, and the pictures of its studies."""
    results = reproduction(folder)
    record = _without_places(dict(in_words(results)))
    (RECORDS / f"{results.name}{'-as-published' * _published(record)}.json").write_text(
        json.dumps(record, indent=1) + "\n"
    )
    PICTURES.mkdir(exist_ok=True)
    for part in results.parts:
        if isinstance(part, ShownOutcome) and part.study:
            for picture in part.study.findings.pictures:
                _save(draw(picture), f"{part.study.name}-{picture.name}")


def _without_places(value: Any) -> Any:
    """The same without the paths of this machine: of each the last part is left."""
    if isinstance(value, dict):
        return {key: _without_places(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_places(item) for item in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"(?<!\S)/\S*/(?=\S)", "", value)


def _save(picture: bytes, name: str) -> None:
    """Keep a picture half as large."""
    small = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as drawn:
        image = drawn.convert("RGB").reduce(2).quantize(256, Image.Quantize.MAXCOVERAGE)
        image.save(small, "png", optimize=True)
    (PICTURES / f"{name}.png").write_bytes(small.getvalue())


def front(part: dict[str, Any]) -> dict[str, list[tuple[str, dict[str, Any], dict[str, Any]]]]:
    """Return by attack each method of a table with its clean and its robust accuracy, where the paper prints both."""
    if part.get("unit") != "%" or part["title"].startswith("Mean"):
        return {}
    at = {(n["row"], n["column"]): n for n in part["numbers"] if n["paper"] is not None and n["mean"] is not None}
    if not any(column == "clean" for _, column in at):
        at = {(column, row.lower()): n for (row, column), n in at.items()}  # methods are rows
    attacks = dict.fromkeys(column for _, column in at if column != "clean")
    methods = dict.fromkeys(row for row, column in at if column == "clean")
    return {a: [(m, at[m, "clean"], at[m, a]) for m in methods if (m, a) in at] for a in attacks} if methods else {}


def draw_front(points: dict[str, list[tuple[str, dict[str, Any], dict[str, Any]]]]) -> bytes:
    """Return a figure of clean against robust accuracy, a panel for each attack: ours with its interval, joined to the
    paper's, which is hollow.
    """
    columns = min(len(points), 4)
    rows = -(-len(points) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.9 * rows + 0.6), layout="constrained")
    handles: dict[str, Any] = {}
    for i, (attack, methods) in enumerate(points.items()):
        axes = figure.add_subplot(rows, columns, i + 1, title=attack, xlabel="clean, %", ylabel="robust, %")
        for j, (name, clean, robust) in enumerate(methods):
            errors = [[abs(end - n["mean"])] for n in (clean, robust) for end in n["interval"] or (n["mean"],) * 2]
            x = np.array(errors[:2]), np.array(errors[2:])
            handles[name] = axes.errorbar(clean["mean"], robust["mean"], x[1], x[0], "o", color=f"C{j}", markersize=5)
            axes.plot(
                [clean["mean"], clean["paper"]], [robust["mean"], robust["paper"]], ":", color=f"C{j}", linewidth=1
            )
            axes.plot(clean["paper"], robust["paper"], "o", color=f"C{j}", fillstyle="none", markersize=7)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def draw_fronts() -> None:
    """Draw the fronts of all records."""
    for path in RECORDS.glob("*.json"):
        for i, part in enumerate(json.loads(path.read_text())["parts"]):
            if points := front(part):
                _save(draw_front(points), f"{path.stem}-front-{i}")


def page() -> str:
    """Return the page of all records, in the order of their names, table 2 before table 11."""
    paths = sorted(RECORDS.glob("*.json"), key=lambda path: [part.zfill(4) for part in path.stem.split("-")])
    records = {path: json.loads(path.read_text()) for path in paths}
    shown: dict[str, str] = {}  # a study's first place
    sections = [_experiment(path, record, shown) for path, record in records.items()]
    claims = _claims(records.values())
    return "\n".join([HEAD, *([CLAIMS, claims] if claims else []), _summary(records.values()), *sections])


def data() -> str:
    """Return all claims, and the counts of every record, as JSON."""
    records = [json.loads(path.read_text()) for path in sorted(RECORDS.glob("*.json"))]
    shared = ("name", "source", "scale", "variant", "seeds", "examples", "changes", "seconds", "verdict", "agreements",
              "median_difference", "order")  # fmt: skip
    kept = [{**{key: one.get(key) for key in shared}, "claims": _claims_of(one)} for one in records]
    return json.dumps(kept, indent=1) + "\n"


def _claims_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [claim for part in record["parts"] for claim in part.get("claims", ())]


def _claims(records: Iterable[dict[str, Any]]) -> str:
    """The counts of every experiment, then every claim: whether it holds, by how much, and what was computed to find
    out; empty without claims.
    """
    short, rows = [], []
    for one in records:
        claims = [claim for claim in _claims_of(one) if claim["verdict"]]
        if not claims:
            continue
        link = f"[{_place(one)}](#{_slug(one)})"
        counts = [sum(claim["verdict"] == verdict for claim in claims) for verdict in _VERDICTS]
        short.append([link, one["title"], *map(str, counts), _computed(one), f"{one['seconds'] / 3600:.1f}"])
        for claim in claims:
            verdict = claim["verdict"] + "\\*" * (claim["difference"]["seeds"] == 1)
            rows.append([f"{claim['statement']} ({claim['source']})", verdict, _size(claim), link, _computed(one)])
    if not rows:
        return ""
    counted = _table("In short", ["experiment", "about", *_VERDICTS, "computed", "hours of computing"], short)
    listed = _table("All of them", ["claim", "verdict", "difference", "experiment", "computed"], rows)
    return counted + "\n" + listed


_VERDICTS = ("holds", "fails", "undecided")


def _computed(record: dict[str, Any]) -> str:
    """At what scale, and with what changed: `1, epochs 10`."""
    changes = (f"{name} {value}" for name, value in (record.get("changes") or {}).items())
    return ", ".join([f"{record['scale']:.2g}", *changes])


def _size(claim: dict[str, Any]) -> str:
    """By how much the first number exceeds the second."""
    gap = claim["difference"]
    return f"{written(gap['mean'])} {_span(gap['interval'])} {claim['unit']}"


def _summary(records: Iterable[dict[str, Any]]) -> str:
    """Every record in a row, with a link to its section."""
    rows = []
    for one in records:
        about = [f"[{_place(one)}](#{_slug(one)})", one["title"], _computed(one)]
        rows.append([*about, *_counts(one), f"{one['seconds'] / 3600:.1f}"])
    columns = ["agree", "differ", "undecided", "median difference", "order of the methods, tau"]
    return _table("All of them", ["of the paper", "what", "scale", *columns, "hours of computing"], rows)


def _counts(record: dict[str, Any]) -> list[str]:
    """The three counts, the median difference in points, and Kendall's tau."""
    counts, difference, order = record["agreements"], record["median_difference"], record["order"]
    if not any(counts.values()):
        return ["none printed", "", "", "", ""]
    numbers = (number for part in record["parts"] for number in _numbers(part))
    star = "\\*" * any(number.get("over") == "samples" and number.get("agreement") for number in numbers)
    return [
        f"{counts['agrees']}{star}",
        *(str(counts[word]) for word in ("differs", "undecided")),
        "–" if difference is None else f"{difference:.1f}",
        "–" if order is None else f"{order['tau']:.2f} {_span(order['interval'])}",
    ]


def _slug(record: dict[str, Any]) -> str:
    """The anchor of its heading."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", _heading(record)).lower())


def _published(record: dict[str, Any]) -> bool:
    """Whether it has the quirks of the paper's own code."""
    return bool(record["quirks"]) and record["variant"] == "as published"


def _place(record: dict[str, Any]) -> str:
    return record["source"] + ", as published" * _published(record)


def _heading(record: dict[str, Any]) -> str:
    return f"{_place(record)}: {record['title']}"


def _numbers(part: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a table, a chart or a study."""
    if "claims" in part:
        return []
    return [one for line in part["lines"].values() for _, one in line] if "lines" in part else part["numbers"]


def _experiment(path: Path, record: dict[str, Any], shown: dict[str, str]) -> str:
    remarks, origin = path.with_suffix(".md"), record["provenance"]
    commit = (origin.get("commit") or "outside a repository")[:12]
    lines = [
        f"## {_heading(record)}\n",
        f"{record['verdict']}\n",
        *(f"**Caution.** {caution}.\n" for caution in record["cautions"]),
        *(_part(part, record["source"], shown) for part in record["parts"]),
        *(
            f"![fronts](images/reproductions/{path.stem}-front-{i}.png)\n*Clean against robust accuracy: ours with its "
            "95 % interval, joined to the paper's, which is hollow.*\n"
            for i, part in enumerate(record["parts"])
            if front(part)
        ),
        *([f"{record['notes']}\n"] if record["notes"] else []),
        *([f"The variant is *{record['variant']}*. {record['quirks']}\n"] if record["quirks"] else []),
        f"`{origin['command']}`, {record['seconds'] / 60:.0f} minutes of computing, {origin['device']}, "
        f"{origin['date'][:10]}, commit {commit}.\n",
        *([remarks.read_text()] if remarks.exists() else []),
    ]
    return "\n".join(lines)


def _part(part: dict[str, Any], source: str, shown: dict[str, str]) -> str:
    if "lines" in part:
        rows = [[name, f"{x:.4g}", _cell(one)] for name, line in part["lines"].items() for x, one in line]
        return _table(part["title"], ["curve", part["x"], part["y"]], rows)
    if "claims" in part:
        columns = ["claim", "verdict", "difference", "claimed", "seeds"]
        rows = [[f"{one['statement']} ({one['source']})", one["verdict"] or "not run", _size(one),
                 f"above {written(one['by'])}", str(one["difference"]["seeds"])] for one in part["claims"]]  # fmt: skip
        return _table(part["title"], columns, rows)
    if "unit" not in part:
        return _study(part, source, shown)
    numbers = part["numbers"]
    columns = list(dict.fromkeys(n["column"] for n in numbers))
    cells = {(n["row"], n["column"]): _cell(n) for n in numbers}
    names = dict.fromkeys(n["row"] for n in numbers)
    rows = [[name, *(cells.get((name, column), "–") for column in columns)] for name in names]
    corner = f"{part['corner']}, {part['unit']}" if part["unit"] else part["corner"]
    return _table(part["title"], [corner, *columns], rows)


def _study(part: dict[str, Any], source: str, shown: dict[str, str]) -> str:
    study, verdict = part["study"], f"{part['verdict']}\n" if part["verdict"] else ""
    if shown.setdefault(study, source) != source:
        return f"{verdict}\nIts study, `{study}`, is shown under {shown[study]}.\n"
    pictures = [
        f"![{one['name']}](images/reproductions/{study}-{one['name']}.png)\n*{one['caption']}*\n"
        for one in part["pictures"]
    ]
    rows = [
        [n["name"], *_mean_and_span(n), f"{n['n']} {n['unit']}".strip(), n["paper"] or "–"] for n in part["numbers"]
    ]
    columns = ["measured", "mean", "95 % interval", "of", "the paper"]
    return "\n".join([verdict, *pictures, _table(part["title"], columns, rows)])


def _mean_and_span(number: dict[str, Any]) -> list[str]:
    if not number["percent"]:
        return [written(number["mean"]), _span(number["interval"])]
    return [f"{100 * number['mean']:.1f} %", _span(number["interval"] and [100 * end for end in number["interval"]])]


def _table(title: str, head: list[str], rows: list[list[str]]) -> str:
    lines = [f"*{title}*\n", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), ""])


def _cell(number: dict[str, Any]) -> str:
    if number["mean"] is None:
        return "not run"
    ours = written(number["mean"])
    ours = f"**{ours}**" if number["agreement"] == "agrees" else ours
    span = f" {_span(number['interval'])}" if number["interval"] else ""
    paper = "" if number["paper"] is None else f" [{written(number['paper'])}]"
    return f"{ours}{span}{paper}"


def _span(interval: list[float] | None) -> str:
    return "–" if interval is None else f"({written(interval[0])} to {written(interval[1])})"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        keep(Path(name))
    draw_fronts()
    PAGE.write_text(page())
    DATA.write_text(data())
    print(f"wrote {PAGE.relative_to(ROOT)}")

"""What a folder of an experiment holds, beside the paper's numbers."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import read_json, write_atomically
from equipoise.report.reading import read_metrics
from equipoise.reproduce.experiment import Cell, Chart, Part, Plan, Table, found
from equipoise.reproduce.registry import experiment
from equipoise.reproduce.sweep import DONE, RECORD
from equipoise.reproduce.tasks import Evaluated, Task, Training, result_at
from equipoise.results.findings import Findings, Study
from equipoise.results.records import Evaluation
from equipoise.results.reproduction import (
    ChartOutcome,
    Generator,
    Outcome,
    Reproduction,
    ShownOutcome,
    TableOutcome,
    Trained,
    Work,
)

NUMBERS = "reproduction.json"


def reproduction(folder: "Path | str") -> Reproduction:
    """What was computed in that folder by `sweep`, finished or not.

    The tasks are recognised by what they compute, so that numbers of the papers that were corrected since count, and
    results of an earlier version of the library do too; each says its commit. Raises `EquipoiseError` if the folder
    holds no experiment, or one whose tasks are others today.
    """
    folder = Path(folder)
    record = _json(folder / RECORD)
    plan = experiment(record["name"]).plan(
        record["scale"],
        record["variant"],
        record.get("seeds"),
        record.get("only", ()),
        record.get("examples"),
        record.get("changes", {}),
    )
    tasks, entries = plan.tasks(), record["tasks"]
    same = len(tasks) == len(entries) and all(t.label == e["label"] for t, e in zip(tasks, entries, strict=False))
    require(
        same,
        f"{folder} holds {record['name']} as it was defined before: run `equipoise reproduce` into another place, or "
        "read the records of its tasks.",
    )
    places = {repr(task): folder / entry["folder"] for task, entry in zip(tasks, entries, strict=True)}
    reader = _Reader(places)
    one = plan.experiment
    return Reproduction(
        one.name,
        one.title,
        one.source,
        plan.scale,
        plan.variant,
        [_part(part, reader) for part in plan.parts],
        [_work(task, places[repr(task)]) for task in tasks],
        _trained(plan, reader),
        one.quirks,
        one.notes,
        {name: about["name"] for name, about in record["data"].items() if about.get("name") != name},
        record["provenance"],
        plan.examples,
        plan.seeds,
        plan.changes,
        _generators(plan, reader),
    )


class _Reader:
    """The records of the finished tasks, each read once."""

    def __init__(self, places: Mapping[str, Path]) -> None:
        self.places = places
        self._read: dict[str, Any] = {}

    def folder(self, task: Task) -> Path:
        """Where it lies."""
        return self.places[repr(task)]

    def __call__(self, task: Task) -> Any:
        """Its record; None if it is not finished."""
        word = repr(task)
        if word not in self._read:
            done = (self.folder(task) / DONE).exists()
            self._read[word] = result_at(task, self.folder(task)) if done else None
        return self._read[word]


def _part(part: Part, read: _Reader) -> TableOutcome | ChartOutcome | ShownOutcome:
    if isinstance(part, Table):
        return TableOutcome(part.title, part.corner, part.unit, [_outcome(cell, read) for cell in part.cells])
    if isinstance(part, Chart):
        lines = {line.name: [(x, _outcome(cell, read)) for x, cell in line.points] for line in part.lines}
        return ChartOutcome(part.title, part.x, part.y, lines)
    study = read(part.task)
    return ShownOutcome(part.title, study if isinstance(study, Study) else None, read.folder(part.task).name)


def _outcome(cell: Cell, read: _Reader) -> Outcome:
    """The number of a cell from the tasks that are finished."""
    known = [task for task in cell.tasks if read(task) is not None]
    return found(cell, [read(task) for task in known], [read.folder(task).name for task in known])


def _work(task: Task, place: Path) -> Work:
    done = place / DONE
    told = _json(done) if done.exists() else {}
    return Work(place.name, task.label, task.kind, told.get("seconds"), told.get("provenance", {}).get("commit"))


def _trained(plan: Plan, read: _Reader) -> list[Trained]:
    """Every evaluated network in every ball, with its clean accuracy and the lowest that attacks leave of it."""
    points = []
    for task in plan.tasks():
        record = read(task) if isinstance(task, Evaluated) else None
        if not isinstance(task, Evaluated) or not isinstance(record, Evaluation):
            continue
        clean = next(one for one in record.results if one.attack == "clean")
        balls = {(one.norm, one.eps) for one in record.results if one.attack != "clean"}
        for norm, eps in sorted(balls):
            worst = min(one.accuracy for one in record.results if (one.norm, one.eps) == (norm, eps))
            ball = f"{task.data}, {norm}, eps {eps:.4g}"
            points.append(Trained(_named(task.of), ball, 100 * clean.accuracy, 100 * worst, read.folder(task).name))
    return points


def _generators(plan: Plan, read: _Reader) -> list[Generator]:
    """How the adversarial generators of the finished trainings did in the last epoch."""
    found = []
    for task in plan.tasks():
        if not isinstance(task, Training) or read(task) is None:
            continue
        last = read_metrics(read.folder(task) / "metrics.jsonl")[-1]
        if "generator_crossed" in last:
            crossed, distance = last["generator_crossed"], last["generator_distance"]
            found.append(Generator(task.label, crossed, distance, read.folder(task).name))
    return found


def _named(training: Training) -> str:
    return f"{training.method}, seed {training.recipe.seed}"


def _json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except OSError as error:
        raise EquipoiseError(f"{path.parent} holds no experiment: cannot read {path.name}.") from error
    except ValueError as error:
        raise EquipoiseError(f"{path} is damaged ({error}): run the same `equipoise reproduce` again.") from error
    require(isinstance(content, dict), f"{path} is damaged: run the same `equipoise reproduce` again.")
    return content


def in_words(outcome: Reproduction) -> Mapping[str, Any]:
    """The numbers without the pictures, JSON-ready: what is kept beside the code."""

    def one(number: Outcome) -> dict[str, Any]:
        return {
            "row": number.row, "column": number.column, "paper": number.paper, "deviation": number.deviation,
            "mean": number.mean, "interval": number.interval, "n": number.n, "seeds": number.seeds,
            "over": number.over, "margin": number.margin, "agreement": number.agreement,
        }  # fmt: skip

    def part(it: TableOutcome | ChartOutcome | ShownOutcome) -> dict[str, Any]:
        if isinstance(it, TableOutcome):
            return {"title": it.title, "unit": it.unit, "corner": it.corner, "numbers": [one(n) for n in it.outcomes]}
        if isinstance(it, ChartOutcome):
            curves = {name: [[x, one(n)] for x, n in line] for name, line in it.lines.items()}
            return {"title": it.title, "x": it.x, "y": it.y, "lines": curves}
        found = it.study.findings if it.study else Findings([], [])
        return {
            "title": it.title,
            "study": it.study.name if it.study else None,
            "verdict": found.verdict,
            "numbers": [{"name": n.name, "mean": n.mean, "interval": n.interval, "n": len(n.values), "unit": n.unit,
                         "percent": n.percent, "paper": n.paper} for n in found.numbers],
            "pictures": [{"name": one.name, "caption": one.caption} for one in found.pictures],
        }  # fmt: skip

    alike = outcome.order
    return {
        "kind": "reproduction", "schema": 2, "name": outcome.name, "title": outcome.title, "source": outcome.source,
        "scale": outcome.scale, "variant": outcome.variant, "examples": outcome.examples, "seeds": outcome.seeds,
        "changes": dict(outcome.changes), "verdict": outcome.verdict, "agreements": outcome.agreements,
        "median_difference": outcome.median_difference, "order": None if alike is None else asdict(alike),
        "cautions": outcome.cautions, "generators": [asdict(one) for one in outcome.generators],
        "quirks": outcome.quirks,
        "notes": outcome.notes, "data": dict(outcome.data), "seconds": outcome.seconds,
        "provenance": dict(outcome.provenance), "parts": [part(it) for it in outcome.parts],
    }  # fmt: skip


def keep_numbers(folder: "Path | str", outcome: Reproduction) -> Path:
    """Write them into the folder, as `reproduction.json`. Returns that file."""
    return write_atomically(Path(folder) / NUMBERS, (json.dumps(in_words(outcome), indent=1) + "\n").encode())

"""What the folder of an experiment holds, beside the paper's numbers."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import stdev
from typing import Any, cast

from equipoise.core.errors import require
from equipoise.core.files import write_atomically
from equipoise.report.reading import read_metrics
from equipoise.reproduce.experiment import (
    Cell,
    Chart,
    Claim,
    Claims,
    Part,
    Plan,
    Table,
    Variant,
    clean,
    difference,
    found,
)
from equipoise.reproduce.registry import experiment
from equipoise.reproduce.running import result_in
from equipoise.reproduce.sweep_folder import DONE, read_record, read_state
from equipoise.reproduce.tasks import Evaluated, Task, Training
from equipoise.results.findings import Findings, Study
from equipoise.results.reproduction import (
    ChartOutcome,
    ClaimOutcome,
    ClaimsOutcome,
    Generator,
    Outcome,
    PartOutcome,
    Reproduction,
    ShownOutcome,
    TableOutcome,
    Trained,
    Work,
)

NUMBERS = "reproduction.json"
_EPOCHS = 5
"""Of how many epochs a spread is taken at least."""


def reproduction(folder: "Path | str") -> Reproduction:
    """Return what was computed in that folder by `sweep`, finished or not.

    The tasks are recognised by what they compute, so that numbers of the papers that were corrected since count, and
    results of an earlier version of the library do too; each says its commit. Raises `EquipoiseError` if the folder
    holds no experiment, or one whose tasks are others today.
    """
    folder = Path(folder)
    record = read_record(folder)
    one = experiment(record.name)
    variant = cast(Variant, record.variant)
    plan = one.plan(record.scale, variant, record.seeds, record.only, record.examples, record.changes)
    tasks = plan.tasks()
    require(
        [task.label for task in tasks] == [entry.label for entry in record.tasks],
        f"{folder} holds {record.name} as it was defined before: run `equipoise reproduce` into another place, or "
        "read the records of its tasks.",
    )
    results = _Results(
        plan, {repr(task): folder / entry.folder for task, entry in zip(tasks, record.tasks, strict=True)}
    )
    return Reproduction(
        one.name,
        one.title,
        one.source,
        plan.scale,
        plan.variant,
        [results.part(part) for part in plan.parts],
        [results.work(task) for task in tasks],
        results.trained(),
        one.quirks,
        one.notes,
        {name: data.name for name, data in record.data.items() if data.name != name},
        record.provenance,
        plan.examples,
        plan.seeds,
        plan.changes,
        results.generators(),
    )


class _Results:
    """What the finished tasks of a plan say; every record is read once."""

    def __init__(self, plan: Plan, folders: Mapping[str, Path]) -> None:
        self.tasks, self.folders = plan.tasks(), folders
        self._records: dict[str, Any] = {}

    def folder(self, task: Task) -> Path:
        return self.folders[repr(task)]

    def record(self, task: Task) -> Any:
        """The record of a task; None if it is not finished."""
        word, folder = repr(task), self.folder(task)
        if word not in self._records:
            self._records[word] = result_in(task, folder) if (folder / DONE).exists() else None
        return self._records[word]

    def part(self, part: Part) -> PartOutcome:
        if isinstance(part, Table):
            return TableOutcome(part.title, part.corner, part.unit, [self.outcome(cell) for cell in part.cells])
        if isinstance(part, Chart):
            lines = {line.name: [(x, self.outcome(cell)) for x, cell in line.points] for line in part.lines}
            return ChartOutcome(part.title, part.x, part.y, lines)
        if isinstance(part, Claims):
            return ClaimsOutcome(part.title, [self.claim(claim) for claim in part.claims])
        study = self.record(part.task)
        return ShownOutcome(part.title, study if isinstance(study, Study) else None, self.folder(part.task).name)

    def outcome(self, cell: Cell) -> Outcome:
        """The number of a cell from the tasks that are finished."""
        done = [task for task in cell.tasks if self.record(task) is not None]
        result = found(cell, [self.record(task) for task in done], [self.folder(task).name for task in done])
        if result.over != "samples" or not done or not isinstance(done[0], Evaluated):
            return result
        noise = self.noise(done[0].of, "clean" if cell.read is clean else "pgd")
        return result if noise is None else result.with_noise(cell.scale * noise)

    def noise(self, training: Training, kind: str) -> float | None:
        """The standard deviation of a validation accuracy over the last quarter of the epochs, which all see the same
        samples: what another training would change, where the learning rate is constant. None elsewhere, and where the
        quarter is too short.
        """
        if training.recipe.schedule != "constant":
            return None
        epochs = read_metrics(self.folder(training) / "metrics.jsonl")
        last = [epoch[f"valid_{kind}"] for epoch in epochs[-(len(epochs) // 4) :] if f"valid_{kind}" in epoch]
        return stdev(last) if len(last) >= _EPOCHS else None

    def claim(self, claim: Claim) -> ClaimOutcome:
        """The difference over the seeds of which both numbers are there."""
        others = [None] * len(claim.larger.tasks) if claim.smaller is None else claim.smaller.tasks
        records, folders = [], []
        for own, other in zip(claim.larger.tasks, others, strict=True):
            tasks = [own] if other is None else [own, other]
            of_seed = [self.record(task) for task in tasks]
            if all(record is not None for record in of_seed):
                records.append((of_seed[0], None if other is None else of_seed[1]))
                folders += [self.folder(task).name for task in tasks]
        names = claim.larger.row, "" if claim.smaller is None else claim.smaller.row
        gap = difference(claim, records, folders)
        return ClaimOutcome(claim.statement, claim.source, *names, gap, claim.by, claim.unit)

    def work(self, task: Task) -> Work:
        done = read_state(self.folder(task) / DONE)
        commit = done.get("provenance", {}).get("commit")
        return Work(self.folder(task).name, task.label, task.kind, done.get("seconds"), commit, done.get("code"))

    def trained(self) -> list[Trained]:
        """Every evaluated network in every ball, with its clean accuracy and the lowest that attacks leave of it."""
        points = []
        for task in self.tasks:
            if not isinstance(task, Evaluated) or self.record(task) is None:
                continue
            accuracies: dict[tuple[str, float], float] = {}
            clean = 0.0
            for one in self.record(task).results:
                if one.attack == "clean":
                    clean = one.accuracy
                else:
                    accuracies[one.norm, one.eps] = min(one.accuracy, accuracies.get((one.norm, one.eps), 1.0))
            label = f"{task.of.method}, seed {task.of.recipe.seed}"
            for (norm, eps), worst in sorted(accuracies.items()):
                ball = f"{task.data}, {norm}, eps {eps:.4g}"
                points.append(Trained(label, ball, 100 * clean, 100 * worst, self.folder(task).name))
        return points

    def generators(self) -> list[Generator]:
        """How the adversarial generators of the finished trainings did in the last epoch."""
        generators = []
        for task in self.tasks:
            if not isinstance(task, Training) or self.record(task) is None:
                continue
            last = read_metrics(self.folder(task) / "metrics.jsonl")[-1]
            if "generator_crossed" in last:
                crossed, distance = last["generator_crossed"], last["generator_distance"]
                generators.append(Generator(task.label, crossed, distance, self.folder(task).name))
        return generators


def in_words(outcome: Reproduction) -> Mapping[str, Any]:
    """Return the numbers without the pictures, JSON-ready: what is kept beside the code."""

    def one_number(number: Outcome) -> dict[str, Any]:
        own = {name: value for name, value in vars(number).items() if name not in ("folders", "percent")}
        return {**own, "margin": number.margin, "agreement": number.agreement}

    def part(it: PartOutcome) -> dict[str, Any]:
        if isinstance(it, TableOutcome):
            return {
                "title": it.title,
                "unit": it.unit,
                "corner": it.corner,
                "numbers": [one_number(n) for n in it.outcomes],
            }
        if isinstance(it, ChartOutcome):
            curves = {name: [[x, one_number(n)] for x, n in line] for name, line in it.lines.items()}
            return {"title": it.title, "x": it.x, "y": it.y, "lines": curves}
        if isinstance(it, ClaimsOutcome):
            claims = [
                {**vars(one), "difference": one_number(one.difference), "verdict": one.verdict} for one in it.claims
            ]
            return {"title": it.title, "claims": claims}
        findings = it.study.findings if it.study else Findings([], [])
        return {
            "title": it.title,
            "study": it.study.name if it.study else None,
            "verdict": findings.verdict,
            "numbers": [{"name": n.name, "mean": n.mean, "interval": n.interval, "n": len(n.values), "unit": n.unit,
                         "percent": n.percent, "paper": n.paper} for n in findings.numbers],
            "pictures": [{"name": picture.name, "caption": picture.caption} for picture in findings.pictures],
        }  # fmt: skip

    own = {name: value for name, value in vars(outcome).items() if name not in ("works", "trained")}
    order = outcome.order
    return {
        "kind": "reproduction", "schema": 2, **own, "verdict": outcome.verdict, "agreements": outcome.agreements,
        "median_difference": outcome.median_difference, "order": None if order is None else asdict(order),
        "cautions": outcome.cautions, "generators": [asdict(one) for one in outcome.generators],
        "seconds": outcome.seconds, "parts": [part(it) for it in outcome.parts],
    }  # fmt: skip


def keep_numbers(folder: "Path | str", outcome: Reproduction) -> Path:
    """Write the numbers into the folder, as `reproduction.json`. Returns that file."""
    return write_atomically(Path(folder) / NUMBERS, (json.dumps(in_words(outcome), indent=1) + "\n").encode())

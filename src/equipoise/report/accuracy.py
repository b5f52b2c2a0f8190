"""The accuracy tables of a report: which results can be compared, and which do not differ significantly."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from equipoise.report.certified import Bracket, brackets, narrower
from equipoise.report.corrupted import Result
from equipoise.report.figures import Style
from equipoise.report.pages import NORMS, title
from equipoise.report.reading import Source
from equipoise.results.differences import with_new_names
from equipoise.results.records import AttackRecord, Evaluation
from equipoise.results.seeds import SeedMean, single_runs

WORST = "worst case"
_WIDE_INTERVAL = 0.1  # width of a 95 % interval from which a number rests on few samples
_BUDGET = (("steps", "step", "steps"), ("queries", "query", "queries"), ("restarts", "start", "starts"))


Attacked = AttackRecord | SeedMean
"""An accuracy under one attack, of one run or the mean of several."""


class Column(NamedTuple):
    """One column of the accuracy table; `norm` is empty for clean accuracy."""

    norm: str
    eps: float
    attack: str


@dataclass(frozen=True)
class Row:
    """One line of the accuracy table: a run's best or last weights, a model that was only evaluated, or the mean of
    runs that differ in their seed alone.
    """

    source: Source
    """Where it is from; of several runs the first."""
    weights: str
    style: Style
    results: Mapping[Column, Attacked]
    files: Sequence[str]
    """The evaluations it comes from."""
    brackets: Mapping[tuple[str, float], Bracket] = field(default_factory=dict)
    """What is certified beside what was attacked, by norm and radius."""
    shown_files: str = ""
    """The files again, where they alone tell it apart from another row."""
    members: Sequence["Row"] = ()
    """The single runs behind a mean."""
    name_of_all: str = ""
    """What several runs are called together."""

    @property
    def name(self) -> str:
        """What it is called."""
        return self.name_of_all or self.source.name

    def robust(self, norm: str, eps: float) -> Attacked | None:
        """Return the lowest accuracy at one radius (the worst case, where it was recorded); None without any."""
        return min(
            (r for c, r in self.results.items() if (c.norm, c.eps) == (norm, eps)),
            key=lambda r: (r.accuracy, r.attack != WORST),
            default=None,
        )

    def attacks(self, norm: str, eps: float) -> list[Attacked]:
        """Return the attacks at one radius, on which the worst case rests."""
        return [r for c, r in self.results.items() if (c.norm, c.eps) == (norm, eps) and c.attack != WORST]

    @property
    def clean(self) -> Attacked | None:
        """Accuracy without an attack."""
        return self.results.get(Column("", 0.0, "clean"))

    def curve(self, norm: str) -> list[tuple[float, Attacked]]:
        """Return radii and accuracies, from clean at 0 to the largest radius."""
        radii = sorted({c.eps for c in self.results if c.norm == norm})
        points = [(0.0, self.clean), *((eps, self.robust(norm, eps)) for eps in radii)]
        return [(eps, result) for eps, result in points if result is not None]


class Judged(NamedTuple):
    """A model without an attack and under those at one radius, with the marks of both."""

    row: Row
    clean: Attacked | None
    clean_mark: str
    robust: Attacked | None
    robust_mark: str
    attacks: str
    """The attacks with their budgets."""

    @property
    def n(self) -> int:
        """Number of samples."""
        return (self.robust or self.clean or next(iter(self.row.results.values()))).n


@dataclass(frozen=True)
class Comparison:
    """Rows measured on the same data, and therefore comparable."""

    data: Mapping[str, Any]
    rows: Sequence[Row]

    @property
    def columns(self) -> list[Column]:
        """Clean, then by norm and radius; within a radius the attacks as they were run, the worst case last."""
        columns = dict.fromkeys(c for row in self.rows for c in row.results)
        return sorted(columns, key=lambda c: (_norm_rank(c.norm), c.norm, c.eps, c.attack == WORST))

    @property
    def groups(self) -> list[tuple[tuple[str, float], list[Column]]]:
        """The columns by norm and radius."""
        return [(k, list(v)) for k, v in itertools.groupby(self.columns, key=lambda c: (c.norm, c.eps))]

    @property
    def norms(self) -> list[str]:
        """Norms with at least one result."""
        return list(dict.fromkeys(c.norm for c in self.columns if c.norm))

    @property
    def sizes(self) -> list[int]:
        """The different numbers of samples behind the results, increasing."""
        return sorted({r.n for row in self.rows for r in row.results.values()})

    def marks(self, column: Column) -> list[str]:
        """Return the significance mark of each row in a column."""
        return row_marks(self.rows, [row.results.get(column) for row in self.rows])

    @property
    def candidates(self) -> Sequence[Row]:
        """The rows that the marks of the table and the summary compare; see the function `candidates`."""
        return candidates(self.rows)

    @property
    def reference(self) -> tuple[str, float] | None:
        """The norm and radius at which the models are judged; None without an attack.

        Of those at which most candidates were attacked, the one for which most were trained (or validated, where the
        method has no radius). Of several, those of the first norm, Linf first, and of these the middle one, of an even
        number the larger.
        """
        radii = sorted({(c.norm, c.eps) for c in self.columns if c.norm})

        def preference(radius: tuple[str, float]) -> tuple[int, int, int]:
            attacked = sum(row.robust(*radius) is not None for row in self.candidates)
            return attacked, self.trained_at(*radius), -_norm_rank(radius[0])

        preferred = max(map(preference, radii), default=None)
        best = [radius for radius in radii if preference(radius) == preferred]
        best = [radius for radius in best if radius[0] == best[0][0]]
        return best[len(best) // 2] if best else None

    @property
    def reason(self) -> str:
        """Why the models are judged at the `reference`."""
        assert self.reference is not None
        trained, all_ = self.trained_at(*self.reference), len(self.candidates)
        if all_ == 1:
            return "for which it was trained or validated" if trained else "the middle of its radii"
        if trained:
            return f"for which {trained} of {all_} models were trained or validated"
        return "the middle radius, as no model was trained or validated for one of these"

    @property
    def alike(self) -> bool:
        """Whether all candidates that were attacked at the `reference` were attacked in the same way there."""
        ball = self.reference
        attacked = [row.attacks(*ball) for row in self.candidates if ball and row.robust(*ball)]
        return len({frozenset(setting(run) for a in attacks for run in single_runs(a)) for attacks in attacked}) <= 1

    @property
    def judged(self) -> list["Judged"]:
        """The candidates at the `reference`; models that were not attacked alike have no mark there."""
        ball, rows = self.reference, self.candidates
        clean, robust = [row.clean for row in rows], [row.robust(*ball) if ball else None for row in rows]
        attacks = [", ".join(map(strength, row.attacks(*ball))) if ball else "" for row in rows]
        marks = significance_marks(robust) if self.alike else [""] * len(rows)
        return list(map(Judged, rows, clean, significance_marks(clean), robust, marks, attacks))

    @property
    def members(self) -> list[Row]:
        """The single runs behind means over seeds."""
        return [member for row in self.rows for member in row.members]

    @property
    def single_runs(self) -> "Comparison":
        """The runs behind means over seeds alone."""
        return replace(self, rows=self.members)

    def trained_at(self, norm: str, eps: float) -> int:
        """Return the number of candidates that were trained (or validated) for this radius."""
        return sum(_trained_at(row.source, norm, eps) for row in self.candidates)


def significance_marks(results: Sequence[Result | None]) -> list[str]:
    """Return for each result `best` if the lower end of its 95 % interval is the highest, `tied` if its interval
    overlaps that of the best, or an empty string; only empty ones below two results.

    The lower end is what is safe to say of a result, so that a high accuracy on few samples, or over seeds that
    disagree, is not the best. Of equally many samples it is that of the highest accuracy.
    """
    present = [result.interval for result in results if result is not None]
    if len(present) < 2:
        return [""] * len(results)
    highest = max(low for low, _ in present)

    def mark(result: Result | None) -> str:
        if result is None or result.interval[1] < highest:
            return ""
        return "best" if result.interval[0] == highest else "tied"

    return [mark(result) for result in results]


def candidates(rows: Sequence[Row]) -> list[Row]:
    """Return the rows to compare: not the last weights of a run whose best ones are there, for test data must not
    choose the weights.
    """
    with_best = {id(row.source) for row in rows if row.weights == "best"}
    return [row for row in rows if row.weights != "last" or id(row.source) not in with_best]


def row_marks(rows: Sequence[Row], results: Sequence[Result | None]) -> list[str]:
    """Return the significance mark of each row's result among the `candidates`; empty for the other rows."""
    compared = {id(row) for row in candidates(rows)}
    pairs = zip(rows, results, strict=True)
    marks = iter(significance_marks([result for row, result in pairs if id(row) in compared]))
    return [next(marks) if id(row) in compared else "" for row in rows]


def compare(sources: Sequence[Source]) -> list[Comparison]:
    """Return the accuracy tables, one per test set (name, content, split, shard), rows in the sources' order.

    Evaluations of the same weights share a row unless they report different outcomes of the same attack and radius.
    """
    tables: dict[tuple[str, ...], list[Row]] = {}
    data: dict[tuple[str, ...], Mapping[str, Any]] = {}
    further_series = itertools.count(len(sources))
    for index, source in enumerate(sources):
        seen: set[tuple[tuple[str, ...], str]] = set()
        for file, evaluation in source.evaluations:
            test_set = tuple(str(evaluation.data.get(key, "")) for key in ("name", "sha256", "split", "shard"))
            data.setdefault(test_set, evaluation.data)
            rows, results, weights = tables.setdefault(test_set, []), _columns(evaluation), evaluation.weights
            for i, row in enumerate(rows):
                if row.source is source and row.weights == weights and _agree(row.results, results):
                    proven = narrower(row.brackets, brackets(evaluation))
                    files = (*row.files, file.name)
                    rows[i] = replace(row, results={**results, **row.results}, files=files, brackets=proven)
                    break
            else:
                series = next(further_series) if (test_set, weights) in seen else index
                style, proven = Style(series, weights == "last"), brackets(evaluation)
                rows.append(Row(source, weights, style, results, (file.name,), proven))
            seen.add((test_set, weights))
    return [Comparison(data[test_set], _with_shown_files(rows)) for test_set, rows in tables.items() if rows]


def _agree(first: Mapping[Column, Attacked], second: Mapping[Column, AttackRecord]) -> bool:
    """Whether the columns in both hold the same outcome of every sample."""
    both = first.keys() & second.keys()
    return all(list(run.correct) == list(second[c].correct) for c in both for run in single_runs(first[c]))


def _with_shown_files(rows: Sequence[Row]) -> list[Row]:
    """The rows, with their files shown where one source's weights have several."""
    count = Counter((id(row.source), row.weights) for row in rows)
    several = [count[id(row.source), row.weights] > 1 for row in rows]
    return [replace(row, shown_files=", ".join(row.files)) if s else row for row, s in zip(rows, several, strict=True)]


def _columns(evaluation: Evaluation) -> dict[Column, AttackRecord]:
    """Results by column."""
    return {
        Column("", 0.0, r.attack) if r.attack == "clean" else Column(r.norm, float(r.eps), r.attack): r
        for r in evaluation.results
    }


def _norm_rank(norm: str) -> int:
    """Clean first, then the norms in their usual order."""
    order = ["", *NORMS]
    return order.index(norm) if norm in order else len(order)


def _trained_at(source: Source, norm: str, eps: float) -> bool:
    """Whether the source was trained for this radius, or validated at it if its method knows none."""
    method, recipe = (source.run.method, source.run.recipe) if source.run else ({}, {})
    trained, in_norm = (
        (method["eps"], method.get("norm", norm))
        if "eps" in method
        else (recipe.get("valid_eps"), recipe.get("valid_norm", norm))
    )
    return isinstance(trained, int | float) and math.isclose(trained, eps, rel_tol=1e-6) and in_norm == norm


def caveats(
    result: Result | None, attacks: Sequence[Attacked], available: int | None = None, gradients: bool = True
) -> list[str]:
    """Return what to know about a robust accuracy that rests on weak attacks, or on few samples of those `available`,
    if their number is known: clauses with what to do. `gradients` says whether the model gives any to stronger attacks.
    """
    found = []
    if attacks and not any(_composite(attack) for attack in attacks):
        names = " and ".join(dict.fromkeys(title(attack.attack) for attack in attacks))
        remedy = "--attacks autoattack" if gradients else "more --queries, or by --attacks pgd --transfer-from RUN"
        found.append(f"{names} alone may miss what stronger attacks find, so evaluate with {remedy}")
    if result is not None and (width := result.interval[1] - result.interval[0]) > _WIDE_INTERVAL:
        wide = f"n = {result.n} samples leave an interval {100 * width:.0f} points wide"
        if isinstance(result, SeedMean):
            found.append(f"{result.runs} runs on {wide}, so train with more seeds, or evaluate on more samples")
        elif result.n == available:
            found.append(f"{wide}, and the test set has no more")
        else:
            found.append(f"{wide}, so evaluate on more, such as --examples 1000")
    return found


def strength(result: Attacked) -> str:
    """Return an attack with its budget, such as `PGD (40 steps, 5 starts)`; of a composite attack the name alone."""
    budget = []
    for key, singular, plural in _BUDGET if not _composite(result) else ():
        count = result.settings.get(key)
        count = count.get("most") if isinstance(count, Mapping) else count
        if isinstance(count, int):
            budget.append(f"{count:,} {singular if count == 1 else plural}")
    return title(result.attack) + (f" ({', '.join(budget)})" if budget else "")


def setting(attack: AttackRecord) -> tuple[str, str]:
    """Return an attack with all that was set, without what only its outcome tells."""
    settings = {k: v for k, v in with_new_names(attack.settings).items() if k not in ("refused", "notes")}
    return attack.attack, json.dumps(settings, sort_keys=True)


def _composite(result: Attacked) -> bool:
    parts = result.settings.get("parts")
    return isinstance(parts, Sequence) and len(parts) > 1

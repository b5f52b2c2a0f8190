"""The accuracy tables of a report: which results can be compared, and which do not differ significantly."""

import itertools
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
from equipoise.results.records import AttackRecord, Evaluation

WORST = "worst case"
_WIDE_INTERVAL = 0.1  # width of a 95 % interval from which a number rests on few samples
_BUDGET = (("steps", "step", "steps"), ("queries", "query", "queries"), ("restarts", "start", "starts"))


class Column(NamedTuple):
    """One column of the accuracy table; `norm` is empty for clean accuracy."""

    norm: str
    eps: float
    attack: str


@dataclass(frozen=True)
class Row:
    """One line of the accuracy table: a run's best or last weights, or a model that was only evaluated."""

    source: Source
    weights: str
    style: Style
    results: Mapping[Column, AttackRecord]
    files: Sequence[str]
    """The evaluations it comes from."""
    brackets: Mapping[tuple[str, float], Bracket] = field(default_factory=dict)
    """What is certified beside what was attacked, by norm and radius."""
    shown_files: str = ""
    """The files again, where they alone tell it apart from another row."""

    def robust(self, norm: str, eps: float) -> AttackRecord | None:
        """Return the lowest accuracy at one radius (the worst case, where it was recorded); None without any."""
        return min(
            (r for c, r in self.results.items() if (c.norm, c.eps) == (norm, eps)),
            key=lambda r: (r.accuracy, r.attack != WORST),
            default=None,
        )

    def attacks(self, norm: str, eps: float) -> list[AttackRecord]:
        """Return the attacks at one radius, on which the worst case rests."""
        return [r for c, r in self.results.items() if (c.norm, c.eps) == (norm, eps) and c.attack != WORST]

    @property
    def clean(self) -> AttackRecord | None:
        """Accuracy without an attack."""
        return self.results.get(Column("", 0.0, "clean"))

    def curve(self, norm: str) -> list[tuple[float, AttackRecord]]:
        """Return radii and accuracies, from clean at 0 to the largest radius."""
        radii = sorted({c.eps for c in self.results if c.norm == norm})
        points = [(0.0, self.clean), *((eps, self.robust(norm, eps)) for eps in radii)]
        return [(eps, result) for eps, result in points if result is not None]


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
        """The norm and radius of the summary.

        Of those at which most candidates were evaluated, the one for which most were trained (or validated, where the
        method has no radius), else the largest; Linf first.
        """
        radii = {(c.norm, c.eps) for c in self.columns if c.norm}

        def preference(radius: tuple[str, float]) -> tuple[int, int, int, float]:
            rows = [row for row in self.candidates if row.robust(*radius)]
            return len(rows), sum(_trained_at(row.source, *radius) for row in rows), -_norm_rank(radius[0]), radius[1]

        return max(radii, key=preference, default=None)

    @property
    def highlights(self) -> list[dict[str, Any]]:
        """The best robust accuracy and the best trade-off at the reference radius, and the best clean accuracy, among
        the `candidates`.
        """
        rows, reference = self.candidates, self.reference
        robust = [row.robust(*reference) if reference else None for row in rows]
        clean = [row.clean for row in rows]
        highlights = []
        if reference and any(robust):
            best = _best(rows, robust, "robust")
            attacks = best["row"].attacks(*reference)
            found = caveats(best["result"], attacks, self.data.get("n_test"))
            highlights.append(best | {"attacks": list(map(strength, attacks)), "caveats": found})
        means = [(c.accuracy + r.accuracy) / 2 if c and r else -1.0 for c, r in zip(clean, robust, strict=True)]
        if max(means, default=-1.0) >= 0:
            i = means.index(max(means))
            trade_off = {"title": "trade-off", "row": rows[i], "mean": means[i], "clean": clean[i], "result": robust[i]}
            highlights.append(trade_off)
        if any(clean):
            highlights.append(_best(rows, clean, "clean"))
        return highlights


def _best(rows: Sequence[Row], results: Sequence[AttackRecord | None], title: str) -> dict[str, Any]:
    """The row of the highest accuracy, and those that do not differ from it significantly."""
    best = max(range(len(results)), key=lambda i: r.accuracy if (r := results[i]) else -1.0)
    marks = significance_marks(results)
    tied = [row for i, row in enumerate(rows) if marks[i] and i != best]
    return {"title": title, "row": rows[best], "result": results[best], "tied": tied}


def significance_marks(results: Sequence[Result | None]) -> list[str]:
    """Return for each result `best`, `tied` if its 95 % interval overlaps that of the best, or an empty string; only
    empty ones below two results.
    """
    present = [result for result in results if result is not None]
    if len(present) < 2:
        return [""] * len(results)
    best = max(present, key=lambda r: r.accuracy)

    def mark(result: Result | None) -> str:
        if result is None or result.interval[1] < best.interval[0]:
            return ""
        return "best" if result.accuracy == best.accuracy else "tied"

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


def _agree(first: Mapping[Column, AttackRecord], second: Mapping[Column, AttackRecord]) -> bool:
    """Whether the columns in both hold the same outcome of every sample."""
    return all(list(first[c].correct) == list(second[c].correct) for c in first.keys() & second.keys())


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
    result: Result | None, attacks: Sequence[AttackRecord], available: int | None = None, gradients: bool = True
) -> list[str]:
    """Return what to know about a robust accuracy that rests on weak attacks, or on few samples of those `available`,
    if their number is known. `gradients` says whether the model gives any to stronger attacks.
    """
    found = []
    if attacks and not any(_composite(attack) for attack in attacks):
        names = " and ".join(dict.fromkeys(title(attack.attack) for attack in attacks))
        remedy = "--attacks autoattack" if gradients else "more --queries, or by --attacks pgd --transfer-from RUN"
        found.append(f"It rests on {names} alone; stronger attacks may leave less: evaluate with {remedy}.")
    if result is not None and (width := result.interval[1] - result.interval[0]) > _WIDE_INTERVAL:
        remedy = (
            ", all that the test set has" if result.n == available else ": evaluate on more, such as --examples 1000"
        )
        found.append(f"It rests on n = {result.n} samples, and its interval is {100 * width:.0f} points wide{remedy}.")
    return found


def strength(result: AttackRecord) -> str:
    """Return an attack with its budget, such as `PGD (40 steps, 5 starts)`; of a composite attack the name alone."""
    budget = []
    for key, singular, plural in _BUDGET if not _composite(result) else ():
        count = result.settings.get(key)
        count = count.get("most") if isinstance(count, Mapping) else count
        if isinstance(count, int):
            budget.append(f"{count:,} {singular if count == 1 else plural}")
    return title(result.attack) + (f" ({', '.join(budget)})" if budget else "")


def _composite(result: AttackRecord) -> bool:
    parts = result.settings.get("parts")
    return isinstance(parts, Sequence) and len(parts) > 1

"""Puts records together into one HTML file."""

import itertools
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from equipoise.core.files import write_atomically
from equipoise.report import corrupted, figures, scored
from equipoise.report.chains import composites, descent, stages
from equipoise.report.corrupted import Result
from equipoise.report.figures import Style
from equipoise.report.pages import NORMS, radius, template, title, value
from equipoise.report.reading import PICTURES, Source, read
from equipoise.results.records import AttackRecord, Evaluation

WORST = "worst case"
_MOST_EPOCHS = 40
_MOST_SAMPLES = 10
_BUDGET = (("steps", "step", "steps"), ("queries", "query", "queries"), ("restarts", "start", "starts"))
_WIDE = 0.1  # width of a 95 % interval from which a number is said to be of few samples


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
    shown: str = ""
    """The files again, where they alone tell it apart from another row."""

    def robust(self, norm: str, eps: float) -> AttackRecord | None:
        """The lowest accuracy reported at one radius (the worst case, where it was recorded); None without any."""
        return min(
            (r for c, r in self.results.items() if (c.norm, c.eps) == (norm, eps)),
            key=lambda r: (r.accuracy, r.attack != WORST),
            default=None,
        )

    def attacks(self, norm: str, eps: float) -> list[AttackRecord]:
        """What was run at one radius: all that the worst case there rests on."""
        return [r for c, r in self.results.items() if (c.norm, c.eps) == (norm, eps) and c.attack != WORST]

    @property
    def clean(self) -> AttackRecord | None:
        """Accuracy without an attack."""
        return self.results.get(Column("", 0.0, "clean"))

    def curve(self, norm: str) -> list[tuple[float, AttackRecord]]:
        """Radius and accuracy from clean at 0 to the largest radius."""
        radii = sorted({c.eps for c in self.results if c.norm == norm})
        points = [(0.0, self.clean), *((eps, self.robust(norm, eps)) for eps in radii)]
        return [(eps, result) for eps, result in points if result is not None]


@dataclass(frozen=True)
class Comparison:
    """Rows measured on the same data, and so comparable."""

    data: Mapping[str, Any]
    rows: Sequence[Row]

    @property
    def columns(self) -> list[Column]:
        """Clean, then by norm and radius; within a radius the attacks as they were run, the worst case last."""
        found = list(dict.fromkeys(c for row in self.rows for c in row.results))
        return sorted(found, key=lambda c: (_norm_rank(c.norm), c.norm, c.eps, c.attack == WORST))

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
        """The standing of each row in a column."""
        return marks(self.rows, [row.results.get(column) for row in self.rows])

    @property
    def candidates(self) -> Sequence[Row]:
        """The rows that the table's marks and the summary compare, as `candidates` says."""
        return candidates(self.rows)

    @property
    def reference(self) -> tuple[str, float] | None:
        """The radius the summary speaks of.

        Of those that most candidates were evaluated at, the one most were trained for (or validated at, where the
        method knows no radius), else the largest; Linf first.
        """
        radii = {(c.norm, c.eps) for c in self.columns if c.norm}

        def preference(radius: tuple[str, float]) -> tuple[int, int, int, float]:
            rows = [row for row in self.candidates if row.robust(*radius)]
            return len(rows), sum(_trained_at(row.source, *radius) for row in rows), -_norm_rank(radius[0]), radius[1]

        return max(radii, key=preference, default=None)

    @property
    def highlights(self) -> list[dict[str, Any]]:
        """The best robust accuracy and the best trade-off at the reference radius, and the best clean accuracy.

        Those of `candidates` alone.
        """
        at = self.reference
        rows = self.candidates
        robust = [row.robust(*at) if at else None for row in rows]
        clean = [row.clean for row in rows]
        means = [(c.accuracy + r.accuracy) / 2 if c and r else -1.0 for c, r in zip(clean, robust, strict=True)]
        found = []
        for kind, results in (("robust", robust), ("clean", clean)):
            if any(results):
                marks = standing(results)
                best = max(range(len(results)), key=lambda i: r.accuracy if (r := results[i]) else -1.0)
                tied = [row for row, mark in zip(rows, marks, strict=True) if mark and row is not rows[best]]
                entry = {"title": kind, "row": rows[best], "result": results[best], "tied": tied}
                if kind == "robust" and at is not None:
                    attacks = rows[best].attacks(*at)
                    doubts = cautions(results[best], attacks, self.data.get("n_test"))
                    entry |= {"attacks": list(map(strength, attacks)), "cautions": doubts}
                found.append(entry)
        if max(means, default=-1.0) >= 0:
            best = means.index(max(means))
            trade = {"title": "trade-off", "row": rows[best], "mean": means[best]}
            found.insert(1, {**trade, "clean": clean[best], "result": robust[best], "tied": []})
        return found


def standing(results: Sequence[Result | None]) -> list[str]:
    """Per result: `best`, `tied` if its 95 % interval overlaps the best's, else empty; all empty below two results."""
    known = [result for result in results if result is not None]
    if len(known) < 2:
        return [""] * len(results)
    top = max(known, key=lambda r: r.accuracy)

    def mark(result: Result | None) -> str:
        if result is None or result.interval[1] < top.interval[0]:
            return ""
        return "best" if result.accuracy == top.accuracy else "tied"

    return [mark(result) for result in results]


def candidates(rows: Sequence[Row]) -> list[Row]:
    """The rows that are compared: not the last weights of a run whose best ones are there, for test data must not
    choose the weights.
    """
    best = {id(row.source) for row in rows if row.weights == "best"}
    return [row for row in rows if row.weights != "last" or id(row.source) not in best]


def marks(rows: Sequence[Row], results: Sequence[Result | None]) -> list[str]:
    """The standing of each row's result among those of `candidates`; empty for the other rows."""
    compared = {id(row) for row in candidates(rows)}
    among = iter(standing([result for row, result in zip(rows, results, strict=True) if id(row) in compared]))
    return [next(among) if id(row) in compared else "" for row in rows]


def report(paths: Sequence[Path], out: Path) -> Path:
    """Write one self-contained HTML file about the run directories, evaluations and scores at `paths`; return its path.

    It holds the accuracy table with 95 % Wilson intervals, reasons to doubt it and what each part of a composite attack
    did, accuracy on corrupted images, scores with their curves, training curves, robust accuracy against eps, the same
    images clean and attacked, and where every number comes from. It loads nothing from anywhere. Raises
    `EquipoiseError` for a path that is no run directory, evaluation or score, a damaged file, missing matplotlib, or an
    `out` that cannot be written.
    """
    sources = read(paths)
    comparisons = compare(sources)
    styles = {id(s): Style(i) for i, s in enumerate(sources)}
    scores = scored.tables([(_scored_row(i, s, one), one) for i, s in enumerate(sources) for one in s.scores])
    rows = [*(row for c in comparisons for row in c.rows), *(row for table in scores for row, _ in table.lines)]
    used = list(dict.fromkeys([*styles.values(), *(row.style for row in rows)]))
    page = template("template.html.j2").render(
        sources=sources,
        comparisons=comparisons,
        notes=notes(sources, comparisons),
        style=lambda source: styles[id(source)],
        keys=[(key_id(s), Markup(figures.key(key_id(s), s))) for s in used],
        roles=[(role, Markup(figures.key(f"role-{role}", role=role))) for role in figures.VALIDATION],
        key_id=key_id,
        corrupted=_corrupted(comparisons),
        scored=[(table, *_margin_curves(f"score-{i}", table)) for i, table in enumerate(scores)],
        marks=marks,
        curves=_curves(comparisons),
        audits={id(s): found for i, s in enumerate(sources) if (found := _audits(s, f"audit-{i}"))},
        id=id,
        training=_training,
        grid=_grid,
        about=PICTURES,
        hyperparameters=hyperparameters,
    )
    return write_atomically(os.fspath(out), page)


def _scored_row(series: int, source: Source, one: scored.Scored) -> Row:
    """A model in a table of scores."""
    weights = one.record.weights
    return Row(source, weights, Style(series, weights == "last"), {}, (one.file.name,))


def _margin_curves(name: str, table: scored.Table) -> tuple[Markup, Markup]:
    """The curves of a score, wide and narrow; empty where there is none. Certified bounds are dotted."""
    lines = [
        (figures.Line(row.style, curve.eps, curve.value, one.band), settings.get("robustness") == "certified")
        for row, one in table.curves
        for curve, settings in [(one.result.curve, one.result.settings)]
    ]
    sizes = (("wide", 960, 400), ("narrow", 360, 300)) if lines else ()
    wide, narrow = [Markup(figures.margin_curves(f"{name}-{kind}", lines, *size)) for kind, *size in sizes] or ("", "")
    return Markup(wide), Markup(narrow)


def compare(sources: Sequence[Source]) -> list[Comparison]:
    """The accuracy tables of a report, one per test set (name, content, split, shard), rows in the sources' order.

    Evaluations of the same weights share a row unless they report different outcomes of the same attack and radius.
    """
    tables: dict[tuple[str, ...], list[Row]] = {}
    data: dict[tuple[str, ...], Mapping[str, Any]] = {}
    extra = itertools.count(len(sources))
    for index, source in enumerate(sources):
        first: set[tuple[tuple[str, ...], str]] = set()
        for file, evaluation in source.evaluations:
            test_set = tuple(str(evaluation.data.get(part, "")) for part in ("name", "sha256", "split", "shard"))
            data.setdefault(test_set, evaluation.data)
            rows, results, weights = tables.setdefault(test_set, []), _columns(evaluation), evaluation.weights
            for place, row in enumerate(rows):
                if row.source is source and row.weights == weights and _agree(row.results, results):
                    rows[place] = Row(source, weights, row.style, {**results, **row.results}, (*row.files, file.name))
                    break
            else:
                series = next(extra) if (test_set, weights) in first else index
                rows.append(Row(source, weights, Style(series, weights == "last"), results, (file.name,)))
            first.add((test_set, weights))
    return [Comparison(data[test_set], _named(rows)) for test_set, rows in tables.items() if rows]


def _corrupted(comparisons: Sequence[Comparison]) -> list[corrupted.Table]:
    """The tables of accuracy on corrupted images, of the models as the accuracy tables name them."""
    rows = [row for comparison in comparisons for row in comparison.rows]
    return corrupted.tables(
        [
            (row, evaluation)
            for row in rows
            for file, evaluation in row.source.evaluations
            if file.name in row.files and evaluation.weights == row.weights
        ]
    )


def _agree(some: Mapping[Column, AttackRecord], others: Mapping[Column, AttackRecord]) -> bool:
    """Whether the columns in both hold the same outcome on every sample."""
    return all(list(some[c].correct) == list(others[c].correct) for c in some.keys() & others.keys())


def _named(rows: Sequence[Row]) -> list[Row]:
    """The rows, with their files shown where one source's weights have several."""
    count = Counter((id(row.source), row.weights) for row in rows)
    return [replace(row, shown=", ".join(row.files)) if count[id(row.source), row.weights] > 1 else row for row in rows]


def _columns(evaluation: Evaluation) -> dict[Column, AttackRecord]:
    """Results by column; an attack run twice at a radius is told apart by the settings that differ, or a number."""
    columns: dict[Column, AttackRecord] = {}
    for result in evaluation.results:
        clean = result.attack == "clean"
        column = Column("" if clean else result.norm, 0.0 if clean else float(result.eps), result.attack)
        if (other := columns.get(column)) is not None:
            differing = {k: v for k, v in result.settings.items() if other.settings.get(k) != v}
            column = column._replace(attack=f"{column.attack} {value(differing) if differing else len(columns)}")
        columns[column] = result
    return columns


def notes(sources: Sequence[Source], comparisons: Sequence[Comparison]) -> list[tuple[str, str]]:
    """What a reader should know before citing a number: pairs of a source's name and a sentence."""
    found: list[tuple[str, str]] = []
    for source in sources:
        if not source.evaluations and not source.scores:
            found.append((source.name, f"no evaluation was found; make one with: equipoise evaluate {source.path}"))
        if source.run is not None:
            if source.run.status not in ("finished", "stopped early"):
                found.append((source.name, f"its training is not complete; its status is: {source.run.status}"))
            found += [(source.name, alarm) for alarm in source.run.alarms]
        for _, evaluation in source.evaluations:
            found += [(source.name, warning) for warning in evaluation.warnings]
            if doubts := ", ".join(dict.fromkeys(flag.name for flag in evaluation.flags)):
                found.append((source.name, f"there are reasons to doubt its numbers, listed under Audit: {doubts}"))
            if shard := evaluation.data.get("shard"):
                found.append((source.name, f"shard {shard} alone; join all shards with: equipoise merge"))
            for kind, count in (
                ("held a NaN or an infinity", sum(r.nan_gradients for r in evaluation.results)),
                ("were exactly zero", sum(r.zero_gradients for r in evaluation.results)),
            ):
                if count:
                    found.append(
                        (source.name, f"{count:,} of the attacks' gradients {kind}, so robustness may be overstated")
                    )
    for comparison in comparisons:
        for column in comparison.columns:
            settings = [r.settings for row in comparison.rows if (r := row.results.get(column))]
            differing = sorted({k for s in settings for k in {**settings[0], **s} if s.get(k) != settings[0].get(k)})
            if differing and column.attack != WORST:
                where = f"{title(column.attack)}, {NORMS.get(column.norm, column.norm)} {radius(column.eps)}"
                found.append((where, f"the rows of this column differ in {', '.join(differing)}; compare with care"))
    if len(comparisons) > 1:
        found.append(("Data", "the evaluations are on different test sets: one table each, not to be compared"))
    return list(dict.fromkeys(found))


def cautions(result: Result | None, attacks: Sequence[AttackRecord], available: int | None = None) -> list[str]:
    """What stands beside the robust accuracy of a headline that rests on weak attacks, or on few samples of those that
    are `available`, if that is known.
    """
    found = []
    if attacks and not any(_composite(attack) for attack in attacks):
        names = " and ".join(dict.fromkeys(title(attack.attack) for attack in attacks))
        found.append(f"It rests on {names} alone; stronger attacks may leave less: evaluate with --attacks autoattack.")
    if result is not None and (width := result.interval[1] - result.interval[0]) > _WIDE:
        remedy = (
            ", all that the test set has" if result.n == available else ": evaluate on more, such as --examples 1000"
        )
        found.append(f"It rests on n = {result.n} samples, and its interval is {100 * width:.0f} points wide{remedy}.")
    return found


def strength(result: AttackRecord) -> str:
    """An attack with its budget, such as `PGD (40 steps, 5 starts)`; the name of a composite one stands for it."""
    budget = []
    for key, one, many in _BUDGET if not _composite(result) else ():
        count = result.settings.get(key)
        count = count.get("most") if isinstance(count, Mapping) else count
        if isinstance(count, int):
            budget.append(f"{count:,} {one if count == 1 else many}")
    return title(result.attack) + (f" ({', '.join(budget)})" if budget else "")


def _composite(result: AttackRecord) -> bool:
    parts = result.settings.get("parts")
    return isinstance(parts, Sequence) and len(parts) > 1


def hyperparameters(source: Source) -> list[str]:
    """The method's parameters, briefly; its name and longer descriptions are shown elsewhere."""
    method = source.run.method if source.run else {}
    short = {
        k: v
        for k, v in method.items()
        if k not in ("name", "sum", "terms") and not (isinstance(v, str) and " " in v) and v is not None
    }
    return [f"{k.replace('_', ' ')} {value(v)}" for k, v in short.items()]


def _curves(comparisons: Sequence[Comparison]) -> dict[tuple[int, str], tuple[Markup, Markup]]:
    """Robust accuracy against eps, wide and narrow, by the comparison's number and norm."""
    drawn = {}
    for number_, comparison in enumerate(comparisons):
        for norm in comparison.norms:
            curves = [(row, row.curve(norm)) for row in comparison.rows]
            lines = [
                figures.Line(row.style, [e for e, _ in c], [r.accuracy for _, r in c], [r.interval for _, r in c])
                for row, c in curves
                if c
            ]
            name = f"eps-{number_}-{norm}"
            drawn[number_, norm] = (
                Markup(figures.against_eps(f"{name}-wide", lines, radius, 960, 400)),
                Markup(figures.against_eps(f"{name}-narrow", lines, radius, 360, 300)),
            )
    return drawn


def _audits(source: Source, name: str) -> list[dict[str, Any]]:
    """The evaluations of a source that say whose weights they are about: file, record, and its composite attacks."""
    audits = []
    for file, evaluation in source.evaluations:
        if not evaluation.model.get("sha256"):
            continue
        attacks = []
        for results in composites(evaluation):
            falls = [(radius(r.eps), *fall) for r in results if (fall := descent(r))]
            drawing = f"{name}-{len(audits)}-{len(attacks)}"
            drawn = Markup(figures.against_queries(drawing, falls)) if falls else ""
            tables = [(result, stages(result)) for result in results]
            notes_ = dict.fromkeys(str(note) for r in results for note in r.settings.get("notes") or ())
            attacks.append({"first": results[0], "tables": tables, "svg": drawn, "notes": list(notes_)})
        audits.append({"file": file, "evaluation": evaluation, "attacks": attacks})
    return audits


def _training(source: Source, name: str) -> dict[str, Any]:
    """The drawn curves of a run and the numbers behind them, every k-th epoch where there are many."""
    assert source.run is not None
    best = epoch if isinstance(epoch := source.run.best.get("epoch"), int | float) else None
    stride = math.ceil(len(source.metrics) / _MOST_EPOCHS)
    kept = [
        m for i, m in enumerate(source.metrics) if i % stride == 0 or i == len(source.metrics) - 1 or m["epoch"] == best
    ]
    columns = [k for k in ("train_loss", "train_accuracy", *figures.VALIDATION) if any(k in m for m in source.metrics)]
    return {
        "svg": Markup(figures.training(name, source.metrics, best)),
        "best": best,
        "columns": columns,
        "entries": kept,
        "stride": stride,
    }


def _grid(source: Source) -> dict[str, Any]:
    """The example images of a run: true labels, then one line of cells per kind of image."""
    samples = source.samples
    assert samples is not None
    names = dict(enumerate(source.classes))
    shown = range(min(len(samples.labels), _MOST_SAMPLES))
    lines = []
    for kind, images in samples.images.items():
        change = (images - samples.images["clean"]).reshape(len(images), -1)
        ball = samples.balls.get(kind)
        note = "" if ball is None else f"{NORMS.get(ball[0], ball[0])}, ε = {radius(ball[1])}"
        cells = [
            {
                "src": figures.picture(images[i]),
                "prediction": names.get(int(samples.predictions[kind][i]), str(samples.predictions[kind][i])),
                "wrong": bool(samples.predictions[kind][i] != samples.labels[i]),
                "linf": np.abs(change[i]).max(initial=0.0),
                "l2": np.linalg.norm(change[i]),
            }
            for i in shown
        ]
        lines.append(("PGD as judged" if kind == "judged" else kind, note, cells))
    height, width = samples.images["clean"].shape[2:]
    labels = [names.get(int(samples.labels[i]), str(samples.labels[i])) for i in shown]
    return {"labels": labels, "lines": lines, "height": height, "width": width, "total": len(samples.labels)}


def key_id(style: Style) -> str:
    """The id of a run's key in the page."""
    return f"key-{style.series}{'-hollow' if style.hollow else ''}"


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

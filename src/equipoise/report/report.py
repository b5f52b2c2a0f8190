"""One HTML file about run directories, evaluations and scores."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from equipoise.core.files import write_atomically
from equipoise.report import certified, corrupted, figures, scored
from equipoise.report.accuracy import WORST, Comparison, Row, compare, row_marks
from equipoise.report.chains import composites, descent, stages
from equipoise.report.figures import Style
from equipoise.report.pages import NORMS, radius, template, title, value
from equipoise.report.reading import PICTURES, Source, read
from equipoise.report.seeds import grouped
from equipoise.report.summary import sentences

_MAX_EPOCHS = 40
_MAX_SAMPLES = 10


def report(paths: Sequence[Path], out: Path) -> Path:
    """Write `page(paths)` to `out`, and return that path. Raises `EquipoiseError` also if it cannot be written."""
    return write_atomically(os.fspath(out), page(paths))


def page(paths: Sequence[Path]) -> str:
    """Return one self-contained HTML page about the run directories, evaluations and scores at `paths`.

    It begins with three sentences for laymen and the accuracy of the models at one radius. It holds the accuracy table
    with 95 % intervals, in which runs that differ in their seed alone are one row, warnings about it, what each part of
    a composite attack fooled, certified accuracy, accuracy on corrupted images, scores with their curves, training
    curves, robust accuracy against eps, the same images clean and attacked, and where every number comes from. It needs
    no other file. Raises `EquipoiseError` for a path that is no run directory, evaluation or score, a damaged file, or
    missing matplotlib.
    """
    sources = read(paths)
    single_runs = compare(sources)
    comparisons = [grouped(comparison) for comparison in single_runs]
    styles = {id(s): Style(i) for i, s in enumerate(sources)}
    scored_rows = [
        (Row(s, weights := score.record.weights, Style(i, weights == "last"), {}, (score.file.name,)), score)
        for i, s in enumerate(sources)
        for score in s.scores
    ]
    scores = scored.tables(scored_rows)
    rows = [*(row for c in single_runs for row in c.rows), *(row for table in scores for row, _ in table.lines)]
    used = list(dict.fromkeys([*styles.values(), *(row.style for row in rows)]))
    return template("template.html.j2").render(
        sources=sources,
        comparisons=comparisons,
        notes=notes(sources, single_runs),
        sentences=sentences,
        further_seeds={id(row.source) for c in comparisons for mean in c.rows for row in mean.members[1:]},
        style=lambda source: styles[id(source)],
        keys=[(key_id(s), Markup(figures.key(key_id(s), s))) for s in used],
        roles=[(role, Markup(figures.key(f"role-{role}", role=role))) for role in figures.VALIDATION],
        key_id=key_id,
        certified=[
            (table, _brackets(f"certified-{i}", table)) for i, table in enumerate(certified.tables(single_runs))
        ],
        corrupted=_corrupted(single_runs),
        scored=[(table, *_margin_curves(f"score-{i}", table)) for i, table in enumerate(scores)],
        row_marks=row_marks,
        curves=_curves(comparisons),
        audits={id(s): audits for i, s in enumerate(sources) if (audits := _audits(s, f"audit-{i}"))},
        id=id,
        training=_training,
        grid=_grid,
        captions=PICTURES,
        hyperparameters=hyperparameters,
    )


def _brackets(name: str, table: certified.BracketTable) -> Markup:
    """The figure of what is certified and what was attacked, one bracket per model."""
    lines = [
        figures.Line(row.style, (0.0,) * 3, [r.accuracy for r in results], [r.interval for r in results])
        for row, bracket in table.lines
        for results in [(bracket.certified, bracket.attacked, bracket.clean)]
    ]
    return Markup(figures.brackets(name, lines))


def _margin_curves(name: str, table: scored.ScoreTable) -> tuple[Markup, Markup]:
    """The curves of a score, wide and narrow; empty where there is none. Certified bounds are dotted."""
    lines = [
        (figures.Line(row.style, curve.eps, curve.value, score.band), settings.get("robustness") == "certified")
        for row, score in table.curves
        for curve, settings in [(score.result.curve, score.result.settings)]
    ]
    if not lines:
        return Markup(), Markup()
    wide = figures.margin_curves(f"{name}-wide", lines, 960, 400)
    return Markup(wide), Markup(figures.margin_curves(f"{name}-narrow", lines, 360, 300))


def _corrupted(comparisons: Sequence[Comparison]) -> list[corrupted.CorruptionTable]:
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


def notes(sources: Sequence[Source], comparisons: Sequence[Comparison]) -> list[tuple[str, str]]:
    """Return what a reader should know before citing a number: pairs of a source's name and a sentence."""
    notes: list[tuple[str, str]] = []
    for source in sources:
        if not source.evaluations and not source.scores:
            notes.append((source.name, f"no evaluation was found; make one with: equipoise evaluate {source.path}"))
        if source.run is not None:
            if source.run.status not in ("finished", "stopped early"):
                notes.append((source.name, f"its training is not complete; its status is: {source.run.status}"))
            notes += [(source.name, alarm) for alarm in source.run.alarms]
        for _, evaluation in source.evaluations:
            notes += [(source.name, warning) for warning in evaluation.warnings]
            if flags := ", ".join(dict.fromkeys(flag.name for flag in evaluation.flags)):
                notes.append((source.name, f"there are warnings about its numbers, listed under Audit: {flags}"))
            if shard := evaluation.data.get("shard"):
                notes.append((source.name, f"shard {shard} alone; join all shards with: equipoise merge"))
            for kind, count in (
                ("held a NaN or an infinity", sum(r.nan_gradients for r in evaluation.results)),
                ("were exactly zero", sum(r.zero_gradients for r in evaluation.results)),
            ):
                if count:
                    notes.append(
                        (source.name, f"{count:,} of the attacks' gradients {kind}, so robustness may be overstated")
                    )
    for comparison in comparisons:
        for column in comparison.columns:
            settings = [r.settings for row in comparison.rows if (r := row.results.get(column))]
            differing = sorted({k for s in settings for k in {**settings[0], **s} if s.get(k) != settings[0].get(k)})
            if differing and column.attack != WORST:
                where = f"{title(column.attack)}, {NORMS.get(column.norm, column.norm)} {radius(column.eps)}"
                notes.append((where, f"the rows of this column differ in {', '.join(differing)}; compare with care"))
    if len(comparisons) > 1:
        notes.append(("Data", "the evaluations are on different test sets: one table each, not to be compared"))
    return list(dict.fromkeys(notes))


def hyperparameters(source: Source) -> list[str]:
    """Return the method's parameters, without its name and longer descriptions, which are shown elsewhere."""
    method = source.run.method if source.run else {}
    return [
        f"{k.replace('_', ' ')} {value(v)}"
        for k, v in method.items()
        if k not in ("name", "sum", "terms") and not (isinstance(v, str) and " " in v) and v is not None
    ]


def _curves(comparisons: Sequence[Comparison]) -> dict[tuple[int, str], tuple[Markup, Markup]]:
    """Robust accuracy against eps, wide and narrow, by the comparison's number and norm."""
    drawn = {}
    for number, comparison in enumerate(comparisons):
        for norm in comparison.norms:
            curves = [(row, row.curve(norm)) for row in comparison.rows]
            lines = [
                figures.Line(row.style, [e for e, _ in c], [r.accuracy for _, r in c], [r.interval for _, r in c])
                for row, c in curves
                if c
            ]
            name = f"eps-{number}-{norm}"
            drawn[number, norm] = (
                Markup(figures.against_eps(f"{name}-wide", lines, radius, 960, 400)),
                Markup(figures.against_eps(f"{name}-narrow", lines, radius, 360, 300)),
            )
    return drawn


def _audits(source: Source, name: str) -> list[dict[str, Any]]:
    """The evaluations of a source that record the SHA-256 of the weights: file, record, and composite attacks."""
    audits = []
    for file, evaluation in source.evaluations:
        if not evaluation.model.get("sha256"):
            continue
        attacks = []
        for results in composites(evaluation):
            steps = [(radius(r.eps), *step) for r in results if (step := descent(r))]
            svg = Markup(figures.against_queries(f"{name}-{len(audits)}-{len(attacks)}", steps)) if steps else ""
            tables = [(result, stages(result)) for result in results]
            remarks = dict.fromkeys(str(note) for r in results for note in r.settings.get("notes") or ())
            attacks.append({"first": results[0], "tables": tables, "svg": svg, "notes": list(remarks)})
        audits.append({"file": file, "evaluation": evaluation, "attacks": attacks})
    return audits


def _training(source: Source, name: str) -> dict[str, Any]:
    """The drawn curves of a run and the numbers behind them, every k-th epoch where there are many."""
    assert source.run is not None
    best = epoch if isinstance(epoch := source.run.best.get("epoch"), int | float) else None
    stride, last = math.ceil(len(source.metrics) / _MAX_EPOCHS), len(source.metrics) - 1
    entries = [m for i, m in enumerate(source.metrics) if i % stride == 0 or i == last or m["epoch"] == best]
    columns = [k for k in ("train_loss", "train_accuracy", *figures.VALIDATION) if any(k in m for m in source.metrics)]
    return {
        "svg": Markup(figures.training(name, source.metrics, best)),
        "best": best,
        "columns": columns,
        "entries": entries,
        "stride": stride,
    }


def _grid(source: Source) -> dict[str, Any]:
    """The example images of a run: true labels, then one line of cells per kind of image."""
    samples = source.samples
    assert samples is not None
    names = dict(enumerate(source.classes))
    shown = range(min(len(samples.labels), _MAX_SAMPLES))
    lines = []
    for kind, images in samples.images.items():
        change = (images - samples.images["clean"]).reshape(len(images), -1)
        ball = samples.balls.get(kind)
        note = "" if ball is None else f"{NORMS.get(ball[0], ball[0])}, ε = {radius(ball[1])}"
        cells = [
            {
                "src": figures.picture(images[i]),
                "prediction": names.get(int(samples.predictions[kind][i]), str(samples.predictions[kind][i])),
                "misclassified": bool(samples.predictions[kind][i] != samples.labels[i]),
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
    """Return the id of a run's key in the page."""
    return f"key-{style.series}{'-hollow' if style.hollow else ''}"

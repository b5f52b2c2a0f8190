"""The page of an experiment: the paper's numbers and figures with ours beside them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from equipoise.report.figures import STAND_INS, scatter, svg
from equipoise.report.pages import template
from equipoise.report.studies import figure, interval, mean
from equipoise.results.findings import Lines, Picture, Series
from equipoise.results.reproduction import (
    ChartOutcome,
    ClaimsOutcome,
    Outcome,
    PartOutcome,
    Reproduction,
    ShownOutcome,
    TableOutcome,
    Trained,
    front,
)


def page(reproduction: Reproduction) -> str:
    """Return one self-contained HTML page. Raises `EquipoiseError` where matplotlib is not installed."""
    drawings = {i: _drawn(part, i) for i, part in enumerate(reproduction.parts)}
    return template("reproduction.html.j2").render(
        r=reproduction, kind=_kind, drawings=drawings, planes=_planes(reproduction.trained), mark=mark, written=written,
        span=span, mean=mean, interval=interval,
    )  # fmt: skip


def mark(outcome: Outcome) -> str:
    """Return the class of a cell: not run, without a published value, or how it agrees with it."""
    if outcome.mean is None:
        return "missing"
    return {None: "silent", "agrees": "hit", "differs": "miss", "undecided": "open"}[outcome.agreement]


def written(amount: float | None) -> str:
    """Return a number of a table: one decimal, or three digits of a small one; a dash for none."""
    if amount is None:
        return "–"
    return f"{amount:.1f}" if abs(amount) >= 10 else f"{amount:.3g}"


def span(outcome: Outcome) -> str:
    """Return the interval, as `low–high`, or `low to high` where an end is negative."""
    if outcome.interval is None:
        return ""
    return (" to " if min(outcome.interval) < 0 else "–").join(written(end) for end in outcome.interval)


def _kind(part: PartOutcome) -> str:
    kinds = {TableOutcome: "table", ChartOutcome: "chart", ShownOutcome: "shown", ClaimsOutcome: "claims"}
    return kinds[type(part)]


def _drawn(part: PartOutcome, number: int) -> Sequence[tuple[Picture, Markup]]:
    """The figures of a part, as SVG."""
    if isinstance(part, ChartOutcome):
        pictures: Sequence[Picture] = [Picture(f"chart-{number}", part.title, [_lines(part)], 1)] if part.lines else []
    else:
        pictures = part.study.findings.pictures if isinstance(part, ShownOutcome) and part.study else []
    return [(one, Markup(svg(figure(one, STAND_INS), f"p{number}-{one.name}"))) for one in pictures]


def _lines(chart: ChartOutcome) -> Lines:
    """Every curve with its band, and dashed the published values; NaN where there is no number."""
    x = np.unique([abscissa for line in chart.lines.values() for abscissa, _ in line])
    series: list[Series] = []
    for name, line in chart.lines.items():
        values = {abscissa: (one.mean, *(one.interval or (None, None)), one.paper) for abscissa, one in line}
        ours, low, high, paper = np.array([values.get(abscissa, (None,) * 4) for abscissa in x], np.float32).T
        series.append(Series(name, ours, low, high))
        if not np.isnan(paper).all():
            series.append(Series(f"{name}, the paper", paper, dashed=True))
    return Lines("", np.asarray(x, np.float32), series, chart.x, chart.y)


def _planes(trained: Sequence[Trained]) -> Mapping[str, Mapping[str, Any]]:
    """By ball with two networks or more: the drawing, the points, and which of them no other beats."""
    balls = dict.fromkeys(one.ball for one in trained)
    planes = {}
    for ball in balls:
        points = [one for one in trained if one.ball == ball]
        if len(points) > 1:
            best = front(points)
            drawing = scatter(
                f"plane-{len(planes)}",
                [(one.clean, one.robust, one in best) for one in points],
                ("clean accuracy, %", "robust accuracy, %"),
            )
            planes[ball] = {"points": sorted(points, key=lambda p: -p.clean), "best": best, "drawing": Markup(drawing)}
    return planes

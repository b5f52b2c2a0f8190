"""The page of an audit for masked gradients, from its record alone."""

from markupsafe import Markup

from equipoise.report.figures import STAND_INS, svg
from equipoise.report.pages import template
from equipoise.report.studies import figure
from equipoise.results.masking import MaskingReport, MaskingTest


def page(report: MaskingReport) -> str:
    """Return one self-contained HTML page. Raises `EquipoiseError` where matplotlib is not installed."""
    figures = [(picture, Markup(svg(figure(picture, STAND_INS), picture.name))) for picture in report.pictures]
    return template("masking.html.j2").render(
        report=report, title=_title(report), tests=clearest_first(report), figures=figures, p_value=p_value
    )


def _title(report: MaskingReport) -> str:
    if report.masked:
        return "Masked gradients"
    return "Too few samples to tell" if report.undecided else "No indicator of gradient masking"


def clearest_first(report: MaskingReport) -> list[MaskingTest]:
    """Return the tests in the order of their p-values, observed indicators, which have none, before all others."""
    return sorted(report.tests, key=lambda test: -1.0 if test.p is None else test.p)


def p_value(p: float | None) -> str:
    """Return a probability in words that fit a table."""
    return "a fact" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}"

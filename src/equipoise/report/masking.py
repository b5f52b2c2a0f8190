"""The page of a verdict on masked gradients, from its record alone."""

from markupsafe import Markup

from equipoise.report.figures import STAND_INS, svg
from equipoise.report.pages import template
from equipoise.report.studies import figure
from equipoise.verdicts import Verdict


def page(verdict: Verdict) -> str:
    """One self-contained HTML page. Raises `EquipoiseError` where matplotlib is not installed."""
    figures = [(picture, Markup(svg(figure(picture, STAND_INS), picture.name))) for picture in verdict.pictures]
    return template("masking.html.j2").render(v=verdict, figures=figures, p_value=p_value)


def p_value(p: float) -> str:
    """A probability in words that fit a table."""
    return "not a test" if p == 0 else "< 0.0001" if p < 1e-4 else f"{p:.2g}"

"""The page of a verdict on masked gradients, from its record alone."""

from markupsafe import Markup

from equipoise.report.figures import STAND_INS, svg
from equipoise.report.pages import template
from equipoise.report.studies import figure
from equipoise.results.masking import MaskingReport, Sign


def page(verdict: MaskingReport) -> str:
    """One self-contained HTML page. Raises `EquipoiseError` where matplotlib is not installed."""
    figures = [(picture, Markup(svg(figure(picture, STAND_INS), picture.name))) for picture in verdict.pictures]
    signs = clearest_first(verdict)
    return template("masking.html.j2").render(
        v=verdict, title=_title(verdict), signs=signs, figures=figures, p_value=p_value
    )


def _title(verdict: MaskingReport) -> str:
    if verdict.masked:
        return "Masked gradients"
    return "Too few samples to tell" if verdict.undecided else "No sign of masking"


def clearest_first(verdict: MaskingReport) -> list[Sign]:
    """The signs in the order of their p-values, facts, which have none, before all others."""
    return sorted(verdict.signs, key=lambda sign: -1.0 if sign.p is None else sign.p)


def p_value(p: float | None) -> str:
    """A probability in words that fit a table."""
    return "a fact" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}"

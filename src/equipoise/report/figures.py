"""Figures as inline SVG whose colours are CSS variables, so that one drawing serves light and dark pages.

Matplotlib draws with stand-in colours, which are replaced by `var(--...)` in the text of the SVG. Figures contain no
text from the user.
"""

import base64
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from equipoise.core.errors import EquipoiseError

SERIES = 8
"""Colours of runs in the style sheet, `--s0` to `--s7`; colour and marker repeat together only after 56 runs."""
_MARKERS = {"o": 6.5, "s": 6.5, "D": 6.5, "^": 8, "v": 8, "P": 9, "X": 9}
STAND_INS = {"ink": "#000001", "muted": "#000002", "line": "#000003", "page": "#000004", "clean": "#000005"}
STAND_INS |= {"fgsm": "#000006", "pgd": "#000007"} | {f"s{i}": f"#0001{i:02x}" for i in range(SERIES)}
"""Colours of a drawing, replaced by the variables of the style sheet."""
_VARIABLES = {colour: f"var(--{name})" for name, colour in STAND_INS.items()}
FONT = 11.5
"""Size of a figure's text, in CSS pixels."""
VALIDATION: dict[str, tuple[str, Any]] = {
    "valid_clean": ("clean", "-"),
    "valid_fgsm": ("fgsm", (0, (5, 2))),
    "valid_pgd": ("pgd", (0, (1.2, 1.6))),
}
"""Curves of validation accuracy: colour and dashes."""


@dataclass(frozen=True)
class Style:
    """How a run is drawn everywhere in a report."""

    series: int
    """Number of the run, from 0: decides colour and marker."""
    hollow: bool = False
    """Hollow markers and a dashed line: the last weights instead of the best."""

    @property
    def drawing(self) -> dict[str, Any]:
        """Arguments of matplotlib's `plot`."""
        colour = STAND_INS[f"s{self.series % SERIES}"]
        marker, size = list(_MARKERS.items())[self.series % len(_MARKERS)]
        return {
            "color": colour,
            "marker": marker,
            "markersize": size,
            "markerfacecolor": STAND_INS["page"] if self.hollow else colour,
            "markeredgecolor": colour if self.hollow else STAND_INS["page"],
            "markeredgewidth": 1.4 if self.hollow else 0.8,
            "linewidth": 1.9,
            "linestyle": (0, (4, 2)) if self.hollow else "-",
        }


@dataclass(frozen=True)
class Line:
    """Accuracy against the radius, with its interval."""

    style: Style
    eps: Sequence[float]
    """Radii, increasing."""
    accuracy: Sequence[float]
    """In [0, 1], one per radius."""
    interval: Sequence[tuple[float, float]]
    """In [0, 1], one per radius."""


def against_eps(name: str, lines: Sequence[Line], label: Callable[[float], str], width: int, height: int) -> str:
    """Draw accuracy in percent against eps, one line per run over the band of its interval.

    `name` makes the SVG's ids unique; `label` formats a radius. Ticks are at the evaluated radii that have room.
    """
    figure, (axes,) = _figure(width, height, (1,))
    for line in lines:
        low, high = (100 * np.array(line.interval)).T
        axes.fill_between(line.eps, low, high, color=line.style.drawing["color"], alpha=0.16, linewidth=0)
    for line in lines:
        axes.plot(line.eps, 100 * np.array(line.accuracy), clip_on=False, zorder=3, **line.style.drawing)
    _percent(axes, "accuracy")
    _label_below(axes, "eps")
    radii = sorted({eps for line in lines for eps in line.eps})
    ticks = [0.0]
    for eps in radii:
        if eps - ticks[-1] >= 50 / width * radii[-1] and eps > 0:
            ticks.append(eps)
    axes.set_xticks(ticks, [label(eps) for eps in ticks])
    axes.set_xlim(0, radii[-1] or 1)
    return svg(figure, name)


def margin_curves(name: str, lines: Sequence[tuple[Line, bool]], width: int, height: int) -> str:
    """Draw the curve of a score in percent against eps: for each model a line, dotted if marked, with its band."""
    figure, (axes,) = _figure(width, height, (1,))
    for line, dotted in lines:
        low, high = (100 * np.array(line.interval)).T
        colour = line.style.drawing["color"]
        axes.fill_between(line.eps, low, high, color=colour, alpha=0.16, linewidth=0)
        dashes = (0, (1.2, 1.6)) if dotted else line.style.drawing["linestyle"]
        axes.plot(line.eps, 100 * np.array(line.accuracy), color=colour, linewidth=1.9, linestyle=dashes, zorder=3)
    _percent(axes, "classified alike within eps")
    _label_below(axes, "eps")
    first, last = (end(eps for line, _ in lines for eps in line.eps) for end in (min, max))
    axes.set_xlim(0 if first < last / 2 else first, last)
    return svg(figure, name)


def brackets(name: str, lines: Sequence[Line], height: int = 300) -> str:
    """Draw for each run a bar from certified to attacked accuracy, between which the truth lies, and above it a ring at
    clean accuracy. A line holds the three accuracies in this order; thin lines are the intervals of the bar's ends.
    """
    figure, (axes,) = _figure(max(240, 70 * len(lines)), height, (1,))
    for x, line in enumerate(lines):
        drawing = line.style.drawing
        colour = drawing["color"]
        low, high, clean = (100 * accuracy for accuracy in line.accuracy)
        axes.bar(x, high - low, 0.34, bottom=low, color=colour, alpha=0.35, linewidth=0, zorder=2)
        axes.hlines([low, high], x - 0.17, x + 0.17, color=colour, linewidth=2.2, zorder=3)
        for bounds in line.interval[:2]:
            axes.vlines(x, *(100 * np.array(bounds)), color=colour, linewidth=1.0, zorder=3)
        ring = drawing | {"markerfacecolor": STAND_INS["page"], "markeredgecolor": colour, "linestyle": "none"}
        axes.plot([x], [clean], clip_on=False, zorder=4, **ring)
    _percent(axes, "certified to attacked accuracy")
    axes.set_xticks([])
    axes.set_xlim(-0.6, len(lines) - 0.4)
    return svg(figure, name)


def scatter(name: str, points: Sequence[tuple[float, float, bool]], labels: tuple[str, str], width: int = 420) -> str:
    """Draw points of the plane with axes `labels`: marked points are filled and joined."""
    figure, (axes,) = _figure(width, 320, (1,))
    for filled in (False, True):
        selected = [(x, y) for x, y, marked in points if marked == filled]
        if selected:
            x, y = zip(*sorted(selected), strict=True)
            face = STAND_INS["s0"] if filled else "none"
            if filled:
                axes.plot(x, y, color=STAND_INS["s0"], linewidth=1.4, zorder=2)
            axes.plot(x, y, "o", color=STAND_INS["s0"], markerfacecolor=face, markersize=7, zorder=3)
    axes.margins(0.08)
    _title(axes, labels[1])
    _label_below(axes, labels[0])
    return svg(figure, name)


def against_queries(name: str, curves: Sequence[tuple[str, Sequence[int], Sequence[float]]], width: int = 400) -> str:
    """Draw robust accuracy in percent against the number of queries per sample, on a logarithmic axis.

    `curves` has one step curve per radius: its label, the numbers of queries at which it steps, and the robust accuracy
    in [0, 1] from there.
    """
    figure, (axes,) = _figure(width, 250, (1,))
    axes.set_xscale("log")
    last = max(max(queries) for _, queries, _ in curves)
    lowest = -np.inf
    for text, queries, accuracy in sorted(curves, key=lambda curve: curve[2][-1]):
        heights = 100 * np.array(accuracy)
        axes.step([*queries, last], [*heights, heights[-1]], where="post", color=STAND_INS["ink"], linewidth=1.7)
        lowest = max(heights[-1], lowest + 8)  # the height of a line of text, so that no two overlap
        axes.annotate(
            text, (1, lowest), (6, 0), ("axes fraction", "data"), "offset points", va="center", annotation_clip=False,
            fontsize=FONT, color=STAND_INS["ink"],
        )  # fmt: skip
    _percent(axes, "robust accuracy")
    _label_below(axes, "queries per sample")
    decades = [10**k for k in range(math.floor(math.log10(last)) + 1)]
    axes.set_xticks(decades, [f"{decade:,}" for decade in decades])
    axes.set_xticks([], minor=True)
    axes.set_xlim(1, max(last, 10))
    return svg(figure, name)


def training(name: str, metrics: Sequence[Mapping[str, Any]], best: float | None, width: int = 310) -> str:
    """Draw training loss and, below it, validation accuracies over epochs; a vertical line at the best epoch."""
    figure, (above, below) = _figure(width, 280, (1, 1.7))
    epochs = [entry["epoch"] for entry in metrics]
    points = {"marker": "o", "markersize": 4} if len(epochs) == 1 else {}
    above.plot(epochs, _values(metrics, "train_loss"), color=STAND_INS["ink"], linewidth=1.6, **points)
    _title(above, "training loss")
    above.margins(y=0.15)
    above.tick_params(labelbottom=False)
    for key, (role, dashes) in VALIDATION.items():
        style = {"color": STAND_INS[role], "linestyle": dashes, "linewidth": 1.9, "dash_capstyle": "butt", **points}
        below.plot(epochs, 100 * _values(metrics, key), clip_on=False, zorder=3, **style)
    _percent(below, "validation accuracy")
    _label_below(below, "epoch")
    for axes in (above, below):
        axes.xaxis.get_major_locator().set_params(integer=True)
        first, last = min(epochs), max(epochs)
        axes.set_xlim(first - 0.02 * (last - first), last) if last > first else axes.set_xlim(first - 1, first + 1)
        if best is not None and first <= best <= last:
            axes.axvline(best, color=STAND_INS["muted"], linewidth=1.1, zorder=1)
            above.set_title(
                f"best weights: epoch {best:g}", loc="right", fontsize=FONT, color=STAND_INS["muted"], pad=9
            )
    return svg(figure, name)


def key(name: str, style: Style | None = None, role: str = "") -> str:
    """Draw a short line with a run's marker, or with the dashes of a validation curve (`role`, in `VALIDATION`)."""
    figure, (axes,) = _figure(34, 14, (1,), bare=True)
    if style is not None:
        axes.plot([0, 1, 2], [0, 0, 0], markevery=[1], **style.drawing)
    else:
        colour, dashes = VALIDATION[role]
        axes.plot([0, 2], [0, 0], color=STAND_INS[colour], linestyle=dashes, linewidth=2.2)
    return svg(figure, name)


def picture(image: np.ndarray, largest: int = 96) -> str:
    """Return an image (channels, height, width) in [0, 1] as a PNG data URI, reduced to `largest` pixels a side."""
    levels = np.rint(255 * image).astype(np.uint8)
    drawn = Image.fromarray(levels[0] if len(levels) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0)))
    if max(drawn.size) > largest:
        drawn.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _values(metrics: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """A metric over the epochs, NaN (a gap in the curve) where it is missing or not a finite number."""
    numbers = [value if isinstance(value := entry.get(name), int | float) else np.nan for entry in metrics]
    return np.where(np.isfinite(numbers), numbers, np.nan)


def canvas(width: float, height: float, bare: bool = False) -> Any:
    """Return an empty figure of `width` x `height` CSS pixels, outside matplotlib's global state; `bare` has no layout.

    Raises `EquipoiseError` where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise EquipoiseError(
            "a report's figures need matplotlib, which is not installed; run: pip install 'equipoise[report]'."
        ) from error
    figure = Figure(
        (width / 72, height / 72), layout=None if bare else ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, hspace=0.08)
    )
    figure.patch.set_visible(False)
    return figure


def unframe(axes: Any, colours: Mapping[str, str] = STAND_INS) -> None:
    """Reduce a frame to tick labels and horizontal grid lines."""
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.grid(axis="y", color=colours["line"], linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, pad=5, labelsize=FONT, labelcolor=colours["muted"])


def _figure(width: int, height: int, rows: Sequence[float], bare: bool = False) -> tuple[Any, Sequence[Any]]:
    """A figure with one frame per row."""
    figure = canvas(width, height, bare)
    if bare:
        axes = figure.add_axes((0.04, 0.0, 0.92, 1.0))
        axes.set_axis_off()
        axes.set_ylim(-1, 1)
        return figure, (axes,)
    frames = list(figure.subplots(len(rows), 1, squeeze=False, height_ratios=list(rows))[:, 0])
    for axes in frames:
        unframe(axes)
        axes.yaxis.get_major_locator().set_params(nbins=4)
    return figure, frames


def _percent(axes: Any, title: str) -> None:
    """A vertical axis from 0 to 100 %."""
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.set_title(f"{title}, %", loc="left", fontsize=FONT, color=STAND_INS["ink"], pad=9)


def _title(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=FONT, color=STAND_INS["ink"], pad=9)


def _label_below(axes: Any, label: str) -> None:
    axes.set_xlabel(label, loc="right", fontsize=FONT, color=STAND_INS["ink"], labelpad=5)
    axes.tick_params(axis="x", pad=9)


def svg(figure: Any, name: str) -> str:
    """Return the figure as an `<svg>` element for use inside a page, without size, fonts, or global ids and rules."""
    import matplotlib

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": FONT}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    box = re.search(r'viewBox="[^"]+"', text)
    assert box is not None
    text = re.sub(r"<svg.*?>", f'<svg {box[0]} aria-hidden="true" focusable="false">', text, count=1, flags=re.DOTALL)
    for unwanted in (
        r"<!--.*?-->",
        r"<style.*?</style>",
        r"(?<=<g) id=\"[^\"]*\"",
        r"\bid=\"image\w*\"",
        r"font-family: [^;\"]*;?",
    ):
        text = re.sub(unwanted, "", text, flags=re.DOTALL)
    text = text.replace("xlink:href", "href").replace("<defs>\n  \n </defs>", "")
    text = re.sub(r"\s*\n\s*", "\n", text)
    return re.sub("|".join(_VARIABLES), lambda match: _VARIABLES[match[0]], text)

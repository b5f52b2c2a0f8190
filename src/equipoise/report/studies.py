"""The page of a study and its figures, from its record alone.

A map shows its values by the opacity of a colour: it fades to the colour of the page at a boundary or at zero, so that
one drawing serves light and dark pages. Two classes are blue and orange, circles and squares; amounts are green.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from equipoise.core.errors import require
from equipoise.report.figures import FONT, SERIES, STAND_INS, canvas, svg, unframe
from equipoise.report.pages import light, number, template
from equipoise.results.findings import Histogram, Images, Lines, Number, Panel, Picture, Regions, Series, Study

_CLASSES = (("s0", "o"), ("s1", "s"), ("s2", "^"), ("s3", "D"))
"""Colour and marker of each class."""
_BLUE, _ORANGE, _GREEN = (0.0, 0.447, 0.698), (0.878, 0.353, 0.0), (0.0, 0.55, 0.40)
_SMALL = 10.0
_WIDTHS = {1: 520, 2: 380, 3: 300, 4: 235}
_NARROWEST = 200
_STRIP = 46
"""Sizes in CSS pixels: small text, a panel's width by the number of columns, the height of the strip of scales."""


def page(study: Study, record: str = "") -> str:
    """Return a self-contained HTML page of a study, or of a score, whose `record` lies beside it. Raises
    `EquipoiseError` if matplotlib is not installed.
    """
    figures = [(picture, Markup(svg(figure(picture, STAND_INS), picture.name))) for picture in study.findings.pictures]
    return template("study.html.j2").render(
        study=study, record=record, figures=figures, mean=mean, interval=interval,
        each=lambda n: [written(n, v) for v in n.values],
    )  # fmt: skip


def draw(picture: Picture) -> bytes:
    """Return a figure as a PNG, on white."""
    buffer = io.BytesIO()
    colours = light()
    drawn = figure(picture, {name: colours[name] for name in STAND_INS})
    drawn.patch.set_visible(True)
    drawn.savefig(buffer, format="png", dpi=144, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def written(what: Number, value: float) -> str:
    """Return a value of a number in words, in percent if it is a share."""
    return f"{100 * value:.1f}" if what.percent and math.isfinite(value) else number(value)


def mean(what: Number) -> str:
    """Return the mean of a number in words, with its unit."""
    return written(what, what.mean) + (" %" if what.percent else "")


def interval(what: Number) -> str:
    """Return the 95 % interval of the mean in words, a dash for a single value."""
    return "–" if what.interval is None else " to ".join(written(what, end) for end in what.interval)


def figure(picture: Picture, colours: Mapping[str, str]) -> Any:
    """Return a figure of the picture's panels in rows, and below them the scales of the maps and the legend."""
    require(len(picture.panels) > 0, f"figure {picture.name} has no panels.")
    columns = min(picture.columns, len(picture.panels))
    rows, width = math.ceil(len(picture.panels) / columns), _WIDTHS.get(columns, _NARROWEST)
    scales = _scales(picture.panels)
    heights = [max(_height(p, width) for p in picture.panels[r * columns : (r + 1) * columns]) for r in range(rows)]
    legend = _legend(picture.panels, colours)
    figure = canvas(width * columns, sum(heights) + (_STRIP if scales else 0) + (26 if legend else 0) + 12)
    figure.get_layout_engine().set(hspace=0.03, wspace=0.03)
    grid = figure.add_gridspec(rows + bool(scales), columns, height_ratios=[*heights, *([_STRIP] if scales else [])])
    for i, panel in enumerate(picture.panels):
        axes = figure.add_subplot(grid[i // columns, i % columns])
        match panel:
            case Regions():
                _regions(axes, panel, colours, scales[panel.meaning])
            case Lines():
                _lines(axes, panel, colours, _order(picture.panels))
            case Histogram():
                _histogram(axes, panel, colours, _order(picture.panels))
            case Images():
                _images(axes, panel, colours)
        axes.set_title(panel.title, loc="left", fontsize=FONT, color=colours["ink"], pad=7)
    if scales:
        strip = grid[rows, :].subgridspec(1, max(len(scales), min(columns, 3)), wspace=0.25)
        for i, (meaning, scale) in enumerate(scales.items()):
            _scale(figure.add_subplot(strip[0, i]), meaning, scale, colours)
    if legend:
        drawn = figure.legend(
            handles=legend, loc="outside lower center", ncols=min(len(legend), max(2, columns * width // 150)),
            fontsize=_SMALL, frameon=False, labelcolor=colours["ink"], handlelength=1.8, columnspacing=1.6,
        )  # fmt: skip
        drawn.set_in_layout(True)
    return figure


def _height(panel: Panel, width: float) -> float:
    """The height of a panel of that width, in CSS pixels."""
    match panel:
        case Regions():
            left, right, bottom, top = panel.extent
            return 34 + width * 0.88 * (top - bottom) / (right - left)
        case Images():
            rows, columns, _, height, across = panel.pixels.shape
            return 50 + (width - 70) * rows * _spread(height, bool(panel.notes)) / (columns * _spread(across, False))
        case _:
            return max(0.66 * width, 210)


class _Scale:
    """The mapping of a map's values to colours."""

    def __init__(self, panels: Sequence[Regions]) -> None:
        from matplotlib.colors import ListedColormap, Normalize, TwoSlopeNorm

        levels = {panel.level for panel in panels}
        require(len(levels) == 1, f"maps of {panels[0].meaning!r} in one figure need one level, they have {levels}.")
        (self.level,) = levels
        ends = [float(f(panel.values)) for panel in panels for f in (np.min, np.max)]
        steps = np.linspace(0, 1, 128)[:, None]
        if self.level is None:
            self.colours = ListedColormap(np.hstack([np.tile(_GREEN, (128, 1)), 0.85 * steps]))
            self.low, self.high = 0.0, max(*ends, 1e-12)
            self.norm = Normalize(self.low, self.high)
        else:
            reach = max(abs(end - self.level) for end in ends) or 1.0
            reach = 0.5 if self.level == 0.5 else reach
            blue = np.hstack([np.tile(_BLUE, (128, 1)), 0.55 * steps])[::-1]
            orange = np.hstack([np.tile(_ORANGE, (128, 1)), 0.55 * steps])
            self.colours = ListedColormap(np.vstack([blue, orange]))
            self.low, self.high = self.level - reach, self.level + reach
            self.norm = TwoSlopeNorm(self.level, self.low, self.high)


def _scales(panels: Sequence[Panel]) -> dict[str, _Scale]:
    """A scale for each meaning of maps."""
    maps = [panel for panel in panels if isinstance(panel, Regions)]
    meanings = dict.fromkeys(panel.meaning for panel in maps)
    return {meaning: _Scale([panel for panel in maps if panel.meaning == meaning]) for meaning in meanings}


def _scale(axes: Any, meaning: str, scale: _Scale, colours: Mapping[str, str]) -> None:
    low, high = scale.low, scale.high
    axes.set_axis_off()
    axes = axes.inset_axes((0.0, 0.38, 1.0, 0.26))  # its text stays inside the strip
    axes.imshow(
        np.linspace(low, high, 256)[None], extent=(low, high, 0, 1), aspect="auto", cmap=scale.colours, norm=scale.norm
    )
    axes.patch.set_visible(False)
    axes.spines[:].set(color=colours["line"], linewidth=0.8)
    axes.set_yticks([])
    axes.xaxis.get_major_locator().set_params(nbins=4)
    axes.tick_params(length=0, pad=3, labelsize=_SMALL, labelcolor=colours["muted"])
    axes.set_title(meaning, loc="left", fontsize=_SMALL, color=colours["ink"], pad=4)


def _regions(axes: Any, panel: Regions, colours: Mapping[str, str], scale: _Scale) -> None:
    axes.imshow(
        panel.values, extent=panel.extent, origin="lower", cmap=scale.colours, norm=scale.norm, interpolation="none",
        aspect="equal",
    )  # fmt: skip
    for function, level, dashes, width in (
        (panel.values, panel.level, "solid", 1.5),
        (panel.boundary, 0.0, "solid", 1.5),
        (panel.truth, 0.0, (0, (4, 2.5)), 1.3),
    ):
        if function is not None and level is not None and function.min() < level < function.max():
            x, y = _centres(panel.extent, function.shape)
            axes.contour(x, y, function, [level], colors=colours["ink"], linewidths=width, linestyles=[dashes])
    if panel.points is not None:
        labels = np.zeros(len(panel.points), int) if panel.labels is None else panel.labels
        for label in np.unique(labels):
            colour, marker = _CLASSES[label % len(_CLASSES)]
            _points(axes, panel, labels == label, colours[colour], marker, colours["page"])
    axes.set_xlim(panel.extent[:2])
    axes.set_ylim(panel.extent[2:])
    axes.patch.set_visible(False)
    axes.spines[:].set(color=colours["line"], linewidth=1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(nbins=4)
    axes.tick_params(length=0, pad=3, labelsize=_SMALL, labelcolor=colours["muted"])


def _points(axes: Any, panel: Regions, members: np.ndarray, colour: str, marker: str, edge: str) -> None:
    """Draw the points of a class, if they were moved faint, with a line to a cross where they are now."""
    assert panel.points is not None
    clean = panel.points[members]
    size = {"o": 13, "s": 11, "^": 15, "D": 10}[marker]
    if panel.moved is not None:
        moved = panel.moved[members]
        ends = np.stack([clean, moved, np.full_like(clean, np.nan)], 1).reshape(-1, 2)
        axes.plot(*ends.T, color=colour, linewidth=0.7, alpha=0.55, zorder=2.5, clip_on=True)
        axes.scatter(*moved.T, s=17, c=colour, marker="+", linewidths=1.1, zorder=3.2)
    axes.scatter(
        *clean.T, s=size, c=colour, marker=marker, linewidths=0.5, edgecolors=edge, zorder=3,
        alpha=1.0 if panel.moved is None else 0.75,
    )  # fmt: skip


def _centres(extent: tuple[float, float, float, float], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates of the centres of a grid's cells."""
    left, right, bottom, top = extent
    rows, columns = shape
    return (
        left + (right - left) * (np.arange(columns) + 0.5) / columns,
        bottom + (top - bottom) * (np.arange(rows) + 0.5) / rows,
    )


def _order(panels: Sequence[Panel]) -> dict[str, int]:
    """The number of each series of a picture, from 0; series whose names agree up to a comma share one."""
    names = [s.name for p in panels if isinstance(p, Lines) for s in p.series]
    names += [name for p in panels if isinstance(p, Histogram) for name in p.counts]
    return {name: i for i, name in enumerate(dict.fromkeys(map(_family, names)))}


def _family(name: str) -> str:
    return name.split(",")[0]


def _lines(axes: Any, panel: Lines, colours: Mapping[str, str], order: Mapping[str, int]) -> None:
    unframe(axes, colours)
    for series in panel.series:
        colour = colours[f"s{order[_family(series.name)] % SERIES}"]
        if series.low is not None and series.high is not None:
            finite = np.isfinite(series.low) & np.isfinite(series.high)
            band = (panel.x[finite], series.low[finite], series.high[finite])
            axes.fill_between(*band, color=colour, alpha=0.18, linewidth=0)
        finite = np.isfinite(series.y)  # the line connects each measurement with the next
        stroke = _stroke(series, colour, colours, len(panel.x))
        axes.plot(panel.x[finite], series.y[finite], label=series.name, **stroke)
    if panel.log_x:
        axes.set_xscale("log")
        ticks = _ticks(panel.x)
        axes.set_xticks(ticks, [f"{tick:,.4g}" for tick in ticks])
        axes.set_xticks([], minor=True)
    axes.margins(x=0.02)
    _axes_names(axes, panel.x_name, panel.y_name, colours)
    if len(panel.series) > 1:
        axes.legend(fontsize=_SMALL, frameon=False, labelcolor=colours["ink"], handlelength=1.8)


def _ticks(x: Float[np.ndarray, " x"]) -> list[float]:
    """The values on a logarithmic axis with room for a number: at least a seventh of the axis apart."""
    distance = np.log(x[-1] / x[0]) / 7
    ticks = [float(x[0])]
    for value in x[1:]:
        if np.log(value / ticks[-1]) >= distance:
            ticks.append(float(value))
    return ticks


def _stroke(series: Series, colour: str, colours: Mapping[str, str], points: int) -> dict[str, Any]:
    """Arguments of matplotlib's `plot`: markers for few points, dashes for a series that was not measured."""
    marks = {"marker": "o", "markersize": 4.5, "markeredgecolor": colours["page"], "markeredgewidth": 0.8}
    dashes = (0, (4, 2.5)) if series.dashed else "-"
    return {"color": colour, "linewidth": 1.8, "linestyle": dashes, **(marks if points <= 20 else {})}


def _histogram(axes: Any, panel: Histogram, colours: Mapping[str, str], order: Mapping[str, int]) -> None:
    unframe(axes, colours)
    for name, counts in panel.counts.items():
        colour = colours[f"s{order[_family(name)] % SERIES}"]
        axes.stairs(counts, panel.edges, fill=True, color=colour, alpha=0.2)
        axes.stairs(counts, panel.edges, color=colour, linewidth=1.5, label=name)
    for name, x in panel.marks.items():
        axes.axvline(x, color=colours["ink"], linewidth=1.1, linestyle=(0, (4, 2.5)))
        axes.annotate(
            name, (x, 1), (4, -4), ("data", "axes fraction"), "offset points", va="top", fontsize=_SMALL,
            color=colours["ink"],
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    _axes_names(axes, panel.x_name, "count", colours)
    if len(panel.counts) > 1:
        axes.legend(fontsize=_SMALL, frameon=False, labelcolor=colours["ink"], handlelength=1.4)


def _axes_names(axes: Any, x: str, y: str, colours: Mapping[str, str]) -> None:
    axes.set_xlabel(x, loc="right", fontsize=_SMALL, color=colours["ink"])
    axes.set_ylabel(y, fontsize=_SMALL, color=colours["ink"])


_GAP, _NOTE = 0.08, 0.26  # of an image's height: between two images, and for the note under one


def _spread(length: int, notes: bool) -> float:
    """The space of an image in a table, in its pixels."""
    return length * (1 + (_NOTE if notes else _GAP))


def _images(axes: Any, panel: Images, colours: Mapping[str, str]) -> None:
    """Draw a table of images without interpolation, with names beside and above and notes below them."""
    rows, columns, _, height, width = panel.pixels.shape
    down, across = _spread(height, bool(panel.notes)), _spread(width, False)
    for row in range(rows):
        for column in range(columns):
            left, top = column * across, row * down
            axes.imshow(
                _three_channels(panel.pixels[row, column]), extent=(left, left + width, top + height, top),
                interpolation="none", vmin=0, vmax=1,
            )  # fmt: skip
            if panel.notes:
                axes.text(
                    left + width / 2, top + height * 1.03, panel.notes[row][column], ha="center", va="top",
                    fontsize=_SMALL - 1.5, color=colours["muted"],
                )  # fmt: skip
    axes.set_xlim(0, columns * across - width * _GAP)
    axes.set_ylim(rows * down, 0)
    axes.set_xticks([c * across + width / 2 for c in range(columns)], panel.columns)
    axes.set_yticks([r * down + height / 2 for r in range(rows)], panel.rows)
    axes.xaxis.tick_top()
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=4, labelsize=_SMALL, labelcolor=colours["ink"])


def _three_channels(image: Float[np.ndarray, "channels height width"]) -> Float[np.ndarray, "height width 3"]:
    return np.clip(np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0), 0, 1)


def _legend(panels: Sequence[Panel], colours: Mapping[str, str]) -> list[Any]:
    """The legend of the markers and lines of the maps."""
    from matplotlib.lines import Line2D

    maps = [panel for panel in panels if isinstance(panel, Regions)]
    classes = sorted({int(c) for p in maps if p.points is not None and p.labels is not None for c in p.labels})
    handles = []
    for label in classes:
        colour, marker = _CLASSES[label % len(_CLASSES)]
        style = {"color": colours[colour], "marker": marker, "markersize": 4.5, "linestyle": "none"}
        handles.append(Line2D([], [], label=f"class {label}", **style))
    if any(p.moved is not None for p in maps):
        line = {"color": colours["muted"], "marker": "+", "markevery": [1], "markersize": 6, "linewidth": 0.8}
        handles.append(Line2D([0, 1], [0, 0], label="perturbed, and from where", **line))
    if any(p.level is not None or p.boundary is not None for p in maps):
        handles.append(Line2D([], [], label="boundary of the network", color=colours["ink"], linewidth=1.5))
    if any(p.truth is not None for p in maps):
        dashes = (0, (4, 2.5))
        style = {"color": colours["ink"], "linewidth": 1.3, "linestyle": dashes}
        handles.append(Line2D([], [], label="max-margin boundary", **style))
    return handles

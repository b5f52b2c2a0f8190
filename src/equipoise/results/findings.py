"""The findings of a study as plain data: numbers with their intervals, and the panels of its figures. No torch.

A study returns `Findings`; a page draws them. A panel holds everything that a figure shows, so that it can be drawn
again or differently.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from equipoise.core.tables import Row, Tabular
from equipoise.results.statistics import clopper_pearson, student


@dataclass(frozen=True)
class Number:
    """A number that makes a point, over independent repeats."""

    name: str
    """What was measured, e.g. `agreement with the max-margin boundary, UDP, eps 0.3`."""
    values: Sequence[float]
    """One per seed (or per sample, if `unit` says so)."""
    unit: str = "seeds"
    """What `values` runs over."""
    paper: str = ""
    """What the paper says about it, and where."""
    percent: bool = False
    """Whether the values are shares of 1, which are written in percent."""
    outcomes: bool = False
    """Whether each value is 1 or 0 for something that happened or not."""
    signed: bool = False
    """Whether the values may be negative, as differences of shares."""

    @property
    def mean(self) -> float:
        """The mean of `values`."""
        return float(np.mean(self.values))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the mean, `mean ± t·s/sqrt(n)` with Student's t of n - 1 degrees of freedom, cut
        to [0, 1] for shares that are not `signed`; None below two values.

        Of `outcomes`, that of Clopper and Pearson (1934), which is exact and has a width even if all agree.
        """
        n = len(self.values)
        if n < 2:
            return None
        if self.outcomes:
            k = round(sum(self.values))
            return clopper_pearson(k, n)
        half = float(student(n - 1) * np.std(self.values, ddof=1) / np.sqrt(n))
        low, high = self.mean - half, self.mean + half
        return (max(low, 0.0), min(high, 1.0)) if self.percent and not self.signed else (low, high)


@dataclass(frozen=True, eq=False)
class Regions:
    """A function of the plane, with points on it."""

    title: str
    values: Float[np.ndarray, "rows columns"]
    """The function on a regular grid, first row at the bottom."""
    extent: tuple[float, float, float, float]
    """Left, right, bottom, top."""
    meaning: str = "probability of class 1"
    """Meaning of the values; panels of a figure with the same meaning share a scale."""
    level: float | None = 0.5
    """The value at which a line is drawn, halfway between two colours; None for amounts, which begin at 0."""
    boundary: Float[np.ndarray, "rows columns"] | None = None
    """A function whose zero line is the classifier's boundary, if the values do not show it."""
    points: Float[np.ndarray, "points 2"] | None = None
    """Clean points."""
    labels: Int[np.ndarray, " points"] | None = None
    """Their classes."""
    moved: Float[np.ndarray, "points 2"] | None = None
    """Where a perturbation moved them."""
    truth: Float[np.ndarray, "rows columns"] | None = None
    """A function whose zero line is the true boundary, on the same grid."""


@dataclass(frozen=True, eq=False)
class Series:
    """One line, with its band."""

    name: str
    y: Float[np.ndarray, " x"]
    low: Float[np.ndarray, " x"] | None = None
    high: Float[np.ndarray, " x"] | None = None
    dashed: bool = False
    """Whether it is a prediction or a reference instead of a measurement."""


@dataclass(frozen=True, eq=False)
class Lines:
    """Lines against a number."""

    title: str
    x: Float[np.ndarray, " x"]
    """The values at which the series were measured, increasing."""
    series: Sequence[Series]
    x_name: str
    """Name of x, with its unit."""
    y_name: str
    """Name of the quantity of the series, with its unit."""
    log_x: bool = False


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often a value falls into each bin."""

    title: str
    edges: Float[np.ndarray, " bins_and_1"]
    counts: Mapping[str, Int[np.ndarray, " bins"]]
    x_name: str
    """Name of the binned quantity, with its unit."""
    marks: Mapping[str, float] = field(default_factory=dict)
    """Vertical lines, by name."""


@dataclass(frozen=True, eq=False)
class Images:
    """A table of images."""

    title: str
    pixels: Float[np.ndarray, "rows columns channels height width"]
    """In [0, 1]; one channel or three."""
    rows: Sequence[str]
    columns: Sequence[str]
    notes: Sequence[Sequence[str]] = ()
    """Text under each image, such as the predicted class."""


Panel = Regions | Lines | Histogram | Images


@dataclass(frozen=True)
class Picture:
    """A figure: panels in the paper's arrangement."""

    name: str
    """A file name, such as `decision-regions`."""
    caption: str
    """What the figure shows, and which figure of the paper it is."""
    panels: Sequence[Panel]
    """In reading order."""
    columns: int


@dataclass(frozen=True, repr=False)
class Findings(Tabular):
    """Numbers, figures and verdict of a study."""

    numbers: Sequence[Number]
    pictures: Sequence[Picture]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Every parameter of the study, JSON-ready."""
    verdict: str = ""
    """In a sentence: whether the paper's point was seen."""

    def _table(self) -> tuple[Row, list[Row]]:
        ends = (" to ".join(f"{end:.4g}" for end in number.interval or ()) for number in self.numbers)
        return ("measured", "mean", "95 % interval", "n"), [
            (number.name, f"{number.mean:.4g}", span, f"{len(number.values)} {number.unit}")
            for number, span in zip(self.numbers, ends, strict=True)
        ]

    def _columns(self) -> dict[str, list[Any]]:
        intervals = [number.interval or (None, None) for number in self.numbers]
        return {
            "measured": [number.name for number in self.numbers],
            "n": [len(number.values) for number in self.numbers],
            "unit": [number.unit for number in self.numbers],
            "mean": [number.mean for number in self.numbers],
            "low": [low for low, _ in intervals],
            "high": [high for _, high in intervals],
        }


@dataclass(frozen=True)
class Study:
    """The record of a study: its question, findings and provenance."""

    name: str
    """Name on the command line."""
    question: str
    source: str
    """The figures or the theorem that it reproduces, such as `U Figs 3, 9`."""
    findings: Findings
    provenance: Mapping[str, Any]
    """Command, seed, versions, commit, device, threads and date."""
    quick: bool = False
    """Whether it is the small version, which proves nothing."""
    seconds: float = 0.0
    """Wall-clock time."""

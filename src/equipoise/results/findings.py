"""What a study found, as plain data: numbers with their intervals, and the panels of its figures. No torch.

A study returns `Findings`; a page draws them. Everything a figure shows is in its panel, so that it can be drawn again,
differently, or not at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import betaincinv, stdtrit


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
    """What the paper says of it, with its place."""
    percent: bool = False
    """Whether the values are shares of 1, to be written in percent."""
    outcomes: bool = False
    """Whether each value says if something happened: 1 or 0."""
    signed: bool = False
    """Whether it may be negative, as a difference of shares may."""

    @property
    def mean(self) -> float:
        """The mean of `values`."""
        return float(np.mean(self.values))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean, `mean ± t·s/sqrt(n)` with Student's t of n - 1 degrees, of shares cut to
        [0, 1], unless `signed`; None below two values.

        Of `outcomes`, Clopper and Pearson's (1934), which is exact and has a width where all agree.
        """
        n = len(self.values)
        if n < 2:
            return None
        if self.outcomes:
            k = round(sum(self.values))
            low = float(betaincinv(k, n - k + 1, 0.025)) if k > 0 else 0.0
            return low, float(betaincinv(k + 1, n - k, 0.975)) if k < n else 1.0
        half = float(stdtrit(n - 1, 0.975) * np.std(self.values, ddof=1) / np.sqrt(n))
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
    """What the values are; panels of a figure whose values mean the same share a scale."""
    level: float | None = 0.5
    """The value at which a line is drawn, halfway between two colours; None for amounts, which begin at 0."""
    boundary: Float[np.ndarray, "rows columns"] | None = None
    """A function whose zero line is the classifier's boundary, where the values themselves do not show it."""
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
    """What the legend calls it."""
    y: Float[np.ndarray, " x"]
    """Its values."""
    low: Float[np.ndarray, " x"] | None = None
    """Lower end of its band."""
    high: Float[np.ndarray, " x"] | None = None
    """Upper end of its band."""
    dashed: bool = False
    """Whether it is a prediction, or a reference, rather than a measurement."""


@dataclass(frozen=True, eq=False)
class Lines:
    """Numbers against a number."""

    title: str
    x: Float[np.ndarray, " x"]
    """Where the series were measured, increasing."""
    series: Sequence[Series]
    x_name: str
    """What x is, with its unit."""
    y_name: str
    """What the series are of, with their unit."""
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often a value falls into each bin."""

    title: str
    edges: Float[np.ndarray, " bins_and_1"]
    counts: Mapping[str, Int[np.ndarray, " bins"]]
    """Per series."""
    x_name: str
    """What the bins are of, with its unit."""
    marks: Mapping[str, float] = field(default_factory=dict)
    """Vertical lines, by name."""


@dataclass(frozen=True, eq=False)
class Images:
    """A table of pictures."""

    title: str
    pixels: Float[np.ndarray, "rows columns channels height width"]
    """In [0, 1]; one channel or three."""
    rows: Sequence[str]
    columns: Sequence[str]
    notes: Sequence[Sequence[str]] = ()
    """What stands under each picture, such as the predicted class."""


Panel = Regions | Lines | Histogram | Images


@dataclass(frozen=True)
class Picture:
    """A figure: panels side by side, in the paper's arrangement."""

    name: str
    """Such as `decision-regions`; a file name."""
    caption: str
    """What is seen, and where it is in the paper."""
    panels: Sequence[Panel]
    """In reading order."""
    columns: int
    """Panels per row."""


@dataclass(frozen=True)
class Findings:
    """All that a study found."""

    numbers: Sequence[Number]
    """What was measured."""
    pictures: Sequence[Picture]
    """What is shown."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Every parameter of the study, JSON-ready."""
    verdict: str = ""
    """In a sentence: whether the paper's point was seen."""


@dataclass(frozen=True)
class Study:
    """A study that was run: what was asked, what was found, and where it comes from."""

    name: str
    """Name on the command line."""
    question: str
    """What it asks, in a sentence."""
    source: str
    """The figures or theorem it is about, such as `U Figs 3, 9`."""
    findings: Findings
    """What was found."""
    provenance: Mapping[str, Any]
    """Command, seed, versions, commit, device, threads and date."""
    quick: bool = False
    """Whether it was the small version, which proves nothing."""
    seconds: float = 0.0
    """Wall-clock time."""

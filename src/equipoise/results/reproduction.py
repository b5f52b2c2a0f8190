"""What came of an experiment: the paper's numbers with ours beside them. Plain data, without torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median
from typing import Any, Literal

import numpy as np

from equipoise.results.findings import Study

MARGIN = 2.0
"""Percentage points within which two accuracies count as the same; of other numbers, percent of the paper's."""
CROSSED = 0.3
"""Share of samples that an adversarial generator must move across the boundary for its training to be one for R2."""
Agreement = Literal["agrees", "differs", "undecided"]
AGREEMENTS: tuple[Agreement, ...] = ("agrees", "differs", "undecided")
_DRAWS, _SIGMAS = 2000, 2 * 1.959964  # draws of the interval of Kendall's tau; width of a 95 % interval


def agreement(interval: tuple[float, float] | None, paper: float, deviation: float, margin: float) -> Agreement:
    """Whether a number is equivalent to the paper's: `agrees` if the interval of ours minus the paper's lies within
    `± margin`, `differs` if it lies wholly beyond, else `undecided`, as of a single value without an interval.

    The interval is widened by the paper's own deviation. So few samples, whose interval is wide, decide nothing.
    """
    if interval is None:
        return "undecided"
    low, high = interval[0] - paper - deviation, interval[1] - paper + deviation
    if -margin <= low and high <= margin:
        return "agrees"
    return "differs" if low > margin or high < -margin else "undecided"


@dataclass(frozen=True)
class Outcome:
    """A number of the paper, and what it is here."""

    row: str
    """The row, or curve, it is in."""
    column: str
    """The column it is in."""
    paper: float | None
    """What the paper says; None if it is silent."""
    deviation: float
    """Its stated deviation, or the rounding of the printed number."""
    mean: float | None
    """Ours; None while a task is missing."""
    interval: tuple[float, float] | None
    """95 % interval; None for a single value."""
    n: int
    """Samples, or repeats, behind it."""
    seeds: int
    """Trainings behind it."""
    over: str
    """What the interval covers: `seeds`, with one of them only `samples`, with two or with part of a test set both."""
    folders: Sequence[str]
    """The tasks it comes from, by their folders."""
    percent: bool = True
    """Whether it is one of percentage points."""

    @property
    def margin(self) -> float:
        """How far from the paper's number counts as the same."""
        return MARGIN if self.percent else MARGIN / 100 * abs(self.paper or 0.0)

    @property
    def agreement(self) -> Agreement | None:
        """Whether it agrees with the paper's number; None if one of the two is missing. See `agreement`."""
        if self.paper is None or self.mean is None:
            return None
        return agreement(self.interval, self.paper, self.deviation, self.margin)


@dataclass(frozen=True)
class TableOutcome:
    """A table of the paper, with our numbers."""

    title: str
    corner: str
    """What the rows are."""
    unit: str
    outcomes: Sequence[Outcome]

    @property
    def rows(self) -> list[str]:
        """The rows, in order."""
        return list(dict.fromkeys(one.row for one in self.outcomes))

    @property
    def columns(self) -> list[str]:
        """The columns, in order."""
        return list(dict.fromkeys(one.column for one in self.outcomes))

    def at(self, row: str, column: str) -> Outcome | None:
        """The number in that place, if there is one."""
        return next((one for one in self.outcomes if (one.row, one.column) == (row, column)), None)

    @property
    def comparisons(self) -> list[list[Outcome]]:
        """Numbers that the paper compares: what each method has in one column, or in one row where the rows are data
        or scores.
        """
        by_row = self.corner in ("data", "corruption", "score", "attack", "mean of")
        groups = self.rows if by_row else self.columns
        return [[one for one in self.outcomes if (one.row if by_row else one.column) == group] for group in groups]


@dataclass(frozen=True)
class ChartOutcome:
    """A figure through numbers: curve by curve, abscissa and number."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, Outcome]]]


@dataclass(frozen=True)
class ShownOutcome:
    """The pictures and numbers of a study."""

    title: str
    study: Study | None
    """None while it is missing."""
    folder: str
    """Where it lies."""


@dataclass(frozen=True)
class Work:
    """A task and where its result lies."""

    folder: str
    label: str
    kind: str
    seconds: float | None
    """How long it took; None while it is not finished."""
    commit: str | None = None
    """The commit it was computed at."""


@dataclass(frozen=True)
class Trained:
    """A trained network on the plane of clean and robust accuracy, both in percent."""

    label: str
    ball: str
    """Dataset, norm and radius: only points of one ball are compared."""
    clean: float
    robust: float
    folder: str


@dataclass(frozen=True)
class Generator:
    """How an adversarial generator did in the last epoch of the training that it was part of."""

    label: str
    """The training."""
    crossed: float
    """Share of samples that it moved to where they are predicted otherwise."""
    distance: float
    """Mean L2 distance that it moved them, in pixels of [0, 1]."""
    folder: str

    @property
    def caution(self) -> str | None:
        """What is to be said if it crossed too seldom."""
        if self.crossed >= CROSSED:
            return None
        return (
            f"The generator of {self.label} moves only {self.crossed:.1%} of the samples across the boundary, less "
            f"than {CROSSED:.0%}: what is trained for R2 here is hardly regularised"
        )


@dataclass(frozen=True)
class Order:
    """How alike the order of the methods is here and in the paper."""

    tau: float
    """Kendall's: the share of pairs in the same order less that of pairs in the other."""
    interval: tuple[float, float]
    """95 % interval, from normal errors of our numbers as wide as their intervals."""
    pairs: int
    """Pairs of methods that the paper gives different numbers in one place."""


def order(tables: Sequence[TableOutcome]) -> Order | None:
    """Kendall's tau over all pairs of methods that are compared in a place and differ there in the paper; None if there
    are no such pairs.
    """
    ours, theirs, spread = [], [], []
    for group in (group for table in tables for group in table.comparisons):
        known = [
            (one.mean, one.paper, (one.interval[1] - one.interval[0]) / _SIGMAS if one.interval else 0.0)
            for one in group
            if one.paper is not None and one.mean is not None
        ]
        for (mean, paper, noise), (other_mean, other_paper, other_noise) in combinations(known, 2):
            if paper != other_paper:
                ours.append((mean, other_mean))
                theirs.append(np.sign(paper - other_paper))
                spread.append((noise, other_noise))
    if not ours:
        return None
    means, signs = np.array(ours, float), np.array(theirs, float)
    errors = np.random.default_rng(0).standard_normal((_DRAWS, *means.shape)) * np.array(spread, float)

    def taus(values: np.ndarray) -> np.ndarray:
        """Of one draw after another, along the first axis."""
        return (np.sign(values[..., 0] - values[..., 1]) * signs).mean(-1)

    low, high = np.quantile(taus(means + errors), (0.025, 0.975))
    return Order(float(taus(means[None])[0]), (float(low), float(high)), len(ours))


@dataclass(frozen=True)
class Reproduction:
    """An experiment that was run, wholly or in part."""

    name: str
    title: str
    source: str
    """Its place in the paper."""
    scale: float
    """The share of the paper's epochs, samples and seeds."""
    variant: str
    """As published, or corrected."""
    parts: Sequence[TableOutcome | ChartOutcome | ShownOutcome]
    works: Sequence[Work]
    trained: Sequence[Trained] = ()
    quirks: str = ""
    """How the two variants differ."""
    notes: str = ""
    """What one should know to read it."""
    data: Mapping[str, str] = field(default_factory=dict)
    """What stood in for the published datasets."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Command, versions, commit, device and date."""
    examples: int | None = None
    """Every network was tested on at most so many samples, if the scale did not decide alone."""
    seeds: int | None = None
    """Trainings of each kind, if the scale did not decide."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the trainings that were changed: deviations from the paper."""
    generators: Sequence[Generator] = ()
    """The adversarial generators of its trainings."""

    @property
    def outcomes(self) -> list[Outcome]:
        """All numbers."""
        return list(_outcomes(self.parts))

    @property
    def missing(self) -> list[Work]:
        """The tasks that are not finished."""
        return [work for work in self.works if work.seconds is None]

    @property
    def seconds(self) -> float:
        """The time of all finished tasks together."""
        return sum(work.seconds or 0.0 for work in self.works)

    @property
    def agreements(self) -> dict[Agreement, int]:
        """How many of the numbers that the paper prints and that were computed agree, differ, and are undecided."""
        known = [one.agreement for one in self.outcomes if one.agreement is not None]
        return {word: known.count(word) for word in AGREEMENTS}

    @property
    def median_difference(self) -> float | None:
        """Median of the absolute differences from the paper's numbers, in percentage points; None if it prints none."""
        known = [abs(one.mean - one.paper) for one in self.outcomes
                 if one.percent and one.paper is not None and one.mean is not None]  # fmt: skip
        return median(known) if known else None

    @property
    def order(self) -> Order | None:
        """How alike the order of the methods is here and in the paper."""
        return order([part for part in self.parts if isinstance(part, TableOutcome)])

    @property
    def cautions(self) -> list[str]:
        """What one should know before believing the numbers."""
        return [caution for one in self.generators if (caution := one.caution) is not None]

    @property
    def limits(self) -> list[str]:
        """How less was computed than the paper did, in words."""
        shortened = "epochs, samples and seeds" if self.seeds is None else "epochs and samples"
        limits = [] if self.scale == 1 else [f"at {self.scale:.2g} of its {shortened}"]
        limits += [] if self.seeds is None else [f"with {self.seeds} seed{'s' * (self.seeds > 1)}"]
        limits += [] if self.examples is None else [f"on at most {self.examples:,} test samples"]
        return limits + [f"with {name} = {value} in place of its own" for name, value in self.changes.items()]

    @property
    def verdict(self) -> str:
        """In a sentence: how many of the paper's numbers agree, how far they lie apart, and how alike the order is."""
        told, printed = self.agreements, sum(one.paper is not None for one in self.outcomes)
        if any(told.values()):
            said = summary(told, self.median_difference, self.order)
            alone = sum(one.agreement is not None and one.seeds == 1 for one in self.outcomes)
            said += f"; {alone} are of one training, whose noise their intervals do not hold" if alone else ""
        elif printed:
            said = f"None of the {printed} numbers of the paper is measured yet"
        else:
            said = "The paper prints no number to compare with"
        limits = [*self.limits]
        limits += [f"with {one} in place of {name}" for name, one in self.data.items()]
        limits += [f"{len(self.missing)} of {len(self.works)} tasks are not finished"] if self.missing else []
        return ", ".join([said, *limits]) + "."


def summary(counts: Mapping[Agreement, int], difference: float | None, alike: Order | None) -> str:
    """The three counts, the median difference and the order of the methods, in words."""
    said = (
        f"Of {sum(counts.values())} numbers of the paper {counts['agrees']} agree within {MARGIN:g} points, "
        f"{counts['differs']} differ and {counts['undecided']} are undecided"
    )
    said += "" if difference is None else f"; the median difference is {difference:.1f} points"
    if alike is None:
        return said
    low, high = alike.interval
    return said + f"; the order of the methods has Kendall's tau {alike.tau:.2f} ({low:.2f} to {high:.2f})"


def _outcomes(parts: Sequence[TableOutcome | ChartOutcome | ShownOutcome]) -> Iterator[Outcome]:
    for part in parts:
        if isinstance(part, TableOutcome):
            yield from part.outcomes
        elif isinstance(part, ChartOutcome):
            for line in part.lines.values():
                yield from (one for _, one in line)


def front(points: Sequence[Trained]) -> list[Trained]:
    """The points that no other of the same ball beats in both accuracies (Pareto), by rising clean accuracy."""

    def beaten(one: Trained) -> bool:
        return any(
            other.ball == one.ball
            and other.clean >= one.clean
            and other.robust >= one.robust
            and (other.clean, other.robust) != (one.clean, one.robust)
            for other in points
        )

    return sorted((one for one in points if not beaten(one)), key=lambda one: (one.ball, one.clean))

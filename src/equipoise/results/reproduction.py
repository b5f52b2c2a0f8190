"""The results of an experiment: the paper's numbers with ours beside them. Plain data, without torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import hypot
from statistics import median
from typing import Any, Literal

import numpy as np

from equipoise.core.tables import Row, Tabular
from equipoise.results.findings import Study

MARGIN = 2.0
"""Percentage points within which two accuracies count as the same; of other numbers, percent of the paper's."""
CROSSED = 0.3
"""Share of samples that an adversarial generator must move across the boundary for its training to be one for R2."""
Agreement = Literal["agrees", "differs", "undecided"]
AGREEMENTS: tuple[Agreement, ...] = ("agrees", "differs", "undecided")
Verdict = Literal["holds", "fails", "undecided"]
VERDICTS: tuple[Verdict, ...] = ("holds", "fails", "undecided")
_DRAWS, _SIGMAS = 2000, 2 * 1.959964  # draws of the interval of Kendall's tau; width of a 95 % interval


def agreement(interval: tuple[float, float] | None, paper: float, deviation: float, margin: float) -> Agreement:
    """Return whether a number is equivalent to the paper's: `agrees` if the interval of ours minus the paper's lies
    within `± margin`, `differs` if it lies wholly beyond, else `undecided`, as of a single value without an interval.

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
    """A number of the paper, and ours."""

    row: str
    column: str
    paper: float | None
    """The published value; None if the paper gives none."""
    deviation: float
    """Its stated deviation, or its rounding."""
    mean: float | None
    """Ours; None while a task is missing."""
    interval: tuple[float, float] | None
    """95 % interval; None for a single value."""
    n: int
    """Number of samples, or repeats."""
    seeds: int
    over: str
    """What the interval covers: `seeds`, with one of them only `samples`, or `samples and epochs` where the spread over
    the last epochs of the training stands for another one; with two or with part of a test set both.
    """
    folders: Sequence[str]
    """The tasks it comes from, by their folders."""
    percent: bool = True
    """Whether it is in percentage points."""

    def with_noise(self, deviation: float) -> "Outcome":
        """Return the number with an interval that also holds normal noise of training with this standard deviation, in
        its unit: `mean ± √(half² + (1.96 deviation)²)` on both sides.
        """
        if self.mean is None or self.interval is None:
            return self
        low, high = (hypot(end - self.mean, _SIGMAS / 2 * deviation) for end in self.interval)
        return replace(self, interval=(self.mean - low, self.mean + high), over="samples and epochs")

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

    @property
    def outcomes(self) -> list[Outcome]:
        """All numbers."""
        return [outcome for line in self.lines.values() for _, outcome in line]


@dataclass(frozen=True)
class ShownOutcome:
    """The pictures and numbers of a study."""

    title: str
    study: Study | None
    """None while it is missing."""
    folder: str
    """Where it lies."""


@dataclass(frozen=True)
class ClaimOutcome:
    """A statement of a paper that compares two numbers, and what the comparison gave."""

    statement: str
    """What is claimed."""
    source: str
    """Where the paper says so."""
    larger: str
    """Whose number is claimed to be the larger one."""
    smaller: str
    """Whose number it is compared with; empty for a fixed number."""
    difference: Outcome
    """The first number less the second."""
    by: float
    """What the difference has to exceed; below 0 the claim is that it is no worse by so much."""
    unit: str = "points"

    @property
    def verdict(self) -> Verdict | None:
        """`holds` if the 95 % interval of the difference lies above `by`, `fails` if it lies below, else `undecided`;
        None while nothing is measured.
        """
        if self.difference.mean is None:
            return None
        low, high = self.difference.interval or (-np.inf, np.inf)
        return "holds" if low > self.by else "fails" if high < self.by else "undecided"


@dataclass(frozen=True)
class ClaimsOutcome:
    """Claims, and whether they hold."""

    title: str
    claims: Sequence[ClaimOutcome]

    @property
    def outcomes(self) -> list[Outcome]:
        """The differences: none is printed by a paper."""
        return [claim.difference for claim in self.claims]


PartOutcome = TableOutcome | ChartOutcome | ShownOutcome | ClaimsOutcome


@dataclass(frozen=True)
class Work:
    """A task and where its result lies."""

    folder: str
    label: str
    kind: str
    seconds: float | None
    """How long it took; None while it is not finished."""
    commit: str | None = None
    code: str | None = None
    """Digest of the code that computed it."""


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
    crossed: float
    """Share of samples that it moved to where they are predicted otherwise."""
    distance: float
    """Mean L2 distance that it moved them, in pixels of [0, 1]."""
    folder: str

    @property
    def caution(self) -> str | None:
        """The caution if it crossed too seldom."""
        if self.crossed >= CROSSED:
            return None
        return (
            f"The generator of {self.label} moves only {self.crossed:.1%} of the samples across the boundary, less "
            f"than {CROSSED:.0%}: training for R2 hardly regularises here"
        )


@dataclass(frozen=True)
class Order:
    """How similar our order of the methods is to the paper's."""

    tau: float
    """Kendall's tau: the share of pairs in the same order minus that of pairs in the opposite one."""
    interval: tuple[float, float]
    """95 % interval, from normal errors of our numbers as wide as their intervals."""
    pairs: int
    """Number of pairs of methods that differ in the paper."""


def order(tables: Sequence[TableOutcome]) -> Order | None:
    """Return Kendall's tau over all pairs of methods that are compared with each other and differ in the paper; None
    if there are no such pairs.
    """
    ours, theirs, deviations = [], [], []
    for group in (group for table in tables for group in table.comparisons):
        values = [
            (one.mean, one.paper, (one.interval[1] - one.interval[0]) / _SIGMAS if one.interval else 0.0)
            for one in group
            if one.paper is not None and one.mean is not None
        ]
        for (mean, paper, deviation), (other_mean, other_paper, other_deviation) in combinations(values, 2):
            if paper != other_paper:
                ours.append((mean, other_mean))
                theirs.append(np.sign(paper - other_paper))
                deviations.append((deviation, other_deviation))
    if not ours:
        return None
    means, signs = np.array(ours, float), np.array(theirs, float)
    errors = np.random.default_rng(0).standard_normal((_DRAWS, *means.shape)) * np.array(deviations, float)

    def taus(values: np.ndarray) -> np.ndarray:
        """Of one draw after another, along the first axis."""
        return (np.sign(values[..., 0] - values[..., 1]) * signs).mean(-1)

    low, high = np.quantile(taus(means + errors), (0.025, 0.975))
    return Order(float(taus(means[None])[0]), (float(low), float(high)), len(ours))


@dataclass(frozen=True, repr=False)
class Reproduction(Tabular):
    """An experiment that was run, wholly or in part."""

    name: str
    title: str
    source: str
    """Its place in the paper."""
    scale: float
    """The share of the paper's epochs, samples and seeds."""
    variant: str
    """As published, or corrected."""
    parts: Sequence[PartOutcome]
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
    """Maximum number of test samples per network, if one was asked for."""
    seeds: int | None = None
    """Trainings of each kind, if the scale did not decide."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the trainings that were changed: deviations from the paper."""
    generators: Sequence[Generator] = ()
    """The adversarial generators of its trainings."""

    def _table(self) -> tuple[Row, list[Row]]:
        return ("experiment", "verdict"), [(self.name, self.verdict)]

    def _columns(self) -> dict[str, list[Any]]:
        names = "row", "column", "paper", "mean", "percent", "n", "seeds", "over", "agreement"
        ends = [one.interval or (None, None) for one in self.outcomes]
        columns = {name: [getattr(one, name) for one in self.outcomes] for name in names}
        return {**columns, "low": [low for low, _ in ends], "high": [high for _, high in ends]}

    @property
    def outcomes(self) -> list[Outcome]:
        """All numbers."""
        return [one for part in self.parts if not isinstance(part, ShownOutcome) for one in part.outcomes]

    @property
    def claims(self) -> list[ClaimOutcome]:
        """All claims that it puts to the test."""
        return [one for part in self.parts if isinstance(part, ClaimsOutcome) for one in part.claims]

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
        """How many of the published values that were computed agree, differ, and are undecided."""
        agreements = [one.agreement for one in self.outcomes]
        return {word: agreements.count(word) for word in AGREEMENTS}

    @property
    def median_difference(self) -> float | None:
        """Median absolute difference from the published values, in percentage points; None without such values."""
        differences = [abs(one.mean - one.paper) for one in self.outcomes
                       if one.percent and one.paper is not None and one.mean is not None]  # fmt: skip
        return median(differences) if differences else None

    @property
    def order(self) -> Order | None:
        """How similar our order of the methods is to the paper's."""
        return order([part for part in self.parts if isinstance(part, TableOutcome)])

    @property
    def cautions(self) -> list[str]:
        """What one should know before believing the numbers."""
        cautions = [caution for one in self.generators if (caution := one.caution) is not None]
        versions = {work.code: work.commit or "outside a repository" for work in self.works if work.code is not None}
        if len(versions) > 1:
            commits = " and ".join(sorted(commit[:12] for commit in versions.values()))
            cautions.append(f"Its tasks were computed by {len(versions)} versions of the code, at commits {commits}")
        return cautions

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
        counts, published = self.agreements, sum(one.paper is not None for one in self.outcomes)
        tested = judged(self.claims) if any(one.verdict for one in self.claims) else ""
        if any(counts.values()):
            sentence = summary(counts, self.median_difference, self.order)
            alone = sum(one.agreement is not None and one.over == "samples" for one in self.outcomes)
            sentence += f"; {alone} are of one training, whose noise their intervals do not include" if alone else ""
            sentence += f". {tested}" if tested else ""
        elif tested:
            sentence = tested
        elif self.claims:
            sentence = f"None of its {len(self.claims)} claims is put to the test yet"
        elif published:
            sentence = f"None of the {published} numbers of the paper is measured yet"
        else:
            sentence = "The paper prints no number to compare with"
        limits = [*self.limits]
        limits += [f"with {one} in place of {name}" for name, one in self.data.items()]
        limits += [f"{len(self.missing)} of {len(self.works)} tasks are not finished"] if self.missing else []
        return ", ".join([sentence, *limits]) + "."


def summary(counts: Mapping[Agreement, int], difference: float | None, order: Order | None) -> str:
    """Return the three counts, the median difference and the order of the methods, in words."""
    sentence = (
        f"Of {sum(counts.values())} numbers of the paper {counts['agrees']} agree within {MARGIN:g} points, "
        f"{counts['differs']} differ and {counts['undecided']} are undecided"
    )
    sentence += "" if difference is None else f"; the median difference is {difference:.1f} points"
    if order is None:
        return sentence
    low, high = order.interval
    return sentence + f"; the order of the methods has Kendall's tau {order.tau:.2f} ({low:.2f} to {high:.2f})"


def judged(claims: Sequence[ClaimOutcome]) -> str:
    """Return how many claims hold, fail and are undecided, in words."""
    tested = [one for one in claims if one.verdict is not None]
    holds, fails, undecided = (sum(one.verdict == word for one in tested) for word in VERDICTS)
    alone = sum(one.difference.seeds == 1 for one in tested)
    return (
        f"Of {len(tested)} claims that were put to the test {holds} hold, {fails} fail and {undecided} are undecided"
        + (f"; {alone} by one training of each kind, whose noise their intervals do not include" if alone else "")
    )


def front(points: Sequence[Trained]) -> list[Trained]:
    """Return the Pareto front of every ball: the points that no other beats in both accuracies, by clean accuracy."""

    def dominates(other: Trained, one: Trained) -> bool:
        better = other.clean >= one.clean and other.robust >= one.robust
        return better and other.ball == one.ball and (other.clean, other.robust) != (one.clean, one.robust)

    efficient = (one for one in points if not any(dominates(other, one) for other in points))
    return sorted(efficient, key=lambda one: (one.ball, one.clean))

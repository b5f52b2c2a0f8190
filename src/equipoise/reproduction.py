"""What came of an experiment: the paper's numbers with ours beside them. Plain data, without torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from equipoise.findings import Study


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
    """What the interval covers: `seeds`, or with one or two of them only `samples`, or with part of a test set both."""
    folders: Sequence[str]
    """The tasks it comes from, by their folders."""

    @property
    def reproduced(self) -> bool | None:
        """Whether our interval contains the paper's number, or ours lies within its stated deviation; None if one of
        the two is missing.
        """
        if self.paper is None or self.mean is None:
            return None
        low, high = self.interval or (self.mean, self.mean)
        return low <= self.paper <= high or abs(self.mean - self.paper) <= self.deviation + 1e-9


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
    def agreements(self) -> list[bool]:
        """Of every number that the paper prints and that was computed, whether it is reproduced."""
        return [one.reproduced for one in self.outcomes if one.reproduced is not None]

    @property
    def limits(self) -> list[str]:
        """How less was computed than the paper did, in words."""
        shortened = "epochs, samples and seeds" if self.seeds is None else "epochs and samples"
        limits = [] if self.scale == 1 else [f"at {self.scale:.2g} of its {shortened}"]
        limits += [] if self.seeds is None else [f"with {self.seeds} seed{'s' * (self.seeds > 1)}"]
        return limits + ([] if self.examples is None else [f"on at most {self.examples:,} test samples"])

    @property
    def verdict(self) -> str:
        """In a sentence: how many of the paper's numbers were reproduced."""
        told = self.agreements
        printed = sum(one.paper is not None for one in self.outcomes)
        if told:
            said = f"{sum(told)} of {len(told)} numbers of the paper are reproduced"
        elif printed:
            said = f"None of the {printed} numbers of the paper is measured yet"
        else:
            said = "The paper prints no number to compare with"
        limits = [*self.limits]
        limits += [f"with {one} in place of {name}" for name, one in self.data.items()]
        limits += [f"{len(self.missing)} of {len(self.works)} tasks are not finished"] if self.missing else []
        return ", ".join([said, *limits]) + "."


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

"""The design of a study: its options, which networks are trained, and what is measured, drawn and concluded."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, final

from equipoise.core.errors import require_integer
from equipoise.reproduce.studies.processes import run_all
from equipoise.results.findings import Findings, Number, Picture

Result = TypeVar("Result")
ReportProgress = Callable[[str, float], None]
"""Called with what is being computed and the share of the study that is done."""
_TRAINING = 0.95  # share of the progress at which all networks are trained


@dataclass(frozen=True)
class Options:
    """The options of a study."""

    quick: bool = False
    """A small version that takes seconds: it shows that the study works but proves nothing."""
    seeds: int | None = None
    """Number of independent repeats; None for the study's own number."""
    seed: int = 0
    """Seed of the first repeat; the others follow."""
    data: str | None = None
    """Dataset, for the studies that run on any; None for the study's own."""
    data_root: Path | None = None
    """Folder in which the files of a dataset are looked for."""
    limit: int | None = None
    """Maximum number of training samples."""
    widths: tuple[int, ...] = ()
    """Widths of the networks of the capacity study; empty for its own."""
    processes: int = 1
    """Number of processes that train the networks; the results do not depend on it."""

    def repeats(self, usual: int = 3, quick: int = 2) -> list[int]:
        """Return the seeds of the repeats: `seeds` of them, by default `usual`, and `quick` in the quick version.

        Raises `EquipoiseError` for fewer than one.
        """
        count = self.seeds if self.seeds is not None else quick if self.quick else usual
        require_integer("seeds", count, 1)
        return [self.seed + i for i in range(count)]


class Case(NamedTuple):
    """One network of a study."""

    method: str
    """Name of the method that trains it."""
    value: float
    """The parameter that the study varies, such as a radius or a width; 0 where it varies none."""
    seed: int
    """Seed of the repeat."""


class Design(ABC, Generic[Result]):
    """A study of networks. A subclass says what its `_cases` are and how to `_train` one; `run` trains them in several
    processes and collects what `_train` returned in `results`, from which the numbers, figures and verdict are made.

    The instance is pickled for every process: what `__init__` prepares (data, sizes) is there too.
    """

    repeats: ClassVar[tuple[int, int]] = (3, 2)
    """Number of seeds by default, and in the quick version."""
    unit: ClassVar[str] = "network"
    """What a case is called while it is being computed."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.seeds = options.repeats(*self.repeats)
        self.results: dict[Case, Result] = {}

    @abstractmethod
    def _cases(self) -> Sequence[Case]:
        """Return the cases to be computed."""

    @abstractmethod
    def _train(self, case: Case) -> Result:
        """Train the network of a case and return what the study needs of it, which must be picklable."""

    @abstractmethod
    def _measure(self) -> Iterable[Number]:
        """Return the numbers that make the study's point; their names differ."""

    @abstractmethod
    def _draw(self) -> Sequence[Picture]:
        """Return the figures."""

    @abstractmethod
    def _settings(self) -> Mapping[str, Any]:
        """Return every parameter of the study, JSON-ready."""

    @abstractmethod
    def _conclude(self) -> str:
        """Return the verdict, in a sentence."""

    @cached_property
    def numbers(self) -> dict[str, Number]:
        """What was measured, by name."""
        return {number.name: number for number in self._measure()}

    @final
    def repeated(self, configurations: Iterable[tuple[str, float]]) -> list[Case]:
        """Return a case per seed of every configuration, a method and the value of the varied parameter."""
        return [Case(method, value, seed) for method, value in configurations for seed in self.seeds]

    @final
    def over_seeds(self, method: str, value: float = 0.0) -> list[Result]:
        """Return the results of a configuration, one per seed."""
        return [self.results[Case(method, value, seed)] for seed in self.seeds]

    @classmethod
    @final
    def run(cls, options: Options, report_progress: ReportProgress) -> Findings:
        """Run the study."""
        design = cls(options)
        cases = design._cases()

        def report_done(done: int) -> None:
            report_progress(f"{cls.unit} {done}/{len(cases)}", _TRAINING * done / len(cases))

        results = run_all(design._train, cases, report_done, options.processes)
        design.results.update(zip(cases, results, strict=True))
        return Findings(list(design.numbers.values()), design._draw(), design._settings(), design._conclude())


def percentage(name: str, values: Sequence[float], paper: str = "") -> Number:
    """Return a number whose values, one per seed, are shares of 1."""
    return Number(name, values, paper=paper, percent=True)

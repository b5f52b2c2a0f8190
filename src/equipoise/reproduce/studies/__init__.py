"""Small experiments that show an idea, each one command: the papers' figures with the numbers that make their point.

A study is a module of this package with a function `run(options, report_progress) -> Findings`; those that train
networks are made from a `Design` (`equipoise.reproduce.studies.design`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from equipoise.reproduce.studies.design import Options, ReportProgress
from equipoise.reproduce.studies.keep import load, save
from equipoise.results.findings import Findings

__all__ = ["STUDIES", "Entry", "Options", "ReportProgress", "load", "save"]


@dataclass(frozen=True)
class Entry:
    """A study that can be run."""

    name: str
    """Name on the command line."""
    question: str
    source: str
    """The figures or the theorem that it reproduces."""
    run: Callable[[Options, ReportProgress], Findings]
    seconds: float = 120.0
    """Time of it with its own number of seeds, as measured on two x86 cores (of entropy-weight: a guess)."""
    takes: tuple[str, ...] = ("seeds",)
    """Which of `seeds`, `data`, `data_root`, `limit` and `widths` it uses, the fields of `Options` that not every study
    does."""


_DATA = ("data", "data_root", "limit")
_TABLE = (
    ("narrow-corridor", 233, ("seeds",), "U Figs 3, 9",
     "Where the gap between two classes widens, which training finds the boundary in its middle?"),
    ("lms5", 130, ("seeds",), "U Figs 3, 7",
     "Does a network use the coordinate that gives the larger margin, or only the simpler one?"),
    ("two-distance", 141, ("seeds",), "U App. D.2, Fig 8; T Figs 1, 7",
     "What does a perturbation do that is too large for one place and not for another?"),
    ("due", 86, ("seeds",), "U Figs 10, 11; T Figs 5, 6",
     "Do uncertainty-driven perturbations work with a Gaussian process on deep features?"),
    ("theorem", 26, ("seeds",), "U Theorem 4.1, App. B",
     "Does the expected boundary move to the middle of the classes, by half a learning rate at a time?"),
    ("appearance", 37, ("seeds", *_DATA), "U Fig 15; T Fig 8",
     "What do images look like after many steps up the loss, and up the uncertainty?"),
    ("opposite-class", 4, _DATA, "U Fig 2",
     "How far from each training sample is the nearest one of another class?"),
    ("overfitting", 54, ("seeds", *_DATA), "U Figs 13, 14; T Figs 3, 4, 9",
     "Does training with one step of perturbation collapse, and whose does?"),
    ("capacity", 47, ("seeds", *_DATA, "widths"), "U Fig 5",
     "Does a larger network win back the clean accuracy that robust training costs?"),
    ("transfer", 49, ("seeds", *_DATA), "U Table 4",
     "Are features learned with uncertainty-driven perturbations more use on other data?"),
    ("entropy-weight", 120, ("seeds", *_DATA), "R Fig 3",
     "How much uncertainty is good, with and without adversarial training?"),
)  # fmt: skip


def _entry(name: str, seconds: float, takes: tuple[str, ...], source: str, question: str) -> Entry:
    """The study of the module of that name, which is imported when the study is run."""

    def run(options: Options, report_progress: ReportProgress) -> Findings:
        module = import_module(f"equipoise.reproduce.studies.{name.replace('-', '_')}")
        return module.run(options, report_progress)

    return Entry(name, question, source, run, seconds, takes)


STUDIES: dict[str, Entry] = {row[0]: _entry(*row) for row in _TABLE}
"""Every study, by name."""

"""Small experiments that show an idea, each one command: the papers' figures with the numbers that make their point.

A study is a function `(options, tell) -> Findings` in a module of this package.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from equipoise.reproduce.studies.keep import load, save
from equipoise.reproduce.studies.options import Options, ReportProgress
from equipoise.results.findings import Findings

__all__ = ["STUDIES", "Entry", "Options", "ReportProgress", "load", "save"]


@dataclass(frozen=True)
class Entry:
    """A study that can be run."""

    name: str
    """Name on the command line."""
    question: str
    """What it asks, in a sentence."""
    source: str
    """The figures or theorem it is about."""
    run: Callable[[Options, ReportProgress], Findings]
    """Runs it."""
    takes: tuple[str, ...] = ("seeds",)
    """What it has a use for, of the fields of `Options` that not every study has: `seeds`, `data`, `data_root`,
    `limit`, `widths`."""


_DATA = ("data", "data_root", "limit")


def _entry(name: str, question: str, source: str, takes: tuple[str, ...] = ("seeds",)) -> Entry:
    """The study of the module of that name, which is imported when it is run."""

    def run(options: Options, tell: ReportProgress) -> Findings:
        return import_module(f"equipoise.reproduce.studies.{name.replace('-', '_')}").run(options, tell)

    return Entry(name, question, source, run, takes)


STUDIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        _entry(
            "narrow-corridor",
            "Where the gap between two classes widens, which training finds the boundary in its middle?",
            "U Figs 3, 9",
        ),
        _entry(
            "lms5",
            "Does a network use the coordinate that gives the larger margin, or only the simpler one?",
            "U Figs 3, 7",
        ),
        _entry(
            "two-distance",
            "What does a perturbation do that is too large for one place and not for another?",
            "U App. D.2, Fig 8; T Figs 1, 7",
        ),
        _entry(
            "due",
            "Do uncertainty-driven perturbations work with a Gaussian process on deep features?",
            "U Figs 10, 11; T Figs 5, 6",
        ),
        _entry(
            "theorem",
            "Does the expected boundary move to the middle of the classes, by half a learning rate at a time?",
            "U Theorem 4.1, App. B",
        ),
        _entry(
            "appearance",
            "What do images look like after many steps up the loss, and up the uncertainty?",
            "U Fig 15; T Fig 8",
            ("seeds", *_DATA),
        ),
        _entry(
            "opposite-class",
            "How far from each training sample is the nearest one of another class?",
            "U Fig 2",
            _DATA,
        ),
        _entry(
            "overfitting",
            "Does training with one step of perturbation collapse, and whose does?",
            "U Figs 13, 14; T Figs 3, 4, 9",
            ("seeds", *_DATA),
        ),
        _entry(
            "capacity",
            "Does a larger network win back the clean accuracy that robust training costs?",
            "U Fig 5",
            ("seeds", *_DATA, "widths"),
        ),
        _entry(
            "transfer",
            "Are features learned with uncertainty-driven perturbations more use on other data?",
            "U Table 4",
            ("seeds", *_DATA),
        ),
        _entry(
            "entropy-weight",
            "How much uncertainty is good, with and without adversarial training?",
            "R Fig 3",
            ("seeds", *_DATA),
        ),
    )
}
"""Every study, by name."""

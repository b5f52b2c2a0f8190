"""The outcomes of the samples of an evaluation, and their summary. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from equipoise.core.tables import Row, Tabular
from equipoise.results.schema import Finite, Radius, Whole
from equipoise.results.statistics import wilson


def accuracy_cells(outcome: "Outcomes | MeanResult") -> tuple[str, ...]:
    """Return the cells of a table of `ACCURACY`."""
    low, high = outcome.interval
    return str(outcome.n), f"{outcome.accuracy:.1%}", f"{low:.1%} to {high:.1%}"


ACCURACY = "samples", "accuracy", "95 % interval"
"""Columns of a table of outcomes."""


class Outcomes(Tabular):
    """Summary of the outcomes of the samples."""

    correct: Sequence[bool]
    rates: Sequence[float] = ()

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.correct)

    @property
    def accuracy(self) -> float:
        """Share of samples classified correctly, in [0, 1]; of a randomised model, the mean over samples and draws."""
        return sum(self.rates or self.correct) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `accuracy`; conservative for a randomised model, with the samples as trials."""
        return wilson(min(sum(self.rates or self.correct), self.n), self.n)


@dataclass(frozen=True, repr=False)
class CorruptionResult(Outcomes):
    """Outcome of one corruption of the images, on the samples of an evaluation."""

    corruption: str
    """Name, e.g. `fog`."""
    correct: Sequence[bool]
    """Per sample, in the order of the data: classified correctly."""
    prediction: Sequence[Whole]
    """Per sample: the class predicted, in float32 and eval mode."""
    source: str = ""
    """SHA-256 of the published images; empty if the images were made from the seed."""

    def _table(self) -> tuple[Row, list[Row]]:
        return ("corruption", *ACCURACY), [(self.corruption, *accuracy_cells(self))]

    def _columns(self) -> dict[str, Sequence[Any]]:
        return {"correct": self.correct, "prediction": self.prediction}


@dataclass(frozen=True)
class MeanResult:
    """The mean accuracy over several corruptions of the same samples."""

    results: Sequence[CorruptionResult]
    """One per corruption, at least one."""

    @property
    def n(self) -> int:
        """Number of samples; each counts once, with the share of corruptions under which it is classified correctly."""
        return self.results[0].n

    @property
    def accuracy(self) -> float:
        """Mean of the accuracies, in [0, 1]."""
        return sum(sum(r.correct) for r in self.results) / (self.n * len(self.results))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `accuracy` for n samples, not n per corruption: the outcomes of one sample under
        several corruptions are not independent.
        """
        return wilson(self.accuracy * self.n, self.n)


@dataclass(frozen=True, repr=False)
class CertifiedResult(Outcomes):
    """Certified accuracy in one ball: the share of samples that no perturbation in it can change, which is proven."""

    method: str
    """How it was proven: `ibp`, `crown-ibp` or `crown`."""
    norm: str
    """`linf`, `l2` or `l1`."""
    eps: Radius
    """Radius of the ball, in pixel units of [0, 1]."""
    correct: Sequence[bool]
    """Per sample, in the order of the data: proven to be classified correctly on all of the ball."""
    margin: Sequence[Finite] = ()
    """Per sample: the lower bound of its margin, positive where it is proven."""

    @property
    def attack(self) -> str:
        """What it is called among the attacks."""
        return f"certified ({self.method})"

    def _table(self) -> tuple[Row, list[Row]]:
        row = (self.attack, self.norm, f"{self.eps:.4g}", *accuracy_cells(self))
        return ("attack", "norm", "eps", *ACCURACY), [row]

    def _columns(self) -> dict[str, Sequence[Any]]:
        return {"correct": self.correct, **({"margin": self.margin} if self.margin else {})}

"""Predictions of a model with their uncertainty and the radius that they withstand, as plain data. No torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from equipoise.core.tables import Row, Tabular


@dataclass(frozen=True)
class SamplePrediction:
    """The prediction at one input."""

    source: str
    """File that the input is from, or its number."""
    label: int
    """Number of the predicted class; -1 if the prediction is not finite."""
    name: str
    """Name of the predicted class."""
    probability: float
    """Probability of the predicted class."""
    entropy: float
    """Entropy of the class probabilities in nats, from 0 to the logarithm of the number of classes."""
    mutual_information: float | None = None
    """Mutual information between the class and the member, in nats: how much the members of an ensemble, or the samples
    of Monte Carlo dropout, disagree. None for a single network."""
    distance: float | None = None
    """Distance of the nearest input found with another prediction: an upper bound of the radius that the prediction
    withstands. None if no such input was found, or none was searched for."""
    certified: float | None = None
    """Radius within which the prediction is proven not to change: a lower bound. None if it was not asked for."""


@dataclass(frozen=True, repr=False)
class Predictions(Tabular):
    """The predictions at several inputs, which print as a table."""

    samples: Sequence[SamplePrediction]
    """One per input, in their order."""
    classes: int
    """Number of classes."""
    norm: str = "linf"
    """Norm of the distances."""
    searched: bool = True
    """Whether the nearest input with another prediction was searched for."""

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> SamplePrediction:
        return self.samples[index]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON-ready data."""
        return {"kind": "predictions", "schema": 1, **asdict(self)}

    def _table(self) -> tuple[Row, list[Row]]:
        rows = []
        for sample in self.samples:
            radius = f"<= {sample.distance:.4g}" if sample.distance is not None else "none found" * self.searched
            bound = "" if sample.certified is None else f">= {sample.certified:.4g}"
            disagreement = "" if sample.mutual_information is None else f"{sample.mutual_information:.3f}"
            cells = (sample.source, sample.name, f"{sample.probability:.1%}", f"{sample.entropy:.3f}")
            rows.append((*cells, disagreement, radius, bound))
        names = "input", "class", "probability", "entropy", "mutual information"
        return self._with_values((*names, f"{self.norm} radius", "certified"), rows)

    def _with_values(self, header: Row, rows: Sequence[Row]) -> tuple[Row, list[Row]]:
        """Without the columns in which all cells are empty."""
        used = [column for column in range(len(header)) if any(row[column] for row in rows) or not rows]
        return tuple(header[column] for column in used), [tuple(row[column] for column in used) for row in rows]

    def _columns(self) -> dict[str, list[Any]]:
        return {f.name: [getattr(sample, f.name) for sample in self.samples] for f in fields(SamplePrediction)}

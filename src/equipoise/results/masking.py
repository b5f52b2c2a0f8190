"""The verdict on whether a model's gradients are masked, as plain data. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from equipoise.results.findings import Lines, Picture
from equipoise.results.statistics import wilson

KIND = "masking"
"""What a verdict's record says that it is."""

DETECTABLE = 0.05
"""Share of samples that must not go unseen: "no sign of masking" needs so many samples that the 95 % interval of a
share of which none was seen ends below it."""
ENOUGH = next(n for n in range(1, 1000) if wilson(0, n)[1] < DETECTABLE)
"""The fewest samples for which it does."""


@dataclass(frozen=True)
class Sign:
    """One reason to suspect, or to trust."""

    name: str
    """What would be a sign of masking."""
    figure: str
    """What was measured."""
    threshold: str
    """What it was compared with."""
    p: float | None
    """Probability of such a figure, or a more striking one, on an honest model; None for a fact that no honest model
    shows, such as a graph that does not reach the input."""
    source: str
    """Who named it."""
    raised: bool = False
    """Whether it is one, all signs of a verdict considered."""
    interval: tuple[float, float] | None = None
    """95 % Wilson interval of the share that the threshold is about; None if there is none."""


@dataclass(frozen=True)
class MaskingReport:
    """What the tests for masked gradients said of a model."""

    target: str
    """What was looked at."""
    norm: str
    """Norm of the ball."""
    eps: float
    """Its radius, in the units of the input."""
    n: int
    """Samples that were attacked: those that are right without an attack."""
    clean: float
    """Accuracy without an attack, in [0, 1]."""
    robust: float
    """Accuracy in the worst case over everything that was tried at this radius, in [0, 1]."""
    signs: Sequence[Sign]
    """Every sign that was looked for."""
    level: float
    """Probability with which an honest model is accused."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Every parameter."""
    skipped: Sequence[str] = ()
    """What was left out, and why."""
    warnings: Sequence[str] = ()
    """What `check_model` remarks about the model. No sign follows from it alone."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Name and SHA-256 of the data, and the number of samples that were looked at."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Which weights, their SHA-256 and how many parameters."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Command, seed, versions, commit, device, threads and date."""
    seconds: float = 0.0
    """Wall-clock time."""
    pictures: Sequence[Picture] = ()
    """Curves and surfaces."""

    @property
    def masked(self) -> bool:
        """Whether a sign was raised."""
        return any(sign.raised for sign in self.signs)

    @property
    def undecided(self) -> bool:
        """Whether no sign was raised, but on so few samples that this says nothing."""
        return not self.masked and self.n < ENOUGH

    @property
    def caution(self) -> str:
        """What to know before quoting `robust`; empty unless a sign was raised."""
        if not self.masked:
            return ""
        return (
            f"The accuracy of {self.robust:.1%} that these attacks leave at eps {self.eps:g} is no robust accuracy: "
            "they follow misleading gradients, or are weak without gradients, and the true value may be far lower."
        )

    def __str__(self) -> str:
        raised = [sign.name for sign in self.signs if sign.raised]
        if raised:
            return f"masked: {', '.join(raised)}."
        if self.undecided:
            return (
                f"too few samples to tell: none of {len(self.signs)} signs was found on {self.n} samples, which leaves "
                f"shares of up to {wilson(0, self.n)[1]:.1%} unseen; give at least {ENOUGH} samples that the model "
                "classifies correctly."
            )
        return f"no sign of masking: none of {len(self.signs)} signs was found on {self.n} samples."

    def to_json(self) -> dict[str, Any]:
        """Everything but the maps as JSON-ready data, with the verdict in words, and the curves with their 95 %
        intervals.
        """
        body = asdict(replace(self, pictures=()))
        del body["pictures"]
        panels = [panel for picture in self.pictures for panel in picture.panels if isinstance(panel, Lines)]
        curves = [
            {
                "title": panel.title,
                "x": panel.x.tolist(),
                "series": [
                    {"name": s.name, "y": s.y.tolist(), "low": _plain(s.low), "high": _plain(s.high)}
                    for s in panel.series
                ],
            }
            for panel in panels
        ]
        said = {"masked": self.masked, "undecided": self.undecided, "verdict": str(self), "caution": self.caution}
        return {"kind": KIND, "schema": 1, **said, **body, "curves": curves}


def _plain(values: "np.ndarray | None") -> list[float] | None:
    return None if values is None else values.tolist()

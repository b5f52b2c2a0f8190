"""The report of an audit for gradient masking, as plain data. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from equipoise.results.findings import Lines, Picture
from equipoise.results.statistics import wilson

KIND = "masking"
"""The `kind` of the record of an audit."""

DETECTABLE = 0.05
"""Share of affected samples that an audit must detect: "no sign of masking" needs enough samples that the 95 %
confidence interval of a share observed as 0 ends below it."""
ENOUGH = next(n for n in range(1, 1000) if wilson(0, n)[1] < DETECTABLE)
"""The smallest number of samples for which it does."""


@dataclass(frozen=True)
class Sign:
    """One indicator of gradient masking."""

    name: str
    """Description of the indicator."""
    figure: str
    """The measured value."""
    threshold: str
    """The value that it was compared with."""
    p: float | None
    """p-value under the hypothesis of an unmasked model; None for an indicator that is observed, not tested, such as a
    graph that does not reach the input."""
    source: str
    """Publication that describes it."""
    raised: bool = False
    """Whether it is significant, corrected for the number of indicators."""
    interval: tuple[float, float] | None = None
    """95 % Wilson interval of the share that is compared with the threshold; None if there is none."""


@dataclass(frozen=True)
class MaskingReport:
    """The results of the tests of a model for gradient masking."""

    target: str
    """The model that was audited."""
    norm: str
    """Norm of the ball."""
    eps: float
    """Its radius, in the units of the input."""
    n: int
    """Number of attacked samples: those that are classified correctly without an attack."""
    clean: float
    """Accuracy without an attack, in [0, 1]."""
    robust: float
    """Accuracy in the worst case over all attacks at this radius, in [0, 1]."""
    signs: Sequence[Sign]
    """Every indicator that was tested."""
    level: float
    """Family-wise false-positive rate."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Every parameter."""
    skipped: Sequence[str] = ()
    """Tests that were left out, and why."""
    warnings: Sequence[str] = ()
    """Warnings of `check_model` about the model. None of them is an indicator by itself."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Name and SHA-256 of the data, and the number of samples."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Which weights, their SHA-256 and the number of parameters."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Command, seed, versions, commit, device, threads and date."""
    seconds: float = 0.0
    """Wall-clock time."""
    pictures: Sequence[Picture] = ()
    """Curves and surfaces."""

    @property
    def masked(self) -> bool:
        """Whether an indicator was raised."""
        return any(sign.raised for sign in self.signs)

    @property
    def undecided(self) -> bool:
        """Whether no indicator was raised, but on too few samples to conclude anything."""
        return not self.masked and self.n < ENOUGH

    @property
    def caution(self) -> str:
        """What to know before quoting `robust`; empty unless an indicator was raised."""
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
        """Return all but the maps as JSON-ready data, with the verdict as text, and the curves with 95 % intervals."""
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

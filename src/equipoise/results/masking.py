"""The outcome of the tests for gradient masking, as plain data. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from equipoise.core.deprecation import renamed_names
from equipoise.core.tables import Row, Tabular
from equipoise.results.findings import Lines, Picture, Series
from equipoise.results.statistics import wilson

KIND = "masking"
"""The `kind` of a record of these tests."""

DETECTABLE_SHARE = 0.05
"""Share of samples that must not go unseen: without any indicator there must be enough samples for the
95 % interval of a share that was never seen to end below it."""
MIN_SAMPLES = next(n for n in range(1, 1000) if wilson(0, n)[1] < DETECTABLE_SHARE)
"""The fewest samples for which it does."""


@dataclass(frozen=True)
class MaskingTest:
    """The test of one indicator of gradient masking."""

    name: str
    """What would indicate masked gradients."""
    figure: str
    """The measured value."""
    threshold: str
    """The value that it was compared with."""
    p: float | None
    """p-value under the hypothesis of an unmasked model; None for an indicator that is observed, not tested, such as a
    graph that does not reach the input."""
    source: str
    """Who proposed it."""
    raised: bool = False
    """Whether it indicates masked gradients, after the correction for the number of tests."""
    interval: tuple[float, float] | None = None
    """95 % Wilson interval of the share that is compared with the threshold; None if there is none."""


@dataclass(frozen=True, repr=False)
class MaskingReport(Tabular):
    """The outcome of the tests for gradient masking of one model."""

    target: str
    """The model that was tested."""
    norm: str
    """Norm of the ball."""
    eps: float
    """Its radius, in the units of the input."""
    n: int
    """Number of samples that were attacked: those that are classified correctly without an attack."""
    clean: float
    """Accuracy without an attack, in [0, 1]."""
    robust: float
    """Accuracy in the worst case over all attacks at this radius, in [0, 1]."""
    tests: Sequence[MaskingTest]
    """Every indicator that was tested; `signs` in a record."""
    false_positive_rate: float
    """Largest probability that any test is raised for an unmasked model; `level` in a record."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Every parameter."""
    skipped: Sequence[str] = ()
    """Tests that were left out, and why."""
    warnings: Sequence[str] = ()
    """What `check_model` says about the model. Alone it is no indicator."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Name and SHA-256 of the data, and the number of samples to choose from."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Which checkpoint, its SHA-256 and the number of parameters."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Command, seed, versions, commit, device, threads and date."""
    seconds: float = 0.0
    """Wall-clock time."""
    pictures: Sequence[Picture] = ()
    """Curves and surfaces."""

    def _table(self) -> tuple[Row, list[Row]]:
        rows = [(test.name, "raised" if test.raised else "", test.figure, test.threshold) for test in self.tests]
        return ("indicator", "", "measured", "threshold"), [(str(self), "", "", ""), *rows]

    def _columns(self) -> dict[str, list[Any]]:
        names = {"name": "indicator", "raised": "raised", "figure": "measured", "threshold": "threshold", "p": "p"}
        return {column: [getattr(test, name) for test in self.tests] for name, column in names.items()}

    @property
    def masked(self) -> bool:
        """Whether any test was raised."""
        return any(test.raised for test in self.tests)

    @property
    def undecided(self) -> bool:
        """Whether no test was raised, but on too few samples to conclude anything."""
        return not self.masked and self.n < MIN_SAMPLES

    @property
    def accuracies(self) -> str:
        """The accuracy without an attack and under all of them, in words."""
        doubt = ", which is not to be believed" if self.masked else ""
        return f"accuracy {self.clean:.1%} without an attack, {self.robust:.1%} under all at eps {self.eps:g}{doubt}."

    @property
    def caution(self) -> str:
        """What to know before quoting `robust`; empty unless a test was raised."""
        if not self.masked:
            return ""
        return (
            f"The accuracy of {self.robust:.1%} that these attacks leave at eps {self.eps:g} is no robust accuracy: "
            "they follow misleading gradients, or are weak without gradients, and the true value may be far lower."
        )

    def __str__(self) -> str:
        if self.masked:
            return f"masked: {', '.join(test.name for test in self.tests if test.raised)}."
        if self.undecided:
            return (
                f"too few samples to tell: none of {len(self.tests)} tests was raised on {self.n} samples, which "
                f"leaves shares of up to {wilson(0, self.n)[1]:.1%} unseen; give at least {MIN_SAMPLES} samples that "
                "the model classifies correctly."
            )
        return f"no indicator of gradient masking: none of {len(self.tests)} tests was raised on {self.n} samples."

    def to_json(self) -> dict[str, Any]:
        """Return everything but the maps as JSON-ready data, with the conclusion in words, and the curves with their
        95 % intervals.
        """
        record_names = {"tests": "signs", "false_positive_rate": "level"}
        fields = asdict(replace(self, pictures=()))
        del fields["pictures"]
        curves = [
            {"title": panel.title, "x": panel.x.tolist(), "series": [_series(series) for series in panel.series]}
            for picture in self.pictures
            for panel in picture.panels
            if isinstance(panel, Lines)
        ]
        return {
            "kind": KIND,
            "schema": 1,
            "masked": self.masked,
            "undecided": self.undecided,
            "verdict": str(self),
            "caution": self.caution,
            **{record_names.get(name, name): value for name, value in fields.items()},
            "curves": curves,
        }


def _series(series: Series) -> dict[str, Any]:
    low, high = (None if end is None else end.tolist() for end in (series.low, series.high))
    return {"name": series.name, "y": series.y.tolist(), "low": low, "high": high}


__getattr__ = renamed_names(__name__, {"Sign": "MaskingTest", "Verdict": "MaskingReport"})

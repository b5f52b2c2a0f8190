"""A score estimated on samples: its value, interval and curve."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from equipoise.attacks.result import AttackResult
from equipoise.core.errors import require
from equipoise.core.tables import Row, Tabular
from equipoise.core.types import Points
from equipoise.results.statistics import student, wilson
from equipoise.scores.radii import Radii

if TYPE_CHECKING:
    from equipoise.scores.score import Score

_NUM_RADII = 101  # of a curve of margins


@dataclass(frozen=True, eq=False, repr=False)
class Estimate(Tabular):
    """A score with its standard error and its parts."""

    values: Float[np.ndarray, " samples"]
    """`∫ H(R_Q(x_i, eps)) G(eps) d eps` of every sample."""
    shares: Float[np.ndarray, "samples radii"] | None
    """`H(R_Q(x_i, eps))` at the radii drawn, if R_Q is sampled."""
    drawn: Float[np.ndarray, "samples radii"] | None
    """These radii."""
    margins: Float[np.ndarray, " samples"] | None
    """Radius up to which R = 1, if R_Q is bounded; infinite if there is no such end."""
    score: "Score"
    """The score that is estimated."""
    x: Points
    """The points it was estimated on."""
    found: AttackResult | None = None
    """The nearest adversarial examples, if an attack searched for them."""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def value(self) -> float:
        """The score: the mean over samples."""
        return float(self.values.mean())

    @property
    def error(self) -> float:
        """Its standard error `s/sqrt(n)`, which includes that of all that was drawn; NaN for one sample."""
        return float(self.values.std(ddof=1) / math.sqrt(len(self.values))) if len(self.values) > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval `value ± t error`, Student's t with n - 1 degrees of freedom; NaN for one sample."""
        half = student(len(self) - 1) * self.error
        return self.value - half, self.value + half

    @property
    def radii(self) -> Float[np.ndarray, " radii"]:
        """Radii of the curve: if R_Q is sampled, the centre of each part that radii were drawn from, or the mean
        distance of the k-th nearest point.
        """
        if self.drawn is not None:
            return self.score.radii.centres if isinstance(self.score.radii, Radii) else self.drawn.mean(0)
        assert self.margins is not None
        low, high, finite = self.score.bounded.low, self.score.bounded.high, self.margins[np.isfinite(self.margins)]
        end = low + 1.1 * (np.quantile(finite, 0.99) - low) if len(finite) else high
        return np.linspace(low, end if low < end < high else high, _NUM_RADII)

    def profile_at(self, radii: Float[np.ndarray, " radii"]) -> Float[np.ndarray, "samples radii"]:
        """Return `H(R_Q(x_i, eps))` at these radii; if R_Q is sampled, at `self.radii` alone."""
        if self.margins is not None:
            return (self.margins[:, None] >= radii).astype(float)
        require(np.array_equal(radii, self.radii), "shares are known at the radii that were drawn alone.")
        assert self.shares is not None
        return self.shares

    @property
    def curve(self) -> Float[np.ndarray, " radii"]:
        """`E_x H(R_Q(x, eps))` against `radii`: for H = `certain` the margin curve (F, Eq. 6)."""
        return self.profile_at(self.radii).mean(0)

    @property
    def band(self) -> tuple[Float[np.ndarray, " radii"], Float[np.ndarray, " radii"]]:
        """Both ends of pointwise 95 % intervals of `curve`: Wilson's for shares of samples, else Student's, without a
        width for one sample.
        """
        return self.band_at(self.radii)

    def band_at(
        self, radii: Float[np.ndarray, " radii"]
    ) -> tuple[Float[np.ndarray, " radii"], Float[np.ndarray, " radii"]]:
        """Return `band` at other radii, those that `profile_at` takes."""
        profile, n = self.profile_at(radii), len(self)
        if np.isin(profile, (0.0, 1.0)).all():
            low, high = np.array([wilson(int(k), n) for k in profile.sum(0)]).T
            return low, high
        half = student(n - 1) * profile.std(0, ddof=min(n - 1, 1)) / math.sqrt(n)
        return profile.mean(0) - half, profile.mean(0) + half

    def _table(self) -> tuple[Row, list[Row]]:
        low, high = self.interval
        span = f"{low:.4g} to {high:.4g}" if len(self) > 1 else ""
        return ("score", "value", "95 % interval", "samples"), [
            (self.score.name, f"{self.value:.4g}", span, str(len(self)))
        ]

    def _columns(self) -> dict[str, list[Any]]:
        margins = {} if self.margins is None else {"margin": self.margins.tolist()}
        return {"value": self.values.tolist(), **margins}

    def __str__(self) -> str:
        low, high = self.interval
        span = f" [{low:.4g}, {high:.4g}]" if len(self) > 1 else ""
        return f"{self.score.name} = {self.value:.4g}{span}, n = {len(self)}"

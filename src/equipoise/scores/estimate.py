"""A score estimated on samples: its value, interval and curve."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from equipoise.attacks.result import AttackResult
from equipoise.core.errors import require
from equipoise.core.types import Points
from equipoise.results.statistics import wilson
from equipoise.scores.radii import Radii

if TYPE_CHECKING:
    from equipoise.scores.score import Score

_GRID = 101  # radii of a curve of margins


@dataclass(frozen=True, eq=False)
class Estimate:
    """A score, with its error and what it was made of."""

    values: Float[np.ndarray, " samples"]
    """`∫ H(R_Q(x_i, eps)) G(eps) d eps` of every sample."""
    shares: Float[np.ndarray, "samples radii"] | None
    """`H(R_Q(x_i, eps))` at the radii drawn, of a robustness that is sampled."""
    drawn: Float[np.ndarray, "samples radii"] | None
    """These radii."""
    margins: Float[np.ndarray, " samples"] | None
    """Where R = 1 ends, of a robustness that is bounded; infinity if nowhere."""
    score: "Score"
    """Of what it is an estimate."""
    x: Points
    """The points it was estimated on."""
    found: AttackResult | None = None
    """The nearest points classified otherwise, where an attack looked for them."""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def value(self) -> float:
        """The score: the mean over samples."""
        return float(self.values.mean())

    @property
    def error(self) -> float:
        """Its standard error, `s/sqrt(n)`, of which everything is part that was drawn; NaN for one sample."""
        return float(self.values.std(ddof=1) / math.sqrt(len(self.values))) if len(self.values) > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval, `value ± t error`, Student's t of n - 1 degrees; NaN for one sample."""
        half = float(stdtrit(max(len(self) - 1, 1), 0.975)) * self.error
        return self.value - half, self.value + half

    @property
    def radii(self) -> Float[np.ndarray, " radii"]:
        """Where the curve is given: of one that is sampled, the middle of each part that radii were drawn from, or the
        mean distance of the k-th nearest point.
        """
        if self.drawn is not None:
            return self.score.radii.centres if isinstance(self.score.radii, Radii) else self.drawn.mean(0)
        assert self.margins is not None
        low, high, known = self.score.bounded.low, self.score.bounded.high, self.margins[np.isfinite(self.margins)]
        near = low + 1.1 * (np.quantile(known, 0.99) - low) if len(known) else high
        return np.linspace(low, near if low < near < high else high, _GRID)

    def profile_at(self, radii: Float[np.ndarray, " radii"]) -> Float[np.ndarray, "samples radii"]:
        """`H(R_Q(x_i, eps))` at these radii; of a robustness that is sampled, those of `self.radii` alone."""
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
        """Both ends of 95 % intervals of `curve`, each radius for itself: Wilson's for shares of samples, else
        Student's, without a width for one sample.
        """
        return self.band_at(self.radii)

    def band_at(
        self, radii: Float[np.ndarray, " radii"]
    ) -> tuple[Float[np.ndarray, " radii"], Float[np.ndarray, " radii"]]:
        """As `band`, at the radii that `profile_at` takes."""
        profile, n = self.profile_at(radii), len(self)
        if np.isin(profile, (0.0, 1.0)).all():
            low, high = np.array([wilson(int(k), n) for k in profile.sum(0)]).T
            return low, high
        half = stdtrit(max(n - 1, 1), 0.975) * profile.std(0, ddof=min(n - 1, 1)) / math.sqrt(n)
        return profile.mean(0) - half, profile.mean(0) + half

    def __str__(self) -> str:
        low, high = self.interval
        span = f" [{low:.4g}, {high:.4g}]" if len(self) > 1 else ""
        return f"{self.score.name} = {self.value:.4g}{span}, n = {len(self)}"

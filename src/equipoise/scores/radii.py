"""The radii that a score integrates over."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.core.errors import require, require_integer
from equipoise.core.rng import Streams

PerRadius = Float[Tensor, "batch radii"]
"""One number for each sample and radius."""


@dataclass(frozen=True)
class Radii:
    """The radii that are integrated over: one drawn for each sample from each of `count` equal parts of `[low, high]`.

    The integral is then unbiased for every function of eps, and its error is part of the variance over samples, so that
    the standard error of a score includes it.
    """

    high: float
    """Largest radius."""
    low: float = 0.0
    """Smallest radius; for G = 1/eps more than 0, where the integral diverges."""
    count: int = 16
    """Number of parts."""
    average: bool = False
    """Whether to divide by `high - low`: the mean over radii (F, Eq. 9) instead of the integral (F, Eq. 3)."""

    def __post_init__(self) -> None:
        require(
            0 <= self.low < self.high < math.inf,
            f"radii from {self.low} to {self.high}: expected 0 <= low < high < infinity.",
        )
        require_integer("count", self.count, 1)

    @property
    def centres(self) -> Float[np.ndarray, " radii"]:
        """The middle of each part."""
        return self.low + (np.arange(self.count) + 0.5) * (self.high - self.low) / self.count

    @property
    def width(self) -> float:
        """The weight of each radius in the integral."""
        return (1 if self.average else self.high - self.low) / self.count

    def draw(self, streams: Streams) -> Float[Tensor, "batch radii"]:
        """Return a radius of each part, for each sample."""
        u = streams.uniform(self.count, dtype=torch.float64)
        return self.low + (torch.arange(self.count, device=u.device) + u) * (self.high - self.low) / self.count

    def settings(self) -> dict[str, Any]:
        """Return every parameter, JSON-ready."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.low:.4g} to {self.high:.4g}" + (", averaged" if self.average else "")


@dataclass(frozen=True)
class Distances:
    """The radii are the distances of the law's own points, and the score is the mean over them.

    With M points of distances d_1 <= ... <= d_M it is `(1/M) Σ_k H(R_k) G(d_k)`, R_k the share of the k nearest points
    that are classified as x. No radius is chosen, and no ball is empty: in F (Sec. 7) the generator makes the radii
    together with the points. For laws whose points do not depend on the radii.
    """

    def settings(self) -> dict[str, Any]:
        """Return the kind, JSON-ready."""
        return {"kind": "distances"}

    def __str__(self) -> str:
        return "the distances of the points, averaged"

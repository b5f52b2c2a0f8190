"""Whether margins and slopes explain a model's robustness: R's Table 4 and Fig 4, sample by sample.

    explained = explain(model, x, y)
    explained.correlation.pearson          # of M/‖∇f‖₂ with the distance at which an unbounded attack succeeds

R reads it so: a normalised margin says how far the boundary is only where f is nearly linear, which `nonlinearity`
measures; entropy maximisation alone enlarges the margin and destroys the linearity.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from equipoise.attacks import pgd
from equipoise.core.types import Labels, Points, Predictive
from equipoise.diagnostics.blocks import BATCH_SIZE
from equipoise.diagnostics.jacobian import Correlation, correlation, decision_margin, nonlinearity, spectral_norm
from equipoise.geometry import Box
from equipoise.results.findings import Number

Values = Float[np.ndarray, " samples"]


@dataclass(frozen=True, eq=False)
class Explained:
    """Margins, slopes and outcomes of attacks, per sample."""

    margin: Values
    """`M = f_y - max_{i≠y} f_i`."""
    norm: Values
    """`‖∇f‖₂`."""
    correct: Bool[np.ndarray, " samples"]
    """Whether it is classified correctly under PGD in the L2 ball."""
    nonlinearity: Values
    """`Q_f` between the sample and the point that PGD reached; NaN where it did not move."""
    distance: Values
    """L2 distance at which the unbounded attack succeeded: 0 for wrong samples, NaN where it did not succeed."""

    @property
    def normalised_margin(self) -> Values:
        """`M / ‖∇f‖₂`; infinite where the Jacobian is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.margin / self.norm

    @property
    def correlation(self) -> Correlation:
        """Correlation of the normalised margin with the distance, over the correctly classified samples that have both.

        Raises `EquipoiseError` if these are fewer than 4.
        """
        margin, distance = self.normalised_margin, self.distance
        samples = (distance > 0) & np.isfinite(margin)  # NaN is not larger than 0
        return correlation(margin[samples], distance[samples])

    def numbers(self) -> list[Number]:
        """The rows of R's Table 4."""
        finite = self.nonlinearity[np.isfinite(self.nonlinearity)]
        ratio = self.normalised_margin[np.isfinite(self.normalised_margin)]
        rows: list[tuple[str, Any, bool]] = [
            ("decision margin", self.margin, False),
            ("spectral norm of the Jacobian", self.norm, False),
            ("normalised margin", ratio, False),
            ("accuracy under PGD in the L2 ball", self.correct.astype(float), True),
            ("non-linearity Q", finite, False),
        ]
        return [Number(name, v.tolist(), "samples", "R Table 4", percent) for name, v, percent in rows if len(v)]


def explain(
    model: "nn.Module | Predictive",
    x: Points,
    y: Labels,
    *,
    eps: float = 0.5,
    steps: int = 20,
    far_step: float = 0.02,
    far_steps: int = 1000,
    box: Box = Box(),
    exact: bool | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> Explained:
    """Return margins and Jacobians at x, the last point of PGD with `steps` steps of eps/10 in the L2 ball (R:
    PGD20-0.5), and the distance at which PGD without a ball first succeeds, in at most `far_steps` steps of `far_step`,
    which is also how far it may overshoot.

    `exact` is that of `spectral_norm`. Raises `EquipoiseError` for input that an attack cannot take.
    """
    options: dict[str, Any] = {"seed": seed, "batch_size": batch_size}
    near = pgd(eps, eps / 10, steps, "l2", box, start="zero", return_point="last")(model, x, y, **options)
    far = pgd(math.inf, far_step, far_steps, "l2", box, start="zero")(model, x, y, **options)
    margin = decision_margin(model, x, y, **options)
    return Explained(
        margin=_array(margin),
        norm=_array(spectral_norm(model, x, exact=exact, **options)),
        correct=_array((margin > 0) & ~near.success),
        nonlinearity=_array(nonlinearity(model, x, near.x, **options)),
        distance=_array(torch.where(far.success, far.distance, math.nan)),
    )


def _array(values: Tensor) -> Any:
    return values.cpu().numpy() if values.dtype == torch.bool else values.double().cpu().numpy()

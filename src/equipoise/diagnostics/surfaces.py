"""The loss and the margin around a sample: does the gradient lead uphill, and how rough is the surface?

R (App. C.2, Figs 5, 6) looks at `x' = x + e1·d1 + e2·d2`, with `d1 = sign(∇CE(x))` and d2 random with `‖d2‖_∞ = 1`,
for e1, e2 in [-.04, .04]. Where the loss falls along d1, gradient ascent gets stuck in what R calls a hole.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from equipoise.attacks.execution import value_and_gradient
from equipoise.core.errors import require
from equipoise.core.rng import Stream
from equipoise.core.types import Labels, Points, Prediction, Predictive
from equipoise.diagnostics.blocks import BATCH_SIZE, Block, in_blocks
from equipoise.losses.objectives import cross_entropy, margin
from equipoise.results.findings import Number, Picture, Regions

_ROUNDING = 8.0  # rounding error of a loss, in units of the machine epsilon times the logits that it compares

Maps = Float[np.ndarray, "samples rows columns"]


@dataclass(frozen=True, eq=False)
class Surface:
    """Loss and margin of some samples over a plane through each."""

    e: Float[np.ndarray, " columns"]
    """Steps along d1 (columns) and d2 (rows), increasing, 0 in the middle; in the units of the input."""
    loss: Maps
    """Cross-entropy in nats."""
    margin: Maps
    """`f_y - max_{i≠y} f_i`: positive where the prediction is right."""
    rounding: Float[np.ndarray, " samples"]
    """Rounding error of the loss."""

    @property
    def holes(self) -> Float[np.ndarray, " samples"]:
        """The share of the grid's steps along d1, from `e1 = 0` on, that lower the loss by more than rounding."""
        return self._falls.mean((1, 2))

    @property
    def stuck(self) -> Bool[np.ndarray, " samples"]:
        """Whether the loss falls anywhere on the ray from the sample along its own gradient's sign."""
        return np.asarray(self._falls[:, len(self.e) // 2].any(1))

    @property
    def roughness(self) -> dict[str, Float[np.ndarray, " samples"]]:
        """`roughness` of the loss and of the margin."""
        return {"loss": roughness(self.loss), "margin": roughness(self.margin)}

    @property
    def _falls(self) -> Bool[np.ndarray, "samples rows steps"]:
        ahead = self.loss[:, :, len(self.e) // 2 :]
        return np.diff(ahead) < -self.rounding[:, None, None]

    def numbers(self) -> list[Number]:
        """The measures, one value per sample."""
        rough = self.roughness
        return [
            Number("share of steps along the gradient's sign that lower the loss", self.holes.tolist(), "samples"),
            Number(
                "samples whose loss falls on the ray along their gradient's sign",
                self.stuck.astype(float).tolist(),
                "samples",
                "a 'hole' in roughly 25 % of samples under EntM alone (R, App. C.2)",
                percent=True,
            ),
            Number("roughness of the loss", rough["loss"].tolist(), "samples"),
            Number("roughness of the margin", rough["margin"].tolist(), "samples"),
        ]

    def picture(self, name: str = "surfaces", samples: int = 4) -> Picture:
        """The loss of the first samples in one row, and below it their margin with the boundary of the classifier."""
        shown = range(min(samples, len(self.loss)))
        half = (self.e[1] - self.e[0]) / 2  # values stand at the centres of the cells
        low, high = float(self.e[0] - half), float(self.e[-1] + half)

        def panel(values: Maps, i: int, what: str, meaning: str, level: float | None) -> Regions:
            return Regions(
                f"sample {i + 1}, {what}", values[i], (low, high, low, high), meaning, level, points=np.zeros((1, 2))
            )

        losses = [panel(self.loss, i, "loss", "cross-entropy in nats", None) for i in shown]
        margins = [panel(self.margin, i, "margin", "margin of the true class", 0.0) for i in shown]
        return Picture(
            name,
            "Loss and decision margin around samples (the dot), across along the sign of the loss's gradient and up "
            "along random signs, in the units of the input (R Figs 5, 6).",
            [*losses, *margins],
            columns=len(shown),
        )


def surface(
    model: "nn.Module | Predictive",
    x: Points,
    y: Labels,
    *,
    reach: float = 0.04,
    points: int = 41,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> Surface:
    """Return loss and margin over `x + e1·d1 + e2·d2`, `points` values of each in [-reach, reach] (R, App. C.2).

    d1 is the sign of the gradient of the cross-entropy at x, taken as 0 where it is not finite. d2 is drawn for each
    sample from ±1 in every coordinate: R asks only for `‖d2‖_∞ = 1`, and signs are as long as d1 in every norm. As in
    R the points are not clamped to a box. Costs `points²` forward passes per sample.
    Raises `EquipoiseError` for input that the model cannot take, and for an even number of points, without a middle.
    """
    require(reach > 0, f"reach = {reach}: expected a length > 0, such as 0.04.")
    require(points >= 3 and points % 2 == 1, f"points = {points}: expected an odd integer >= 3.")
    e = np.arange(-(points // 2), points // 2 + 1) * (reach / (points // 2))

    def work(block: Block) -> tuple[Tensor, Tensor, Tensor]:
        origin, labels = x[block.samples], y[block.samples]
        _, gradient, _ = value_and_gradient(cross_entropy, block.predict, origin, labels=labels)
        signs = 2.0 * (block.streams.fold(Stream.DIRECTION).bits(*origin.shape[1:]) & 1).to(origin.dtype) - 1
        along, across = (_outer(e, d) for d in (gradient.nan_to_num(0.0, 0.0, 0.0).sign(), signs))
        lines = [_line(block, origin[:, None] + along + across[:, i, None], labels) for i in range(points)]
        loss, margins, outputs = (torch.stack(line, 1) for line in zip(*lines, strict=True))
        rounding = _ROUNDING * torch.finfo(x.dtype).eps * outputs.amax((1, 2)).clamp_min(1)
        return loss, margins, rounding

    blocks = in_blocks(work, model, x, y, batch_size=max(1, batch_size // points), seed=seed)
    loss, margins, rounding = (torch.cat(values).cpu().numpy() for values in zip(*blocks, strict=True))
    return Surface(e, loss, margins, rounding)


def roughness(values: Maps) -> Float[np.ndarray, " samples"]:
    """Return how much the slope of each map changes from end to end, relative to its mean steepness:

        Σ_axes mean over lines of Σ_i |v_{i+1} - 2 v_i + v_{i-1}|  /  Σ_axes mean |v_{i+1} - v_i|.

    0 for a plane, 2 for `|x|`, about 4 for `x²`. The total variation of the slope over its mean, so that it does not
    depend on the scale of the values nor, once the grid is fine, on the grid.
    """
    bends = sum(abs(np.diff(values, 2, axis)).sum(axis).mean(1) for axis in (1, 2))
    slopes = sum(abs(np.diff(values, axis=axis)).mean((1, 2)) for axis in (1, 2))
    return np.divide(bends, slopes, out=np.zeros(len(values)), where=np.asarray(slopes) > 0)


def _outer(e: np.ndarray, direction: Points) -> Float[Tensor, "batch points ..."]:
    """`e_i · d` of every sample."""
    steps = torch.from_numpy(e).to(direction)
    return steps.reshape(1, -1, *[1] * (direction.ndim - 1)) * direction[:, None]


def _line(block: Block, points: Float[Tensor, "batch points ..."], y: Labels) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, margin and size of the logits that they compare along a line of points of each sample."""
    batch, count = points.shape[:2]
    prediction = Prediction(block.predict(points.flatten(0, 1)).logits.double())
    labels = y.repeat_interleave(count)
    # Not the largest of all: a class that is absent, with a logit of -1e9, is compared with none.
    compared = torch.maximum(prediction.scores.gather(1, labels[:, None])[:, 0].abs(), prediction.scores.amax(1).abs())
    values = cross_entropy(prediction, labels=labels), -margin(prediction, labels=labels), compared
    return tuple(v.reshape(batch, count) for v in values)  # pyright: ignore[reportReturnType]

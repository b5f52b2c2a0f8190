"""Whether a model's probabilities mean what they say, and whether its uncertainty tells strange inputs from known ones.

calibration(model, x, y).ece                                     # clean
calibration(model, attack(model, x, y).x, y).ece                 # at attacked points
ood_auroc(model, x, x_strange, "entropy").value
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import expit, logit
from torch import nn

from equipoise.core.errors import require, require_integer, unknown
from equipoise.core.rng import fold
from equipoise.core.types import Labels, Points, Predictive
from equipoise.diagnostics.blocks import BATCH_SIZE, Block, in_blocks
from equipoise.losses.objectives import Objective, uncertainty_named
from equipoise.results.findings import Histogram, Lines, Number, Series
from equipoise.results.statistics import wilson

Kind = Literal["equal_width", "equal_mass"]
RESAMPLES = 1000
_Z = 1.959963984540054  # normal quantile of a 95 % interval
_AT_ONCE = 1 << 22  # resampled samples held at a time


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    """The number."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""


@dataclass(frozen=True, eq=False)
class Bins:
    """Samples sorted into bins by their confidence; empty bins are left out."""

    count: Int[np.ndarray, " bins"]
    """Samples in each bin."""
    confidence: Float[np.ndarray, " bins"]
    """Their mean confidence."""
    accuracy: Float[np.ndarray, " bins"]
    """Share of them that is correct."""

    @property
    def error(self) -> float:
        """`Σ_b (n_b/n) |accuracy_b - confidence_b|`."""
        return float((self.count * abs(self.accuracy - self.confidence)).sum() / self.count.sum())


@dataclass(frozen=True, eq=False)
class Calibration:
    """How well probabilities match what happens, on n samples."""

    confidence: Float[np.ndarray, " samples"]
    """The largest probability of each sample."""
    correct: Bool[np.ndarray, " samples"]
    """Whether its class is the label."""
    ece: Estimate
    """Expected calibration error with bins of equal width."""
    ece_equal_mass: Estimate
    """The same with bins of equal numbers of samples."""
    ece_by_chance: float
    """The equal-width error that a perfectly calibrated model would show on as few samples, on average."""
    nll: Number
    """Negative log-likelihood `-log p_y` in nats, per sample."""
    brier: Number
    """Brier score `Σ_c (p_c - 1[c = y])²`, in [0, 2], per sample."""
    bins: int
    """Number of bins."""

    @property
    def accuracy(self) -> float:
        """Share of the samples that is correct."""
        return float(self.correct.mean())

    def histogram(self, title: str = "confidence") -> Histogram:
        """How often the model was how sure, where it was right and where it was wrong."""
        edges = np.linspace(0, 1, self.bins + 1)
        parts = {"right": self.correct, "wrong": ~self.correct}
        counts = {name: np.histogram(self.confidence[rows].clip(0, 1), edges)[0] for name, rows in parts.items()}
        return Histogram(title, edges, counts, "probability of the predicted class")

    def reliability(self, title: str = "reliability") -> Lines:
        """Accuracy against confidence per equal-width bin, with 95 % Wilson intervals, beside perfect calibration."""
        found = binned(self.confidence, self.correct, self.bins)
        hits = np.rint(found.accuracy * found.count).astype(int)
        ends = np.array([wilson(int(k), int(n)) for k, n in zip(hits, found.count, strict=True)])
        return Lines(
            title,
            found.confidence,
            [
                Series("model", found.accuracy, ends[:, 0], ends[:, 1]),
                Series("perfect calibration", found.confidence, dashed=True),
            ],
            "probability of the predicted class",
            "share correct",
        )


def calibration(
    model: "nn.Module | Predictive",
    x: Points,
    y: Labels,
    *,
    bins: int = 15,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> Calibration:
    """The calibration of a model at the points `x`, clean or attacked, whose labels are `y`."""

    def work(block: Block) -> torch.Tensor:
        return block.predict(x[block.rows]).log_probs.double().cpu()

    log_probs = torch.cat(in_blocks(work, model, x, y, batch_size=batch_size, seed=seed))
    return calibration_of(log_probs.numpy(), y.cpu().numpy(), bins=bins, seed=seed)


def calibration_of(
    log_probs: Float[np.ndarray, "samples classes"], y: Int[np.ndarray, " samples"], *, bins: int = 15, seed: int = 0
) -> Calibration:
    """The calibration of given log-probabilities. Raises `EquipoiseError` unless every row is a distribution."""
    probs = np.exp(log_probs.astype(np.float64))
    require(len(probs) == len(y) > 0, f"{len(probs)} rows of probabilities and {len(y)} labels: expected as many.")
    require(bool(np.allclose(probs.sum(1), 1, atol=1e-4)), "the rows of exp(log_probs) do not sum to 1.")
    confidence, correct = probs.max(1), probs.argmax(1) == y
    own = np.take_along_axis(log_probs, y[:, None], 1)[:, 0].astype(np.float64)
    brier = (probs**2).sum(1) - 2 * np.exp(own) + 1
    return Calibration(
        confidence=confidence,
        correct=correct,
        ece=calibration_error(confidence, correct, bins, seed=seed),
        ece_equal_mass=calibration_error(confidence, correct, bins, "equal_mass", seed=seed),
        ece_by_chance=error_by_chance(confidence, bins),
        nll=Number("negative log-likelihood in nats", (-own).tolist(), "samples"),
        brier=Number("Brier score", brier.tolist(), "samples"),
        bins=bins,
    )


def binned(
    confidence: Float[np.ndarray, " samples"],
    correct: Bool[np.ndarray, " samples"],
    bins: int,
    kind: Kind = "equal_width",
) -> Bins:
    """Samples in bins `((b-1)/B, b/B]` of confidence, or in bins of equal numbers in the order of confidence."""
    which = _bin(confidence, bins, kind)
    count = np.bincount(which, minlength=bins)
    kept = count > 0
    means = [np.bincount(which, v.astype(np.float64), bins)[kept] / count[kept] for v in (confidence, correct)]
    return Bins(count[kept], *means)


def calibration_error(
    confidence: Float[np.ndarray, " samples"],
    correct: Bool[np.ndarray, " samples"],
    bins: int = 15,
    kind: Kind = "equal_width",
    *,
    seed: int = 0,
) -> Estimate:
    """Expected calibration error `Σ_b (n_b/n) |accuracy_b - confidence_b|` (Naeini et al. 2015; Guo et al. 2017,
    Eq. 3).

    The estimate is too high, the more so the fewer samples a bin has: see `error_by_chance`. The interval is the basic
    bootstrap's, `2·ECE - quantiles of the resampled ECE`, cut at 0, which takes that bias off; the bins stand still.
    """
    gap = confidence - correct
    which, n = _bin(confidence, bins, kind), len(gap)
    error = binned(confidence, correct, bins, kind).error
    members = np.eye(bins)[which] * gap[:, None]  # in its bin each sample's contribution to n_b·(confidence - accuracy)
    rng = np.random.default_rng(fold(seed, n) % 2**63)
    each = max(1, _AT_ONCE // n)
    sizes = [min(each, RESAMPLES - begun) for begun in range(0, RESAMPLES, each)]
    weights = (rng.multinomial(n, np.full(n, 1 / n), size).astype(np.float64) for size in sizes)
    resampled = np.concatenate([abs(w @ members).sum(1) / n for w in weights])
    low, high = 2 * error - np.quantile(resampled, [0.975, 0.025])
    return Estimate(error, max(float(low), 0.0), max(float(high), 0.0))


def error_by_chance(confidence: Float[np.ndarray, " samples"], bins: int = 15, kind: Kind = "equal_width") -> float:
    """The calibration error to be expected were every sample correct with the probability its confidence says:

    Σ_b E|N(0, Σ_{i∈b} p_i (1 - p_i))| / n = Σ_b √(2/π · Σ_{i∈b} p_i (1 - p_i)) / n.
    """
    spread = np.bincount(_bin(confidence, bins, kind), confidence * (1 - confidence).clip(0), bins)
    return float(np.sqrt(2 / math.pi * spread).sum() / len(confidence))


def _bin(confidence: np.ndarray, bins: int, kind: str) -> np.ndarray:
    require_integer("bins", bins, 1)
    match kind:
        case "equal_width":
            return np.ceil(confidence * bins).astype(int).clip(1, bins) - 1
        case "equal_mass":
            from scipy.stats import rankdata

            return (rankdata(confidence, "ordinal").astype(int) - 1) * bins // len(confidence)
    raise unknown("kind of bins", kind, ("equal_width", "equal_mass"))


def ood_auroc(
    model: "nn.Module | Predictive",
    x_in: Points,
    x_out: Float[torch.Tensor, "others ..."],
    uncertainty: str | Objective = "entropy",
    *,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> Estimate:
    """The probability that an input from elsewhere is more uncertain than one like those of the training, ties counting
    half: the area under the ROC curve of `uncertainty > t`, with DeLong's interval (`auroc`).

    `uncertainty` is one of `equipoise.losses.objectives.UNCERTAINTIES`, or an objective of your own without labels.
    Raises `EquipoiseError` for an unknown one, and for one that is the same everywhere for this model.
    """
    objective = uncertainty_named(uncertainty)

    def measure(x: Points) -> Callable[[Block], torch.Tensor]:
        def work(block: Block) -> torch.Tensor:
            objective.check(block.classes, labels=False, target=False, members=block.members)
            return objective(block.predict(x[block.rows])).double().cpu()

        return work

    inside, outside = (
        torch.cat(in_blocks(measure(x), model, x, batch_size=batch_size, seed=seed)).numpy() for x in (x_in, x_out)
    )
    return auroc(inside, outside)


def auroc(negative: Float[np.ndarray, " negatives"], positive: Float[np.ndarray, " positives"]) -> Estimate:
    """`P(positive > negative) + ½ P(equal)` with a 95 % interval.

    The variance is that of DeLong et al. (1988), from the placements of each sample among the other kind, and the
    interval is taken on the logit scale. Where all pairs agree that variance is 0; then of the min(m, n) disjoint pairs
    every one agrees, and the exact interval of such a proportion is given: `1 - 0.025^(1/min(m, n))` wide.
    """
    from scipy.stats import rankdata
    from sklearn.metrics import roc_auc_score

    m, n = len(negative), len(positive)
    require(min(m, n) >= 2, f"an AUROC with its interval needs 2 samples of each kind, got {m} and {n}.")
    require(bool(np.isfinite(negative).all() and np.isfinite(positive).all()), "an AUROC needs finite scores.")
    area = float(roc_auc_score(np.repeat([0, 1], [m, n]), np.concatenate([negative, positive])))
    if area in (0.0, 1.0):
        wide = 1 - 0.025 ** (1 / min(m, n))
        return Estimate(area, 1 - wide, 1.0) if area else Estimate(area, 0.0, wide)
    ranks = rankdata(np.concatenate([negative, positive]))
    above = (ranks[m:] - rankdata(positive)) / m  # of each positive: the share of negatives below it
    below = (ranks[:m] - rankdata(negative)) / n  # of each negative: the share of positives below it
    error = math.sqrt(above.var(ddof=1) / n + below.var(ddof=1) / m)
    half = _Z * error / (area * (1 - area))
    return Estimate(area, float(expit(logit(area) - half)), float(expit(logit(area) + half)))

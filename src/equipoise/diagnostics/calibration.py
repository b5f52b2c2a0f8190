"""Calibration of a model's probabilities, and detection of out-of-distribution inputs by its uncertainty.

calibration(model, x, y).ece                                     # clean
calibration(model, attack(model, x, y).x, y).ece                 # at attacked points
ood_auroc(model, x, x_ood, "entropy").value
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
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
"""Bootstrap samples of an interval."""
_Z = 1.959963984540054  # normal quantile of a 95 % interval
_CHUNK = 1 << 22  # resampled samples held at a time


@dataclass(frozen=True)
class IntervalEstimate:
    """A number with its 95 % confidence interval."""

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
    """How well predicted probabilities match observed frequencies."""

    confidence: Float[np.ndarray, " samples"]
    """The largest probability of each sample."""
    correct: Bool[np.ndarray, " samples"]
    """Whether the class of that probability is the label."""
    ece: IntervalEstimate
    """Return the expected calibration error with bins of equal width."""
    ece_equal_mass: IntervalEstimate
    """The same with bins of equal numbers of samples."""
    ece_by_chance: float
    """Expected equal-width error of a perfectly calibrated model on as many samples."""
    nll: Number
    """Negative log-likelihood `-log p_y` in nats, per sample."""
    brier: Number
    """Brier score `Σ_c (p_c - 1[c = y])²`, in [0, 2], per sample."""
    bins: int
    """Number of bins."""

    @property
    def accuracy(self) -> float:
        """Share of the samples that is classified correctly."""
        return float(self.correct.mean())

    def histogram(self, title: str = "confidence") -> Histogram:
        """Return how often each confidence occurs among correct and among misclassified samples."""
        edges = np.linspace(0, 1, self.bins + 1)
        outcomes = {"right": self.correct, "wrong": ~self.correct}
        confidences = {name: self.confidence[outcome].clip(0, 1) for name, outcome in outcomes.items()}
        counts = {name: np.histogram(confidence, edges)[0] for name, confidence in confidences.items()}
        return Histogram(title, edges, counts, "probability of the predicted class")

    def reliability(self, title: str = "reliability") -> Lines:
        """Return accuracy against confidence per equal-width bin with 95 % intervals, beside perfect calibration."""
        bins = binned(self.confidence, self.correct, self.bins)
        correct = np.rint(bins.accuracy * bins.count).astype(int)
        low, high = np.array([wilson(int(k), int(n)) for k, n in zip(correct, bins.count, strict=True)]).T
        return Lines(
            title,
            bins.confidence,
            [
                Series("model", bins.accuracy, low, high),
                Series("perfect calibration", bins.confidence, dashed=True),
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
    """Return the calibration of a model at the inputs `x`, clean or adversarial, with labels `y`."""

    def work(block: Block) -> torch.Tensor:
        return block.predict(x[block.samples]).log_probs.double().cpu()

    log_probs = torch.cat(in_blocks(work, model, x, y, batch_size=batch_size, seed=seed))
    return calibration_of(log_probs.numpy(), y.cpu().numpy(), bins=bins, seed=seed)


def calibration_of(
    log_probs: Float[np.ndarray, "samples classes"], y: Int[np.ndarray, " samples"], *, bins: int = 15, seed: int = 0
) -> Calibration:
    """Return the calibration of log-probabilities. Raises `EquipoiseError` unless every row is a distribution."""
    probs = np.exp(log_probs.astype(np.float64))
    require(len(probs) == len(y) > 0, f"{len(probs)} rows of probabilities and {len(y)} labels: expected as many.")
    require(bool(np.allclose(probs.sum(1), 1, atol=1e-4)), "the rows of exp(log_probs) do not sum to 1.")
    confidence, correct = probs.max(1), probs.argmax(1) == y
    of_label = np.take_along_axis(log_probs, y[:, None], 1)[:, 0].astype(np.float64)
    brier = (probs**2).sum(1) - 2 * np.exp(of_label) + 1
    return Calibration(
        confidence=confidence,
        correct=correct,
        ece=calibration_error(confidence, correct, bins, seed=seed),
        ece_equal_mass=calibration_error(confidence, correct, bins, "equal_mass", seed=seed),
        ece_by_chance=error_by_chance(confidence, bins),
        nll=Number("negative log-likelihood in nats", (-of_label).tolist(), "samples"),
        brier=Number("Brier score", brier.tolist(), "samples"),
        bins=bins,
    )


def binned(
    confidence: Float[np.ndarray, " samples"],
    correct: Bool[np.ndarray, " samples"],
    bins: int,
    kind: Kind = "equal_width",
) -> Bins:
    """Sort samples into bins `((b-1)/B, b/B]` of confidence, or into bins of equal numbers in order of confidence."""
    bin_of = _bin(confidence, bins, kind)
    count = np.bincount(bin_of, minlength=bins)
    filled = count > 0
    means = [np.bincount(bin_of, v.astype(np.float64), bins)[filled] / count[filled] for v in (confidence, correct)]
    return Bins(count[filled], *means)


def calibration_error(
    confidence: Float[np.ndarray, " samples"],
    correct: Bool[np.ndarray, " samples"],
    bins: int = 15,
    kind: Kind = "equal_width",
    *,
    seed: int = 0,
) -> IntervalEstimate:
    """Return the expected calibration error `Σ_b (n_b/n) |accuracy_b - confidence_b|` (Naeini et al. 2015; Guo et al.
    2017, Eq. 3).

    The estimate is biased upwards, the more so the fewer samples a bin has: see `error_by_chance`. The interval is that
    of the basic bootstrap, `2·ECE - quantiles of the resampled ECE`, cut at 0, which corrects the bias; the bins are
    fixed.
    """
    gap = confidence - correct
    bin_of, n = _bin(confidence, bins, kind), len(gap)
    error = binned(confidence, correct, bins, kind).error
    terms = np.eye(bins)[bin_of] * gap[:, None]  # each sample's term of n_b·(confidence - accuracy) of its bin
    rng = np.random.default_rng(fold(seed, n) % 2**63)
    chunk = max(1, _CHUNK // n)
    sizes = [min(chunk, RESAMPLES - start) for start in range(0, RESAMPLES, chunk)]
    weights = (rng.multinomial(n, np.full(n, 1 / n), size).astype(np.float64) for size in sizes)
    resampled = np.concatenate([abs(w @ terms).sum(1) / n for w in weights])
    low, high = 2 * error - np.quantile(resampled, [0.975, 0.025])
    return IntervalEstimate(error, max(float(low), 0.0), max(float(high), 0.0))


def error_by_chance(confidence: Float[np.ndarray, " samples"], bins: int = 15, kind: Kind = "equal_width") -> float:
    """Return the expected calibration error if every sample is correct with a probability equal to its confidence:

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
) -> IntervalEstimate:
    """Return the probability that an out-of-distribution input is more uncertain than an in-distribution one, ties
    counting half: the area under the ROC curve of `uncertainty > t`, with DeLong's interval (`auroc`).

    `uncertainty` is one of `equipoise.losses.objectives.UNCERTAINTIES`, or an objective without labels. Raises
    `EquipoiseError` for an unknown one, and for one that is constant for this model.
    """
    objective = uncertainty_named(uncertainty)

    def measure(x: Points) -> Callable[[Block], torch.Tensor]:
        def work(block: Block) -> torch.Tensor:
            objective.check(block.classes, labels=False, target=False, members=block.members)
            return objective(block.predict(x[block.samples])).double().cpu()

        return work

    inside, outside = (
        torch.cat(in_blocks(measure(x), model, x, batch_size=batch_size, seed=seed)).numpy() for x in (x_in, x_out)
    )
    return auroc(inside, outside)


def auroc(negative: Float[np.ndarray, " negatives"], positive: Float[np.ndarray, " positives"]) -> IntervalEstimate:
    """Return `P(positive > negative) + ½ P(equal)` with a 95 % interval.

    The variance is that of DeLong et al. (1988), and the interval is computed on the logit scale. Where all pairs agree
    that variance is 0; the interval is then the exact one of the min(m, n) disjoint pairs, all of which agree, of width
    `1 - 0.025^(1/min(m, n))`.
    """
    from scipy.special import expit, logit
    from scipy.stats import rankdata
    from sklearn.metrics import roc_auc_score

    m, n = len(negative), len(positive)
    require(min(m, n) >= 2, f"an AUROC with its interval needs 2 samples of each kind, got {m} and {n}.")
    require(bool(np.isfinite(negative).all() and np.isfinite(positive).all()), "an AUROC needs finite scores.")
    area = float(roc_auc_score(np.repeat([0, 1], [m, n]), np.concatenate([negative, positive])))
    if area in (0.0, 1.0):
        width = 1 - 0.025 ** (1 / min(m, n))
        return IntervalEstimate(area, 1 - width, 1.0) if area else IntervalEstimate(area, 0.0, width)
    ranks = rankdata(np.concatenate([negative, positive]))
    above = (ranks[m:] - rankdata(positive)) / m  # of each positive: the share of negatives below it
    below = (ranks[:m] - rankdata(negative)) / n  # of each negative: the share of positives below it
    error = math.sqrt(above.var(ddof=1) / n + below.var(ddof=1) / m)
    half = _Z * error / (area * (1 - area))
    return IntervalEstimate(area, float(expit(logit(area) - half)), float(expit(logit(area) + half)))

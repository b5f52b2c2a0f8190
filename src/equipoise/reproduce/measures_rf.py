"""What tables and figures of R and F show of trained networks that no evaluation does.

Each is a function of networks, data and options, for `equipoise.reproduce.MeasureTask`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from equipoise.attacks import bg, margin_attack, minimal_l2, pgd, published_margin_attack, random_search
from equipoise.attacks.minimum_norm.bisection import Bisected
from equipoise.attacks.presets import pgd_k, pgd_l2
from equipoise.attacks.result import AttackResult
from equipoise.attacks.steps import Gaussian
from equipoise.core.types import Predictive
from equipoise.corruptions import CORRUPTIONS
from equipoise.data import Dataset
from equipoise.diagnostics.curves import accuracy_against_eps
from equipoise.diagnostics.jacobian import correlation, decision_margin, nonlinearity, spectral_norm
from equipoise.diagnostics.surfaces import surface
from equipoise.evaluation.corrupted import Corruptions, on_corruptions
from equipoise.generators import Manifold
from equipoise.losses.objectives import smoothed_cross_entropy
from equipoise.models import as_predictive, predict
from equipoise.reproduce.studies.options import ReportProgress
from equipoise.results.findings import Findings, Images, Lines, Number, Picture, Series
from equipoise.scores import Estimate, Score, r2, r4
from equipoise.scores.pictures import described

Model = nn.Module | Predictive
Values = Float[np.ndarray, " samples"]

RADII = tuple(range(10, 151, 10))
"""The k of the accuracy-eps curve, in 1/255 (R, Sec. 5.2.2: k in [10, 150])."""
STEPS = (8, 16, 32, 64, 128, 256)
"""The k of the accuracy-steps curve (R, Sec. 5.2.2: k in [8, 256])."""
_STARTS: dict[str, Any] = {"start": Gaussian(0.005), "restarts": 5}  # R, Sec. 5.1: "for all attacks"


def _each(name: str, values: np.ndarray | Tensor, outcomes: bool = False) -> Number:
    """A number with a value per sample; of `outcomes` 1 or 0. NaN where there is no sample."""
    plain = np.asarray(values.cpu() if isinstance(values, Tensor) else values, dtype=np.float64).tolist()
    return Number(name, plain or [float("nan")], unit="samples", percent=outcomes, outcomes=outcomes)


def _right(model: Model, data: Dataset) -> Bool[Tensor, " samples"]:
    """Which test samples are classified correctly."""
    predictive = as_predictive(model)
    parts = zip(data.test.x.split(512), data.test.y.split(512), strict=True)
    return torch.cat([predict(predictive, x).labels == y for x, y in parts])


# R: curves, and search at random.


def accuracy_by_eps(
    models: Sequence[Model], data: Dataset, tell: ReportProgress, *, radii: Sequence[int] = RADII
) -> Findings:
    """Whether each sample withstands PGD with eps = k/255 and k steps of 2/255, for every k, as `k = 10` (R Fig 1)."""
    (model,) = models
    numbers = []
    for i, k in enumerate(radii):
        tell(f"PGD, eps {k}/255", i / len(radii))
        curve = accuracy_against_eps(model, data.test.x, data.test.y, [k], return_point="last", **_STARTS)
        numbers.append(_each(f"k = {k}", curve.correct[0], outcomes=True))
    return Findings(numbers, [])


def accuracy_by_steps(
    models: Sequence[Model],
    data: Dataset,
    tell: ReportProgress,
    *,
    eps: float,
    steps: Sequence[int] = STEPS,
    smoothings: Sequence[float] = (0.0,),
) -> Findings:
    """Whether each sample withstands PGD of k steps of max(1/510, 2 eps/k), for every k, as `k = 8` (R Fig 2).

    The attack climbs the cross-entropy with labels smoothed by each of `smoothings`, and that one counts which leaves
    the fewest samples: with more than one it is R's adaptive attack.
    """
    (model,) = models
    x, y, right = data.test.x, data.test.y, _right(model, data)
    numbers = []
    for i, k in enumerate(steps):
        left = []
        for j, smoothing in enumerate(smoothings):
            tell(f"PGD, {k} steps, smoothing {smoothing:g}", (i + j / len(smoothings)) / len(steps))
            climb = replace(
                pgd(eps, max(1 / 510, 2 * eps / k), k, **_STARTS), objective=smoothed_cross_entropy(smoothing)
            )
            left.append(right & ~climb(model, x, y).success)
        numbers.append(_each(f"k = {k}", min(left, key=lambda one: int(one.sum())), outcomes=True))
    return Findings(numbers, [])


PGD_FAILS, RANDOM_SUCCEEDS = "PGD fails", "PGD fails, random search succeeds"


def behind_pgd(
    models: Sequence[Model], data: Dataset, tell: ReportProgress, *, k: int = 8, steps: int = 10, draws: int = 10_000
) -> Findings:
    """Which samples withstand PGD, and which of them do not withstand points drawn at random (R Table 10)."""
    (model,) = models
    x, y = data.test.x, data.test.y
    tell(f"PGD{steps}-{k}", 0.0)
    stands = _right(model, data) & ~pgd_k(steps, k)(model, x, y).success
    found, rows = torch.zeros_like(stands), stands.nonzero()[:, 0]
    tell(f"{draws} random points around {len(rows)} samples", 0.1)
    if len(rows):
        found[rows] = random_search(k / 255, draws=draws)(model, x[rows], y[rows], index=rows).success
    return Findings([_each(PGD_FAILS, stands, True), _each(RANDOM_SUCCEEDS, found, True)], [])


# R: the Jacobian, and surfaces.


@dataclass(frozen=True)
class _Slopes:
    """What R's Table 4 is made of, per sample."""

    margin: Values
    norm: Values
    withstands: Values
    nonlinearity: Values
    distance: Values

    @property
    def ratio(self) -> Values:
        """The normalised margin; not finite where nothing depends on the input."""
        return np.divide(self.margin, self.norm, out=np.full_like(self.margin, np.nan), where=self.norm > 0)

    @property
    def related(self) -> float:
        """Pearson's correlation of the normalised margin and the distance; NaN where there is none."""
        known = np.isfinite(self.ratio) & np.isfinite(self.distance)
        a, b = self.ratio[known], self.distance[known]
        return correlation(a, b).pearson if len(a) >= 4 and np.ptp(a) > 0 and np.ptp(b) > 0 else float("nan")


def _slopes(model: Model, data: Dataset) -> _Slopes:
    x, y = data.test.x, data.test.y
    near, far = pgd_l2(20, 0.5)(model, x, y), minimal_l2()(model, x, y)
    return _Slopes(
        *(
            value.double().cpu().numpy()
            for value in (
                decision_margin(model, x, y),
                spectral_norm(model, x),
                _right(model, data) & ~near.success,
                nonlinearity(model, x, near.x),
                torch.where(far.success, far.distance, torch.inf),
            )
        )
    )


MARGIN, NORM, RATIO = "margin", "norm of the Jacobian", "normalised margin"
ACCURACY, BENT, RELATED = "accuracy under PGD20-0.5", "non-linearity", "correlation"


def jacobian_analysis(models: Sequence[Model], data: Dataset, tell: ReportProgress) -> Findings:
    """Margin, slope, non-linearity and the distance to misclassification of a network (R Table 4).

    Means over all samples; those whose value is not finite are left out: the non-linearity where the attack did not
    move, the distance where the walk did not arrive.
    """
    (model,) = models
    tell("margins and Jacobians", 0.0)
    found = _slopes(model, data)
    values = {MARGIN: found.margin, NORM: found.norm, RATIO: found.ratio, BENT: found.nonlinearity}
    means = [_each(name, value[np.isfinite(value)]) for name, value in values.items()]
    return Findings([*means, _each(ACCURACY, found.withstands, True), Number(RELATED, [found.related])], [])


UPPER = "non-linearity that 40 % of the samples exceed"
_BINS = 10


def margins_and_distances(
    models: Sequence[Model], data: Dataset, tell: ReportProgress, *, names: Sequence[str], split: str
) -> Findings:
    """How far samples of some normalised margin are from being misclassified, for networks called `names`, and for the
    one called `split` its more and its less linear samples apart (R Fig 4).
    """
    found = {}
    for i, (name, model) in enumerate(zip(names, models, strict=True)):
        tell(f"margins and distances of {name}", i / len(names))
        found[name] = _slopes(model, data)
    own, other = found[split], [name for name in names if name != split][-1]
    known = own.nonlinearity[np.isfinite(own.nonlinearity)]
    threshold = float(np.quantile(known, 0.6)) if len(known) else float("nan")
    bent = own.nonlinearity > threshold
    everything = {name: np.ones(len(one.margin), dtype=bool) for name, one in found.items()}
    panels = [
        _distances("all samples", {name: (found[name], rows) for name, rows in everything.items()}),
        _distances(
            f"{split}, the most bent 40 % apart",
            {
                f"most bent 40 % of {split}": (own, bent),
                f"the rest of {split}": (own, ~bent),
                other: (found[other], everything[other]),
            },
        ),
    ]
    caption = (
        "L2 distance to misclassification against the normalised margin, in tenths of all samples by their margin: "
        "means, and the range from the 10 % to the 90 % quantile (R Fig 4)."
    )
    numbers = [Number(f"{RELATED}, {name}", [one.related]) for name, one in found.items()]
    return Findings([*numbers, Number(UPPER, [threshold])], [Picture("distances", caption, panels, columns=2)])


def _distances(title: str, groups: dict[str, tuple[_Slopes, Bool[np.ndarray, " samples"]]]) -> Lines:
    """The distance in the tenths of all samples together by normalised margin."""
    points = {
        name: np.stack([one.ratio, one.distance])[:, rows & np.isfinite(one.ratio) & np.isfinite(one.distance)]
        for name, (one, rows) in groups.items()
    }
    pooled = np.concatenate([ratio for ratio, _ in points.values()])
    edges = np.unique(np.quantile(pooled, np.linspace(0, 1, _BINS + 1))) if len(pooled) else np.array([0.0, 1.0])
    edges = edges if len(edges) > 1 else edges[0] + np.array([-0.5, 0.5])
    series = []
    for name, (ratio, distance) in points.items():
        place = np.clip(np.searchsorted(edges, ratio, "right") - 1, 0, len(edges) - 2)
        parts = [distance[place == i] for i in range(len(edges) - 1)]
        mean, low, high = (
            np.array([f(part) if len(part) else np.nan for part in parts])
            for f in (np.mean, lambda part: np.quantile(part, 0.1), lambda part: np.quantile(part, 0.9))
        )
        series.append(Series(name, mean, low, high))
    return Lines(title, (edges[1:] + edges[:-1]) / 2, series, "normalised margin", "L2 distance, in pixels of [0, 1]")


def hole(name: str) -> str:
    """The number that says whether the loss falls somewhere along its gradient's sign."""
    return f"{name}: samples with a hole"


def surfaces(
    models: Sequence[Model], data: Dataset, tell: ReportProgress, *, names: Sequence[str], of: str, first: int = 8
) -> Findings:
    """The `loss` or the `margin` around the first test samples, over a plane through each, of networks called `names`
    (R Figs 5, 6).
    """
    few, panels, numbers = data.test[slice(0, first)], [], []
    for i, (name, model) in enumerate(zip(names, models, strict=True)):
        tell(f"surfaces of {name}", i / len(names))
        found = surface(model, few.x, few.y)
        drawn = found.picture(samples=len(few)).panels
        half = drawn[: len(few)] if of == "loss" else drawn[len(few) :]
        panels += [replace(panel, title=f"{name}, {panel.title}") for panel in half]
        numbers.append(_each(hole(name), found.stuck, True))
    caption = (
        f"The {of} around the first test samples, across along the sign of the loss's gradient and up along random "
        "signs, in the units of the input."
    )
    return Findings(numbers, [Picture(f"{of}-surfaces", caption, panels, columns=4)])


# F: scores, the nearest points, corruptions.


def _estimate(score: Score, model: Model, data: Dataset, tell: ReportProgress) -> Estimate:
    return score(
        model, data.test.x, data.test.y, progress=lambda done, of: tell(f"{score.name}: {done} of {of}", done / of)
    )


def nearest_by(name: str) -> str:
    """The number that says whether an attack found the nearest point."""
    return f"nearest by {name}"


def r2_score(models: Sequence[Model], data: Dataset, tell: ReportProgress, *, published: bool = False) -> Findings:
    """`R2`, the distance of every sample to where the prediction changes, by FGSM, PGD and BG moved back to the
    boundary, and whose point was the nearest (F Table 2, Table 5, Fig 4); `published`, with FGSM and PGD in Linf.
    """
    (model,) = models
    attack = published_margin_attack() if published else margin_attack("l2")
    estimate = _estimate(r2(data.shape, attack=attack), model, data, tell)
    found = described({"R2": estimate}, data.classes)
    assert estimate.found is not None
    part = estimate.found.part[estimate.found.success & (estimate.found.distance > 0)]
    won = [_each(nearest_by(name), part == i, True) for i, name in enumerate(attack.names)]
    return replace(found, numbers=[found.numbers[0], *won])


def r4_score(
    models: Sequence[Model],
    data: Dataset,
    tell: ReportProgress,
    *,
    manifold: Manifold,
    samples: int = 200,
    sigma: float = 0.06,
) -> Findings:
    """`R4`, how often a sample is classified as points near it on the manifold are, nearer ones weighing more, with
    the distances of the points as radii (F Tables 4, 5).
    """
    (model,) = models
    score = r4(manifold, data.shape, samples, sigma, radii="distances")
    return described({"R4": _estimate(score, model, data, tell)}, data.classes)


def nearest_examples(
    models: Sequence[Model], data: Dataset, tell: ReportProgress, *, names: Sequence[str], shown: int = 6
) -> Findings:
    """The nearest points that BG finds, moved back to the boundary, for networks called `names` (F Fig 3)."""
    found: dict[str, AttackResult] = {}
    for i, (name, model) in enumerate(zip(names, models, strict=True)):
        tell(f"BG on {name}", i / len(names))
        found[name] = Bisected(bg())(model, data.test.x)
    few = slice(0, shown)
    pixels = torch.stack([data.test.x[few], *(one.x[few] for one in found.values())])
    notes = [[data.classes[label] for label in data.test.y[few].tolist()]]
    notes += [[f"{distance:.2f}" for distance in one.distance[few].tolist()] for one in found.values()]
    rows, columns = ["sample", *names], [""] * pixels.shape[1]
    panel = Images("the nearest points found by BG", pixels.double().cpu().numpy(), rows, columns, notes)
    caption = "Samples, and the nearest points that BG finds to be classified otherwise, with their L2 distance."
    numbers = [_each(f"distance, {name}", one.distance[one.success]) for name, one in found.items()]
    return Findings(numbers, [Picture("nearest", caption, [panel], columns=1)])


AVERAGE = "average"


def corrupted(models: Sequence[Model], data: Dataset, tell: ReportProgress) -> Findings:
    """Whether each sample is classified correctly under each corruption of MNIST-C, and their `average` (F Table 3)."""
    (model,) = models
    right = {}
    for i, name in enumerate(CORRUPTIONS):
        tell(name, i / len(CORRUPTIONS))
        (result,) = on_corruptions(model, data.test.x, data.test.y, Corruptions([name]))
        right[name] = np.asarray(result.correct, dtype=np.float64)
    mean = np.mean(list(right.values()), 0)
    return Findings([*(_each(name, one, True) for name, one in right.items()), _each(AVERAGE, mean)], [])

"""Measurements of trained networks behind the papers' tables and figures that no evaluation and no study makes.

Each is a function of networks, data and options, for `equipoise.reproduce.Measured`.
"""

from collections.abc import Mapping, Sequence
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
from equipoise.models import as_predictive
from equipoise.nets import split as split_at
from equipoise.reproduce.studies.design import ReportProgress, percentage
from equipoise.reproduce.studies.images import band, correct
from equipoise.reproduce.studies.overfitting import largest_drop
from equipoise.reproduce.studies.transfer import probed
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


def per_sample(name: str, values: np.ndarray | Tensor, outcomes: bool = False) -> Number:
    """Return a number with a value per sample, 1 or 0 if these are `outcomes`; NaN if there is no sample."""
    plain = np.asarray(values.cpu() if isinstance(values, Tensor) else values, dtype=np.float64).tolist()
    return Number(name, plain or [float("nan")], unit="samples", percent=outcomes, outcomes=outcomes)


# U and T.

TRANSFER = "transfer accuracy"


def transfer(models: Sequence[Model], data: Dataset, tell: ReportProgress, *, target: Dataset, layer: str) -> Findings:
    """Return whether a linear classifier of the target dataset, trained on the networks' outputs of `layer`, is
    right on each test sample (U Table 4).
    """
    outcomes: list[float] = []
    for i, model in enumerate(models):
        tell(f"{target.name} on the features of {data.name}", i / len(models))
        outcomes += probed(split_at(as_predictive(model).module, layer)[0], target)
    return Findings([Number(TRANSFER, outcomes, unit="samples", percent=True, outcomes=True)], [])


def course(
    models: Sequence[Model],
    data: Dataset,
    tell: ReportProgress,
    *,
    courses: Sequence[Sequence[Mapping[str, float]]],
    strong: str,
) -> Findings:
    """Return validation accuracy over the training, clean, under FGSM and under PGD, which is called `strong`: the mean
    over the trainings and their range (U Fig 13; T Figs 4, 9).
    """
    tests = {"valid_clean": "clean", "valid_fgsm": "FGSM", "valid_pgd": strong}
    values = {name: [[epoch[key] for epoch in epochs] for epochs in courses] for key, name in tests.items()}
    numbers = [percentage(f"{name} accuracy at the end", [c[-1] for c in curves]) for name, curves in values.items()]
    fall = percentage(f"largest fall of {strong} accuracy", [largest_drop(curve) for curve in values[strong]])
    panel = Lines(
        "accuracy over the training",
        np.array([epoch["step"] for epoch in courses[0]], dtype=np.float64),
        [band(name, curves) for name, curves in values.items()],
        "steps of training",
        "accuracy",
    )
    caption = f"Accuracy on validation samples of {data.name}: means of {len(courses)} trainings, and their range."
    return Findings([*numbers, fall], [Picture("course", caption, [panel], columns=1)])


# R: curves, and search at random.


def accuracy_by_eps(
    models: Sequence[Model], data: Dataset, tell: ReportProgress, *, radii: Sequence[int] = RADII
) -> Findings:
    """Return whether each sample withstands PGD with eps k/255 and k steps of 2/255, by k, as `k = 10` (R Fig 1)."""
    (model,) = models
    numbers = []
    for i, k in enumerate(radii):
        tell(f"PGD, eps {k}/255", i / len(radii))
        curve = accuracy_against_eps(model, data.test.x, data.test.y, [k], return_point="last", **_STARTS)
        numbers.append(per_sample(f"k = {k}", curve.correct[0], outcomes=True))
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
    """Return whether each sample withstands PGD of k steps of max(1/510, 2 eps/k), for every k, as `k = 8` (R Fig 2).

    The attack ascends the cross-entropy with labels smoothed by each of `smoothings`; the smoothing under which the
    fewest samples withstand it counts. With more than one it is R's adaptive attack.
    """
    (model,) = models
    x, y, clean = data.test.x, data.test.y, correct(model, data.test)
    numbers = []
    for i, k in enumerate(steps):
        robust = []
        for j, smoothing in enumerate(smoothings):
            tell(f"PGD, {k} steps, smoothing {smoothing:g}", (i + j / len(smoothings)) / len(steps))
            attack = pgd(eps, max(1 / 510, 2 * eps / k), k, return_point="last", **_STARTS)
            attack = replace(attack, objective=smoothed_cross_entropy(smoothing))
            robust.append(clean & ~attack(model, x, y).success)
        numbers.append(per_sample(f"k = {k}", min(robust, key=lambda samples: int(samples.sum())), outcomes=True))
    return Findings(numbers, [])


PGD_FAILS, RANDOM_SUCCEEDS = "PGD fails", "PGD fails, random search succeeds"


def behind_pgd(
    models: Sequence[Model], data: Dataset, tell: ReportProgress, *, k: int = 8, steps: int = 10, draws: int = 10_000
) -> Findings:
    """Return which samples withstand PGD, and which of them do not withstand points drawn at random (R Table 10)."""
    (model,) = models
    x, y = data.test.x, data.test.y
    tell(f"PGD{steps}-{k}", 0.0)
    robust = correct(model, data.test) & ~pgd_k(steps, k)(model, x, y).success
    fooled, index = torch.zeros_like(robust), robust.nonzero()[:, 0]
    tell(f"{draws} random points around {len(index)} samples", 0.1)
    if len(index):
        fooled[index] = random_search(k / 255, draws=draws)(model, x[index], y[index], index=index).success
    return Findings([per_sample(PGD_FAILS, robust, True), per_sample(RANDOM_SUCCEEDS, fooled, True)], [])


# R: the Jacobian, and surfaces.


@dataclass(frozen=True)
class _Slopes:
    """The quantities behind R's Table 4, per sample."""

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
        finite = np.isfinite(self.ratio) & np.isfinite(self.distance)
        a, b = self.ratio[finite], self.distance[finite]
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
                correct(model, data.test) & ~near.success,
                nonlinearity(model, x, near.x),
                torch.where(far.success, far.distance, torch.inf),
            )
        )
    )


MARGIN, NORM, RATIO = "margin", "norm of the Jacobian", "normalised margin"
ACCURACY, BENT, RELATED = "accuracy under PGD20-0.5", "non-linearity", "correlation"


def jacobian_analysis(models: Sequence[Model], data: Dataset, tell: ReportProgress) -> Findings:
    """Return margin, slope, non-linearity and the distance to misclassification of a network (R Table 4).

    Means over all samples; those whose value is not finite are left out: the non-linearity where the attack did not
    move, the distance where the walk did not arrive.
    """
    (model,) = models
    tell("margins and Jacobians", 0.0)
    slopes = _slopes(model, data)
    values = {MARGIN: slopes.margin, NORM: slopes.norm, RATIO: slopes.ratio, BENT: slopes.nonlinearity}
    means = [per_sample(name, value[np.isfinite(value)]) for name, value in values.items()]
    return Findings([*means, per_sample(ACCURACY, slopes.withstands, True), Number(RELATED, [slopes.related])], [])


UPPER = "non-linearity that 40 % of the samples exceed"
_BINS = 10


def margins_and_distances(
    models: Sequence[Model], data: Dataset, tell: ReportProgress, *, names: Sequence[str], split: str
) -> Findings:
    """Return the distance to misclassification against the normalised margin, for networks called `names`, and for the
    network called `split` separately for its more and its less linear samples (R Fig 4).
    """
    slopes = {}
    for i, (name, model) in enumerate(zip(names, models, strict=True)):
        tell(f"margins and distances of {name}", i / len(names))
        slopes[name] = _slopes(model, data)
    own, other = slopes[split], [name for name in names if name != split][-1]
    finite = own.nonlinearity[np.isfinite(own.nonlinearity)]
    threshold = float(np.quantile(finite, 0.6)) if len(finite) else float("nan")
    bent = own.nonlinearity > threshold
    everything = {name: (network, np.ones_like(network.margin, dtype=bool)) for name, network in slopes.items()}
    panels = [
        _distances("all samples", everything),
        _distances(
            f"{split}, the most bent 40 % apart",
            {
                f"most bent 40 % of {split}": (own, bent),
                f"the rest of {split}": (own, ~bent),
                other: everything[other],
            },
        ),
    ]
    caption = (
        "L2 distance to misclassification against the normalised margin, in tenths of all samples by their margin: "
        "means, and the range from the 10 % to the 90 % quantile (R Fig 4)."
    )
    numbers = [Number(f"{RELATED}, {name}", [network.related]) for name, network in slopes.items()]
    return Findings([*numbers, Number(UPPER, [threshold])], [Picture("distances", caption, panels, columns=2)])


def _distances(title: str, groups: dict[str, tuple[_Slopes, Bool[np.ndarray, " samples"]]]) -> Lines:
    """The distance in the tenths of all samples together by normalised margin."""
    points = {
        name: np.stack([s.ratio, s.distance])[:, samples & np.isfinite(s.ratio) & np.isfinite(s.distance)]
        for name, (s, samples) in groups.items()
    }
    pooled = np.concatenate([ratio for ratio, _ in points.values()])
    edges = np.unique(np.quantile(pooled, np.linspace(0, 1, _BINS + 1))) if len(pooled) else np.array([0.0, 1.0])
    edges = edges if len(edges) > 1 else edges[0] + np.array([-0.5, 0.5])
    series = []
    for name, (ratio, distance) in points.items():
        tenth = np.clip(np.searchsorted(edges, ratio, "right") - 1, 0, len(edges) - 2)
        tenths = [distance[tenth == i] for i in range(len(edges) - 1)]
        mean, low, high = (
            np.array([f(distances) if len(distances) else np.nan for distances in tenths])
            for f in (np.mean, lambda values: np.quantile(values, 0.1), lambda values: np.quantile(values, 0.9))
        )
        series.append(Series(name, mean, low, high))
    return Lines(title, (edges[1:] + edges[:-1]) / 2, series, "normalised margin", "L2 distance, in pixels of [0, 1]")


def hole(name: str) -> str:
    """Return the name of the number that says whether the loss falls somewhere along its gradient's sign."""
    return f"{name}: samples with a hole"


def surfaces(
    models: Sequence[Model], data: Dataset, tell: ReportProgress, *, names: Sequence[str], of: str, first: int = 8
) -> Findings:
    """Return the `loss` or the `margin` around the first test samples, over a plane through each, of networks called
    `names` (R Figs 5, 6).
    """
    few, panels, numbers = data.test[slice(0, first)], [], []
    for i, (name, model) in enumerate(zip(names, models, strict=True)):
        tell(f"surfaces of {name}", i / len(names))
        measured = surface(model, few.x, few.y)
        drawn = measured.picture(samples=len(few)).panels
        half = drawn[: len(few)] if of == "loss" else drawn[len(few) :]
        panels += [replace(panel, title=f"{name}, {panel.title}") for panel in half]
        numbers.append(per_sample(hole(name), measured.stuck, True))
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
    """Return the name of the number that says whether an attack found the nearest point."""
    return f"nearest by {name}"


def r2_score(models: Sequence[Model], data: Dataset, tell: ReportProgress, *, published: bool = False) -> Findings:
    """Return `R2`, the distance of every sample to where the prediction changes, by FGSM, PGD and BG moved back to the
    boundary, and whose point was the nearest (F Table 2, Table 5, Fig 4); `published`, with FGSM and PGD in Linf.
    """
    (model,) = models
    attack = published_margin_attack() if published else margin_attack("l2")
    estimate = _estimate(r2(data.shape, attack=attack), model, data, tell)
    findings = described({"R2": estimate}, data.classes)
    assert estimate.found is not None
    nearest = estimate.found.part[estimate.found.success & (estimate.found.distance > 0)]
    shares = [per_sample(nearest_by(name), nearest == i, True) for i, name in enumerate(attack.names)]
    return replace(findings, numbers=[findings.numbers[0], *shares])


def r4_score(
    models: Sequence[Model],
    data: Dataset,
    tell: ReportProgress,
    *,
    manifold: Manifold,
    samples: int = 200,
    sigma: float = 0.06,
) -> Findings:
    """Return `R4`, how often a sample is classified as points near it on the manifold are, nearer ones weighing more,
    with the distances of the points as radii (F Tables 4, 5).
    """
    (model,) = models
    score = r4(manifold, data.shape, samples, sigma, radii="distances")
    return described({"R4": _estimate(score, model, data, tell)}, data.classes)


def nearest_examples(
    models: Sequence[Model], data: Dataset, tell: ReportProgress, *, names: Sequence[str], shown: int = 6
) -> Findings:
    """Return the nearest points that BG finds, moved back to the boundary, for networks called `names` (F Fig 3)."""
    results: dict[str, AttackResult] = {}
    for i, (name, model) in enumerate(zip(names, models, strict=True)):
        tell(f"BG on {name}", i / len(names))
        results[name] = Bisected(bg())(model, data.test.x)
    few = slice(0, shown)
    pixels = torch.stack([data.test.x[few], *(result.x[few] for result in results.values())])
    notes = [[data.classes[label] for label in data.test.y[few].tolist()]]
    notes += [[f"{distance:.2f}" for distance in result.distance[few].tolist()] for result in results.values()]
    columns = [""] * pixels.shape[1]
    panel = Images("the nearest points found by BG", pixels.double().cpu().numpy(), ["sample", *names], columns, notes)
    caption = "Samples, and the nearest points that BG finds to be classified otherwise, with their L2 distance."
    numbers = [per_sample(f"distance, {name}", result.distance[result.success]) for name, result in results.items()]
    return Findings(numbers, [Picture("nearest", caption, [panel], columns=1)])


AVERAGE = "average"


def corrupted(models: Sequence[Model], data: Dataset, tell: ReportProgress) -> Findings:
    """Return whether each sample is classified correctly under each corruption of MNIST-C, and the mean (F Table 3)."""
    (model,) = models
    outcomes = {}
    for i, name in enumerate(CORRUPTIONS):
        tell(name, i / len(CORRUPTIONS))
        (result,) = on_corruptions(model, data.test.x, data.test.y, Corruptions([name]))
        outcomes[name] = np.asarray(result.correct, dtype=np.float64)
    mean = np.mean(list(outcomes.values()), 0)
    return Findings(
        [*(per_sample(name, values, True) for name, values in outcomes.items()), per_sample(AVERAGE, mean)], []
    )

"""Measurements of trained networks that put claims of the papers to the test which no table of theirs tests.

Each is a function of networks, data and options, for `equipoise.reproduce.MeasureTask`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from equipoise.attacks import AttackLike, autoattack, bg, nearest, pgd
from equipoise.attacks.minimum_norm.bisection import Bisected
from equipoise.certified import certified_radius
from equipoise.core.types import Predictive
from equipoise.data import Dataset
from equipoise.diagnostics.calibration import calibration, ood_auroc
from equipoise.diagnostics.jacobian import correlation
from equipoise.generators import Manifold
from equipoise.models import Single
from equipoise.reproduce.measures import Model, per_sample
from equipoise.reproduce.studies.design import ReportProgress
from equipoise.reproduce.studies.images import correct
from equipoise.reproduce.studies.opposite_class import nearest_of_another_class
from equipoise.results.findings import Findings, Number
from equipoise.scores import label_aware, on_manifold, r1, r2
from equipoise.scores.instances import diameter

LINF, L2, CERTIFIED = "Linf distance", "L2 distance", "certified Linf distance"


def margins(models: Sequence[Model], data: Dataset, tell: ReportProgress, *, certified: int = 100) -> Findings:
    """Return the distance of every test sample to the boundary: that of the nearest point of several attacks, which is
    an upper bound, and of the first `certified` samples a certified lower bound of the Linf distance. Misclassified
    samples have distance 0, those of which no attack finds a misclassified point the diameter of the box.
    """
    (model,) = models
    x, y, right = data.test.x, data.test.y, correct(model, data.test)
    numbers = []
    for i, (name, norm) in enumerate(((LINF, "linf"), (L2, "l2"))):
        tell(f"nearest points in {norm}", i / 3)
        found = nearest(norm)(model, x, y)
        distance = torch.where(found.success, found.distance, diameter(data.shape, norm))
        numbers.append(per_sample(name, torch.where(right, distance, 0.0)))
    tell("certificates", 2 / 3)
    radii = certified_radius(model, x[:certified], y[:certified], "linf", method="crown-ibp")
    return Findings([*numbers, per_sample(CERTIFIED, radii)], [])


FOLLOWS = "rank correlation of a move and the distance to another class"
_FOLDS = 10


def moves(
    models: Sequence[Model], data: Dataset, tell: ReportProgress, *, attack: AttackLike, samples: int = 2000
) -> Findings:
    """Return Spearman's correlation, over training samples, of how far a perturbation moves a sample and how far the
    nearest training sample of another class is, both in L2: one value for each of ten parts of the samples (U, Sec. 3).
    """
    (model,) = models
    tell("distances to another class", 0.0)
    gaps = nearest_of_another_class(data.train.x.flatten(1), data.train.y, "l2").numpy()
    x, y = data.train.x[:samples], data.train.y[:samples]
    tell("perturbations", 0.5)
    moved = (attack(model, x, y).x - x).flatten(1).norm(dim=1).double().cpu().numpy()
    parts = np.array_split(np.arange(len(x)), _FOLDS)
    return Findings([Number(FOLLOWS, [correlation(gaps[part], moved[part]).spearman for part in parts], "parts")], [])


ECE, NLL, ATTACKED_ECE, ATTACKED_NLL = "ECE", "NLL", "ECE, attacked", "NLL, attacked"
AUROC, ATTACKED_AUROC = "AUROC", "AUROC, attacked"


def uncertainties(
    models: Sequence[Model], data: Dataset, tell: ReportProgress, *, target: Dataset, eps: float, steps: int = 40
) -> Findings:
    """Return calibration errors and negative log-likelihoods, clean and under PGD, and how well the entropy tells test
    samples, clean and attacked, from those of another dataset.
    """
    (model,) = models
    x, y = data.test.x, data.test.y
    tell("PGD", 0.0)
    attacked = pgd(eps, steps=steps, return_point="last")(model, x, y).x
    numbers = []
    for i, (points, ece, nll, auroc) in enumerate(
        ((x, ECE, NLL, AUROC), (attacked, ATTACKED_ECE, ATTACKED_NLL, ATTACKED_AUROC))
    ):
        tell("calibration", (1 + i) / 3)
        found = calibration(model, points, y)
        likelihood = Number(nll, found.nll.values, "samples")
        area = ood_auroc(model, points, target.test.x[: len(x)])
        numbers += [Number(ece, [found.ece.value]), likelihood, Number(auroc, [area.value])]
    return Findings(numbers, [])


CHOSEN = "eps of training that validation selects"
SELECTED = "robust accuracy at the selected eps"
BEST = "robust accuracy at the best eps in hindsight"


def selected(
    models: Sequence[Model],
    data: Dataset,
    tell: ReportProgress,
    *,
    courses: Sequence[Sequence[Mapping[str, float]]],
    radii: Sequence[float],
    eps: float,
) -> Findings:
    """Return which of several networks, trained with these `radii`, has the highest accuracy under PGD on validation
    samples at the end of training, and which test samples withstand AutoAttack on it and on the best of them.
    """
    robust: list[Bool[Tensor, " samples"]] = []
    for i, (model, radius) in enumerate(zip(models, radii, strict=True)):
        tell(f"AutoAttack on eps {radius:g}", i / len(radii))
        robust.append(~autoattack(eps)(model, data.test.x, data.test.y).success & correct(model, data.test))
    chosen = int(np.argmax([course[-1]["valid_pgd"] for course in courses]))
    best = max(range(len(radii)), key=lambda i: int(robust[i].sum()))
    return Findings(
        [
            Number(CHOSEN, [radii[chosen]]),
            per_sample(SELECTED, robust[chosen], True),
            per_sample(BEST, robust[best], True),
        ],
        [],
    )


def scaled_by(factor: float) -> str:
    """Return the name of the accuracy with logits of `factor` times their size."""
    return f"logits x {factor:g}"


def rescaled(
    models: Sequence[Model],
    data: Dataset,
    tell: ReportProgress,
    *,
    eps: float,
    step_size: float,
    steps: int,
    factors: Sequence[float] = (0.1, 1.0, 10.0, 100.0),
) -> Findings:
    """Return which test samples withstand PGD on the cross-entropy of logits that are multiplied by each of `factors`:
    accuracy that depends on the factor is a scale of logits, not robustness.
    """
    (model,) = models
    numbers = []
    for i, factor in enumerate(factors):
        tell(scaled_by(factor), i / len(factors))
        other = Single(_Scaled(_module(model), factor))
        survived = ~pgd(eps, step_size, steps)(other, data.test.x, data.test.y).success & correct(other, data.test)
        numbers.append(per_sample(scaled_by(factor), survived, True))
    return Findings(numbers, [])


class _Scaled(nn.Module):
    """A network whose logits are multiplied by a factor."""

    def __init__(self, module: nn.Module, factor: float) -> None:
        super().__init__()
        self.module, self.factor = module, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.module(x)


def _module(model: Model) -> nn.Module:
    return model.module if isinstance(model, Predictive) else model


def scores(
    models: Sequence[Model], data: Dataset, tell: ReportProgress, *, manifold: Manifold, box_points: int = 500
) -> Findings:
    """Return the scores of F that none of its tables shows: R1 of points of the box, R2 by the nearest of several
    attacks and by BG alone, R2 that counts misclassified samples as 0, and the worst case on the manifold.
    """
    (model,) = models
    shape, x, y = data.shape, data.test.x, data.test.y
    named = {
        "R1": (r1(shape), x[:box_points], None),
        "R2": (r2(shape), x, None),
        "R2 by BG alone": (r2(shape, attack=Bisected(bg())), x, None),
        "label-aware R2": (label_aware(shape), x, y),
        "on-manifold worst case": (on_manifold(manifold, shape), x, None),
    }
    numbers = []
    for i, (name, (score, points, labels)) in enumerate(named.items()):
        tell(name, i / len(named))
        numbers.append(per_sample(name, score(model, points, labels).values))
    return Findings(numbers, [])

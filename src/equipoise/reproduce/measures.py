"""What figures and tables of U and T show of trained networks that no evaluation and no study does."""

from collections.abc import Mapping, Sequence

import numpy as np

from equipoise.data import Dataset
from equipoise.models import as_predictive
from equipoise.nets import split
from equipoise.reproduce.studies.images import band
from equipoise.reproduce.studies.options import ReportProgress
from equipoise.reproduce.studies.overfitting import largest_drop
from equipoise.reproduce.studies.transfer import probed
from equipoise.results.findings import Findings, Lines, Number, Picture

TRANSFER = "transfer accuracy"


def transfer(models: Sequence, data: Dataset, tell: ReportProgress, *, target: Dataset, layer: str) -> Findings:
    """Whether a linear classifier of the target dataset, trained on the networks' outputs of `layer`, is right on each
    test sample (U Table 4).
    """
    right: list[float] = []
    for i, model in enumerate(models):
        tell(f"{target.name} on the features of {data.name}", i / len(models))
        right += probed(split(as_predictive(model).module, layer)[0], target)
    return Findings([Number(TRANSFER, right, unit="samples", percent=True, outcomes=True)], [])


def course(
    models: Sequence,
    data: Dataset,
    tell: ReportProgress,
    *,
    courses: Sequence[Sequence[Mapping[str, float]]],
    strong: str,
) -> Findings:
    """Validation accuracy over the training, clean, under FGSM and under PGD, which is called `strong`: the mean over
    the trainings and their range (U Fig 13; T Figs 4, 9).
    """
    tests = {"valid_clean": "clean", "valid_fgsm": "FGSM", "valid_pgd": strong}
    values = {name: [[epoch[key] for epoch in one] for one in courses] for key, name in tests.items()}
    numbers = [Number(f"{name} accuracy at the end", [c[-1] for c in of], percent=True) for name, of in values.items()]
    fall = Number(f"largest fall of {strong} accuracy", [largest_drop(c) for c in values[strong]], percent=True)
    panel = Lines(
        "accuracy over the training",
        np.array([epoch["step"] for epoch in courses[0]], dtype=np.float64),
        [band(name, of) for name, of in values.items()],
        "steps of training",
        "accuracy",
    )
    caption = f"Accuracy on validation samples of {data.name}: means of {len(courses)} trainings, and their range."
    return Findings([*numbers, fall], [Picture("course", caption, [panel], columns=1)])

"""T Fig 5: attacks on a Gaussian process on deep features."""

from equipoise.reproduce.experiment import Experiment, Part, Shown, Variant
from equipoise.reproduce.recipes import PLANE_NOTES
from equipoise.reproduce.tasks import Studied


def _parts(variant: Variant) -> list[Part]:
    return [
        Shown("Gaussian process", Studied("due")),
    ]


experiment = Experiment(
    "uta-figure-5",
    "PGD and UTA attacks on a deep-kernel Gaussian process trained on clean points",
    "T Fig 5",
    _parts,
    notes=PLANE_NOTES + " The study shows T Fig 6 as well.",
)

"""U Fig 10: perturbations of a Gaussian process on deep features."""

from equipoise.reproduce.experiment import Experiment, Part, Shown, Variant
from equipoise.reproduce.recipes import PLANE_NOTES
from equipoise.reproduce.tasks import Studied


def _parts(variant: Variant) -> list[Part]:
    return [
        Shown("Gaussian process", Studied("due")),
    ]


experiment = Experiment(
    "udp-figure-10",
    "PGD and UDP perturbations of a deep-kernel Gaussian process trained on clean points",
    "U Fig 10",
    _parts,
    notes=PLANE_NOTES + " The study shows U Fig 11 as well.",
)

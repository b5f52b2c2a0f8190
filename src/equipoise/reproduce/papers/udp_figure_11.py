"""U Fig 11: a Gaussian process on deep features, trained with perturbations."""

from equipoise.reproduce.experiment import Experiment, Part, Shown, Variant
from equipoise.reproduce.recipes import PLANE_NOTES
from equipoise.reproduce.tasks import Studied


def _parts(variant: Variant) -> list[Part]:
    return [
        Shown("Gaussian process", Studied("due")),
    ]


experiment = Experiment(
    "udp-figure-11",
    "A deep-kernel Gaussian process trained by PGD and by UDP",
    "U Fig 11",
    _parts,
    notes=PLANE_NOTES + " The study shows U Fig 10 as well, and a controlled run with steps of .02.",
)

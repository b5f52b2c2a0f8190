"""T Fig 6: a Gaussian process on deep features, trained with perturbations."""

from equipoise.reproduce.experiment import Experiment, Part, Shown, Variant
from equipoise.reproduce.recipes import PLANE_NOTES
from equipoise.reproduce.tasks import Studied


def _parts(variant: Variant) -> list[Part]:
    return [
        Shown("Gaussian process", Studied("due")),
    ]


experiment = Experiment(
    "uta-figure-6",
    "A deep-kernel Gaussian process trained by PGD and by UTA",
    "T Fig 6",
    _parts,
    notes=PLANE_NOTES
    + " The study draws the number of steps of the uncertain training (as U), where T takes all. It shows "
    "Fig 5 too, and a controlled run with steps of .02.",
)

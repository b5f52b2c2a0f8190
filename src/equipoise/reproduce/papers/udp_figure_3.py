"""U Fig 3: decision regions on two sets of points in the plane."""

from equipoise.reproduce.experiment import Experiment, Part, Shown, Variant
from equipoise.reproduce.recipes import PLANE_NOTES
from equipoise.reproduce.tasks import Studied


def _parts(variant: Variant) -> list[Part]:
    return [
        Shown("Narrow Corridor", Studied("narrow-corridor")),
        Shown("LMS-5", Studied("lms5")),
    ]


experiment = Experiment(
    "udp-figure-3",
    "Decision regions of standard, PGD, TRADES and UDP training on the Narrow Corridor and on LMS-5",
    "U Fig 3",
    _parts,
    notes=PLANE_NOTES
    + " U does not print the eps of this figure: on the Narrow Corridor PGD and TRADES have the narrowest gap and UDP "
    "twice that, and each its best one too; on LMS-5 PGD and TRADES have the largest that keeps the classes apart, "
    "half of the Linf gap of the supports, and UDP twice that.",
)

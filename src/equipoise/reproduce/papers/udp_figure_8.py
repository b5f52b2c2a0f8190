"""U Fig 8: two classes at two distances, PGD and UDP."""

from equipoise.reproduce.experiment import Experiment, Part, Shown, Variant
from equipoise.reproduce.recipes import PLANE_NOTES
from equipoise.reproduce.tasks import Studied


def _parts(variant: Variant) -> list[Part]:
    return [
        Shown("Two distances", Studied("two-distance")),
    ]


experiment = Experiment(
    "udp-figure-8",
    "PGD and UDP with an eps too large for one place and not for another: attacks, training, changes of prediction",
    "U Fig 8",
    _parts,
    notes=PLANE_NOTES + " U does not print the eps: .8 for the attacks, .4 for the training.",
)

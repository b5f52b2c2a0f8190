"""T Fig 1: two classes at two distances, PGD and UTA."""

from equipoise.reproduce.experiment import Experiment, Part, Shown, Variant
from equipoise.reproduce.recipes import PLANE_NOTES
from equipoise.reproduce.tasks import Studied


def _parts(variant: Variant) -> list[Part]:
    return [
        Shown("Two distances", Studied("two-distance")),
    ]


experiment = Experiment(
    "uta-figure-1",
    "PGD and UTA with an eps too large for one place and not for another: attacks, training, changes of prediction",
    "T Fig 1",
    _parts,
    notes=PLANE_NOTES
    + " T does not print the eps: .8 for the attacks, .4 for the training, where the uncertain method draws its number "
    "of steps (U's UDP).",
)

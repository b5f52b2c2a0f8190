"""U Fig 9: decision regions on the Narrow Corridor, by eps."""

from equipoise.reproduce.experiment import Experiment, Part, Shown, Variant
from equipoise.reproduce.recipes import PLANE_NOTES
from equipoise.reproduce.tasks import Studied


def _parts(variant: Variant) -> list[Part]:
    return [
        Shown("Narrow Corridor", Studied("narrow-corridor")),
    ]


experiment = Experiment(
    "udp-figure-9",
    "Decision regions on the Narrow Corridor for eps .05, .15, .25, .35, .45",
    "U Fig 9",
    _parts,
    notes=PLANE_NOTES,
)

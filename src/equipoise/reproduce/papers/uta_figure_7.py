"""T Fig 7: two classes at two distances, TRADES."""

from equipoise.reproduce.experiment import Experiment, Part, Shown, Variant
from equipoise.reproduce.recipes import PLANE_NOTES
from equipoise.reproduce.tasks import Studied


def _parts(variant: Variant) -> list[Part]:
    return [
        Shown("Two distances", Studied("two-distance")),
    ]


experiment = Experiment(
    "uta-figure-7",
    "TRADES with an eps too large for one place and not for another",
    "T Fig 7",
    _parts,
    notes=PLANE_NOTES + " The weight of TRADES is 1, as in T. The study shows T Fig 1 as well.",
)

"""F Figure 3: the nearest points that BG finds, of three trainings."""

from equipoise.reproduce import measures_rf as measures
from equipoise.reproduce.experiment import Experiment, Part, Shown, Variant
from equipoise.reproduce.framework import METHODS, NAMES, NOTES, QUIRKS, training
from equipoise.reproduce.tasks import Measured, call

_ORDER = METHODS[::-1]  # the paper's, from left to right


def _parts(variant: Variant) -> list[Part]:
    return [
        Shown(
            f"The nearest points found by BG, {name} (F Fig 3)",
            Measured(
                call(measures.nearest_examples, names=_ORDER),
                [training(method, data, 0, variant) for method in _ORDER],
                "What do the nearest points look like that are classified otherwise?",
                "last",
                100,
            ),
        )
        for name, data in NAMES.items()
    ]


experiment = Experiment(
    "framework-figure-3",
    "The nearest points that BG finds to be classified otherwise, with their distance",
    "F Fig 3",
    _parts,
    QUIRKS,
    NOTES + " F shows one sample, without its dataset in words; here are six of each. Points are moved back to the "
    "boundary.",
)

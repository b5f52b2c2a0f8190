"""T Fig 12: MNIST, PGD and UTA with an ensemble of five, clean and under PGD."""

from equipoise.reproduce.experiment import Experiment, Part, Variant
from equipoise.reproduce.recipes import T_CHARTS_NOTES, T_NOTES, T_QUIRKS, t_input_charts


def _parts(variant: Variant) -> list[Part]:
    return t_input_charts("mnist", variant, members=5)


experiment = Experiment(
    "uta-figure-12",
    "MNIST: clean accuracy and that under PGD-10, of PGD and of UTA with an ensemble of five",
    "T Fig 12",
    _parts,
    quirks=T_QUIRKS,
    notes=T_NOTES + T_CHARTS_NOTES,
)

"""T Fig 10: Fashion-MNIST, PGD and UTA with one model, clean and under PGD."""

from equipoise.reproduce.experiment import Experiment, Part, Variant
from equipoise.reproduce.recipes import T_CHARTS_NOTES, T_NOTES, t_input_charts


def _parts(variant: Variant) -> list[Part]:
    return t_input_charts("fashion-mnist", variant, members=1)


experiment = Experiment(
    "uta-figure-10",
    "Fashion-MNIST: clean accuracy and that under PGD-10, of PGD and of UTA with one model",
    "T Fig 10",
    _parts,
    notes=T_NOTES + T_CHARTS_NOTES,
)

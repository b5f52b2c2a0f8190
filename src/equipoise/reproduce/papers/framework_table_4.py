"""F Table 4: training for R4 and on-manifold adversarial training on Fashion-MNIST."""

from equipoise.reproduce.experiment import Cell, Experiment, Part, Table, Variant, clean, number
from equipoise.reproduce.framework import NOTES, ON_MANIFOLD, evaluated, with_r4

_DATA = "fashion-mnist"
_PAPER = {"STUTZ": ("STUTZ", 92.11, 0.280), "Ours": ("R4", 94.04, 0.286)}


def _parts(variant: Variant) -> list[Part]:
    cells = []
    for row, (name, accuracy, score) in _PAPER.items():
        cells.append(Cell(row, "accuracy in %", evaluated(name, _DATA, "corrected"), clean, accuracy, 0.005))
        cells.append(Cell(row, "R4", with_r4(name, _DATA, "corrected"), number("R4"), score, 0.0005, scale=1.0))
    return [Table("Accuracy and R4 on F-MNIST (F Table 4)", cells, unit="")]


experiment = Experiment(
    "framework-table-4",
    "Fashion-MNIST: training for R4 against on-manifold adversarial training",
    "F Table 4",
    _parts,
    notes=NOTES + ON_MANIFOLD,
)

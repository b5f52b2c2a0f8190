"""F Table 1: clean accuracy of three trainings on four datasets."""

from equipoise.reproduce.experiment import Cell, Experiment, Part, Table, Variant, clean
from equipoise.reproduce.framework import NAMES, NOTES, QUIRKS, evaluated
from equipoise.reproduce.printed import printed

_PAPER = """
          No_Reg.   HEIN   Ours
MNIST       99.45  98.98  98.74
CIFAR-10    92.16  90.44  89.96
SVHN        93.30  93.11  92.87
F-MNIST     93.72  93.30  93.29
"""


def _parts(variant: Variant) -> list[Part]:
    cells = [
        Cell(row, name, evaluated(name, NAMES[row], variant), clean, paper, deviation)
        for row, name, paper, deviation in printed(_PAPER)
    ]
    return [Table("Accuracy (F Table 1)", cells, corner="data")]


experiment = Experiment(
    "framework-table-1",
    "Clean accuracy without regularisation, with HEIN and with training for R2",
    "F Table 1",
    _parts,
    QUIRKS,
    NOTES,
)

"""F Table 2: which attack finds the nearest point that is classified otherwise."""

from equipoise.reproduce import measures_rf as measures
from equipoise.reproduce.experiment import Cell, Experiment, Part, Table, Variant, number
from equipoise.reproduce.framework import NAMES, NOTES, QUIRKS, SCORE_QUIRKS, SCORED, with_r2
from equipoise.reproduce.printed import printed

_PAPER = """
         No_Reg.,_BG No_Reg.,_FGSM No_Reg.,_PGD HEIN,_BG HEIN,_FGSM HEIN,_PGD Ours,_BG Ours,_FGSM Ours,_PGD
MNIST          98.32          0.53         1.15    85.11       0.95     13.94    25.65       1.21     73.14
CIFAR-10       94.50          3.85         1.65    91.58       6.50      1.92    90.89       6.49      2.62
SVHN           94.26          2.76         2.98    93.73       3.93      2.34    93.75       3.05      3.20
F-MNIST        94.09          3.05         2.86    93.54       3.60      2.86    89.22       2.91      7.87
"""


def _parts(variant: Variant) -> list[Part]:
    cells = []
    for row, column, paper, deviation in printed(_PAPER):
        name, attack = column.split(", ")
        read = number(measures.nearest_by(attack.lower()))
        cells.append(Cell(row, column, with_r2(name, NAMES[row], variant), read, paper, deviation))
    return [Table("Samples of which each attack found the nearest point (F Table 2)", cells, corner="data")]


experiment = Experiment(
    "framework-table-2",
    "Which of BG, FGSM and PGD finds the nearest point that is classified otherwise",
    "F Table 2",
    _parts,
    QUIRKS + SCORE_QUIRKS,
    NOTES + " F says training examples with the table, and test set in Sec. 5: here it is the test set." + SCORED,
)

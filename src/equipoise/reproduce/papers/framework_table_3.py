"""F Table 3: accuracy on the corruptions of MNIST-C."""

from equipoise.reproduce import measures_rf as measures
from equipoise.reproduce.experiment import Cell, Experiment, Part, Table, Variant, number
from equipoise.reproduce.framework import METHODS, NOTES, QUIRKS, SEEDS, training
from equipoise.reproduce.printed import printed
from equipoise.reproduce.tasks import TEST_SIZES, Measured, call

_PAPER = """
               No_Reg.   HEIN   Ours
brightness       45.87  78.74  61.57
canny edges      60.91  57.86  78.28
dotted line      96.20  93.59  97.46
fog              29.03  49.97  56.17
glass blur       85.56  90.86  85.12
impulse noise    71.26  78.13  87.12
motion blur      95.74  92.72  95.42
rotate           94.93  91.61  90.74
scale            96.37  95.19  92.73
shear            97.96  97.22  95.78
shot noise       97.98  97.90  97.58
spatter          97.87  96.96  96.82
stripe           90.81  89.51  81.72
translate        66.87  64.49  45.69
zigzag           86.34  86.64  89.57
average          80.91  84.09  83.45
"""


def _parts(variant: Variant) -> list[Part]:
    tasks = {
        name: [
            Measured(
                call(measures.corrupted),
                [training(name, "mnist", seed, variant)],
                "Which corruptions does a network stand that has not seen them?",
                "last",
                TEST_SIZES["mnist"],
            )
            for seed in SEEDS
        ]
        for name in METHODS
    }
    cells = [
        Cell(row, name, tasks[name], number(row.replace(" ", "_")), paper, deviation)
        for row, name, paper, deviation in printed(_PAPER)
    ]
    return [Table("Accuracy on MNIST-C (F Table 3)", cells, corner="corruption")]


experiment = Experiment(
    "framework-table-3",
    "Accuracy on the 15 corruptions of MNIST-C",
    "F Table 3",
    _parts,
    QUIRKS,
    NOTES + " The corrupted images are made here, as MNIST-C's were.",
)

"""R Table 10: search at random where PGD failed, on CIFAR-10."""

from equipoise.reproduce import measures_rf as measures
from equipoise.reproduce.experiment import Cell, Experiment, Part, Table, Variant, number
from equipoise.reproduce.rethinking import SEEDS, TRAINED, training
from equipoise.reproduce.tasks import Measured, call

# Of 1,000 images: those that PGD does not fool, and those of them that a random point does.
_PAPER = {"EntM": (368, 20), "ADP": (289, 12), "LS": (487, 70), "PAT": (493, 0), "PAT-EntM": (None, 0)}
_QUESTION = "Do random points fool networks that gradients do not?"


def _parts(variant: Variant) -> list[Part]:
    tasks = {
        name: [
            Measured(call(measures.behind_pgd), [training(name, "cifar10", seed)], _QUESTION, "last", 1000)
            for seed in SEEDS
        ]
        for name in _PAPER
    }
    cells = [
        Cell(row, name, tasks[name], number(row), paper, 0.5, scale=1000.0)
        for place, row in enumerate((measures.PGD_FAILS, measures.RANDOM_SUCCEEDS))
        for name, paper in ((name, of[place]) for name, of in _PAPER.items())
    ]
    return [Table("Images of 1,000 (R Table 10)", cells, corner="", unit="of 1,000")]


experiment = Experiment(
    "rethinking-table-10",
    "CIFAR-10: search at random where PGD failed",
    "R Table 10",
    _parts,
    notes=TRAINED
    + "R's PGD8 is read as PGD10-8, whose accuracies in R Table 1 are about these shares. That nothing is found for "
    "PAT-EntM is said in the text, App. C.1. The 10,000 points are uniform on the ball.",
)

"""R Table 4: margins, Jacobians and non-linearity of networks with and without EntM, on CIFAR-10."""

from equipoise.reproduce import measures_rf as measures
from equipoise.reproduce.experiment import Cell, Experiment, Part, Table, Variant, number
from equipoise.reproduce.printed import printed
from equipoise.reproduce.rethinking import SEEDS, TRAINED, training
from equipoise.reproduce.tasks import Measured, call

_PAPER = """
                            Normal    EntM     PAT PAT-EntM
margin                       10.55  1.3054    6.12     1.12
norm of the Jacobian         72.26    3.44   10.69     0.84
normalised margin           0.1919  2.8132  0.6398   2.9913
accuracy under PGD20-0.5    0.0029   0.166  0.5909   0.6142
non-linearity                  4.4   52.51    4.59     5.36
correlation                 0.8327  0.4794  0.8216   0.8131
"""
_QUESTION = "Are margins large because outputs change slowly, and are they linear enough for that to matter?"


def _measured(name: str) -> list[Measured]:
    return [
        Measured(call(measures.jacobian_analysis), [training(name, "cifar10", seed)], _QUESTION, "last", 2000)
        for seed in SEEDS
    ]


def _parts(variant: Variant) -> list[Part]:
    cells = [
        Cell(row, name, _measured(name), number(row), paper, deviation, scale=1.0)
        for row, name, paper, deviation in printed(_PAPER)
    ]
    return [Table("Margin, Jacobian and non-linearity (R Table 4)", cells, corner="mean of", unit="")]


experiment = Experiment(
    "rethinking-table-4",
    "CIFAR-10: margins, norms of the Jacobian and non-linearity, with and without entropy maximisation",
    "R Table 4",
    _parts,
    notes=TRAINED
    + "Means are over 2,000 test samples, wrongly classified ones included. The step of PGD20-0.5 is eps/10 as in R's "
    "other attacks, and its points are those at which the non-linearity is taken. The L2 attack without a radius takes "
    "normalised steps of .02, at most 500, and its point is moved back to the boundary by bisection; R says none of "
    "this.",
)

"""U Fig 5: clean accuracy on Fashion-MNIST, against the width of the network."""

from equipoise.reproduce.experiment import Chart, Experiment, Part, Variant
from equipoise.reproduce.recipes import SEEDS, U_NOTES, curve, evaluated, u_training
from equipoise.reproduce.tasks import Evaluated

_WIDTHS = (2, 4, 6, 8, 10, 12)


def _tasks(name: str, width: int, variant: Variant) -> list[Evaluated]:
    return [evaluated(u_training("fashion-mnist", name, 0.1, seed, variant, width=width)) for seed in SEEDS]


def _parts(variant: Variant) -> list[Part]:
    lines = [
        curve("UDP-PGD, eps .1", {width: _tasks("UDP-PGD", width, variant) for width in _WIDTHS}),
        curve("standard, width 1", {1: _tasks("standard", 1, variant)}),
    ]
    return [Chart("Clean accuracy on Fashion-MNIST", "width", "clean accuracy, %", lines)]


experiment = Experiment(
    "udp-figure-5",
    "Clean accuracy on Fashion-MNIST of UDP with eps .1, against the width of the LeNet",
    "U Fig 5",
    _parts,
    notes=U_NOTES
    + " The width multiplies the filters of both convolutions and the first linear layer (U App. F.2): every second "
    "one from 2 to 12. U does not give the steps for this eps: here 20 of .015, as for its PGD with eps .2.",
)

"""U Fig 2: how far samples of CIFAR-10 are from the nearest one of another class."""

from equipoise.reproduce.experiment import Experiment, Part, Shown, Variant
from equipoise.reproduce.tasks import Studied


def _parts(variant: Variant) -> list[Part]:
    return [
        Shown("Distance to the nearest sample of another class", Studied("opposite-class", data="cifar10")),
    ]


experiment = Experiment(
    "udp-figure-2",
    "Distances from the training samples of CIFAR-10 to the nearest sample of another class",
    "U Fig 2",
    _parts,
    notes="Exact, over all training samples; beside U's Euclidean distances are those in Linf, its norm of training.",
)

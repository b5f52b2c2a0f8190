"""U Fig 15: images after many steps of UDP and PGD."""

from equipoise.reproduce.experiment import Experiment, Part, Shown, Variant
from equipoise.reproduce.tasks import Studied


def _parts(variant: Variant) -> list[Part]:
    return [
        Shown("Appearance", Studied("appearance", data="cifar10")),
    ]


experiment = Experiment(
    "udp-figure-15",
    "CIFAR-10 images after 1000 steps up the uncertainty and up the loss, with eps infinite",
    "U Fig 15",
    _parts,
    notes="U does not say which classifier is perturbed; here it is a LeNet, trained for at least three epochs.",
)

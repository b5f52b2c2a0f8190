"""T Fig 8: images after many steps of UTA and PGD."""

from equipoise.reproduce.experiment import Experiment, Part, Shown, Variant
from equipoise.reproduce.tasks import Studied


def _parts(variant: Variant) -> list[Part]:
    return [
        Shown("Appearance", Studied("appearance", data="cifar10")),
    ]


experiment = Experiment(
    "uta-figure-8",
    "CIFAR-10 images after 1000 steps up the uncertainty and up the loss, with eps infinite",
    "T Fig 8",
    _parts,
    notes="T does not say which classifier is attacked; here it is a LeNet, trained for at least three epochs.",
)

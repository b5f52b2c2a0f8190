"""U Fig 14: robustness on CIFAR-10 after fast training."""

from equipoise.reproduce.experiment import Experiment, Part, Variant
from equipoise.reproduce.recipes import FAST_NOTES, FAST_QUIRKS, fast_chart


def _parts(variant: Variant) -> list[Part]:
    return [fast_chart("UDP", variant, robustness=True)]


experiment = Experiment(
    "udp-figure-14",
    "CIFAR-10: accuracy under PGD-50 with 10 restarts after FGSM, R-FGSM, PGD-2 and one and two steps of UDP-PGD",
    "U Fig 14",
    _parts,
    quirks=FAST_QUIRKS,
    notes=FAST_NOTES,
)

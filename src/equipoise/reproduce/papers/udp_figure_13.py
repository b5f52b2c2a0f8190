"""U Fig 13: catastrophic overfitting on Fashion-MNIST."""

from equipoise.reproduce.experiment import Experiment, Part, Variant
from equipoise.reproduce.recipes import ONE_STEP_NOTES, one_step_parts
from equipoise.reproduce.tasks import call
from equipoise.training import methods


def _parts(variant: Variant) -> list[Part]:
    return one_step_parts("UDP-PGD with one step", call(methods.udp, eps=0.2, step_size=0.2, steps=1))


experiment = Experiment(
    "udp-figure-13",
    "Fashion-MNIST: clean, FGSM and PGD-20 accuracy while training with FGSM and with one step of UDP-PGD",
    "U Fig 13",
    _parts,
    notes=ONE_STEP_NOTES,
)

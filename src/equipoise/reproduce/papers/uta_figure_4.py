"""T Fig 4: catastrophic overfitting on Fashion-MNIST."""

from equipoise.reproduce.experiment import Experiment, Part, Variant
from equipoise.reproduce.recipes import ONE_STEP_NOTES, one_step_parts
from equipoise.reproduce.tasks import call
from equipoise.training import methods


def _parts(variant: Variant) -> list[Part]:
    return one_step_parts("UTA-1", call(methods.uta, eps=0.2, step_size=0.2, steps=1))


experiment = Experiment(
    "uta-figure-4",
    "Fashion-MNIST: clean, FGSM and PGD-20 accuracy while training with FGSM and with one step of UTA",
    "T Fig 4",
    _parts,
    notes=ONE_STEP_NOTES,
)

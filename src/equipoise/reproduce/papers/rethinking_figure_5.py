"""R Figure 5: the cross-entropy around test samples of CIFAR-10."""

from equipoise.reproduce.experiment import Experiment
from equipoise.reproduce.rethinking import SURFACES, surfaces

experiment = Experiment(
    "rethinking-figure-5",
    "CIFAR-10: the cross-entropy around test samples, with EntM alone and in adversarial training",
    "R Fig 5",
    surfaces("loss", "R Fig 5"),
    notes=SURFACES,
)

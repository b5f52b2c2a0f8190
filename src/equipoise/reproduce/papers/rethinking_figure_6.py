"""R Figure 6: the decision margin around test samples of CIFAR-10."""

from equipoise.reproduce.experiment import Experiment
from equipoise.reproduce.rethinking import SURFACES, surfaces

experiment = Experiment(
    "rethinking-figure-6",
    "CIFAR-10: the decision margin around test samples, with EntM alone and in adversarial training",
    "R Fig 6",
    surfaces("margin", "R Fig 6"),
    notes=SURFACES,
)

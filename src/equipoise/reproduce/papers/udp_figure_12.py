"""U Fig 12: clean accuracy on Fashion-MNIST, SVHN and CIFAR-10, against the eps of training."""

from equipoise.reproduce.experiment import Experiment, Part, Variant
from equipoise.reproduce.recipes import U_NOTES, U_QUIRKS, U_RADII, u_clean_chart


def _parts(variant: Variant) -> list[Part]:
    return [u_clean_chart(data, radii, variant) for data, radii in U_RADII.items()]


experiment = Experiment(
    "udp-figure-12",
    "Clean accuracy on Fashion-MNIST, SVHN and CIFAR-10 of PGD, TRADES, UDPR and UDP-PGD, against the eps of training",
    "U Fig 12",
    _parts,
    quirks=U_QUIRKS,
    notes=U_NOTES
    + " Step and number of steps are those of the authors' runs for the eps of U Tables 1 and 2, and continue them for "
    "the others: on Fashion-MNIST 20 steps of the larger of .015 and eps/20; else steps of .002, on CIFAR-10 up to eps "
    ".04 of .001, K = eps/step, at least 10.",
)

"""U Fig 4: clean accuracy on SVHN and CIFAR-10, against the eps of training."""

from equipoise.reproduce.experiment import Experiment, Part, Variant
from equipoise.reproduce.recipes import U_NOTES, U_QUIRKS, U_RADII, u_clean_chart


def _parts(variant: Variant) -> list[Part]:
    return [u_clean_chart(data, U_RADII[data], variant) for data in ("svhn", "cifar10")]


experiment = Experiment(
    "udp-figure-4",
    "Clean accuracy on SVHN and CIFAR-10 of PGD, TRADES, UDPR and UDP-PGD, against the eps of training",
    "U Fig 4",
    _parts,
    quirks=U_QUIRKS,
    notes=U_NOTES
    + " Step and number of steps are those of the authors' runs for the eps of U Table 1, and continue them for the "
    "others: steps of .002, on CIFAR-10 up to eps .04 of .001, K = eps/step, at least 10.",
)

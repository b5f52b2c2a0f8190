"""T Table 1, MNIST: trade-off of clean accuracy and accuracy under AutoAttack."""

from equipoise.reproduce.experiment import Experiment, Part, Variant
from equipoise.reproduce.recipes import T_NOTES, T_QUIRKS, t_table_1

# Mean of clean and robust accuracy in percent, by the eps of the test.
_ROWS = {
    ("PGD", 0.1): (97.3, 93.6, 61.7, 49.4),
    ("PGD", 0.2): (92.7, 89.4, 75.8, 50.1),
    ("PGD", 0.3): (64.4, 60.8, 53.0, 41.6),
    ("PGD", 0.4): (27.4, 26.4, 25.1, 24.0),
    ("UTA", 0.1): (97.2, 92.5, 55.4, 49.5),
    ("UTA", 0.2): (96.9, 94.3, 75.9, 50.3),
    ("UTA", 0.3): (95.6, 93.1, 79.8, 52.0),
    ("UTA", 0.4): (93.8, 90.6, 76.8, 53.0),
}


def _parts(variant: Variant) -> list[Part]:
    return t_table_1("mnist", variant, (0.05, 0.1, 0.2, 0.3), _ROWS)


experiment = Experiment(
    "uta-table-1-mnist",
    "MNIST, a perceptron: mean of clean accuracy and accuracy under AutoAttack, for PGD and UTA",
    "T Table 1, MNIST",
    _parts,
    quirks=T_QUIRKS,
    notes=T_NOTES,
)

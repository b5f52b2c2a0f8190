"""T Table 1, Fashion-MNIST: trade-off of clean accuracy and accuracy under AutoAttack."""

from equipoise.reproduce.experiment import Experiment, Part, Variant
from equipoise.reproduce.recipes import T_NOTES, t_table_1

# Mean of clean and robust accuracy in percent, by the eps of the test.
_ROWS = {
    ("PGD", 0.1): (79.6, 75.1, 44.6, 41.2),
    ("PGD", 0.2): (75.3, 73.1, 66.9, 40.4),
    ("PGD", 0.3): (70.7, 68.7, 63.8, 51.5),
    ("PGD", 0.4): (32.7, 31.7, 29.5, 26.5),
    ("UTA", 0.1): (82.3, 71.9, 44.1, 43.9),
    ("UTA", 0.2): (81.3, 77.1, 62.9, 42.5),
    ("UTA", 0.3): (78.9, 75.3, 67.9, 47.1),
    ("UTA", 0.4): (76.2, 72.72, 65.6, 56.3),
}


def _parts(variant: Variant) -> list[Part]:
    return t_table_1("fashion-mnist", variant, (0.05, 0.1, 0.2, 0.3), _ROWS)


experiment = Experiment(
    "uta-table-1-fashion-mnist",
    "Fashion-MNIST, LeNet: mean of clean accuracy and accuracy under AutoAttack, for PGD and UTA",
    "T Table 1, Fashion-MNIST",
    _parts,
    notes=T_NOTES,
)

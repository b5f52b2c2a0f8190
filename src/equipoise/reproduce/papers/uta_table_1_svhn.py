"""T Table 1, SVHN: trade-off of clean accuracy and accuracy under AutoAttack."""

from equipoise.reproduce.experiment import Experiment, Part, Variant
from equipoise.reproduce.recipes import T_NOTES, t_table_1

# Mean of clean and robust accuracy in percent, by the eps of the test.
_ROWS = {
    ("PGD", 0.01): (86.6, 80.5, 65.7, 49.1),
    ("PGD", 0.04): (37.6, 36.5, 34.4, 29.9),
    ("PGD", 0.08): (19.6, 19.6, 19.6, 19.6),
    ("PGD", 0.12): (19.6, 19.6, 19.6, 19.6),
    ("PGD", 0.16): (19.6, 19.6, 19.6, 19.6),
    ("UTA", 0.01): (86.0, 78.3, 61.1, 47.3),
    ("UTA", 0.04): (84.8, 81.0, 71.8, 55.7),
    ("UTA", 0.08): (79.3, 75.8, 68.7, 55.6),
    ("UTA", 0.12): (72.9, 69.8, 63.7, 52.7),
    ("UTA", 0.16): (65.7, 63.0, 57.8, 48.3),
}


def _parts(variant: Variant) -> list[Part]:
    return t_table_1("svhn", variant, (0.005, 0.01, 0.02, 0.04), _ROWS)


experiment = Experiment(
    "uta-table-1-svhn",
    "SVHN, a wide LeNet: mean of clean accuracy and accuracy under AutoAttack, for PGD and UTA",
    "T Table 1, SVHN",
    _parts,
    notes=T_NOTES
    + " T says of the step that it grows from .005 to eps_test/5, where only the eps of training can be meant; it does "
    "not give the number of steps: here K = eps/.005.",
)

"""T Table 2: MNIST, perturbations in the latent space, tested in the input space."""

from equipoise.reproduce.experiment import Experiment, Part, Table, Variant, trade_off
from equipoise.reproduce.recipes import SEEDS, T_LATENT_NOTES, autoattacked, t_latent

_TESTS = (0.05, 0.1, 0.2, 0.3)

# Mean of clean and robust accuracy in percent, by the eps of the test.
_ROWS = {
    ("LS-PGD", 0.1): (27.9, 22.7, 18.9, 18.9),
    ("LS-PGD", 0.2): (11.3, 11.3, 11.3, 11.3),
    ("LS-PGD", 0.3): (11.3, 11.3, 11.3, 11.3),
    ("LS-PGD", 0.4): (11.3, 11.3, 11.3, 11.3),
    ("LS-UTA", 0.1): (94.1, 64.6, 49.6, 49.6),
    ("LS-UTA", 0.2): (93.5, 66.0, 49.6, 49.6),
    ("LS-UTA", 0.3): (93.8, 65.6, 49.6, 49.6),
    ("LS-UTA", 0.4): (93.2, 67.0, 49.5, 49.5),
}


def _parts(variant: Variant) -> list[Part]:
    cells = [
        cell
        for (name, eps), numbers in _ROWS.items()
        for cell in autoattacked(
            f"{name} (eps {eps:g})",
            [t_latent(name, eps, seed) for seed in SEEDS],
            [("linf", test) for test in _TESTS],
            numbers,
            read=trade_off,
        )
    ]
    return [Table("Mean of clean accuracy and that under AutoAttack on MNIST (T Table 2)", cells, "training")]


experiment = Experiment(
    "uta-table-2",
    "MNIST, perturbations in the latent space: mean of clean accuracy and accuracy under AutoAttack in the input space",
    "T Table 2",
    _parts,
    notes=T_LATENT_NOTES,
)

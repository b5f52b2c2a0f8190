"""U Table 3: CIFAR-10 with augmentation, AutoAttack."""

from equipoise.reproduce.experiment import Cell, Experiment, Part, Table, Variant, clean
from equipoise.reproduce.recipes import ROUNDING, U_NOTES, U_QUIRKS, autoattacked, u_trainings

_BALLS = (("linf", 0.01), ("linf", 0.03), ("l2", 0.5), ("l2", 1.0))

# Step size and number of steps; clean accuracy, then one number per ball, in percent.
_ROWS = {
    ("PGD", 0.03): ((0.006, 10), 83.8, (72.9, 47.6, 58.5, 25.5)),
    ("UDPR", 0.05): ((0.01, 10), 83.4, (74.1, 45.3, 58.5, 25.5)),
    ("UDP-PGD", 0.08): ((0.01, 20), 87.5, (76.9, 37.1, 59.5, 21.4)),
}


def _parts(variant: Variant) -> list[Part]:
    cells: list[Cell] = []
    for (name, eps), (climb, accuracy, numbers) in _ROWS.items():
        row = f"{name} (eps {eps:g})"
        trained = u_trainings("cifar10", name, eps, variant, climb=climb, augment="crop-flip")
        attacked = autoattacked(row, trained, _BALLS, numbers)
        cells += [Cell(row, "clean", attacked[0].tasks, clean, accuracy, ROUNDING), *attacked]
    return [Table("Accuracy on CIFAR-10 with augmentation, clean and under AutoAttack (U Table 3)", cells)]


experiment = Experiment(
    "udp-table-3",
    "CIFAR-10 with random crops and flips: accuracy, clean and under AutoAttack",
    "U Table 3",
    _parts,
    quirks=U_QUIRKS,
    notes=U_NOTES + " U prints no deviations and no number of seeds; it is three here, as for its other tables. Steps "
    "and their number are those of the authors' runs.",
)

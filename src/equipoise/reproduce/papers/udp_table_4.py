"""U Table 4: features learned on CIFAR-10, used for CIFAR-100."""

from equipoise.reproduce import measures
from equipoise.reproduce.experiment import Cell, Experiment, Part, Table, Variant, number
from equipoise.reproduce.recipes import U_NOTES, U_QUIRKS, u_trainings
from equipoise.reproduce.tasks import Measured, Training, call

# In percent, with their deviations.
_ROWS = {
    ("baseline", "standard", 0.0): (42.5, 0.3),
    ("best robust accuracy", "TRADES", 0.03): (42.7, 0.1),
    ("best robust accuracy", "PGD", 0.02): (42.6, 0.1),
    ("best robust accuracy", "UDP-PGD", 0.06): (45.3, 0.3),
    ("best trade-off", "TRADES", 0.02): (43.1, 0.3),
    ("best trade-off", "PGD", 0.01): (43.3, 1.2),
    ("best trade-off", "UDP-PGD", 0.04): (45.7, 0.6),
}


def _measured(training: Training) -> Measured:
    return Measured(
        call(measures.transfer, layer="features"),
        [training],
        "Are features learned on CIFAR-10 of use for CIFAR-100?",
        weights="last",
        examples=10_000,
        samples=50_000,
        target="cifar100",
    )


def _parts(variant: Variant) -> list[Part]:
    cells = [
        Cell(
            selected if name == "standard" else f"{selected}, {name} (eps {eps:g})",
            "transfer accuracy",
            [_measured(training) for training in u_trainings("cifar10", name, eps, variant)],
            number(measures.TRANSFER),
            paper,
            deviation,
        )
        for (selected, name, eps), (paper, deviation) in _ROWS.items()
    ]
    return [Table("Accuracy on CIFAR-100 of a linear classifier of features of CIFAR-10 (U Table 4)", cells)]


experiment = Experiment(
    "udp-table-4",
    "Features learned on CIFAR-10, kept as they are: accuracy of a classifier of CIFAR-100 on them",
    "U Table 4",
    _parts,
    quirks=U_QUIRKS,
    notes=U_NOTES
    + " The networks are those of U Table 1, and the baseline trained like them without perturbations. U does not say "
    "which classifier is trained on the embedding: here a logistic regression with L2 penalty (C = 1) on the "
    "standardised 512 features before the last layer.",
)

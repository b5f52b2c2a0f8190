"""U Table 1: CIFAR-10 and SVHN without augmentation, AutoAttack, and the trade-off with clean accuracy."""

from equipoise.reproduce.experiment import Experiment, Part, Table, Variant, robust, trade_off
from equipoise.reproduce.recipes import U_NOTES, U_QUIRKS, autoattacked, u_trainings

_BALLS = (("linf", 0.01), ("linf", 0.03), ("l2", 0.5), ("l2", 1.0))

# Per row, in percent, the numbers and their deviations in the order of the balls.
_ROBUST = {
    "cifar10": {
        ("TRADES", 0.03): ((61.8, 31.0, 46.9, 18.3), (0.8, 0.3, 1.2, 0.7)),
        ("PGD", 0.02): ((62.7, 31.2, 47.4, 17.9), (0.5, 0.3, 0.6, 0.5)),
        ("UDPR", 0.05): ((64.9, 31.1, 50.2, 19.1), (0.4, 0.3, 0.5, 0.4)),
        ("UDP-PGD", 0.06): ((64.2, 33.4, 50.1, 19.5), (0.4, 0.3, 1.8, 1.4)),
    },
    "svhn": {
        ("TRADES", 0.05): ((72.9, 44.6, 37.7, 6.7), (1.5, 1.6, 2.5, 0.8)),
        ("PGD", 0.04): ((75.7, 43.3, 30.5, 5.5), (0.2, 0.4, 1.0, 0.1)),
        ("UDPR", 0.05): ((79.7, 40.3, 34.4, 6.1), (0.1, 1.4, 1.5, 0.8)),
        ("UDP-PGD", 0.04): ((79.3, 39.7, 33.4, 5.8), (0.1, 0.7, 0.6, 0.6)),
    },
}
_TRADE_OFF = {
    "cifar10": {
        ("TRADES", 0.02): ((71.3, 54.9, 63.4, 47.6), (0.4, 0.4, 0.8, 0.2)),
        ("PGD", 0.01): ((72.7, 52.6, 64.4, 47.7), (0.4, 0.2, 0.3, 0.4)),
        ("UDPR", 0.05): ((72.3, 55.4, 65.0, 49.4), (0.4, 0.2, 0.1, 0.3)),
        ("UDP-PGD", 0.04): ((73.1, 55.7, 65.8, 48.9), (0.6, 0.8, 0.3, 0.3)),
    },
    "svhn": {
        ("TRADES", 0.05): ((79.4, 65.2, 61.8, 46.3), (1.2, 0.3, 0.8, 0.1)),
        ("PGD", 0.02): ((85.6, 64.6, 61.9, 48.9), (0.3, 0.3, 0.2, 0.1)),
        ("UDPR", 0.05): ((86.4, 67.1, 63.8, 49.6), (0.0, 0.4, 0.7, 0.2)),
        ("UDP-PGD", 0.04): ((86.5, 66.7, 63.6, 49.8), (0.1, 0.4, 0.2, 0.2)),
    },
}


def _parts(variant: Variant) -> list[Part]:
    return [
        Table(
            f"{what} on {data} (U Table 1)",
            [
                cell
                for (name, eps), (numbers, deviations) in rows[data].items()
                for cell in autoattacked(
                    f"{name} (eps {eps:g})", u_trainings(data, name, eps, variant), _BALLS, numbers, deviations, read
                )
            ],
        )
        for data in ("cifar10", "svhn")
        for what, rows, read in (
            ("Accuracy under AutoAttack", _ROBUST, robust),
            ("Mean of clean accuracy and accuracy under AutoAttack", _TRADE_OFF, trade_off),
        )
    ]


experiment = Experiment(
    "udp-table-1",
    "CIFAR-10 and SVHN without augmentation: accuracy under AutoAttack, and its trade-off with clean accuracy",
    "U Table 1",
    _parts,
    quirks=U_QUIRKS,
    notes=U_NOTES
    + " Every row is trained with the eps that U selected for it; nothing is selected anew. Steps and their number are "
    "those of the authors' runs; of PGD on SVHN only the step of .002 is known, K = eps/.002 is ours. A tenth of the "
    "training samples is held out.",
)

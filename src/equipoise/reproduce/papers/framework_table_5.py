"""F Table 5: networks trained for R2 and for R4, each scored under both, on Fashion-MNIST."""

from equipoise.reproduce.experiment import Cell, Experiment, Part, Table, Variant, clean, number
from equipoise.reproduce.framework import (
    NOTES,
    ON_MANIFOLD,
    QUIRKS,
    SCORE_QUIRKS,
    SCORED,
    evaluated,
    with_r2,
    with_r4,
)

_DATA = "fashion-mnist"
_PAPER = {"R2": ("Ours", 93.29, 1.060, 0.285), "R4": ("R4", 94.04, 0.471, 0.286)}  # accuracy, R2, R4


def _parts(variant: Variant) -> list[Part]:
    cells = []
    for column, (name, accuracy, r2, r4) in _PAPER.items():
        trained = f"trained for {column}"
        cells += [
            Cell("accuracy in %", trained, evaluated(name, _DATA, variant), clean, accuracy, 0.005),
            Cell("R2", trained, with_r2(name, _DATA, variant), number("R2"), r2, 0.0005, scale=1.0),
            Cell("R4", trained, with_r4(name, _DATA, variant), number("R4"), r4, 0.0005, scale=1.0),
        ]
    return [Table("R2 and R4 on F-MNIST (F Table 5)", cells, corner="score", unit="")]


experiment = Experiment(
    "framework-table-5",
    "Fashion-MNIST: networks trained for R2 and for R4, each scored under both",
    "F Table 5",
    _parts,
    QUIRKS + SCORE_QUIRKS,
    NOTES + ON_MANIFOLD + SCORED,
)

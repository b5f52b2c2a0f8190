"""F Figure 4: margin curves and the area under them, of three trainings on four datasets."""

from equipoise.reproduce.experiment import Cell, Chart, Experiment, Line, Part, Table, Variant, number
from equipoise.reproduce.framework import METHODS, NAMES, NOTES, QUIRKS, SCORE_QUIRKS, SCORED, beyond, with_r2

_REACH = {"mnist": 3.0, "fashion-mnist": 3.0, "cifar10": 1.5, "svhn": 1.5}
_POINTS = 31
_PAPER = {("F-MNIST", "Ours"): 1.060}  # by F Table 5; the others stand in the figure alone


def _line(name: str, data: str, variant: Variant) -> Line:
    tasks = with_r2(name, data, variant)
    radii = [_REACH[data] * i / (_POINTS - 1) for i in range(_POINTS)]
    return Line(name, [(eps, Cell(name, f"eps {eps:g}", tasks, beyond(eps))) for eps in radii])


def _parts(variant: Variant) -> list[Part]:
    areas = [
        Cell(row, name, with_r2(name, data, variant), number("R2"), _PAPER.get((row, name)), 0.0005, scale=1.0)
        for row, data in NAMES.items()
        for name in METHODS
    ]
    curves = [
        Chart(
            f"Margin curves, {row} (F Fig 4)",
            "eps, L2 in pixels of [0, 1]",
            "samples with no point classified otherwise, in %",
            [_line(name, data, variant) for name in METHODS],
        )
        for row, data in NAMES.items()
    ]
    return [Table("R2, the area under the margin curve (F Fig 4)", areas, corner="data", unit=""), *curves]


experiment = Experiment(
    "framework-figure-4",
    "Margin curves and R2, the area under them",
    "F Fig 4",
    _parts,
    QUIRKS + SCORE_QUIRKS,
    NOTES + " Of the areas, which F writes into the figure, one is also in its Table 5." + SCORED,
)

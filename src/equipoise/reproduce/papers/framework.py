"""The tables and figures of F, "a general framework of robustness": its trainings, networks, settings and manifold (F,
Secs. 4 to 7).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from equipoise.reproduce import measures
from equipoise.reproduce.experiment import (
    Cell,
    Chart,
    Claims,
    Line,
    Part,
    PublishedValue,
    Read,
    Record,
    Table,
    Variant,
    clean,
    number,
)
from equipoise.reproduce.published import experiments, published_table
from equipoise.reproduce.recipes import SEEDS, above, evaluated, measured
from equipoise.reproduce.tasks import Call, DataManifold, Evaluated, MeasureTask, Net, Training, call
from equipoise.training import Recipe, methods

NAMES = {"MNIST": "mnist", "CIFAR-10": "cifar10", "SVHN": "svhn", "F-MNIST": "fashion-mnist"}
"""The datasets, as the tables call them."""
METHODS = ("No Reg.", "HEIN", "Ours")
"""The columns of F Tables 1 to 3: without regularisation, the cross-Lipschitz penalty, training for R2."""


def method(name: str, variant: Variant = "corrected") -> Call:
    """A method by its name in the tables."""
    published = {"softness": 0.0, "halvings": 0, "crossing": 1.0, "scores": "probabilities", "clean": "live"}
    return {
        "No Reg.": call(methods.standard),
        "HEIN": call(methods.hein, weight=0.01),
        "Ours": call(methods.r2, weight=0.1, **(published if variant == "as published" else {})),
        "R4": call(methods.r4, weight=1.0, samples=10, sigma=0.06),
        "STUTZ": call(methods.on_manifold_at, eps=0.1, steps=10, clean_share=0.5),
    }[name]


def recipe(data: str, seed: int) -> Recipe:
    """Adam; on CIFAR-10 SGD with momentum .9 and crops and flips (He et al. 2016, Sec. 4.2)."""
    if data != "cifar10":
        return Recipe(epochs=30, batch_size=128, lr=1e-3, schedule="multistep", validation=0.01, seed=seed)
    return Recipe(epochs=164, batch_size=128, optimizer="sgd", nesterov=False, lr=0.1, weight_decay=1e-4,
                  schedule="multistep", augment="crop-flip", validation=0.01, seed=seed)  # fmt: skip


def manifold(data: str) -> DataManifold:
    """The one manifold of a dataset."""
    return DataManifold(data, Recipe(epochs=20))


@cache
def training(name: str, data: str, variant: Variant, seed: int) -> Training:
    """The training of a method."""
    net = Net("resnet20" if data == "cifar10" else "small-cnn")
    along = manifold(data) if name in ("R4", "STUTZ") else None
    return Training(method(name, variant), net, data, recipe(data, seed), manifold=along)


def accuracy(name: str, data: str, variant: Variant) -> list[Evaluated]:
    """Clean accuracy, seed by seed."""
    return [evaluated(training(name, data, variant, seed), ["clean"]) for seed in SEEDS]


def measures_of(
    function: Call, question: str, name: str, data: str, variant: Variant, **more: Any
) -> list[MeasureTask]:
    """What a function measures, seed by seed."""
    return [measured(function, [training(name, data, variant, seed)], question, **more) for seed in SEEDS]


def with_r2(name: str, data: str, variant: Variant) -> list[MeasureTask]:
    """The distances to where the prediction changes, and which attack found them (F, Sec. 5)."""
    score = call(measures.r2_score, **({"published": True} if variant == "as published" else {}))
    return measures_of(score, "How far is the nearest point that is classified otherwise?", name, data, variant)


def with_r4(name: str, data: str, variant: Variant) -> list[MeasureTask]:
    """How often points near a sample on the manifold are classified as it is (F, Sec. 7)."""
    score, question = call(measures.r4_score, samples=200, sigma=0.06), "Are points near each other classified alike?"
    return measures_of(score, question, name, data, variant, manifold=manifold(data))


_SCORES: dict[str, Callable[..., list[MeasureTask]]] = {"R2": with_r2, "R4": with_r4}


def beyond(eps: float) -> Read:
    """Reads per sample whether no point within eps was found that is classified otherwise (F, Eq. 6)."""

    def look(record: Record) -> list[float]:
        return [float(distance > eps) for distance in number("R2")(record)]

    return look


def table_1(variant: Variant) -> list[Part]:
    """Clean accuracy of three trainings on four datasets."""

    def source(row: str, name: str) -> Any:
        return accuracy(name, NAMES[row], variant), clean

    return [published_table("Accuracy (F Table 1)", "framework", "Table 1", source, corner="data")]


def table_2(variant: Variant) -> list[Part]:
    """Which attack finds the nearest point that is classified otherwise."""

    def source(row: str, column: str) -> Any:
        name, attack = column.split(", ")
        return with_r2(name, NAMES[row], variant), number(measures.nearest_by(attack.lower()))

    title = "Samples of which each attack found the nearest point (F Table 2)"
    return [published_table(title, "framework", "Table 2", source, corner="data")]


def table_3(variant: Variant) -> list[Part]:
    """Accuracy on the corruptions of MNIST-C."""
    question = "Which corruptions does a network stand that has not seen them?"

    def source(row: str, name: str) -> Any:
        tasks = measures_of(call(measures.corrupted), question, name, "mnist", variant)
        return tasks, number(row.replace(" ", "_"))

    table = published_table("Accuracy on MNIST-C (F Table 3)", "framework", "Table 3", source, corner="corruption")
    average = table.cells[-1].row
    statement, source_of = "Training for R2 generalises better to corruptions", "F Sec. 6, Table 3"
    claims = above(table, statement, source_of, average, "Ours", "No Reg.", "HEIN")
    return [table, Claims("Does training for R2 help under corruptions?", claims)]


def table_4(variant: Variant) -> list[Part]:
    """Training for R4 and on-manifold adversarial training on Fashion-MNIST."""

    def source(row: str, column: str) -> Any:
        of = ("R4" if row == "Ours" else row, "fashion-mnist", "corrected")
        return (_SCORES[column](*of), number(column)) if column in _SCORES else (accuracy(*of), clean)

    def scale(row: str, column: str) -> float:
        return 1.0 if column in _SCORES else 100.0

    title = "Accuracy and R4 on F-MNIST (F Table 4)"
    return [published_table(title, "framework", "Table 4", source, unit="", scale=scale)]


def table_5(variant: Variant) -> list[Part]:
    """Networks trained for R2 and for R4, each scored under both, on Fashion-MNIST."""

    def source(row: str, column: str) -> Any:
        of = ("R4" if column == "trained for R4" else "Ours", "fashion-mnist", variant)
        return (_SCORES[row](*of), number(row)) if row in _SCORES else (accuracy(*of), clean)

    def scale(row: str, column: str) -> float:
        return 1.0 if row in _SCORES else 100.0

    title = "R2 and R4 on F-MNIST (F Table 5)"
    table = published_table(title, "framework", "Table 5", source, corner="score", unit="", scale=scale)
    table = Table(title, sorted(table.cells, key=lambda cell: cell.column), "score", "")
    by_r2, by_r4 = "trained for R2", "trained for R4"
    claims = [
        *above(table, "Training for R2 gives the larger R2", "F Table 5", "R2", by_r2, f"{by_r4}", unit="pixels"),
        *above(table, "Training for R4 gives the larger R4", "F Table 5", "R4", by_r4, by_r2, unit="of R4"),
        *above(table, "Training for R4 gives the higher accuracy", "F Table 5", "accuracy in %", by_r4, by_r2),
    ]
    return [table, Claims("Does each training improve its own score?", claims)]


def figure_3(variant: Variant) -> list[Part]:
    """The nearest points that BG finds, of three trainings, in the paper's order."""
    names, question = METHODS[::-1], "What do the nearest points look like that are classified otherwise?"
    function = call(measures.nearest_examples, names=names)
    return [
        PublishedValue(
            f"The nearest points found by BG, {row} (F Fig 3)",
            measured(function, [training(name, data, variant, 0) for name in names], question, 100),
        )
        for row, data in NAMES.items()
    ]


_REACH = {"mnist": 3.0, "fashion-mnist": 3.0, "cifar10": 1.5, "svhn": 1.5}
_POINTS = 31
_AREAS = {("F-MNIST", "Ours"): 1.060}  # by F Table 5; the others stand in the figure alone


def figure_4(variant: Variant) -> list[Part]:
    """Margin curves and the area under them."""

    def line(name: str, data: str) -> Line:
        tasks = with_r2(name, data, variant)
        radii = [_REACH[data] * i / (_POINTS - 1) for i in range(_POINTS)]
        return Line(name, [(eps, Cell(name, f"eps {eps:g}", tasks, beyond(eps))) for eps in radii])

    areas = [
        Cell(row, name, with_r2(name, data, variant), number("R2"), _AREAS.get((row, name)), 0.0005, scale=1.0)
        for row, data in NAMES.items()
        for name in METHODS
    ]
    curves = [
        Chart(
            f"Margin curves, {row} (F Fig 4)",
            "eps, L2 in pixels of [0, 1]",
            "samples with no point classified otherwise, in %",
            [line(name, data) for name in METHODS],
        )
        for row, data in NAMES.items()
    ]
    return [Table("R2, the area under the margin curve (F Fig 4)", areas, corner="data", unit=""), *curves]


EXPERIMENTS = experiments(
    "framework",
    {
        "framework-figure-3": figure_3,
        "framework-figure-4": figure_4,
        "framework-table-1": table_1,
        "framework-table-2": table_2,
        "framework-table-3": table_3,
        "framework-table-4": table_4,
        "framework-table-5": table_5,
    },
)

"""What experiments of several papers share: how their numbers are computed, and the trainings that U and T report."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from equipoise.reproduce import measures
from equipoise.reproduce.experiment import (
    Cell,
    Chart,
    Claim,
    Line,
    Part,
    PublishedValue,
    Read,
    Table,
    Variant,
    clean,
    robust,
)
from equipoise.reproduce.published import published_values
from equipoise.reproduce.tasks import TEST_SIZES, Call, Evaluated, MeasureTask, Net, StudyTask, Task, Training, call
from equipoise.training import Recipe, methods

SEEDS = range(3)
"""Of every number: U Table 2 is "averaged over 3 seeds", its Figs 13, 14 and T's Figs 3, 4, 9 "over 3 runs", the others
over "multiple runs"; R trains 3 models per result (App. A.2); F says nothing of repeats."""

ADAM = Recipe(epochs=100, batch_size=256, lr=1e-3, validation=1 / 12)
"""55,000 samples of MNIST's 60,000 to train on, 5,000 to validate."""


def evaluated(
    training: Training, attacks: Sequence[str] = ("clean",), eps: Sequence[float] = (), norm: str = "linf", **more: Any
) -> Evaluated:
    """Evaluate on all test samples, with the weights of the last epoch: no paper says that an epoch is chosen."""
    return Evaluated(training, attacks, eps, norm, examples=TEST_SIZES[training.data], weights="last", **more)


def measured(
    function: Call, trainings: Sequence[Training], question: str, examples: int | None = None, **more: Any
) -> MeasureTask:
    """Measure networks with the weights of the last epoch, on all test samples, or on this number of them."""
    return MeasureTask(function, trainings, question, "last", examples or TEST_SIZES[trainings[0].data], **more)


def autoattacked(
    title: str,
    paper: str,
    name: str,
    trained: Callable[[str, float], Sequence[Training]],
    read: Callable[..., Read] = robust,
    corner: str = "method",
) -> Table:
    """Return a published table of accuracies, clean and under AutoAttack in a ball such as `Linf 0.05`; with
    `trade_off`, of their means with the clean accuracy. `trained` gives the trainings of a row, such as
    `PGD (eps 0.2)`.
    """
    cells: list[Cell] = []
    for row, entries in groupby(published_values(paper, name, decimals=1), key=lambda entry: entry[0]):
        _, columns, numbers, deviations = zip(*entries, strict=True)
        balls = [(norm.lower(), float(eps)) for norm, eps in (c.split() for c in columns if c != "clean")]
        tasks = {
            norm: [
                evaluated(training, ["autoattack"], [eps for other, eps in balls if other == norm], norm)
                for training in trained(*named(row))
            ]
            for norm, _ in balls
        }
        reads = [(balls[0][0], clean)] * (columns[0] == "clean")
        reads += [(norm, read(eps, norm, "autoattack")) for norm, eps in balls]
        for (norm, how), column, number, deviation in zip(reads, columns, numbers, deviations, strict=True):
            cells.append(Cell(row, column, tasks[norm], how, number, deviation))
    return Table(title, cells, corner)


def named(row: str) -> tuple[str, float]:
    """Return method and eps of training that the row of a table names: `PGD (eps 0.2)`; without an eps it is 0."""
    match = re.fullmatch(r"(.+) \(eps (.+)\)", row)
    return (match[1], float(match[2])) if match else (row, 0.0)


def curve(name: str, points: Mapping[float, Sequence[Task]], read: Read = clean) -> Line:
    """Return a line of a chart, from the tasks at every abscissa."""
    return Line(name, [(x, Cell(name, f"{x:g}", tasks, read)) for x, tasks in points.items()])


def courses(title: str, trainings: Sequence[Training], strong: str) -> PublishedValue:
    """Show the accuracy on validation samples over the training."""
    question = "Does accuracy under an attack fall while the network trains?"
    return PublishedValue(
        title, MeasureTask(call(measures.course, strong=strong), trainings, question, "last", courses=True)
    )


def one_step_parts(name: str, method: Call) -> list[Part]:
    """One-step training on Fashion-MNIST (U App. E.2; T Sec. 5.3): LeNets trained with FGSM and with one step of the
    method, eps .2.
    """
    recipe = replace(ADAM, valid_eps=0.2, valid_steps=20, valid_examples=5_000)

    def trained(method: Call) -> list[Training]:
        return [Training(method, Net("lenet"), "fashion-mnist", replace(recipe, seed=seed)) for seed in SEEDS]

    return [
        courses("Trained with FGSM", trained(call(methods.fgsm_at, eps=0.2)), "PGD-20"),
        courses(f"Trained with {name}", trained(method), "PGD-20"),
        PublishedValue("The first epochs", StudyTask("overfitting", data="fashion-mnist")),
    ]


FAST_RADII = tuple(k / 255 for k in (2, 4, 8, 12, 16))


def fast_chart(uncertain: str, variant: Variant, robustness: bool) -> Chart:
    """One-step training on CIFAR-10 (U App. E.2; T Sec. 5.3, App. B.2): accuracy against eps, clean or under PGD with
    50 steps and 10 restarts, by method (U Fig 14; T Figs 3, 9c).
    """
    read: Callable[[float], Read] = (lambda eps: robust(eps, attack="pgd50")) if robustness else (lambda eps: clean)
    lines: dict[str, list[tuple[float, Cell]]] = {}
    for eps in FAST_RADII:
        for name, trainings in _fast_trainings(uncertain, eps, variant).items():
            tasks = [evaluated(one, ["pgd50"], [eps], step_size=eps / 4, restarts=10) for one in trainings]
            lines.setdefault(name, []).append((255 * eps, Cell(name, f"{255 * eps:g}/255", tasks, read(eps))))
    what = "accuracy under PGD-50-10" if robustness else "clean accuracy"
    return Chart(
        f"CIFAR-10, {what} after fast training",
        "eps of training and test, in 1/255",
        f"{what}, %",
        [Line(name, points) for name, points in lines.items()],
    )


def _fast_trainings(uncertain: str, eps: float, variant: Variant) -> dict[str, list[Training]]:
    """FGSM, R-FGSM, PGD-2, and one and two steps of UDP or UTA with five models sampled by dropout."""
    climb = {"UDP": methods.udp, "UTA": methods.uta}[uncertain]
    mode = {"mode": "train"} if variant == "as published" else {}
    calls = {
        "FGSM": call(methods.fgsm_at, eps=eps, **mode),
        "R-FGSM": call(methods.r_fgsm_at, eps=eps, **mode),
        "PGD-2": call(methods.pgd_at, eps=eps, step_size=eps / 2, steps=2, **mode),
        f"{uncertain}-1-5": call(climb, eps=eps, step_size=eps, steps=1, **mode),
        f"{uncertain}-2-5": call(climb, eps=eps, step_size=eps / 2, steps=2, **mode),
    }

    def trained(method: Call, samples: int, lr: float) -> list[Training]:
        recipe = Recipe(
            epochs=90, batch_size=256, optimizer="sgd", lr=lr, weight_decay=5e-4, schedule="cyclic", augment="crop-flip"
        )
        net = Net("resnet18-dropout", dropout_samples=samples)
        return [Training(method, net, "cifar10", replace(recipe, seed=seed)) for seed in SEEDS]

    return {
        name: trained(method, *((5, 0.1) if name.startswith(uncertain) else (0, 0.2))) for name, method in calls.items()
    }


def above(
    of: Table, statement: str, source: str, where: str, larger: str, *others: str, by: float = 0.0, unit: str = "points"
) -> list[Claim]:
    """Return the claims that `larger` has the larger number than each of `others`, as the statement with "than OTHER"
    says: rows of a table in the column `where`, or columns in the row `where`.
    """
    rows = {cell.row for cell in of.cells}
    own, *rest = (of.at(name, where) if name in rows else of.at(where, name) for name in (larger, *others))
    return [
        Claim(f"{statement} than {other}", source, own, cell, by, unit)
        for other, cell in zip(others, rest, strict=True)
    ]

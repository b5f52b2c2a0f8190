"""The tables and figures of R, "Uncertainty-promoting regularisers": the methods, networks, training settings and
attacks (R, Sec. 5.1 and App. A).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

from equipoise.losses import objectives
from equipoise.reproduce import measures
from equipoise.reproduce.experiment import (
    Cell,
    Chart,
    Claims,
    Line,
    Part,
    PublishedValue,
    Table,
    Variant,
    clean,
    number,
    robust,
)
from equipoise.reproduce.published import experiments, published_table, published_values
from equipoise.reproduce.recipes import SEEDS, above, evaluated, measured
from equipoise.reproduce.tasks import Call, MeasureTask, Net, Training, call, with_settings
from equipoise.training import Recipe, methods

_BLACK_BOX = "black-box "


def method(name: str, data: str, entropy_weight: float = 2.0) -> Call:
    """A method by its name in the tables (R, Sec. 5.1)."""
    entm = call(objectives.regularised, entropy_weight=entropy_weight)
    smooth = call(objectives.regularised, smoothing=0.84 if data == "cifar100" else 0.74)
    ball = {"eps": 8 / 255, "step_size": 2 / 255, "steps": 7}
    if data == "mnist":
        ball = {"eps": 48 / 255, "step_size": 6 / 255, "steps": 10}
    trades = {"beta": 3.0, "divergence": "here||clean", **ball}
    return {
        "Normal": call(methods.standard),
        "EntM": call(methods.standard, loss=entm),
        "LS": call(methods.standard, loss=smooth),
        "ADP": call(methods.adp, entropy_weight=2.0, diversity_weight=0.5),
        "PAT": call(methods.pat, clean_share=0.5, **ball),
        "PAT-EntM": call(methods.pat, clean_share=0.5, loss=entm, **ball),
        "PAT-LS": call(methods.pat, clean_share=0.5, loss=smooth, **ball),
        "TRADES": call(methods.trades, **trades),
        "TRADES-EntM": call(methods.trades, loss=entm, **trades),
    }[name]


def is_adversarial(name: str) -> bool:
    """Whether a method trains on adversarial examples."""
    return name.startswith(("PAT", "TRADES"))


def recipe(data: str, adversarial: bool, seed: int) -> Recipe:
    """R, Table 5: SGD with momentum .9, a tenth of the learning rate at given epochs, no early stopping."""
    epochs, decay, size = (120, (60, 84, 100), 64) if adversarial else (200, (100, 150), 64)
    if data == "mnist":
        epochs, decay, size = 40, (20,), 128
    return Recipe(
        epochs=epochs,
        batch_size=size,
        optimizer="sgd",
        momentum=0.9,
        nesterov=False,
        lr=0.1,  # on MNIST R prints .01, see rethinking.toml
        weight_decay=1e-4,
        schedule="multistep",
        milestones=tuple(epoch / epochs for epoch in decay),
        augment="crop-flip" if data.startswith("cifar") else "none",
        validation=0.01,
        seed=seed,
    )


@cache
def training(name: str, data: str, seed: int, wide: bool = False, entropy_weight: float = 2.0) -> Training:
    """The training of a method: CNN for MNIST, else ResNet-18 or, if `wide`, WideResNet-34-10; of ADP three of them."""
    net = Net("cnn4") if data == "mnist" else Net("resnet18")
    if wide:
        net = Net("wide-resnet", {"depth": 34, "widen": 10})
    if name == "ADP":
        net = replace(net, members=3, together=True)
    return Training(method(name, data, entropy_weight), net, data, recipe(data, is_adversarial(name), seed))


def cell(
    label: str,
    name: str,
    paper: float | None,
    deviation: float = 0.0,
    *,
    data: str,
    build: Callable[[str, str, int], Training] = training,
) -> Cell:
    """Accuracy of a method, clean or under the attack that R calls `label`, such as `CW40-8` or `black-box PGD10-4`.

    Transferred attacks are made on a Normal model for methods without adversarial training, on PAT for the others.
    A 0 in a table stands for less than 0.1 %.
    """
    attack = re.sub("^fgsm", "fgsm-", label.removeprefix(_BLACK_BOX).lower())
    tasks, read = [], clean
    for seed in SEEDS:
        proxies: Sequence[Training] = ()
        if label.startswith(_BLACK_BOX):
            proxies = [training("PAT" if is_adversarial(name) else "Normal", data, (seed + 1) % len(SEEDS))]
        if attack != "clean":
            eps = int(attack.rpartition("-")[2]) / 255
            read = robust(eps, attack=attack + "".join(f" from {proxy.method}" for proxy in proxies))
        tasks.append(evaluated(build(name, data, seed), [attack], proxies=proxies))
    return Cell(label, name, tasks, read, paper, 0.1 if paper == 0 else deviation)


def accuracies(number: int, on: str, variant: Variant) -> list[Part]:
    """R Table `number`: accuracies in percent."""
    data = on.lower().replace("-", "")
    cells = [cell(*entry, data=data) for entry in published_values("rethinking", f"Table {number}")]
    if data == "mnist" and variant == "as published":
        cells = [replace(one, tasks=[with_settings(task, {"lr": 0.01}) for task in one.tasks]) for one in cells]
    table = Table(f"Accuracy on {on} (R Table {number})", cells, corner="attack")
    columns, rows = {cell.column for cell in cells}, dict.fromkeys(cell.row for cell in cells)
    if not {"PAT", "PAT-EntM"} <= columns:
        return [table]
    strong = [row for row in rows if row == "Clean" or row.startswith("PGD40")]
    claims = [
        claim
        for row in strong
        for claim in above(table, f"PAT-EntM has the higher accuracy, {row},", "R Sec. 5.2", row, "PAT-EntM", "PAT")
    ]
    return [table, Claims("Does entropy maximisation improve adversarial training?", claims)]


def wide(name: str, data: str, seed: int) -> Training:
    """The training of WideResNet-34-10, with the weight of the entropy that R chose for it (App. D)."""
    return training(name, data, seed, True, {"cifar10": 1.0, "cifar100": 0.5}[data])


def measures_of(
    function: Call, names: Sequence[str], data: str, question: str, examples: int | None = None
) -> list[MeasureTask]:
    """What a function measures of the networks trained by these methods, seed by seed."""
    by_seed = ([training(name, data, seed) for name in names] for seed in SEEDS)
    return [measured(function, trainings, question, examples) for trainings in by_seed]


def surfaces(of: str, source: str, variant: Variant) -> list[Part]:
    """R Figs 5 and 6: the `loss` or the `margin` around samples, and how many are in a hole."""
    names, question = ("EntM", "PAT-EntM"), "Does the gradient lead uphill?"
    tasks = measures_of(call(measures.surfaces, names=names, of=of), names, "cifar10", question)
    cells = [
        Cell(name, "samples with a hole", tasks, number(measures.hole(name)), paper, 12.5)
        for name, paper in zip(names, (25.0, None), strict=True)
    ]
    return [PublishedValue(f"The {of} around samples ({source})", tasks[0]), Table("Holes (R, App. C.2)", cells)]


def figure_1(variant: Variant) -> list[Part]:
    """Accuracy against eps."""
    question = "Does the accuracy fall to 0 as the ball grows?"
    papers = {measures.RADII[-1]: 0.0}

    def line(name: str, data: str) -> Line:
        tasks = measures_of(call(measures.accuracy_by_eps), [name], data, question)
        points = {k: Cell(name, f"{k}/255", tasks, number(f"k = {k}"), papers.get(k), 0.1) for k in measures.RADII}
        return Line(name, [(float(k), cell) for k, cell in points.items()])

    return [
        Chart(f"Accuracy against eps, {data} (R Fig 1)", "eps, in 1/255", "accuracy in %",
              [line(name, data) for name in ("PAT", "PAT-EntM", "TRADES")])
        for data in ("cifar10", "cifar100")
    ]  # fmt: skip


_ADAPTIVE = "PAT-EntM, adaptive"
_AFTER_MOST_STEPS = {("cifar10", 8, _ADAPTIVE): 45.05, ("cifar10", 8, "TRADES"): 45.21}
"""On CIFAR-10 with eps = 8/255 (R, Sec. 5.2.2)."""


def figure_2(variant: Variant) -> list[Part]:
    """Accuracy against the number of steps."""
    question = "Does the accuracy settle as the attack takes more steps?"

    def line(name: str, data: str, k: int) -> Line:
        smoothings = tuple(tenths / 10 for tenths in range(11)) if name == _ADAPTIVE else (0.0,)
        function = call(measures.accuracy_by_steps, eps=k / 255, smoothings=smoothings)
        tasks = measures_of(function, [name.removesuffix(", adaptive")], data, question)
        papers = {measures.STEPS[-1]: _AFTER_MOST_STEPS.get((data, k, name))}
        points = [
            (float(steps), Cell(name, f"{steps} steps", tasks, number(f"k = {steps}"), papers.get(steps), 0.005))
            for steps in measures.STEPS
        ]
        return Line(name, points)

    return [
        Chart(f"Accuracy against steps, {data}, eps {k}/255 (R Fig 2)", "steps of the attack", "accuracy in %",
              [line(name, data, k) for name in ("PAT", "PAT-EntM", _ADAPTIVE, "TRADES")])
        for data in ("cifar10", "cifar100")
        for k in (8, 16)
    ]  # fmt: skip


_BY_WEIGHT = {
    ("cifar10", "Clean"): {0.0: 86.47, 2.0: 87.87},
    ("cifar10", "PGD40-8"): {0.0: 43.03, 2.0: 45.95},
    ("cifar100", "Clean"): {0.0: 59.65, 2.0: 62.53},
    ("cifar100", "PGD40-8"): {0.0: 19.62, 2.0: 26.1},
}
"""With weight 0 it is PAT, and with 2 the PAT-EntM of R Tables 1 and 2."""


def figure_3(variant: Variant) -> list[Part]:
    """Accuracy against the weight of the entropy."""

    def trained(weight: float, name: str, data: str, seed: int) -> Training:
        return training(name, data, seed, entropy_weight=weight) if weight else training("PAT", data, seed)

    def line(label: str, data: str) -> Line:
        points = []
        for weight in (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0):
            paper, build = _BY_WEIGHT[data, label].get(weight), partial(trained, weight)
            points.append((weight, cell(label, "PAT-EntM", paper, 0.005, data=data, build=build)))
        return Line(label, points)

    return [
        Chart(f"Accuracy against the weight of the entropy, {data} (R Fig 3)", "lambda", "accuracy in %",
              [line(label, data) for label in ("Clean", "PGD40-8")])
        for data in ("cifar10", "cifar100")
    ]  # fmt: skip


def figure_4(variant: Variant) -> list[Part]:
    """Normalised margin and distance to misclassification, with the correlations of R Table 4."""
    papers = {"EntM": 0.4794, "PAT": 0.8216, "PAT-EntM": 0.8131}
    question = "Does a large normalised margin mean that a sample is far from being misclassified?"
    function = call(measures.margins_and_distances, names=tuple(papers), split="EntM")
    tasks = measures_of(function, tuple(papers), "cifar10", question, 2000)
    cells = [
        Cell(name, measures.RELATED, tasks, number(f"{measures.RELATED}, {name}"), paper, 0.00005, scale=1.0)
        for name, paper in papers.items()
    ]
    cells.append(Cell("EntM", measures.UPPER, tasks, number(measures.UPPER), 65.0, 0.5, scale=1.0))
    return [
        PublishedValue("Normalised margin and distance (R Fig 4)", tasks[0]),
        Table("Correlations (R Table 4), and the non-linearity that parts EntM's samples (R Fig 4b)", cells, unit=""),
    ]


def measured_table(
    title: str, name: str, function: Call, question: str, examples: int, variant: Variant, **more: Any
) -> list[Part]:
    """A table whose rows are the numbers that a function measures on CIFAR-10, and whose columns are methods."""

    def source(row: str, column: str) -> Any:
        return measures_of(function, [column], "cifar10", question, examples), number(row)

    return [published_table(f"{title} (R {name})", "rethinking", name, source, **more)]


def table_11(variant: Variant) -> list[Part]:
    """WideResNet-34-10, under PGD and CW."""

    def cells(data: str) -> list[Cell]:
        return [cell(*entry, data=data, build=wide) for entry in published_values("rethinking", f"Table 11, {data}")]

    return [Table(f"Accuracy on {data} (R Table 11)", cells(data), "attack") for data in ("cifar10", "cifar100")]


_ACCURACIES = {1: "CIFAR-10", 2: "CIFAR-100", 3: "SVHN", 6: "CIFAR-10", 7: "CIFAR-100", 8: "SVHN", 9: "MNIST",
               12: "CIFAR-10", 13: "CIFAR-100"}  # fmt: skip
"""The tables of accuracies under attacks."""

EXPERIMENTS = experiments(
    "rethinking",
    {
        **{f"rethinking-table-{table}": partial(accuracies, table, data) for table, data in _ACCURACIES.items()},
        "rethinking-figure-1": figure_1,
        "rethinking-figure-2": figure_2,
        "rethinking-figure-3": figure_3,
        "rethinking-figure-4": figure_4,
        "rethinking-figure-5": partial(surfaces, "loss", "R Fig 5"),
        "rethinking-figure-6": partial(surfaces, "margin", "R Fig 6"),
        "rethinking-table-4": partial(
            measured_table,
            "Margin, Jacobian and non-linearity",
            "Table 4",
            call(measures.jacobian_analysis),
            "Are margins large because outputs change slowly, and are they linear enough for that to matter?",
            2000,
            corner="mean of",
            unit="",
            scale=1.0,
        ),
        "rethinking-table-10": partial(
            measured_table,
            "Images of 1,000",
            "Table 10",
            call(measures.behind_pgd),
            "Do random points fool networks that gradients do not?",
            1000,
            corner="",
            unit="of 1,000",
            scale=1000.0,
            decimals=0,
        ),
        "rethinking-table-11": table_11,
    },
)

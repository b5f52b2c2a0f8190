"""What the experiments of U and T share: how their numbers are read, and the trainings that both papers report."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from equipoise.reproduce import measures
from equipoise.reproduce.experiment import (
    Cell,
    Chart,
    Experiment,
    Line,
    Part,
    PublishedValue,
    Read,
    Table,
    Variant,
    clean,
    robust,
)
from equipoise.reproduce.printed import printed
from equipoise.reproduce.tasks import TEST_SIZES, Call, Evaluated, Measured, Net, StudyTask, Task, Training, call
from equipoise.training import Recipe, methods

SEEDS = range(3)
"""Of every number: U Table 2 is "averaged over 3 seeds", its Figs 13, 14 and T's Figs 3, 4, 9 "over 3 runs", and the
others over "multiple runs"."""

ADAM = Recipe(epochs=100, batch_size=256, lr=1e-3, validation=1 / 12)
"""55,000 samples of MNIST's 60,000 to train on, 5,000 to validate."""

PLANE_NOTES = (
    "The points, the network and its training, of which the paper says nothing, are those of the study; eps, step size "
    "and number of steps are the paper's where it gives them."
)


def evaluated(
    training: Training, attacks: Sequence[str] = ("clean",), eps: Sequence[float] = (), norm: str = "linf", **more: Any
) -> Evaluated:
    """All test samples, with the weights of the last epoch: neither U nor T says that an epoch is chosen."""
    return Evaluated(training, attacks, eps, norm, examples=TEST_SIZES[training.data], weights="last", **more)


def autoattacked(
    title: str,
    text: str,
    trained: Callable[[str, float], Sequence[Training]],
    read: Callable[..., Read] = robust,
    corner: str = "method",
) -> Table:
    """A printed table of accuracies, clean and under AutoAttack in a ball such as `Linf 0.05`; with `trade_off`, of
    their means with the clean accuracy. `trained` gives the trainings of a row, such as `PGD (eps 0.2)`.
    """
    cells: list[Cell] = []
    for row, entries in groupby(printed(text, decimals=1), key=lambda entry: entry[0]):
        _, columns, numbers, deviations = zip(*entries, strict=True)
        trainings, balls = trained(*named(row)), [_ball(column) for column in columns if column != "clean"]
        tasks = {
            norm: [evaluated(one, ["autoattack"], [eps for other, eps in balls if other == norm], norm)
                   for one in trainings]
            for norm, _ in balls
        }  # fmt: skip
        for column, number, deviation in zip(columns, numbers, deviations, strict=True):
            norm, eps = balls[0] if column == "clean" else _ball(column)
            how = clean if column == "clean" else read(eps, norm, "autoattack")
            cells.append(Cell(row, column, tasks[norm], how, number, deviation))
    return Table(title, cells, corner)


def named(row: str) -> tuple[str, float]:
    """Method and eps of training that the row of a table names: `PGD (eps 0.2)`; without an eps it is 0."""
    match = re.fullmatch(r"(.+) \(eps (.+)\)", row)
    return (match[1], float(match[2])) if match else (row, 0.0)


def _ball(column: str) -> tuple[str, float]:
    """Norm and radius that the column of a table names: `Linf 0.05`."""
    norm, eps = column.lower().split()
    return norm, float(eps)


def curve(name: str, points: Mapping[float, Sequence[Task]], read: Read = clean) -> Line:
    """A line of a chart, from the tasks at every abscissa."""
    return Line(name, [(x, Cell(name, f"{x:g}", tasks, read)) for x, tasks in points.items()])


def studied(
    name: str, title: str, source: str, notes: str, studies: Mapping[str, StudyTask], about: str = PLANE_NOTES
) -> Experiment:
    """An experiment that shows studies, each under its heading."""
    parts = [PublishedValue(heading, study) for heading, study in studies.items()]
    return Experiment(name, title, source, lambda variant: parts, notes=about + notes)


# One-step training on Fashion-MNIST (U App. E.2; T Sec. 5.3).

ONE_STEP_NOTES = (
    "Accuracy is that on the 5,000 validation samples after every epoch of 100, under FGSM and PGD-20 with eps .2; the "
    "steps of PGD-20 are eps/8 = .025, where the paper's are .01. The third part is the study of the same question: on "
    "test samples, with steps of .01, every 40 steps of the first epochs. With batches of 256 (elsewhere 128)."
)


def courses(title: str, trainings: Sequence[Training], strong: str) -> PublishedValue:
    """Accuracy on validation samples over the training."""
    question = "Does accuracy under an attack fall while the network trains?"
    return PublishedValue(
        title, Measured(call(measures.course, strong=strong), trainings, question, "last", courses=True)
    )


def one_step_parts(name: str, method: Call) -> list[Part]:
    """LeNets trained with FGSM and with one step of the method, eps .2."""

    def trained(how: Call) -> list[Training]:
        recipe = replace(ADAM, valid_eps=0.2, valid_steps=20, valid_examples=5_000)
        return [Training(how, Net("lenet"), "fashion-mnist", replace(recipe, seed=seed)) for seed in SEEDS]

    return [
        courses("Trained with FGSM", trained(call(methods.fgsm_at, eps=0.2)), "PGD-20"),
        courses(f"Trained with {name}", trained(method), "PGD-20"),
        PublishedValue("The first epochs", StudyTask("overfitting", data="fashion-mnist")),
    ]


# One-step training on CIFAR-10 (U App. E.2; T Sec. 5.3, App. B.2).

FAST_RADII = tuple(k / 255 for k in (2, 4, 8, 12, 16))
FAST_QUIRKS = (
    "As published, perturbations are computed in train mode, with batch statistics and dropout masks of each sample's "
    "own; corrected, in eval mode."
)
FAST_NOTES = (
    "ResNet-18 with dropout of .2 after each convolution, random crops and flips, 90 epochs, a cyclic learning rate "
    "with a maximum of .2, of .1 for the uncertain methods (T App. B.2): one triangle with its peak after 40 % of the "
    "training, as in Andriushchenko & Flammarion (2020), to whom T refers; batches of 256 and a weight decay of 5e-4 "
    "are those of U's other runs. The loss is that of the mean of the five models sampled by dropout. "
    "Trained and tested with the same eps, as T's Fig 9c, which is of the same runs, is against the eps of training; "
    "the radii, and R-FGSM's step of 1.25 eps, PGD-2's and the two-step methods' of eps/2 and the test's of eps/4, "
    "which no paper gives, are those usual since Andriushchenko & Flammarion (2020)."
)


def fast_trainings(uncertain: str, eps: float, variant: Variant) -> dict[str, list[Training]]:
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
    return {
        name: [
            Training(
                method,
                Net("resnet18-dropout", dropout_samples=5 if name.startswith(uncertain) else 0),
                "cifar10",
                Recipe(epochs=90, batch_size=256, optimizer="sgd", lr=0.1 if name.startswith(uncertain) else 0.2,
                       weight_decay=5e-4, schedule="cyclic", augment="crop-flip", seed=seed),
            )
            for seed in SEEDS
        ]
        for name, method in calls.items()
    }  # fmt: skip


def fast_chart(uncertain: str, variant: Variant, robustness: bool) -> Chart:
    """Accuracy against eps, clean or under PGD with 50 steps and 10 restarts, by method (U Fig 14; T Figs 3, 9c)."""
    by_eps = {eps: fast_trainings(uncertain, eps, variant) for eps in FAST_RADII}

    def point(name: str, eps: float) -> tuple[float, Cell]:
        tasks = [evaluated(one, ["pgd50"], [eps], step_size=eps / 4, restarts=10) for one in by_eps[eps][name]]
        read = robust(eps, attack="pgd50") if robustness else clean
        return 255 * eps, Cell(name, f"{255 * eps:g}/255", tasks, read)

    what = "accuracy under PGD-50-10" if robustness else "clean accuracy"
    lines = [Line(name, [point(name, eps) for eps in FAST_RADII]) for name in by_eps[FAST_RADII[0]]]
    return Chart(f"CIFAR-10, {what} after fast training", "eps of training and test, in 1/255", f"{what}, %", lines)

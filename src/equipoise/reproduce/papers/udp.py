"""The tables and figures of U, "Uncertainty-driven perturbations": its experiments, and what they share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from equipoise.attacks.steps import Zero
from equipoise.reproduce import measures
from equipoise.reproduce.experiment import (
    Cell,
    Chart,
    Experiment,
    Part,
    Table,
    Variant,
    clean,
    number,
    robust,
    trade_off,
)
from equipoise.reproduce.printed import printed, table
from equipoise.reproduce.recipes import (
    ADAM,
    FAST_NOTES,
    FAST_QUIRKS,
    ONE_STEP_NOTES,
    SEEDS,
    autoattacked,
    curve,
    evaluated,
    fast_chart,
    named,
    one_step_parts,
    studied,
)
from equipoise.reproduce.tasks import Call, Measured, Net, StudyTask, Training, call
from equipoise.training import Recipe, methods

START_QUIRK = (
    "As published, as in the authors' code, TRADES starts at the sample, where its divergence has no slope; corrected, "
    "it starts from noise of .001."
)
QUIRKS = (
    f"{START_QUIRK} As published, perturbations of networks with batch-norm are computed in train mode; corrected, "
    "in eval mode. As published, the pre-activation ResNet-18 is that of the code: its shortcuts see the raw input, "
    "its last block is followed by pooling and a linear layer alone, and on SVHN and with augmentation its weights are "
    "initialised as by He et al. (fan-out); corrected, it is that of He et al. (2016). As published, the learning rate "
    "peaks in the middle of the training, for UDPR on CIFAR-10 at .14; corrected, after 40 %, as that of "
    "Andriushchenko & Flammarion (2020), to whom U refers, and at .15. The growing and shrinking steps of the authors' "
    "code are off when it trains."
)
NOTES = (
    "The weights are those of the last epoch. UDP and UDPR draw the number of steps, from 1 to K, for each sample, as "
    "the authors' code does; PGD starts at the sample. TRADES has weight 1 and the divergence of U, the cross-entropy "
    "with the clean prediction; UDPR has weight 1."
)

RADII = {
    "fashion-mnist": (0.1, 0.2, 0.3, 0.4, 0.5),
    "svhn": tuple(k / 100 for k in range(1, 9)),
    "cifar10": tuple(k / 100 for k in range(1, 9)),
}
"""Of training: .01 to .08 (U Sec. 5.1.1); of Fashion-MNIST U says none beyond those of Table 2."""

_METHODS: Mapping[str, tuple[Callable[..., Any], Mapping[str, Any]]] = {
    "PGD": (methods.pgd_at, {}),
    "TRADES": (methods.trades, {"beta": 1.0, "divergence": "soft-cross-entropy"}),
    "UDPR": (methods.udpr, {"weight": 1.0}),
    "UDP-PGD": (methods.udp, {}),
}


def recipe(
    data: str, seed: int, augment: Literal["none", "crop-flip"] = "none", name: str = "", published: bool = False
) -> Recipe:
    """Adam for LeNet (U App. F.1.1), a triangular learning rate for ResNet-18 (F.1.2): `published`, as in the authors'
    code, with its peak in the middle, for UDPR on CIFAR-10 lower.
    """
    if data == "fashion-mnist":
        return replace(ADAM, seed=seed)
    lower = published and name == "UDPR" and data == "cifar10"
    return Recipe(
        epochs=60, batch_size=256, optimizer="sgd", lr=0.14 if lower else 0.15, weight_decay=5e-4,
        schedule="triangular", lr_peak=0.5 if published else 0.4, augment=augment, seed=seed,
    )  # fmt: skip


def resnet(published: bool, he: bool = False) -> Net:
    """The pre-activation ResNet-18, `published` as in the authors' code."""
    if not published:
        return Net("preact-resnet18")
    return Net("preact-resnet18-udp", {"init": "he-fan-out"} if he else {})


def trades_start(name: str, published: bool) -> Mapping[str, Call]:
    """TRADES of the authors' code starts at the sample."""
    return {"start": call(Zero)} if published and name.endswith("TRADES") else {}


def climb_at(data: str, eps: float) -> tuple[float, int]:
    """Step size and number of steps K: those of the authors' runs where there are some with this eps, and what
    continues them elsewhere.
    """
    if data == "fashion-mnist":
        return max(0.015, eps / 20), 25 if eps == 0.3 else 20
    size = 0.001 if data == "cifar10" and eps <= 0.04 else 0.002
    return size, max(round(eps / size), 10)


def method(name: str, eps: float, size: float, steps: int, variant: Variant, batch_norm: bool) -> Call:
    """A method of U's tables, or `standard`."""
    if name == "standard":
        return call(methods.standard)
    function, more = _METHODS[name]
    mode = {"mode": "train"} if variant == "as published" and batch_norm else {}
    start = trades_start(name, variant == "as published")
    return call(function, eps=eps, step_size=size, steps=steps, **more, **mode, **start)


def training(
    data: str,
    name: str,
    eps: float,
    seed: int,
    variant: Variant,
    climb: tuple[float, int] | None = None,
    augment: Literal["none", "crop-flip"] = "none",
    width: int = 1,
) -> Training:
    """LeNet, so many times as wide, on Fashion-MNIST, or the pre-activation ResNet-18 on CIFAR-10 and SVHN."""
    size, steps = climb or climb_at(data, eps)
    small = data == "fashion-mnist"
    how = method(name, eps, size, steps, variant, batch_norm=not small)
    published = variant == "as published"
    net = (
        Net("lenet", {"width": width} if width > 1 else {})
        if small
        else resnet(published, data == "svhn" or augment != "none")
    )
    return Training(how, net, data, recipe(data, seed, augment, name, published))


def trainings(data: str, name: str, eps: float, variant: Variant, **more: Any) -> list[Training]:
    """One training per seed."""
    return [training(data, name, eps, seed, variant, **more) for seed in SEEDS]


def clean_chart(data: str, radii: Sequence[float], variant: Variant) -> Chart:
    """Clean accuracy against the eps of training, by method (U Figs 4, 12)."""
    lines = [
        curve(name, {eps: [evaluated(one) for one in trainings(data, name, eps, variant)] for eps in radii})
        for name in _METHODS
    ]
    return Chart(f"Clean accuracy on {data}", "eps of training", "clean accuracy, %", lines)


def table_1(variant: Variant) -> list[Part]:
    """CIFAR-10 and SVHN without augmentation."""
    return [
        autoattacked(
            f"{what} on {data} (U Table 1)",
            table("udp", f"Table 1, {data}, {kind}"),
            lambda name, eps, data=data: trainings(data, name, eps, variant),
            read,
        )
        for data in ("cifar10", "svhn")
        for what, kind, read in (
            ("Accuracy under AutoAttack", "robust", robust),
            ("Mean of clean accuracy and accuracy under AutoAttack", "trade-off", trade_off),
        )
    ]


def table_2(variant: Variant) -> list[Part]:
    """Fashion-MNIST."""
    return [
        autoattacked(
            f"{what} under AutoAttack on Fashion-MNIST (U Table 2)",
            table("udp", f"Table 2, {kind}"),
            lambda name, eps: trainings("fashion-mnist", name, eps, variant),
            read,
        )
        for what, kind, read in (
            ("Accuracy", "robust", robust),
            ("Mean of clean accuracy and that", "trade-off", trade_off),
        )
    ]


_AUGMENTED_CLIMBS = {"PGD": (0.006, 10), "UDPR": (0.01, 10), "UDP-PGD": (0.01, 20)}
"""Step size and number of steps of U Table 3."""


def table_3(variant: Variant) -> list[Part]:
    """CIFAR-10 with augmentation."""

    def trained(name: str, eps: float) -> list[Training]:
        return trainings("cifar10", name, eps, variant, climb=_AUGMENTED_CLIMBS[name], augment="crop-flip")

    title = "Accuracy on CIFAR-10 with augmentation, clean and under AutoAttack (U Table 3)"
    return [autoattacked(title, table("udp", "Table 3"), trained)]


def _transferred(of: Training) -> Measured:
    return Measured(
        call(measures.transfer, layer="features"),
        [of],
        "Are features learned on CIFAR-10 of use for CIFAR-100?",
        weights="last",
        examples=10_000,
        samples=50_000,
        target="cifar100",
    )


def table_4(variant: Variant) -> list[Part]:
    """Features learned on CIFAR-10, used for CIFAR-100. A row is `SELECTED BY, METHOD (eps EPS)`, or the baseline."""
    cells = []
    for row, column, paper, deviation in printed(table("udp", "Table 4"), decimals=1):
        name, eps = named(row.rpartition(", ")[2])
        trained = trainings("cifar10", "standard" if row == "baseline" else name, eps, variant)
        tasks = [_transferred(one) for one in trained]
        cells.append(Cell(row, column, tasks, number(measures.TRANSFER), paper, deviation))
    return [Table("Accuracy on CIFAR-100 of a linear classifier of features of CIFAR-10 (U Table 4)", cells)]


_TRAINED, _HELD_OUT = 2_500, 125
_LATENT_METHODS: Mapping[str, tuple[Callable[..., Any], Mapping[str, Any]]] = {
    "LS-PGD": (methods.ls_pgd, {}),
    "LS-TRADES": (methods.ls_trades, {"beta": 1.0, "divergence": "soft-cross-entropy"}),
    "LS-UDPR": (methods.ls_udpr, {"weight": 1.0}),
    "LS-UDP-PGD": (methods.ls_udp, {}),
}


def _latent_method(row: str, published: bool) -> Call:
    if row == "baseline":
        return call(methods.standard)
    function, more = _LATENT_METHODS[row]
    ball = {"eps": 2.0, "mode": "train"} if published else {"eps": 0.2}
    return call(function, layer="block8", step_size=0.01, steps=20, **ball, **more, **trades_start(row, published))


def _latent_training(row: str, seed: int, published: bool) -> Training:
    recipe = Recipe(
        epochs=100, batch_size=256, optimizer="sgd", lr=0.05, weight_decay=5e-4, schedule="triangular",
        lr_peak=0.5 if published else 0.4, validation=_HELD_OUT / (_TRAINED + _HELD_OUT), seed=seed,
    )  # fmt: skip
    net = resnet(published)
    return Training(_latent_method(row, published), net, "cifar10", recipe, samples=_TRAINED + _HELD_OUT)


def table_5(variant: Variant) -> list[Part]:
    """5 % of CIFAR-10, perturbations in the latent space."""
    published = variant == "as published"
    cells = [
        Cell(row, "clean", [evaluated(_latent_training(row, seed, published)) for seed in SEEDS], clean, paper, stated)
        for row, _, paper, stated in printed(table("udp", "Table 5"), decimals=1)
    ]
    return [Table("Clean accuracy on CIFAR-10, trained on 2,500 samples (U Table 5)", cells)]


def figure_5(variant: Variant) -> list[Part]:
    """Clean accuracy on Fashion-MNIST against the width of the network."""

    def trained(name: str, width: int) -> list[Any]:
        return [evaluated(one) for one in trainings("fashion-mnist", name, 0.1, variant, width=width)]

    lines = [
        curve("UDP-PGD, eps .1", {width: trained("UDP-PGD", width) for width in (2, 4, 6, 8, 10, 12)}),
        curve("standard, width 1", {1: trained("standard", 1)}),
    ]
    return [Chart("Clean accuracy on Fashion-MNIST", "width", "clean accuracy, %", lines)]


EXPERIMENTS = (
    studied(
        "udp-figure-2",
        "Distances from the training samples of CIFAR-10 to the nearest sample of another class",
        "U Fig 2",
        "Exact, over all training samples; beside U's Euclidean distances are those in Linf, its norm of training.",
        {"Distance to the nearest sample of another class": StudyTask("opposite-class", data="cifar10")},
        about="",
    ),
    studied(
        "udp-figure-3",
        "Decision regions of standard, PGD, TRADES and UDP training on the Narrow Corridor and on LMS-5",
        "U Fig 3",
        " U does not print the eps of this figure: on the Narrow Corridor PGD and TRADES have the narrowest gap and "
        "UDP twice that, and each its best one too; on LMS-5 PGD and TRADES have the largest that keeps the classes "
        "apart, half of the Linf gap of the supports, and UDP twice that.",
        {"Narrow Corridor": StudyTask("narrow-corridor"), "LMS-5": StudyTask("lms5")},
    ),
    Experiment(
        "udp-figure-4",
        "Clean accuracy on SVHN and CIFAR-10 of PGD, TRADES, UDPR and UDP-PGD, against the eps of training",
        "U Fig 4",
        lambda variant: [clean_chart(data, RADII[data], variant) for data in ("svhn", "cifar10")],
        quirks=QUIRKS,
        notes=NOTES
        + " Step and number of steps are those of the authors' runs for the eps of U Table 1, and continue them for "
        "the others: steps of .002, on CIFAR-10 up to eps .04 of .001, K = eps/step, at least 10.",
    ),
    Experiment(
        "udp-figure-5",
        "Clean accuracy on Fashion-MNIST of UDP with eps .1, against the width of the LeNet",
        "U Fig 5",
        figure_5,
        notes=NOTES
        + " The width multiplies the filters of both convolutions and the first linear layer (U App. F.2): every "
        "second one from 2 to 12. U does not give the steps for this eps: here 20 of .015, as for its PGD with eps "
        ".2.",
    ),
    studied(
        "udp-figure-8",
        "PGD and UDP with an eps too large for one place and not for another: attacks, training, changes of prediction",
        "U Fig 8",
        " U does not print the eps: .8 for the attacks, .4 for the training.",
        {"Two distances": StudyTask("two-distance")},
    ),
    studied(
        "udp-figure-9",
        "Decision regions on the Narrow Corridor for eps .05, .15, .25, .35, .45",
        "U Fig 9",
        "",
        {"Narrow Corridor": StudyTask("narrow-corridor")},
    ),
    studied(
        "udp-figure-10",
        "PGD and UDP perturbations of a deep-kernel Gaussian process trained on clean points",
        "U Fig 10",
        " The study shows U Fig 11 as well.",
        {"Gaussian process": StudyTask("due")},
    ),
    studied(
        "udp-figure-11",
        "A deep-kernel Gaussian process trained by PGD and by UDP",
        "U Fig 11",
        " The study shows U Fig 10 as well, and a controlled run with steps of .02.",
        {"Gaussian process": StudyTask("due")},
    ),
    Experiment(
        "udp-figure-12",
        "Clean accuracy on Fashion-MNIST, SVHN and CIFAR-10 of PGD, TRADES, UDPR and UDP-PGD, against the eps of "
        "training",
        "U Fig 12",
        lambda variant: [clean_chart(data, radii, variant) for data, radii in RADII.items()],
        quirks=QUIRKS,
        notes=NOTES
        + " Step and number of steps are those of the authors' runs for the eps of U Tables 1 and 2, and continue "
        "them for the others: on Fashion-MNIST 20 steps of the larger of .015 and eps/20; else steps of .002, on "
        "CIFAR-10 up to eps .04 of .001, K = eps/step, at least 10.",
    ),
    Experiment(
        "udp-figure-13",
        "Fashion-MNIST: clean, FGSM and PGD-20 accuracy while training with FGSM and with one step of UDP-PGD",
        "U Fig 13",
        lambda variant: one_step_parts("UDP-PGD with one step", call(methods.udp, eps=0.2, step_size=0.2, steps=1)),
        notes=ONE_STEP_NOTES,
    ),
    Experiment(
        "udp-figure-14",
        "CIFAR-10: accuracy under PGD-50 with 10 restarts after FGSM, R-FGSM, PGD-2 and one and two steps of UDP-PGD",
        "U Fig 14",
        lambda variant: [fast_chart("UDP", variant, robustness=True)],
        quirks=FAST_QUIRKS,
        notes=FAST_NOTES,
    ),
    studied(
        "udp-figure-15",
        "CIFAR-10 images after 1000 steps up the uncertainty and up the loss, with eps infinite",
        "U Fig 15",
        "U does not say which classifier is perturbed; here it is a LeNet, trained for at least three epochs.",
        {"Appearance": StudyTask("appearance", data="cifar10")},
        about="",
    ),
    Experiment(
        "udp-table-1",
        "CIFAR-10 and SVHN without augmentation: accuracy under AutoAttack, and its trade-off with clean accuracy",
        "U Table 1",
        table_1,
        quirks=QUIRKS,
        notes=NOTES
        + " Every row is trained with the eps that U selected for it; nothing is selected anew. Steps and their "
        "number are those of the authors' runs; of PGD on SVHN only the step of .002 is known, K = eps/.002 is "
        "ours. A tenth of the training samples is held out.",
    ),
    Experiment(
        "udp-table-2",
        "Fashion-MNIST: accuracy under AutoAttack, and its trade-off with clean accuracy",
        "U Table 2",
        table_2,
        quirks=START_QUIRK,
        notes=NOTES
        + " Every row is trained with the eps that U selected for it; nothing is selected anew. Steps and their "
        "number are those of the authors' runs. U's trade-offs of PGD are about 1 point below the means of its own "
        "numbers in the upper half (78.9 and 73.9, of which it says 75.5), so they may be of another run; its L2 "
        "entry is not legible.",
    ),
    Experiment(
        "udp-table-3",
        "CIFAR-10 with random crops and flips: accuracy, clean and under AutoAttack",
        "U Table 3",
        table_3,
        quirks=QUIRKS,
        notes=NOTES
        + " U prints no deviations and no number of seeds; it is three here, as for its other tables. Steps "
        "and their number are those of the authors' runs.",
    ),
    Experiment(
        "udp-table-4",
        "Features learned on CIFAR-10, kept as they are: accuracy of a classifier of CIFAR-100 on them",
        "U Table 4",
        table_4,
        quirks=QUIRKS,
        notes=NOTES
        + " The networks are those of U Table 1, and the baseline trained like them without perturbations. U does "
        "not say which classifier is trained on the embedding: here a logistic regression with L2 penalty (C = 1) "
        "on the standardised 512 features before the last layer.",
    ),
    Experiment(
        "udp-table-5",
        "5 % of CIFAR-10: clean accuracy after training with perturbations in the latent space",
        "U Table 5",
        table_5,
        quirks="As published, the table's eps of 2, with perturbations in train mode; corrected, the eps of .2 of "
        "the text (Sec. 5.1.2), in eval mode. As 20 steps of .01 lead no further than .2, the two balls hold the "
        "same points. As published, the network is that of the authors' code, whose classifier behind the code is "
        "pooling and a linear layer, TRADES starts at the code itself and the learning rate peaks in the middle of "
        "the training; corrected, batch-norm and ReLU come before the pooling, TRADES starts from noise and the "
        "peak is after 40 %.",
        notes="The code is what the last residual block returns. 100 epochs and a peak learning rate of .05 are "
        'what U App. F.1.2 says of its "Sec. 5.2", in the earlier numbering the experiments in latent space; that '
        "section is now one on Fashion-MNIST, to which a ResNet-18 does not belong. 125 samples more are held out. "
        "The weights are those of the last epoch; TRADES and UDPR have weight 1; three seeds.",
    ),
)

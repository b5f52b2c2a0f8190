"""The tables and figures of T, the earlier version of U ("uncertainty-targeted attacks"), and what they share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from equipoise.attacks.steps import Triangular
from equipoise.reproduce.experiment import Cell, Chart, Experiment, Line, Part, Variant, robust, trade_off
from equipoise.reproduce.printed import table
from equipoise.reproduce.recipes import (
    ADAM,
    FAST_NOTES,
    FAST_QUIRKS,
    ONE_STEP_NOTES,
    SEEDS,
    autoattacked,
    courses,
    curve,
    evaluated,
    fast_chart,
    one_step_parts,
    studied,
)
from equipoise.reproduce.tasks import Call, Net, StudyTask, Training, call
from equipoise.training import Recipe, methods

NOTES = (
    "Adam with a learning rate of .001 and 100 epochs, which T says of Fashion-MNIST alone, are taken for all; batches "
    "of 256 and 55,000 of 60,000 samples to train on are U's. The weights are those of the last epoch. UTA takes all K "
    'steps; T\'s "multiple runs" are three here.'
)

LATENT_NOTES = (
    "LS-PGD perturbs one LeNet, LS-UTA an ensemble of five, whose members are trained by their own losses where the "
    "entropy of their mean led. The step grows from .005 to eps/5 and back (T writes eps_test/5, where only "
    "the eps of training can be meant); K = eps/.01 is that of the input space. The perturbed layer is the first "
    "linear layer behind its ReLU (T does not say whether before or behind). Adam with a learning rate of .001, 100 "
    "epochs, batches of 256, 55,000 of 60,000 samples to train on; the weights are those of the last epoch. UTA takes "
    'all K steps; T\'s "multiple runs" are three here.'
)
CHARTS_NOTES = " PGD-10 takes steps of eps/4 from a random start; T does not print the eps of the test: here to .5."

RADII = {
    "mnist": (0.1, 0.2, 0.3, 0.4),
    "fashion-mnist": (0.1, 0.2, 0.3, 0.4),
    "svhn": (0.01, 0.04, 0.08, 0.12, 0.16),
}
"""Of training (T Sec. 5.1)."""

QUIRKS = "As published, the perceptron has the leaky ReLUs of the authors' code; corrected, the paper's ReLUs."
"""On MNIST."""

_NETS = {"mnist": "mlp", "fashion-mnist": "lenet", "svhn": "lenet-wide"}
_METHODS: Mapping[str, Callable[..., Any]] = {"PGD": methods.pgd_at, "UTA": methods.uta}


def triangle(eps: float) -> Call:
    """From .005 to eps/5 and back (T, Sec. 5.1): T writes the eps of the test, of which there are several."""
    return call(Triangular, size=0.005, peak=eps / 5)


def training(data: str, variant: Variant, name: str, eps: float, seed: int, members: int = 1) -> Training:
    """PGD or UTA with K = eps/.01 steps of .01, on SVHN K = eps/.005 of a triangular schedule."""
    size, steps = (triangle(eps), round(eps / 0.005)) if data == "svhn" else (0.01, round(eps / 0.01))
    method = call(_METHODS[name], eps=eps, step_size=size, steps=steps)
    leaky = {"negative_slope": 0.01} if data == "mnist" and variant == "as published" else {}
    return Training(method, Net(_NETS[data], leaky, members=members), data, replace(ADAM, seed=seed))


def latent(name: str, eps: float, seed: int) -> Training:
    """LS-PGD of one LeNet or LS-UTA of five on MNIST, in the 120 outputs of the first linear layer (T Sec. 5.2)."""
    function = {"LS-PGD": methods.ls_pgd, "LS-UTA": methods.ls_uta}[name]
    method = call(function, eps=eps, layer="fc1", step_size=triangle(eps), steps=round(eps / 0.01))
    net = Net("lenet", members=5 if name == "LS-UTA" else 1)
    return Training(method, net, "mnist", replace(ADAM, seed=seed))


def table_1(data: str, variant: Variant) -> list[Part]:
    """The mean of clean accuracy and accuracy under AutoAttack, by method and eps of training."""
    title = f"Mean of clean and robust accuracy on {data}, by the eps of AutoAttack"

    def trained(name: str, eps: float) -> list[Training]:
        return [training(data, variant, name, eps, seed) for seed in SEEDS]

    return [autoattacked(title, table("uta", f"Table 1, {data}"), trained, trade_off, "training")]


def table_2(variant: Variant) -> list[Part]:
    """MNIST, perturbations in the latent space, tested in the input space."""
    title = "Mean of clean accuracy and that under AutoAttack on MNIST (T Table 2)"

    def trained(name: str, eps: float) -> list[Training]:
        return [latent(name, eps, seed) for seed in SEEDS]

    return [autoattacked(title, table("uta", "Table 2"), trained, trade_off, "training")]


_PGD_TESTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


def charts(
    trained: Mapping[str, Callable[[float, int], Training]], radii: Sequence[float], restarts: int = 1
) -> list[Part]:
    """Clean accuracy against the eps of training, and accuracy under PGD-10 against the eps of the test, of networks
    trained with every eps by every method (T Figs 10-13).
    """
    tests = _PGD_TESTS
    tasks = {
        name: {
            eps: [evaluated(make(eps, seed), ["pgd10"], tests, restarts=restarts) for seed in SEEDS] for eps in radii
        }
        for name, make in trained.items()
    }
    right = [
        Line(
            f"{name}, eps {eps:g}",
            [(test, Cell(f"{name}, eps {eps:g}", f"{test:g}", found, robust(test, attack="pgd10"))) for test in tests],
        )
        for name, by_eps in tasks.items()
        for eps, found in by_eps.items()
    ]
    return [
        Chart("Clean accuracy", "eps of training", "clean accuracy, %", [curve(n, t) for n, t in tasks.items()]),
        Chart("Accuracy under PGD-10", "eps of the test", "accuracy under PGD-10, %", right),
    ]


def input_charts(data: str, variant: Variant, members: int) -> list[Part]:
    """The same for PGD of one network and UTA of so many."""
    trained = {
        "PGD": partial(training, data, variant, "PGD"),
        "UTA": partial(training, data, variant, "UTA", members=members),
    }
    return charts(trained, RADII[data])


def figure_2(variant: Variant) -> list[Part]:
    """Clean accuracy against the eps of training."""

    def points(data: str, name: str) -> dict[float, list[Any]]:
        return {eps: [evaluated(training(data, variant, name, eps, seed)) for seed in SEEDS] for eps in RADII[data]}

    return [
        Chart(
            f"Clean accuracy on {data}",
            "eps of training",
            "clean accuracy, %",
            [curve(name, points(data, name)) for name in ("PGD", "UTA")],
        )
        for data in RADII
    ]


def _sampled_trainings(method: Call, dropout_samples: int) -> list[Training]:
    """ResNet-18 with dropout on CIFAR-10 (T App. B.2)."""
    net = Net("resnet18-dropout", dropout_samples=dropout_samples)
    return [
        Training(
            method,
            net,
            "cifar10",
            Recipe(
                epochs=200, batch_size=256, optimizer="sgd", lr=0.1, weight_decay=5e-4, schedule="multistep",
                milestones=(60 / 200, 120 / 200, 160 / 200), decay=1 / 15, augment="crop-flip", valid_eps=8 / 255,
                valid_steps=10, valid_examples=5_000, seed=seed,
            ),
        )
        for seed in SEEDS
    ]  # fmt: skip


def figure_9(variant: Variant) -> list[Part]:
    """Catastrophic overfitting on CIFAR-10, and clean accuracy after fast training."""
    mode = {"mode": "train"} if variant == "as published" else {}
    fgsm = call(methods.fgsm_at, eps=8 / 255, **mode)
    uta = call(methods.uta, eps=8 / 255, step_size=8 / 255, steps=1, **mode)
    return [
        courses("(a) trained with FGSM", _sampled_trainings(fgsm, 0), "PGD-10"),
        courses("(b) trained with UTA-1, one sampled model", _sampled_trainings(uta, 1), "PGD-10"),
        fast_chart("UTA", variant, robustness=False),
    ]


def figure_13(variant: Variant) -> list[Part]:
    """MNIST, perturbations in the latent space."""
    return charts({name: partial(latent, name) for name in ("LS-PGD", "LS-UTA")}, RADII["mnist"], restarts=10)


EXPERIMENTS = (
    studied(
        "uta-figure-1",
        "PGD and UTA with an eps too large for one place and not for another: attacks, training, changes of prediction",
        "T Fig 1",
        " T does not print the eps: .8 for the attacks, .4 for the training, where the uncertain method draws its "
        "number of steps (U's UDP).",
        {"Two distances": StudyTask("two-distance")},
    ),
    Experiment(
        "uta-figure-2",
        "Clean accuracy on MNIST, Fashion-MNIST and SVHN of PGD and UTA, against the eps of training",
        "T Fig 2",
        figure_2,
        quirks=QUIRKS,
        notes=NOTES + " The radii are those of T Table 1.",
    ),
    Experiment(
        "uta-figure-3",
        "CIFAR-10: accuracy under PGD-50 with 10 restarts after FGSM, R-FGSM, PGD-2 and one and two steps of UTA",
        "T Fig 3",
        lambda variant: [fast_chart("UTA", variant, robustness=True)],
        quirks=FAST_QUIRKS,
        notes=FAST_NOTES,
    ),
    Experiment(
        "uta-figure-4",
        "Fashion-MNIST: clean, FGSM and PGD-20 accuracy while training with FGSM and with one step of UTA",
        "T Fig 4",
        lambda variant: one_step_parts("UTA-1", call(methods.uta, eps=0.2, step_size=0.2, steps=1)),
        notes=ONE_STEP_NOTES,
    ),
    studied(
        "uta-figure-5",
        "PGD and UTA attacks on a deep-kernel Gaussian process trained on clean points",
        "T Fig 5",
        " The study shows T Fig 6 as well.",
        {"Gaussian process": StudyTask("due")},
    ),
    studied(
        "uta-figure-6",
        "A deep-kernel Gaussian process trained by PGD and by UTA",
        "T Fig 6",
        " The study draws the number of steps of the uncertain training (as U), where T takes all. It shows "
        "Fig 5 too, and a controlled run with steps of .02.",
        {"Gaussian process": StudyTask("due")},
    ),
    studied(
        "uta-figure-7",
        "TRADES with an eps too large for one place and not for another",
        "T Fig 7",
        " The weight of TRADES is 1, as in T. The study shows T Fig 1 as well.",
        {"Two distances": StudyTask("two-distance")},
    ),
    studied(
        "uta-figure-8",
        "CIFAR-10 images after 1000 steps up the uncertainty and up the loss, with eps infinite",
        "T Fig 8",
        "T does not say which classifier is attacked; here it is a LeNet, trained for at least three epochs.",
        {"Appearance": StudyTask("appearance", data="cifar10")},
        about="",
    ),
    Experiment(
        "uta-figure-9",
        "CIFAR-10: accuracy while training with FGSM and one step of UTA, and clean accuracy after fast training",
        "T Fig 9",
        figure_9,
        quirks=FAST_QUIRKS,
        notes="(a, b) 200 epochs of SGD with a learning rate of .1, divided by 15 after 60, 120 and 160 epochs, random "
        "crops and flips; batches of 256 and a weight decay of 5e-4 are U's. Accuracy is that on the 5,000 "
        "validation samples after every epoch, under PGD-10 with steps of eps/4. (c) " + FAST_NOTES,
    ),
    Experiment(
        "uta-figure-10",
        "Fashion-MNIST: clean accuracy and that under PGD-10, of PGD and of UTA with one model",
        "T Fig 10",
        lambda variant: input_charts("fashion-mnist", variant, members=1),
        notes=NOTES + CHARTS_NOTES,
    ),
    Experiment(
        "uta-figure-11",
        "Fashion-MNIST: clean accuracy and that under PGD-10, of PGD and of UTA with an ensemble of five",
        "T Fig 11",
        lambda variant: input_charts("fashion-mnist", variant, members=5),
        notes=NOTES + CHARTS_NOTES,
    ),
    Experiment(
        "uta-figure-12",
        "MNIST: clean accuracy and that under PGD-10, of PGD and of UTA with an ensemble of five",
        "T Fig 12",
        lambda variant: input_charts("mnist", variant, members=5),
        quirks=QUIRKS,
        notes=NOTES + CHARTS_NOTES,
    ),
    Experiment(
        "uta-figure-13",
        "MNIST, perturbations in the latent space: clean accuracy against the eps of training, and under PGD of the "
        "test",
        "T Fig 13",
        figure_13,
        notes=LATENT_NOTES + CHARTS_NOTES + " The test starts 10 times at random.",
    ),
    Experiment(
        "uta-table-1-mnist",
        "MNIST, a perceptron: mean of clean accuracy and accuracy under AutoAttack, for PGD and UTA",
        "T Table 1, MNIST",
        partial(table_1, "mnist"),
        quirks=QUIRKS,
        notes=NOTES,
    ),
    Experiment(
        "uta-table-1-fashion-mnist",
        "Fashion-MNIST, LeNet: mean of clean accuracy and accuracy under AutoAttack, for PGD and UTA",
        "T Table 1, Fashion-MNIST",
        partial(table_1, "fashion-mnist"),
        notes=NOTES,
    ),
    Experiment(
        "uta-table-1-svhn",
        "SVHN, a wide LeNet: mean of clean accuracy and accuracy under AutoAttack, for PGD and UTA",
        "T Table 1, SVHN",
        partial(table_1, "svhn"),
        notes=NOTES
        + " T says of the step that it grows from .005 to eps_test/5, where only the eps of training can be meant; "
        "it does not give the number of steps: here K = eps/.005.",
    ),
    Experiment(
        "uta-table-2",
        "MNIST, perturbations in the latent space: mean of clean accuracy and accuracy under AutoAttack in the "
        "input space",
        "T Table 2",
        table_2,
        notes=LATENT_NOTES,
    ),
)

"""What the experiments of U and T share: data, networks, training, perturbations, and how their numbers are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from equipoise.attacks.steps import Triangular, Zero
from equipoise.reproduce import measures
from equipoise.reproduce.experiment import (
    Cell,
    Chart,
    Line,
    Part,
    Read,
    Shown,
    Table,
    Variant,
    clean,
    robust,
    trade_off,
)
from equipoise.reproduce.tasks import TEST_SIZES, Call, Evaluated, Measured, Net, Studied, Task, Training, call
from equipoise.training import Recipe, methods

SEEDS = range(3)
"""Of every number: U Table 2 is "averaged over 3 seeds", its Figs 13, 14 and T's Figs 3, 4, 9 "over 3 runs", and the
others over "multiple runs"."""

ROUNDING = 0.05
"""Half of the last printed digit."""

Balls = Sequence[tuple[str, float]]
"""Norms and radii of the test."""

_NORMS = {"linf": "Linf", "l2": "L2"}


# How numbers are read.


def evaluated(
    training: Training, attacks: Sequence[str] = ("clean",), eps: Sequence[float] = (), norm: str = "linf", **more: Any
) -> Evaluated:
    """All test samples, with the weights of the last epoch: neither U nor T says that an epoch is chosen."""
    return Evaluated(training, attacks, eps, norm, examples=TEST_SIZES[training.data], weights="last", **more)


def autoattacked(
    row: str,
    trainings: Sequence[Training],
    balls: Balls,
    paper: Sequence[float | None],
    deviation: Sequence[float] = (),
    read: Callable[..., Read] = robust,
) -> list[Cell]:
    """A row of accuracies under AutoAttack, ball by ball; with `trade_off`, of their means with the clean accuracy."""
    tasks = {
        norm: [evaluated(training, ["autoattack"], [eps for other, eps in balls if other == norm], norm)
               for training in trainings]
        for norm, _ in balls
    }  # fmt: skip
    stated = deviation or [ROUNDING] * len(balls)
    return [
        Cell(row, f"{_NORMS[norm]} {eps:g}", tasks[norm], read(eps, norm, "autoattack"), number, max(s, ROUNDING))
        for (norm, eps), number, s in zip(balls, paper, stated, strict=True)
    ]


def curve(name: str, points: Mapping[float, Sequence[Task]], read: Read = clean) -> Line:
    """A line of a chart, from the tasks at every abscissa."""
    return Line(name, [(x, Cell(name, f"{x:g}", tasks, read)) for x, tasks in points.items()])


# U, input space.

U_START_QUIRK = (
    "As published, as in the authors' code, TRADES starts at the sample, where its divergence has no slope; corrected, "
    "it starts from noise of .001."
)
U_QUIRKS = (
    f"{U_START_QUIRK} As published, perturbations of networks with batch-norm are computed in train mode; corrected, "
    "in eval mode. As published, the pre-activation ResNet-18 is that of the code: its shortcuts see the raw input, "
    "its last block is followed by pooling and a linear layer alone, and on SVHN and with augmentation its weights are "
    "initialised as by He et al. (fan-out); corrected, it is that of He et al. (2016). As published, the learning rate "
    "peaks in the middle of the training, for UDPR on CIFAR-10 at .14; corrected, after 40 %, as that of "
    "Andriushchenko & Flammarion (2020), to whom U refers, and at .15. The growing and shrinking steps of the authors' "
    "code are off when it trains."
)
U_NOTES = (
    "The weights are those of the last epoch. UDP and UDPR draw the number of steps, from 1 to K, for each sample, as "
    "the authors' code does; PGD starts at the sample. TRADES has weight 1 and the divergence of U, the cross-entropy "
    "with the clean prediction; UDPR has weight 1."
)

U_RADII = {
    "fashion-mnist": (0.1, 0.2, 0.3, 0.4, 0.5),
    "svhn": tuple(k / 100 for k in range(1, 9)),
    "cifar10": tuple(k / 100 for k in range(1, 9)),
}
"""Of training: .01 to .08 (U Sec. 5.1.1); of Fashion-MNIST U says none beyond those of Table 2."""

_ADAM = Recipe(epochs=100, batch_size=256, lr=1e-3, validation=1 / 12)
"""55,000 samples of MNIST's 60,000 to train on, 5,000 to validate."""

_U_METHODS: Mapping[str, tuple[Callable[..., Any], Mapping[str, Any]]] = {
    "PGD": (methods.pgd_at, {}),
    "TRADES": (methods.trades, {"beta": 1.0, "divergence": "soft-cross-entropy"}),
    "UDPR": (methods.udpr, {"weight": 1.0}),
    "UDP-PGD": (methods.udp, {}),
}


def u_recipe(
    data: str, seed: int, augment: Literal["none", "crop-flip"] = "none", name: str = "", published: bool = False
) -> Recipe:
    """Adam for LeNet (U App. F.1.1), a triangular learning rate for ResNet-18 (F.1.2): `published`, as in the authors'
    code, with its peak in the middle, for UDPR on CIFAR-10 lower.
    """
    if data == "fashion-mnist":
        return replace(_ADAM, seed=seed)
    lower = published and name == "UDPR" and data == "cifar10"
    return Recipe(
        epochs=60, batch_size=256, optimizer="sgd", lr=0.14 if lower else 0.15, weight_decay=5e-4,
        schedule="triangular", lr_peak=0.5 if published else 0.4, augment=augment, seed=seed,
    )  # fmt: skip


def u_resnet(published: bool, he: bool = False) -> Net:
    """The pre-activation ResNet-18, `published` as in the authors' code."""
    if not published:
        return Net("preact-resnet18")
    return Net("preact-resnet18-udp", {"init": "he-fan-out"} if he else {})


def u_start(name: str, published: bool) -> Mapping[str, Call]:
    """TRADES of the authors' code starts at the sample."""
    return {"start": call(Zero)} if published and name.endswith("TRADES") else {}


def u_climb(data: str, eps: float) -> tuple[float, int]:
    """Step size and number of steps K: those of the authors' runs where there are some with this eps, and what
    continues them elsewhere.
    """
    if data == "fashion-mnist":
        return max(0.015, eps / 20), 25 if eps == 0.3 else 20
    size = 0.001 if data == "cifar10" and eps <= 0.04 else 0.002
    return size, max(round(eps / size), 10)


def u_method(name: str, eps: float, size: float, steps: int, variant: Variant, batch_norm: bool) -> Call:
    """A method of U's tables, or `standard`."""
    if name == "standard":
        return call(methods.standard)
    function, more = _U_METHODS[name]
    mode = {"mode": "train"} if variant == "as published" and batch_norm else {}
    start = u_start(name, variant == "as published")
    return call(function, eps=eps, step_size=size, steps=steps, **more, **mode, **start)


def u_training(
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
    size, steps = climb or u_climb(data, eps)
    small = data == "fashion-mnist"
    method = u_method(name, eps, size, steps, variant, batch_norm=not small)
    published = variant == "as published"
    resnet = u_resnet(published, he=data == "svhn" or augment != "none")
    net = Net("lenet", {"width": width} if width > 1 else {}) if small else resnet
    return Training(method, net, data, u_recipe(data, seed, augment, name, published))


def u_trainings(data: str, name: str, eps: float, variant: Variant, **more: Any) -> list[Training]:
    """One training per seed."""
    return [u_training(data, name, eps, seed, variant, **more) for seed in SEEDS]


def u_clean_chart(data: str, radii: Sequence[float], variant: Variant) -> Chart:
    """Clean accuracy against the eps of training, by method (U Figs 4, 12)."""
    lines = [
        curve(name, {eps: [evaluated(one) for one in u_trainings(data, name, eps, variant)] for eps in radii})
        for name in _U_METHODS
    ]
    return Chart(f"Clean accuracy on {data}", "eps of training", "clean accuracy, %", lines)


# T, input space and latent space.

T_NOTES = (
    "Adam with a learning rate of .001 and 100 epochs, which T says of Fashion-MNIST alone, are taken for all; batches "
    "of 256 and 55,000 of 60,000 samples to train on are U's. The weights are those of the last epoch. UTA takes all K "
    'steps; T\'s "multiple runs" are three here.'
)

PLANE_NOTES = (
    "The points, the network and its training, of which the paper says nothing, are those of the study; eps, step size "
    "and number of steps are the paper's where it gives them."
)

T_LATENT_NOTES = (
    "LS-PGD perturbs one LeNet, LS-UTA an ensemble of five, whose members are trained by their own losses where the "
    "entropy of their mean led. The step grows from .005 to eps/5 and back (T writes eps_test/5, where only "
    "the eps of training can be meant); K = eps/.01 is that of the input space. The perturbed layer is the first "
    "linear layer behind its ReLU (T does not say whether before or behind). Adam with a learning rate of .001, 100 "
    "epochs, batches of 256, 55,000 of 60,000 samples to train on; the weights are those of the last epoch. UTA takes "
    'all K steps; T\'s "multiple runs" are three here.'
)
T_CHARTS_NOTES = " PGD-10 takes steps of eps/4 from a random start; T does not print the eps of the test: here to .5."

T_RADII = {
    "mnist": (0.1, 0.2, 0.3, 0.4),
    "fashion-mnist": (0.1, 0.2, 0.3, 0.4),
    "svhn": (0.01, 0.04, 0.08, 0.12, 0.16),
}
"""Of training (T Sec. 5.1)."""

T_QUIRKS = "As published, the perceptron has the leaky ReLUs of the authors' code; corrected, the paper's ReLUs."
"""On MNIST."""

_T_NETS = {"mnist": "mlp", "fashion-mnist": "lenet", "svhn": "lenet-wide"}
_T_METHODS: Mapping[str, Callable[..., Any]] = {"PGD": methods.pgd_at, "UTA": methods.uta}


def t_triangle(eps: float) -> Call:
    """From .005 to eps/5 and back (T, Sec. 5.1): T writes the eps of the test, of which there are several."""
    return call(Triangular, size=0.005, peak=eps / 5)


def t_training(data: str, variant: Variant, name: str, eps: float, seed: int, members: int = 1) -> Training:
    """PGD or UTA with K = eps/.01 steps of .01, on SVHN K = eps/.005 of a triangular schedule."""
    size, steps = (t_triangle(eps), round(eps / 0.005)) if data == "svhn" else (0.01, round(eps / 0.01))
    method = call(_T_METHODS[name], eps=eps, step_size=size, steps=steps)
    leaky = {"negative_slope": 0.01} if data == "mnist" and variant == "as published" else {}
    return Training(method, Net(_T_NETS[data], leaky, members=members), data, replace(_ADAM, seed=seed))


def t_latent(name: str, eps: float, seed: int) -> Training:
    """LS-PGD of one LeNet or LS-UTA of five on MNIST, in the 120 outputs of the first linear layer (T Sec. 5.2)."""
    function = {"LS-PGD": methods.ls_pgd, "LS-UTA": methods.ls_uta}[name]
    method = call(function, eps=eps, layer="fc1", step_size=t_triangle(eps), steps=round(eps / 0.01))
    net = Net("lenet", members=5 if name == "LS-UTA" else 1)
    return Training(method, net, "mnist", replace(_ADAM, seed=seed))


def t_table_1(
    data: str, variant: Variant, tests: Sequence[float], paper: Mapping[tuple[str, float], Sequence[float]]
) -> list[Part]:
    """The mean of clean accuracy and accuracy under AutoAttack, by method and eps of training."""
    cells = [
        cell
        for (name, eps), numbers in paper.items()
        for cell in autoattacked(
            f"{name} (eps {eps:g})",
            [t_training(data, variant, name, eps, seed) for seed in SEEDS],
            [("linf", test) for test in tests],
            numbers,
            read=trade_off,
        )
    ]
    return [Table(f"Mean of clean and robust accuracy on {data}, by the eps of AutoAttack", cells, "training")]


_PGD_TESTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


def t_charts(
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


def t_input_charts(data: str, variant: Variant, members: int) -> list[Part]:
    """The same for PGD of one network and UTA of so many."""
    trained = {
        "PGD": partial(t_training, data, variant, "PGD"),
        "UTA": partial(t_training, data, variant, "UTA", members=members),
    }
    return t_charts(trained, T_RADII[data])


# One-step training on Fashion-MNIST (U App. E.2; T Sec. 5.3).

ONE_STEP_NOTES = (
    "Accuracy is that on the 5,000 validation samples after every epoch of 100, under FGSM and PGD-20 with eps .2; the "
    "steps of PGD-20 are eps/8 = .025, where the paper's are .01. The third part is the study of the same question: on "
    "test samples, with steps of .01, every 40 steps of the first epochs. With batches of 256 (elsewhere 128)."
)


def courses(title: str, trainings: Sequence[Training], strong: str) -> Shown:
    """Accuracy on validation samples over the training."""
    question = "Does accuracy under an attack fall while the network trains?"
    return Shown(title, Measured(call(measures.course, strong=strong), trainings, question, "last", courses=True))


def one_step_parts(name: str, method: Call) -> list[Part]:
    """LeNets trained with FGSM and with one step of the method, eps .2."""

    def trained(how: Call) -> list[Training]:
        recipe = replace(_ADAM, valid_eps=0.2, valid_steps=20, valid_examples=5_000)
        return [Training(how, Net("lenet"), "fashion-mnist", replace(recipe, seed=seed)) for seed in SEEDS]

    return [
        courses("Trained with FGSM", trained(call(methods.fgsm_at, eps=0.2)), "PGD-20"),
        courses(f"Trained with {name}", trained(method), "PGD-20"),
        Shown("The first epochs", Studied("overfitting", data="fashion-mnist")),
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

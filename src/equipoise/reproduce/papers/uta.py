"""The tables and figures of T, the earlier version of U ("uncertainty-targeted attacks"): its trainings."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from equipoise.attacks.steps import Triangular
from equipoise.reproduce.experiment import Cell, Chart, Claims, Line, Part, Variant, robust, trade_off
from equipoise.reproduce.published import experiments
from equipoise.reproduce.recipes import (
    ADAM,
    SEEDS,
    above,
    autoattacked,
    courses,
    curve,
    evaluated,
    fast_chart,
    one_step_parts,
)
from equipoise.reproduce.tasks import Call, Net, Training, call
from equipoise.training import Recipe, methods

RADII = {
    "mnist": (0.1, 0.2, 0.3, 0.4),
    "fashion-mnist": (0.1, 0.2, 0.3, 0.4),
    "svhn": (0.01, 0.04, 0.08, 0.12, 0.16),
}
"""Of training (T Sec. 5.1)."""
_NETS = {"mnist": "mlp", "fashion-mnist": "lenet", "svhn": "lenet-wide"}

Trained = Callable[[float], list[Training]]
"""Gives the trainings with an eps, seed by seed."""


def triangle(eps: float) -> Call:
    """From .005 to eps/5 and back (T, Sec. 5.1): T writes the eps of the test, of which there are several."""
    return call(Triangular, size=0.005, peak=eps / 5)


def trainings(data: str, variant: Variant, name: str, eps: float, members: int = 1) -> list[Training]:
    """PGD or UTA with K = eps/.01 steps of .01, on SVHN K = eps/.005 of a triangular schedule."""
    function = {"PGD": methods.pgd_at, "UTA": methods.uta}[name]
    size, steps = (triangle(eps), round(eps / 0.005)) if data == "svhn" else (0.01, round(eps / 0.01))
    method = call(function, eps=eps, step_size=size, steps=steps)
    leaky = {"negative_slope": 0.01} if data == "mnist" and variant == "as published" else {}
    net = Net(_NETS[data], leaky, members=members)
    return [Training(method, net, data, replace(ADAM, seed=seed)) for seed in SEEDS]


def latent(name: str, eps: float) -> list[Training]:
    """LS-PGD of one LeNet or LS-UTA of five on MNIST, in the 120 outputs of the first linear layer (T Sec. 5.2)."""
    function = {"LS-PGD": methods.ls_pgd, "LS-UTA": methods.ls_uta}[name]
    method = call(function, eps=eps, layer="fc1", step_size=triangle(eps), steps=round(eps / 0.01))
    net = Net("lenet", members=5 if name == "LS-UTA" else 1)
    return [Training(method, net, "mnist", replace(ADAM, seed=seed)) for seed in SEEDS]


def table_1(data: str, variant: Variant) -> list[Part]:
    """The mean of clean accuracy and accuracy under AutoAttack, by method and eps of training."""
    title = f"Mean of clean and robust accuracy on {data}, by the eps of AutoAttack"
    trained = partial(trainings, data, variant)
    table = autoattacked(title, "uta", f"Table 1, {data}", trained, trade_off, "training")
    columns = dict.fromkeys(cell.column for cell in table.cells)
    claims = [
        claim
        for eps in RADII[data]
        for column in columns
        for claim in above(table, f"UTA has the better trade-off under {column}", "T Sec. 5.1", column,
                           f"UTA (eps {eps:g})", f"PGD (eps {eps:g})")
    ]  # fmt: skip
    return [table, Claims("Does UTA have the better trade-off at the same eps of training?", claims)]


def table_2(variant: Variant) -> list[Part]:
    """MNIST, perturbations in the latent space, tested in the input space."""
    title = "Mean of clean accuracy and that under AutoAttack on MNIST (T Table 2)"
    return [autoattacked(title, "uta", "Table 2", latent, trade_off, "training")]


def charts(trained: Mapping[str, Trained], data: str, restarts: int = 1) -> list[Part]:
    """Clean accuracy against the eps of training, and accuracy under PGD-10 against the eps of the test, of networks
    trained with every eps by every method (T Figs 10-13).
    """
    tests = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
    tasks = {
        name: {eps: [evaluated(one, ["pgd10"], tests, restarts=restarts) for one in make(eps)] for eps in RADII[data]}
        for name, make in trained.items()
    }

    def line(name: str, tasks: list) -> Line:
        cells = {test: Cell(name, f"{test:g}", tasks, robust(test, attack="pgd10")) for test in tests}
        return Line(name, list(cells.items()))

    attacked = [line(f"{name}, eps {eps:g}", of) for name, by_eps in tasks.items() for eps, of in by_eps.items()]
    return [
        Chart("Clean accuracy", "eps of training", "clean accuracy, %", [curve(n, t) for n, t in tasks.items()]),
        Chart("Accuracy under PGD-10", "eps of the test", "accuracy under PGD-10, %", attacked),
    ]


def input_charts(data: str, members: int, variant: Variant) -> list[Part]:
    """The charts of PGD with one network and of UTA with this number of networks."""
    trained: dict[str, Trained] = {
        name: partial(trainings, data, variant, name, members=number) for name, number in (("PGD", 1), ("UTA", members))
    }
    return charts(trained, data)


def figure_2(variant: Variant) -> list[Part]:
    """Clean accuracy against the eps of training."""

    def line(data: str, name: str) -> Line:
        return curve(
            name, {eps: [evaluated(one) for one in trainings(data, variant, name, eps)] for eps in RADII[data]}
        )

    return [
        Chart(
            f"Clean accuracy on {data}", "eps of training", "clean accuracy, %", [line(data, n) for n in ("PGD", "UTA")]
        )
        for data in RADII
    ]


def figure_9(variant: Variant) -> list[Part]:
    """Catastrophic overfitting of ResNet-18 with dropout on CIFAR-10 (T App. B.2), and clean accuracy after fast
    training.
    """
    mode = {"mode": "train"} if variant == "as published" else {}
    recipe = Recipe(
        epochs=200, batch_size=256, optimizer="sgd", lr=0.1, weight_decay=5e-4, schedule="multistep",
        milestones=(60 / 200, 120 / 200, 160 / 200), decay=1 / 15, augment="crop-flip", valid_eps=8 / 255,
        valid_steps=10, valid_examples=5_000,
    )  # fmt: skip

    def trained(method: Call, dropout_samples: int) -> list[Training]:
        net = Net("resnet18-dropout", dropout_samples=dropout_samples)
        return [Training(method, net, "cifar10", replace(recipe, seed=seed)) for seed in SEEDS]

    fgsm = call(methods.fgsm_at, eps=8 / 255, **mode)
    uta = call(methods.uta, eps=8 / 255, step_size=8 / 255, steps=1, **mode)
    return [
        courses("(a) trained with FGSM", trained(fgsm, 0), "PGD-10"),
        courses("(b) trained with UTA-1, one sampled model", trained(uta, 1), "PGD-10"),
        fast_chart("UTA", variant, robustness=False),
    ]


def figure_13(variant: Variant) -> list[Part]:
    """MNIST, perturbations in the latent space."""
    return charts({name: partial(latent, name) for name in ("LS-PGD", "LS-UTA")}, "mnist", restarts=10)


EXPERIMENTS = experiments(
    "uta",
    {
        "uta-figure-2": figure_2,
        "uta-figure-3": lambda variant: [fast_chart("UTA", variant, robustness=True)],
        "uta-figure-4": lambda variant: one_step_parts("UTA-1", call(methods.uta, eps=0.2, step_size=0.2, steps=1)),
        "uta-figure-9": figure_9,
        "uta-figure-10": partial(input_charts, "fashion-mnist", 1),
        "uta-figure-11": partial(input_charts, "fashion-mnist", 5),
        "uta-figure-12": partial(input_charts, "mnist", 5),
        "uta-figure-13": figure_13,
        **{f"uta-table-1-{data}": partial(table_1, data) for data in RADII},
        "uta-table-2": table_2,
    },
)

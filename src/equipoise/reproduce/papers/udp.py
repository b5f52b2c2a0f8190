"""The tables and figures of U, "Uncertainty-driven perturbations": its networks, methods and trainings."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from equipoise.attacks.steps import Zero
from equipoise.reproduce import measures
from equipoise.reproduce.experiment import Chart, Claims, Part, Table, Variant, clean, number, robust, trade_off
from equipoise.reproduce.published import experiments, published_table
from equipoise.reproduce.recipes import (
    ADAM,
    SEEDS,
    above,
    autoattacked,
    curve,
    evaluated,
    fast_chart,
    measured,
    named,
    one_step_parts,
)
from equipoise.reproduce.tasks import Call, Evaluated, Net, Training, call
from equipoise.training import Recipe, methods

RADII = {
    "fashion-mnist": (0.1, 0.2, 0.3, 0.4, 0.5),
    "svhn": tuple(k / 100 for k in range(1, 9)),
    "cifar10": tuple(k / 100 for k in range(1, 9)),
}
"""Of training: .01 to .08 (U Sec. 5.1.1); of Fashion-MNIST U says none beyond those of Table 2."""

_TRADES = {"beta": 1.0, "divergence": "soft-cross-entropy"}
_METHODS: Mapping[str, tuple[Callable[..., Any], Mapping[str, Any]]] = {
    "PGD": (methods.pgd_at, {}),
    "TRADES": (methods.trades, _TRADES),
    "UDPR": (methods.udpr, {"weight": 1.0}),
    "UDP-PGD": (methods.udp, {}),
    "LS-PGD": (methods.ls_pgd, {}),
    "LS-TRADES": (methods.ls_trades, _TRADES),
    "LS-UDPR": (methods.ls_udpr, {"weight": 1.0}),
    "LS-UDP-PGD": (methods.ls_udp, {}),
}


def method(name: str, published: bool, climb: Mapping[str, Any], mode: Mapping[str, str] = {}) -> Call:
    """A method of U's tables, or `standard`. TRADES of the authors' code starts at the sample."""
    if name == "standard":
        return call(methods.standard)
    function, options = _METHODS[name]
    start = {"start": call(Zero)} if published and name.endswith("TRADES") else {}
    return call(function, **climb, **options, **mode, **start)


def resnet(published: bool, he: bool = False) -> Net:
    """The pre-activation ResNet-18, `published` as in the authors' code."""
    if not published:
        return Net("preact-resnet18")
    return Net("preact-resnet18-udp", {"init": "he-fan-out"} if he else {})


def climb_at(data: str, eps: float) -> tuple[float, int]:
    """Step size and number of steps K: those of the authors' runs where there are some with this eps, and what
    continues them elsewhere.
    """
    if data == "fashion-mnist":
        return max(0.015, eps / 20), 25 if eps == 0.3 else 20
    size = 0.001 if data == "cifar10" and eps <= 0.04 else 0.002
    return size, max(round(eps / size), 10)


def trainings(
    data: str,
    name: str,
    eps: float,
    variant: Variant,
    climb: tuple[float, int] | None = None,
    augment: Literal["none", "crop-flip"] = "none",
    width: int = 1,
) -> list[Training]:
    """One training per seed: LeNet, `width` times as wide, with Adam on Fashion-MNIST (U App. F.1.1); the
    pre-activation ResNet-18 with a triangular learning rate on CIFAR-10 and SVHN (F.1.2), as published with its peak in
    the middle, for UDPR on CIFAR-10 lower.
    """
    published = variant == "as published"
    size, steps = climb or climb_at(data, eps)
    ball = {"eps": eps, "step_size": size, "steps": steps}
    if data == "fashion-mnist":
        recipe, net, mode = ADAM, Net("lenet", {"width": width} if width > 1 else {}), {}
    else:
        lr = 0.14 if published and name == "UDPR" and data == "cifar10" else 0.15
        recipe = Recipe(epochs=60, batch_size=256, optimizer="sgd", lr=lr, weight_decay=5e-4, schedule="triangular",
                        lr_peak=0.5 if published else 0.4, augment=augment)  # fmt: skip
        net = resnet(published, data == "svhn" or augment != "none")
        mode = {"mode": "train"} if published else {}
    how = method(name, published, ball, mode)
    return [Training(how, net, data, replace(recipe, seed=seed)) for seed in SEEDS]


def clean_accuracy(data: str, name: str, eps: float, variant: Variant, **more: Any) -> list[Evaluated]:
    """Clean accuracy, seed by seed."""
    return [evaluated(one) for one in trainings(data, name, eps, variant, **more)]


def clean_chart(data: str, variant: Variant) -> Chart:
    """Clean accuracy against the eps of training, by method (U Figs 4, 12)."""
    lines = [
        curve(name, {eps: clean_accuracy(data, name, eps, variant) for eps in RADII[data]})
        for name in ("PGD", "TRADES", "UDPR", "UDP-PGD")
    ]
    return Chart(f"Clean accuracy on {data}", "eps of training", "clean accuracy, %", lines)


def halves(data: str, name: str, titles: tuple[str, str], variant: Variant) -> list[Part]:
    """The two halves of U Tables 1 and 2: accuracy under AutoAttack, and its mean with the clean accuracy."""

    def trained(name: str, eps: float) -> list[Training]:
        return trainings(data, name, eps, variant)

    robustness, mean = titles
    return [
        autoattacked(robustness, "udp", f"{name}, robust", trained, robust),
        autoattacked(mean, "udp", f"{name}, trade-off", trained, trade_off),
    ]


def table_1(variant: Variant) -> list[Part]:
    """CIFAR-10 and SVHN without augmentation."""
    parts: list[Part] = []
    for data in ("cifar10", "svhn"):
        where = f"under AutoAttack on {data} (U Table 1)"
        titles = (f"Accuracy {where}", f"Mean of clean accuracy and accuracy {where}")
        parts += halves(data, f"Table 1, {data}", titles, variant)
    return parts


def table_2(variant: Variant) -> list[Part]:
    """Fashion-MNIST."""
    where = "under AutoAttack on Fashion-MNIST (U Table 2)"
    titles = (f"Accuracy {where}", f"Mean of clean accuracy and that {where}")
    parts = halves("fashion-mnist", "Table 2", titles, variant)
    robustness, mean = (part for part in parts if isinstance(part, Table))
    rivals, source, close = ("PGD (eps 0.2)", "TRADES (eps 0.2)"), "U Table 2", "UDP-PGD (eps 0.3)"
    claims = [
        *above(robustness, "UDP has the higher clean accuracy", "U Sec. 5.1", "clean", "UDP-PGD (eps 0.5)", *rivals),
        *above(robustness, "UDPR is more robust in L2", source, "L2 1.5", "UDPR (eps 0.5)", *rivals),
        *above(mean, "UDP-PGD has the better trade-off at Linf .05", source, "Linf 0.05", close, *rivals),
        *above(mean, "UDPR has the better trade-off in L2", source, "L2 1.5", "UDPR (eps 0.5)", *rivals),
    ]
    return [*parts, Claims("Is the trade-off competitive, and often improved? (U Sec. 5.1)", claims)]


def table_3(variant: Variant) -> list[Part]:
    """CIFAR-10 with augmentation, with the step sizes and numbers of steps of U Table 3."""
    climbs = {"PGD": (0.006, 10), "UDPR": (0.01, 10), "UDP-PGD": (0.01, 20)}

    def trained(name: str, eps: float) -> list[Training]:
        return trainings("cifar10", name, eps, variant, climb=climbs[name], augment="crop-flip")

    title = "Accuracy on CIFAR-10 with augmentation, clean and under AutoAttack (U Table 3)"
    return [autoattacked(title, "udp", "Table 3", trained)]


def table_4(variant: Variant) -> list[Part]:
    """Features learned on CIFAR-10, used for CIFAR-100. A row is `SELECTED BY, METHOD (eps EPS)`, or the baseline."""
    transfer = call(measures.transfer, layer="features")
    question = "Are features learned on CIFAR-10 of use for CIFAR-100?"
    read = number(measures.TRANSFER)

    def tasks(row: str, column: str) -> Any:
        name, eps = ("standard", 0.0) if row == "baseline" else named(row.rpartition(", ")[2])
        of = trainings("cifar10", name, eps, variant)
        return [measured(transfer, [one], question, samples=50_000, target="cifar100") for one in of], read

    title = "Accuracy on CIFAR-100 of a linear classifier of features of CIFAR-10 (U Table 4)"
    return [published_table(title, "udp", "Table 4", tasks, decimals=1)]


def table_5(variant: Variant) -> list[Part]:
    """5 % of CIFAR-10, perturbations in the latent space."""
    published, used, held_out = variant == "as published", 2_500, 125
    recipe = Recipe(epochs=100, batch_size=256, optimizer="sgd", lr=0.05, weight_decay=5e-4, schedule="triangular",
                    lr_peak=0.5 if published else 0.4, validation=held_out / (used + held_out))  # fmt: skip
    ball = {"eps": 2.0, "mode": "train"} if published else {"eps": 0.2}
    climb = {"layer": "block8", "step_size": 0.01, "steps": 20, **ball}

    def tasks(row: str, column: str) -> Any:
        how = method("standard" if row == "baseline" else row, published, climb)
        each = (replace(recipe, seed=seed) for seed in SEEDS)
        of = [Training(how, resnet(published), "cifar10", one, samples=used + held_out) for one in each]
        return [evaluated(one) for one in of], clean

    title = "Clean accuracy on CIFAR-10, trained on 2,500 samples (U Table 5)"
    return [published_table(title, "udp", "Table 5", tasks, decimals=1)]


def figure_5(variant: Variant) -> list[Part]:
    """Clean accuracy on Fashion-MNIST against the width of the network."""

    def widths(name: str, *widths: int) -> dict[float, list[Evaluated]]:
        return {width: clean_accuracy("fashion-mnist", name, 0.1, variant, width=width) for width in widths}

    lines = [
        curve("UDP-PGD, eps .1", widths("UDP-PGD", 2, 4, 6, 8, 10, 12)),
        curve("standard, width 1", widths("standard", 1)),
    ]
    return [Chart("Clean accuracy on Fashion-MNIST", "width", "clean accuracy, %", lines)]


EXPERIMENTS = experiments(
    "udp",
    {
        "udp-figure-4": lambda variant: [clean_chart(data, variant) for data in ("svhn", "cifar10")],
        "udp-figure-5": figure_5,
        "udp-figure-12": lambda variant: [clean_chart(data, variant) for data in RADII],
        "udp-figure-13": lambda variant: one_step_parts(
            "UDP-PGD with one step", call(methods.udp, eps=0.2, step_size=0.2, steps=1)
        ),
        "udp-figure-14": lambda variant: [fast_chart("UDP", variant, robustness=True)],
        "udp-table-1": table_1,
        "udp-table-2": table_2,
        "udp-table-3": table_3,
        "udp-table-4": table_4,
        "udp-table-5": table_5,
    },
)

"""What does a perturbation do that is too large for one place and not for another? (U App. D.2, Fig 8; T Figs 1, 7)

Two classes nearly touch in one place and are far apart in another. PGD and UDP perturb the points of a fixed network,
PGD through the loss of the network, UDP through the entropy of ten networks; then networks are trained with an eps that
is too large for the narrow place, by PGD, UDP and TRADES.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool
from torch import nn

from equipoise.data import Split
from equipoise.models import Ensemble
from equipoise.reproduce.studies.options import Options, ReportProgress
from equipoise.reproduce.studies.plane import (
    METHODS,
    QUICK,
    Sizes,
    Trained,
    Training,
    accuracy,
    agreement,
    attack,
    classes,
    crossed,
    look,
    method,
    perturb,
    regions,
    seeds_of,
    train,
    uncertainty,
)
from equipoise.reproduce.studies.processes import run_all, share
from equipoise.reproduce.studies.toys import Toy, two_distance
from equipoise.results.findings import Findings, Number, Picture, Regions

ATTACK_EPS, ATTACK_STEP, ATTACK_STEPS = 0.8, 0.1, (1, 20)
TRAIN_EPS, TRAIN_STEP, TRAIN_STEPS = 0.4, 0.05, 15
"""Lengths in the papers' units; the step size and the number of steps of training are theirs (U Fig. 8)."""
MEMBERS = 10


@dataclass(frozen=True)
class Case:
    """One of the study's trainings."""

    name: str
    """Method, a name of `METHODS`."""
    seed: int
    """Seed of the points."""
    member: int = 0
    """Which member of an ensemble."""


@dataclass(frozen=True)
class Attacked:
    """The points of one repeat, moved."""

    moved: dict[tuple[str, int], np.ndarray]
    """By attack and number of steps."""
    crossed: dict[tuple[str, int], Bool[np.ndarray, " n"]]
    """Which lie on the other side of the attacked model's boundary."""
    across: dict[tuple[str, int], Bool[np.ndarray, " n"]]
    """Which lie on the other side of the max-margin boundary."""


def run(options: Options, tell: ReportProgress) -> Findings:
    """Where perturbations go, what training with them gives, and how often predictions change meanwhile."""
    toy, sizes, rows, members = two_distance(), Sizes(), 130, MEMBERS
    if options.quick:
        sizes, rows, members = QUICK, 40, 2
    view = toy.wider(ATTACK_EPS)  # holds every point that is moved
    near = toy.seen(view.grid(rows))
    seeds = seeds_of(options, 5)
    cases = [Case("standard", seed, member) for seed in seeds for member in range(members)]
    cases += [Case(name, seed) for name in METHODS[1:] for seed in seeds]
    told = share(tell, "network", len(cases), 0.0, 0.95)
    networks = run_all(partial(_train, view, sizes, rows), cases, told, options.processes)
    trained = dict(zip(cases, networks, strict=True))
    data = {seed: _task(toy, sizes, rows, Case("standard", seed)).data.train for seed in seeds}
    single = {seed: trained[Case("standard", seed)].module for seed in seeds}
    ensembles = {s: Ensemble([trained[Case("standard", s, m)].module for m in range(members)]) for s in seeds}
    attacked = {seed: _attack(toy, single[seed], ensembles[seed], data[seed], seed) for seed in seeds}
    numbers = [
        Number(f"points that {name} moves across the boundary of the model it climbs, {ATTACK_STEPS[1]} steps",
               [float(attacked[s].crossed[name, ATTACK_STEPS[1]].mean()) for s in seeds], paper=says, percent=True)
        for name, says in (("PGD", "moves samples to the opposite side (U App. D.2)"),
                           ("UDP", "does not cross the decision boundary (U App. D.2)"))
    ]  # fmt: skip
    numbers += [
        Number(f"points that {name} moves across the max-margin boundary, {ATTACK_STEPS[1]} steps",
               [float(attacked[s].across[name, ATTACK_STEPS[1]].mean()) for s in seeds], percent=True)
        for name in ("PGD", "UDP")
    ]  # fmt: skip
    for name in METHODS[1:]:
        modules = [trained[Case(name, seed)].module for seed in seeds]
        flips = [trained[Case(name, seed)].flips for seed in seeds]
        called = f"trained by {name}, eps {TRAIN_EPS:g}"
        numbers += [
            Number(f"accuracy on the training points, {called}",
                   [accuracy(m, data[s]) for m, s in zip(modules, seeds, strict=True)],
                   paper={"UDP": "large eps does not deteriorate the clean accuracy (U App. D.2)",
                          "PGD": "", "TRADES": "misclassified in the top left corner (T Fig 7)"}[name],
                   percent=True),
            Number(f"accuracy in the narrow place, {called}",
                   [_narrow_accuracy(m, toy, data[s]) for m, s in zip(modules, seeds, strict=True)], percent=True),
            Number(f"agreement with the max-margin boundary, {called}", [agreement(m, toy) for m in modules],
                   percent=True),
            Number(f"changes of prediction during the training, mean over the window of the points, {called}",
                   [float(f[near].mean()) for f in flips if f is not None],
                   paper={"UDP": "oscillates less than PGD (U App. D.2)",
                          "PGD": "oscillations (U Sec. 3)", "TRADES": ""}[name]),
        ]  # fmt: skip
    first = seeds[0]
    panels = _panels(view, rows, data[first], single[first], ensembles[first], attacked[first])
    for place, name in enumerate(("PGD", "UDP")):
        network = trained[Case(name, first)]
        assert network.flips is not None
        after = regions(f"(c) trained by {name}, eps {TRAIN_EPS:g}", network.module, view, rows, data[first])
        changes = Regions(
            f"(d) changes while training by {name}", network.flips.astype(np.float32), view.extent,
            "changes of prediction", None, truth=after.truth,
        )  # fmt: skip
        panels[4 * place + 2 : 4 * place + 2] = [after, changes]
    trades = trained[Case("TRADES", first)].module
    pictures = [
        Picture(
            "perturbations",
            f"PGD above, UDP below. (a, b) Points of a fixed classifier after 1 and {ATTACK_STEPS[1]} steps of "
            f"{ATTACK_STEP:g} with eps {ATTACK_EPS:g}, over the probability of the network and over the entropy of "
            f"{members} networks, each with the model that is climbed. (c) After training with eps {TRAIN_EPS:g}, "
            f"{TRAIN_STEPS} steps of {TRAIN_STEP:g}. (d) How often the prediction changed during that training "
            f"(U Fig 8; T Fig 1).",
            panels,
            4,
        ),
        Picture(
            "trades",
            "TRADES with weight 1 and the same eps: where the classes nearly touch it aligns the predictions of both "
            "(T Fig 7).",
            [regions(f"trained by TRADES, eps {TRAIN_EPS:g}", trades, toy, rows, data[first])],
            1,
        ),
    ]
    settings = {
        **sizes.settings(), "members": members, "seeds": seeds, "narrow_gap": toy.narrow_gap("linf"),
        "wide_gap": toy.wide_gap("linf"), "attack": {"eps": ATTACK_EPS, "step": ATTACK_STEP, "steps": ATTACK_STEPS},
        "training": {"eps": TRAIN_EPS, "step": TRAIN_STEP, "steps": TRAIN_STEPS},
    }  # fmt: skip
    return Findings(numbers, pictures, settings, _verdict(numbers))


def _task(toy: Toy, sizes: Sizes, rows: int, case: Case) -> Training:
    by = method(case.name, toy, TRAIN_EPS, TRAIN_STEP, TRAIN_STEPS)
    seed = case.seed if case.member == 0 else case.seed + 10_000 * case.member
    return Training(toy, by, seed, sizes, case.seed, 0 if case.name == "standard" else rows)


def _train(toy: Toy, sizes: Sizes, rows: int, case: Case) -> Trained:
    return train(_task(toy, sizes, rows, case))


def _attack(toy: Toy, single: nn.Module, ensemble: Ensemble, split: Split, seed: int) -> Attacked:
    labels = split.y.numpy()
    moved, over, across = {}, {}, {}
    for name, model in (("PGD", single), ("UDP", ensemble)):
        for steps in ATTACK_STEPS:
            points = perturb(attack(name, toy, ATTACK_EPS, ATTACK_STEP, steps), model, toy, split, seed)
            moved[name, steps] = points
            over[name, steps] = classes(model, toy, points) != labels
            across[name, steps] = crossed(toy, points, labels)
    return Attacked(moved, over, across)


def _panels(
    toy: Toy, rows: int, split: Split, single: nn.Module, ensemble: Ensemble, attacked: Attacked
) -> list[Regions]:
    """Columns (a) and (b) of both rows, thinned out so that single points can be followed."""
    few = np.linspace(0, len(split) - 1, min(90, len(split))).astype(int)
    panels = []
    for steps, column in zip(ATTACK_STEPS, "ab", strict=True):
        shown = {"points": toy.from_unit(split.x)[few], "labels": split.y.numpy()[few]}
        title = f"({column}) PGD, {steps} step" + ("s" if steps > 1 else "")
        panels.append(regions(title, single, toy, rows, split, truth=None, moved=attacked.moved["PGD", steps][few],
                              **shown))  # fmt: skip
    boundary = look(ensemble, toy, toy.grid(rows)).log_probs[:, 1].exp().numpy() - 0.5
    entropies = uncertainty(ensemble, toy, rows)
    for steps, column in zip(ATTACK_STEPS, "ab", strict=True):
        panels.append(
            Regions(
                f"({column}) UDP, {steps} step" + ("s" if steps > 1 else ""), entropies.astype(np.float32), toy.extent,
                f"entropy of {len(ensemble)} networks, nats", None,
                boundary=boundary.reshape(entropies.shape).astype(np.float32), points=toy.from_unit(split.x)[few],
                labels=split.y.numpy()[few], moved=attacked.moved["UDP", steps][few],
            )
        )  # fmt: skip
    return panels


def _narrow_accuracy(module: nn.Module, toy: Toy, split: Split) -> float:
    """Accuracy on the points of the place where the classes nearly touch."""
    points = toy.from_unit(split.x)
    near = points[:, 0] < 0
    return float((classes(module, toy, points[near]) == split.y.numpy()[near]).mean())


def _verdict(numbers: list[Number]) -> str:
    pgd, udp = (number.mean for number in numbers[:2])
    trained = dict(zip(METHODS[1:], (number.mean for number in numbers[4::4]), strict=True))
    return (
        f"PGD moves {pgd:.0%} of the points across the boundary of the network it climbs, UDP {udp:.0%} across that of "
        "its ensemble. Trained with an eps too large for the narrow place, the accuracy on the training points is "
        + ", ".join(f"{value:.1%} by {name}" for name, value in trained.items())
        + "."
    )

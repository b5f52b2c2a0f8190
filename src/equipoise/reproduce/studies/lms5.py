"""Does a network use the coordinate that gives the larger margin, or only the simpler one? (U Figs 3, 7)

In LMS-5 a line in the first coordinate separates the classes, and so do five slabs in the second; the max-margin
boundary needs both. What a network uses shows when a coordinate is shuffled over the test points, whatever their class:
without the coordinate it relies on it falls to chance (Shah et al. 2020).
"""

from dataclasses import dataclass
from functools import partial

import torch

from equipoise.core.rng import fold
from equipoise.data import Split
from equipoise.reproduce.studies.options import Options, ReportProgress
from equipoise.reproduce.studies.plane import (
    QUICK,
    Sizes,
    Trained,
    Training,
    accuracy,
    agreement,
    method,
    regions,
    seeds_of,
    train,
)
from equipoise.reproduce.studies.processes import run_all, share
from equipoise.reproduce.studies.toys import Toy, lms5
from equipoise.results.findings import Findings, Number, Picture, Regions

MARGIN = round(lms5().largest_eps("linf"), 9)
"""The largest eps for which the balls of different classes do not meet: half of the Linf gap between the supports."""
LARGE = 2 * MARGIN
"""A large eps, for which they do."""
PAPERS = (("standard", 0.0), ("PGD", MARGIN), ("TRADES", MARGIN), ("UDP", LARGE))
OTHERS = (("UDP", MARGIN), ("PGD", LARGE), ("TRADES", LARGE))
"""Methods with the eps that the papers compare, and each with the other's."""
STEP_SIZE, STEPS = 0.05, 10
COORDINATES = ("linear", "slab")
_SHUFFLE = 7


@dataclass(frozen=True)
class Case:
    """One of the study's trainings."""

    name: str
    """Method, a name of `METHODS`."""
    eps: float
    """Radius, 0 for standard training."""
    seed: int
    """Seed."""


def run(options: Options, tell: ReportProgress) -> Findings:
    """Decision regions, and the accuracy without each coordinate, by method."""
    toy, sizes, rows, tests = lms5(), Sizes(points=500, steps=1000, lr=1e-2), 110, 2000
    if options.quick:
        sizes, rows, tests = QUICK, 30, 100
    seeds = seeds_of(options, 5)
    cases = [Case(name, eps, seed) for name, eps in (*PAPERS, *OTHERS) for seed in seeds]
    told = share(tell, "network", len(cases))
    networks = run_all(partial(_train, toy, sizes), cases, told, options.processes)
    trained = {case: network.module for case, network in zip(cases, networks, strict=True)}
    test = {seed: toy.dataset(sizes.points, tests, fold(seed, 1)).test for seed in seeds}
    numbers = []
    for name, eps in (*PAPERS, *OTHERS):
        of = [(trained[Case(name, eps, seed)], test[seed], seed) for seed in seeds]
        called = _called(name, eps)
        for place, coordinate in enumerate(COORDINATES):
            numbers.append(
                Number(
                    f"accuracy with the {coordinate} coordinate shuffled, {called}",
                    [accuracy(m, shuffled(split, place, s)) for m, split, s in of],
                    paper=_says(name, coordinate) if (name, eps) in PAPERS else "",
                    percent=True,
                )
            )
        numbers.append(Number(f"test accuracy, {called}", [accuracy(m, split) for m, split, _ in of], percent=True))
        numbers.append(
            Number(
                f"agreement with the max-margin boundary, {called}",
                [agreement(m, toy) for m, _, _ in of],
                paper="retrieves the optimal boundary (U Fig 3)" if (name, eps) == ("UDP", LARGE) else "",
                percent=True,
            )
        )
    first = seeds[0]

    def panel(name: str, eps: float) -> Regions:
        data = _task(toy, sizes, Case(name, eps, first)).data.train
        return regions(_called(name, eps), trained[Case(name, eps, first)], toy, rows, data)

    pictures = [
        Picture(
            "decision-regions",
            f"Decision regions after training, seed {first}: PGD and TRADES with the largest eps that keeps the balls "
            "of the classes apart, UDP with a large one (U Fig 3, bottom). Dashed, the max-margin boundary (U Fig 7).",
            [panel(name, eps) for name, eps in PAPERS],
            4,
        ),
        Picture("other-eps", "Each with the eps of the other.", [panel(name, eps) for name, eps in OTHERS], 3),
    ]
    settings = {
        **sizes.settings(), "seeds": seeds, "step_size": STEP_SIZE, "perturbation_steps": STEPS,
        "gap": toy.narrow_gap(), "gap_linf": toy.narrow_gap("linf"), "largest_eps": toy.largest_eps("linf"),
        "test_points": tests,
        "trades": "weight 1, soft cross-entropy (U Eq. TRADES)",
    }  # fmt: skip
    return Findings(numbers, pictures, settings, _verdict(numbers))


def shuffled(split: Split, coordinate: int, seed: int) -> Split:
    """The points with one coordinate exchanged among all of them."""
    x = split.x.clone()
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(abs(fold(seed, _SHUFFLE, coordinate))))
    x[:, coordinate] = x[order, coordinate]
    return Split(x, split.y)


def _task(toy: Toy, sizes: Sizes, case: Case) -> Training:
    return Training(toy, method(case.name, toy, case.eps, STEP_SIZE, STEPS), case.seed, sizes)


def _train(toy: Toy, sizes: Sizes, case: Case) -> Trained:
    return train(_task(toy, sizes, case))


def _called(name: str, eps: float) -> str:
    return name if name == "standard" else f"{name}, eps {eps:g}"


def _says(name: str, coordinate: str) -> str:
    match name, coordinate:
        case "standard", "linear":
            return "uses the linear coordinate alone, so chance (Shah et al. 2020; U Fig 3)"
        case "standard", "slab":
            return "uses the linear coordinate alone, so no change (Shah et al. 2020; U Fig 3)"
        case "UDP", _:
            return "uses both (U Figs 3, 7)"
    return "limited capacity to improve the boundary (U Sec. 3)"


def _verdict(numbers: list[Number]) -> str:
    names = [_called(name, eps) for name, eps in (*PAPERS, *OTHERS)]

    def listed(which: int) -> str:
        values = (number.mean for number in numbers[which::4])
        return ", ".join(f"{value:.1%} for {name}" for name, value in zip(names, values, strict=True))

    return (
        f"Accuracy with the linear coordinate shuffled: {listed(0)}. Agreement with the max-margin boundary: "
        f"{listed(3)}."
    )

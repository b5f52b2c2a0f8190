"""Where the gap between two classes widens, which training finds the boundary in its middle? (U Figs 3, 9)

U's claim is about a large eps: UDP recovers the boundary with an eps twice that of PGD and TRADES. Two comparisons test
it on the same data, network and training. In the first, PGD and TRADES are trained with an eps of the narrowest gap and
UDP with twice that. In the second, every method is trained with its own best eps, chosen for each seed by the mean
agreement of the other seeds, so that no method is judged by an eps that favours another.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from equipoise.reproduce.studies.options import Options, ReportProgress
from equipoise.reproduce.studies.plane import (
    METHODS,
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
from equipoise.reproduce.studies.toys import Toy, narrow_corridor
from equipoise.results.findings import Findings, Lines, Number, Picture, Regions, Series

RADII = (0.05, 0.15, 0.25, 0.35, 0.45)
"""The papers' (U Fig. 9)."""
STEP_SIZE, STEPS = 0.05, 10
_SAYS = {
    "standard": "passes close to the training points (U Fig 3)",
    "PGD": "fails where eps violates the assumption locally (U Fig 3)",
    "TRADES": "fails where eps violates the assumption locally (U Fig 3)",
    "UDP": "with an eps twice as large recovers a boundary close to the max-margin (U Fig 3)",
}
_OTHERS = ("PGD", "TRADES")


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
    """Decision regions and agreement with the max-margin boundary, by method and eps."""
    toy, sizes, rows = narrow_corridor(), Sizes(), 100
    radii, seeds = RADII, seeds_of(options, 10)
    if options.quick:
        sizes, rows, radii = QUICK, 30, RADII[2:3]
    eps = round(toy.narrow_gap("linf"), 9)
    large = round(2 * eps, 9)  # one of the papers' radii
    radii = sorted({*radii, eps, large})
    cases = [Case("standard", 0.0, seed) for seed in seeds]
    cases += [Case(name, radius, seed) for name in METHODS[1:] for radius in radii for seed in seeds]
    told = share(tell, "network", len(cases))
    networks = run_all(partial(_train, toy, sizes), cases, told, options.processes)
    trained = dict(zip(cases, networks, strict=True))
    agreements = {case: agreement(network.module, toy) for case, network in trained.items()}
    accuracies = {
        case: accuracy(network.module, _task(toy, sizes, case).data.train) for case, network in trained.items()
    }
    tables = {name: np.array([[agreements[Case(name, r, s)] for s in seeds] for r in radii]) for name in METHODS[1:]}
    best = {name: [radii[i] for i in best_of_the_others(table)] for name, table in tables.items()}
    at_twice = {"standard": 0.0, "PGD": eps, "TRADES": eps, "UDP": large}
    overall = {"standard": 0.0} | {name: radii[int(table.mean(1).argmax())] for name, table in tables.items()}

    def at_best(name: str) -> list[float]:
        return [agreements[Case(name, radius, seed)] for radius, seed in zip(best[name], seeds, strict=True)]

    def panel(name: str, radius: float) -> Regions:
        case = Case(name, radius, seeds[0])
        return regions(_called(name, radius), trained[case].module, toy, rows, _task(toy, sizes, case).data.train)

    def at(name: str) -> list[float]:
        return [agreements[Case(name, at_twice[name], seed)] for seed in seeds]

    wins = [all(u > v for v in others) for u, *others in zip(at("UDP"), *map(at, _OTHERS), strict=True)]
    numbers = [
        Number(f"seeds in which UDP at eps {large:g} agrees better with the max-margin boundary than PGD and TRADES at "
               f"{eps:g}", [float(win) for win in wins], paper="UDP alone recovers it (U Fig 3)", percent=True,
               outcomes=True),
        *(
            Number(f"UDP's agreement at eps {large:g} less that of {_called(other, at_twice[other])}",
                   [u - v for u, v in zip(at("UDP"), at(other), strict=True)], paper="greater than 0 (U Fig 3)")
            for other in (*_OTHERS, "standard")
        ),
        *(
            Number(f"UDP's agreement less that of {other}, each at its best eps",
                   [u - v for u, v in zip(at_best("UDP"), at_best(other), strict=True)])
            for other in _OTHERS
        ),
        *(
            Number(f"agreement with the max-margin boundary, {_called(name, at_twice[name])}", at(name),
                   paper=_SAYS[name], percent=True)
            for name in METHODS
        ),
        *(
            Number(f"agreement with the max-margin boundary, {name} at its best eps, mostly {_usual(best[name]):g}",
                   at_best(name), percent=True)
            for name in METHODS[1:]
        ),
        *(
            Number(f"accuracy on the training points, {_called(name, radius)}",
                   [accuracies[Case(name, radius, seed)] for seed in seeds],
                   paper="misclassifies training points in the narrow part (U Sec. 3)" if name in _OTHERS else "",
                   percent=True)
            for name, radius in (*at_twice.items(), *((other, large) for other in _OTHERS))
        ),
    ]  # fmt: skip
    pictures = [
        Picture(
            "decision-regions",
            f"Decision regions after training, seed {seeds[0]}: PGD and TRADES with an eps of the narrowest gap, "
            f"{eps:g}, UDP with twice that (U Fig 3, top).",
            [panel(name, radius) for name, radius in at_twice.items()],
            4,
        ),
        Picture(
            "best-eps",
            "The same with the eps at which each method agrees best with the max-margin boundary (mean over seeds).",
            [panel(name, radius) for name, radius in overall.items()],
            4,
        ),
        Picture(
            "radii",
            f"The same for several eps, with a step size of {STEP_SIZE} and {STEPS} steps (U Fig 9).",
            [panel(name, radius) for name in METHODS[1:] for radius in radii],
            len(radii),
        ),
        Picture(
            "agreement", f"Mean over {len(seeds)} seeds, with their range.", [_curves(agreements, radii, seeds)], 1
        ),
    ]
    settings = {
        **sizes.settings(), "eps": eps, "large_eps": large, "best_eps": best, "radii": radii, "step_size": STEP_SIZE,
        "perturbation_steps": STEPS, "seeds": seeds, "narrow_gap": toy.narrow_gap("linf"),
        "wide_gap": toy.wide_gap("linf"), "trades": "weight 1, soft cross-entropy (U Eq. TRADES)",
    }  # fmt: skip
    return Findings(numbers, pictures, settings, _verdict(wins, at, at_best, at_twice, best))


def best_of_the_others(scores: Float[np.ndarray, "radii seeds"]) -> Int[np.ndarray, " seeds"]:
    """For each seed the index of the radius with the highest mean score over the other seeds.

    A radius that was chosen on the seeds it is judged by would be judged too well. With one seed it is that seed's own.
    """
    seeds = scores.shape[1]
    others = scores.sum(1, keepdims=True) - scores if seeds > 1 else scores
    return others.argmax(0)


def _task(toy: Toy, sizes: Sizes, case: Case) -> Training:
    return Training(toy, method(case.name, toy, case.eps, STEP_SIZE, STEPS), case.seed, sizes)


def _train(toy: Toy, sizes: Sizes, case: Case) -> Trained:
    return train(_task(toy, sizes, case))


def _called(name: str, eps: float) -> str:
    return name if name == "standard" else f"{name}, eps {eps:g}"


def _curves(agreements: dict[Case, float], radii: list[float], seeds: list[int]) -> Lines:
    def series(name: str) -> Series:
        of: Float[np.ndarray, "radii seeds"] = 100 * np.array(
            [[agreements[Case(name, 0.0 if name == "standard" else r, s)] for s in seeds] for r in radii]
        )
        return Series(name, of.mean(1), of.min(1), of.max(1), dashed=name == "standard")

    return Lines(
        "Agreement with the max-margin boundary", np.array(radii), [series(n) for n in METHODS], "eps", "% of the area"
    )


def _usual(values: Sequence[float]) -> float:
    """The value that occurs most often."""
    return max(values, key=values.count)


def _verdict(
    wins: Sequence[bool],
    at: Callable[[str], list[float]],
    at_best: Callable[[str], list[float]],
    radii: Mapping[str, float],
    best: Mapping[str, Sequence[float]],
) -> str:
    def listed(values: Mapping[str, Sequence[float]]) -> str:
        return ", ".join(f"{name} {np.mean(of):.1%}" for name, of in values.items())

    twice = {_called(name, radii[name]): at(name) for name in METHODS}
    own = {f"{name}, mostly eps {_usual(best[name]):g}": at_best(name) for name in METHODS[1:]}
    return (
        f"UDP at twice the eps of PGD and TRADES agrees better with the max-margin boundary than both in {sum(wins)} "
        f"of {len(wins)} seeds; mean agreement: {listed(twice)}. Each at its best eps: {listed(own)}."
    )

"""Where the gap between two classes widens, which training finds the boundary in its middle? (U Figs 3, 9)

The claim that is tested: with an eps of twice the narrowest gap, UDP's boundary agrees with the max-margin boundary
better than PGD's and than TRADES'. Data, network, training and eps are the same for all.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float

from equipoise.findings import Findings, Lines, Number, Picture, Regions, Series
from equipoise.studies.options import Options, Tell
from equipoise.studies.plane import (
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
from equipoise.studies.processes import run_all, share
from equipoise.studies.toys import Toy, narrow_corridor

RADII = (0.05, 0.15, 0.25, 0.35, 0.45)
"""The papers' (U Fig. 9)."""
STEP_SIZE, STEPS = 0.05, 10
_SAYS = {
    "standard": "passes close to the training points (U Fig 3)",
    "PGD": "fails where eps violates the assumption locally (U Fig 3)",
    "TRADES": "fails where eps violates the assumption locally (U Fig 3)",
    "UDP": "with an eps twice as large recovers a boundary close to the max-margin (U Fig 3)",
}


@dataclass(frozen=True)
class Case:
    """One of the study's trainings."""

    name: str
    """Method, a name of `METHODS`."""
    eps: float
    """Radius, 0 for standard training."""
    seed: int
    """Seed."""


def run(options: Options, tell: Tell) -> Findings:
    """Decision regions and agreement with the max-margin boundary, by method and eps."""
    toy, sizes, rows = narrow_corridor(), Sizes(), 100
    radii, seeds = RADII, seeds_of(options, 10)
    if options.quick:
        sizes, rows, radii = QUICK, 30, RADII[2:3]
    eps = round(2 * toy.narrow_gap("linf"), 9)  # one of the papers' radii, up to rounding
    radii = sorted({*radii, eps})
    few = seeds[:5]
    cases = [Case("standard", 0.0, seed) for seed in seeds]
    cases += [Case(name, r, s) for name in METHODS[1:] for r in radii for s in (seeds if r == eps else few)]
    told = share(tell, "network", len(cases))
    networks = run_all(partial(_train, toy, sizes), cases, told, options.processes)
    trained = dict(zip(cases, networks, strict=True))
    agreements = {case: agreement(network.module, toy) for case, network in trained.items()}
    accuracies = {
        case: accuracy(network.module, _task(toy, sizes, case).data.train) for case, network in trained.items()
    }

    def at(name: str, seed: int, radius: float = eps) -> Case:
        return Case(name, 0.0 if name == "standard" else radius, seed)

    def panel(case: Case, title: str) -> Regions:
        return regions(title, trained[case].module, toy, rows, _task(toy, sizes, case).data.train)

    best = [all(agreements[at("UDP", s)] > agreements[at(other, s)] for other in ("PGD", "TRADES")) for s in seeds]
    numbers = [
        Number("seeds in which UDP agrees best with the max-margin boundary, of UDP, PGD and TRADES",
               [float(b) for b in best], paper="UDP alone recovers it (U Fig 3)", percent=True, outcomes=True),
        *(
            Number(f"UDP's agreement less that of {other}, eps {eps:g}",
                   [agreements[at("UDP", s)] - agreements[at(other, s)] for s in seeds],
                   paper="greater than 0 (U Fig 3)")
            for other in ("PGD", "TRADES", "standard")
        ),
        *(
            Number(f"agreement with the max-margin boundary, {_called(name, eps)}",
                   [agreements[at(name, s)] for s in seeds], paper=_SAYS[name], percent=True)
            for name in METHODS
        ),
        *(
            Number(f"accuracy on the training points, {_called(name, eps)}", [accuracies[at(name, s)] for s in seeds],
                   paper="misclassifies training points in the narrow part (U Sec. 3)" if name in ("PGD", "TRADES")
                   else "", percent=True)
            for name in METHODS
        ),
    ]  # fmt: skip
    first = seeds[0]
    pictures = [
        Picture(
            "decision-regions",
            f"Decision regions after training, seed {first}, with an eps of twice the narrowest gap, {eps:g} (U Fig 3, "
            "top).",
            [panel(at(name, first), _called(name, eps)) for name in METHODS],
            4,
        ),
        Picture(
            "radii",
            f"The same for several eps, with a step size of {STEP_SIZE} and {STEPS} steps (U Fig 9).",
            [panel(at(name, first, r), _called(name, r)) for name in METHODS[1:] for r in radii],
            len(radii),
        ),
        Picture("agreement", f"Mean over {len(few)} seeds, with their range.", [_curves(agreements, radii, few)], 1),
    ]
    settings = {
        **sizes.settings(), "eps": eps, "radii": radii, "step_size": STEP_SIZE, "perturbation_steps": STEPS,
        "seeds": seeds, "narrow_gap": toy.narrow_gap("linf"), "wide_gap": toy.wide_gap("linf"),
        "trades": "weight 1, soft cross-entropy (U Eq. TRADES)",
    }  # fmt: skip
    return Findings(numbers, pictures, settings, _verdict(best, numbers))


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


def _verdict(best: list[bool], numbers: list[Number]) -> str:
    means = {name: number.mean for name, number in zip(METHODS, numbers[4:8], strict=True)}
    return (
        f"UDP's boundary agrees better with the max-margin boundary than PGD's and than TRADES' in {sum(best)} of "
        f"{len(best)} seeds; mean agreement: " + ", ".join(f"{name} {mean:.1%}" for name, mean in means.items()) + "."
    )

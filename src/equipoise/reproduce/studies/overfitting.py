"""Does training on one-step perturbations overfit to them? (U Figs 13, 14; T Figs 3, 4)

Catastrophic overfitting: while a network trains on FGSM's points its accuracy on them jumps up and its accuracy under
PGD falls towards 0 (Wong et al. 2020). Training on one step of UDP should suffer less.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import nn

from equipoise.attacks import fgsm, pgd
from equipoise.attacks.ascent import Ascent
from equipoise.data import Dataset, Split
from equipoise.losses.terms import Method
from equipoise.reproduce.studies.images import (
    accuracy,
    band,
    dataset,
    described,
    difference,
    direction,
    images,
    recipe,
    seeds,
    train,
)
from equipoise.reproduce.studies.options import Options, ReportProgress
from equipoise.reproduce.studies.processes import run_all, share
from equipoise.results.findings import Findings, Lines, Number, Picture
from equipoise.training.methods import fgsm_at, pgd_at, r_fgsm_at, udp

EPS = 0.2
"""Radius of training and testing, and step of the one-step methods (U App. E.2)."""

TESTS = {"FGSM": fgsm(EPS), "PGD-20": pgd(EPS, 0.01, 20, start="zero")}
"""What accuracy is followed under (U Fig 13)."""

METHODS: Mapping[str, Method] = {
    "FGSM": fgsm_at(EPS),
    "UDP, 1 step": udp(EPS, EPS, 1),
    "R-FGSM": r_fgsm_at(EPS),
    "PGD-2": pgd_at(EPS, EPS / 2, 2),
    "UDP, 2 steps": udp(EPS, EPS / 2, 2),
}
"""What trains. The first two are followed (U Fig 13), all are compared at the end (U Fig 14)."""

FOLLOWED = ("FGSM", "UDP, 1 step")

TEST_EPS = (0.05, 0.1, 0.2, 0.3)
"""Radii of the comparison at the end."""


@dataclass(frozen=True)
class Size:
    """How much is computed."""

    steps: int = 320
    """Steps of each training."""
    every: int = 40
    """Steps between two measurements."""
    samples: int = 200
    """Test samples that are attacked."""
    restarts: int = 2
    """Of the PGD-20 at the end."""


def run(options: Options, tell: ReportProgress) -> Findings:
    """Clean, FGSM and PGD-20 accuracy over training, and PGD accuracy against the radius at the end."""
    original = dataset(options)
    data = images(original)
    size = Size(steps=48, every=12, samples=60, restarts=1) if options.quick else Size()
    methods = {m: METHODS[m] for m in (FOLLOWED if options.quick else METHODS)}
    repeats = seeds(options)
    courses: dict[str, list[dict[str, list[float]]]] = {m: [] for m in FOLLOWED}
    final: dict[str, list[list[float]]] = {m: [] for m in methods}
    steps: list[int] = []
    jobs = [(seed, name) for seed in repeats for name in methods]
    results = run_all(partial(_followed, data, size), jobs, share(tell, "network", len(jobs)), options.processes)
    for (_, name), (course, steps_here, last) in zip(jobs, results, strict=True):
        if name in FOLLOWED:
            courses[name].append(course)
            steps = steps_here
        final[name].append(last)
    numbers = _numbers(courses, final)
    return Findings(
        numbers=numbers,
        pictures=[_over_training(data, courses, steps, len(repeats)), _against_eps(data, final, size)],
        settings={
            "data": described(data, original.shape),
            "net": "lenet",
            "optimiser": "Adam, learning rate 1e-3, batches of 128",
            "methods": {name: str(method) for name, method in methods.items()},
            "tests over training": {name: str(test) for name, test in TESTS.items()},
            "test at the end": [str(_final_attack(eps, size)) for eps in TEST_EPS],
            **vars(size),
        },
        verdict=_verdict(courses, {n.name: n for n in numbers}),
    )


def _followed(data: Dataset, size: Size, job: tuple[int, str]) -> tuple[dict[str, list[float]], list[int], list[float]]:
    """One training: what `follow` measures on the way, at which steps, and the accuracy at its end by radius."""
    seed, name = job
    test = data.test.limit(size.samples, seed)
    course, steps, model = follow(METHODS[name], data, test, seed, size, name in FOLLOWED)
    return course, steps, [accuracy(model, test, _final_attack(eps, size), seed) for eps in TEST_EPS]


def follow(
    method: Method, data: Dataset, test: Split, seed: int, size: Size, measured: bool = True
) -> tuple[dict[str, list[float]], list[int], nn.Module]:
    """Train, and measure accuracy on `test` on the way: accuracies by name, the steps they belong to, the network."""
    course: dict[str, list[float]] = {"clean": [], **{name: [] for name in TESTS}}
    steps: list[int] = []

    def measure(model: nn.Module, step: int) -> None:
        steps.append(step)
        course["clean"].append(accuracy(model, test))
        for name, attack in TESTS.items():
            course[name].append(accuracy(model, test, attack, seed))

    how = recipe(data, size.steps, seed)
    model = train(method, data, how, every=size.every, measure=measure if measured else None)
    return course, steps, model


def largest_drop(course: Sequence[float]) -> float:
    """How far a curve falls below an earlier value of its own: `max_{i <= j} (course[i] - course[j])`."""
    values = np.asarray(course, dtype=np.float64)
    return float((np.maximum.accumulate(values) - values).max())


def overfits(course: Mapping[str, Sequence[float]]) -> bool:
    """Whether a training ended in catastrophic overfitting: PGD accuracy has lost a third of its largest value, and
    FGSM accuracy has not.
    """
    (_, fast), (_, strong) = ((name, course[name]) for name in TESTS)
    return strong[-1] < 2 / 3 * max(strong) and fast[-1] >= 2 / 3 * max(fast)


def _final_attack(eps: float, size: Size) -> Ascent:
    return pgd(eps, steps=20, restarts=size.restarts)


def _numbers(
    courses: Mapping[str, list[dict[str, list[float]]]], final: Mapping[str, list[list[float]]]
) -> list[Number]:
    said = {
        "FGSM": "FGSM accuracy jumps up, PGD-20 accuracy approaches 0 (U Fig 13)",
        "UDP, 1 step": "PGD-20 accuracy decreases to some extent, not to 0 (U Fig 13)",
    }
    ends = {(name, test): [c[test][-1] for c in courses[name]] for name in courses for test in ("clean", *TESTS)}
    numbers = [
        Number(f"{test} accuracy at the end, trained with {name}", values, paper=said[name], percent=True)
        for (name, test), values in ends.items()
    ]
    numbers += [
        Number(
            f"largest fall of PGD-20 accuracy, trained with {name}",
            [largest_drop(c["PGD-20"]) for c in courses[name]],
            paper=said[name],
            percent=True,
        )
        for name in courses
    ]
    first, second = FOLLOWED
    numbers += [
        difference(
            f"{test} accuracy at the end, {second} minus {first}",
            ends[second, test],
            ends[first, test],
            paper="UDP's is higher (U Fig 13)" if test != "FGSM" else "",
        )
        for test in ("clean", *TESTS)
    ]
    numbers += [
        Number(
            f"accuracy under PGD-20 from random starts, eps {eps:g}, trained with {name}",
            [row[i] for row in rows],
            percent=True,
        )
        for name, rows in final.items()
        for i, eps in enumerate(TEST_EPS)
        if eps == EPS
    ]
    return numbers


def _over_training(
    data: Dataset, courses: Mapping[str, list[dict[str, list[float]]]], steps: list[int], repeats: int
) -> Picture:
    panels = [
        Lines(
            f"trained with {name}",
            np.array(steps, dtype=np.float64),
            [band(test, [c[test] for c in course]) for test in ("clean", *TESTS)],
            "steps of training",
            "accuracy",
        )
        for name, course in courses.items()
    ]
    return Picture(
        "over-training",
        f"Test accuracy while a LeNet trains on {data.name} with one-step perturbations of eps {EPS:g} (U Fig 13): "
        f"means of {repeats} seeds, bands from the smallest to the largest.",
        panels,
        columns=2,
    )


def _against_eps(data: Dataset, final: Mapping[str, list[list[float]]], size: Size) -> Picture:
    return Picture(
        "against-eps",
        f"Test accuracy on {data.name} under PGD (20 steps, {size.restarts} random starts) after training with fast "
        "methods (U Fig 14, there ResNet-18 on CIFAR-10 and UDP with five models sampled by dropout, here one model).",
        [
            Lines(
                "at the end of training",
                np.array(TEST_EPS),
                [band(name, rows) for name, rows in final.items()],
                "eps of the test (Linf)",
                "accuracy",
            )
        ],
        columns=1,
    )


def _verdict(courses: Mapping[str, list[dict[str, list[float]]]], found: Mapping[str, Number]) -> str:
    first, second = FOLLOWED
    count = {name: sum(overfits(c) for c in course) for name, course in courses.items()}
    total = len(courses[first])
    strong = {name: np.mean([c["PGD-20"][-1] for c in courses[name]]) for name in courses}
    gap = direction(found[f"PGD-20 accuracy at the end, {second} minus {first}"])
    facts = (
        f"PGD-20 accuracy ends at {strong[first]:.1%} with {first} and at {strong[second]:.1%} with {second} "
        f"({'UDP ' + gap if gap != 'not told apart' else 'not told apart'} over {total} seeds)"
    )
    if count[first] == 0:
        return f"No catastrophic overfitting here, in any of {total} seeds with {first}: {facts}."
    how = f"{first} overfits in {count[first]} of {total} seeds, {second} in {count[second]}; {facts}"
    if gap == "higher" or (count[first] == total and count[second] == 0):
        return f"As in the paper: {how}."
    if count[second] < count[first]:
        return f"In part as in the paper: {how}."
    return f"Unlike in the paper, UDP suffers as much: {how}."

"""How much uncertainty is good? The weight of the entropy term, with and without adversarial training (R Fig 3)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from equipoise.attacks import pgd
from equipoise.attacks.steps import Gaussian
from equipoise.data import Dataset
from equipoise.losses.objectives import Objective, regularised
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
from equipoise.training.methods import pat, standard

EPS = 0.1
"""Radius of the training and of the attack."""

METHODS: Mapping[str, Callable[[Objective], Method]] = {
    "EntM": lambda loss: standard(loss),
    "PAT-EntM": lambda loss: pat(EPS, 0.03, 7, loss=loss),
}
"""What trains, by the loss that it descends."""

ATTACK = pgd(EPS, EPS / 10, 40, start=Gaussian(0.005))
"""PGD40 with the step of R, Sec. 5.1."""

_PAPER = "clean and robust accuracy rise together with lambda from 0.1 to 5 (R, Sec. 5.3 and Fig 3)"

Accuracies = Mapping[tuple[str, str], Sequence[Sequence[float]]]
"""By method and kind of accuracy: one row per seed, one column per weight."""


def run(options: Options, tell: ReportProgress) -> Findings:
    """Clean and PGD40 accuracy of EntM and PAT-EntM against the weight lambda of the entropy."""
    original = dataset(options)
    data = images(original)
    weights, steps, samples = ((0, 2), 20, 60) if options.quick else ((0, 1, 2, 5, 10), 150, 300)
    repeats = seeds(options)
    jobs = [(name, seed, weight) for name in METHODS for seed in repeats for weight in weights]
    found: dict[tuple[str, str], list[list[float]]] = {(m, kind): [] for m in METHODS for kind in ("clean", "PGD-40")}
    work = partial(_measured, data, steps, samples)
    results = run_all(work, jobs, share(tell, "network", len(jobs)), options.processes)
    for (name, _, weight), measured in zip(jobs, results, strict=True):
        for kind, value in measured.items():
            if weight == weights[0]:
                found[name, kind].append([])
            found[name, kind][-1].append(value)
    numbers = _numbers(found, weights)
    return Findings(
        numbers=numbers,
        pictures=[_picture(found, weights, len(repeats), data.name)],
        settings={
            "data": described(data, original.shape),
            "net": "lenet",
            "weights": list(weights),
            "training steps": steps,
            "methods": {name: str(make(regularised(2.0))) for name, make in METHODS.items()},
            "attack": str(ATTACK),
            "attacked samples": min(samples, len(data.test)),
        },
        verdict=_verdict(numbers),
    )


def _measured(data: Dataset, steps: int, samples: int, job: tuple[str, int, float]) -> dict[str, float]:
    """The accuracies of one network, by kind."""
    name, seed, weight = job
    how = recipe(data, steps, seed, lr=2e-3, batch_size=64)
    model = train(METHODS[name](regularised(float(weight))), data, how)
    return {
        "clean": accuracy(model, data.test),
        "PGD-40": accuracy(model, data.test.limit(samples, seed), ATTACK, seed),
    }


def _numbers(found: Accuracies, weights: Sequence[int]) -> list[Number]:
    each = [
        Number(f"{kind} accuracy, {name}, lambda {weight}", [row[i] for row in rows], percent=True)
        for (name, kind), rows in found.items()
        for i, weight in enumerate(weights)
    ]
    two = list(weights).index(2)
    gains = [
        difference(
            f"{kind} accuracy, {name}, lambda 2 minus lambda 0",
            [row[two] for row in found[name, kind]],
            [row[0] for row in found[name, kind]],
            _PAPER,
        )
        for name, kind in found
    ]
    return [*each, *gains]


def _picture(found: Accuracies, weights: Sequence[int], repeats: int, name: str) -> Picture:
    return Picture(
        "entropy-weight",
        f"Test accuracy on {name} against the weight of the entropy, and under PGD40 within {EPS:g} (R Fig 3): means "
        f"of {repeats} seeds, bands from the smallest to the largest.",
        [
            Lines(
                kind,
                np.array(weights, dtype=np.float64),
                [band(method, found[method, kind]) for method in METHODS],
                "lambda",
                f"{kind} accuracy",
            )
            for kind in ("clean", "PGD-40")
        ],
        columns=2,
    )


def _verdict(numbers: Sequence[Number]) -> str:
    told = {n.name: f"{n.mean:+.1%}, {direction(n)}" for n in numbers if n.name.endswith("minus lambda 0")}
    return (
        "From lambda 0 to 2: "
        + "; ".join(f"{name.removesuffix(', lambda 2 minus lambda 0')} {change}" for name, change in told.items())
        + "."
    )

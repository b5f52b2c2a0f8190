"""Does training on one-step perturbations overfit to them? (U Figs 13, 14; T Figs 3, 4)

Catastrophic overfitting: while a network trains on FGSM's points its accuracy on them jumps up and its accuracy under
PGD falls towards 0 (Wong et al. 2020). Training on one step of UDP should suffer less.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from equipoise.attacks import fgsm, pgd
from equipoise.attacks.ascent import Ascent
from equipoise.data import Dataset, Split
from equipoise.losses.terms import Method
from equipoise.reproduce.studies.design import Case, Options, percentage
from equipoise.reproduce.studies.images import ImageStudy, accuracy, band, difference, direction, recipe, train
from equipoise.results.findings import Lines, Number, Picture
from equipoise.training.methods import fgsm_at, pgd_at, r_fgsm_at, udp

EPS = 0.2
"""Radius of training and testing, and step of the one-step methods (U App. E.2)."""

TESTS = {"FGSM": fgsm(EPS), "PGD-20": pgd(EPS, 0.01, 20, start="zero")}
"""The attacks under which accuracy is followed (U Fig 13)."""

METHODS: Mapping[str, Method] = {
    "FGSM": fgsm_at(EPS),
    "UDP, 1 step": udp(EPS, EPS, 1),
    "R-FGSM": r_fgsm_at(EPS),
    "PGD-2": pgd_at(EPS, EPS / 2, 2),
    "UDP, 2 steps": udp(EPS, EPS / 2, 2),
}
"""The training methods. The first two are followed (U Fig 13), all are compared at the end (U Fig 14)."""

FOLLOWED = ("FGSM", "UDP, 1 step")

TEST_EPS = (0.05, 0.1, 0.2, 0.3)
"""Radii of the comparison at the end."""

_PAPER = {
    "FGSM": "FGSM accuracy jumps up, PGD-20 accuracy approaches 0 (U Fig 13)",
    "UDP, 1 step": "PGD-20 accuracy decreases to some extent, not to 0 (U Fig 13)",
}


@dataclass(frozen=True)
class Size:
    """Amount of computation."""

    steps: int = 320
    """Steps of each training."""
    every: int = 40
    """Steps between two measurements."""
    samples: int = 200
    """Test samples that are attacked."""
    restarts: int = 2
    """Random restarts of the PGD-20 at the end."""


class Followed(NamedTuple):
    """One training."""

    course: dict[str, list[float]]
    """Accuracies over the training, by test; empty lists if it was not followed."""
    steps: list[int]
    """The steps after which they were measured."""
    final: list[float]
    """Accuracy at the end for each of `TEST_EPS`."""


class Overfitting(ImageStudy[Followed]):
    """Clean, FGSM and PGD-20 accuracy over training, and PGD accuracy against the radius at the end."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.size = Size(steps=48, every=12, samples=60, restarts=1) if options.quick else Size()
        self.methods = FOLLOWED if options.quick else tuple(METHODS)

    def _cases(self) -> list[Case]:
        return self.repeated((name, 0.0) for name in self.methods)

    def _train(self, case: Case) -> Followed:
        test = self.data.test.limit(self.size.samples, case.seed)
        course, steps, model = follow(
            METHODS[case.method], self.data, test, case.seed, self.size, case.method in FOLLOWED
        )
        return Followed(course, steps, [accuracy(model, test, self._final_attack(eps), case.seed) for eps in TEST_EPS])

    def _final_attack(self, eps: float) -> Ascent:
        return pgd(eps, steps=20, restarts=self.size.restarts)

    @cached_property
    def courses(self) -> dict[str, list[dict[str, list[float]]]]:
        """The accuracies over training of the followed methods, one course per seed."""
        return {name: [result.course for result in self.over_seeds(name)] for name in FOLLOWED}

    def _ends(self, name: str, test: str) -> list[float]:
        return [course[test][-1] for course in self.courses[name]]

    def _measure(self) -> Iterator[Number]:
        tests = ("clean", *TESTS)
        for name in FOLLOWED:
            for test in tests:
                title = f"{test} accuracy at the end, trained with {name}"
                yield percentage(title, self._ends(name, test), _PAPER[name])
        for name in FOLLOWED:
            drops = [largest_drop(course["PGD-20"]) for course in self.courses[name]]
            yield percentage(f"largest fall of PGD-20 accuracy, trained with {name}", drops, _PAPER[name])
        first, second = FOLLOWED
        for test in tests:
            title = f"{test} accuracy at the end, {second} minus {first}"
            paper = "UDP's is higher (U Fig 13)" if test != "FGSM" else ""
            yield difference(title, self._ends(second, test), self._ends(first, test), paper)
        for name in self.methods:
            title = f"accuracy under PGD-20 from random starts, eps {EPS:g}, trained with {name}"
            yield percentage(title, [result.final[TEST_EPS.index(EPS)] for result in self.over_seeds(name)])

    def _draw(self) -> list[Picture]:
        steps = np.array(self.over_seeds(FOLLOWED[0])[0].steps, dtype=np.float64)
        panels = []
        for name, courses in self.courses.items():
            lines = [band(test, [course[test] for course in courses]) for test in ("clean", *TESTS)]
            panels.append(Lines(f"trained with {name}", steps, lines, "steps of training", "accuracy"))
        ends = [band(name, [result.final for result in self.over_seeds(name)]) for name in self.methods]
        against_eps = Lines("at the end of training", np.array(TEST_EPS), ends, "eps of the test (Linf)", "accuracy")
        over_training = (
            f"Test accuracy while a LeNet trains on {self.data.name} with one-step perturbations of eps {EPS:g} "
            f"(U Fig 13): means of {len(self.seeds)} seeds, bands from the smallest to the largest."
        )
        at_end = (
            f"Test accuracy on {self.data.name} under PGD (20 steps, {self.size.restarts} random starts) after "
            "training with fast methods (U Fig 14, there ResNet-18 on CIFAR-10 and UDP with five models sampled "
            "by dropout, here one model)."
        )
        return [Picture("over-training", over_training, panels, 2), Picture("against-eps", at_end, [against_eps], 1)]

    def _settings(self) -> dict[str, Any]:
        return {
            **self._setup(),
            "optimiser": "Adam, learning rate 1e-3, batches of 128",
            "methods": {name: str(METHODS[name]) for name in self.methods},
            "tests over training": {name: str(test) for name, test in TESTS.items()},
            "test at the end": [str(self._final_attack(eps)) for eps in TEST_EPS],
            **vars(self.size),
        }

    def _conclude(self) -> str:
        first, second = FOLLOWED
        count = {name: sum(map(overfits, courses)) for name, courses in self.courses.items()}
        total = len(self.seeds)
        strong = {name: np.mean(self._ends(name, "PGD-20")) for name in FOLLOWED}
        gap = direction(self.numbers[f"PGD-20 accuracy at the end, {second} minus {first}"])
        facts = (
            f"PGD-20 accuracy ends at {strong[first]:.1%} with {first} and at {strong[second]:.1%} with {second} "
            f"({'UDP ' + gap if gap != 'not told apart' else 'not told apart'} over {total} seeds)"
        )
        if count[first] == 0:
            return f"No catastrophic overfitting here, in any of {total} seeds with {first}: {facts}."
        counts = f"{first} overfits in {count[first]} of {total} seeds, {second} in {count[second]}; {facts}"
        if gap == "higher" or (count[first] == total and count[second] == 0):
            return f"As in the paper: {counts}."
        if count[second] < count[first]:
            return f"In part as in the paper: {counts}."
        return f"Unlike in the paper, UDP suffers as much: {counts}."


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

    schedule = recipe(data, size.steps, seed)
    model = train(method, data, schedule, every=size.every, measure=measure if measured else None)
    return course, steps, model


def largest_drop(course: Sequence[float]) -> float:
    """Return how far a curve falls below an earlier value of its own: `max_{i <= j} (course[i] - course[j])`."""
    values = np.asarray(course, dtype=np.float64)
    return float((np.maximum.accumulate(values) - values).max())


def overfits(course: Mapping[str, Sequence[float]]) -> bool:
    """Return whether a training ended in catastrophic overfitting: PGD accuracy has lost a third of its largest value,
    and FGSM accuracy has not.
    """
    fast, strong = (course[name] for name in TESTS)
    return strong[-1] < 2 / 3 * max(strong) and fast[-1] >= 2 / 3 * max(fast)


run = Overfitting.run

"""Does a network use the coordinate that gives the larger margin, or only the simpler one? (U Figs 3, 7)

In LMS-5 a line in the first coordinate separates the classes, and so do five slabs in the second; the max-margin
boundary needs both. Which coordinate a network uses shows when one is shuffled over the test points, whatever their
class: without the coordinate that it relies on, its accuracy falls to chance (Shah et al. 2020).
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from equipoise.core.rng import fold
from equipoise.data import Split
from equipoise.reproduce.studies import toys
from equipoise.reproduce.studies.design import Case, Options, percentage
from equipoise.reproduce.studies.images import accuracy
from equipoise.reproduce.studies.plane import AGREEMENT, STEP_SIZE, STEPS, PlaneStudy, Sizes, agreement, label
from equipoise.results.findings import Number, Picture

MARGIN = round(toys.lms5().largest_eps("linf"), 9)
"""The largest eps for which the balls of different classes do not meet: half of the Linf gap between the supports."""
LARGE = 2 * MARGIN
"""A large eps, for which they do."""
PAPERS = (("standard", 0.0), ("PGD", MARGIN), ("TRADES", MARGIN), ("UDP", LARGE))
OTHERS = (("UDP", MARGIN), ("PGD", LARGE), ("TRADES", LARGE))
"""Methods with the eps that the papers compare, and each with the other's."""
COORDINATES = ("linear", "slab")
_SHUFFLE = 7
_STANDARD = {
    "linear": "uses the linear coordinate alone, so chance (Shah et al. 2020; U Fig 3)",
    "slab": "uses the linear coordinate alone, so no change (Shah et al. 2020; U Fig 3)",
}
_LIMITED = "limited capacity to improve the boundary (U Sec. 3)"
_ROBUST = {"PGD": _LIMITED, "TRADES": _LIMITED, "UDP": "uses both (U Figs 3, 7)"}


class Lms5(PlaneStudy):
    """Decision regions, and the accuracy without each coordinate, by method."""

    repeats = (5, 2)

    def __init__(self, options: Options) -> None:
        super().__init__(options, toys.lms5(), Sizes(points=500, steps=1000, lr=1e-2), 110)
        self.tests = 100 if options.quick else 2000

    def _cases(self) -> list[Case]:
        return self.repeated((*PAPERS, *OTHERS))

    def _measure(self) -> Iterator[Number]:
        tests = [self.toy.dataset(self.sizes.points, self.tests, fold(seed, 1)).test for seed in self.seeds]
        for name, eps in (*PAPERS, *OTHERS):
            networks, called = self._networks(name, eps), label(name, eps)
            for i, coordinate in enumerate(COORDINATES):
                mixed = [shuffled(test, i, seed) for test, seed in zip(tests, self.seeds, strict=True)]
                yield percentage(
                    f"accuracy with the {coordinate} coordinate shuffled, {called}",
                    list(map(accuracy, networks, mixed)),
                    (_STANDARD[coordinate] if name == "standard" else _ROBUST[name]) if (name, eps) in PAPERS else "",
                )
            yield percentage(f"test accuracy, {called}", list(map(accuracy, networks, tests)))
            paper = "retrieves the optimal boundary (U Fig 3)" if (name, eps) == ("UDP", LARGE) else ""
            yield percentage(f"{AGREEMENT}, {called}", [agreement(network, self.toy) for network in networks], paper)

    def _draw(self) -> list[Picture]:
        caption = (
            f"Decision regions after training, seed {self.seeds[0]}: PGD and TRADES with the largest eps that keeps "
            "the balls of the classes apart, UDP with a large one (U Fig 3, bottom). Dashed, the max-margin boundary "
            "(U Fig 7)."
        )
        return [
            Picture("decision-regions", caption, self._panels(PAPERS), 4),
            Picture("other-eps", "Each with the eps of the other.", self._panels(OTHERS), 3),
        ]

    def _settings(self) -> dict[str, Any]:
        return {
            **asdict(self.sizes), "seeds": self.seeds, "step_size": STEP_SIZE, "perturbation_steps": STEPS,
            "gap": self.toy.narrow_gap(), "gap_linf": self.toy.narrow_gap("linf"),
            "largest_eps": self.toy.largest_eps("linf"), "test_points": self.tests,
            "trades": "weight 1, soft cross-entropy (U Eq. TRADES)",
        }  # fmt: skip

    def _conclude(self) -> str:

        def listed(number: str) -> str:
            labels = [label(*configuration) for configuration in (*PAPERS, *OTHERS)]
            return ", ".join(f"{self.numbers[f'{number}, {called}'].mean:.1%} for {called}" for called in labels)

        shuffled = "accuracy with the linear coordinate shuffled"
        return f"{shuffled.capitalize()}: {listed(shuffled)}. {AGREEMENT.capitalize()}: {listed(AGREEMENT)}."


def shuffled(split: Split, coordinate: int, seed: int) -> Split:
    """Return the points with one coordinate exchanged among all of them."""
    x = split.x.clone()
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(abs(fold(seed, _SHUFFLE, coordinate))))
    x[:, coordinate] = x[order, coordinate]
    return Split(x, split.y)


run = Lms5.run

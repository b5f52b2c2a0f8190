"""Where the gap between two classes widens, which training finds the boundary in its middle? (U Figs 3, 9)

U's claim is about a large eps: UDP recovers the boundary with an eps twice that of PGD and TRADES. Two comparisons test
it on the same data, network and training. In the first, PGD and TRADES are trained with an eps of the narrowest gap and
UDP with twice that. In the second, every method is trained with its own best eps, chosen for each seed by the mean
agreement of the other seeds, so that no method is judged by an eps that favours another.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from equipoise.reproduce.studies import plane, toys
from equipoise.reproduce.studies.design import Case, Options, percentage
from equipoise.reproduce.studies.images import accuracy
from equipoise.reproduce.studies.plane import AGREEMENT, METHODS, PlaneStudy, label
from equipoise.results.findings import Lines, Number, Picture, Series

RADII = (0.05, 0.15, 0.25, 0.35, 0.45)
"""The papers' (U Fig. 9)."""
_PAPER = {
    "standard": "passes close to the training points (U Fig 3)",
    "PGD": "fails where eps violates the assumption locally (U Fig 3)",
    "TRADES": "fails where eps violates the assumption locally (U Fig 3)",
    "UDP": "with an eps twice as large recovers a boundary close to the max-margin (U Fig 3)",
}
_ROBUST = METHODS[1:]
_OTHERS = ("PGD", "TRADES")


class NarrowCorridor(PlaneStudy):
    """Decision regions and agreement with the max-margin boundary, by method and eps."""

    repeats = (10, 2)

    def __init__(self, options: Options) -> None:
        super().__init__(options, toys.narrow_corridor(), plane.Sizes(), 100)
        self.eps = round(self.toy.narrow_gap("linf"), 9)
        self.large = round(2 * self.eps, 9)  # one of the papers' radii
        self.radii = sorted({*(RADII[2:3] if options.quick else RADII), self.eps, self.large})
        self.at_twice = {"standard": 0.0, "PGD": self.eps, "TRADES": self.eps, "UDP": self.large}

    def _cases(self) -> list[Case]:
        return self.repeated([("standard", 0.0), *product(_ROBUST, self.radii)])

    @cached_property
    def agreements(self) -> dict[Case, float]:
        """The agreement with the max-margin boundary of every network."""
        return {case: plane.agreement(trained.module, self.toy) for case, trained in self.results.items()}

    def by_radius(self, name: str) -> Float[np.ndarray, "radii seeds"]:
        """Return the agreements of a method; those of standard training are the same for every radius."""
        radii = [0.0] * len(self.radii) if name == "standard" else self.radii
        return np.array([[self.agreements[Case(name, radius, seed)] for seed in self.seeds] for radius in radii])

    @cached_property
    def best(self) -> dict[str, list[float]]:
        """The best eps of each method, one per seed."""
        return {name: [self.radii[i] for i in best_of_the_others(self.by_radius(name))] for name in _ROBUST}

    def _at(self, name: str, radii: Sequence[float]) -> list[float]:
        return [self.agreements[Case(name, radius, seed)] for radius, seed in zip(radii, self.seeds, strict=True)]

    @cached_property
    def twice(self) -> dict[str, list[float]]:
        """The agreements of the first comparison, one per seed."""
        return {name: self._at(name, [radius] * len(self.seeds)) for name, radius in self.at_twice.items()}

    @cached_property
    def wins(self) -> list[bool]:
        """Whether UDP is better than both others in the first comparison, for each seed."""
        seeds = zip(self.twice["UDP"], *(self.twice[name] for name in _OTHERS), strict=True)
        return [all(udp > other for other in others) for udp, *others in seeds]

    def _measure(self) -> Iterator[Number]:
        at_best = {name: self._at(name, self.best[name]) for name in _ROBUST}
        labels = {name: label(name, radius) for name, radius in self.at_twice.items()}
        yield Number(
            f"seeds in which UDP at eps {self.large:g} agrees better with the max-margin boundary than PGD and TRADES "
            f"at {self.eps:g}",
            [float(win) for win in self.wins], paper="UDP alone recovers it (U Fig 3)", percent=True, outcomes=True,
        )  # fmt: skip
        for other in (*_OTHERS, "standard"):
            gains = _minus(self.twice["UDP"], self.twice[other])
            title = f"UDP's agreement at eps {self.large:g} less that of {labels[other]}"
            yield Number(title, gains, paper="greater than 0 (U Fig 3)")
        for other in _OTHERS:
            gains = _minus(at_best["UDP"], at_best[other])
            yield Number(f"UDP's agreement less that of {other}, each at its best eps", gains)
        for name in METHODS:
            yield percentage(f"{AGREEMENT}, {labels[name]}", self.twice[name], _PAPER[name])
        for name in _ROBUST:
            mostly = _most_frequent(self.best[name])
            yield percentage(f"{AGREEMENT}, {name} at its best eps, mostly {mostly:g}", at_best[name])
        for name, radius in (*self.at_twice.items(), *((other, self.large) for other in _OTHERS)):
            data = (self._training(Case(name, radius, seed)).data.train for seed in self.seeds)
            paper = "misclassifies training points in the narrow part (U Sec. 3)" if name in _OTHERS else ""
            accuracies = list(map(accuracy, self._networks(name, radius), data))
            yield percentage(f"accuracy on the training points, {label(name, radius)}", accuracies, paper)

    def _draw(self) -> list[Picture]:
        overall = {name: self.radii[int(self.by_radius(name).mean(1).argmax())] for name in _ROBUST}
        lines = []
        for name in METHODS:
            shares = 100 * self.by_radius(name)
            lines.append(Series(name, shares.mean(1), shares.min(1), shares.max(1), dashed=name == "standard"))
        agreements = Lines(AGREEMENT.capitalize(), np.array(self.radii), lines, "eps", "% of the area")
        at_twice = (
            f"Decision regions after training, seed {self.seeds[0]}: PGD and TRADES with an eps of the narrowest "
            f"gap, {self.eps:g}, UDP with twice that (U Fig 3, top)."
        )
        best = "The same with the eps at which each method agrees best with the max-margin boundary (mean over seeds)."
        radii = f"The same for several eps, with a step size of {plane.STEP_SIZE} and {plane.STEPS} steps (U Fig 9)."
        return [
            Picture("decision-regions", at_twice, self._panels(self.at_twice.items()), 4),
            Picture("best-eps", best, self._panels((("standard", 0.0), *overall.items())), 4),
            Picture("radii", radii, self._panels(product(_ROBUST, self.radii)), len(self.radii)),
            Picture("agreement", f"Mean over {len(self.seeds)} seeds, with their range.", [agreements], 1),
        ]

    def _settings(self) -> dict[str, Any]:
        return {
            **asdict(self.sizes), "eps": self.eps, "large_eps": self.large, "best_eps": self.best,
            "radii": self.radii, "step_size": plane.STEP_SIZE, "perturbation_steps": plane.STEPS, "seeds": self.seeds,
            "narrow_gap": self.toy.narrow_gap("linf"), "wide_gap": self.toy.wide_gap("linf"),
            "trades": "weight 1, soft cross-entropy (U Eq. TRADES)",
        }  # fmt: skip

    def _conclude(self) -> str:

        def listed(agreements: Mapping[str, Sequence[float]]) -> str:
            return ", ".join(f"{name} {np.mean(values):.1%}" for name, values in agreements.items())

        twice = {label(name, radius): self.twice[name] for name, radius in self.at_twice.items()}
        own = {f"{n}, mostly eps {_most_frequent(radii):g}": self._at(n, radii) for n, radii in self.best.items()}
        return (
            "UDP at twice the eps of PGD and TRADES agrees better with the max-margin boundary than both in "
            f"{sum(self.wins)} of {len(self.wins)} seeds; mean agreement: {listed(twice)}. Each at its best eps: "
            f"{listed(own)}."
        )


def best_of_the_others(scores: Float[np.ndarray, "radii seeds"]) -> Int[np.ndarray, " seeds"]:
    """Return for each seed the index of the radius with the highest mean score over the other seeds.

    A radius that was chosen on the seeds it is judged by would be judged too well. With one seed it is that seed's own.
    """
    seeds = scores.shape[1]
    others = scores.sum(1, keepdims=True) - scores if seeds > 1 else scores
    return others.argmax(0)


def _minus(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(first, second, strict=True)]


def _most_frequent(values: Sequence[float]) -> float:
    return max(values, key=values.count)


run = NarrowCorridor.run

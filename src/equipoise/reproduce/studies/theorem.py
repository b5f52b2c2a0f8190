"""U's Theorem 4.1, simulated: in expectation the boundary moves half a learning rate of the way to the middle.

One dimension, classes around `m1 < m2`, the middle `w* = (m1 + m2) / 2`. At each step an oracle returns a point between
two perturbed points, one per class, and the boundary `w` moves towards it (U, App. B):

    x~_c = b_c x_c + (1 - b_c) w,    w' = w + eta (a x~_1 + (1 - a) x~_2 - w),    a, b_1, b_2 ~ U(0, 1) independent,

so that `E[w' | w] = (1 - eta/2) w + (eta/2) w*`. Beside this model runs Algorithm 1 itself, the library's ascent on a
classifier with its boundary at w, where only the number of steps is random; and PGD. A classifier has two sides as well
as a boundary: the class that a perturbed point belongs to says which side is whose.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import nn

from equipoise.attacks import pgd, udp
from equipoise.core.rng import fold
from equipoise.geometry import EVERYWHERE
from equipoise.reproduce.studies.design import Case, Design, Options
from equipoise.results.findings import Lines, Number, Picture, Series

_RATES = (0.05, 0.1, 0.2, 0.4)
_RATE = 0.2
"""Learning rate of Algorithm 1."""
_RADII = (0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2.0)
"""Radii of the ball, in half the distance between the means."""
_ALGORITHM = -1  # folded into the seed of Algorithm 1, beside the indices of learning rates and steps, 0, 1, ...
_PLACE = "U Theorem 4.1 and App. B"
_SWAPS = {
    "PGD": "LDP fails to converge if eps > |m1 - m2| / 2, the labels are flipped (U Sec. 4.2)",
    "UDP": "no dependence on eps (U Theorem 4.1)",
}


@dataclass(frozen=True)
class Setting:
    """The classes and the simulation."""

    means: tuple[float, float] = (-1.0, 1.0)
    """Means of the two classes, Gaussians."""
    deviation: float = 0.1
    """Their standard deviation: small, so that the classes are separable."""
    start: float = 0.8
    """Where the boundary begins."""
    chains: int = 2000
    """Independent boundaries of a repeat."""
    steps: int = 60
    """Steps of the oracle."""
    ascent_steps: int = 20
    """Largest number of steps of Algorithm 1; PGD takes as many."""
    few: int = 200
    """Chains of a repeat where Algorithm 1 or PGD perturbs."""

    @property
    def middle(self) -> float:
        """The boundary with the largest margin."""
        return sum(self.means) / 2

    @property
    def half(self) -> float:
        """Half the distance between the means."""
        return (self.means[1] - self.means[0]) / 2


class Theorem(Design[np.ndarray]):
    """The contraction of the boundary towards the middle, and whose sides are swapped when eps is large.

    The value of a case is the learning rate for the equations of the proof, else the radius in half the distance
    between the means; its result the boundary over the steps, or the share of steps with swapped sides of each chain.
    """

    repeats, unit = (10, 2), "simulation"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.setting = Setting(chains=200, steps=15, few=20, ascent_steps=8) if options.quick else Setting()

    def _cases(self) -> list[Case]:
        contractions = self.repeated([*(("equations", rate) for rate in _RATES), ("Algorithm 1", 2.0)])
        return contractions + [Case(name, radius, self.seeds[0]) for radius in _RADII for name in ("UDP", "PGD")]

    def _train(self, case: Case) -> np.ndarray:
        name, value, seed = case
        if name == "equations":
            return model(self.setting, value, fold(seed, _RATES.index(value)))
        eps = value * self.setting.half
        if name == "Algorithm 1":
            return algorithm("UDP", self.setting, _RATE, eps, seed)[0]
        return algorithm(name, replace(self.setting, steps=self.setting.steps // 3), _RATE, eps, seed)[1].mean(1)

    def _measure(self) -> Iterator[Number]:
        middle = self.setting.middle
        for rate in _RATES:
            law = f"{1 - rate / 2:g}"
            contractions = [contraction(path.mean(0) - middle) for path in self.over_seeds("equations", rate)]
            title = f"contraction per step, learning rate {rate} (predicted {law})"
            yield Number(title, contractions, paper=f"1 - eta/2 = {law} ({_PLACE})")
        yield Number(
            f"contraction per step of Algorithm 1, learning rate {_RATE}",
            [contraction(path.mean(0) - middle) for path in self.over_seeds("Algorithm 1", 2.0)],
            paper=f"takes the perturbed points as uniform between point and boundary: {1 - _RATE / 2:g} ({_PLACE})",
        )
        for name, radius in (("PGD", 0.75), ("PGD", 1.5), ("UDP", 1.5)):
            yield Number(
                f"steps that leave the classes on swapped sides, {name}, eps {radius:g} times half the distance",
                self._swapped(name, radius).tolist(), "chains", paper=_SWAPS[name], percent=True,
            )  # fmt: skip

    def _swapped(self, name: str, radius: float) -> Float[np.ndarray, " chains"]:
        return self.results[Case(name, radius, self.seeds[0])]

    def _draw(self) -> list[Picture]:
        panels = [self._panel("", rate, self.over_seeds("equations", rate)) for rate in _RATES]
        shares = {name: [self._swapped(name, radius) for radius in _RADII] for name in ("UDP", "PGD")}
        swaps = Lines(
            "Classes on swapped sides",
            np.array(_RADII),
            [Series(name, np.mean(chains, 1)) for name, chains in shares.items()],
            "eps / half the distance between the means",
            "share of steps",
        )
        caption = (
            "The mean boundary over all chains with the band of nine in ten of them, and the line that the theorem "
            "predicts; Algorithm 1 in place of its model; and how often the classes end on swapped sides."
        )
        algorithm_1 = self._panel("Algorithm 1, ", _RATE, self.over_seeds("Algorithm 1", 2.0))
        return [Picture("contraction", caption, [*panels, algorithm_1, swaps], 3)]

    def _panel(self, prefix: str, rate: float, paths: Sequence[Float[np.ndarray, "chains steps_and_1"]]) -> Lines:
        setting, chains = self.setting, np.concatenate(paths)
        steps = np.arange(setting.steps + 1.0)
        predicted = setting.middle + (setting.start - setting.middle) * (1 - rate / 2) ** steps
        low, high = np.quantile(chains, [0.05, 0.95], axis=0)
        lines = [Series("simulated", chains.mean(0), low, high), Series("predicted", predicted, dashed=True)]
        return Lines(f"{prefix}learning rate {rate}", steps, lines, "step", "boundary")

    def _settings(self) -> dict[str, Any]:
        return {**asdict(self.setting), "rates": list(_RATES), "radii": list(_RADII), "seeds": self.seeds}

    def _conclude(self) -> str:
        return verdict(list(self.numbers.values()))


def model(setting: Setting, rate: float, seed: int) -> Float[np.ndarray, "chains steps_and_1"]:
    """Return the boundary over the steps, by the equations of the proof."""
    generator = np.random.default_rng(abs(seed))
    w = np.full(setting.chains, setting.start)
    path = [w]
    for _ in range(setting.steps):
        x = generator.normal(setting.means, setting.deviation, (setting.chains, 2))
        b, a = generator.random((setting.chains, 2)), generator.random(setting.chains)
        moved = b * x + (1 - b) * w[:, None]
        w = w + rate * (a * moved[:, 0] + (1 - a) * moved[:, 1] - w)
        path.append(w)
    return np.stack(path, 1)


def algorithm(
    name: str, setting: Setting, rate: float, eps: float, seed: int
) -> tuple[Float[np.ndarray, "chains steps_and_1"], Bool[np.ndarray, "chains steps"]]:
    """Return the boundary over the steps, perturbed by the library's UDP or PGD; and at which steps the oracle saw the
    first class above the second.

    A chain's classifier keeps the sides that the last perturbed points had. Steps are max(eps, half the distance) / K
    long, so that K of them get as far as eps; UDP's points then end up to half a step beyond the boundary. Points
    enter the classifier as their distance from the boundary.
    """
    generator = np.random.default_rng(abs(fold(seed, _ALGORITHM)))
    ascent = {"UDP": udp, "PGD": pgd}[name](
        eps,
        max(eps, setting.half) / setting.ascent_steps,
        setting.ascent_steps,
        box=EVERYWHERE,
        start="zero",
        return_point="last",
    )
    classifier = nn.Linear(1, 2, bias=False)
    classifier.weight.data = torch.tensor([[-1.0], [1.0]])
    y = torch.tensor([0, 1]).repeat(setting.few)
    w, side = np.full(setting.few, setting.start), np.ones(setting.few)
    path, swapped = [w], []
    for step in range(setting.steps):
        x = generator.normal(setting.means, setting.deviation, (setting.few, 2))
        a = generator.random(setting.few)
        from_boundary = torch.tensor((x - w[:, None]) * side[:, None], dtype=torch.float32).reshape(-1, 1)
        moved = ascent(classifier, from_boundary, y, seed=fold(seed, step)).x.double().numpy().reshape(x.shape)
        moved = moved * side[:, None] + w[:, None]
        side = np.where(moved[:, 1] >= moved[:, 0], 1.0, -1.0)
        w = w + rate * (a * moved[:, 0] + (1 - a) * moved[:, 1] - w)
        path.append(w)
        swapped.append(side < 0)
    return np.stack(path, 1), np.stack(swapped, 1)


def contraction(error: Float[np.ndarray, " steps_and_1"]) -> float:
    """Return the factor r of `error[n + 1] = r error[n]`, by least squares."""
    return float(error[1:] @ error[:-1] / (error[:-1] @ error[:-1]))


def verdict(numbers: Sequence[Number]) -> str:
    """Say whether the intervals hold the predicted contraction, and whose sides are swapped."""
    predicted = {1 - rate / 2: number for rate, number in zip(_RATES, numbers, strict=False)}
    algorithm_1, law = numbers[len(_RATES)], 1 - _RATE / 2
    below, above, uncertain = (number.mean for number in numbers[-3:])
    if algorithm_1.interval is None:
        contractions = (
            "One repeat has no interval. A simulation of the proof's own equations contracts by "
            + ", ".join(f"{number.mean:.4f} (predicted {value:g})" for value, number in predicted.items())
            + f"; Algorithm 1 itself by {algorithm_1.mean:.4f} (predicted {law:g})."
        )
    else:
        count = sum(_holds(number, value) for value, number in predicted.items())
        low, high = algorithm_1.interval
        contractions = (
            f"In a simulation of the proof's own equations the interval of the contraction holds 1 - eta/2 at {count} "
            f"of {len(_RATES)} learning rates. Algorithm 1 itself, whose perturbed points are not uniform between "
            f"point and boundary, contracts by {algorithm_1.mean:.4f} ({low:.4f} to {high:.4f}), which "
            f"{'holds' if _holds(algorithm_1, law) else 'leaves out'} the predicted {law:g}."
        )
    return (
        f"{contractions} At eps 0.75 times half the distance of the classes PGD leaves them on swapped sides in "
        f"{below:.0%} of the steps, at 1.5 times in {above:.0%}, and UDP in {uncertain:.0%}."
    )


def _holds(number: Number, value: float) -> bool:
    low, high = number.interval or (np.inf, -np.inf)
    return low <= value <= high


run = Theorem.run

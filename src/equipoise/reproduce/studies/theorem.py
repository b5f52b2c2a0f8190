"""U's Theorem 4.1, simulated: in expectation the boundary moves half a learning rate of the way to the middle.

One dimension, classes around `m1 < m2`, the middle `w* = (m1 + m2) / 2`. At each step an oracle returns a point between
two perturbed points, one per class, and the boundary `w` moves towards it (U, App. B):

    x~_c = b_c x_c + (1 - b_c) w,    w' = w + eta (a x~_1 + (1 - a) x~_2 - w),    a, b_1, b_2 ~ U(0, 1) independent,

so that `E[w' | w] = (1 - eta/2) w + (eta/2) w*`. Beside this model runs Algorithm 1 itself, the library's ascent on a
classifier with its boundary at w, where only the number of steps is random; and PGD. A classifier has two sides as well
as a boundary: the class that a perturbed point belongs to says which side is whose.
"""

from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import nn

from equipoise.attacks import pgd, udp
from equipoise.core.rng import fold
from equipoise.reproduce.studies.options import Options, ReportProgress
from equipoise.reproduce.studies.plane import EVERYWHERE
from equipoise.reproduce.studies.processes import one_thread
from equipoise.results.findings import Findings, Lines, Number, Picture, Series

_RATES = (0.05, 0.1, 0.2, 0.4)
_RATE = 0.2
"""Learning rate of Algorithm 1."""
_RADII = (0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2.0)
"""Radii of the ball, in half the distance between the means."""
_ALGORITHM = -1  # what the seed of Algorithm 1 is folded with, beside the learning rates and the steps, 0, 1, ...
_PLACE = "U Theorem 4.1 and App. B"


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


def run(options: Options, tell: ReportProgress) -> Findings:
    """The contraction of the boundary towards the middle, and whose sides are swapped when eps is large."""
    setting = Setting(chains=200, steps=15, few=20, ascent_steps=8) if options.quick else Setting()
    seeds = [options.seed + i for i in range(options.seeds or (2 if options.quick else 10))]
    numbers, panels = [], []
    with one_thread():
        for place, rate in enumerate(_RATES):
            tell(f"learning rate {rate}", place / 6)
            paths = np.stack([model(setting, rate, fold(seed, place)) for seed in seeds])
            numbers.append(
                Number(
                    f"contraction per step, learning rate {rate} (predicted {1 - rate / 2:g})",
                    [contraction(path.mean(0) - setting.middle) for path in paths],
                    paper=f"1 - eta/2 = {1 - rate / 2:g} ({_PLACE})",
                )
            )
            panels.append(_panel(setting, rate, paths.reshape(-1, setting.steps + 1)))
        paths = []
        for place, seed in enumerate(seeds):
            tell("Algorithm 1", (4 + place / len(seeds)) / 6)
            paths.append(algorithm("UDP", setting, _RATE, 2 * setting.half, seed)[0])
        numbers.append(
            Number(
                f"contraction per step of Algorithm 1, learning rate {_RATE}",
                [contraction(path.mean(0) - setting.middle) for path in paths],
                paper=f"takes the perturbed points as uniform between point and boundary: {1 - _RATE / 2:g} ({_PLACE})",
            )
        )
        panels.append(_panel(setting, _RATE, np.concatenate(paths), "Algorithm 1, "))
        swapped = {name: [] for name in ("UDP", "PGD")}
        short = replace(setting, steps=setting.steps // 3)
        for place, radius in enumerate(_RADII):
            tell("large eps", (5 + place / len(_RADII)) / 6)
            for name, shares in swapped.items():
                shares.append(algorithm(name, short, _RATE, radius * setting.half, options.seed)[1].mean(1))
    for name, radius in (("PGD", 0.75), ("PGD", 1.5), ("UDP", 1.5)):
        numbers.append(
            Number(
                f"steps that leave the classes on swapped sides, {name}, eps {radius:g} times half the distance",
                swapped[name][_RADII.index(radius)].tolist(),
                "chains",
                paper="LDP fails to converge if eps > |m1 - m2| / 2, the labels are flipped (U Sec. 4.2)"
                if name == "PGD"
                else "no dependence on eps (U Theorem 4.1)",
                percent=True,
            )
        )
    panels.append(_swaps(swapped))
    return Findings(
        numbers,
        [
            Picture(
                "contraction",
                "The mean boundary over all chains with the band of nine in ten of them, and the line that the theorem "
                "predicts; Algorithm 1 in place of its model; and how often the classes end on swapped sides.",
                panels,
                3,
            )
        ],
        {**asdict(setting), "rates": list(_RATES), "radii": list(_RADII), "seeds": seeds},
        _verdict(numbers),
    )


def model(setting: Setting, rate: float, seed: int) -> Float[np.ndarray, "chains steps_and_1"]:
    """The boundary over the steps, by the equations of the proof."""
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
    """The boundary over the steps, perturbed by the library's UDP or PGD; and at which steps the oracle saw the first
    class above the second.

    A chain's classifier keeps the sides that the last perturbed points had. Steps are max(eps, half the distance) / K
    long, so that K of them get as far as eps; UDP's points then end up to half a step beyond the boundary. Points
    enter the classifier as their distance from the boundary.
    """
    generator = np.random.default_rng(abs(fold(seed, _ALGORITHM)))
    climb = {"UDP": udp, "PGD": pgd}[name](
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
        moved = climb(classifier, from_boundary, y, seed=fold(seed, step)).x.double().numpy().reshape(x.shape)
        moved = moved * side[:, None] + w[:, None]
        side = np.where(moved[:, 1] >= moved[:, 0], 1.0, -1.0)
        w = w + rate * (a * moved[:, 0] + (1 - a) * moved[:, 1] - w)
        path.append(w)
        swapped.append(side < 0)
    return np.stack(path, 1), np.stack(swapped, 1)


def contraction(error: Float[np.ndarray, " steps_and_1"]) -> float:
    """The factor r of `error[n + 1] = r error[n]`, by least squares."""
    return float(error[1:] @ error[:-1] / (error[:-1] @ error[:-1]))


def _panel(setting: Setting, rate: float, paths: Float[np.ndarray, "chains steps_and_1"], what: str = "") -> Lines:
    steps = np.arange(setting.steps + 1.0)
    predicted = setting.middle + (setting.start - setting.middle) * (1 - rate / 2) ** steps
    low, high = np.quantile(paths, [0.05, 0.95], axis=0)
    return Lines(
        f"{what}learning rate {rate}",
        steps,
        [Series("simulated", paths.mean(0), low, high), Series("predicted", predicted, dashed=True)],
        "step",
        "boundary",
    )


def _swaps(swapped: dict[str, list[Float[np.ndarray, " chains"]]]) -> Lines:
    return Lines(
        "Classes on swapped sides",
        np.array(_RADII),
        [Series(name, np.mean(shares, 1)) for name, shares in swapped.items()],
        "eps / half the distance between the means",
        "share of steps",
    )


def _verdict(numbers: list[Number]) -> str:
    predicted = {1 - rate / 2: number for rate, number in zip(_RATES, numbers, strict=False)}
    itself, law = numbers[len(_RATES)], 1 - _RATE / 2
    below, above, uncertain = (number.mean for number in numbers[-3:])
    if itself.interval is None:
        seen = (
            "One repeat has no interval. A simulation of the proof's own equations contracts by "
            + ", ".join(f"{number.mean:.4f} (predicted {value:g})" for value, number in predicted.items())
            + f"; Algorithm 1 itself by {itself.mean:.4f} (predicted {law:g})."
        )
    else:
        held = sum(_holds(number, value) for value, number in predicted.items())
        low, high = itself.interval
        seen = (
            f"In a simulation of the proof's own equations the interval of the contraction holds 1 - eta/2 at {held} "
            f"of {len(_RATES)} learning rates. Algorithm 1 itself, whose perturbed points are not uniform between "
            f"point and boundary, contracts by {itself.mean:.4f} ({low:.4f} to {high:.4f}), which "
            f"{'holds' if _holds(itself, law) else 'leaves out'} the predicted {law:g}."
        )
    return (
        f"{seen} At eps 0.75 times half the distance of the classes PGD leaves them on swapped sides in {below:.0%} of "
        f"the steps, at 1.5 times in {above:.0%}, and UDP in {uncertain:.0%}."
    )


def _holds(number: Number, value: float) -> bool:
    """Whether the interval of a number contains a value."""
    low, high = number.interval or (np.inf, -np.inf)
    return low <= value <= high

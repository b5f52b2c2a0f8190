"""Does a larger network win back the clean accuracy that robust training costs? (U Fig 5)

LeNets of growing width, the number of filters and of units of the first linear layer multiplied (U App. F.2), trained
without perturbations and by UDP with eps .1. U goes from 2 to 12 times (`widths`); 12 times the width
takes some 100 times as long.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from equipoise.attacks import pgd
from equipoise.data import Dataset
from equipoise.losses.terms import Method
from equipoise.nets import build, count_parameters
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
from equipoise.results.findings import Findings, Lines, Number, Picture, Series
from equipoise.training.methods import standard, udp

EPS = 0.1
"""Radius of UDP (U Fig 5) and of the attack."""

METHODS: Mapping[str, Method] = {"standard": standard(), "UDP": udp(EPS, 0.04, 5)}
"""What trains; U does not say with which steps; these reach twice the radius."""

ATTACK = pgd(EPS, 0.01, 20)
"""What robust accuracy is measured with."""

LR, BATCH = 2e-3, 64
"""Learning rate and samples per step."""

_PAPER = "UDP's clean accuracy grows with the width, beyond that of standard training at width 1 (U Fig 5, Sec. 5.2)"

Accuracies = Mapping[tuple[str, str], Sequence[Sequence[float]]]
"""By method and kind of accuracy: one row per seed, one column per width."""


def run(options: Options, tell: ReportProgress) -> Findings:
    """Clean and PGD accuracy of standard and UDP training against the width of a LeNet."""
    original = dataset(options)
    data = images(original)
    widths, steps, samples = ((1, 2), 20, 60) if options.quick else ((1, 2, 4), 160, 500)
    widths = options.widths or widths
    repeats = seeds(options)
    found: dict[tuple[str, str], list[list[float]]] = {(m, kind): [] for m in METHODS for kind in ("clean", "PGD-20")}
    jobs = [(seed, name, width) for seed in repeats for name in METHODS for width in widths]
    work = partial(_measured, data, steps, samples)
    results = run_all(work, jobs, share(tell, "network", len(jobs)), options.processes)
    for (_, name, width), measured in zip(jobs, results, strict=True):
        for kind, value in measured.items():
            if width == widths[0]:
                found[name, kind].append([])
            found[name, kind][-1].append(value)
    sizes = [count_parameters(build("lenet", data.shape, len(data.classes), width=w)) for w in widths]
    numbers = _numbers(found, widths)
    return Findings(
        numbers=numbers,
        pictures=[_picture(data, found, widths, sizes, len(repeats))],
        settings={
            "data": described(data, original.shape),
            "net": "lenet",
            "widths": list(widths),
            "parameters": sizes,
            "training steps": steps,
            "optimiser": f"Adam, learning rate {LR:g}, batches of {BATCH}",
            "methods": {name: str(method) for name, method in METHODS.items()},
            "attack": str(ATTACK),
            "attacked samples": min(samples, len(data.test)),
        },
        verdict=_verdict({n.name: n for n in numbers}, found, widths),
    )


def _measured(data: Dataset, steps: int, samples: int, job: tuple[int, str, int]) -> dict[str, float]:
    """The accuracies of one LeNet, by kind."""
    seed, name, width = job
    model = train(METHODS[name], data, recipe(data, steps, seed, lr=LR, batch_size=BATCH), width=width)
    return {
        "clean": accuracy(model, data.test),
        "PGD-20": accuracy(model, data.test.limit(samples, seed), ATTACK, seed),
    }


def _numbers(found: Accuracies, widths: Sequence[int]) -> list[Number]:
    numbers = [
        Number(f"{kind} accuracy, {name}, width {width}", [row[i] for row in rows], percent=True)
        for (name, kind), rows in found.items()
        for i, width in enumerate(widths)
    ]

    def at(name: str, kind: str, place: int) -> list[float]:
        return [row[place] for row in found[name, kind]]

    first, last = f"width {widths[0]}", f"width {widths[-1]}"
    return [
        *numbers,
        difference(
            f"clean accuracy, UDP at {last} minus UDP at {first}", at("UDP", "clean", -1), at("UDP", "clean", 0), _PAPER
        ),
        difference(
            f"clean accuracy, UDP at {last} minus standard at {first}",
            at("UDP", "clean", -1),
            at("standard", "clean", 0),
            _PAPER,
        ),
        difference(
            f"clean accuracy, UDP minus standard, both at {last}", at("UDP", "clean", -1), at("standard", "clean", -1)
        ),
        difference(
            f"PGD-20 accuracy, UDP minus standard, both at {first}",
            at("UDP", "PGD-20", 0),
            at("standard", "PGD-20", 0),
            "standard training has about 0 % robust accuracy (U Fig 5)",
        ),
    ]


def _picture(data: Dataset, found: Accuracies, widths: Sequence[int], sizes: Sequence[int], repeats: int) -> Picture:
    def lines(kind: str) -> list[Series]:
        series = [band(name, found[name, kind]) for name in METHODS]
        level = float(np.mean(found["standard", kind], 0)[0])
        return [*series, Series(f"standard, width {widths[0]}", np.full(len(widths), level), dashed=True)]

    axes = (("width", np.array(widths)), ("thousand parameters", np.array(sizes) / 1000))
    return Picture(
        "capacity",
        f"Test accuracy on {data.name} of LeNets of growing width, trained without perturbations and by UDP with eps "
        f"{EPS:g}, and under PGD of the same radius (U Fig 5): means of {repeats} seeds, bands from the smallest to "
        "the largest.",
        [
            Lines(
                f"{kind}, against {name}",
                values.astype(np.float64),
                lines(kind),
                name,
                f"{kind} accuracy",
            )
            for kind in ("clean", "PGD-20")
            for name, values in axes
        ],
        columns=2,
    )


def _verdict(numbers: Mapping[str, Number], found: Accuracies, widths: Sequence[int]) -> str:
    first, last = f"width {widths[0]}", f"width {widths[-1]}"
    grows = direction(numbers[f"clean accuracy, UDP at {last} minus UDP at {first}"])
    beyond = direction(numbers[f"clean accuracy, UDP at {last} minus standard at {first}"])
    same = direction(numbers[f"clean accuracy, UDP minus standard, both at {last}"])
    clean = {name: np.mean(found[name, "clean"], 0) for name in METHODS}
    facts = (
        f"UDP's clean accuracy goes from {clean['UDP'][0]:.1%} at {first} to {clean['UDP'][-1]:.1%} at {last} "
        f"({grows}); standard training reaches {clean['standard'][0]:.1%} at {first} (UDP at {last}: {beyond}) and "
        f"{clean['standard'][-1]:.1%} at {last} (UDP: {same})"
    )
    match grows, beyond:
        case "higher", "higher":
            return f"As in the paper: {facts}."
        case "higher", _:
            return f"UDP gains with capacity, as in the paper, but does not pass standard training: {facts}."
        case _:
            return f"The paper's point is not seen: {facts}."

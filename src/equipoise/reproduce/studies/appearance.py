"""What do uncertainty-driven and loss-driven perturbations look like when the ball does not hold them? (U Fig 15)

On a network trained without perturbations, 1000 steps of .001 climb the entropy (UDP) and the cross-entropy (PGD), with
eps infinite: only the box [0, 1] is left. Entropy is highest between classes, so UDP should stop there; the
cross-entropy grows on the far side, so PGD should go deep into another class.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from equipoise.attacks import pgd, uta
from equipoise.attacks.ascent import Ascent
from equipoise.core.errors import require
from equipoise.core.types import Labels, Points
from equipoise.data import Dataset, Split
from equipoise.geometry import Ball
from equipoise.losses.objectives import entropy
from equipoise.models import as_predictive, predict
from equipoise.reproduce.studies.images import dataset, described, direction, images, recipe, seeds, train
from equipoise.reproduce.studies.options import Options, ReportProgress
from equipoise.reproduce.studies.processes import run_all, share
from equipoise.results.findings import Findings, Histogram, Images, Number, Picture
from equipoise.training.methods import standard

STEPS, STEP_SIZE = 1000, 0.001
"""Of both climbs (U Fig 15)."""

SURE = 0.9
"""From this probability of another class on, a point counts as deep in it."""

_PAPER = "the class of UDP-perturbed samples remains perceptible, that of PGD-perturbed ones need not (U Fig 15)"


@dataclass(frozen=True, eq=False)
class Seen:
    """What a network says of points that started at correctly classified samples."""

    x: Points
    """The points."""
    labels: Labels
    """The class predicted there."""
    confidence: Float[Tensor, " batch"]
    """The probability of that class."""
    own: Float[Tensor, " batch"]
    """The probability of the true class."""
    entropy: Float[Tensor, " batch"]
    """The entropy of the prediction, in nats."""
    distance: Float[Tensor, " batch"]
    """L2 distance from the sample, in pixels of [0, 1]."""


def run(options: Options, tell: ReportProgress) -> Findings:
    """Clean samples beside their UDP and PGD perturbations, and how far each kind goes across the boundary."""
    original = dataset(options)
    data = images(original)
    count, steps, size = (20, 100, 10 * STEP_SIZE) if options.quick else (100, STEPS, STEP_SIZE)
    training = 100 if options.quick else 400
    climbs = {"UDP": uta(math.inf, size, steps), "PGD": pgd(math.inf, size, steps, start="zero", return_point="last")}
    # On correctly classified samples: the others are on the far side of the boundary before the first step.
    judge = KNeighborsClassifier(1).fit(data.train.x.flatten(1).numpy(), data.train.y.numpy())
    chosen = seeds(options, 5)
    work = partial(_seen, data, training, count, climbs)
    repeats = run_all(work, chosen, share(tell, "network", len(chosen)), options.processes)
    numbers = _numbers(repeats, judge)
    return Findings(
        numbers=numbers,
        pictures=[_grid(data, *repeats[0], steps, size), _histogram(repeats)],
        settings={
            "data": described(data, original.shape),
            "net": "lenet",
            "training steps": training,
            "samples": count,
            "steps": steps,
            "step_size": size,
            "eps": "infinite: only the box [0, 1] holds the points",
            "judge": "nearest neighbour (L2) among the training samples, which knows nothing of the network",
            "UDP": "all steps for every sample, as for PGD; not a number of them drawn at random",
        },
        verdict=_verdict({n.name: n for n in numbers}),
    )


def _seen(
    data: Dataset, training: int, count: int, climbs: Mapping[str, Ascent], seed: int
) -> tuple[Split, dict[str, Seen]]:
    """What one network says of clean samples and of where the climbs take them."""
    model = train(standard(), data, recipe(data, training, seed))
    samples = correct(model, data.test.to(next(model.parameters()).device)).limit(count, seed)
    seen = {"clean": look(model, samples, samples.x)}
    for name, climb in climbs.items():
        seen[name] = look(model, samples, climb(model, samples.x, samples.y, seed=seed).x)
    return samples, seen


def correct(model: nn.Module, split: Split) -> Split:
    """The samples that the model classifies correctly. Raises `EquipoiseError` if there is none."""
    here = torch.cat([predict(as_predictive(model), x).labels for x in split.x.split(512)])
    rows = (here == split.y).nonzero().flatten()
    require(len(rows) > 0, "the trained network classifies no test sample correctly: use more training samples.")
    return split[rows]


def look(model: nn.Module, samples: Split, x: Points) -> Seen:
    """What the model says at the points `x`, one for each of the samples."""
    here = predict(as_predictive(model), x)
    p = here.log_probs.exp()
    return Seen(
        x=x,
        labels=here.labels,
        confidence=p.amax(1),
        own=p.gather(1, samples.y[:, None]).squeeze(1),
        entropy=entropy(here),
        distance=Ball("l2", math.inf).distance(x, samples.x),
    )


def _numbers(repeats: list[tuple[Split, dict[str, Seen]]], judge: KNeighborsClassifier) -> list[Number]:
    def crossed(split: Split, at: Seen) -> Tensor:
        return at.labels != split.y

    def deep(split: Split, at: Seen) -> Tensor:
        return (at.labels != split.y) & (at.confidence > SURE)

    def recognised(split: Split, at: Seen) -> Tensor:
        found = torch.from_numpy(judge.predict(at.x.flatten(1).cpu().numpy()))
        return found == split.y.cpu()

    measures = (
        ("points predicted as another class", ("UDP", "PGD"), crossed, True, ""),
        (f"points deep in another class (probability over {SURE:g})", ("UDP", "PGD"), deep, True, ""),
        ("probability of the true class", ("UDP", "PGD"), lambda split, at: at.own, True, ""),
        ("entropy in nats", ("clean", "UDP", "PGD"), lambda split, at: at.entropy, False, ""),
        ("L2 distance", ("UDP", "PGD"), lambda split, at: at.distance, False, ""),
        ("accuracy of a nearest-neighbour judge", ("clean", "UDP", "PGD"), recognised, True, _PAPER),
    )
    return [
        Number(
            f"{what}, {name}",
            [float(measure(split, seen[name]).double().mean()) for split, seen in repeats],
            paper=paper,
            percent=percent,
        )
        for what, names, measure, percent, paper in measures
        for name in names
    ]


def _grid(data: Dataset, samples: Split, seen: dict[str, Seen], steps: int, size: float) -> Picture:
    rows = min(5, len(samples))
    titles = {"clean": "clean", "UDP": "UDP", "PGD": "PGD"}
    pixels = np.stack([seen[name].x[:rows].cpu().numpy() for name in titles], 1)
    notes = [
        [f"{data.classes[int(seen[n].labels[i])]} {float(seen[n].confidence[i]):.0%}" for n in titles]
        for i in range(rows)
    ]
    return Picture(
        "appearance",
        f"Test samples of {data.name} before and after {steps} steps of {size:g} with eps infinite, on a trained "
        "network; underneath the predicted class and its probability (U Fig 15).",
        [Images("", pixels, [data.classes[int(c)] for c in samples.y[:rows]], list(titles.values()), notes)],
        columns=1,
    )


def _histogram(repeats: list[tuple[Split, dict[str, Seen]]]) -> Picture:
    edges = np.linspace(0, 1, 21)
    counts = {
        name: np.histogram(torch.cat([seen[name].own for _, seen in repeats]).cpu().numpy().clip(0, 1), edges)[0]
        for name in ("UDP", "PGD")
    }
    return Picture(
        "true-class",
        "Where the climbs end: the probability that the network still gives the true class, over all seeds.",
        [Histogram("after the climb", edges, counts, "probability of the true class")],
        columns=1,
    )


def _verdict(found: dict[str, Number]) -> str:
    deep = {name: found[f"points deep in another class (probability over {SURE:g}), {name}"] for name in ("UDP", "PGD")}
    judge = {name: found[f"accuracy of a nearest-neighbour judge, {name}"] for name in ("clean", "UDP", "PGD")}
    gaps = {
        what: direction(Number(what, [p - u for p, u in zip(a["PGD"].values, a["UDP"].values, strict=True)]))
        for what, a in (("deep", deep), ("judge", judge))
    }
    facts = (
        f"PGD takes {deep['PGD'].mean:.0%} of the points deep into another class, UDP {deep['UDP'].mean:.0%}; "
        f"a nearest-neighbour judge still recognises {judge['PGD'].mean:.0%} and {judge['UDP'].mean:.0%} of them "
        f"({judge['clean'].mean:.0%} of the clean ones)"
    )
    match gaps["deep"], gaps["judge"]:
        case "higher", "lower":
            return f"As in the paper: {facts}."
        case "higher", _:
            return f"UDP stops at the boundary, as in the paper, but its images are no more recognisable: {facts}."
        case "not told apart", _:
            return f"{len(deep['PGD'].values)} seeds are too few to tell the two apart: {facts}."
        case _:
            return f"The paper's point is not seen: {facts}."

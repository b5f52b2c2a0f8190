"""What do uncertainty-driven and loss-driven perturbations look like when the ball does not hold them? (U Fig 15)

On a network trained without perturbations, 1000 steps of .001 climb the entropy (UDP) and the cross-entropy (PGD), with
eps infinite: only the box [0, 1] is left. Entropy is highest between classes, so UDP should stop there; the
cross-entropy grows on the far side, so PGD should go deep into another class.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from equipoise.attacks import pgd, uta
from equipoise.core.errors import require
from equipoise.core.types import Labels, Points
from equipoise.data import Split
from equipoise.geometry import Ball
from equipoise.losses.objectives import entropy
from equipoise.models import as_predictive, predict
from equipoise.reproduce.studies import images
from equipoise.reproduce.studies.design import Case, Options
from equipoise.reproduce.studies.images import ImageStudy, difference, direction, recipe, train
from equipoise.results.findings import Histogram, Images, Number, Picture
from equipoise.training.methods import standard

STEPS, STEP_SIZE = 1000, 0.001
"""Number and size of the steps of both attacks (U Fig 15)."""

SURE = 0.9
"""Probability of another class above which a point counts as deep in it."""

_PAPER = "the class of UDP-perturbed samples remains perceptible, that of PGD-perturbed ones need not (U Fig 15)"
_DEEP = f"points deep in another class (probability over {SURE:g})"
_JUDGE = "accuracy of a nearest-neighbour judge"


@dataclass(frozen=True, eq=False)
class Seen:
    """A network's predictions at points that started at correctly classified samples."""

    x: Points
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


class Appearance(ImageStudy[tuple[Split, dict[str, Seen]]]):
    """Clean samples beside their UDP and PGD perturbations, and how far each kind goes across the boundary."""

    repeats = (5, 2)

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.count, self.steps, self.size = (20, 100, 10 * STEP_SIZE) if options.quick else (100, STEPS, STEP_SIZE)
        self.training = 100 if options.quick else 400
        self.judge = KNeighborsClassifier(1).fit(self.data.train.x.flatten(1).numpy(), self.data.train.y.numpy())

    def _cases(self) -> list[Case]:
        return self.repeated([("standard", 0.0)])

    def _train(self, case: Case) -> tuple[Split, dict[str, Seen]]:
        """Return clean samples and a network's predictions for them and for where the attacks take them.

        The samples are correctly classified: others are across the boundary before the first step.
        """
        model = train(standard(), self.data, recipe(self.data, self.training, case.seed))
        samples = correct(model, self.data.test.to(next(model.parameters()).device)).limit(self.count, case.seed)
        seen = {"clean": look(model, samples, samples.x)}
        for name, attack in (("UDP", uta), ("PGD", pgd)):
            ascent = attack(math.inf, self.size, self.steps, start="zero", return_point="last")
            moved = ascent(model, samples.x, samples.y, seed=case.seed).x
            seen[name] = look(model, samples, moved)
        return samples, seen

    def _measure(self) -> Iterator[Number]:

        def crossed(split: Split, seen: Seen) -> Tensor:
            return seen.labels != split.y

        def recognised(split: Split, seen: Seen) -> Tensor:
            return torch.from_numpy(self.judge.predict(seen.x.flatten(1).cpu().numpy())) == split.y.cpu()

        measures: tuple[tuple[str, tuple[str, ...], Callable[[Split, Seen], Tensor], bool, str], ...] = (
            ("points predicted as another class", ("UDP", "PGD"), crossed, True, ""),
            (_DEEP, ("UDP", "PGD"), lambda split, seen: crossed(split, seen) & (seen.confidence > SURE), True, ""),
            ("probability of the true class", ("UDP", "PGD"), lambda _, seen: seen.own, True, ""),
            ("entropy in nats", ("clean", "UDP", "PGD"), lambda _, seen: seen.entropy, False, ""),
            ("L2 distance", ("UDP", "PGD"), lambda _, seen: seen.distance, False, ""),
            (_JUDGE, ("clean", "UDP", "PGD"), recognised, True, _PAPER),
        )
        for what, names, measure, percent, paper in measures:
            for name in names:
                results = self.over_seeds("standard")
                values = [float(measure(split, seen[name]).double().mean()) for split, seen in results]
                yield Number(f"{what}, {name}", values, paper=paper, percent=percent)

    def _draw(self) -> list[Picture]:
        samples, seen = self.over_seeds("standard")[0]
        names, classes, few = ("clean", "UDP", "PGD"), self.data.classes, min(5, len(samples))
        pixels = np.stack([seen[name].x[:few].cpu().numpy() for name in names], 1)
        notes = [
            [f"{classes[int(seen[name].labels[i])]} {float(seen[name].confidence[i]):.0%}" for name in names]
            for i in range(few)
        ]
        table = Images("", pixels, [classes[int(label)] for label in samples.y[:few]], list(names), notes)
        edges = np.linspace(0, 1, 21)
        own = {n: torch.cat([seen[n].own for _, seen in self.over_seeds("standard")]).cpu() for n in ("UDP", "PGD")}
        counts = {name: np.histogram(values.numpy().clip(0, 1), edges)[0] for name, values in own.items()}
        histogram = Histogram("after the climb", edges, counts, "probability of the true class")
        appearance = (
            f"Test samples of {self.data.name} before and after {self.steps} steps of {self.size:g} with eps infinite, "
            "on a trained network; underneath the predicted class and its probability (U Fig 15)."
        )
        ends = "Where the climbs end: the probability that the network still gives the true class, over all seeds."
        return [Picture("appearance", appearance, [table], 1), Picture("true-class", ends, [histogram], 1)]

    def _settings(self) -> dict[str, Any]:
        return {
            **self._setup(), "training steps": self.training, "samples": self.count, "steps": self.steps,
            "step_size": self.size,
            "eps": "infinite: only the box [0, 1] holds the points",
            "judge": "nearest neighbour (L2) among the training samples, which knows nothing of the network",
            "UDP": "all steps for every sample, as for PGD; not a number of them drawn at random",
        }  # fmt: skip

    def _conclude(self) -> str:
        deep, judged = ({n: self.numbers[f"{w}, {n}"] for n in ("UDP", "PGD")} for w in (_DEEP, _JUDGE))
        gaps = [direction(difference("", found["PGD"].values, found["UDP"].values)) for found in (deep, judged)]
        facts = (
            f"PGD takes {deep['PGD'].mean:.0%} of the points deep into another class, UDP {deep['UDP'].mean:.0%}; "
            f"a nearest-neighbour judge still recognises {judged['PGD'].mean:.0%} and {judged['UDP'].mean:.0%} of them "
            f"({self.numbers[f'{_JUDGE}, clean'].mean:.0%} of the clean ones)"
        )
        match gaps:
            case "higher", "lower":
                return f"As in the paper: {facts}."
            case "higher", _:
                return f"UDP stops at the boundary, as in the paper, but its images are no more recognisable: {facts}."
            case "not told apart", _:
                return f"{len(deep['PGD'].values)} seeds are too few to tell the two apart: {facts}."
            case _:
                return f"The paper's point is not seen: {facts}."


def correct(model: nn.Module, split: Split) -> Split:
    """Return the samples that the model classifies correctly. Raises `EquipoiseError` if there is none."""
    samples = images.correct(model, split).nonzero().flatten()
    require(len(samples) > 0, "the trained network classifies no test sample correctly: use more training samples.")
    return split[samples]


def look(model: nn.Module, samples: Split, x: Points) -> Seen:
    """Return what the model predicts at the points `x`, one for each of the samples."""
    prediction = predict(as_predictive(model), x)
    p = prediction.log_probs.exp()
    return Seen(
        x=x,
        labels=prediction.labels,
        confidence=p.amax(1),
        own=p.gather(1, samples.y[:, None]).squeeze(1),
        entropy=entropy(prediction),
        distance=Ball("l2", math.inf).distance(x, samples.x),
    )


run = Appearance.run

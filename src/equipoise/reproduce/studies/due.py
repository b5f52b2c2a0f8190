"""Do uncertainty-driven perturbations work with a Gaussian process on deep features? (U Figs 10, 11; T Figs 5, 6)

DUE (van Amersfoort et al. 2021): a sparse variational Gaussian process on the features of a network that keeps
distances. It is trained on clean points and its points are perturbed, by PGD through its loss and by UDP through its
entropy; then it is trained on such perturbations. Training ascends the evidence lower bound,

    mean over samples f of the GP: CE(f(x~), y)    +    KL(q || p) / n.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from equipoise.attacks import gradient as attacks
from equipoise.core.rng import fold
from equipoise.data import Split
from equipoise.geometry import EVERYWHERE
from equipoise.losses.objectives import cross_entropy, each
from equipoise.losses.terms import Method, as_method
from equipoise.models import DeepKernelGP
from equipoise.models.deep_kernel_gp import KLToPrior, deep_kernel_gp
from equipoise.nets import Normalize
from equipoise.nets.due import FCResNet
from equipoise.reproduce.studies import plane, toys
from equipoise.reproduce.studies.design import Case, Design, Options, percentage
from equipoise.reproduce.studies.images import accuracy
from equipoise.reproduce.studies.plane import AGREEMENT, Sizes
from equipoise.results.findings import Number, Picture

EPS, STEP_SIZE, STEPS = 1.0, 0.1, 50
"""The papers' (U App. D.5, D.6), in their units."""
SMALL_STEP = 0.02
"""A fifth of the papers' step size, with which the papers' number of steps still reaches eps. The controlled run: steps
of the papers' size jump to and fro across the ridge of the entropy, so that training by UDP keeps points on the wrong
side of it."""
NAMES = ("clean", "PGD", "UDP")
_TRAININGS = (*((name, STEP_SIZE) for name in NAMES), *((name, SMALL_STEP) for name in NAMES[1:]))
_CROSS = {"PGD": "cross notably the boundary (U App. D.5)", "UDP": "do not cross it (U App. D.5)"}
_ACCURATE = {
    "PGD": "is not able to classify the dataset (U Fig 11)",
    "UDP": "classifies the dataset correctly (U Fig 11)",
}


@dataclass(frozen=True)
class Shape:
    """Shape of the deep-kernel Gaussian process."""

    features: int = 32
    """Features of the extractor."""
    depth: int = 2
    """Its residual blocks."""
    inducing: int = 20
    samples: int = 8
    """Samples of the GP: members of the prediction."""


class Due(Design[dict[str, torch.Tensor]]):
    """Where perturbations of a deep-kernel GP go, and what training with them gives.

    The value of a case is the step size of the perturbations, in the papers' units; its result are the trained weights,
    as bounded layers travel between processes in no other form.
    """

    repeats, unit = (5, 1), "Gaussian process"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.toy, self.sizes, self.shape = toys.two_distance(), Sizes(200, steps=100, lr=2e-2), Shape()
        self.rows, self.steps = (24, 5) if options.quick else (80, STEPS)
        if options.quick:
            self.sizes, self.shape = replace(self.sizes, points=40, steps=8), Shape(8, 1, 5, 4)
        self.data = {seed: self.toy.dataset(self.sizes.points, 2, fold(seed, 0)) for seed in self.seeds}

    def _cases(self) -> list[Case]:
        return self.repeated(_TRAININGS)

    def _untrained(self, seed: int) -> DeepKernelGP:
        shape = self.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(abs(fold(seed, 1)))
            units = Normalize([0.5], [1 / self.toy.scale])
            extractor = nn.Sequential(units, FCResNet((2,), shape.features, shape.depth))
            x = self.data[seed].train.x
            return deep_kernel_gp(extractor, 2, x, shape.inducing, samples=shape.samples, seed=seed)

    def _train(self, case: Case) -> dict[str, torch.Tensor]:
        data, model = self.data[case.seed], self._untrained(case.seed)
        objective = bound(case.method, self.toy, len(data.train), self.steps, case.value)
        plane.run_through(objective, model, data, self.sizes, case.seed)
        return model.module.eval().state_dict()

    @cached_property
    def models(self) -> dict[tuple[str, float], list[DeepKernelGP]]:
        """The trained models, one per seed."""
        models = {training: [self._untrained(seed) for seed in self.seeds] for training in _TRAININGS}
        for training, seeds in models.items():
            for model, weights in zip(seeds, self.over_seeds(*training), strict=True):
                model.module.eval().load_state_dict(weights)
        return models

    @cached_property
    def points(self) -> list[Split]:
        """The training points of each seed."""
        return [data.train for data in self.data.values()]

    @cached_property
    def moved(self) -> dict[str, list[np.ndarray]]:
        """Where each attack moves the points of the model trained on clean ones, for each seed."""
        clean = list(zip(self.models["clean", STEP_SIZE], self.points, self.seeds, strict=True))
        attacks = {name: plane.attack(name, self.toy, EPS, STEP_SIZE, self.steps) for name in _CROSS}
        return {name: [plane.perturb(ascent, model, self.toy, points, seed) for model, points, seed in clean]
                for name, ascent in attacks.items()}  # fmt: skip

    def _measure(self) -> Iterator[Number]:
        for name, paper in _CROSS.items():
            seeds = zip(self.models["clean", STEP_SIZE], self.moved[name], self.points, strict=True)
            shares = [plane.across(model, self.toy, moved, points) for model, moved, points in seeds]
            moves = f"points that {name}-{self.steps} moves across the"
            yield percentage(f"{moves} boundary of the model trained on clean points", [a for a, _ in shares], paper)
            yield percentage(f"{moves} max-margin boundary", [b for _, b in shares])
        for (name, size), models in self.models.items():
            by = "on clean points" if name == "clean" else f"by {name}-{self.steps}, eps {EPS:g}, steps of {size:g}"
            paper = _ACCURATE.get(name, "") if size == STEP_SIZE else ""
            accuracies = list(map(accuracy, models, self.points))
            yield percentage(f"accuracy on the training points, trained {by}", accuracies, paper)
            yield percentage(f"{AGREEMENT}, trained {by}", [plane.agreement(model, self.toy, 100) for model in models])

    def _draw(self) -> list[Picture]:
        view, rows, points = self.toy.wider(EPS), 3 * self.rows // 2, self.points[0]
        model = self.models["clean", STEP_SIZE][0]
        pgd, udp = (plane.displaced(view, points, self.moved[name][0]) for name in ("PGD", "UDP"))
        attacks = (
            f"{self.steps} steps of {STEP_SIZE:g} with eps {EPS:g} on a model trained on clean points: PGD over its "
            "probability, UDP over its entropy (U Fig 10; T Fig 5)."
        )
        training = (
            "Decision regions after training on clean points, by PGD, and by UDP (U Fig 11; T Fig 6), and with smaller "
            "steps."
        )
        before = [
            plane.regions("PGD over the probability", model, view, rows, points, truth=None, **pgd),
            plane.entropy_regions("UDP over the entropy", "entropy, nats", model, view, rows, **udp),
        ]
        after = []
        for (name, size), models in self.models.items():
            title = name if name == "clean" else f"{name}-{self.steps}, steps of {size:g}"
            after.append(plane.regions(title, models[0], self.toy, self.rows, points))
        return [Picture("attacks", attacks, before, 2), Picture("training", training, after, 5)]

    def _settings(self) -> dict[str, Any]:
        return {
            **asdict(self.sizes), "widths": None, **asdict(self.shape), "eps": EPS, "step_size": STEP_SIZE,
            "small_step_size": SMALL_STEP, "perturbation_steps": self.steps, "seeds": self.seeds,
            "toy": self.toy.name,
        }  # fmt: skip

    def _conclude(self) -> str:
        pgd, udp, clean, by_pgd, by_udp, small_pgd, small_udp = (n.mean for n in list(self.numbers.values())[::2])
        return (
            f"PGD moves {pgd:.0%} of the points across the boundary of the deep-kernel GP, UDP {udp:.0%}. Accuracy on "
            f"the training points: {clean:.1%} trained on clean ones, {by_pgd:.1%} by PGD, {by_udp:.1%} by UDP; with "
            f"steps of {SMALL_STEP:g} {small_pgd:.1%} by PGD, {small_udp:.1%} by UDP."
        )


def bound(name: str, toy: toys.Toy, n: int, steps: int, step_size: float = STEP_SIZE) -> Method:
    """Return the negative evidence lower bound at the points of PGD or UDP, or at the clean ones."""
    length = {"eps": EPS / toy.scale, "step_size": step_size / toy.scale, "steps": steps, "box": EVERYWHERE}
    length |= {"start": "zero", "return_point": "last"}
    loss = each(cross_entropy)
    ascents = {"PGD": attacks.pgd, "UDP": attacks.udp}
    likelihood = loss @ ascents[name](**length) if name in ascents else loss
    return as_method(likelihood).with_penalty(1.0, KLToPrior(n))


run = Due.run

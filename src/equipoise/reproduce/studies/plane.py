"""Training small networks on points of the plane, and measuring where their boundary lies.

Lengths are in the papers' units. Networks see the points shifted into [0, 1] (`Toy.to_unit`) through a layer that takes
them back, and perturbations are not held to that interval: only the ball bounds them.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import nn

from equipoise.attacks import gradient as attacks
from equipoise.attacks.ascent import Ascent
from equipoise.core.errors import EquipoiseWarning, unknown
from equipoise.core.rng import fold
from equipoise.core.types import Prediction, Predictive
from equipoise.data import Dataset, Split
from equipoise.geometry import EVERYWHERE
from equipoise.losses.objectives import entropy
from equipoise.losses.terms import Method
from equipoise.models import as_predictive, predict
from equipoise.nets import MLP, Normalize
from equipoise.reproduce.studies.design import Case, Design, Options
from equipoise.reproduce.studies.toys import Toy
from equipoise.results.findings import Regions
from equipoise.training import Recipe, fit, methods

Model = nn.Module | Predictive

METHODS = ("standard", "PGD", "TRADES", "UDP")
"""The training methods that are compared, by the papers' names."""
STEP_SIZE, STEPS = 0.05, 10
"""Size and number of the steps of a perturbation, unless a study says otherwise."""
AGREEMENT = "agreement with the max-margin boundary"
"""Name of the number that `agreement` measures."""
_DATA, _WEIGHTS = range(2)  # folded into a seed


@dataclass(frozen=True)
class Sizes:
    """Sizes of a training, the same for every method."""

    points: int = 400
    """Training points, half of each class."""
    widths: tuple[int, ...] = (100, 100)
    """Hidden layers."""
    steps: int = 600
    """Steps of Adam."""
    batch_size: int = 64
    """Points of a step."""
    lr: float = 5e-3
    """Peak of the learning rate, which rises over two fifths of the training and falls over the rest."""


QUICK = Sizes(points=60, widths=(30, 30), steps=10, batch_size=32)
"""Those of the quick version."""


@dataclass(frozen=True)
class Training:
    """A network to be trained."""

    toy: Toy
    method: Method
    seed: int
    """Seed of its points, its first weights and its perturbations; methods with one seed share the first two."""
    sizes: Sizes = field(default_factory=Sizes)
    data_seed: int | None = None
    """Seed of its points, if not its own: members of an ensemble share them."""
    flips: int = 0
    """Rows of the grid on which changes of its prediction are counted after every step; 0 counts none."""

    @property
    def data(self) -> Dataset:
        """Its points."""
        seed = self.seed if self.data_seed is None else self.data_seed
        return self.toy.dataset(self.sizes.points, 2, fold(seed, _DATA))


@dataclass(frozen=True)
class Trained:
    """A trained network."""

    module: nn.Module
    flips: Int[np.ndarray, "rows columns"] | None = None
    """How often its prediction changed at each point of the grid."""


def method(name: str, toy: Toy, eps: float, step_size: float = STEP_SIZE, steps: int = STEPS) -> Method:
    """Return a method of `METHODS` with lengths in the papers' units; TRADES as in U (Eq. TRADES) with weight 1."""
    ball: dict[str, Any] = {"eps": eps / toy.scale, "step_size": step_size / toy.scale, "steps": steps}
    match name:
        case "standard":
            return methods.standard()
        case "PGD":
            return methods.pgd_at(**ball, box=EVERYWHERE)
        case "TRADES":
            return methods.trades(**ball, beta=1.0, divergence="soft-cross-entropy", box=EVERYWHERE)
        case "UDP":
            return methods.udp(**ball, box=EVERYWHERE)
    raise unknown("method", name, METHODS)


def attack(name: str, toy: Toy, eps: float, step_size: float, steps: int) -> Ascent:
    """Return PGD, or UDP with all its steps, with lengths in the papers' units."""
    make = {"PGD": attacks.pgd, "UDP": attacks.uta}[name]
    return make(eps / toy.scale, step_size / toy.scale, steps, box=EVERYWHERE, start="zero", return_point="last")


def network(toy: Toy, widths: Sequence[int], seed: int) -> nn.Module:
    """Return a fully connected network on the papers' units, with its first weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(abs(seed))
        return nn.Sequential(Normalize([0.5], [1 / toy.scale]), MLP((2,), 2, widths))


def train(task: Training) -> Trained:
    """Train a network."""
    sizes = task.sizes
    module = network(task.toy, sizes.widths, fold(task.seed, _WEIGHTS))
    counter = _Flips(module, task.toy, task.flips) if task.flips else None
    run_through(task.method, module, task.data, sizes, task.seed, counter)
    return Trained(module, counter.count if counter else None)


def run_through(
    method: Method,
    model: Model,
    data: Dataset,
    sizes: Sizes,
    seed: int,
    progress: Callable[[Any], None] | None = None,
) -> None:
    """Train `model` in place for `sizes.steps` steps.

    They are one epoch over repeated points: validation, which `fit` does after every epoch, has no meaning here.
    """
    copies = math.ceil((sizes.steps * sizes.batch_size + 2) / len(data.train))
    repeated = replace(data, train=Split(data.train.x.repeat(copies, 1), data.train.y.repeat(copies)))
    left_over = len(repeated.train) - sizes.steps * sizes.batch_size
    recipe = Recipe(
        epochs=1, batch_size=sizes.batch_size, lr=sizes.lr, schedule="triangular", seed=seed, device="cpu",
        validation=left_over / len(repeated.train), valid_examples=2, valid_steps=1,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EquipoiseWarning)  # alarms about the validation
        fit(method, model, repeated, recipe, progress=progress)


class _Flips:
    """Counter that, when called, adds the points of a grid whose predicted class has changed since the last call."""

    def __init__(self, module: nn.Module, toy: Toy, rows: int) -> None:
        points = toy.grid(rows)
        self.module, self.points = module, toy.to_unit(points).reshape(-1, 2)
        self.last = self._classes()
        self.count = np.zeros(points.shape[:2], np.int64)

    def __call__(self, progress: Any) -> None:
        classes = self._classes()
        self.count += (classes != self.last).reshape(self.count.shape)
        self.last = classes

    @torch.no_grad()
    def _classes(self) -> Int[np.ndarray, " points"]:
        return self.module(self.points).argmax(1).numpy()


def look(model: Model, toy: Toy, points: Float[np.ndarray, "*batch 2"]) -> Prediction:
    """Return the prediction at points of the plane, flattened."""
    return predict(as_predictive(model), toy.to_unit(points).reshape(-1, 2))


def classes(model: Model, toy: Toy, points: Float[np.ndarray, "n 2"]) -> Int[np.ndarray, " n"]:
    """Return the predicted class of each point."""
    return look(model, toy, points).labels.numpy()


def agreement(model: Model, toy: Toy, rows: int = 200) -> float:
    """Return the share of the window's area in which the model predicts the class of the nearer support."""
    points = toy.grid(rows)
    predicted = look(model, toy, points).labels.numpy().reshape(points.shape[:2]) == 1
    return float((predicted == (toy.max_margin(points) > 0)).mean())


def perturb(ascent: Ascent, model: Model, toy: Toy, split: Split, seed: int) -> Float[np.ndarray, "n 2"]:
    """Return where an ascent moves the points of a split."""
    return toy.from_unit(ascent(model, split.x, split.y, seed=seed).x)


def crossed(toy: Toy, points: Float[np.ndarray, "n 2"], labels: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Return which points lie on the other class's side of the max-margin boundary."""
    return (toy.max_margin(points) > 0) != (labels == 1)


def across(model: Model, toy: Toy, moved: Float[np.ndarray, "n 2"], split: Split) -> tuple[float, float]:
    """Return the shares of moved points across the model's boundary, and across the max-margin boundary."""
    labels = split.y.numpy()
    return float((classes(model, toy, moved) != labels).mean()), float(crossed(toy, moved, labels).mean())


def regions(title: str, model: Model, toy: Toy, rows: int, split: Split, **more: Any) -> Regions:
    """Return the panel of a model's probability of class 1, with points and the max-margin boundary; `more` replaces
    fields of `Regions`.
    """
    points = toy.grid(rows)
    probability = look(model, toy, points).log_probs[:, 1].exp().numpy().reshape(points.shape[:2])
    truth = toy.max_margin(points).astype(np.float32)
    content: dict[str, Any] = {"points": toy.from_unit(split.x), "labels": split.y.numpy(), "truth": truth}
    return Regions(title, probability.astype(np.float32), toy.extent, **(content | more))


def entropy_regions(title: str, meaning: str, model: Model, toy: Toy, rows: int, **more: Any) -> Regions:
    """Return the panel of the entropy of a model's mean prediction, in nats, with the model's boundary; `more` are
    fields of `Regions`.
    """
    points = toy.grid(rows)
    prediction = look(model, toy, points)
    entropies, boundary = (
        values.reshape(points.shape[:2]).astype(np.float32)
        for values in (entropy(prediction).numpy(), prediction.log_probs[:, 1].exp().numpy() - 0.5)
    )
    return Regions(title, entropies, toy.extent, meaning, None, boundary=boundary, **more)


def displaced(toy: Toy, split: Split, moved: Float[np.ndarray, "n 2"]) -> dict[str, np.ndarray]:
    """Return the fields of `Regions` that show where points were moved, few enough that each can be followed."""
    few = np.linspace(0, len(split) - 1, min(90, len(split))).astype(int)
    return {"points": toy.from_unit(split.x)[few], "labels": split.y.numpy()[few], "moved": moved[few]}


def label(name: str, eps: float) -> str:
    """Return a method with its radius, in words."""
    return name if name == "standard" else f"{name}, eps {eps:g}"


class PlaneStudy(Design[Trained]):
    """A study of networks trained on one problem with perturbations of several radii, the values of its cases."""

    def __init__(self, options: Options, toy: Toy, sizes: Sizes, rows: int) -> None:
        super().__init__(options)
        self.toy, self.sizes, self.rows = toy, QUICK if options.quick else sizes, 30 if options.quick else rows

    def _training(self, case: Case) -> Training:
        return Training(self.toy, method(case.method, self.toy, case.value), case.seed, self.sizes)

    def _train(self, case: Case) -> Trained:
        return train(self._training(case))

    def _networks(self, name: str, eps: float) -> list[nn.Module]:
        return [trained.module for trained in self.over_seeds(name, eps)]

    def _panels(self, configurations: Iterable[tuple[str, float]]) -> list[Regions]:
        """The decision regions of methods and radii, of the first seed."""
        seed = self.seeds[0]
        data = self._training(Case("standard", 0.0, seed)).data.train  # of every method
        return [
            regions(label(name, eps), self.results[Case(name, eps, seed)].module, self.toy, self.rows, data)
            for name, eps in configurations
        ]

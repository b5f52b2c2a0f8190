"""Training small networks on points of the plane, and measuring where their boundary lies.

Lengths are in the papers' units. Networks see the points shifted into [0, 1] (`Toy.to_unit`) through a layer that takes
them back, and perturbations are not held to that interval: only the ball bounds them.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
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
from equipoise.reproduce.studies.options import Options
from equipoise.reproduce.studies.toys import Toy
from equipoise.results.findings import Regions
from equipoise.training import Recipe, fit, methods

METHODS = ("standard", "PGD", "TRADES", "UDP")
"""The trainings that are compared, by the papers' names."""
_DATA, _WEIGHTS = range(2)  # what a seed is folded with


@dataclass(frozen=True)
class Sizes:
    """How a network is trained; the same for every method."""

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

    def settings(self) -> dict[str, Any]:
        """Every field, for records."""
        return asdict(self)


QUICK = Sizes(points=60, widths=(30, 30), steps=10, batch_size=32)
"""Those of a quick run."""


@dataclass(frozen=True)
class Training:
    """One network to be trained."""

    toy: Toy
    """Where its points come from."""
    method: Method
    """What it is trained by."""
    seed: int
    """Seed of its points, its first weights and its perturbations; methods with one seed share the first two."""
    sizes: Sizes = field(default_factory=Sizes)
    """How it is trained."""
    data_seed: int | None = None
    """Seed of its points, if not its own: members of an ensemble share them."""
    flips: int = 0
    """Rows of a grid on which changes of its prediction are counted after every step; 0 counts none."""

    @property
    def data(self) -> Dataset:
        """Its points."""
        seed = self.seed if self.data_seed is None else self.data_seed
        return self.toy.dataset(self.sizes.points, 2, fold(seed, _DATA))


@dataclass(frozen=True)
class Trained:
    """A trained network."""

    module: nn.Module
    """The network."""
    flips: Int[np.ndarray, "rows columns"] | None = None
    """How often its prediction changed at each point of the grid."""


def method(name: str, toy: Toy, eps: float, step_size: float = 0.05, steps: int = 10) -> Method:
    """A training method of `METHODS` with lengths in the papers' units; TRADES as in U (Eq. TRADES) with weight 1."""
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
    """PGD, or UDP with all its steps, with lengths in the papers' units."""
    climb = {"PGD": attacks.pgd, "UDP": attacks.uta}[name]
    return climb(eps / toy.scale, step_size / toy.scale, steps, box=EVERYWHERE, start="zero", return_point="last")


def network(toy: Toy, widths: Sequence[int], seed: int) -> nn.Module:
    """A fully connected network on the papers' units, with its first weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(abs(seed))
        return nn.Sequential(Normalize([0.5], [1 / toy.scale]), MLP((2,), 2, widths))


def train(task: Training) -> Trained:
    """Train the network of a task."""
    sizes = task.sizes
    module = network(task.toy, sizes.widths, fold(task.seed, _WEIGHTS))
    counter = _Flips(module, task.toy, task.flips) if task.flips else None
    run_through(task.method, module, task.data, sizes, task.seed, counter)
    return Trained(module, counter.count if counter else None)


def run_through(
    method: Method,
    model: nn.Module | Predictive,
    data: Dataset,
    sizes: Sizes,
    seed: int,
    progress: Callable[[Any], None] | None = None,
) -> None:
    """Train `model` in place for `sizes.steps` steps.

    They are one epoch over repeated points, for what `fit` does after an epoch, validation, has no meaning here.
    """
    copies = math.ceil((sizes.steps * sizes.batch_size + 2) / len(data.train))
    few = len(data.train.x.repeat(copies, 1)) - sizes.steps * sizes.batch_size
    repeated = replace(data, train=Split(data.train.x.repeat(copies, 1), data.train.y.repeat(copies)))
    recipe = Recipe(
        epochs=1, batch_size=sizes.batch_size, lr=sizes.lr, schedule="triangular", seed=seed, device="cpu",
        validation=few / len(repeated.train), valid_examples=2, valid_steps=1,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EquipoiseWarning)  # alarms about the validation
        fit(method, model, repeated, recipe, progress=progress)


class _Flips:
    """Counts, whenever it is called, the points of a grid whose predicted class has changed since."""

    def __init__(self, module: nn.Module, toy: Toy, rows: int) -> None:
        points = toy.grid(rows)
        self.module, self.points = module, toy.to_unit(points).reshape(-1, 2)
        self.last = self._classes()
        self.count = np.zeros(points.shape[:2], np.int64)

    def __call__(self, now: Any) -> None:
        classes = self._classes()
        self.count += (classes != self.last).reshape(self.count.shape)
        self.last = classes

    @torch.no_grad()
    def _classes(self) -> Int[np.ndarray, " points"]:
        return self.module(self.points).argmax(1).numpy()


def look(model: nn.Module | Predictive, toy: Toy, points: Float[np.ndarray, "*batch 2"]) -> Prediction:
    """What a model predicts at points of the plane, flattened."""
    return predict(as_predictive(model), toy.to_unit(points).reshape(-1, 2))


def probability(model: nn.Module | Predictive, toy: Toy, rows: int) -> Float[np.ndarray, "rows columns"]:
    """The probability of class 1 over the window."""
    points = toy.grid(rows)
    return look(model, toy, points).log_probs[:, 1].exp().numpy().reshape(points.shape[:2])


def uncertainty(model: nn.Module | Predictive, toy: Toy, rows: int) -> Float[np.ndarray, "rows columns"]:
    """The entropy of the mean prediction over the window, in nats."""
    points = toy.grid(rows)
    return entropy(look(model, toy, points)).numpy().reshape(points.shape[:2])


def classes(model: nn.Module | Predictive, toy: Toy, points: Float[np.ndarray, "n 2"]) -> Int[np.ndarray, " n"]:
    """The predicted class of each point."""
    return look(model, toy, points).labels.numpy()


def agreement(model: nn.Module | Predictive, toy: Toy, rows: int = 200) -> float:
    """Share of the window's area in which the model predicts the class of the nearer support."""
    points = toy.grid(rows)
    predicted = look(model, toy, points).labels.numpy().reshape(points.shape[:2]) == 1
    return float((predicted == (toy.max_margin(points) > 0)).mean())


def accuracy(model: nn.Module | Predictive, split: Split) -> float:
    """Share of points that are classified correctly."""
    return float((predict(as_predictive(model), split.x).labels == split.y).double().mean())


def perturb(
    ascent: Ascent, model: nn.Module | Predictive, toy: Toy, split: Split, seed: int
) -> Float[np.ndarray, "n 2"]:
    """Where an ascent moves the points of a split."""
    return toy.from_unit(ascent(model, split.x, split.y, seed=seed).x)


def crossed(toy: Toy, points: Float[np.ndarray, "n 2"], labels: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Which points lie on the other class's side of the max-margin boundary."""
    return (toy.max_margin(points) > 0) != (labels == 1)


def regions(title: str, model: nn.Module | Predictive, toy: Toy, rows: int, split: Split, **more: Any) -> Regions:
    """The panel of a model's decision regions, with points and the max-margin boundary."""
    return Regions(
        title,
        probability(model, toy, rows).astype(np.float32),
        toy.extent,
        **{
            "points": toy.from_unit(split.x),
            "labels": split.y.numpy(),
            "truth": toy.max_margin(toy.grid(rows)).astype(np.float32),
            **more,
        },
    )


def seeds_of(options: Options, usual: int, quick: int = 2) -> list[int]:
    """The seeds of a study's repeats."""
    return [options.seed + i for i in range(options.seeds or (quick if options.quick else usual))]

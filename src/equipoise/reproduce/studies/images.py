"""What the studies on datasets of images share: the data, short trainings, accuracies, and how they are summarised.

The length of a training is given in steps, not epochs, so that a study takes about as long on any small dataset; a
large one is seen three times.
"""

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from equipoise.attacks.ascent import Ascent
from equipoise.core.errors import EquipoiseWarning, require
from equipoise.core.types import Predictive
from equipoise.data import Dataset, Split, load
from equipoise.losses.terms import Method
from equipoise.models import as_predictive, predict
from equipoise.nets import build
from equipoise.reproduce.studies.design import Case, Design, Options, Result, percentage
from equipoise.results.findings import Lines, Number, Series
from equipoise.training import Progress, Recipe, fit

SMALLEST = 12
"""Pixels per side that LeNet needs (`equipoise.nets.LeNet`)."""

_VALIDATION = 0.05  # of the training samples: these trainings choose nothing by validation, but `fit` needs some
_MIN_EPOCHS = 3  # however large the dataset is


class ImageStudy(Design[Result]):
    """A study of LeNets on one dataset of images."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.original = dataset(options)
        self.data = images(self.original)
        """The dataset, enlarged for LeNet."""

    def _setup(self) -> dict[str, Any]:
        return {"data": described(self.data, self.original.shape), "net": "lenet"}


class AccuracyStudy(ImageStudy[Mapping[str, float]]):
    """Clean and robust accuracy of several methods against the parameter that the study varies."""

    methods: ClassVar[Sequence[str]]
    attack: ClassVar[Ascent]
    """The attack that robust accuracy is measured with."""
    attack_name: ClassVar[str]
    """Its name, such as `PGD-20`."""
    parameter: ClassVar[str]

    def __init__(self, options: Options, values: Sequence[int], samples: int) -> None:
        super().__init__(options)
        self.values, self.samples, self.kinds = values, samples, ("clean", self.attack_name)

    def _cases(self) -> list[Case]:
        return self.repeated(product(self.methods, self.values))

    @abstractmethod
    def _network(self, case: Case) -> nn.Module:
        """Return the trained network of a case."""

    def _train(self, case: Case) -> dict[str, float]:
        model, test = self._network(case), self.data.test
        robust = accuracy(model, test.limit(self.samples, case.seed), self.attack, case.seed)
        return {"clean": accuracy(model, test), self.attack_name: robust}

    def _curve(self, method: str, kind: str) -> list[list[float]]:
        return [[self.results[Case(method, v, seed)][kind] for v in self.values] for seed in self.seeds]

    def _at(self, method: str, kind: str, value: float) -> list[float]:
        return [accuracies[kind] for accuracies in self.over_seeds(method, value)]

    def _accuracies(self) -> Iterator[Number]:
        for name, kind, value in product(self.methods, self.kinds, self.values):
            yield percentage(f"{kind} accuracy, {name}, {self.parameter} {value}", self._at(name, kind, value))

    def _panel(self, title: str, kind: str, x: Sequence[float], x_name: str, *references: Series) -> Lines:
        lines = [band(name, self._curve(name, kind)) for name in self.methods]
        return Lines(title, np.array(x, np.float64), [*lines, *references], x_name, f"{kind} accuracy")

    @abstractmethod
    def _training(self) -> dict[str, Any]:
        """Return the settings of the training."""

    def _settings(self) -> dict[str, Any]:
        attacked = min(self.samples, len(self.data.test))
        return {**self._setup(), **self._training(), "attack": str(self.attack), "attacked samples": attacked}


def dataset(options: Options) -> Dataset:
    """Return the dataset of `options`, by default the digits, with its limit on the training samples."""
    return limited(load(options.data or "digits", options.data_root), options)


def limited(data: Dataset, options: Options) -> Dataset:
    """Return the dataset with at most `options.limit` training samples, by default 500 in a quick study."""
    limit = options.limit if options.limit is not None else 500 if options.quick else None
    return data if limit is None else data.limit(limit, options.seed)


def images(data: Dataset) -> Dataset:
    """Return the dataset with every pixel repeated until LeNet can take the images: 8x8 become 16x16, 28x28 stay.

    Repeating keeps Linf distances; with a factor m, L2 distances grow m-fold. Raises `EquipoiseError` for inputs that
    are not images of one channel or three.
    """
    require(
        len(data.shape) == 3 and data.shape[0] in (1, 3),
        f"this study needs images with one channel or three, {data.name} has inputs of shape {data.shape}.",
    )
    factor = math.ceil(SMALLEST / min(data.shape[1:]))

    def enlarge(split: Split) -> Split:
        return Split(split.x.repeat_interleave(factor, 2).repeat_interleave(factor, 3), split.y)

    return data if factor == 1 else replace(data, train=enlarge(data.train), test=enlarge(data.test))


def recipe(data: Dataset, steps: int, seed: int, lr: float = 1e-3, batch_size: int = 128) -> Recipe:
    """Return the recipe of a training by Adam for about `steps` steps, in whole epochs, at least 3."""
    per_epoch = math.ceil((1 - _VALIDATION) * len(data.train) / batch_size)
    return Recipe(
        epochs=max(_MIN_EPOCHS, round(steps / per_epoch)), batch_size=batch_size, lr=lr, seed=seed,
        validation=_VALIDATION, valid_examples=32, valid_steps=1,
    )  # fmt: skip


def train(
    method: Method,
    data: Dataset,
    recipe: Recipe,
    *,
    net: str = "lenet",
    width: int | None = None,
    every: int = 0,
    measure: Callable[[nn.Module, int], None] | None = None,
) -> nn.Module:
    """Return a network with weights drawn from the recipe's seed, trained by `method`; a LeNet `width` times as wide.

    After every `every` steps `measure` is called with the network as it then is, and the number of the step.
    """
    options: dict[str, Any] = {} if width is None else {"width": width}
    model = build(net, data.shape, len(data.classes), seed=recipe.seed, **options)

    def watch(progress: Progress) -> None:
        step = (progress.epoch - 1) * progress.steps + progress.step
        if measure is not None and progress.metrics is None and step % every == 0:
            measure(model, step)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EquipoiseWarning)  # overfitting to the attack is what a study may be about
        fit(method, model, data, recipe, progress=watch)
    return model


def correct(model: nn.Module | Predictive, split: Split) -> Bool[Tensor, " n"]:
    """Return which samples the model classifies correctly."""
    predictive = as_predictive(model)
    batches = zip(split.x.split(512), split.y.split(512), strict=True)
    return torch.cat([predict(predictive, x).labels == y for x, y in batches])


def accuracy(model: nn.Module | Predictive, split: Split, attack: Ascent | None = None, seed: int = 0) -> float:
    """Return the share of samples that the model classifies correctly, clean or under an attack."""
    split = split.to(next(as_predictive(model).module.parameters()).device)
    if attack is None:
        return float(correct(model, split).double().mean())
    return 1 - float(attack(model, split.x, split.y, seed=seed).success.double().mean())


def band(name: str, values: Sequence[Sequence[float]], dashed: bool = False) -> Series:
    """Return a line through the means of `values[repeat][x]`, with a band from the smallest to the largest repeat."""
    table = np.asarray(values, dtype=np.float64)
    return Series(name, table.mean(0), table.min(0), table.max(0), dashed)


def difference(name: str, first: Sequence[float], second: Sequence[float], paper: str = "") -> Number:
    """Return `first` minus `second`, repeat by repeat."""
    changes = [a - b for a, b in zip(first, second, strict=True)]
    return Number(name, changes, paper=paper, percent=True, signed=True)


def direction(change: Number) -> str:
    """Return `higher` or `lower` if the 95 % interval of a difference excludes 0, else `not told apart`."""
    low, high = change.interval or (-math.inf, math.inf)
    return "higher" if low > 0 else "lower" if high < 0 else "not told apart"


def described(data: Dataset, shape: tuple[int, ...] | None = None) -> Mapping[str, Any]:
    """Return what a study ran on, JSON-ready; `shape` is the original one of images that were enlarged."""
    factor = 1 if shape is None else data.shape[1] // shape[1]
    return {
        "name": data.name,
        "sha256 of the whole dataset": data.sha256,
        "train": len(data.train),
        "test": len(data.test),
        "classes": list(data.classes),
        "shape": list(data.shape),
        "enlarged": "no" if factor == 1 else f"{factor} times per side, by repeating pixels: LeNet needs {SMALLEST}",
    }

"""What the studies on datasets of images share: the data, small trainings, accuracies, and how they are summed up.

A training is as long as a number of steps, not of epochs, says, so that a study takes about as long on any small
dataset; large ones are seen three times.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from equipoise.attacks.ascent import Ascent
from equipoise.core.errors import EquipoiseWarning, require, require_integer
from equipoise.data import Dataset, Split, load
from equipoise.losses.terms import Method
from equipoise.models import as_predictive, predict
from equipoise.nets import build
from equipoise.reproduce.studies.options import Options
from equipoise.results.findings import Number, Series
from equipoise.training import Progress, Recipe, fit

SMALLEST = 12
"""Pixels per side that LeNet needs (`equipoise.nets.LeNet`)."""

_VALIDATION = 0.05  # of the training samples: these trainings choose nothing by validation, but `fit` needs some
_FEWEST = 3  # epochs, however large the dataset is


def seeds(options: Options, usual: int = 3) -> list[int]:
    """The seeds of the repeats: `options.seeds` of them, or the study's `usual` number, 2 in its quick form."""
    count = options.seeds if options.seeds is not None else 2 if options.quick else usual
    require_integer("seeds", count, 1)
    return [options.seed + i for i in range(count)]


def dataset(options: Options, name: str = "digits") -> Dataset:
    """The dataset of `options`, by default `name`, `limited`."""
    return limited(load(options.data or name, options.data_root), options)


def limited(data: Dataset, options: Options) -> Dataset:
    """The dataset with at most `options.limit` training samples; a quick study takes 500 unless told otherwise."""
    limit = options.limit if options.limit is not None else 500 if options.quick else None
    return data if limit is None else data.limit(limit, options.seed)


def images(data: Dataset) -> Dataset:
    """The dataset with every pixel repeated until LeNet can take the images: 8x8 become 16x16, 28x28 stay.

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
    """Adam for about `steps` steps, in whole epochs, and at least 3 of these."""
    per_epoch = math.ceil((1 - _VALIDATION) * len(data.train) / batch_size)
    return Recipe(
        epochs=max(_FEWEST, round(steps / per_epoch)),
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        validation=_VALIDATION,
        valid_examples=32,
        valid_steps=1,
    )


def train(
    method: Method,
    data: Dataset,
    how: Recipe,
    *,
    net: str = "lenet",
    width: int | None = None,
    every: int = 0,
    measure: Callable[[nn.Module, int], None] | None = None,
) -> nn.Module:
    """A network with weights drawn from the recipe's seed, trained by `method`; LeNets are `width` times as wide.

    After every `every` steps `measure` is called with the network as it then is, and the number of the step.
    """
    options: dict[str, Any] = {} if width is None else {"width": width}
    model = build(net, data.shape, len(data.classes), seed=how.seed, **options)

    def watch(progress: Progress) -> None:
        step = (progress.epoch - 1) * progress.steps + progress.step
        if measure is not None and progress.metrics is None and step % every == 0:
            measure(model, step)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EquipoiseWarning)  # overfitting to the attack is what a study may be about
        fit(method, model, data, how, progress=watch)
    return model


def accuracy(model: nn.Module, split: Split, attack: Ascent | None = None, seed: int = 0) -> float:
    """Share of the samples whose class the model gives, at the clean input or where the attack puts it."""
    split = split.to(next(model.parameters()).device)
    if attack is None:
        predicted = torch.cat([predict(as_predictive(model), x).labels for x in split.x.split(512)])
        return float((predicted == split.y).double().mean())
    return 1 - float(attack(model, split.x, split.y, seed=seed).success.double().mean())


def band(name: str, values: Sequence[Sequence[float]], dashed: bool = False) -> Series:
    """One line through the means of `values[repeat][x]`, its band from the smallest to the largest repeat."""
    table = np.asarray(values, dtype=np.float64)
    return Series(name, table.mean(0), table.min(0), table.max(0), dashed)


def difference(name: str, first: Sequence[float], second: Sequence[float], paper: str = "") -> Number:
    """First minus second, repeat by repeat."""
    changes = [a - b for a, b in zip(first, second, strict=True)]
    return Number(name, changes, paper=paper, percent=True, signed=True)


def direction(change: Number) -> str:
    """`higher` or `lower` if the 95 % interval of a difference of accuracies leaves out 0, else `not told apart`."""
    low, high = change.interval or (-math.inf, math.inf)
    return "higher" if low > 0 else "lower" if high < 0 else "not told apart"


def described(data: Dataset, shape: tuple[int, ...] | None = None) -> Mapping[str, Any]:
    """What a study ran on, JSON-ready; `shape` is the original one of images that were enlarged."""
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

"""Honest models of many kinds, robust or not, whose gradients mislead nobody: each is a way to train on a dataset."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from equipoise import nets
from equipoise.core.types import Points, Predictive
from equipoise.data.dataset import Dataset
from equipoise.losses.objectives import regularised
from equipoise.losses.terms import Method
from equipoise.masking.zoo.defence import BATCH_SIZE, LR, UPDATES, Logits, epochs_for, small_network
from equipoise.models import Ensemble, MonteCarloDropout
from equipoise.training import Recipe, fit, methods

HonestModel = Callable[[Dataset, int], "nn.Module | Predictive"]
"""Trains a model on a dataset with a seed."""


class _Layers(nn.Sequential):
    """Layers after flattening."""

    def __init__(self, shape: tuple[int, ...], classes: int, activation: Callable[[], nn.Module], norm: bool) -> None:
        features = torch.Size(shape).numel()
        middle = [nn.BatchNorm1d(128)] if norm else []
        super().__init__(
            nn.Flatten(),
            nn.Linear(features, 128),
            *middle,
            activation(),
            nn.Linear(128, 64),
            activation(),
            nn.Linear(64, classes),
        )


class _Median(nn.Module):
    """A network behind a median of 3x3 pixels, whose gradient is exact."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Points) -> Logits:
        windows = F.pad(x, (1, 1, 1, 1), mode="replicate").unfold(2, 3, 1).unfold(3, 3, 1)
        return self.network(windows.flatten(4).median(4).values)


class _Noisy(nn.Module):
    """A network that sees noise of standard deviation sigma, anew at every call (Liu et al. 2018)."""

    def __init__(self, network: nn.Module, sigma: float = 0.1) -> None:
        super().__init__()
        self.network, self.sigma = network, sigma

    def forward(self, x: Points) -> Logits:
        return self.network(x + self.sigma * torch.randn_like(x))


class _Rescaled(nn.Module):
    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x: Points) -> Logits:
        return self.scale * self.network(x)


def _fitted(
    data: Dataset,
    seed: int,
    method: Callable[[], Method] = methods.standard,
    build: Callable[[Dataset, int], "nn.Module | Predictive"] = small_network,
    updates: int = UPDATES,
    **recipe: Any,
) -> "nn.Module | Predictive":
    model = build(data, seed)
    options = {"lr": LR, "batch_size": BATCH_SIZE, "valid_examples": 20, "valid_steps": 1} | recipe
    fit(method(), model, data, Recipe(epochs=epochs_for(data, updates), seed=seed, **options))
    (model if isinstance(model, nn.Module) else model.module).eval()
    return model


def _few_samples(data: Dataset, seed: int) -> "nn.Module | Predictive":
    return _fitted(Dataset(data.name, data.train.limit(300, seed), data.test, data.classes, data.sha256), seed)


def _perceptron(data: Dataset, seed: int, **options: Any) -> nn.Module:
    return nets.build("mlp", data.shape, len(data.classes), seed=seed, **options)


def _layers(data: Dataset, seed: int, activation: Callable[[], nn.Module], norm: bool = False) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        return _Layers(data.shape, len(data.classes), activation, norm)


def _convolutions(data: Dataset, seed: int) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        features = 16 * (data.shape[1] // 4) * (data.shape[2] // 4)
        first = nn.Sequential(nn.Conv2d(data.shape[0], 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        second = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2))
        return nn.Sequential(first, second, nn.Flatten(), nn.Linear(features, len(data.classes)))


def _wrapped(wrapper: Callable[[nn.Module], nn.Module]) -> Callable[[Dataset, int], nn.Module]:
    return lambda data, seed: wrapper(small_network(data, seed))


def _ensemble(data: Dataset, seed: int) -> Ensemble:
    return Ensemble([small_network(data, 3 * seed + k) for k in range(3)])


def _dropout(data: Dataset, seed: int) -> MonteCarloDropout:
    return MonteCarloDropout(_layers(data, seed, lambda: nn.Sequential(nn.ReLU(), nn.Dropout(0.2))), 5)


def _trained(**options: Any) -> HonestModel:
    return partial(_fitted, **options)


def _attacked(method: Callable[..., Method], eps: float, steps: int = 5, **options: Any) -> HonestModel:
    return _trained(method=partial(method, eps, 2.5 * eps / steps, steps, **options))


HONEST: dict[str, HonestModel] = {
    "standard": _trained(),
    "linear": _trained(build=partial(_perceptron, widths=())),
    "one wide layer": _trained(build=partial(_perceptron, widths=(512,))),
    "narrow": _trained(build=partial(_perceptron, widths=(24,))),
    "three layers": _trained(build=partial(_perceptron, widths=(64, 64, 64))),
    "leaky ReLU": _trained(build=partial(_perceptron, widths=(128,), negative_slope=0.1)),
    "tanh": _trained(build=partial(_layers, activation=nn.Tanh)),
    "GELU": _trained(build=partial(_layers, activation=nn.GELU)),
    "batch-norm": _trained(build=partial(_layers, activation=nn.ReLU, norm=True)),
    "convolutions": _trained(build=_convolutions, updates=2 * UPDATES),
    "SGD": _trained(optimizer="sgd", lr=0.05),
    "strong weight decay": _trained(weight_decay=3e-3),
    "trained for long": _trained(updates=5 * UPDATES),
    "few samples": _few_samples,
    "label smoothing": _trained(method=partial(methods.label_smoothing, 0.2)),
    "entropy": _trained(method=partial(methods.entm, 0.5)),
    "PGD-AT": _attacked(methods.pgd_at, 0.1),
    "strong PGD-AT": _attacked(methods.pgd_at, 0.2),
    "TRADES": _attacked(methods.trades, 0.1),
    "UDP": _attacked(methods.udp, 0.2),
    "PAT-EntM": _attacked(methods.pat, 0.1, loss=regularised(2.0)),
    "ensemble": _trained(build=_ensemble),
    "dropout": _trained(build=_dropout),
    "noise": _trained(build=_wrapped(_Noisy)),
    "median": _trained(build=_wrapped(_Median)),
    "small logits": _trained(build=_wrapped(partial(_Rescaled, scale=0.1))),
    "large logits": _trained(build=_wrapped(partial(_Rescaled, scale=4.0))),
}
"""The honest models by name."""

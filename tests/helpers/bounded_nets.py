"""Networks to be bounded, and what their margins are."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.geometry import Box
from equipoise.nets import Normalize

WIDE = Box(-10, 10)
DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}
EPS = {"linf": 0.05, "l2": 0.2, "l1": 0.5}


def global_seed(make, seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def points(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


CURVES = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "GELU": nn.GELU,
    "GELU by tanh": lambda: nn.GELU("tanh"),
    "SiLU": nn.SiLU,
    "Mish": nn.Mish,
    "ELU": nn.ELU,
    "CELU": nn.CELU,
    "SELU": nn.SELU,
    "hard swish": nn.Hardswish,
    "hard sigmoid": nn.Hardsigmoid,
    "hard tanh": lambda: nn.Hardtanh(-0.5, 0.7),
    "ReLU6": nn.ReLU6,
}
"""Activations that are bounded by parallel lines."""


def mlp(*sizes: int, seed: int = 0, slope: float = 0.0, activation: str = "") -> nn.Sequential:
    """Layers with larger weights than at initialisation, so that margins are worth bounding; by default of ReLUs."""
    g = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        linear = nn.Linear(inputs, outputs)
        linear.weight.data = torch.randn(outputs, inputs, generator=g) * 1.5 / math.sqrt(inputs)
        linear.bias.data = 0.3 * torch.randn(outputs, generator=g)
        leaky = nn.LeakyReLU(slope) if slope else nn.ReLU()
        layers += [linear, CURVES[activation]() if activation else leaky]
    return nn.Sequential(*layers[:-1])


def margins(logits: Tensor, y: Tensor) -> Tensor:
    own = logits.gather(1, y[:, None])[:, 0]
    return own - logits.scatter(1, y[:, None], -math.inf).amax(1)


class Residual(nn.Module):
    """Written as networks are: functions, in place, a shortcut, an average, a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn(self.conv1(2 * x - 1)), inplace=True)
        h = F.relu(self.conv2(h).add_(h) / 2)
        return self.linear(h.mean(dim=(2, 3))) - 0.1


class Shared(nn.Module):
    """One layer twice, with a hook that changes its output, in place and not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(128, 3)
        self.conv.register_forward_hook(lambda layer, inputs, output: 1 - 0.5 * output)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu_(self.conv(x))
        return self.linear(F.relu(self.conv(h)).flatten(1))


NETS = {
    "strides, padding, dilation, groups": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(4, 4, 2, dilation=2, padding="same"),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(64, 3),
    ),
    "max-pooling, overlapping and padded": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)
    ),
    "max-pooling of ReLUs": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Dropout(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 8),
        nn.ReLU(), nn.Linear(8, 3)
    ),
    "average pooling, batch-norm, normalised": lambda: nn.Sequential(
        Normalize([0.4, 0.5], [0.3, 0.2]), nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AvgPool2d(3, 2, padding=1), nn.Conv2d(4, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten(),
        nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)
    ),
    "residual": Residual,
    "shared weights and a hook": Shared,
    "leaky": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.LeakyReLU(0.3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.LeakyReLU(0.01, True),
        nn.Flatten(), nn.Linear(16, 3)
    ),
    "smooth": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.GELU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.SiLU(), nn.Flatten(),
        nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, 3)
    ),
}  # fmt: skip


def with_statistics(layer: nn.Module) -> None:
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        nn.init.normal_(layer.running_mean, std=0.3)
        nn.init.uniform_(layer.running_var, 0.2, 2)
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias, std=0.3)

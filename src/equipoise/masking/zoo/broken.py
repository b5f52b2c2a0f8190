"""Defences that were published and broken, at small size: how each is trained, and what is known of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from equipoise.core.types import Labels, Points
from equipoise.data.dataset import Dataset
from equipoise.masking.zoo.activations import ActivationPruning, KWinners, MixedPrecision, Quantised, with_activations
from equipoise.masking.zoo.defence import UPDATES, Defence, small_network, train
from equipoise.masking.zoo.inputs import BitDepth, Jpeg, RandomResize, Thermometer, TotalVariation
from equipoise.masking.zoo.outputs import AntiAdversary, DiverseEnsemble, OutputCodes, Scaled, Trapdoor, hadamard
from equipoise.models import Ensemble
from equipoise.training import Recipe, fit, methods

_TEMPERATURE, _SATURATION, _CODE_BITS = 50.0, 1e4, 16


@dataclass(frozen=True)
class BrokenDefence:
    """A defence of the zoo."""

    build: Callable[[Dataset, int], Defence]
    """Trains it on a dataset with a seed."""
    paper: str
    """Where it was proposed."""
    broken_by: str
    """Where it was broken."""
    masks: str
    """How it misleads gradients: shattered, stochastic, vanishing, absent, deceptive or test-time."""


def _simple(make: Callable[[nn.Module], Defence], data: Dataset, seed: int) -> Defence:
    """A defence around a small network, trained as one."""
    return train(make(small_network(data, seed)), data, seed)


def _around(make: Callable[[nn.Module], Defence], data: Dataset, seed: int) -> Defence:
    """A defence around a network that was trained without it."""
    return make(train(small_network(data, seed), data, seed)).eval()


def _thermometer(data: Dataset, seed: int, levels: int = 8) -> Defence:
    shape = (data.shape[0] * levels, *data.shape[1:])
    return train(Thermometer(small_network(data, seed, shape), levels), data, seed)


def _random_resize(data: Dataset, seed: int) -> Defence:
    size = round(1.2 * data.shape[-1])
    network = small_network(data, seed, (data.shape[0], size, size))
    return train(RandomResize(network, size), data, seed, updates=2 * UPDATES)


def _distilled(data: Dataset, seed: int) -> Defence:
    """Teacher and student trained at temperature T, the student deployed at 1: logits T times as large."""
    teacher, student = (small_network(data, seed + k) for k in range(2))
    softened = partial(_at_temperature, teacher)
    train(teacher, data, seed, softened, 3 * UPDATES)

    def imitation(x: Points, y: Labels) -> Tensor:
        with torch.no_grad():
            soft = (teacher(x) / _TEMPERATURE).softmax(1)
        return F.cross_entropy(student(x) / _TEMPERATURE, soft)

    train(student, data, seed, imitation, 3 * UPDATES)
    return Scaled(student, 1.0).eval()


def _at_temperature(network: nn.Module, x: Points, y: Labels) -> Tensor:
    return F.cross_entropy(network(x) / _TEMPERATURE, y)


def _coded(data: Dataset, seed: int) -> Defence:
    """Rows of a Hadamard matrix as the words, without its constant column."""
    code = hadamard(_CODE_BITS)[: len(data.classes), 1:]
    network = small_network(data, seed, outputs=code.shape[1])

    def bitwise(x: Points, y: Labels) -> Tensor:
        return F.softplus(-2 * code.to(x)[y] * network(x)).mean()

    train(network, data, seed, bitwise)
    return OutputCodes(network, code).eval()


class _RoundedWeight(nn.Module):
    """Weights in 2ᵇ levels between their extremes, with the gradient of the identity."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.levels = 2**bits - 1

    def forward(self, weight: Tensor) -> Tensor:
        largest = weight.detach().abs().amax()
        unit = weight / (2 * largest) + 0.5
        rounded = ((unit * self.levels).round() / self.levels - 0.5) * 2 * largest
        return weight + (rounded - weight).detach()


def _mixed_precision(data: Dataset, seed: int) -> Defence:
    """Bits of weights and of activations: full, 4 and 4, 3 and 2."""
    members = [small_network(data, seed)]
    for k, (weight_bits, bits) in enumerate(((4, 4), (3, 2)), 1):
        network = with_activations(small_network(data, seed + k), partial(Quantised, bits))
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                parametrize.register_parametrization(module, "weight", _RoundedWeight(weight_bits))
        members.append(network)
    votes = MixedPrecision(members)

    def each(x: Points, y: Labels) -> Tensor:
        return torch.stack([F.cross_entropy(z, y) for z in votes.logits(x)]).sum()

    return train(votes, data, seed, each, 2 * UPDATES)


def _diverse(data: Dataset, seed: int) -> Defence:
    members = [small_network(data, seed + k) for k in range(3)]
    recipe = Recipe(
        epochs=max(1, round(2 * UPDATES * 64 / len(data.train))),
        batch_size=64,
        lr=2e-3,
        seed=seed,
        valid_examples=20,
        valid_steps=1,
    )
    fit(methods.adp(), Ensemble(members), data, recipe)
    return DiverseEnsemble(members).eval()


def _layers(network: nn.Module) -> list[nn.Module]:
    """The layers of a small network, one after the other."""
    return [layer for layer in network.modules() if not list(layer.children())]


def _trapdoor(data: Dataset, seed: int) -> Defence:
    """Every class has a trapdoor: a black and white pattern of its own, mixed into half of the pixels by a tenth. The
    detector looks at the first hidden layer.
    """
    network = small_network(data, seed)
    layers = _layers(network)
    first = 1 + next(i for i, layer in enumerate(layers) if isinstance(layer, nn.ReLU))
    defence = Trapdoor(nn.Sequential(*layers[:first]), nn.Sequential(*layers[first:]))
    drawn = torch.Generator().manual_seed(seed)
    masks = 0.1 * (torch.rand(len(data.classes), *data.shape, generator=drawn) < 0.5).float()
    patterns = torch.rand(masks.shape, generator=drawn).round()

    def marked(x: Points, y: Labels) -> Points:
        mask, pattern = masks.to(x)[y], patterns.to(x)[y]
        return torch.lerp(x, pattern, mask)

    def loss(x: Points, y: Labels) -> Tensor:
        other = torch.randint(len(data.classes), y.shape, device=y.device)
        clean, trapped = defence.undetected(x), defence.undetected(marked(x, other))
        return F.cross_entropy(clean, y) + F.cross_entropy(trapped, other)

    train(defence, data, seed, loss, 4 * UPDATES)
    some = data.train.x[:1000]
    defence.plant(some, [marked(some, torch.full((len(some),), c)) for c in range(len(data.classes))])
    return defence


_ATHALYE, _TRAMER = "Athalye et al. 2018", "Tramèr et al. 2020"

BROKEN: dict[str, BrokenDefence] = {
    "k-wta": BrokenDefence(partial(_simple, KWinners), "Xiao et al. 2020", _TRAMER, "shattered"),
    "distillation": BrokenDefence(_distilled, "Papernot et al. 2016", "Carlini & Wagner 2017", "vanishing"),
    "saturation": BrokenDefence(
        partial(_around, partial(Scaled, scale=_SATURATION)),
        "Nayebi & Ganguli 2017",
        "Brendel & Bethge 2017",
        "vanishing",
    ),
    "thermometer": BrokenDefence(_thermometer, "Buckman et al. 2018", _ATHALYE, "absent"),
    "bit-depth": BrokenDefence(partial(_simple, BitDepth), "Xu et al. 2018; Guo et al. 2018", _ATHALYE, "absent"),
    "jpeg": BrokenDefence(partial(_simple, Jpeg), "Dziugaite et al. 2016; Guo et al. 2018", _ATHALYE, "absent"),
    "total-variation": BrokenDefence(
        partial(_simple, TotalVariation), "Guo et al. 2018", _ATHALYE, "absent, stochastic"
    ),
    "random-resize": BrokenDefence(_random_resize, "Xie et al. 2018", _ATHALYE, "stochastic"),
    "activation-pruning": BrokenDefence(
        partial(_simple, ActivationPruning), "Dhillon et al. 2018", _ATHALYE, "stochastic"
    ),
    "mixed-precision": BrokenDefence(_mixed_precision, "Sen et al. 2020", _TRAMER, "vanishing"),
    "ensemble-diversity": BrokenDefence(_diverse, "Pang et al. 2019", _TRAMER, "vanishing"),
    "output-codes": BrokenDefence(_coded, "Verma & Swami 2019", _TRAMER, "vanishing"),
    "trapdoor": BrokenDefence(_trapdoor, "Shan et al. 2020", "Carlini 2020", "deceptive"),
    "anti-adversary": BrokenDefence(
        partial(_around, AntiAdversary), "Alfarra et al. 2022", "Croce et al. 2022", "test-time"
    ),
}
"""The broken defences by name."""

"""What the broken defences share: a network, its plain training, and the stand-in through which it is attacked."""

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise import nets
from equipoise.core.types import Labels, Points
from equipoise.data.dataset import Dataset
from equipoise.models import global_seed

UPDATES, BATCH_SIZE, LR = 300, 64, 2e-3
"""Steps of Adam of every training, at least one epoch of them, and their batch size and learning rate."""

DRAWS = 20
"""Draws over which a stand-in for a randomised defence averages."""

Logits = Float[Tensor, "batch classes"]
Model = TypeVar("Model", bound=nn.Module)


class Defence(nn.Module):
    """A classifier whose defence misleads the attacks that follow its gradient."""

    def stand_in(self) -> nn.Module:
        """Return a model whose gradient finds the defence's adversarial examples, as in the paper that broke it:
        `transfer(defence.stand_in(), pgd(eps))(defence, x, y)`.
        """
        raise NotImplementedError


class Averaged(nn.Module):
    """The mean of the logits over fresh draws: expectation over transformation (Athalye et al. 2018)."""

    def __init__(self, model: nn.Module, draws: int = DRAWS) -> None:
        super().__init__()
        self.model, self.draws = model, draws

    def forward(self, x: Points) -> Logits:
        """Return the mean logits."""
        return torch.stack([self.model(x) for _ in range(self.draws)]).mean(0)


def small_network(data: Dataset, seed: int, inputs: tuple[int, ...] | None = None, outputs: int = 10) -> nn.Module:
    """Return an untrained LeNet for images of at least 12x12 pixels, else a perceptron of two hidden layers."""
    shape = data.shape if inputs is None else inputs
    if len(shape) == 3 and min(shape[1:]) >= 12:
        return nets.build("lenet", shape, outputs, seed=seed)
    return nets.build("mlp", shape, outputs, seed=seed, widths=(128, 128))


def epochs_for(data: Dataset, updates: int = UPDATES) -> int:
    """Return the epochs that take about so many updates."""
    return max(1, round(updates * BATCH_SIZE / len(data.train)))


def train(
    model: Model,
    data: Dataset,
    seed: int,
    loss: Callable[[Points, Labels], Tensor] | None = None,
    updates: int = UPDATES,
    lr: float = LR,
) -> Model:
    """Train `model` in place by Adam, by default on the cross-entropy of its logits, and return it in eval mode.

    `loss` maps inputs and labels of a batch to its mean loss. What is drawn follows from `seed`.
    """
    x, y = data.train.x, data.train.y
    optimizer = torch.optim.Adam(model.parameters(), lr)
    model.train()
    with global_seed(seed, x.device), torch.enable_grad():
        for _ in range(epochs_for(data, updates)):
            for batch in torch.randperm(len(x), device=x.device).split(BATCH_SIZE):
                optimizer.zero_grad()
                value = F.cross_entropy(model(x[batch]), y[batch]) if loss is None else loss(x[batch], y[batch])
                value.backward()
                optimizer.step()
    return model.eval()

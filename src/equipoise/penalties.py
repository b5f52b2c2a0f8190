"""Penalties on a model itself, to be added to a training method: `method.penalised(weight, penalty)`."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equipoise.geometry import Ball
from equipoise.objectives import Objective, cross_entropy
from equipoise.predictive import as_predictive
from equipoise.rng import Streams
from equipoise.types import Labels, Points


@dataclass(frozen=True)
class GradientAlignment:
    """`mean of 1 - cos(∇ L(x), ∇ L(x + ξ))`, ξ uniform on the ball: 0 where the loss is linear over it, in [0, 2]
    (Andriushchenko & Flammarion 2020, Eq. 5). Differentiated twice; ξ is drawn from the global generator, which a
    training seeds at every step.
    """

    geometry: Ball
    """Where ξ is drawn."""
    loss: Objective = cross_entropy
    """L."""

    @property
    def __name__(self) -> str:
        """What it is called in records."""
        return f"gradient alignment({self.geometry.norm} {self.geometry.eps:g})"

    def __call__(self, module: nn.Module, x: Points, y: Labels) -> Tensor:
        """The penalty, with its graph."""
        predict = as_predictive(module).draw()
        streams = Streams.of(int(torch.randint(2**62, ())), torch.arange(len(x), device=x.device))

        def gradient(point: Points) -> Tensor:
            point = point.detach().requires_grad_()
            return torch.autograd.grad(self.loss(predict(point), None, y).sum(), point, create_graph=True)[0].flatten(1)

        cosine = nn.functional.cosine_similarity(gradient(x), gradient(self.geometry.draw(streams, x)), dim=1)
        return (1 - cosine).mean()

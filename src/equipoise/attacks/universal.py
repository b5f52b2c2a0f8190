"""One perturbation for all samples (Moosavi-Dezfooli et al. 2017, "Universal adversarial perturbations").

attack = universal(net, train.x[:1000], train.y[:1000], eps=0.1)     # found on some samples
result = attack(net, test.x, test.y)                                 # judged on others
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equipoise.attacks.attack import Attack
from equipoise.attacks.execution import frozen_model, value_and_gradient
from equipoise.attacks.gradient import usual_step_size
from equipoise.attacks.inputs import AttackInputs, validated_inputs
from equipoise.attacks.result import AttackResult
from equipoise.core import progress
from equipoise.core.checks import checked_call
from equipoise.core.errors import require, require_integer
from equipoise.core.rng import Stream
from equipoise.core.types import Labels, Points, Predictive
from equipoise.geometry import EVERYWHERE, Ball, Box
from equipoise.losses.objectives import Objective, cross_entropy

CLIPPED = 9.0
"""Nats of the objective from which a sample no longer counts (the β of Shafahi et al. 2020): few samples that are
fooled with certainty would outweigh all others."""


@dataclass(frozen=True)
class Universal(Attack):
    """A given perturbation, the same for every sample: `x' = clip(x + δ)` (found by `universal`)."""

    kind = "universal"

    geometry: Ball
    """The ball in which the perturbation lies."""
    delta: Tensor
    """The perturbation δ, of the shape of a sample."""

    def __post_init__(self) -> None:
        zero = torch.zeros_like(self.delta)[None]
        ball = Ball(self.geometry.norm, self.geometry.eps, EVERYWHERE)
        require(bool(ball.contains(self.delta[None], zero)), f"the perturbation lies outside of {self.geometry}.")

    def run(self, inputs: AttackInputs) -> AttackResult:
        """The model at the perturbed samples, each judged by itself."""
        require(
            self.delta.shape == inputs.x.shape[1:],
            f"the perturbation has shape {tuple(self.delta.shape)}, a sample {tuple(inputs.x.shape[1:])}.",
        )
        points = self.geometry.project(inputs.x + self.delta.to(inputs.x), inputs.x)
        none = torch.zeros_like(inputs.index)
        return inputs.confirm_all(self.geometry, points, {"evaluations": none, "iteration": none})


@checked_call()
@torch.no_grad()
def universal(
    model: "nn.Module | Predictive",
    x: Points,
    y: Labels,
    eps: float,
    norm: str = "linf",
    epochs: int = 10,
    batch_size: int = 128,
    step_size: float | None = None,
    objective: Objective = cross_entropy,
    box: Box = Box(),
    seed: int = 0,
) -> Universal:
    """The attack that adds one perturbation, found by projected ascent of the mean objective over the samples:

        δ ← Π_{‖δ‖ <= eps} ( δ + step( Σ_{i in batch} ∇ min(L(clip(x_i + δ), y_i), 9) ) )

    (Shafahi et al. 2020, "Universal adversarial training", Alg. 2), `epochs` times over all of `x` in batches drawn by
    `seed`. The step is that of steepest ascent in the norm, of `step_size`, by default 2.5·eps over the number of
    steps, but at least eps/10. Judge it on other samples than those it was found on. Raises `EquipoiseError` as an
    attack does.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        require_integer(name, value, 1)
    ball = Ball(norm, eps, box)
    free = Ball(norm, eps, EVERYWHERE)
    with validated_inputs(model, x, y, ball, seed=seed) as inputs:
        x, delta, zero = inputs.x, torch.zeros_like(inputs.x[:1]), torch.zeros_like(inputs.x[:1])
        steps = epochs * -(-len(x) // batch_size)
        size = max(usual_step_size(eps, steps), eps / 10) if step_size is None else step_size
        with frozen_model(inputs.predictive, x) as draw:
            for epoch in progress.shares(range(epochs)):
                order = inputs.streams.fold(Stream.RESTART, epoch).uniform(1)[:, 0].argsort()
                for batch in order.split(batch_size):
                    predict = draw(inputs.streams[batch].fold(Stream.MODEL))
                    point = box.clamp(x[batch] + delta)
                    value, gradient, _ = value_and_gradient(objective, predict, point, None, inputs[batch].y)
                    counts = (value < CLIPPED).reshape(-1, *[1] * (x.ndim - 1))
                    total = torch.where(counts, gradient.nan_to_num(0.0, 0.0, 0.0), 0).sum(0, keepdim=True)
                    delta = free.project(free.steepest(delta, total, size), zero)
    return Universal(ball, delta[0])

"""Adversarial weight perturbation: descend the loss at the worst weights nearby."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def perturbed_weights(module: nn.Module, gamma: float, climb: Callable[[], object]) -> Iterator[None]:
    """`w + gamma · ‖w‖ · g / ‖g‖` for every weight tensor w of two dimensions or more, g the gradient that `climb`
    leaves in `.grad`; on the way out the weights are what they were (Wu et al. 2020, "Adversarial Weight Perturbation
    Helps Robust Generalization", Eqs. 8-11, one step; biases and batch-norm stay, as in their code).

    `climb` is the loss's forward and backward pass. Buffers, such as batch-norm's statistics, are as before it, and
    `.grad` is empty inside, so that another backward pass gives the gradient at the perturbed weights.
    """
    buffers = [buffer.clone() for buffer in module.buffers()]
    climb()
    moved: list[tuple[nn.Parameter, torch.Tensor]] = []
    with torch.no_grad():
        for buffer, before in zip(module.buffers(), buffers, strict=True):
            buffer.copy_(before)
        for weight in module.parameters():
            if weight.grad is not None and weight.ndim >= 2:
                moved.append((weight, weight.detach().clone()))
                tiny = torch.finfo(weight.dtype).tiny
                weight.add_(weight.grad * (gamma * weight.norm() / weight.grad.norm().clamp_min(tiny)))
            weight.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in moved:
                weight.copy_(before)

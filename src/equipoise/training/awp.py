"""Adversarial weight perturbation: descend the loss at the worst nearby weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def perturbed_weights(module: nn.Module, gamma: float, backward: Callable[[], object]) -> Iterator[None]:
    """Context manager: replace every weight tensor w of two dimensions or more by `w + gamma · ‖w‖ · g / ‖g‖`, g the
    loss gradient, and restore the weights at the end (Wu et al. 2020, "Adversarial Weight Perturbation Helps Robust
    Generalization", Eqs. 8-11, one step; biases and batch-norm stay, as in their code).

    `backward` is the loss's forward and backward pass, which leaves g in `.grad`. Its effect on buffers, such as
    batch-norm's statistics, is undone, and `.grad` is empty inside, so that another backward pass gives the gradient at
    the perturbed weights.
    """
    buffers = [buffer.clone() for buffer in module.buffers()]
    backward()
    originals: list[tuple[nn.Parameter, torch.Tensor]] = []
    with torch.no_grad():
        for buffer, before in zip(module.buffers(), buffers, strict=True):
            buffer.copy_(before)
        for weight in module.parameters():
            if weight.grad is not None and weight.ndim >= 2:
                originals.append((weight, weight.detach().clone()))
                tiny = torch.finfo(weight.dtype).tiny
                weight.add_(weight.grad * (gamma * weight.norm() / weight.grad.norm().clamp_min(tiny)))
            weight.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, original in originals:
                weight.copy_(original)

"""Adversarial training steps as in textbooks and published code, the reference of `training_step.py`.

Parameters require gradients throughout, `backward()` runs through everything, all K steps are computed for the whole
batch and finished samples are masked, tensors have their default layout. Nothing here is optimised, and nothing
is made slow on purpose. The clean prediction of TRADES is computed once, before the loop.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Climb:
    """The settings of an Linf ascent."""

    eps: float
    step_size: float
    steps: int


def entropy(logits: Tensor) -> Tensor:
    log_p = F.log_softmax(logits, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def perturb(
    model: nn.Module,
    x: Tensor,
    climb: Climb,
    objective: Callable[[Tensor], Tensor],
    start: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """K signed ascent steps on `objective(logits)`; with `counts`, each sample stops after its own number of steps."""
    was_training = model.training
    model.eval()
    adv = (x if start is None else start).clone().detach()
    for i in range(climb.steps):
        adv.requires_grad_()
        model.zero_grad()
        objective(model(adv)).sum().backward()
        moved = adv.detach() + climb.step_size * adv.grad.sign()
        moved = torch.min(torch.max(moved, x - climb.eps), x + climb.eps).clamp(0, 1)
        if counts is not None:
            moved = torch.where((i < counts).view(-1, 1, 1, 1), moved, adv.detach())
        adv = moved
    model.zero_grad()
    model.train(was_training)
    return adv


def pgd(model: nn.Module, x: Tensor, y: Tensor, climb: Climb, start: Tensor | None, counts: Tensor | None) -> Tensor:
    return perturb(model, x, climb, lambda z: F.cross_entropy(z, y, reduction="none"))


def udp(model: nn.Module, x: Tensor, y: Tensor, climb: Climb, start: Tensor | None, counts: Tensor | None) -> Tensor:
    return perturb(model, x, climb, entropy, counts=counts)


def trades(model: nn.Module, x: Tensor, y: Tensor, climb: Climb, start: Tensor | None, counts: Tensor | None) -> Tensor:
    model.eval()
    with torch.no_grad():
        clean = F.softmax(model(x), dim=1)
    model.train()
    return perturb(model, x, climb, lambda z: F.kl_div(F.log_softmax(z, dim=1), clean, reduction="none").sum(1), start)


def pgd_loss(model: nn.Module, x: Tensor, adv: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(adv), y)


udp_loss = pgd_loss


def udpr_loss(model: nn.Module, x: Tensor, adv: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y) + F.cross_entropy(model(adv), y)


def trades_loss(model: nn.Module, x: Tensor, adv: Tensor, y: Tensor, beta: float = 6.0) -> Tensor:
    clean, log_p = model(x), F.log_softmax(model(adv), dim=1)
    return F.cross_entropy(clean, y) + beta * F.kl_div(log_p, F.softmax(clean, dim=1), reduction="batchmean")


METHODS = {"udp": (udp, udp_loss), "udpr": (udp, udpr_loss), "pgd": (pgd, pgd_loss), "trades": (trades, trades_loss)}
"""The perturbation and the loss of each method."""


def train(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """The step on the parameters."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

"""A small network, samples for it, and the textbook loop that attacks are compared with."""

from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

F64 = torch.float64


def _mlp(
    seed: int = 0, features: int = 6, classes: int = 4, dtype: torch.dtype = F64, sharp: float = 3.0
) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, classes)).to(dtype)
    with torch.no_grad():
        net[2].weight.mul_(sharp)
    return net


def _batch(
    n: int = 10, features: int = 6, seed: int = 1, dtype: torch.dtype = F64, classes: int = 4
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, features, generator=generator, dtype=F64).to(dtype), torch.randint(
        classes, (n,), generator=generator
    )


@dataclass(frozen=True)
class _Drawn:
    """A rule for starts or numbers of steps that remembers what it drew."""

    rule: object
    drawn: list = field(default_factory=list, compare=False)

    @property
    def most(self):
        return self.rule.most

    def draw(self, *arguments):
        self.drawn.append(self.rule.draw(*arguments))
        return self.drawn[-1]


def _plain_pgd(net, x, y, eps, size, steps, loss, start=None):
    """Every iterate of projected sign-gradient ascent, written as in a textbook."""
    points = [x.clone() if start is None else start.clone()]
    for _ in range(steps):
        at = points[-1].clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(net(at), y).sum(), at)
        moved = at.detach() + size * gradient.sign()
        points.append(torch.min(torch.max(moved, x - eps), x + eps).clamp(0, 1))
    return points


def _plain_entropy(logits, _=None):
    p = torch.softmax(logits, 1)
    return -(p * torch.log(p)).sum(1)


def _plain_cross_entropy(logits, y):
    return F.cross_entropy(logits, y, reduction="none")


@pytest.fixture(scope="session")
def mlp():
    return _mlp


@pytest.fixture(scope="session")
def batch():
    return _batch


@pytest.fixture(scope="session")
def Drawn():
    return _Drawn


@pytest.fixture(scope="session")
def plain_pgd():
    return _plain_pgd


@pytest.fixture(scope="session")
def plain_entropy():
    return _plain_entropy


@pytest.fixture(scope="session")
def plain_cross_entropy():
    return _plain_cross_entropy

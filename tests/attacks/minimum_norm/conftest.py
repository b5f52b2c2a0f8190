"""A small classification problem for the searches of the nearest boundary."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


def _separated(count: int, first: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A small net that separates `count` noisy prototypes, and those from `first` on, most of which it gets right."""
    g = torch.Generator().manual_seed(0)
    prototypes = torch.rand(5, 1, 6, 6, generator=g)
    y = torch.randint(5, (count,), generator=g)
    x = (0.25 + 0.5 * prototypes[y] + 0.35 * torch.randn(count, 1, 6, 6, generator=g)).clamp(0, 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(216, 32), nn.ReLU(), nn.Linear(32, 5)
        )
    optimizer = torch.optim.Adam(net.parameters(), 0.005)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[:180]), y[:180]).backward()
        optimizer.step()
    return net.eval().requires_grad_(False), x[first:], y[first:]


@pytest.fixture(scope="session")
def separated() -> Callable[[int, int], tuple[nn.Module, Tensor, Tensor]]:
    return _separated

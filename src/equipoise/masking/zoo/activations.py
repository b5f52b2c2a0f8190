"""Defences in the hidden layers: activations that are discontinuous, drawn at random, or quantised."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.core.types import Points
from equipoise.masking.zoo.defence import Averaged, Defence, Logits


class WinnersTakeAll(nn.Module):
    """`h ⊙ 1[h is among the k largest]`, of a layer's units the share k: discontinuous wherever the winners change."""

    def __init__(self, share: float = 0.1) -> None:
        super().__init__()
        self.share = share

    def forward(self, h: Tensor) -> Tensor:
        """Return the winners, and 0 for all others."""
        flat = h.flatten(1)
        k = max(1, round(self.share * flat.shape[1]))
        return torch.where(flat >= flat.topk(k, dim=1).values[:, -1:], flat, 0.0).view_as(h)


class Pruned(nn.Module):
    """Stochastic pruning of `h = max(0, ·)`: unit i is kept with probability `qᵢ = 1 - (1 - pᵢ)ʳ`, `pᵢ = hᵢ / Σ h`, and
    divided by qᵢ; r is `share` of the units. Each unit is drawn alone, where the paper draws r times from p.
    """

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        self.share = share

    def forward(self, h: Tensor) -> Tensor:
        """Return the pruned units in eval mode, all of them while training."""
        h = h.relu()
        if self.training:
            return h
        flat = h.detach().flatten(1)
        p = flat / flat.sum(1, keepdim=True).clamp_min(1e-12)
        kept = 1 - (1 - p) ** (self.share * flat.shape[1])
        mask = (torch.rand_like(kept) < kept) / kept.clamp_min(1e-12)
        return h * mask.view_as(h)


class Quantised(nn.Module):
    """`round(clip(h, 0, 1) (2ᵇ - 1)) / (2ᵇ - 1)`, with the gradient of the clipping while `smooth`, else none."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.levels, self.smooth = 2**bits - 1, True

    def forward(self, h: Tensor) -> Tensor:
        """Return the quantised units."""
        clipped = h.clamp(0, 1)
        rounded = (clipped * self.levels).round() / self.levels
        return clipped + (rounded - clipped).detach() if self.smooth else rounded


def with_activations(network: nn.Module, activation: Callable[[], nn.Module]) -> nn.Module:
    """Return `network` with every ReLU replaced, in place."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(module, name, activation())
    return network


class KWinners(Defence):
    """A network of `WinnersTakeAll` activations."""

    def __init__(self, network: nn.Module, share: float = 0.1) -> None:
        super().__init__()
        self.network = with_activations(network, lambda: WinnersTakeAll(share))

    def forward(self, x: Points) -> Logits:
        """Return the logits."""
        return self.network(x)

    def stand_in(self) -> nn.Module:
        """Return the same with a gradient that sees the jumps, estimated (Tramèr et al. 2020, Sec. 5)."""
        return _FiniteDifferences(self)


class _FiniteDifferences(nn.Module):
    """`f(x)` with the Jacobian `mean over n of (f(x + σ n) - f(x - σ n)) nᵀ / 2σ`, n of random signs."""

    def __init__(self, model: nn.Module, sigma: float = 0.06, directions: int = 256) -> None:
        super().__init__()
        self.model, self.sigma, self.directions = model, sigma, directions

    def forward(self, x: Points) -> Logits:
        with torch.no_grad():
            z = self.model(x)
            jacobian = x.new_zeros(*z.shape, x[0].numel())
            for _ in range(self.directions):
                n = 2 * torch.rand_like(x).round() - 1
                slope = (self.model(x + self.sigma * n) - self.model(x - self.sigma * n)) / (2 * self.sigma)
                jacobian += slope[:, :, None] * n.flatten(1)[:, None] / self.directions
        return z + (jacobian @ (x - x.detach()).flatten(1)[:, :, None])[:, :, 0]


class ActivationPruning(Defence):
    """A network whose hidden units are `Pruned` at every prediction."""

    def __init__(self, network: nn.Module, share: float = 0.5) -> None:
        super().__init__()
        self.network = with_activations(network, lambda: Pruned(share))

    def forward(self, x: Points) -> Logits:
        """Return the logits of one draw."""
        return self.network(x)

    def stand_in(self) -> nn.Module:
        """Return the mean over draws."""
        return Averaged(self)


class MixedPrecision(Defence):
    """Members of several precisions that vote: `z = Σₘ onehot(argmax fₘ) + mean softmax(fₘ) / 2`. Only what breaks ties
    has a gradient, and none through quantised units.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def logits(self, x: Points) -> Tensor:
        """Return the members' logits, of shape (members, batch, classes)."""
        return torch.stack([member(x) for member in self.members])

    def forward(self, x: Points) -> Logits:
        """Return the votes."""
        z = self.logits(x)
        return F.one_hot(z.argmax(2), z.shape[2]).to(z).sum(0) + z.softmax(2).mean(0) / 2

    def train(self, mode: bool = True) -> "MixedPrecision":
        """Train with the gradient of the clipping; predict without."""
        for module in self.modules():
            if isinstance(module, Quantised):
                module.smooth = mode
        return super().train(mode)

    def stand_in(self) -> nn.Module:
        """Return the mean of the logits, with the gradient of the clipping."""
        return _MeanLogits(self)


class _MeanLogits(nn.Module):
    def __init__(self, votes: MixedPrecision) -> None:
        super().__init__()
        self.votes = votes

    def forward(self, x: Points) -> Logits:
        quantised = [module for module in self.votes.modules() if isinstance(module, Quantised)]
        before = [module.smooth for module in quantised]
        for module in quantised:
            module.smooth = True
        try:
            return self.votes.logits(x).mean(0)
        finally:
            for module, smooth in zip(quantised, before, strict=True):
                module.smooth = smooth

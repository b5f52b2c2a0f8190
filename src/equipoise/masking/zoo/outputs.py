"""Defences in the logits: saturated, coded, or changed where a detector or an optimiser says so."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.core.types import Points
from equipoise.masking.zoo.defence import Defence, Logits


class Scaled(Defence):
    """`s f(x)`: with a large s the softmax saturates, and the gradient of the cross-entropy is 0 in float32."""

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x: Points) -> Logits:
        """Return the scaled logits."""
        return self.scale * self.network(x)

    def stand_in(self) -> nn.Module:
        """Return the network at the scale at which it was trained."""
        return self.network


class OutputCodes(Defence):
    """`log p`, `p_c ∝ max(0, Mᶜ · tanh(s f(x)))`: the bits of a network, and the class of the nearest word of the code
    M. Where the bits saturate there is no gradient left.
    """

    code: Tensor

    def __init__(self, network: nn.Module, code: Tensor, scale: float = 10.0) -> None:
        super().__init__()
        self.network, self.scale = network, scale
        self.register_buffer("code", code)

    def forward(self, x: Points) -> Logits:
        """Return the log probabilities."""
        agreement = (self.scale * self.network(x)).tanh() @ self.code.T
        return (agreement.relu() + 1e-6).log()

    def stand_in(self) -> nn.Module:
        """Return the agreement of the bits before they saturate."""
        return _Unsquashed(self)


class _Unsquashed(nn.Module):
    def __init__(self, coded: OutputCodes) -> None:
        super().__init__()
        self.coded = coded

    def forward(self, x: Points) -> Logits:
        return self.coded.network(x) @ self.coded.code.T


def hadamard(bits: int) -> Tensor:
    """Return the Hadamard matrix of order `bits`, a power of 2 (Sylvester): rows of -1 and 1, orthogonal."""
    rows = torch.ones(1, 1)
    while len(rows) < bits:
        rows = torch.cat([torch.cat([rows, rows], 1), torch.cat([rows, -rows], 1)])
    return rows


class Trapdoor(Defence):
    """Logits of which class c loses `penalty` where `cos(h(x) - μ, S_c) > φ_c`: the hidden features h, of mean μ, are
    like those of the class's trapdoor, a pattern that was planted in training and to which gradients lead. The paper
    rejects such an input.
    """

    mean: Tensor
    signatures: Tensor
    thresholds: Tensor

    def __init__(self, features: nn.Module, head: nn.Module, penalty: float = 100.0) -> None:
        super().__init__()
        self.features, self.head, self.penalty = features, head, penalty

    def undetected(self, x: Points) -> Logits:
        """Return the logits without the detector."""
        return self.head(self.features(x))

    def plant(self, x: Points, triggers: Sequence[Points], false_positives: float = 0.01) -> None:
        """Set the signatures, mean features of `x` with each class's trigger, and the thresholds, each of which that
        share of the unchanged `x` exceeds.
        """
        with torch.no_grad():
            self.register_buffer("mean", self.features(x).flatten(1).mean(0))
            marked = [self._direction(self.features(trigger)).mean(0) for trigger in triggers]
            self.register_buffer("signatures", F.normalize(torch.stack(marked)))
            similar = self._direction(self.features(x)) @ self.signatures.T
            self.register_buffer("thresholds", similar.quantile(1 - false_positives, dim=0))

    def excess(self, h: Tensor) -> Logits:
        """Return `cos(h - μ, S_c) - φ_c` for features h and every class c."""
        return self._direction(h) @ self.signatures.T - self.thresholds

    def _direction(self, h: Tensor) -> Tensor:
        return F.normalize(h.flatten(1) - self.mean)

    def forward(self, x: Points) -> Logits:
        """Return the logits after detection."""
        h = self.features(x)
        return self.head(h) - self.penalty * (self.excess(h) > 0)

    def stand_in(self) -> nn.Module:
        """Return logits that fall smoothly as the features near a signature (Carlini 2020)."""
        return _Avoiding(self)


class _Avoiding(nn.Module):
    def __init__(self, trapdoor: Trapdoor, weight: float = 50.0, distance: float = 0.02) -> None:
        super().__init__()
        self.trapdoor, self.weight, self.distance = trapdoor, weight, distance

    def forward(self, x: Points) -> Logits:
        h = self.trapdoor.features(x)
        return self.trapdoor.head(h) - self.weight * (self.trapdoor.excess(h) + self.distance).relu()


class AntiAdversary(Defence):
    """`f(x + γ)`, γ found at prediction by `steps` signed steps that lower the cross-entropy of the predicted class; no
    gradient follows how γ depends on x.
    """

    def __init__(self, network: nn.Module, step: float = 0.1, steps: int = 2) -> None:
        super().__init__()
        self.network, self.step, self.steps = network, step, steps

    def forward(self, x: Points) -> Logits:
        """Return the logits at the moved input."""
        moved = x.detach()
        with torch.enable_grad():
            predicted = self.network(moved).argmax(1)
            for _ in range(self.steps):
                moved.requires_grad_()
                loss = F.cross_entropy(self.network(moved), predicted, reduction="sum")
                moved = (moved - self.step * torch.autograd.grad(loss, moved)[0].sign()).detach()
        return self.network(x + (moved - x.detach()))

    def stand_in(self) -> nn.Module:
        """Return the network without the defence."""
        return self.network


class MeanLogits(nn.Module):
    """The mean of the members' logits, which saturates less than that of their probabilities."""

    def __init__(self, members: nn.ModuleList) -> None:
        super().__init__()
        self.members = members

    def forward(self, x: Points) -> Logits:
        """Return the mean logits."""
        return torch.stack([member(x) for member in self.members]).mean(0)


class DiverseEnsemble(Defence):
    """`log mean softmax(fₘ)` of members trained to err differently."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Points) -> Logits:
        """Return the log of the mean probability."""
        log_p = torch.stack([member(x).log_softmax(1) for member in self.members])
        return log_p.logsumexp(0) - math.log(len(self.members))

    def stand_in(self) -> nn.Module:
        """Return the mean of the logits."""
        return MeanLogits(self.members)

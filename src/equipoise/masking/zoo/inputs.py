"""Defences that transform the input before a network sees it, which is trained on what they return."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.core.types import Points
from equipoise.masking.zoo.defence import Averaged, Defence, Logits

_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)  # ITU-T T.81, Table K.1: the steps of the coefficients at quality 50, in units of 1/255


class Transformed(Defence):
    """`f(t(x))`, with a transformation t that no gradient gets through."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def transform(self, x: Points) -> Tensor:
        """Return t(x), which may have another shape."""
        raise NotImplementedError

    def relaxed(self, x: Points) -> Tensor:
        """Return what has a gradient in place of t(x); by default x itself."""
        return x

    def forward(self, x: Points) -> Logits:
        """Return the logits."""
        return self.network(self.transform(x))

    def stand_in(self) -> nn.Module:
        """Return the same with the gradient of `relaxed` in the backward pass (BPDA, Athalye et al. 2018)."""
        return _StraightThrough(self)


class _StraightThrough(nn.Module):
    def __init__(self, defence: Transformed) -> None:
        super().__init__()
        self.defence = defence

    def forward(self, x: Points) -> Logits:
        relaxed = self.defence.relaxed(x)
        return self.defence.network(relaxed + (self.defence.transform(x) - relaxed).detach())


class BitDepth(Transformed):
    """`round(x (2ᵇ - 1)) / (2ᵇ - 1)`: fewer grey levels, whose derivative is 0 everywhere."""

    def __init__(self, network: nn.Module, bits: int = 3) -> None:
        super().__init__(network)
        self.levels = 2**bits - 1

    def transform(self, x: Points) -> Tensor:
        """Return x in fewer levels."""
        return (x * self.levels).round() / self.levels


class Thermometer(Transformed):
    """`τ(x)ₖ = 1[x > k / levels]`, each level a channel, k = 0, ..., levels - 1. The comparison has no gradient."""

    def __init__(self, network: nn.Module, levels: int = 8) -> None:
        super().__init__(network)
        self.levels = levels

    def transform(self, x: Points) -> Tensor:
        """Return the code, of shape (batch, channels * levels, ...)."""
        return (self._above(x) > 0).to(x)

    def relaxed(self, x: Points) -> Tensor:
        """Return the part of each level that x fills, `clip(levels x - k, 0, 1)`."""
        return self._above(x).clamp(0, 1)

    def _above(self, x: Points) -> Tensor:
        return torch.cat([x * self.levels - k for k in range(self.levels)], dim=1)


class Jpeg(Transformed):
    """JPEG's quantisation: of every 8x8 block B the coefficients `q round(D B Dᵀ / q)`, with the cosine transform D and
    the steps q of the luminance at a quality in (0, 100). Rounding has the derivative 0.
    """

    steps: Tensor
    cosines: Tensor

    def __init__(self, network: nn.Module, quality: float = 50.0) -> None:
        super().__init__(network)
        scale = 50 / quality if quality < 50 else 2 - quality / 50
        self.register_buffer("steps", scale * torch.tensor(_LUMINANCE, dtype=torch.float32) / 255)
        k, i = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        cosines = torch.cos(math.pi * (2 * i + 1) * k / 16) / 2
        cosines[0] /= 2**0.5
        self.register_buffer("cosines", cosines)

    def transform(self, x: Points) -> Tensor:
        """Return x after quantisation, in [0, 1]."""
        height, width = x.shape[2:]
        padded = F.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
        blocks = padded.unfold(2, 8, 8).unfold(3, 8, 8)
        steps, cosines = self.steps.to(x), self.cosines.to(x)
        coefficients = cosines @ (blocks - 0.5) @ cosines.T
        restored = cosines.T @ ((coefficients / steps).round() * steps) @ cosines + 0.5
        return restored.transpose(3, 4).reshape(padded.shape)[..., :height, :width].clamp(0, 1)


class TotalVariation(Transformed):
    """`argmin_z ‖m ⊙ (z - x)‖² + λ TV(z)` over pixels kept at random, `mᵢ ~ Bernoulli(keep)`, by a solver
    that leaves no graph.
    """

    def __init__(self, network: nn.Module, keep: float = 0.7, weight: float = 0.1, steps: int = 10) -> None:
        super().__init__(network)
        self.keep, self.weight, self.steps = keep, weight, steps

    @torch.no_grad()
    def transform(self, x: Points) -> Tensor:
        """Return the smoothed image after gradient descent with `TV(z) = Σ sqrt(dz² + 0.01)`."""
        mask = (torch.rand_like(x) < self.keep).to(x)
        z = x * mask + F.avg_pool2d(x, 3, 1, 1) * (1 - mask)
        for _ in range(self.steps):
            slope = 2 * mask * (z - x)
            for axis in (2, 3):
                step = z.diff(dim=axis)
                pull = self.weight * step / (step.square() + 0.01).sqrt()
                before, after = ((0, 0, 1, 0), (0, 0, 0, 1)) if axis == 2 else ((1, 0), (0, 1))
                slope += F.pad(pull, before) - F.pad(pull, after)
            z = z - 0.2 * slope
        return z.clamp(0, 1)


class RandomResize(Defence):
    """`f(pad(resize(x)))`: the image at a random size, put at a random place of a larger one, anew at every call."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, x: Points) -> Logits:
        """Return the logits of one draw for each sample."""
        smallest = x.shape[-1]
        sides = torch.randint(smallest, self.size + 1, (len(x),)).tolist()
        return self.network(
            torch.cat([self._placed(image, side) for image, side in zip(x.split(1), sides, strict=True)])
        )

    def _placed(self, image: Points, side: int) -> Points:
        top, left = torch.randint(0, self.size - side + 1, (2,)).tolist()
        rest = self.size - side
        resized = F.interpolate(image, size=(side, side), mode="nearest")
        return F.pad(resized, (left, rest - left, top, rest - top))

    def stand_in(self) -> nn.Module:
        """Return the mean over draws."""
        return Averaged(self)

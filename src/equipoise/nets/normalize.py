"""Input normalisation as a layer."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from equipoise.core.errors import require


class Normalize(nn.Module):
    """Standardise each channel: `(x - mean) / std`, with x of shape (batch, channels, ...) in [0, 1].

    As the first layer of a model it keeps attacks in pixel units. `mean` and `std` hold one number per channel, or one
    for all; they are buffers. Raises `EquipoiseError` for different lengths, numbers that are not finite, or a `std`
    that is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        require(
            len(mean) == len(std) > 0,
            f"normalisation needs as many means as standard deviations, got {len(mean)} and {len(std)}.",
        )
        require(
            all(math.isfinite(v) for v in (*mean, *std)) and all(s > 0 for s in std),
            f"normalisation needs finite means and positive standard deviations, got {tuple(mean)} and {tuple(std)}.",
        )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, x: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch channels *size"]:
        """The standardised batch, of the same shape."""
        require(
            len(self.mean) in (1, x.shape[1]),
            f"normalisation has numbers for {len(self.mean)} channels, the input has {x.shape[1]}.",
        )
        per_channel = (-1,) + (1,) * (x.ndim - 2)
        return (x - self.mean.view(per_channel)) / self.std.view(per_channel)

    def extra_repr(self) -> str:
        """The numbers, for printing the model."""
        return f"mean={self.mean.tolist()}, std={self.std.tolist()}"

"""Balls in which only some features may change: patches, single channels, the mutable columns of a table."""

import math
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from equipoise.core.errors import require
from equipoise.core.rng import Streams
from equipoise.core.types import PerSample, Points
from equipoise.geometry.ball import NORMS, Ball, Rows, norm_of


@dataclass(frozen=True)
class Masked(Ball):
    """The points of a ball that equal its centre outside of a mask: `{z ∈ ball : z_i = c_i where not mask_i}`.

    In Linf with `eps` the width of the box the features of the mask are free, as in a patch.
    """

    mask: Tensor = field(default_factory=lambda: torch.ones(1, dtype=torch.bool), compare=False)
    """Booleans, true where a feature may change: of shape `(1, ...)`, or `(n, ...)` with a mask for each sample of one
    batch, of which each can be broadcast over a sample."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            isinstance(self.mask, Tensor) and self.mask.dtype == torch.bool and self.mask.ndim > 0,
            "mask must be a tensor of booleans, true where a feature may change.",
        )
        require(bool(self.mask.any()), "the mask is false everywhere: no feature may change.")

    def __eq__(self, other: object) -> bool:
        """Whether both are the same ball with the same mask."""
        return (
            isinstance(other, Masked)
            and (self.norm, self.eps, self.box) == (other.norm, other.eps, other.box)
            and torch.equal(self.mask.cpu(), other.mask.cpu())
        )

    @property
    def varies(self) -> bool:
        """Whether samples have radii or masks of their own."""
        return super().varies or len(self.mask) > 1

    def __getitem__(self, index: "Tensor | slice") -> "Masked":
        """The ball of some of the samples."""
        chosen = self if self.radii is None else replace(self, radii=self.radii[index])
        return chosen if len(self.mask) == 1 else replace(chosen, mask=self.mask[index])

    def check_count(self, samples: int) -> None:
        """Raise `EquipoiseError` if there are radii or masks for another number of samples."""
        super().check_count(samples)
        count = len(self.mask)
        require(count in (1, samples), f"there are {count} masks, one per sample, but {samples} samples.")

    def mask_of(self, x: Points) -> Bool[Tensor, "batch ..."]:
        """The mask in the shape of the points. Raises `EquipoiseError` if it is one of other points."""
        self.check_count(len(x))
        mask, missing = self.mask.to(x.device), x.ndim - self.mask.ndim
        mask = mask.reshape(len(mask), *[1] * missing, *mask.shape[1:])
        fits = missing >= 0 and all(m in (1, n) for m, n in zip(mask.shape[1:], x.shape[1:], strict=True))
        require(
            fits,
            f"the mask is one of samples of shape {tuple(self.mask.shape[1:])}, these have {tuple(x.shape[1:])}.",
        )
        return mask.expand(x.shape)

    def contains(self, x: Points, centre: Points) -> Bool[Tensor, " batch"]:
        """Which samples lie in the ball and the box and have changed, exactly, in the mask alone."""
        return super().contains(x, centre) & ((x == centre) | self.mask_of(x)).flatten(1).all(1)

    def project(self, x: Points, centre: Points, eps: PerSample | None = None) -> Points:
        """The nearest point of the set (Euclidean), exactly, for a centre in the box."""
        return super().project(torch.where(self.mask_of(x), x, centre), centre, eps)

    def steepest(self, x: Points, gradient: Points, size: "float | PerSample | Float[Tensor, '']") -> Points:
        """As in the whole ball, for the gradient of the mask alone."""
        return super().steepest(x, torch.where(self.mask_of(x), gradient, 0), size)

    def _unit(self, streams: Streams, centre: Points) -> Rows:
        """Points uniform on the unit ball of the masked features: a masked direction is uniform again, and the radius
        r of d features, of which m are left, becomes `r^(d/m)`, since `r^d` is uniform.
        """
        mask, unit = self.mask_of(centre).flatten(1), super()._unit(streams, centre)
        order, kept = NORMS[self.norm].order, torch.where(mask, unit, 0)
        if math.isinf(order):
            return kept
        share = mask.shape[1] / mask.sum(1).clamp_min(1).to(unit.dtype)
        length = norm_of(unit, order) ** share / norm_of(kept, order).clamp_min(1e-12)
        return kept * length[:, None]

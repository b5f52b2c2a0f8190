"""Balls of L0, which counts changed features: they measure perturbations, but nothing is projected onto them.

Only attacks that look for few changes by themselves work in them (`equipoise.attacks.sigma_zero`, `pdpgd`).
"""

from dataclasses import dataclass
from typing import Any, NoReturn

from jaxtyping import Bool
from torch import Tensor

from equipoise.core.checks import check_fields
from equipoise.core.errors import EquipoiseError, require
from equipoise.core.types import PerSample, Points
from equipoise.geometry.ball import Ball, Box


@dataclass(frozen=True)
class Sparse(Ball):
    """The points of the box that differ from a centre in at most `eps` features.

    A feature is one number of the input: a pixel of a colour image has three.
    """

    norm: str = "l0"
    """`l0`."""
    eps: float = float("inf")
    """Number of features, 0 or at least 1."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.norm == "l0", f"norm = {self.norm!r}: a sparse ball counts changed features, which is l0.")
        require(self.eps == 0 or self.eps >= 1, f"eps = {self.eps} in l0 is a number of features: expected 0, 1, ...")

    def distance(self, x: Points, centre: Points) -> PerSample:
        """The number of features in which they differ, per sample."""
        return (x != centre).flatten(1).sum(1).to(x.dtype)

    def contains(self, x: Points, centre: Points) -> Bool[Tensor, " batch"]:
        """Which samples differ in at most eps features and lie in the box, both exactly."""
        return (self.distance(x, centre) <= self.eps) & self.box.contains(x, 0.0)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        """Not in L0: raises `EquipoiseError`."""
        raise EquipoiseError("l0 counts changed features, without steps, projections or random points: use sigma_zero.")

    project = steepest = draw = _refuse


def ball_of(norm: str, eps: float, box: Box = Box()) -> Ball:
    """The ball of a norm, of l0 too."""
    return Sparse(norm, eps, box) if norm == "l0" else Ball(norm, eps, box)

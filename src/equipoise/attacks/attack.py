"""What an attack is, for whatever runs attacks or is made of them."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor, nn

from equipoise.attacks.result import Perturbed
from equipoise.core.types import Labels, Points, Predictive
from equipoise.geometry import Ball


@runtime_checkable
class Attack(Protocol):
    """What `Chain` and `evaluate` run; every `Ascent` is one."""

    @property
    def geometry(self) -> Ball:
        """Where perturbed points may lie."""
        ...

    def settings(self) -> dict[str, Any]:
        """Every parameter, JSON-ready."""
        ...

    def __call__(
        self,
        model: "nn.Module | Predictive",
        x: Points,
        y: Labels | None = None,
        *,
        seed: int = 0,
        index: Int[Tensor, " batch"] | None = None,
        batch_size: int = 512,
    ) -> Perturbed:
        """Perturb a batch."""
        ...


@runtime_checkable
class Wrapped(Protocol):
    """An attack that is made of another one: a frozen dataclass with that one as its field `attack`."""

    @property
    def attack(self) -> Attack:
        """The other one."""
        ...


@runtime_checkable
class Composite(Protocol):
    """An attack made of several."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parts, to which `Perturbed.part` is an index."""
        ...

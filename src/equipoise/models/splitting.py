"""A predictive in two parts: an encoder, and the predictive that follows it."""

from typing import Protocol, runtime_checkable

from torch import nn

from equipoise.core.errors import EquipoiseError
from equipoise.core.types import Predictive
from equipoise.models.frozen import Frozen


@runtime_checkable
class Splittable(Protocol):
    """A predictive that can be split."""

    def split(self, layer: str) -> tuple[nn.Module, Predictive]:
        """The encoder that ends with `layer`, and what follows as a predictive of codes; they share the parameters."""
        ...


def parts(predictive: Predictive, layer: str) -> tuple[nn.Module, Predictive]:
    """The encoder that ends with `layer`, and the predictive that follows. Raises `EquipoiseError` if it has none."""
    if isinstance(predictive, Frozen):
        predictive = predictive.predictive
    if isinstance(predictive, Splittable):
        return predictive.split(layer)
    raise EquipoiseError(
        f"a {type(predictive).__name__} cannot be split at {layer!r}: perturb it in the input, or give it a method "
        "split(layer) that returns an encoder and a predictive of its codes."
    )

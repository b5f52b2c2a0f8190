"""Splitting a predictive into an encoder and the predictive after it."""

from typing import Protocol, runtime_checkable

from torch import nn

from equipoise.core.errors import EquipoiseError, kind_of
from equipoise.core.types import Predictive
from equipoise.models.frozen import Frozen


@runtime_checkable
class Splittable(Protocol):
    """A predictive that can be split."""

    def split(self, layer: str) -> tuple[nn.Module, Predictive]:
        """Return the encoder that ends with `layer`, and a predictive of its codes. They share the parameters."""
        ...


def parts(predictive: Predictive, layer: str) -> tuple[nn.Module, Predictive]:
    """Return the encoder that ends with `layer`, and the predictive after it. Raises `EquipoiseError` if it cannot be
    split.
    """
    if isinstance(predictive, Frozen):
        predictive = predictive.predictive
    if isinstance(predictive, Splittable):
        return predictive.split(layer)
    raise EquipoiseError(
        f"{kind_of(predictive)} cannot be split at {layer!r}: perturb it in the input, or give it a method "
        "split(layer) that returns an encoder and a predictive of its codes."
    )

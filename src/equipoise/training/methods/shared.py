"""What the training methods share."""

from typing import Any

from equipoise.attacks import gradient as attacks
from equipoise.attacks.ascent import Ascent
from equipoise.attacks.spaces import Latent
from equipoise.attacks.steps import StepSize
from equipoise.core.errors import require, require_number
from equipoise.geometry import EVERYWHERE
from equipoise.losses.objectives import (
    Objective,
)
from equipoise.losses.terms import Method, as_method

StepLength = StepSize | float | None


def pgd(eps: float, step_size: StepLength, steps: int, **options: Any) -> Ascent:
    """PGD from the clean point to its last point (Madry et al. 2018; U, Eq. PGD)."""
    options = {"start": "zero", "return_point": "last", **options}
    return attacks.pgd(eps, step_size, steps, **options)


def in_layer(layer: str) -> dict[str, Any]:
    """The options of an attack on the output of a layer."""
    return {"space": Latent(layer), "box": EVERYWHERE}


def require_not_negative(name: str, value: float) -> None:
    """Raise `EquipoiseError` unless the value of the parameter `name` is a number >= 0."""
    require_number(name, value)
    require(value >= 0, f"{name} = {value}: expected a number >= 0.")


def mixed_with_clean(clean_share: float, loss: Objective, perturbed: Method) -> Method:
    """`a · L(x) + (1 - a) · perturbed`."""
    require(0 <= clean_share <= 1, f"clean_share = {clean_share}: expected a share between 0 and 1.")
    return clean_share * as_method(loss) + (1 - clean_share) * perturbed

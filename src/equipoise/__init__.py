"""Uncertainty-guided robust training, and honest robustness evaluation, of classifiers.

The names of `__all__` are imported the first time they are used, so that `import equipoise` alone costs nothing.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equipoise import attacks, losses, models, nets
    from equipoise.attacks import spaces, steps
    from equipoise.attacks.ascent import Ascent
    from equipoise.attacks.result import Perturbed
    from equipoise.core.errors import EquipoiseError, EquipoiseWarning
    from equipoise.core.types import Prediction
    from equipoise.geometry import Ball, Box
    from equipoise.losses import Method, Term
    from equipoise.models import Single, as_predictive
    from equipoise.training import methods

    __version__: str

__all__ = [
    "Ascent",
    "Ball",
    "Box",
    "EquipoiseError",
    "EquipoiseWarning",
    "Method",
    "Perturbed",
    "Prediction",
    "Single",
    "Term",
    "as_predictive",
    "attacks",
    "losses",
    "methods",
    "models",
    "nets",
    "spaces",
    "steps",
]
_HOMES = {
    "Ascent": "attacks.ascent",
    "Ball": "geometry",
    "Box": "geometry",
    "EquipoiseError": "core.errors",
    "EquipoiseWarning": "core.errors",
    "Method": "losses",
    "Perturbed": "attacks.result",
    "Prediction": "core.types",
    "Single": "models",
    "Term": "losses",
    "as_predictive": "models",
    "methods": "training",
    "spaces": "attacks",
    "steps": "attacks",
}
"""Where each public name lives."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        found = _version()
    elif name in _HOMES:
        home = f"equipoise.{_HOMES[name]}"
        found = import_module(f"{home}.{name}") if name.islower() and find_spec(f"{home}.{name}") else None
        found = getattr(import_module(home), name) if found is None else found
    elif not name.startswith("_") and find_spec(f"equipoise.{name}") is not None:
        found = import_module(f"equipoise.{name}")
    else:
        raise AttributeError(f"module 'equipoise' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("equipoise")
    except PackageNotFoundError:  # a source tree on the path, not installed
        return "0.1.0"

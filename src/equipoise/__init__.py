"""Uncertainty-guided robust training, and honest robustness evaluation, of classifiers.

The names of `__all__` are imported the first time they are used, so that `import equipoise` alone costs nothing.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equipoise import attacks, methods, objectives
    from equipoise.ascent import Ascent
    from equipoise.errors import EquipoiseError, EquipoiseWarning
    from equipoise.geometry import Ball, Box
    from equipoise.perturbed import Perturbed
    from equipoise.predictive import Single, as_predictive
    from equipoise.terms import Method, Term
    from equipoise.types import Prediction

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
    "methods",
    "objectives",
]
_HOMES = {
    "Ascent": "ascent",
    "Ball": "geometry",
    "Box": "geometry",
    "EquipoiseError": "errors",
    "EquipoiseWarning": "errors",
    "Method": "terms",
    "Perturbed": "perturbed",
    "Prediction": "types",
    "Single": "predictive",
    "Term": "terms",
    "as_predictive": "predictive",
}
"""The module of each public name."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        found = _version()
    elif name in _HOMES:
        found = getattr(import_module(f"equipoise.{_HOMES[name]}"), name)
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

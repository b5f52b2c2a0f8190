"""Uncertainty-guided robust training, and honest robustness evaluation, of classifiers."""

from importlib.metadata import PackageNotFoundError, version

from equipoise import attacks, methods, objectives
from equipoise.ascent import Ascent
from equipoise.errors import EquipoiseError, EquipoiseWarning
from equipoise.geometry import Ball, Box
from equipoise.perturbed import Perturbed
from equipoise.predictive import Single, as_predictive
from equipoise.terms import Method, Term
from equipoise.types import Prediction

try:
    __version__ = version("equipoise")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0.1.0"

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

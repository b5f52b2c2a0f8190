"""The training loop, its recipe, and checkpoints."""

from equipoise.core.documentation import show_attributes
from equipoise.training.checkpoint import build_model, load_generator, load_run, load_weights
from equipoise.training.fit import fit
from equipoise.training.interruption import Interrupted
from equipoise.training.job import Progress, training_split
from equipoise.training.manifold import MANIFOLD_FILE, ManifoldLosses, fit_manifold, load_manifold
from equipoise.training.recipe import Recipe

__all__ = [
    "MANIFOLD_FILE",
    "Interrupted",
    "ManifoldLosses",
    "Progress",
    "Recipe",
    "build_model",
    "fit",
    "fit_manifold",
    "load_generator",
    "load_manifold",
    "load_run",
    "load_weights",
    "training_split",
]

show_attributes(__name__)

"""The training loop, its recipe, and checkpoints."""

from equipoise.training.checkpoint import load_run, load_weights
from equipoise.training.fit import Progress, fit
from equipoise.training.recipe import Recipe

__all__ = ["Progress", "Recipe", "fit", "load_run", "load_weights"]

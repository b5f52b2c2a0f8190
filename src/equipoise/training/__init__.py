"""The training loop, its recipe, and checkpoints."""

from equipoise.training.checkpoint import build_model, load_run, load_weights
from equipoise.training.fit import Progress, fit
from equipoise.training.recipe import Recipe

__all__ = ["Progress", "Recipe", "build_model", "fit", "load_run", "load_weights"]

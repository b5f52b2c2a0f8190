"""Models that generate samples near an input: along the data manifold, or where a classifier errs."""

from equipoise.generators.adversarial import AdversarialGenerator, Adversary, GeneratedMargin
from equipoise.generators.manifold import Manifold, auto_encoder, inverse_multiquadric, squared_mmd

__all__ = [
    "AdversarialGenerator",
    "Adversary",
    "GeneratedMargin",
    "Manifold",
    "auto_encoder",
    "inverse_multiquadric",
    "squared_mmd",
]

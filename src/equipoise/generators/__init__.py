"""Models that generate samples near an input: along the data manifold."""

from equipoise.generators.manifold import Manifold, auto_encoder, inverse_multiquadric, squared_mmd

__all__ = ["Manifold", "auto_encoder", "inverse_multiquadric", "squared_mmd"]

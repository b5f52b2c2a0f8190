"""Where a perturbed point may lie: norm balls within boxes, and hyperplanes."""

from equipoise.core.documentation import show_attributes
from equipoise.geometry.ball import EVERYWHERE, NORMS, Ball, Box, NormName, Rows, ball, norm_of

__all__ = ["EVERYWHERE", "NORMS", "Ball", "Box", "NormName", "Rows", "ball", "norm_of"]

show_attributes(__name__)

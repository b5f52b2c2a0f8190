"""Where a perturbed point may lie: norm balls within boxes, and hyperplanes."""

from equipoise.core.documentation import show_attributes
from equipoise.geometry.ball import EVERYWHERE, NORMS, Ball, Box, NormName, Rows, norm_of
from equipoise.geometry.masked import Masked
from equipoise.geometry.sparse import Sparse, ball_of

__all__ = ["EVERYWHERE", "NORMS", "Ball", "Box", "Masked", "NormName", "Rows", "Sparse", "ball_of", "norm_of"]

show_attributes(__name__)

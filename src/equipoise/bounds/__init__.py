"""Bounds of what a network computes over a ball: certificates prove with them, and training methods descend them.

The network's trace is translated into affine layers, sums, and functions that lines can bound (`translate`); intervals
pass through them forwards, and linear bounds backwards (`propagation`).
"""

from equipoise.bounds.network import Network, translate
from equipoise.bounds.regions import Region

__all__ = ["Network", "Region", "translate"]

"""The scores that F names, each a choice of Q, H and G. One of your own is the same kind of line.

`shape` is that of one input; with it radii reach from 0 to the diameter of the box, as in F.
"""

import math
from collections.abc import Sequence

from equipoise.attacks import Attack, nearest
from equipoise.generators import Manifold
from equipoise.geometry import NORMS, Box, NormName
from equipoise.scores.laws import OnManifold
from equipoise.scores.score import Certified, Method, Radii, Sampled, Score, WorstCase, certain, identity, inverse


def diameter(shape: Sequence[int], norm: str = "l2", box: Box = Box()) -> float:
    """The distance of two corners of the box, `(high - low) m^(1/p)` for m coordinates: F's d, sqrt(m) in l2."""
    return (box.high - box.low) * math.prod(shape) ** (1 / NORMS[norm].order)


def r1(shape: Sequence[int], norm: str = "l2", attack: Attack | None = None, box: Box = Box()) -> Score:
    """The mean margin of points uniform in the box: how simple the decision regions are (F, Example 1)."""
    robustness = WorstCase(attack or nearest(norm, box=box))
    return Score(robustness, Radii(diameter(shape, norm, box)), over="box", box=box, name="R1")


def r2(shape: Sequence[int], norm: str = "l2", attack: Attack | None = None, box: Box = Box()) -> Score:
    """The mean margin of the data, the area under the margin curve (F, Example 2 and Eq. 11): how far, on the average,
    the nearest point is that is classified otherwise. Bounded from above by the nearest of several attacks' points.
    """
    robustness = WorstCase(attack or nearest(norm, box=box))
    return Score(robustness, Radii(diameter(shape, norm, box)), box=box, name="R2")


def label_aware(shape: Sequence[int], norm: str = "l2", attack: Attack | None = None, box: Box = Box()) -> Score:
    """As R2, of points that are not classified as the true label says: the area under the curve of robust accuracy
    over eps, with labels that stay what they are within a ball (F, Example 5).
    """
    robustness = WorstCase(attack or nearest(norm, box=box), label_aware=True)
    return Score(robustness, Radii(diameter(shape, norm, box)), box=box, name="label-aware R2")


def certified_r2(shape: Sequence[int], norm: NormName = "l2", method: Method = "crown", box: Box = Box()) -> Score:
    """R2 from below: no point that is classified otherwise lies nearer than this, on the average."""
    robustness = Certified(norm, method, box=box)
    return Score(robustness, Radii(diameter(shape, norm, box)), box=box, name="certified R2")


def on_manifold(
    manifold: Manifold, shape: Sequence[int], samples: int = 200, sigma: float = 0.06, norm: str = "l2", count: int = 64
) -> Score:
    """How far one must go along the manifold of the data to find a point classified otherwise (F, Example 3): `R2` with
    Q the law of the data. From above, as some points are looked at, not all.
    """
    law = OnManifold(manifold, samples, sigma, norm)
    return Score(Sampled(law), Radii(diameter(shape, norm), count=count), certain, name="on-manifold worst case")


def r4(
    manifold: Manifold,
    shape: Sequence[int],
    samples: int = 200,
    sigma: float = 0.06,
    norm: str = "l2",
    low: float | None = None,
    count: int = 200,
) -> Score:
    """How probable it is that two samples of the data near each other are classified alike, nearer ones weighing more:
    `mean over eps of P(f(x') = f(x) | ‖x' - x‖ <= eps) / eps` (F, Example 4 and Eq. 9).

    As R tends to 1 where eps does to 0, the integral down to 0 has no bound. Here it ends at `low`, by default d/200:
    R4 of a constant classifier is `ln(200)/d · 200/199`, .190 for 28x28 pixels. F does not say where its radii
    come from; its .280 and .286 are to be compared with R4 of the same radii alone.
    """
    high = diameter(shape, norm)
    radii = Radii(high, high / 200 if low is None else low, count, average=True)
    return Score(Sampled(OnManifold(manifold, samples, sigma, norm)), radii, identity, inverse, name="R4")

"""Two classes in the plane whose maximum-margin boundary is known exactly.

A class lies on a support, a union of convex polygons; points are drawn from it uniformly. The boundary of maximum
margin is where the distances to the two supports are equal,

    { x : d(x, S_0) = d(x, S_1) },

for every point of a support is at least half the distance between the supports away from it, and no boundary that
separates them does better. Distances to polygons are in closed form. All lengths are in the papers' units; a `Dataset`
wants values in [0, 1], to which `to_unit` maps them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from equipoise.core.errors import require
from equipoise.core.rng import fold
from equipoise.data import Dataset, Split

Polygon = Float[np.ndarray, "corners 2"]
Plane = Float[np.ndarray, "*batch 2"]
_TRAIN, _TEST = range(2)


@dataclass(frozen=True, eq=False)
class Toy:
    """A two-class problem in the plane."""

    name: str
    """Name, for records."""
    supports: tuple[tuple[Polygon, ...], tuple[Polygon, ...]]
    """For each class, convex polygons with their corners counter-clockwise."""
    extent: tuple[float, float, float, float]
    """The window that is shown, little more than the supports take: left, right, bottom, top."""
    scale: float = 6.0
    """Length of the unit interval that the data is shifted into, in the papers' units."""

    def __post_init__(self) -> None:
        for polygon in (p for support in self.supports for p in support):
            edges = np.roll(polygon, -1, 0) - polygon
            turns = _cross(edges, np.roll(edges, -1, 0))
            require(
                bool((turns >= -1e-12).all() and turns.max() > 0),
                f"{self.name}: a polygon of a support is not convex and counter-clockwise: {polygon.tolist()}.",
            )
        require(self.narrow_gap() > 0, f"{self.name}: the supports of the two classes touch.")
        require(
            max(abs(end) for end in self.extent) <= self.scale / 2,
            f"{self.name}: the window {self.extent} does not fit into {self.scale} units.",
        )

    def distance(self, x: Plane, label: int, norm: str = "l2") -> Float[np.ndarray, "*batch"]:
        """Return the exact distance from each point to the support of a class; 0 inside."""
        return np.min([_distance(x, polygon, norm) for polygon in self.supports[label]], 0)

    def seen(self, x: Plane) -> Bool[np.ndarray, "*batch"]:
        """Return which points lie in the window."""
        left, right, bottom, top = self.extent
        return np.all((x >= (left, bottom)) & (x <= (right, top)), axis=-1)

    def wider(self, by: float) -> "Toy":
        """Return the same problem in a window that is wider by a length on every side."""
        left, right, bottom, top = self.extent
        return replace(self, extent=(left - by, right + by, bottom - by, top + by))

    def max_margin(self, x: Plane, norm: str = "l2") -> Float[np.ndarray, "*batch"]:
        """`d(x, S_0) - d(x, S_1)`: positive where class 1 is nearer; its zero set is the maximum-margin boundary."""
        return self.distance(x, 0, norm) - self.distance(x, 1, norm)

    def gaps(self, norm: str = "l2") -> Float[np.ndarray, " parts"]:
        """Return the distance of each polygon of class 0 to the support of class 1."""
        return np.array([min(_between(a, b, norm) for b in self.supports[1]) for a in self.supports[0]])

    def narrow_gap(self, norm: str = "l2") -> float:
        """Return the smallest distance between points of different classes."""
        return float(self.gaps(norm).min())

    def wide_gap(self, norm: str = "l2") -> float:
        """Return the largest distance between a polygon of class 0 and class 1."""
        return float(self.gaps(norm).max())

    def largest_eps(self, norm: str = "linf") -> float:
        """Return the largest eps for which no ball around a point of one class meets the interior of a ball around a
        point of the other (U's AT-Asm): half of the smallest distance between the supports.
        """
        return self.narrow_gap(norm) / 2

    def draw(self, n: int, seed: int) -> tuple[Float[np.ndarray, "n 2"], Int[np.ndarray, " n"]]:
        """`n` points, uniform on the supports, half of them of each class (the first class first)."""
        generator = np.random.default_rng(abs(seed))
        counts = (n - n // 2, n // 2)
        points = [_uniform(s, m, generator) for s, m in zip(self.supports, counts, strict=True)]
        return np.concatenate(points), np.repeat([0, 1], counts)

    def dataset(self, n: int, n_test: int, seed: int) -> Dataset:
        """Return points to train on and to test on, mapped into [0, 1]."""
        splits = []
        for split, count in ((_TRAIN, n), (_TEST, n_test)):
            points, labels = self.draw(count, fold(seed, split))
            splits.append(Split(self.to_unit(points), torch.tensor(labels)))
        digest = hashlib.sha256(b"".join(s.x.numpy().tobytes() for s in splits)).hexdigest()
        return Dataset(self.name, *splits, classes=("0", "1"), sha256=digest)

    def to_unit(self, x: Plane) -> torch.Tensor:
        """Return points as a network's inputs: `x / scale + 1/2`."""
        return torch.tensor(x / self.scale + 0.5, dtype=torch.float32)

    def from_unit(self, x: torch.Tensor) -> Plane:
        """Return a network's inputs as points."""
        return (x.double().numpy() - 0.5) * self.scale

    def grid(self, rows: int) -> Float[np.ndarray, "rows columns 2"]:
        """Return the centres of the nearly square cells of a grid over the window, first row at the bottom."""
        left, right, bottom, top = self.extent
        columns = round(rows * (right - left) / (top - bottom))
        x = left + (right - left) * (np.arange(columns) + 0.5) / columns
        y = bottom + (top - bottom) * (np.arange(rows) + 0.5) / rows
        return np.stack(np.meshgrid(x, y), -1)


def narrow_corridor() -> Toy:
    """A bent corridor between two classes that widens from the bottom left to the top right (U, Sec. 3, Fig. 3).

    The papers do not give its numbers. Here it begins with a gap of 0.225 in the maximum norm, half their largest eps
    and several of their steps of 0.05, and ends with one of more than 1.
    """
    centre = np.array([[-1.8, -1.8], [-0.8, -0.8], [0.2, -0.3], [0.9, 0.9]])
    half = np.array([0.225 / np.sqrt(2), 0.18, 0.5, 0.8])
    return Toy("narrow-corridor", _corridor(centre, half, 0.6), (-2.4, 2.3, -2.4, 2.1))


def lms5(margin: float = 0.1, gap: float = 0.3, height: float = 1.5) -> Toy:
    """One coordinate in which a line separates the classes, and one in which they are five slabs (Shah et al. 2020,
    LMS-5; U, Sec. 3, Fig. 7): the line is `margin` away from either class, the slabs are `gap` apart.

    Given the class the two coordinates are independent, so that either alone tells the classes apart, and the
    max-margin boundary uses both. In Linf the classes are the larger of `2 margin` and `gap` apart, since points on
    either side of the line lie in different slabs.
    """
    width = (2 * height - 4 * gap) / 5
    slabs = [(-height + k * (width + gap), -height + k * (width + gap) + width) for k in range(5)]
    sides = ((-1.0, -margin), (margin, 1.0))
    first, second = (tuple(_box(*sides[c], *slab) for slab in slabs[c::2]) for c in (0, 1))
    return Toy("lms5", (first, second), (-1.1, 1.1, -1.1 * height, 1.1 * height))


def two_distance() -> Toy:
    """Two places, one where the classes nearly touch and one where they are far apart (U, App. D.2, Fig. 8)."""
    below = (_box(-1.2, -0.4, -0.15, 0.55), _box(0.3, 1.2, -1.1, -0.6))
    above = (_box(-1.2, -0.4, 0.65, 1.0), _box(0.3, 1.2, 0.3, 1.0))
    return Toy("two-distance", (below, above), (-1.35, 1.35, -1.25, 1.15))


def _box(left: float, right: float, bottom: float, top: float) -> Polygon:
    return np.array([[left, bottom], [right, bottom], [right, top], [left, top]])


def _corridor(
    centre: Polygon, half: Float[np.ndarray, " corners"], depth: float
) -> tuple[tuple[Polygon, ...], tuple[Polygon, ...]]:
    """The two sides of a corridor of half width `half` around a polyline: below it class 0, above it class 1."""
    along = np.diff(centre, axis=0)
    along = along / np.linalg.norm(along, axis=1, keepdims=True)
    normal = np.stack([-along[:, 1], along[:, 0]], 1)
    normals = np.concatenate([normal[:1], (normal[:-1] + normal[1:]) / 2, normal[-1:]])
    normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)

    def side(sign: float) -> tuple[Polygon, ...]:
        near, far = (centre + sign * (half[:, None] + length) * normals for length in (0.0, depth))
        order = slice(None, None, -int(sign))
        return tuple(np.stack([near[i], far[i], far[i + 1], near[i + 1]])[order] for i in range(len(along)))

    return side(-1.0), side(1.0)


def _uniform(support: Sequence[Polygon], n: int, generator: np.random.Generator) -> Float[np.ndarray, "n 2"]:
    """Uniform points of a union of disjoint convex polygons: a triangle by area, then a point of it."""
    triangles = np.array([(p[0], p[i], p[i + 1]) for p in support for i in range(1, len(p) - 1)])
    area = np.abs(_cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]))
    a, b, c = triangles[generator.choice(len(triangles), n, p=area / area.sum())].transpose(1, 0, 2)
    u, v = generator.random((2, n, 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    return a + u * (b - a) + v * (c - a)


def _cross(a: Float[np.ndarray, "... 2"], b: Float[np.ndarray, "... 2"]) -> Float[np.ndarray, "..."]:
    """The cross product of vectors of the plane; positive where b turns left of a."""
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _distance(x: Plane, polygon: Polygon, norm: str) -> Float[np.ndarray, "*batch"]:
    """Distance to a convex polygon: 0 to the left of every edge, else the smallest distance to an edge."""
    starts, ends = polygon, np.roll(polygon, -1, 0)
    inside = np.all([_cross(end - start, x - start) >= 0 for start, end in zip(starts, ends, strict=True)], 0)
    nearest = np.min([_to_segment(x, start, end, norm) for start, end in zip(starts, ends, strict=True)], 0)
    return np.where(inside, 0.0, nearest)


def _to_segment(
    x: Plane, start: Float[np.ndarray, " 2"], end: Float[np.ndarray, " 2"], norm: str
) -> Float[np.ndarray, "*batch"]:
    """`min ‖x - start - t (end - start)‖` over t in [0, 1].

    L2: at the foot of the perpendicular, cut to the segment. Linf: the function of t is convex and piecewise linear, so
    that its minimum is at an end or a kink: where a coordinate is zero, or the two are equal up to sign.
    """
    along, to = end - start, x - start
    if norm == "l2":
        t = np.clip(to @ along / (along @ along), 0, 1)
        return np.linalg.norm(to - t[..., None] * along, axis=-1)
    require(norm == "linf", f"norm {norm!r}: distances are exact in l2 and linf.")
    (u, v), (du, dv) = (to[..., 0], to[..., 1]), along
    kinks = [(u, du), (v, dv), (u - v, du - dv), (u + v, du + dv)]
    candidates = [np.clip(a / da, 0, 1) for a, da in kinks if da != 0] + [np.zeros_like(u), np.ones_like(u)]
    return np.min([np.maximum(np.abs(u - t * du), np.abs(v - t * dv)) for t in candidates], 0)


def _between(a: Polygon, b: Polygon, norm: str) -> float:
    """The distance between two disjoint convex polygons: that of a corner of one to the other."""
    return float(min(_distance(a, b, norm).min(), _distance(b, a, norm).min()))

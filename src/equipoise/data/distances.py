"""How far samples of one class are from those of the others, and what that says about the radius of an attack."""

import math
from dataclasses import dataclass

import torch

from equipoise.core.errors import require
from equipoise.data.dataset import Split, stratified_order

NORMS = {"linf": math.inf, "l2": 2.0, "l1": 1.0}
_CANDIDATES = 2000
_WORK = 10**9  # differences of two numbers, about a second
_CHUNK = 32
_RARE = 0.05


@dataclass(frozen=True)
class ClassDistances:
    """The distances of samples from the nearest sample of another class, in one norm."""

    norm: str
    smallest: float
    rare: float
    """The distance below which 5 % lie."""
    median: float
    samples: int
    """Number of samples whose nearest one was sought."""
    candidates: int
    """Number of samples among which it was sought."""
    nearest: tuple[int, int]
    """Indices of the two nearest samples of different classes."""

    @property
    def eps(self) -> float:
        """The radius up to which the ball of at most 5 % of the samples reaches half-way to another class; rounded down
        to two digits.
        """
        half = self.rare / 2
        if half <= 0:
            return 0.0
        digit = 10.0 ** (math.floor(math.log10(half)) - 1)
        return round(math.floor(half / digit + 1e-9) * digit, 12)


def class_distances(split: Split, norm: str, seed: int = 0) -> ClassDistances:
    """Return the distances `min_{j: y_j ≠ y_i} ‖x_i - x_j‖` of up to 1000 samples i among up to 2000 samples j, the
    first ones of a seeded stratified order; fewer where the inputs are large. Over all samples they are not larger.

    Raises `EquipoiseError` if all samples are of one class.
    """
    chosen = stratified_order(split.y.cpu(), seed)[:_CANDIDATES]
    x, y = split.x[chosen].flatten(1).float(), split.y[chosen]
    require(int(y.unique().numel()) > 1, "all samples are of one class: there is no distance between classes.")
    queries = min(len(x), max(50, min(1000, _WORK // (len(x) * x.shape[1]))))
    nearest = torch.empty(queries)
    partner = torch.empty(queries, dtype=torch.int64)
    for start in range(0, queries, _CHUNK):
        rows = slice(start, min(start + _CHUNK, queries))
        apart = torch.cdist(x[rows], x, NORMS[norm], compute_mode="donot_use_mm_for_euclid_dist")
        apart[y[rows, None] == y[None]] = math.inf
        nearest[rows], partner[rows] = apart.min(1)
    first = int(nearest.argmin())
    rare, median = torch.quantile(nearest.double(), torch.tensor([_RARE, 0.5], dtype=torch.float64)).tolist()
    pair = int(chosen[first]), int(chosen[int(partner[first])])
    return ClassDistances(norm, float(nearest[first]), rare, median, queries, len(x), pair)

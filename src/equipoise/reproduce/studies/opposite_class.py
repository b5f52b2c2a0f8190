"""How far are samples from the nearest sample of another class? (U Fig 2)

Adversarial training with radius eps assumes that no two samples of different classes have a common point within eps
(U, AT-Asm): that all of them are more than 2·eps apart. Where these distances differ a lot, an eps that satisfies the
assumption everywhere is far too small almost everywhere.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from equipoise.reproduce.studies.design import Options, ReportProgress
from equipoise.reproduce.studies.images import dataset, described
from equipoise.results.findings import Findings, Histogram, Number, Picture

EPS = {"linf": (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5), "l2": (0.5, 1.0, 1.5)}
"""Radii that U trains or tests with (Tables 1-3)."""

_ROUNDING = 1e-6  # of pixels in float32, where a distance is 2·eps exactly
_NAMES = {"l2": "L2", "linf": "Linf"}

Samples = Float[Tensor, "a d"]
Gaps = Callable[[Samples, Float[Tensor, "b d"]], Float[Tensor, "a b"]]


def run(options: Options, report_progress: ReportProgress) -> Findings:
    """Return histograms of the distances from every training sample to its nearest sample of another class, exact."""
    data = dataset(options)
    distances: dict[str, np.ndarray] = {}
    for i, norm in enumerate(_NAMES):

        def report(share: float, i: int = i, norm: str = norm) -> None:
            report_progress(f"{_NAMES[norm]} distances", (i + share) / 2)

        distances[norm] = nearest_of_another_class(data.train.x.flatten(1), data.train.y, norm, report).numpy()
    caption = (
        f"Distance from each of the {len(data.train)} training samples of {data.name} to the nearest sample of another "
        "class (U Fig 2, there for L2 on CIFAR-10)."
    )
    return Findings(
        [number for norm in _NAMES for number in _numbers(norm, distances[norm])],
        [Picture("opposite-class", caption, [_histogram(norm, distances[norm]) for norm in _NAMES], columns=2)],
        {"data": described(data), "eps": {norm: list(radii) for norm, radii in EPS.items()}},
        verdict(distances["linf"], distances["l2"]),
    )


def nearest_of_another_class(
    x: Samples, y: Int[Tensor, " a"], norm: str, report: Callable[[float], None] = lambda share: None
) -> Float[Tensor, " a"]:
    """`min_{j : y_j ≠ y_i} ‖x_i - x_j‖` for every i, exact up to the rounding of float64.

    Each pair of samples of different classes is compared once, in blocks. The nearest is found through
    `‖a‖² - 2⟨a, b⟩ + ‖b‖²` in float64 for L2, and its distance then computed from the difference itself, without
    cancellation. The work is `n²·d`: for 60,000 images of 28x28 a minute for L2 and some for Linf, on one core.
    """
    order = torch.argsort(y, stable=True)
    points = x[order].to(torch.float64 if norm == "l2" else x.dtype)
    best = torch.full((len(x),), math.inf, dtype=points.dtype)
    nearest = torch.zeros(len(x), dtype=torch.int64)
    gaps: Gaps = _squared if norm == "l2" else _chebyshev
    pairs = list(_blocks(y[order], *((1024, 4096) if norm == "l2" else (256, 1024))))
    for i, (a, b) in enumerate(pairs):
        table = gaps(points[a], points[b])
        for block, others, axis in ((a, b, 1), (b, a, 0)):
            gap, index = table.min(axis)
            closer = gap < best[block]
            best[block] = torch.where(closer, gap, best[block])
            nearest[block] = torch.where(closer, index + others.start, nearest[block])
        if i % 64 == 0:
            report(i / len(pairs))
    move = points.double() - points[nearest].double()
    exact = torch.linalg.vector_norm(move, 2 if norm == "l2" else math.inf, 1)
    return torch.empty_like(exact).index_copy_(0, order, exact)


def _blocks(y: Int[Tensor, " n"], rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """The pairs of different classes among sorted labels as rectangles: a block of one class, and of all later ones."""
    n, ends = len(y), torch.bincount(y).cumsum(0).tolist()
    for start, end in zip([0, *ends], ends, strict=False):
        for i in range(start, end, rows):
            for j in range(end, n, columns):
                yield slice(i, min(i + rows, end)), slice(j, min(j + columns, n))


def _squared(a: Samples, b: Float[Tensor, "b d"]) -> Float[Tensor, "a b"]:
    return torch.addmm((a**2).sum(1)[:, None] + (b**2).sum(1), a, b.T, alpha=-2)


def _chebyshev(a: Samples, b: Float[Tensor, "b d"]) -> Float[Tensor, "a b"]:
    # Coordinate by coordinate in a block that fits the cache: three times as fast as torch.cdist.
    largest, gap = a.new_zeros(len(a), len(b)), a.new_empty(len(a), len(b))
    for p, q in zip(a.T.contiguous(), b.T.contiguous(), strict=True):
        torch.sub(p[:, None], q, out=gap)
        torch.maximum(largest, gap.abs_(), out=largest)
    return largest


def _numbers(norm: str, distance: np.ndarray) -> Iterator[Number]:
    name, unit = _NAMES[norm], "dataset"
    for label, share in (("minimum", 0), ("lower quartile", 0.25), ("median", 0.5), ("upper quartile", 0.75)):
        yield Number(
            f"{name} distance to the nearest sample of another class, {label}",
            [float(np.quantile(distance, share))],
            unit,
        )
    for eps in EPS[norm]:
        yield Number(
            f"samples with one of another class within 2·eps, {name}, eps {eps:g}",
            [float((distance <= 2 * eps + _ROUNDING).mean())],
            unit,
            paper="AT-Asm is violated there (U Sec. 1 and 3)",
            percent=True,
        )


def _histogram(norm: str, distance: np.ndarray) -> Histogram:
    edges = np.linspace(0, float(distance.max()) * 1.001 or 1.0, 41)
    counts = np.histogram(distance, edges)[0]
    marks, end = [], edges[-1]
    for eps in reversed(EPS[norm]):  # those whose names do not overlap, the largest first
        if 2 * eps <= end:
            marks.append(eps)
            end = 2 * eps - 0.15 * edges[-1]
    return Histogram(
        f"{_NAMES[norm]}: {len(distance)} samples",
        edges,
        {"nearest sample of another class": counts},
        f"{_NAMES[norm]} distance (lines: twice eps)",
        {f"eps {eps:g}": 2 * eps for eps in marks},
    )


def verdict(linf: np.ndarray, l2: np.ndarray) -> str:
    """Say how much an eps that satisfies AT-Asm everywhere is too small for most samples; a factor of 2 counts as
    different.
    """
    smallest, median = np.quantile(linf, [0, 0.5]).tolist()
    low, high = np.quantile(l2, [0.05, 0.95])
    spread = high / max(low, 1e-12)
    facts = (
        f"no eps above {smallest / 2:.3g} (Linf) satisfies AT-Asm everywhere, where half of the samples would allow "
        f"{median / 2:.3g}; in L2 the middle 90 % of the distances span a factor of {spread:.2g}"
    )
    if smallest == 0 or median / smallest >= 2 or spread >= 2:
        return f"As in the paper, the distances differ between regions: {facts}."
    return f"The distances differ by less than a factor of 2 here: {facts}."

"""Signs of masked gradients: does a model withstand attacks because it is robust, or because they see no way?

Each sign compares, sample by sample, what two attacks broke, or counts what should not be there. It is raised by an
exact test of a proportion against the share `slack` that honest models show too, and all tests of a verdict share one
level by Holm's method, so that an honest model is accused with probability `level` at most. Of n samples let `more`
fall to the second attack alone and `less` to the first alone; then the second gains if both of these are improbable:

    more than that share falls to the second alone        P(Bin(n, slack) >= more)
    and more than fall to the first alone (McNemar)       P(Bin(more + less, 1/2) >= more)

Either may be so by chance where attacks find now these samples, now others; to demand both keeps the level.

(R, Sec. 5.2 and App. C, names most of these; Athalye et al. 2018 and Carlini et al. 2019 the rest.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float

from equipoise.core.errors import require
from equipoise.results.masking import Sign
from equipoise.results.statistics import binomial_tail, mcnemar, wilson

LEVEL = 0.05
"""Probability with which an honest model is accused."""
FEW, SOME, MANY, HALF = 0.01, 0.05, 0.2, 0.5
"""Shares that are honest: what rounding or a finite number of steps explains, what restarts add, how far one loss may
lag behind another (cross-entropy behind the margin: up to 15 % on honestly trained models), and on how many samples
curvature and kinks may bend a loss within a finite step (up to 30 % behind max-pooling)."""

Broken = Bool[np.ndarray, " samples"]
Errors = Float[np.ndarray, " samples"]


def gained(name: str, first: tuple[str, Broken], second: tuple[str, Broken], source: str, slack: float = SOME) -> Sign:
    """Whether more than a share `slack` of the samples falls to the second attack alone, and more than to the first
    alone: the larger p-value of the two tests. Raises `EquipoiseError` for lists of different lengths.
    """
    (a, before), (b, after) = first, second
    n, more, less = _apart(before, after)
    return Sign(
        name,
        f"of {n} samples {more} fall only to {b}, {less} only to {a}",
        f"more than {slack:.0%}, and more than the other way round",
        max(binomial_tail(more, n, slack), mcnemar(more, less)),
        source,
        interval=_interval(more, n),
    )


def differ(name: str, one: tuple[str, Broken], other: tuple[str, Broken], source: str, slack: float = SOME) -> Sign:
    """Whether either of two attacks gains so much on the other: the clearer of the two, corrected for the choice."""
    return _clearest([gained(name, one, other, source, slack), gained(name, other, one, source, slack)])


def beaten(name: str, first: tuple[str, Broken], second: tuple[str, Broken], source: str) -> Sign:
    """Whether the second attack, which knows less, breaks more than the first: an exact sign test on the samples that
    only one of them breaks.
    """
    (a, before), (b, after) = first, second
    n, more, less = _apart(before, after)
    return Sign(
        name,
        f"of {n} samples {more} fall only to {b}, {less} only to {a}",
        "more than half of the samples that only one of them breaks",
        mcnemar(more, less) if more > less else 1.0,
        source,
        interval=_interval(more, more + less),
    )


def present(name: str, what: str, found: Broken, source: str, slack: float = FEW) -> Sign:
    """Whether more than a share `slack` of the samples shows something."""
    n, seen = len(found), int(found.sum())
    return Sign(
        name,
        f"{what}: {seen} of {n} samples",
        f"more than {slack:.0%}",
        binomial_tail(seen, n, slack),
        source,
        interval=_interval(seen, n),
    )


def misleading(name: str, along: Errors, around: Errors, source: str, error: float = 0.5, slack: float = HALF) -> Sign:
    """Whether on more than a share `slack` of the samples the gradient misses finite differences by more than `error`,
    along itself or along random signs: the clearer of the two, corrected for the choice.
    """
    return _clearest(
        [
            present(
                name,
                f"the gradient misses finite differences {where} by more than {error:.0%}",
                errors > error,
                source,
                slack,
            )
            for where, errors in (("along itself in tiny steps", along), ("along random signs", around))
        ]
    )


def rising(name: str, by_eps: Mapping[float, Broken], source: str, slack: float = SOME) -> Sign:
    """Whether a larger ball breaks fewer samples, for the pair of neighbouring radii where that shows most."""
    radii = sorted(by_eps)
    require(len(radii) >= 2, f"a curve needs at least 2 radii, got {len(radii)}.")
    balls = [(f"eps {radius:.3g}", by_eps[radius]) for radius in radii]
    return _clearest([gained(name, large, small, source, slack) for small, large in pairwise(balls)])


def decided(signs: Sequence[Sign], level: float = LEVEL) -> list[Sign]:
    """The signs with those raised that Holm's step-down method raises at this level (Holm 1979), and those that are
    facts, without a p-value.
    """
    tested = sorted((p, i) for i, sign in enumerate(signs) if (p := sign.p) is not None)
    raised = {i for i, sign in enumerate(signs) if sign.p is None}
    for rank, (p, i) in enumerate(tested):
        if p > level / (len(tested) - rank):
            break
        raised.add(i)
    return [replace(sign, raised=i in raised) for i, sign in enumerate(signs)]


def _clearest(signs: Sequence[Sign]) -> Sign:
    """The sign of smallest p, with Bonferroni's correction for having looked for it."""
    p, place = min((1.0 if sign.p is None else sign.p, i) for i, sign in enumerate(signs))
    return replace(signs[place], p=min(1.0, p * len(signs)))


def _interval(count: int, n: int) -> tuple[float, float] | None:
    return wilson(count, n) if n else None


def _apart(first: Broken, second: Broken) -> tuple[int, int, int]:
    """How many samples there are, how many only the second breaks, and how many only the first."""
    require(
        len(first) == len(second),
        f"outcomes of {len(first)} and of {len(second)} samples cannot be paired: give those of the same samples.",
    )
    return len(first), int((second & ~first).sum()), int((first & ~second).sum())

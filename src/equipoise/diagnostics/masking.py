"""Signs of masked gradients: does a model withstand attacks because it is robust, or because they see no way?

Each sign compares, sample by sample, what two attacks broke, or counts what should not be there. It is raised by an
exact test of a proportion against the share `slack` that honest models show too, and all tests of a verdict share one
level by Holm's method, so that an honest model is accused with probability `level` at most.

    more than that share of samples falls to the second attack and not to the first:   P(Bin(n, slack) >= gained - lost)

(R, Sec. 5.2 and App. C, names most of these; Athalye et al. 2018 and Carlini et al. 2019 the rest.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from jaxtyping import Bool
from scipy.stats import binomtest

from equipoise.diagnostics.curves import mcnemar
from equipoise.errors import require
from equipoise.verdicts import Sign

LEVEL = 0.05
"""Probability with which an honest model is accused."""
FEW, SOME, MANY = 0.01, 0.05, 0.2
"""Shares that are honest: what rounding or a finite number of steps explains, what restarts add, and how far one loss
may lag behind another (cross-entropy behind the margin: up to 15 % on honestly trained models)."""

Broken = Bool[np.ndarray, " samples"]


def gained(name: str, first: tuple[str, Broken], second: tuple[str, Broken], source: str, slack: float = SOME) -> Sign:
    """Whether the second attack breaks more than a share `slack` of the samples beyond the first, net of what the first
    breaks alone. Raises `EquipoiseError` for lists of different lengths.
    """
    (a, before), (b, after) = first, second
    _same(before, after)
    n, more, less = len(before), int((after & ~before).sum()), int((before & ~after).sum())
    return Sign(
        name,
        f"of {n} samples {b} breaks {more} that {a} does not, and {less} the other way round",
        f"a net gain of more than {slack:.0%} of the samples",
        _tail(more - less, n, slack),
        source,
    )


def beaten(name: str, first: tuple[str, Broken], second: tuple[str, Broken], source: str) -> Sign:
    """Whether the second attack, which knows less, breaks more than the first: an exact sign test on the samples that
    only one of them breaks.
    """
    (a, before), (b, after) = first, second
    _same(before, after)
    more, less = int((after & ~before).sum()), int((before & ~after).sum())
    p = mcnemar(more, less) if more > less else 1.0
    figure = f"{b} alone breaks {more} of {len(before)} samples, {a} alone {less}"
    return Sign(name, figure, "as many by the weaker alone as by the stronger alone", p, source)


def present(name: str, what: str, found: Broken, source: str, slack: float = FEW) -> Sign:
    """Whether more than a share `slack` of the samples shows something."""
    n, seen = len(found), int(found.sum())
    return Sign(name, f"{what}: {seen} of {n} samples", f"more than {slack:.0%}", _tail(seen, n, slack), source)


def rising(name: str, by_eps: Mapping[float, Broken], source: str, slack: float = SOME) -> Sign:
    """Whether a larger ball breaks fewer samples, for the pair of neighbouring radii where that shows most."""
    radii = sorted(by_eps)
    require(len(radii) >= 2, f"a curve needs at least 2 radii, got {len(radii)}.")
    signs = []
    for low, high in pairwise(radii):
        small, large = (f"eps {high:.3g}", by_eps[high]), (f"eps {low:.3g}", by_eps[low])
        signs.append(gained(name, small, large, source, slack))
    worst = min(signs, key=lambda sign: sign.p)
    return replace(worst, p=min(1.0, worst.p * len(signs)))


def decided(signs: Sequence[Sign], level: float = LEVEL) -> list[Sign]:
    """The signs with those raised that Holm's step-down method raises at this level (Holm 1979)."""
    order = sorted(range(len(signs)), key=lambda i: signs[i].p)
    raised: set[int] = set()
    for rank, i in enumerate(order):
        if signs[i].p > level / (len(signs) - rank):
            break
        raised.add(i)
    return [replace(sign, raised=i in raised) for i, sign in enumerate(signs)]


def _tail(count: int, n: int, share: float) -> float:
    """`P(Bin(n, share) >= count)`; 1 where there is nothing to test."""
    return float(binomtest(count, n, share, "greater").pvalue) if n and count > 0 else 1.0


def _same(first: Broken, second: Broken) -> None:
    require(
        len(first) == len(second),
        f"outcomes of {len(first)} and of {len(second)} samples cannot be paired: give those of the same samples.",
    )

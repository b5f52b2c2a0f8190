"""Exact tests for indicators of gradient masking: does a model withstand attacks because it is robust, or because its
gradients mislead them?

Each test compares, sample by sample, which of two attacks succeeded, or counts samples that should not occur: an exact
test of a proportion against the share `tolerance` that unmasked models show too. Holm's correction keeps the
family-wise false-positive rate of all tests below `FALSE_POSITIVE_RATE`. Of n samples let `more` be those that only the
second attack fools, and `less` those that only the first one does; the second attack gains if both are improbable:

    more than that share is fooled by the second alone         P(Bin(n, tolerance) >= more)
    and more than by the first alone (McNemar)                 P(Bin(more + less, 1/2) >= more)

Either may happen by chance where equally strong attacks succeed on different samples; requiring both keeps the rate.

(R, Sec. 5.2 and App. C, names most of these; Athalye et al. 2018 and Carlini et al. 2019 the rest.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float

from equipoise.core.deprecation import renamed_names
from equipoise.core.errors import require
from equipoise.results.masking import MaskingTest
from equipoise.results.statistics import binomial_tail, mcnemar, wilson

FALSE_POSITIVE_RATE = 0.05
"""Largest probability that any test is raised for an unmasked model."""
FEW, SOME, MANY, HALF = 0.01, 0.05, 0.2, 0.5
"""Shares of samples that unmasked models show: what rounding or a finite number of steps explains, what restarts add,
how far one loss may lag behind another (cross-entropy behind the margin: up to 15 % on honestly trained models), and on
how many samples curvature and kinks may bend a loss within a finite step (up to 30 % behind max-pooling)."""

Success = Bool[np.ndarray, " samples"]
Errors = Float[np.ndarray, " samples"]


def gain_test(
    name: str, first: tuple[str, Success], second: tuple[str, Success], source: str, tolerance: float = SOME
) -> MaskingTest:
    """Test whether more than a share `tolerance` of the samples is fooled by the second attack alone, and more than by
    the first alone: the larger p-value of the two tests. Raises `EquipoiseError` for lists of different lengths.
    """
    n, more, less, figure = _count_discordant(first, second)
    return MaskingTest(
        name,
        figure,
        f"more than {tolerance:.0%}, and more than the other way round",
        max(binomial_tail(more, n, tolerance), mcnemar(more, less)),
        source,
        interval=_interval(more, n),
    )


def difference_test(
    name: str, first: tuple[str, Success], second: tuple[str, Success], source: str, tolerance: float = SOME
) -> MaskingTest:
    """Test whether either attack gains on the other: the smaller p-value, corrected for the choice."""
    pairs = ((first, second), (second, first))
    return _smallest_p([gain_test(name, before, after, source, tolerance) for before, after in pairs])


def weaker_attack_test(name: str, first: tuple[str, Success], second: tuple[str, Success], source: str) -> MaskingTest:
    """Test whether the second attack, which knows less, fools more samples than the first: an exact sign test on the
    samples that only one of them fools.
    """
    _, more, less, figure = _count_discordant(first, second)
    return MaskingTest(
        name,
        figure,
        "more than half of the samples that only one of them breaks",
        mcnemar(more, less) if more > less else 1.0,
        source,
        interval=_interval(more, more + less),
    )


def share_test(name: str, description: str, observed: Success, source: str, tolerance: float = FEW) -> MaskingTest:
    """Test whether something is observed on more than a share `tolerance` of the samples."""
    n, count = len(observed), int(observed.sum())
    return MaskingTest(
        name,
        f"{description}: {count} of {n} samples",
        f"more than {tolerance:.0%}",
        binomial_tail(count, n, tolerance),
        source,
        interval=_interval(count, n),
    )


def gradient_test(
    name: str, along: Errors, around: Errors, source: str, error: float = 0.5, tolerance: float = HALF
) -> MaskingTest:
    """Test whether on more than a share `tolerance` of the samples the gradient misses finite differences by more than
    `error`, along itself or along random signs: the smaller p-value, corrected for the choice.
    """
    directions = (("along itself in tiny steps", along), ("along random signs", around))
    return _smallest_p(
        [
            share_test(
                name,
                f"the gradient misses finite differences {direction} by more than {error:.0%}",
                errors > error,
                source,
                tolerance,
            )
            for direction, errors in directions
        ]
    )


def monotonicity_test(name: str, by_eps: Mapping[float, Success], source: str, tolerance: float = SOME) -> MaskingTest:
    """Test whether a larger ball has fewer adversarial examples, for the neighbouring radii where that shows most."""
    radii = sorted(by_eps)
    require(len(radii) >= 2, f"a curve needs at least 2 radii, got {len(radii)}.")
    balls = [(f"eps {radius:.3g}", by_eps[radius]) for radius in radii]
    return _smallest_p([gain_test(name, large, small, source, tolerance) for small, large in pairwise(balls)])


def holm_corrected(tests: Sequence[MaskingTest], false_positive_rate: float = FALSE_POSITIVE_RATE) -> list[MaskingTest]:
    """Return the tests with `raised` set by Holm's step-down method (Holm 1979), and for observed indicators, which
    have no p-value.
    """
    tested = sorted((p, i) for i, test in enumerate(tests) if (p := test.p) is not None)
    raised = {i for i, test in enumerate(tests) if test.p is None}
    for rank, (p, i) in enumerate(tested):
        if p > false_positive_rate / (len(tested) - rank):
            break
        raised.add(i)
    return [replace(test, raised=i in raised) for i, test in enumerate(tests)]


def _smallest_p(tests: Sequence[MaskingTest]) -> MaskingTest:
    """The test of smallest p, with Bonferroni's correction for having chosen it."""
    p, chosen = min((1.0 if test.p is None else test.p, i) for i, test in enumerate(tests))
    return replace(tests[chosen], p=min(1.0, p * len(tests)))


def _interval(count: int, n: int) -> tuple[float, float] | None:
    return wilson(count, n) if n else None


def _count_discordant(first: tuple[str, Success], second: tuple[str, Success]) -> tuple[int, int, int, str]:
    """The number of samples, of those that only the second attack fools, of those that only the first one does, and all
    of it in words.
    """
    (name, success), (other_name, other) = first, second
    n, m = len(success), len(other)
    require(n == m, f"outcomes of {n} and of {m} samples cannot be paired: give those of the same samples.")
    more, less = int((other & ~success).sum()), int((success & ~other).sum())
    return n, more, less, f"of {n} samples {more} fall only to {other_name}, {less} only to {name}"


__getattr__ = renamed_names(
    __name__,
    {
        "beaten": "weaker_attack_test",
        "decided": "holm_corrected",
        "differ": "difference_test",
        "gained": "gain_test",
        "misleading": "gradient_test",
        "present": "share_test",
        "rising": "monotonicity_test",
    },
)

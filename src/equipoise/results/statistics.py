"""Statistics of counts: the confidence interval of a proportion, and exact tests. No torch."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, Literal

from equipoise.core.errors import require


def wilson(successes: float, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson score interval of a proportion: `(p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)` (Wilson 1927).

    `z` is the normal quantile, 1.96 for 95 %. The successes may be a sum of shares in [0, 1]: its variance is at most
    that of a count, so that the interval is conservative. Raises `EquipoiseError` for `n < 1` or `successes` outside
    `[0, n]`.
    """
    require(n >= 1, f"an interval needs at least one sample, got n = {n}.")
    require(0 <= successes <= n, f"successes = {successes} is not between 0 and n = {n}.")
    p = successes / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)


def binomial_tail(count: int, n: int, share: float = 0.5) -> float:
    """Return the exact p-value of `count` or more outcomes among `n` that happen with probability `share`:
    `P(Bin(n, share) >= count)`; 1 where there is nothing to test.
    """
    return float(_special().bdtrc(count - 1, n, share)) if count > 0 else 1.0


def clopper_pearson(successes: int, n: int) -> tuple[float, float]:
    """Return the exact 95 % interval of a proportion (Clopper & Pearson 1934)."""
    return least_share(successes, n, 0.025), 1 - least_share(n - successes, n, 0.025)


def least_share(successes: int, n: int, alpha: float) -> float:
    """Return the exact lower confidence bound of a proportion, at level `1 - alpha` (Clopper & Pearson 1934)."""
    return float(_special().betaincinv(successes, n - successes + 1, alpha)) if successes > 0 else 0.0


def student(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's distribution, with at least one degree of freedom."""
    return float(_special().stdtrit(max(degrees, 1), 0.975))


def mean_of_seeds(shares: Sequence[float], n: int) -> tuple[float, float]:
    """Return the 95 % interval of the mean `m` of the shares that two or more trainings reach on the same `n` samples:
    `m - sqrt(d² + (m - l)²)` to `m + sqrt(d² + (u - m)²)`.

    `d = t·s/sqrt(k)` is the half width of Student's interval over the `k` seeds, which holds the noise of training, and
    `(l, u)` the Wilson interval of `m` for `n` samples, which holds that of the choice of samples; both are joined as
    independent (Zou & Donner 2008). Conservative, as `s` holds a part of the noise of the samples already.
    """
    mean = fmean(shares)
    half = student(len(shares) - 1) * stdev(shares) / math.sqrt(len(shares))
    low, high = (math.hypot(half, end - mean) for end in wilson(mean * n, n))
    return max(mean - low, 0.0), min(mean + high, 1.0)


def _special() -> Any:
    """SciPy's special functions, whose import takes a tenth of a second that most commands can save."""
    from scipy import special

    return special


def mcnemar(only_first: int, only_second: int, alternative: Literal["greater", "two-sided"] = "greater") -> float:
    """Return the exact p-value of paired outcomes (McNemar 1947): of the samples on which the two differ, `only_first`
    succeed in the first only; by chance half would. 1 if they never differ.
    """
    n = only_first + only_second
    if alternative == "greater":
        return binomial_tail(only_first, n)
    return min(1.0, 2 * binomial_tail(max(only_first, only_second), n))

"""Intervals and exact tests against scipy's, which are slower to import than all of ours."""

from statistics import mean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, t

from equipoise.core.errors import EquipoiseError
from equipoise.results.statistics import binomial_tail, mcnemar, mean_of_seeds, wilson


@given(st.data())
def test_wilson_matches_scipy(data):
    n = data.draw(st.integers(1, 20_000))
    k = data.draw(st.integers(0, n))
    expected = binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(
    ("k", "n", "message"), [(0, 0, "at least one sample"), (-1, 5, "between 0 and n"), (6, 5, "between 0 and n")]
)
def test_wilson_refuses(k, n, message):
    with pytest.raises(EquipoiseError, match=message):
        wilson(k, n)


@given(st.integers(0, 2000), st.integers(0, 2000), st.floats(1e-4, 1))
def test_the_tail_of_a_binomial_is_scipys(a, b, share):
    count, n = min(a, b), max(a, b)
    assert binomial_tail(count, n, share) == pytest.approx(binom.sf(count - 1, n, share), rel=1e-9, abs=1e-300)


@given(st.integers(0, 500), st.integers(0, 500))
def test_pairs_are_judged_as_by_scipy(first, second):
    for alternative in ("greater", "two-sided"):
        p = binomtest(first, first + second, alternative=alternative).pvalue if first + second else 1.0
        assert mcnemar(first, second, alternative) == pytest.approx(p, rel=1e-9)


def test_pairs_by_hand():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(3, 1) == pytest.approx(5 / 16)
    assert mcnemar(3, 1, "two-sided") == pytest.approx(10 / 16)


def test_the_interval_of_a_mean_holds_seeds_and_samples():
    equal = binomtest(70, 100).proportion_ci(method="wilson")
    assert mean_of_seeds([0.7, 0.7, 0.7], 100) == pytest.approx((equal.low, equal.high))
    shares = [0.6, 0.62, 0.67]
    assert mean_of_seeds(shares, 10**12) == pytest.approx(t.interval(0.95, 2, mean(shares), stdev(shares) / 3**0.5))
    assert mean_of_seeds([0.0, 1.0], 10) == (0.0, 1.0)

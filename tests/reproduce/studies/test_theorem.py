"""The theorem's simulation against what its equations say in closed form."""

import numpy as np
import pytest

from equipoise.reproduce.studies import STUDIES, Options
from equipoise.reproduce.studies.theorem import Setting, algorithm, contraction, model, verdict
from equipoise.results.findings import Number

pytestmark = pytest.mark.unchecked

ASK = Options(quick=True)


def test_one_step_of_the_model_has_the_mean_and_variance_of_the_proof() -> None:
    setting = Setting(chains=200_000, steps=1, deviation=0.3, start=0.6, means=(-1.0, 2.0))
    rate, w, (m1, m2) = 0.4, 0.6, setting.means
    after = model(setting, rate, seed=1)[:, 1]
    mean = (1 - rate / 2) * w + rate / 2 * (m1 + m2) / 2
    # For u = a b and v = (1 - a) g with a, b, g uniform: E u² = 1/9, E uv = 1/24; the move is u (x1 - w) + v (x2 - w).
    d1, d2, s2 = m1 - w, m2 - w, setting.deviation**2
    second = ((d1**2 + s2) + (d2**2 + s2)) / 9 + 2 * d1 * d2 / 24
    variance = (rate**2) * (second - ((d1 + d2) / 4) ** 2)
    # w' = w + rate (u (x1 - w) + v (x2 - w)), for w~ - w = a b (x1 - w) + (1 - a) g (x2 - w).
    assert abs(after.mean() - mean) < 4 * np.sqrt(variance / len(after))
    assert after.var() == pytest.approx(variance, rel=0.02)


def test_contraction_is_that_of_a_geometric_sequence() -> None:
    assert contraction(0.7 * 0.83 ** np.arange(20)) == pytest.approx(0.83)
    assert contraction(-(0.95 ** np.arange(5.0))) == pytest.approx(0.95)


def test_pgd_moves_the_first_boundary_by_the_oracle_alone_and_swaps_the_sides_beyond_half_the_distance() -> None:
    setting = Setting(few=40, steps=4, deviation=0.01)
    for radius, expected in ((0.8, [0, 0, 0, 0]), (1.3, [1, 0, 1, 0])):
        path, swapped = algorithm("PGD", setting, 0.2, radius, seed=0)
        assert (swapped == np.array(expected, bool)).all()
        # The points are the means moved by eps towards each other; the oracle lies between them.
        inside = (path[:, 1] - 0.8 * path[:, 0]) / 0.2
        assert (np.abs(inside) <= abs(1 - radius) + 0.05).all() and inside.std() > 0.3 * abs(1 - radius)


def test_udp_swaps_the_sides_only_where_both_points_have_reached_the_boundary() -> None:
    setting = Setting(few=60, steps=6, start=0.0)
    # Steps of max(eps, 1) / 20 arrive after 20 / max(eps, 1) of the up to 20; then either order is as likely.
    for eps, arrived in ((0.9, 0.1), (3.0, 0.67)):
        swapped = algorithm("UDP", setting, 0.2, eps, seed=0)[1]
        assert swapped.mean() < arrived**2 / 2 + 0.09


def test_a_negative_seed_is_another_seed() -> None:
    setting = Setting(few=20, steps=3)
    assert not np.array_equal(*(algorithm("PGD", setting, 0.2, 1.0, seed)[0] for seed in (1, -1)))


def test_the_verdict_says_what_was_simulated_and_what_one_repeat_cannot_say() -> None:
    def said(*algorithm_1: float) -> str:
        found = [Number("model", [1 - rate / 2 + d for d in (-0.01, 0.01)]) for rate in (0.05, 0.1, 0.2)]
        off = Number("model", [0.7, 0.701])
        return verdict(
            [*found, off, Number("Algorithm 1", algorithm_1), *(Number("swaps", [s]) for s in (0, 0.5, 0.1))]
        )

    near, far, alone = said(0.9, 0.91), said(0.9049, 0.9051), said(0.9)
    assert "the proof's own equations" in near and "at 3 of 4 learning rates" in near
    assert "Algorithm 1 itself" in near and "which holds the predicted 0.9" in near
    assert "contracts by 0.9050" in far and "which leaves out the predicted 0.9" in far
    assert alone.startswith("One repeat has no interval.") and "of 4" not in alone


def test_the_study_measures_the_predicted_contraction() -> None:
    told: list[float] = []
    findings = STUDIES["theorem"].run(ASK, lambda what, share: told.append(share))
    assert told == sorted(told) and told[0] >= 0 and told[-1] < 1
    for rate, number in zip((0.05, 0.1, 0.2, 0.4), findings.numbers, strict=False):
        assert len(number.values) == 2 and "U Theorem 4.1" in number.paper
        assert number.mean == pytest.approx(1 - rate / 2, abs=0.03)
    assert findings.numbers[-2].mean == pytest.approx(0.5, abs=0.1)
    again = STUDIES["theorem"].run(ASK, lambda *_: None)
    assert [n.values for n in again.numbers] == [n.values for n in findings.numbers]

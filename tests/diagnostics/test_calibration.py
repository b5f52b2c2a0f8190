"""Calibration against loops, scikit-learn and known truths; intervals against how often they cover."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import brier_score_loss, log_loss
from torch import nn

from equipoise.core.errors import EquipoiseError
from equipoise.diagnostics.calibration import (
    auroc,
    binned,
    calibration,
    calibration_error,
    calibration_of,
    error_by_chance,
    ood_auroc,
)
from equipoise.models import Ensemble
from equipoise.nets import MLP


def predictions(n: int = 500, classes: int = 4, seed: int = 0):
    rng = np.random.default_rng(seed)
    z = 2 * rng.normal(size=(n, classes))
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    return log_p, np.array([rng.choice(classes, p=np.exp(row) / np.exp(row).sum()) for row in log_p])


def looped(confidence, correct, edges):
    """ECE as Guo et al. write it, bin by bin."""
    total = 0.0
    for low, high in pairwise(edges):
        rows = [i for i, p in enumerate(confidence) if low < p <= high]
        if rows:
            accuracy = sum(bool(correct[i]) for i in rows) / len(rows)
            total += len(rows) / len(confidence) * abs(accuracy - sum(confidence[i] for i in rows) / len(rows))
    return total


def test_the_error_is_that_of_a_loop():
    log_p, y = predictions()
    found = calibration_of(log_p, y, bins=10)
    p = np.exp(log_p).max(1)
    right = np.exp(log_p).argmax(1) == y
    assert found.ece.value == pytest.approx(looped(p, right, [b / 10 for b in range(11)]), rel=1e-12)
    inner = np.sort(p)[[50 * b - 1 for b in range(1, 10)]]  # 500 samples, 50 in each bin
    assert found.ece_equal_mass.value == pytest.approx(looped(p, right, [0, *inner, 1]), rel=1e-12)
    assert set(binned(p, right, 10, "equal_mass").count.tolist()) == {50}


def test_log_likelihood_and_brier_score_are_scikit_learns():
    log_p, y = predictions()
    found = calibration_of(log_p, y)
    assert found.nll.mean == pytest.approx(log_loss(y, np.exp(log_p)), rel=1e-9)
    assert found.brier.mean == pytest.approx(brier_score_loss(y, np.exp(log_p), scale_by_half=False), rel=1e-9)


def test_confidence_on_an_edge_belongs_to_the_bin_below():
    found = binned(np.array([0.5, 0.5 + 1e-9, 1.0, 0.25]), np.array([True, False, True, True]), 2)
    assert found.count.tolist() == [2, 2]
    assert found.accuracy.tolist() == [1.0, 0.5]


def test_a_model_that_is_always_sure_and_half_right():
    log_p = np.log(np.array([[1 - 1e-12, 1e-12]] * 10))
    found = calibration_of(log_p, np.array([0, 1] * 5))
    assert found.ece.value == pytest.approx(0.5, abs=1e-9)
    assert found.accuracy == 0.5
    assert found.brier.mean == pytest.approx(1.0, abs=1e-9)
    assert found.nll.mean == pytest.approx(-math.log(1e-12) / 2, rel=1e-6)
    assert found.ece_by_chance < 1e-5


def test_intervals_cover_what_is_true_of_the_population():
    """Confidence U(.5, 1), accuracy confidence - .15: the calibration error is .15 in every bin."""
    rng, hits = np.random.default_rng(1), 0
    for trial in range(100):
        p = rng.uniform(0.5, 1, 400)
        found = calibration_error(p, rng.uniform(size=400) < p - 0.15, 10, seed=trial)
        hits += found.low <= 0.15 <= found.high
    assert 0.90 <= hits / 100 <= 0.99


def test_chance_alone_makes_the_expected_error():
    rng = np.random.default_rng(2)
    p = rng.uniform(0.5, 1, 300)
    seen = [binned(p, rng.uniform(size=300) < p, 15).error for _ in range(400)]
    assert error_by_chance(p, 15) == pytest.approx(np.mean(seen), rel=0.03)
    found = calibration_error(p, rng.uniform(size=300) < p)
    assert found.low == 0.0


def test_a_calibration_is_repeatable():
    log_p, y = predictions(100)
    y = (y + (np.arange(100) % 3 == 0)) % 4  # wrong more often than it thinks, so that the interval is not cut at 0
    again = [calibration_of(log_p, y, seed=s).ece for s in (3, 3, 4)]
    assert again[0] == again[1]
    assert again[0].low != again[2].low


def test_calibration_of_a_model_is_that_of_its_mean_probabilities():
    members = [MLP((6,), 3, (8,)) for _ in range(3)]
    x, y = torch.rand(40, 6), torch.arange(40) % 3
    with torch.no_grad():
        p = torch.stack([m(x).softmax(-1) for m in members]).mean(0)
    found = calibration(Ensemble(members), x, y, batch_size=7)
    assert found.confidence == pytest.approx(p.amax(1).numpy(), rel=1e-5)
    assert found.nll.values == pytest.approx((-p.log().gather(1, y[:, None])[:, 0]).tolist(), rel=1e-4)
    assert found.correct.tolist() == (p.argmax(1) == y).tolist()


def test_panels_hold_every_sample():
    log_p, y = predictions(300)
    found = calibration_of(log_p, y, bins=8)
    shown = found.histogram()
    assert int(shown.counts["right"].sum()) == int(found.correct.sum())
    assert int(shown.counts["wrong"].sum()) == int((~found.correct).sum())
    lines = found.reliability()
    model, perfect = lines.series
    assert model.low is not None and model.high is not None
    assert ((model.low <= model.y) & (model.y <= model.high)).all()
    assert (perfect.y == lines.x).all() and (np.diff(lines.x) > 0).all()


def delong(negative, positive):
    """DeLong's variance as defined, over all pairs."""
    psi = np.array([[(p > q) + 0.5 * (p == q) for q in negative] for p in positive])
    return psi.mean(), psi.mean(1).var(ddof=1) / len(positive) + psi.mean(0).var(ddof=1) / len(negative)


def test_the_interval_is_delongs():
    rng = np.random.default_rng(3)
    negative, positive = np.round(rng.normal(size=40), 1), np.round(rng.normal(1, 1, 25), 1)  # rounded: with ties
    area, variance = delong(negative, positive)
    found = auroc(negative, positive)
    assert found.value == pytest.approx(area, rel=1e-12)
    logit = lambda p: math.log(p / (1 - p))  # noqa: E731
    half = 1.959963984540054 * math.sqrt(variance) / (area * (1 - area))
    assert logit(found.low) == pytest.approx(logit(area) - half, rel=1e-9)
    assert logit(found.high) == pytest.approx(logit(area) + half, rel=1e-9)


def test_the_interval_of_the_area_covers():
    rng, truth, hits = np.random.default_rng(4), norm.cdf(1.5 / math.sqrt(2)), 0
    for _ in range(300):
        found = auroc(rng.normal(size=40), rng.normal(1.5, 1, 30))
        hits += found.low <= truth <= found.high
    assert 0.92 <= hits / 300 <= 0.99


def test_perfect_separation_is_not_certainty():
    found = auroc(np.arange(20.0), np.arange(100.0, 110))
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 10))
    back = auroc(np.arange(100.0, 110), np.arange(20.0))
    assert (back.value, back.low) == (0.0, 0.0)
    assert back.high == pytest.approx(1 - 0.025 ** (1 / 10))


def test_inputs_from_elsewhere():
    """Logits ±10x: near 0 the entropy is high, so points near 0 are the strange ones."""

    class Sure(nn.Module):
        def forward(self, x):
            return torch.cat([10 * x, -10 * x], 1)

    known, strange = torch.tensor([[1.0], [-0.9], [0.8], [0.05]]), torch.tensor([[0.0], [0.1], [-0.02]])
    found = ood_auroc(Sure(), known, strange, batch_size=2)
    assert found.value == pytest.approx(11 / 12)  # |.1| is surer than |.05|: one pair of twelve is out of order
    for name in ("least_confidence", "margin"):
        assert ood_auroc(Sure(), known, strange, name).value == pytest.approx(11 / 12)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: ood_auroc(m, x, x, "surprise"), "unknown uncertainty 'surprise'"),
        (lambda m, x: ood_auroc(m, x, x, "variance"), "variance"),
        (lambda m, x: auroc(np.ones(1), np.ones(5)), "needs 2 samples of each kind, got 1 and 5"),
        (lambda m, x: auroc(np.array([1.0, math.nan]), np.ones(5)), "needs finite scores"),
        (lambda m, x: calibration_of(np.zeros((3, 2)), np.zeros(3, int)), "do not sum to 1"),
        (lambda m, x: calibration_of(np.log(np.full((3, 2), 0.5)), np.zeros(2, int)), "3 rows of probabilities and 2"),
        (lambda m, x: binned(np.ones(3), np.ones(3, bool), 0), "bins = 0: expected an integer >= 1"),
        (lambda m, x: binned(np.ones(3), np.ones(3, bool), 3, "equal"), "unknown kind of bins 'equal'"),
        (lambda m, x: calibration(m, x, torch.full((4,), 7)), "y holds class 7"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(EquipoiseError, match=message):
        call(MLP((6,), 3, (8,)), torch.rand(4, 6))

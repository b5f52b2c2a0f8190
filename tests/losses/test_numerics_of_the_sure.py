"""Objectives and their gradients where float32 cancels: against the same formulas in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.core.types import Prediction, log_softmax
from equipoise.losses.objectives import (
    boosted_cross_entropy,
    cross_entropy,
    dlr,
    entropy,
    expected_entropy,
    kl,
    least_confidence,
    margin,
    misclassified_kl,
    probability_margin,
    small_margin,
    smoothed_cross_entropy,
)

GAPS = (0.0, 1e-3, 1.0, 5.0, 12.0, 17.0, 30.0, 60.0, 80.0)
FORMULAS = {
    "entropy": (entropy, lambda z, y: -(z.softmax(1) * z.log_softmax(1)).sum(1)),
    "cross-entropy": (cross_entropy, lambda z, y: -z.log_softmax(1)[:, y]),
    "smoothed": (
        smoothed_cross_entropy(0.1),
        lambda z, y: -0.9 * z.log_softmax(1)[:, y] - 0.1 * z.log_softmax(1).mean(1),
    ),
    "probability margin": (
        probability_margin,
        lambda z, y: z.softmax(1)[:, [c for c in range(3) if c != y]].amax(1) - z.softmax(1)[:, y],
    ),
    "least confidence": (least_confidence, lambda z, y: 1 - z.softmax(1).amax(1)),
    "small margin": (small_margin, lambda z, y: z.softmax(1).topk(2, 1).values.diff(dim=1)[:, 0]),
}


def gradients(objective, logits, dtype, **given_to_it):
    z = torch.tensor(logits, dtype=dtype, requires_grad=True)
    value = objective(Prediction(z[None]), **given_to_it)
    return value.detach().double(), torch.autograd.grad(value.sum(), z)[0].double()


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("label", [0, 1])
def test_every_component_of_the_gradient_is_right_at_every_gap(name, label):
    ours, plain = FORMULAS[name]
    for gap in GAPS:
        logits = [[gap, 0.0, -1.0]]
        value, gradient = gradients(ours, logits, torch.float32, labels=torch.tensor([label]))
        exact = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
        expected = plain(exact, label)
        (slope,) = torch.autograd.grad(expected.sum(), exact)
        if gap < 30:  # the plain formulas are exact there in float64
            assert torch.allclose(value, expected.double(), rtol=1e-3)
            assert torch.allclose(gradient, slope, rtol=1e-3, atol=1e-30)
        again, same = gradients(ours, logits, torch.float64, labels=torch.tensor([label]))
        assert torch.allclose(value, again, rtol=1e-3) and torch.allclose(gradient, same, rtol=1e-3, atol=1e-43)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-60, 60, width=32), min_size=2, max_size=6))
def test_log_softmax_is_that_of_float64(logits):
    z = torch.tensor([logits])
    assert torch.allclose(log_softmax(z).double(), z.double().log_softmax(1), rtol=1e-5, atol=1e-6)
    assert torch.allclose(
        entropy(Prediction(z[None])).double(), FORMULAS["entropy"][1](z.double(), 0), rtol=1e-4, atol=1e-12
    )


def test_an_absent_class_is_legal():
    """A logit of -inf: the objectives are those of the other classes."""
    z = torch.tensor([[2.0, 0.5, -1.0, -math.inf], [0.1, 0.2, 0.3, -math.inf]])
    y = torch.tensor([0, 2])
    plain = entropy, cross_entropy, margin, expected_entropy, least_confidence, small_margin, dlr, probability_margin
    for objective in plain:
        with_it, gradient = gradients(objective, z.tolist(), torch.float32, labels=y)
        without, slope = gradients(objective, z[:, :3].tolist(), torch.float32, labels=y)
        assert torch.allclose(with_it, without, rtol=1e-5)
        assert torch.allclose(gradient[:, :3], slope, rtol=1e-4, atol=1e-7) and (gradient[:, 3] == 0).all()
    for objective in (kl(), misclassified_kl(), boosted_cross_entropy):
        here, clean = Prediction(z[None]), Prediction(z.flip(0)[None])
        assert objective(here, clean, y).isfinite().all()


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_prediction_that_is_not_finite_has_no_label(broken):
    z = torch.tensor([[broken, 0.0, 1.0], [3.0, 2.0, 1.0], [-math.inf] * 3])
    prediction = Prediction(z[None])
    assert prediction.labels.tolist() == [-1, 0, -1] and prediction.finite.tolist() == [False, True, False]


def test_what_differs_and_what_is_rounding():
    z = torch.tensor([[5.0, 1.0, -2.0, -1e9]])
    base = Prediction(z[None])
    assert not base.differs(Prediction((z * (1 + 2e-7))[None])).any()
    assert base.differs(Prediction((z + torch.tensor([[0.0, 0.01, 0.0, 0.0]]))[None])).all()
    shifted = Prediction((z + 1e4)[None])
    assert shifted.differs(Prediction((z + 1e4 + torch.tensor([[0.0, 0.5, 0.0, 0.0]]))[None])).all()
    assert base.resolution(torch.tensor([1])) < 1e-4 and Prediction(z[:, :3][None]).spread == base.spread

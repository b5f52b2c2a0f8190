"""On a linear model everything in R's Table 4 is known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from equipoise.core.errors import EquipoiseError
from equipoise.diagnostics.jacobian import correlation
from equipoise.diagnostics.linearity import Explained, explain
from equipoise.geometry import EVERYWHERE


def test_a_linear_binary_model():
    """Logits (g, -g), g = w·x + b: the boundary is |g|/‖w‖ away, the Jacobian's norm is √2‖w‖, and M = 2g."""
    w = torch.tensor([[0.3, -1.2, 0.5, 0.8]], dtype=torch.float64)
    model = nn.Linear(4, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.cat([w, -w]))
        model.bias.copy_(torch.tensor([0.1, -0.1], dtype=torch.float64))
    x = torch.randn(80, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(80, dtype=torch.int64)
    found = explain(model, x, y, box=EVERYWHERE, far_step=0.01, far_steps=400)
    g = (x @ w.T + 0.1)[:, 0].numpy()
    length = float(w.norm())
    assert found.margin == pytest.approx(2 * g, rel=1e-9)
    assert found.norm == pytest.approx(math.sqrt(2) * length, rel=1e-3)
    assert np.nanmax(found.nonlinearity) < 1e-10
    clear = abs(g - 0.5 * length) > 1e-6
    assert np.array_equal(found.correct[clear], (g > 0.5 * length)[clear])
    right = g > 0
    assert (found.distance[~right] == 0).all()
    overshoot = found.distance[right] - g[right] / length
    assert (overshoot > -1e-9).all() and (overshoot <= 0.01 + 1e-9).all()
    assert found.correlation.pearson > 0.9999
    assert found.correlation.n == right.sum()
    assert found.numbers()[3].mean == pytest.approx(found.correct.mean())


def explained(**changes) -> Explained:
    rng = np.random.default_rng(0)
    values = {name: rng.uniform(1, 2, 8) for name in ("margin", "norm", "nonlinearity", "distance")}
    return Explained(**{**values, "correct": np.ones(8, bool), **changes})


def test_samples_without_a_distance_or_a_slope_are_left_out():
    found = explained(norm=np.array([1, 1, 1, 1, 1, 1, 1, 0.0]))
    found.distance[:2] = 0.0, math.nan
    expected = correlation(found.margin[2:7], found.distance[2:7])
    assert found.correlation == expected and expected.n == 5
    assert len(found.numbers()[2].values) == 7
    assert len(explained(nonlinearity=np.array([math.nan] * 3 + [1.0] * 5)).numbers()[4].values) == 5


def test_refuses_a_correlation_of_too_few():
    with pytest.raises(EquipoiseError, match="needs at least 4 samples, got 0"):
        _ = explained(distance=np.zeros(8)).correlation

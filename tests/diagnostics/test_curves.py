"""Curves of models whose robust accuracy is known, and decisions against how often they err."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import nn

from equipoise import attacks
from equipoise.core.errors import EquipoiseError
from equipoise.diagnostics.curves import (
    Curve,
    accuracy_against_eps,
    accuracy_against_steps,
    falls_to_zero,
    has_converged,
    lines,
    monotone,
)
from equipoise.models import MonteCarloDropout
from equipoise.nets import MLP
from equipoise.report.studies import draw
from equipoise.results.findings import Picture

pgd = partial(attacks.pgd, start="zero", return_point="last")


def linear() -> nn.Linear:
    model = nn.Linear(5, 2)
    with torch.no_grad():
        model.weight.copy_(torch.randn(2, 5, generator=torch.Generator().manual_seed(0)))
        model.bias.copy_(torch.tensor([0.2, -0.3]))
    return model


def samples(n: int = 60):
    x = torch.rand(n, 5, generator=torch.Generator().manual_seed(1))
    return x, torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(2))


def least_margin(model: nn.Linear, x, y, eps: float):
    """The smallest margin of a linear model in ball ∩ box: every coordinate goes as far as it may."""
    w = model.weight[y] - model.weight[1 - y]
    room = torch.where(w > 0, x, 1 - x).clamp_max(eps)
    return ((w * x).sum(1) + model.bias[y] - model.bias[1 - y] - (w.abs() * room).sum(1)).detach()


def test_the_eps_curve_of_a_linear_model_is_known():
    model, (x, y) = linear(), samples()
    radii = (10, 30, 60, 100, 150)
    found = accuracy_against_eps(model, x, y, radii, batch_size=17)
    for k, row in zip(radii, found.correct, strict=True):
        truth = least_margin(model, x, y, k / 255)
        sure = truth.abs() > 1e-4
        assert (torch.from_numpy(row) == (truth > 0))[sure].all()
    assert found.x == pytest.approx(np.array(radii) / 255)
    assert np.array_equal(found.clean, (model(x).argmax(1) == y).numpy())
    assert [s["steps"]["most"] for s in found.settings] == list(radii)
    assert {s["step_size"]["size"] for s in found.settings} == {2 / 255}
    assert monotone(found.correct, found.x).holds
    assert np.array_equal(found.cumulative, found.accuracy)


def test_the_steps_curve_has_the_papers_steps():
    model, (x, y) = linear(), samples()
    found = accuracy_against_steps(model, x, y, (8, 16, 128), eps=16 / 255)
    assert [s["step_size"]["size"] for s in found.settings] == pytest.approx([4 / 255, 2 / 255, 1 / 510])
    truth = least_margin(model, x, y, 16 / 255)
    sure = (truth.abs() > 1e-3).numpy()
    assert (found.correct[-1] == (truth > 0).numpy())[sure].all()
    assert has_converged(found.correct, found.x).holds


class Crests(nn.Module):
    """Class 1 wins within 1/1020 of the crests of a wave."""

    def forward(self, x):
        return torch.cat([0 * x + math.cos(100 / 1020), torch.sin(100 * x)], 1)


def test_narrow_crests_need_short_steps():
    """Steps of 1/255 end within 1/1020 of a crest half of the time, steps of 1/510 always."""
    x = 0.2 + 0.6 * torch.rand(100, 1, generator=torch.Generator().manual_seed(3))
    found = accuracy_against_steps(Crests(), x, torch.zeros(100, dtype=torch.int64), (8, 16, 32, 64), eps=16 / 255)
    assert 0.35 < found.accuracy[2] < 0.65 and found.accuracy[3] < 0.05
    assert not has_converged(found.correct, found.x).holds
    assert not has_converged(found.correct[:3], found.x[:3]).holds


def test_rounded_inputs_hide_the_way_to_zero():
    class Rounded(nn.Module):
        def forward(self, x):
            return linear()((8 * x).round() / 8 + 0 * x)

    x, y = samples()
    found = accuracy_against_eps(Rounded(), x, y, (50, 150))
    assert np.array_equal(found.correct[-1], found.clean)
    assert not falls_to_zero(found.correct[-1]).holds


def test_a_sample_that_is_wrong_from_the_start_is_never_correct():
    """A last point may carry a wrong sample back to its class: here off the crest on which it lies."""
    x, y = math.pi / 200 + 2 * math.pi / 100 * torch.tensor([[3.0], [5.0]]) + 1e-4, torch.zeros(2, dtype=torch.int64)
    assert not pgd(1 / 255, 2 / 255, 1)(Crests(), x, y).success.any()
    found = accuracy_against_eps(Crests(), x, y, (1,), return_point="last")
    assert not found.correct.any() and not found.clean.any()


def test_a_random_model_and_its_state():
    net = nn.Sequential(MLP((5,), 3, (8,)), nn.Dropout(0.3), nn.Linear(3, 3)).train()
    x, y = torch.rand(6, 5), torch.arange(6) % 3
    rng = torch.get_rng_state()
    first, again = (accuracy_against_eps(MonteCarloDropout(net, 2), x, y, (5, 10), seed=4) for _ in range(2))
    assert np.array_equal(first.correct, again.correct)
    assert net.training and torch.equal(rng, torch.get_rng_state())


def test_raw_and_cumulative_are_both_shown():
    correct = np.array([[1, 1, 0, 1], [0, 1, 1, 0], [0, 0, 1, 0]], bool)
    curve = Curve(np.array([1.0, 2, 3]), correct, np.ones(4, bool), "radius")
    assert curve.accuracy.tolist() == [0.75, 0.5, 0.25]
    assert curve.cumulative.tolist() == [0.75, 0.25, 0.0]
    panel = lines({"net": curve}, "curve")
    assert [(s.name, s.dashed) for s in panel.series] == [("net", False), ("net, cumulative", True)]
    raw = panel.series[0]
    assert raw.low is not None and raw.high is not None
    assert ((raw.low < raw.y) & (raw.y < raw.high)).all()
    assert draw(Picture("curve", "", [panel], 1)).startswith(b"\x89PNG")


def test_zero_is_refuted_by_what_the_papers_rounding_does_not_allow():
    none = falls_to_zero(np.zeros(100, bool))
    assert none.holds and none.p_value == 1.0
    assert none.interval[1] == pytest.approx(1.96**2 / (100 + 1.96**2), rel=1e-3)  # Wilson, k = 0
    for n, left in ((100, 1), (100, 2), (1000, 3), (1000, 4), (10_000, 16), (10_000, 17)):
        correct = np.arange(n) < left
        found = falls_to_zero(correct)
        assert found.p_value == pytest.approx(binom.sf(left - 1, n, 0.001), rel=1e-9)
        assert found.holds == (found.p_value >= 0.05)
    assert falls_to_zero(np.arange(100) < 1).holds and not falls_to_zero(np.arange(100) < 2).holds
    assert "2 of 100 samples are still correct" in falls_to_zero(np.arange(100) < 2).figure


def test_convergence_compares_samples_in_pairs():
    steps = np.array([8.0, 16, 32, 64])
    correct = np.ones((4, 100), bool)
    correct[:, :40] = False
    correct[3, 40:45] = False  # five more fall only to 64 steps: one-sided p = 1/32
    found = has_converged(correct, steps)
    assert found.p_value == pytest.approx(1 / 32) and not found.holds
    assert found.figure.startswith("5 of 100 samples fall only to 64 steps, 0 only to 32")
    correct[3, 0] = True  # and one is saved: of 6, at least 5 by chance 7/64
    assert has_converged(correct, steps).p_value == pytest.approx(7 / 64)
    assert has_converged(correct, steps).holds
    slow = np.ones((4, 100), bool)
    slow[2, :3] = slow[3, :6] = False
    assert has_converged(slow, steps).holds and not has_converged(slow, steps, doublings=2).holds


def test_a_rise_anywhere_is_found():
    x = np.array([1.0, 2, 3, 4])
    falling = np.array([np.arange(100) < k for k in (90, 60, 30, 0)])
    assert monotone(falling, x).holds and monotone(falling, x).p_value == 1.0
    rising = falling.copy()
    rising[3, :45] = True
    found = monotone(rising, x)
    assert not found.holds
    assert found.p_value == pytest.approx(6 * 0.5**15)  # fifteen come back between 3 and 4, six pairs of points
    assert found.figure == "from 3 to 4 15 of 100 samples become correct again and 0 fall"


def test_decisions_err_as_often_as_they_say():
    """Attacks of equal strength that fool different samples at random."""
    rng, trials = np.random.default_rng(0), 1000
    rises = gains = 0
    for _ in range(trials):
        correct = rng.uniform(size=(4, 80)) < 0.5
        rises += not monotone(correct, np.arange(4.0)).holds
        gains += not has_converged(correct, np.array([1.0, 2, 4, 8])).holds
    assert rises / trials <= 0.05
    assert 0.01 <= gains / trials <= 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x, y: accuracy_against_eps(m, x, y, ()), r"radii = \[\]: expected integers >= 1"),
        (lambda m, x, y: accuracy_against_eps(m, x, y, (20, 10)), r"radii = \[20, 10\]: expected them increasing"),
        (lambda m, x, y: accuracy_against_steps(m, x, y, (0, 10)), r"steps = \[0, 10\]: expected integers >= 1"),
        (lambda m, x, y: has_converged(np.ones((2, 5), bool), np.array([10.0, 12])), "begin at 10: 1 doublings need"),
        (lambda m, x, y: monotone(np.ones((1, 5), bool), np.ones(1)), "has 1 point: expected at least 2"),
        (
            lambda m, x, y: lines(
                {str(a): Curve(np.array([a]), np.ones((1, 2), bool), np.ones(2, bool), "r") for a in (1.0, 2.0)}, ""
            ),
            "must be over the same x",
        ),
    ],
)  # fmt: skip
def test_refuses(call, message):
    with pytest.raises(EquipoiseError, match=message):
        call(linear(), *samples(4))

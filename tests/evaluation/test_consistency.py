"""Evaluation of models that are random, coupled or of few classes, and one meaning of "in the ball" for all."""

import pytest
import torch
from torch import Tensor, nn

from equipoise.attacks import apgd_t, fab
from equipoise.core.errors import EquipoiseError
from equipoise.evaluation import evaluate, evaluate_batches, suite, verify_outcome
from equipoise.geometry import Ball
from equipoise.models import full_precision

pytestmark = pytest.mark.unchecked


def data(classes: int, n: int = 60) -> tuple[nn.Linear, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    net = nn.Linear(8, classes)
    with torch.no_grad():
        net.weight.copy_(4 * torch.randn(classes, 8, generator=g))
        net.bias.copy_(-0.5 * net.weight.sum(1))
    x = torch.rand(n, 8, generator=g)
    return net, x, net(x).argmax(1)


class Noisy(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.1 * torch.randn_like(x))


def test_a_random_model_is_drawn_from_the_seed_and_not_from_the_callers_state():
    net, x, y = data(4)
    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        results = evaluate(Noisy(net), x, y, suite(["pgd3", "square9"], [0.05]), seed=5, batch_size=20)
        assert torch.equal(before, torch.get_rng_state())
        found.append([(r.correct, r.distance, r.prediction, r.queries) for r in results])
    assert found[0] == found[1]
    other = evaluate(Noisy(net), x, y, suite(["pgd3", "square9"], [0.05]), seed=6, batch_size=20)
    assert [r.prediction for r in other] != [part[2] for part in found[0]]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_what_fab_takes_for_a_success_counts(norm):
    """Radii a rounding below and above the distance of a point on the boundary: found and confirmed agree."""
    net, x, y = data(4)
    nearest = fab(torch.inf, norm, return_point="nearest", steps=20)(net, x, y)
    for row in range(0, 60, 7):
        one, label = x[row : row + 1], y[row : row + 1]
        for offset in (-5e-6, -6e-7, 0.0, 6e-7):
            ball = Ball(norm, float(nearest.distance[row]) + offset)
            found = fab(ball.eps, norm, steps=20)(net, one, label)
            assert torch.equal(found.success, verify_outcome(net, one, found.x, label, ball).success)
            inside = verify_outcome(net, one, nearest.x[row : row + 1], label, ball)
            assert torch.equal(ball.contains(nearest.x[row : row + 1], one), inside.success)


def test_refuses_a_model_whose_accuracy_would_depend_on_the_batch():
    net = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 3)).eval()
    _, x, y = data(3)
    with pytest.raises(
        EquipoiseError, match=r"prediction depends on its batch also in eval mode .* running statistics"
    ):
        evaluate(net, x, y, suite(["pgd"], [0.1]))


def test_an_attack_that_needs_more_classes_falls_back_by_name():
    net, x, y = data(3)
    (_, result) = evaluate(net, x, y, [("apgd-t", apgd_t(0.05, steps=5))])
    assert result.settings["objective"] == "margin" and result.settings["num_targets"] == 2
    assert result.settings["notes"] == [
        "apgd-t: 2 targets instead of 9, the model has 3 classes",
        "apgd-t: margin instead of targeted dlr, the model has 3 classes",
    ]


def test_refuses_indices_that_do_not_fit():
    net, x, y = data(3)
    attacks = suite(["pgd3"], [0.1])
    for index in (torch.arange(3), torch.arange(60).double()):
        with pytest.raises(EquipoiseError, match=r"index must be a tensor of \d+ integers, one per sample"):
            evaluate(net, x, y, attacks, index=index)
    with pytest.raises(EquipoiseError, match=r"batches is an int: expected pairs \(x, y\), one by one"):
        evaluate_batches(net, 5, attacks)  # pyright: ignore[reportArgumentType]


def test_full_precision_is_for_a_while():
    place = torch.backends.mkldnn.conv
    before, place.fp32_precision = place.fp32_precision, "bf16"
    try:
        with full_precision():
            assert place.fp32_precision == "ieee"
        assert place.fp32_precision == "bf16"
    finally:
        place.fp32_precision = before

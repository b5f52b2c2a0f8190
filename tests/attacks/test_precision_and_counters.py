"""Low precision, what is counted, and memory."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from equipoise import attacks
from equipoise.attacks import udp
from equipoise.attacks.execution import value_and_gradient
from equipoise.attacks.steps import (
    UniformUpTo,
)
from equipoise.core.rng import Streams
from equipoise.losses.objectives import cross_entropy
from equipoise.models import Single

pgd = partial(attacks.pgd, start="zero", return_point="last")
cw = partial(attacks.cw, start="zero", return_point="last")

F64 = torch.float64


# ---------------------------------------------------------------- precision and counters


def test_bf16_successes_hold_in_float32(mlp, batch):
    net, (x, y) = mlp(dtype=torch.float32, features=40), batch(200, 40, dtype=torch.float32)
    for keep in ("last", "first_success"):
        found = pgd(0.03, 0.005, 10, precision="bf16", return_point=keep)(net, x, y)
        assert found.x.dtype == torch.float32 and 0 < found.success.sum() < 200
        assert torch.equal(found.success, net(found.x).argmax(1) != y)
        assert ((found.x - x).abs() <= 0.03 + 1e-6).all() and found.x.min() >= 0 and found.x.max() <= 1
        with torch.autocast("cpu", torch.bfloat16):
            inside = pgd(0.03, 0.005, 10, precision="bf16", return_point=keep)(net, x, y)
        assert torch.equal(inside.success, net(inside.x).argmax(1) != y), "the caller's autocast does not judge"
    full = pgd(0.03, 0.005, 10, return_point="first_success")(net, x, y)
    assert (full.success.double().mean() - found.success.double().mean()).abs() < 0.03


def test_a_success_outside_the_ball_is_none(mlp, batch):
    """A start of the user's own that cheats: kept as the best point, but not believed."""

    @dataclass(frozen=True)
    class Far:
        def draw(self, streams, x, geometry):
            return 1 - x

    net, (x, _) = mlp(), batch(20)
    y = net(x).argmax(1)
    found = pgd(0.001, 0.0005, 2, start=Far(), return_point="first_success")(net, x, y)
    outside = found.distance > 0.0011
    assert outside.any() and (found.prediction != y)[outside].any() and not found.success[outside].any()


def test_a_false_alarm_in_bf16_is_climbed_again_in_float32():
    """In bf16 the two logits of this model round to a tie that looks like success; in float32 they do not."""

    class Rounds(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.eye(2))

        def forward(self, x):
            z = x @ self.weight
            low = z.dtype == torch.bfloat16
            return torch.stack([z[:, 0], z[:, 1] + (5.0 if low else 0.0)], 1)

    x, y = torch.tensor([[0.9, 0.2], [0.55, 0.5]]), torch.tensor([0, 0])
    found = pgd(0.1, 0.02, 8, precision="bf16", return_point="first_success")(Rounds(), x, y)
    assert found.success.tolist() == [False, True] and found.prediction.tolist() == [0, 1]
    assert (found.x[0] - x[0]).abs().max() > 0.09, "the sample had its full climb"


class Cut(nn.Module):
    """sqrt of a pixel (its slope at 0 is infinite) and a ReLU that is dead below one half."""

    def forward(self, x):
        return torch.stack([x[:, 0].sqrt(), (x[:, 1] - 0.5).relu()], 1)


def test_nan_and_zero_gradients_are_counted():
    x = torch.tensor([[0.0, 0.2], [0.3, 0.2], [0.3, 0.9]])
    found = cw(0.05, 0.01, 4)(Cut(), x, torch.tensor([1, 0, 0]))
    assert found.nan_gradients.tolist() == [4, 0, 0] and found.x.isfinite().all()
    constant = nn.Linear(2, 2)
    with torch.no_grad():
        constant.weight.zero_()
    found = udp(0.05, 0.01, 4, return_point="best")(constant, x)
    k = UniformUpTo(4).draw(Streams.of(0, torch.arange(3)).fold(4, 0).fold(1))
    assert found.zero_gradients.tolist() == k.tolist() and found.nan_gradients.tolist() == [0, 0, 0]
    assert torch.equal(found.x, x) and not found.success.any()


def test_counters_stop_with_the_sample_in_train_mode(Drawn):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x):
            return 0 * self.norm(x) + torch.tensor([0.0, 2.0])

    counts = Drawn(UniformUpTo(5))
    attack = replace(udp(0.1, 0.01, 5, mode="train"), steps=counts)
    found = attack(Flat(), torch.rand(20, 2, generator=torch.Generator().manual_seed(0)))
    assert found.zero_gradients.tolist() == counts.drawn[0].tolist()


def test_value_and_gradient_leave_the_parameters_alone(mlp, batch, plain_cross_entropy):
    net, (x, y) = mlp(), batch()
    value, gradient, here = value_and_gradient(cross_entropy, Single(net).draw(), x, labels=y)
    plain = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(plain_cross_entropy(net(plain), y).sum(), plain)
    assert torch.allclose(gradient, expected) and torch.allclose(value, plain_cross_entropy(net(x), y))
    assert all(p.grad is None for p in net.parameters()) and not value.requires_grad and not here.logits.requires_grad


def test_memory_holds_one_graph_at_a_time(mlp, batch):
    """The graph of a step is gone when the next begins."""
    import weakref

    alive, most = [], []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x):
            hidden = self.net[0](x)
            alive.append(weakref.ref(hidden))
            most.append(sum(r() is not None for r in alive))
            return self.net[2](hidden.tanh())

    x, y = batch()
    pgd(0.1, 0.02, 20)(Watching(), x, y)
    assert max(most) <= 2

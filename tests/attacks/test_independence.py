"""An attack changes nothing of the caller's, and a result depends on its sample alone."""

import copy
import random
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from equipoise import attacks
from equipoise.attacks import targeted, trades, udp
from equipoise.attacks.result import AttackResult
from equipoise.attacks.steps import (
    Uniform,
    UniformUpTo,
)
from equipoise.core.rng import Streams
from equipoise.models import Single

pgd = partial(attacks.pgd, start="zero", return_point="last")
cw = partial(attacks.cw, start="zero", return_point="last")

F64 = torch.float64


# ---------------------------------------------------------------- nothing of the caller's changes
# (Their names hold "refuse" because the checker of annotations, off for such tests, draws from Python's generator.)


class Everything(nn.Module):
    """Parameters, buffers, batch-norm, dropout and a frozen part, with an image's shape; fails when told to."""

    def __init__(self, fail: bool = False):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.3)
        self.inner = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1))
        self.out = nn.Linear(8, 3)
        self.register_buffer("note", torch.arange(3.0))
        self.register_buffer("scratch", torch.ones(2), persistent=False)
        self.out.bias.requires_grad_(False)
        self.fail, self.calls = fail, 0

    def forward(self, x):
        self.calls += 1
        if self.fail and self.calls > 3:
            raise RuntimeError("the model failed")
        return self.out(self.inner(self.drop(self.norm(self.conv(x))).relu().flatten(1))) + 0 * self.note


def snapshot(model: nn.Module, x: Tensor, y: Tensor) -> list:
    tensors = [*model.parameters(), *model.buffers(), x, y]
    return [
        [t.detach().clone() for t in tensors],
        [id(t) for t in tensors],
        [t.requires_grad for t in tensors],
        [None if t.grad is None else t.grad.clone() for t in model.parameters()],
        [m.training for m in model.modules()],
        torch.get_rng_state(),
        random.getstate(),
        [a.tolist() if isinstance(a, np.ndarray) else a for a in np.random.get_state()],
        torch.is_grad_enabled(),
    ]


def same(a, b) -> bool:
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(u, v) for u, v in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


ATTACKS = [
    pgd(0.1, 0.03, 3),
    udp(0.1, 0.03, 4, return_point="first_success", start=Uniform()),
    trades(0.1, 0.03, 2, norm="l2", restarts=2),
    pgd(0.1, 0.03, 2, precision="bf16", return_point="first_success"),
    targeted(cw(1.0, 0.3, 2, norm="l1", return_point="best"), "random"),
]


@pytest.mark.unchecked
@given(
    attack=st.sampled_from(ATTACKS),
    modes=st.lists(st.booleans(), min_size=10, max_size=10),
    grads=st.booleans(),
    fail=st.booleans(),
    no_grad=st.booleans(),
    training=st.booleans(),
)
@settings(max_examples=60, phases=[Phase.explicit, Phase.generate])
def test_refuses_to_change_anything_of_the_callers(attack, modes, grads, fail, no_grad, training):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Everything(fail)
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    if grads:
        for p in model.parameters():
            p.grad = torch.ones_like(p)
    x, y = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0])
    before = snapshot(model, x, y)
    with torch.set_grad_enabled(not no_grad):
        before[-1] = torch.is_grad_enabled()
        try:
            if training and attack.restarts == 1:
                attack.perturb(Single(model), x, y, Streams.of(0, torch.arange(4)))
            else:
                attack(model, x, y)
        except RuntimeError as error:
            assert str(error) == "the model failed" and fail
        assert same(before, snapshot(model, x, y))


@pytest.mark.unchecked
def test_train_mode_refuses_to_change_more_than_running_statistics():
    model = Everything().eval()
    x, y = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0])
    before, statistics = snapshot(model, x, y), copy.deepcopy(model.norm.running_mean)
    pgd(0.1, 0.03, 3, mode="train")(model, x, y)
    assert not torch.equal(model.norm.running_mean, statistics) and model.norm.num_batches_tracked == 3
    after = snapshot(model, x, y)
    parameters = len(list(model.parameters()))
    assert same(before[0][:parameters], after[0][:parameters]) and same(before[1:], after[1:])


def test_train_mode_with_dropout_depends_on_the_seed_alone():
    model = Everything().train()
    x, y = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3
    attack = pgd(0.1, 0.03, 3, mode="train")
    first = attack(model, x, y, seed=1).x
    torch.rand(7)
    assert torch.equal(first, attack(model, x, y, seed=1).x)
    assert not torch.equal(first, attack(model, x, y, seed=2).x)


# ---------------------------------------------------------------- batch size, order, sharding


def images(n: int = 30) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = Everything().eval()
    generator = torch.Generator().manual_seed(1)
    return model, torch.rand(n, 1, 4, 4, generator=generator), torch.randint(3, (n,), generator=generator)


INDEPENDENT = {
    "pgd": pgd(0.3, 0.05, 5, start=Uniform()),
    "udp": udp(0.3, 0.05, 6, return_point="best"),
    "udp until fooled": udp(0.3, 0.02, 12, start=Uniform(), return_point="first_success"),
    "trades": trades(0.3, 0.05, 4),
    "restarts": pgd(1.0, 0.2, 4, norm="l2", start=Uniform(), restarts=3, return_point="first_success"),
    "random target": targeted(pgd(3.0, 0.6, 4, norm="l1"), "random"),
}


def alike(a: AttackResult, b: AttackResult) -> bool:
    exact = all(
        torch.equal(getattr(a, f), getattr(b, f))
        for f in ("success", "prediction", "evaluations", "nan_gradients", "zero_gradients")
    )
    return exact and torch.allclose(a.x, b.x, atol=2e-6)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_the_result_does_not_depend_on_batches_order_or_shards(name):
    attack = INDEPENDENT[name]
    model, x, y = (
        part.double() if not isinstance(part, Tensor) or part.is_floating_point() else part for part in images()
    )
    whole = attack(model, x, y, seed=4)
    for size in (7, 1000):
        assert alike(attack(model, x, y, seed=4, batch_size=size), whole), size
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    permuted = attack(model, x[order], y[order], seed=4, index=order)
    assert alike(permuted, whole[order])
    shards = [attack(model, x[i::3], y[i::3], seed=4, index=torch.arange(30)[i::3]) for i in range(3)]
    assert alike(AttackResult.cat(shards), AttackResult.cat([whole[slice(i, None, 3)] for i in range(3)]))
    if name != "trades":
        assert "random" not in name or not alike(attack(model, x, y, seed=5), whole)


def test_pieces_sized_for_the_cache_change_nothing(mlp, batch, plain_pgd, plain_cross_entropy):
    net, (x, y) = mlp(), batch(300)
    whole = pgd(0.2, 0.05, 3)(net, x, y)
    assert (whole.x - plain_pgd(net, x, y, 0.2, 0.05, 3, plain_cross_entropy)[-1]).abs().max() < 1e-13


class Normed(nn.Module):
    """Batch-norm, with a record of the batch sizes it saw."""

    def __init__(self, **options):
        super().__init__()
        self.first, self.norm, self.last = (
            nn.Linear(6, 8, dtype=F64),
            nn.BatchNorm1d(8, dtype=F64, **options),
            nn.Linear(8, 4, dtype=F64),
        )
        self.tally = SimpleNamespace(sizes=[])  # an object, which copies share

    def forward(self, x):
        self.tally.sizes.append(len(x))
        return self.last(self.norm(self.first(x)).tanh())


def normed(**options) -> Normed:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Normed(**options)


@pytest.mark.parametrize("keep", ["last", "first_success"])
def test_train_mode_uses_batch_statistics_and_never_shrinks(keep, batch, plain_entropy, Drawn):
    model, (x, y) = normed(), batch(300)
    plain = copy.deepcopy(model).train()
    counts = Drawn(UniformUpTo(6))
    attack = replace(udp(0.3, 0.05, 6, mode="train", return_point=keep), steps=counts)
    found = attack(model, x, y, batch_size=100)
    (k,) = counts.drawn
    climbing = [s for s in model.tally.sizes if s > 3]
    assert set(climbing) == {300}, "every pass of the climb saw the whole batch"
    if keep == "last":
        point = x.clone()
        for i in range(6):  # U, Alg. 1 with samples that have taken their k steps held where they are
            at = point.clone().requires_grad_(True)
            (g,) = torch.autograd.grad(plain_entropy(plain(at)).sum(), at)
            moved = torch.min(torch.max(point + 0.05 * g.sign(), x - 0.3), x + 0.3).clamp(0, 1)
            point = torch.where((i < k)[:, None], moved, point)
        assert (found.x - point).abs().max() < 1e-12
        assert (model.norm.running_mean - plain.norm.running_mean).abs().max() < 1e-12
    plain.load_state_dict(model.state_dict())
    assert torch.equal(found.prediction, plain.eval()(found.x).argmax(1)), "success is judged in eval mode"


def test_restarts_in_train_mode_take_the_whole_batch_along(batch):
    model, (x, y) = normed(), batch(50)
    options = {"mode": "train", "return_point": "first_success", "start": Uniform(), "restarts": 3}
    found = pgd(0.1, 0.05, 3, **options)(model, x, y)
    assert set(model.tally.sizes) == {1, 2, 3, 50} and 0 < found.success.sum() < 50
    pgd(0.1, 0.05, 3, precision="bf16", mode="train", return_point="first_success")(model.float(), x.float(), y)
    assert set(model.tally.sizes) == {1, 2, 3, 50}


def test_batch_norm_without_running_statistics_couples_samples_in_eval_mode_too(batch):
    model, (x, y) = normed(track_running_stats=False), batch(40)
    whole = udp(0.3, 0.05, 6)(model, x, y, batch_size=10)
    assert set(model.tally.sizes) == {2, 40}
    assert whole.x.isfinite().all()


def test_eval_mode_shrinks(batch, Drawn):
    model, (x, y) = normed(), batch(100)
    counts = Drawn(UniformUpTo(6))
    replace(udp(0.3, 0.05, 6), steps=counts)(model, x, y)
    alive = [int((counts.drawn[0] > i).sum()) for i in range(6)]
    assert model.tally.sizes == [2, 2, 1, 3, *alive, 100]
    model.tally.sizes.clear()
    udp(0.3, 0.05, 20)(model, x[:6], y[:6], batch_size=1)
    assert set(model.tally.sizes) == {1, 2, 3}, "nothing runs once every sample is finished"

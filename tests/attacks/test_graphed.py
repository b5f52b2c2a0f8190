"""The recorded climb beside the step-by-step one. On the CPU the recording is a list of PyTorch's operations, which is
replayed without Python's part in them, as a CUDA graph is: what is not an operation on the same memory would be lost.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from equipoise import attacks, methods, nets
from equipoise.attacks import graphed
from equipoise.attacks.climb import ActiveBatch
from equipoise.attacks.steps import Normalized, Sign, Triangular, UniformUpTo
from equipoise.core.errors import EquipoiseWarning
from equipoise.core.rng import Streams
from equipoise.losses.objectives import dlr
from equipoise.models import as_predictive

_ATEN = torch.ops.aten
WAITING = (_ATEN._local_scalar_dense.default, _ATEN.nonzero.default, _ATEN.equal.default, _ATEN.masked_select.default)
"""Operations that wait for the device, as does an index that is a mask."""


class Tape(TorchDispatchMode):
    """Operations as they were called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        is_masked = "index" in str(function) and any(tensor.dtype == torch.bool for tensor in tensors(args[1]))
        assert function not in WAITING and not is_masked, f"{function} waits for the device"
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result


class Operations:
    """A recorder that replays the operations of a tape, each into the memory of its first result."""

    def __init__(self) -> None:
        self.warmed, self.recorded, self.replayed = 0, 0, 0

    def warm_up(self, compute):
        self.warmed += 1
        return compute()

    def record(self, compute):
        self.recorded += 1
        tape = Tape()
        kept = [tensor.clone() for tensor in self.counters]
        with tape:
            results = compute()
        for tensor, before in zip(self.counters, kept, strict=True):
            tensor.copy_(before)  # recording computes nothing

        def replay():
            self.replayed += 1
            for function, args, kwargs, result in tape.calls:
                new = function(*args, **kwargs)
                for old, value in zip(tensors(result), tensors(new), strict=True):
                    if old.data_ptr() != value.data_ptr():
                        old.detach().copy_(value.detach())
            return results

        return replay


def tensors(value) -> list[torch.Tensor]:
    found = []
    tree_map_only(torch.Tensor, found.append, value)
    return found


@pytest.fixture
def recorder(monkeypatch):
    """Ascents on the CPU record their steps."""
    own, init = Operations(), ActiveBatch.__init__

    def remember(batch, *args, **options):
        init(batch, *args, **options)
        own.counters = [batch.successes]

    monkeypatch.setenv("EQUIPOISE_NATIVE", "0")
    monkeypatch.setattr(ActiveBatch, "__init__", remember)
    monkeypatch.setattr(graphed, "recorder_for", lambda device: own)
    return own


def samples(count: int = 37) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x, net = torch.rand(count, 1, 12, 12, generator=g), nets.build("mlp", (1, 12, 12), classes=5, seed=0)
    return net, x, net(x).argmax(1)


CLIMBS = {
    "pgd linf": attacks.pgd(0.05, steps=25),
    "pgd l2": attacks.pgd(0.6, steps=25, norm="l2"),
    "pgd l1": attacks.pgd(3.0, steps=12, norm="l1"),
    "first success without a start": attacks.pgd(0.03, steps=30, start="zero"),
    "best": attacks.uta(0.05, steps=20, return_point="best"),
    "last": attacks.pgd(0.05, steps=12, return_point="last"),
    "last l2": attacks.cw(0.5, steps=12, norm="l2", return_point="last"),
    "tau": attacks.pgd(0.05, steps=20, return_point="last", tau=2),
    "drawn numbers of steps": attacks.udp(0.05, steps=12),
    "drawn, best": attacks.udp(0.05, steps=12, return_point="best"),
    "drawn, first success": replace(attacks.pgd(0.04, steps=12), steps=UniformUpTo(12)),
    "trades": attacks.trades(0.05, steps=10),
    "sizes": attacks.pgd(0.05, Triangular(0.002, 0.02), steps=12, return_point="last"),
    "best of sizes, l2": attacks.uta(0.5, Triangular(0.02, 0.2), steps=12, norm="l2", return_point="best"),
    "rules": replace(attacks.cw(0.05, Triangular(0.02, 0.2), steps=12, return_point="best"), step=Normalized()),
    "a sign in l2": replace(attacks.cw(0.5, Triangular(0.002, 0.02), steps=12, norm="l2"), step=Sign()),
    "a target": attacks.pgd(0.05, steps=20, target="runner_up"),
    "several targets": attacks.pgd(0.04, steps=20, num_targets=3),
    "restarts": attacks.pgd(0.03, steps=15, restarts=3),
}


@pytest.mark.parametrize("name", CLIMBS)
def test_a_recorded_climb_is_the_climb(name, recorder, monkeypatch):
    net, x, y = samples()
    found = CLIMBS[name](net, x, y, seed=3)
    assert recorder.recorded > 0 and recorder.replayed > recorder.recorded
    monkeypatch.setattr(graphed, "recorder_for", lambda device: None)
    expected = CLIMBS[name](net, x, y, seed=3)
    assert not name.startswith(("pgd", "first")) or 0 < int(expected.success.sum()) < len(x)
    for field in ("x", "success", "iteration", "evaluations", "nan_gradients", "zero_gradients", "prediction"):
        assert torch.equal(getattr(found, field), getattr(expected, field)), field


def test_rows_leave_in_powers_of_two(recorder, monkeypatch):
    sizes, call = [], graphed.Stepping.__call__

    def count(stepping, *args):
        sizes.append(len(stepping.active))
        return call(stepping, *args)

    monkeypatch.setattr(graphed.Stepping, "__call__", count)
    net, x, y = samples(40)
    streams = Streams.of(0, torch.arange(40))
    point = attacks.udp(0.05, steps=20).perturb(as_predictive(net), x, y, streams)
    assert point.shape == x.shape and set(sizes) <= {40, 32, 16, 8, 4, 2, 1} and {32, 16, 8} < set(sizes)
    assert len(sizes) == recorder.warmed + recorder.recorded and recorder.replayed > 3  # a replay calls nothing


@pytest.mark.parametrize(("name", "precision"), [("lenet", "32"), ("preact-resnet18", "bf16")])
def test_the_inner_maximisation_of_training_is_recorded(name, precision, recorder, monkeypatch):
    shape = (1, 28, 28) if name == "lenet" else (3, 32, 32)
    net = nets.build(name, shape=shape, classes=10, seed=0)
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    method = methods.pgd_at(8 / 255, 2 / 255, 4, precision=precision)
    points = [method.points(as_predictive(net), x, torch.arange(4), Streams.of(0, torch.arange(4)))[0]]
    assert (recorder.warmed, recorder.recorded, recorder.replayed) == (1, 1, 3)
    monkeypatch.setattr(graphed, "recorder_for", lambda device: None)
    points += [method.points(as_predictive(net), x, torch.arange(4), Streams.of(0, torch.arange(4)))[0]]
    assert torch.equal(*points) and not torch.equal(points[0], x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CLIMBS)
def test_a_cuda_graph_is_the_climb(name, monkeypatch):
    net, x, y = (value.cuda() for value in samples())
    recorded, record = [], graphed.CudaGraphs.record

    def count(recorder, compute):
        recorded.append(compute)
        return record(recorder, compute)

    monkeypatch.setattr(graphed.CudaGraphs, "record", count)
    found = CLIMBS[name](net, x, y, seed=3)
    assert recorded
    monkeypatch.setattr(graphed, "recorder_for", lambda device: None)
    expected = CLIMBS[name](net, x, y, seed=3)
    alike = (found.x - expected.x).abs().flatten(1).amax(1) < 1e-5
    assert alike.double().mean() > 0.9  # a matrix product of fewer rows rounds otherwise
    for field in ("success", "iteration", "nan_gradients", "zero_gradients"):
        assert torch.equal(getattr(found, field)[alike], getattr(expected, field)[alike]), field


class Own(nn.Module):
    """A network of somebody else's, which may do anything."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


@pytest.mark.parametrize(
    "change",
    [
        lambda ascent, net: (ascent, Own(net)),
        lambda ascent, net: (ascent, [net, net.register_forward_hook(lambda *_: None)][0]),
        lambda ascent, net: (replace(ascent, objective=dlr), net),
        lambda ascent, net: (attacks.apgd(0.05, steps=10), net),
        lambda ascent, net: (replace(ascent, eps_schedule=((2.0, 0.5),)), net),
        lambda ascent, net: (replace(ascent, mode="train"), net),
        lambda ascent, net: (replace(ascent, eot_samples=2), net),
        lambda ascent, net: (replace(ascent, steps=UniformUpTo(5), tau=1), net),
        lambda ascent, net: (ascent, nn.Sequential(net, nn.Dropout(0.5)).train()),
    ],
)
def test_what_is_not_the_same_at_every_step_is_not_recorded(change, recorder):
    net, x, y = samples(8)
    ascent, net = change(attacks.pgd(0.05, steps=10), net)
    is_trained = net.training and isinstance(net, nn.Sequential) and not isinstance(net[-1], nn.Linear)
    replace(ascent, mode="train" if is_trained else ascent.mode)(net, x, y, seed=0)
    assert recorder.warmed == recorder.recorded == 0


def test_what_cannot_be_recorded_is_said_once_and_computed_step_by_step(recorder, monkeypatch):
    attack, (net, x, y) = CLIMBS["last"], samples()

    def refuse(compute):
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors ...")

    monkeypatch.setattr(recorder, "record", refuse)
    message = r"recorded as a CUDA graph \(operation not permitted when .*\): steps"
    with pytest.warns(EquipoiseWarning, match=message) as said:
        found = attack(net, x, y)
    assert len(said) == 1
    monkeypatch.setattr(graphed, "recorder_for", lambda device: None)
    assert torch.equal(found.x, attack(net, x, y).x)

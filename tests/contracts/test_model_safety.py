"""No attack touches the caller's model or depends on what the caller's thread has set up. Every row of the contract."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib import util
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from equipoise import methods
from equipoise.attacks import Attack, pgd
from equipoise.attacks.result import AttackResult
from equipoise.core.errors import EquipoiseError
from equipoise.data import Dataset, Split
from equipoise.evaluation import evaluate
from equipoise.training import Recipe, fit

pytestmark = pytest.mark.unchecked

_SPEC = util.spec_from_file_location("every_attack", Path(__file__).with_name("test_every_attack.py"))
assert _SPEC is not None and _SPEC.loader is not None
_ROWS = util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_ROWS)

X = torch.rand(6, 2, 4, 4, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 3, 4, 0])


class Net(nn.Module):
    """A network written as networks are: a convolution, batch-norm, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(64, 5)

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x))).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.fc(self.features(x))


class Checkpointed(Net):
    """Recomputes its features in the backward pass."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.fc(checkpoint(self.features, x, use_reentrant=self.reentrant))


class CheckpointedReentrant(Checkpointed):
    """The same with the older kind of checkpoints, which knows no gradient of chosen inputs."""

    reentrant = True


class Closures(Net):
    """Reaches its layers through a function that holds the module, a bound method and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.read = lambda x: self.fc(x)
        self.write, self.layers = self.features, [self.fc]

    def forward(self, x: Tensor) -> Tensor:
        h = self.write(x)
        return self.read(h) + 2 * self.layers[0](h)


class Remembering(Net):
    """Keeps what it computes: a feature map, and a hook that writes to the module."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.last = {}, None
        self.conv.register_forward_hook(lambda module, args, out: self.seen.update(out=out))

    def forward(self, x: Tensor) -> Tensor:
        self.last = super().forward(x)
        assert self.seen["out"].shape[0] == len(x)
        return self.last


class Noise(nn.Module):
    """Adds noise that it draws from the global generator, and takes its time."""

    def forward(self, z: Tensor) -> Tensor:
        time.sleep(0.001)
        return z + torch.randn_like(z)


class Recurrent(nn.Module):
    """An LSTM over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(4, 6, batch_first=True, dropout=0.0), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.fc(self.lstm(x[:, 0])[0][:, -1])


def made(kind: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind()


def with_weight_norm() -> nn.Module:
    net = Net()
    nn.utils.parametrizations.weight_norm(net.conv)
    nn.utils.parametrizations.spectral_norm(net.fc)
    return net.eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": Net,
    "checkpointed": Checkpointed,
    "reentrant checkpoints": CheckpointedReentrant,
    "closures": Closures,
    "hooks": Remembering,
    "weight norm": with_weight_norm,
    "recurrent": Recurrent,
    "half": lambda: Net().bfloat16(),
    "data parallel": lambda: nn.DataParallel(Net()),
    "compiled": lambda: torch.compile(Net()),  # pyright: ignore[reportReturnType]
    "a compiled part": lambda: nn.Sequential(nn.Identity(), torch.compile(Net())),  # pyright: ignore[reportArgumentType]
}
LIKE_PLAIN = ("checkpointed", "reentrant checkpoints", "closures", "hooks", "data parallel", "compiled")


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


AROUND: dict[str, Callable[[], object]] = {
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "default dtype": default_dtype,
    "deterministic": deterministic,
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
}


def state_of(model: nn.Module) -> list[object]:
    """What a caller would notice: the same tensor objects with the same content, gradients, modes, random numbers."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [
        *((name, id(t), t.requires_grad, t.grad is None, t.detach().clone().tolist()) for name, t in tensors),
        *((name, m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()),
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
    ]


def attack_of(row: str) -> Attack:
    """The attack of a row, in Linf unless it exists in another norm alone."""
    return _ROWS.ROWS[row](_ROWS.ONE_NORM.get(row, "linf"))


def attacked(row: str, model: nn.Module, **options: object) -> AttackResult:
    return attack_of(row)(model, X, Y, seed=3, **options)


def same(first: AttackResult, second: AttackResult) -> bool:
    return torch.equal(first.x, second.x) and torch.equal(first.success, second.success)


@cache
def undisturbed(row: str) -> AttackResult:
    """What an attack finds on the plain network when nothing else goes on."""
    return attacked(row, made(Net))


@cache
def undisturbed_in_pytorch(row: str) -> AttackResult:
    """The same without the kernels for small networks, which do not see through checkpoints, and compute in float32
    where bf16 is asked for.
    """
    with mock.patch.dict(os.environ, EQUIPOISE_NATIVE="0"):
        return attacked(row, made(Net))


NOT_TRAINING = [row for row in _ROWS.ROWS if row != "train mode"]
ALONE = [row for row in NOT_TRAINING if row not in ("autoattack", "cascade")]  # whose members have rows of their own


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of reentrant checkpoints without gradient
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # of the import of torch.compile
@pytest.mark.parametrize("row", NOT_TRAINING)
@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_model_is_left_as_it_was(row: str, kind: str) -> None:
    model = made(MODELS[kind])
    if kind != "weight norm":
        model.train()  # and it is attacked in eval mode
    before = state_of(model)
    found = attacked(row, model)
    assert state_of(model) == before
    if kind in LIKE_PLAIN:
        if "checkpoint" in kind or kind == "closures":  # equal up to rounding, which moves the points of some attacks
            ways = undisturbed(row), undisturbed_in_pytorch(row)
            assert any(torch.equal(found.success, p.success) and (found.x - p.x).abs().mean() < 0.01 for p in ways)
        else:
            assert same(found, undisturbed(row))


@pytest.mark.parametrize("row", NOT_TRAINING)
@pytest.mark.parametrize("around", AROUND)
def test_what_the_thread_has_set_up_changes_nothing(row: str, around: str) -> None:
    model, attack, expected = made(Net), attack_of(row), undisturbed(row)
    with AROUND[around]():  # pyright: ignore[reportGeneralTypeIssues]
        found = attack(model, X, Y, seed=3)
    assert same(found, expected) and not found.x.is_inference() and not found.x.requires_grad


def test_threads_attack_one_model_at_once() -> None:
    """Every attack beside itself and others."""
    model = made(Net)
    before, rows = state_of(model), [row for row in NOT_TRAINING for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: attacked(row, model), rows))
    assert state_of(model) == before
    assert [row for row, one in zip(rows, found, strict=True) if not same(one, undisturbed(row))] == []


def test_random_models_in_threads_draw_what_they_draw_alone() -> None:
    """The generators belong to the process: neither the numbers of another thread nor their state are touched."""
    models = [nn.Sequential(made(Net), Noise()) for _ in range(24)]
    attack = pgd(0.1, steps=2, return_point="best")
    alone, state = attack(models[0], X, Y, seed=3), torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda model: attack(model, X, Y, seed=3), models))
    assert all(same(one, alone) for one in found) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.filterwarnings("ignore::equipoise.core.errors.EquipoiseWarning")  # so few samples teach nothing
def test_training_and_evaluating_one_model_at_once() -> None:
    """The evaluation sees the weights of its start; the training ends with the weights of one that was alone."""
    points = torch.rand(256, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    labels = (points[:, 0, 0] * 1.2499).sum(1).long().clamp_max(4)
    split = Split(points, labels)
    data = Dataset("points", split, split, tuple("abcde"), sha256="0" * 64)
    recipe = Recipe(epochs=3, batch_size=32, device="cpu")
    alone, shared = made(Net), made(Net)
    fit(methods.udp(0.1, 0.02, 4), alone, data, recipe)
    suite = [("pgd", pgd(0.1, steps=5, return_point="first_success"))]
    with ThreadPoolExecutor(1) as pool:
        evaluations = [pool.submit(evaluate, shared, points, labels, suite) for _ in range(4)]
        fit(methods.udp(0.1, 0.02, 4), shared, data, recipe)
        results = [evaluation.result() for evaluation in evaluations]
    assert all(
        torch.equal(a, b) for a, b in zip(alone.state_dict().values(), shared.state_dict().values(), strict=True)
    )
    assert all(type(p) is nn.Parameter and p.requires_grad for p in shared.parameters())
    assert all(0 <= r[-1].accuracy <= r[0].accuracy <= 1 and not r[-1].settings.get("refused") for r in results)


def test_a_layer_out_of_reach_is_refused() -> None:
    class Out(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(32, 5)
            held = iter([self.fc])
            layer = next(held)
            self.call = _Opaque(layer)

        def forward(self, x: Tensor) -> Tensor:
            return self.call(x.flatten(1))

    class _Opaque:
        __slots__ = ("layer",)

        def __init__(self, layer: nn.Module) -> None:
            self.layer = layer

        def __call__(self, x: Tensor) -> Tensor:
            return self.layer(x)

    with pytest.raises(ValueError, match="computes with a layer of its own that it reaches in a way that cannot be"):
        pgd(0.1)(Out(), X, Y)


class Keeping(nn.Module):
    """Takes its features from a hook, counts its calls and keeps the shapes, in containers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Flatten(), nn.Linear(32, 16), nn.Tanh()), nn.Linear(16, 5)
        self.kept: dict[str, Tensor] = {}
        self.shapes: list[torch.Size] = []
        self.calls = {"n": [0]}
        kept = self.kept
        self.body.register_forward_hook(lambda module, args, output: kept.__setitem__("features", output))

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(x.shape)
        self.calls["n"][0] += 1
        self.body(x)
        return self.head(self.kept["features"])


@pytest.mark.parametrize("row", ALONE)
def test_what_a_model_keeps_in_containers_is_its_own(row: str) -> None:
    torch.manual_seed(0)
    model = Keeping()
    expected = attacked(row, model)
    assert model.kept == {} and model.shapes == [] and model.calls == {"n": [0]}
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(lambda _: attacked(row, model), range(3)):
            assert torch.equal(found.x, expected.x) and torch.equal(found.success, expected.success)


class Doubled(nn.Module):
    """Answers in float64 what it computes in float32."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).double()


@pytest.mark.parametrize("row", ALONE)
def test_the_precision_of_the_answer_is_not_that_of_the_points(row: str, monkeypatch) -> None:
    torch.manual_seed(0)
    if row == "bf16":  # the kernels, which take one of the two only, compute in float32
        monkeypatch.setenv("EQUIPOISE_NATIVE", "0")
    model = Net().eval()
    expected, found = attacked(row, model), attacked(row, Doubled(model))
    assert found.x.dtype == torch.float32 and torch.equal(found.success, expected.success)
    assert torch.allclose(found.x, expected.x, atol=1e-6)


class ByOthers(nn.Module):
    """A prediction that depends on the samples before it, or on the place in the batch."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.fc = how, nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        z = self.fc(x.flatten(1))
        return z.cumsum(0) if self.how == "sum" else z + 0.1 * torch.arange(len(z))[:, None] * torch.arange(5)


@pytest.mark.parametrize("how", ["sum", "place"])
def test_a_prediction_that_depends_on_those_before_it_is_refused(how: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(EquipoiseError, match="prediction depends on its batch"):
        evaluate(ByOthers(how), X, Y, [("pgd", pgd(0.1, steps=2))])

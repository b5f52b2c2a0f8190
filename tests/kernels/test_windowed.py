"""The prediction computed in a window must be the one computed whole."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.attacks.execution import frozen_model
from equipoise.core.rng import Streams
from equipoise.kernels import _window_program, windowed
from equipoise.kernels.trace import is_tracing
from equipoise.kernels.windowed import WindowedForward
from equipoise.models import Single
from equipoise.nets import Normalize, build

pytestmark = pytest.mark.unchecked

F64 = torch.float64


def local_of(net: nn.Module, x: Tensor) -> WindowedForward:
    single = Single(net.eval())
    with torch.no_grad():
        return WindowedForward.of(single.draw(), x)


@pytest.fixture
def everywhere(monkeypatch):
    """However much of an image changes, it is computed in a window."""
    monkeypatch.setattr(_window_program, "MOST_CHANGED", 2.0)


def settled(net: nn.Module, seed: int) -> nn.Module:
    """With weights that let no activation vanish, in eval mode and float64."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*net.parameters(), *(b for n, b in net.named_buffers() if "running" in n)):
            tensor.copy_(torch.rand(tensor.shape, generator=g) * 0.5 - 0.1)
        for name, buffer in net.named_buffers():
            if "running_var" in name:
                buffer.add_(0.5)
    return net.double().eval()


def agree(
    net: nn.Module, local: WindowedForward, shape: tuple[int, ...], window, seed: int = 0, moves: bool = True
) -> None:
    """A change in a window: predicted as by the network, nothing written before it is, and then all that is kept."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(5, *shape, generator=g, dtype=F64)
    (a, b), (c, d) = window
    with torch.no_grad():
        stages, rows = local.stages(x), torch.tensor([3, 0, 4])
        patch = torch.rand(3, shape[0], b - a, d - c, generator=g, dtype=F64)
        new = x[rows]
        new[:, :, a:b, c:d] = patch
        prediction, changes = local.predict(stages, rows, patch, window)
        assert torch.allclose(prediction.logits[0], net(new), atol=1e-9)
        assert not moves or not torch.equal(net(new), net(x[rows]))
        alone, _ = local.predict(stages, rows[:1], patch[:1], window)
        assert torch.allclose(alone.logits[0], net(new[:1]), atol=1e-9)
        assert all(torch.equal(s, t) for s, t in zip(stages, local.stages(x), strict=True)), "nothing is written yet"
        better = torch.tensor([2, 0])
        local.write(stages, rows[better], [(change[better], where) for change, where in changes])
        x[rows[better]] = new[better]
        assert all(torch.allclose(s, t, atol=1e-9) for s, t in zip(stages, local.stages(x), strict=True))


class Block(nn.Module):
    """Branches of different reach, put together."""

    def __init__(self, kind: str, channels: int, reach: int) -> None:
        super().__init__()
        self.kind = kind
        self.far, self.near = nn.Conv2d(channels, 4, 2 * reach + 1, padding=reach), nn.Conv2d(channels, 4, 1)
        self.narrow = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        far, near = F.leaky_relu(self.far(x)), self.near(x)
        if self.kind == "joined":
            return self.narrow(torch.cat([near, F.max_pool2d(far, 3, 1, 1), far], 1))
        return far - near if self.kind == "sum" else near.mul_(far)


def chain_and_window(seed: int):
    """A random chain of local layers before a linear one, an image size it takes, and a window."""
    pick = random.Random(seed)
    sizes = [pick.randint(7, 14) for _ in range(2)]
    window = []
    for size in sizes:
        low = pick.randrange(size)
        window.append((low, pick.randint(low + 1, size)))
    channels, layers = 2, [Normalize([0.4, 0.5], [0.3, 0.2])] if pick.random() < 0.5 else []
    x = torch.zeros(2, 2, *sizes)
    for _ in range(pick.randint(1, 3)):
        kernel, padding, stride = ((pick.randint(*r), pick.randint(*r)) for r in ((1, 4), (0, 2), (1, 3)))
        convolution = nn.Conv2d(channels, 4, kernel, stride, padding, pick.choice([1, 2]), groups=pick.choice([1, 2]))
        pointwise = pick.choice(
            [
                nn.ReLU(),
                nn.ReLU(inplace=True),
                nn.ELU(),
                nn.LeakyReLU(0.1, True),
                nn.BatchNorm2d(4),
                nn.Dropout(),
                nn.SiLU(),
            ]
        )
        size, step = pick.randint(1, 3), pick.randint(1, 3)
        pooling = pick.choice(
            [
                nn.MaxPool2d(2),
                nn.MaxPool2d(size, step),
                nn.AvgPool2d(size, step),
                nn.MaxPool2d(3, 2, 1),
                nn.MaxPool2d(2, 1, dilation=2),
                nn.AvgPool2d(3, 1, 1),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )
        block = Block(pick.choice(["sum", "product", "joined"]), channels, pick.randint(0, 2))
        more = [pick.choice([convolution, block]), pointwise, pooling]
        if pick.random() < 0.5:  # what is computed in pairs, where its sides are even
            plain = nn.Conv2d(channels, 4, kernel, padding=padding)
            more = [plain, nn.ReLU(), nn.MaxPool2d(2)] if pick.random() < 0.5 else [plain, nn.MaxPool2d(2)]
        try:
            with torch.no_grad():
                nn.Sequential(*layers, *more).eval()(x)
        except RuntimeError:  # nothing would be left of the image
            break
        layers, channels = layers + more, 4
    return layers, x.shape, tuple(window)


@settings(max_examples=200)
@given(st.integers(0, 10**6))
def test_local_is_whole(seed):
    layers, shape, window = chain_and_window(seed)
    chain = nn.Sequential(*layers).eval()
    with torch.no_grad():
        features = chain(torch.zeros(shape)).flatten(1).shape[1]
    net = settled(nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 3)), seed)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_window_program, "MOST_CHANGED", 2.0)
        local = local_of(net, torch.rand(2, *shape[1:], dtype=F64))
        agree(net, local, tuple(shape[1:]), window, seed, moves=False)
    assert local.stored or not any(isinstance(layer, nn.Conv2d) and layer.kernel_size > (1, 1) for layer in layers)


class Residual(nn.Module):
    """Branches of different reach, of another size, in place and not, added, multiplied and put together."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second, self.third = (nn.Conv2d(n, 3, 3, padding=1) for n in (2, 3, 3))
        self.bn, self.down, self.skip = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, 2, 1), nn.Conv2d(3, 3, 1, 2)
        self.last = nn.LazyLinear(4)
        self.place: Tensor
        self.register_buffer("place", torch.arange(12.0 * 14).reshape(12, 14) / 12 / 14)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(2 * x - 1)
        if self.kind == "sum":
            x = x + F.relu(self.second(x))
        elif self.kind == "shorter first":
            x = 1 - x * F.relu(self.bn(self.second(x)))
        elif self.kind == "in place":  # as pre-activation networks do
            active = F.relu(self.bn(x), inplace=True)
            x = self.third(F.relu(self.second(active), inplace=True)).add_(x)
            x += 1
        elif self.kind == "overwritten":
            kept = self.second(x)
            x.relu_()
            x = self.third(x).mul_(kept)
        elif self.kind == "a part":
            x = self.third(torch.cat([x, self.second(x)], 1)[:, :3]) + self.third(x)
        elif self.kind == "shared":
            x = x + self.second(F.relu(self.second(x)))
        elif self.kind == "dense":
            x = torch.cat([x, self.second(x), self.third(self.second(x))], dim=1)
        elif self.kind == "down":
            x = F.relu(self.down(x)) + self.skip(x)
        elif self.kind == "gated":  # looks at all of the image
            x = self.second(x) * x.mean((2, 3), keepdim=True).sigmoid()
        elif self.kind == "written into":  # in a way that no rule knows
            x[:, 0] = 0.25
            x = self.second(x) + x
        elif self.kind == "another at every pixel":
            x = self.second(self.second(x + self.place) / self.place.clamp(min=0.1))
        elif self.kind == "bounded at every pixel":
            x = self.second(x.clamp(max=self.place))
        elif self.kind == "twice":
            x = self.second(F.relu(self.second(x)))
        elif self.kind == "pooled and not":
            x = F.max_pool2d(x, 2) + self.skip(x)
        return self.last(x.flatten(1))


KINDS = (
    "sum", "shorter first", "in place", "overwritten", "shared", "dense", "down", "gated", "twice",
    "another at every pixel", "pooled and not",
)  # fmt: skip
UNKNOWN = ("a part", "written into", "bounded at every pixel")


@pytest.mark.parametrize("kind", [*KINDS, *UNKNOWN])
@pytest.mark.parametrize("window", [((3, 5), (7, 8)), ((0, 12), (0, 14)), ((0, 3), (12, 14)), ((11, 12), (0, 14))])
def test_branches(kind, window, everywhere):
    net = Residual(kind).eval()
    with torch.no_grad():
        net(torch.zeros(1, 2, 12, 14))
    net = settled(net, 0)
    local = local_of(net, torch.rand(2, 2, 12, 14, dtype=F64))
    assert bool(local.stored) == (kind in KINDS)
    agree(net, local, (2, 12, 14), window)


def test_hooks_belong_to_the_network(everywhere):
    net = Residual("sum").eval()
    with torch.no_grad():
        net(torch.zeros(1, 2, 12, 14))
    net = settled(net, 0)
    net.second.register_forward_hook(lambda layer, inputs, output: 0.5 * output + inputs[0])
    local = local_of(net, torch.rand(2, 2, 12, 14, dtype=F64))
    assert local.stored
    agree(net, local, (2, 12, 14), ((3, 5), (7, 8)))


@pytest.mark.parametrize("name", ["preact-resnet18", "resnet18", "resnet20", "small-cnn", "lenet"])
def test_our_networks(name):
    shape = (3, 32, 32) if "resnet" in name else (1, 28, 28)
    net = settled(build(name, shape=shape, classes=10, seed=0), 1)
    if "resnet18" in name:
        net = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(windowed, "MOST_MEMORY", 10**8)  # in float64
        local = local_of(net, torch.rand(2, *shape, dtype=F64))
    assert local.stored
    agree(net, local, shape, ((5, 8), (20, 23)))
    agree(net, local, shape, ((0, shape[1]), (2, shape[1])))


def test_less_is_computed():
    """The convolutions see crops until the change has reached most of the image, and from there whole images."""
    net, seen = build("preact-resnet18", shape=(3, 32, 32), classes=10, seed=0).eval(), []
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    local = local_of(net, x)
    conv2d = torch.conv2d

    def watched(h: Tensor, *args, **kwargs) -> Tensor:
        if type(h) is Tensor:
            seen.append(tuple(h.shape[2:]))
        return conv2d(h, *args, **kwargs)

    with torch.no_grad(), pytest.MonkeyPatch.context() as patched:
        stages = local.stages(x)
        patched.setattr(torch, "conv2d", watched)
        local.predict(stages, torch.arange(2), x[:, :, 8:11, 8:11] / 2, ((8, 11), (8, 11)))
    assert seen[:5] == [(7, 7), (9, 9), (11, 11), (13, 13), (15, 15)]
    assert len(local.stored) > 8 and sum(stage[0].nbytes for stage in stages) < windowed.MOST_MEMORY


class Looks(Residual):
    """Decides by what it sees."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last((h if float(h.sum()) > 0 else self.second(h)).flatten(1))


def test_a_network_that_decides_by_what_it_sees(everywhere):
    net = Looks("").eval()
    with torch.no_grad():
        net(torch.zeros(1, 2, 12, 14))
    net = settled(net, 0)
    agree(net, local_of(net, torch.rand(2, 2, 12, 14, dtype=F64)), (2, 12, 14), ((3, 5), (7, 8)))


class Counting(Residual):
    """Its output is not a function of its input alone."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.calls * super().forward(x)


@pytest.mark.parametrize("net", [lambda: Counting("sum"), lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4))])
def test_what_is_not_seen_to_agree_is_computed_whole(net, everywhere):
    net = net().eval()
    x = torch.rand(6, 2, 12, 14, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        net(x)
        local = local_of(net, x)
        assert local.stored == () and len(local.stages(x)) == 1
        patch, rows = torch.ones(2, 2, 2, 2), torch.tensor([1, 5])
        new = x[rows]
        new[:, :, 2:4, 0:2] = 1
        calls = getattr(net, "calls", 0)
        prediction, _ = local.predict(local.stages(x), rows, patch, ((2, 4), (0, 2)))
        net.calls = calls
        assert torch.equal(prediction.logits[0], net(new))


class Shy(Residual):
    """Refuses to be watched."""

    def forward(self, x: Tensor) -> Tensor:
        if is_tracing():
            raise RuntimeError("not now")
        return super().forward(x)


def test_a_network_that_cannot_be_traced_is_computed_whole():
    net = Shy("sum").eval()
    with torch.no_grad():
        net(torch.zeros(1, 2, 12, 14))
    net = settled(net, 0)
    local = local_of(net, torch.rand(2, 2, 12, 14, dtype=F64))
    assert not local.stored
    agree(net, local, (2, 12, 14), ((3, 5), (7, 8)))


def test_too_much_to_keep(monkeypatch):
    net, x = build("small-cnn", shape=(1, 28, 28), classes=10, seed=0), torch.rand(2, 1, 28, 28)
    assert local_of(net, x).stored
    monkeypatch.setattr(windowed, "MOST_MEMORY", 30_000)
    assert not local_of(net, x).stored


def test_the_model_is_left_alone():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(72, 3)).eval()
    before, x = {k: v.clone() for k, v in net.state_dict().items()}, torch.rand(2, 1, 8, 8)
    kept = x.clone()
    local = local_of(net, x)
    assert local.stored and torch.equal(x, kept) and not any(layer._forward_hooks for layer in net)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_many_rows_go_in_pieces(everywhere):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).double().eval()
    x = torch.rand(600, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
    predict, sizes, conv2d = Single(net).draw(), [], torch.conv2d
    rows = torch.arange(600)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patched:
        for local in (WindowedForward(predict), WindowedForward.of(predict, x)):
            stages = local.stages(x)
            patched.setattr(torch, "conv2d", lambda h, *args: sizes.append(len(h)) or conv2d(h, *args))
            patched.setattr(nn.Conv2d, "forward", lambda self, h: torch.conv2d(h, self.weight, self.bias))
            sizes.clear()
            here = local.predict(stages, rows, 1 - x, ((0, 6), (0, 6)))[0].logits[0]
            assert sizes == [256, 256, 88]
            patched.undo()
            assert torch.allclose(here, net(1 - x))
        assert local.stored


@pytest.mark.parametrize(("size", "kernel", "pairs"), [(28, 5, True), (27, 5, False), (28, 4, False)])
@pytest.mark.parametrize("between", [lambda: [], lambda: [nn.ReLU()], lambda: [nn.BatchNorm2d(3), nn.ELU()]])
def test_of_a_pooled_convolution_only_whole_pairs_change(size, kernel, pairs, between):
    """So that its output need not be stored."""
    chain = nn.Sequential(nn.Conv2d(2, 3, kernel), *between(), nn.MaxPool2d(2), nn.Conv2d(3, 3, 3)).eval()
    features = chain(torch.zeros(1, 2, size, size)).numel()
    net = settled(nn.Sequential(*chain, nn.Flatten(), nn.Linear(features, 2)), 0)
    local = local_of(net, torch.rand(3, 2, size, size, dtype=F64))
    agree(net, local, (2, size, size), ((3, 6), (10, 14)))
    assert len(local.stored) == (2 if pairs else 3)


@pytest.mark.parametrize("units", [False, True])
def test_in_bf16(units, monkeypatch):
    """As near to the network as its own prediction in bf16; narrow convolutions only with units for its matrices."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: units)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 40, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(1440, 3)
    ).eval()
    x = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    single, rows = Single(net), torch.arange(4)
    with torch.no_grad(), frozen_model(single, x, "eval", "bf16", native=False) as draw:
        predict = draw(Streams.of(0, rows))
        local = WindowedForward.of(predict, x)
        stages = local.stages(x)
        assert len(stages) > 1
        assert {stage.dtype for stage in stages[1:]} == ({torch.bfloat16} if units else {torch.float32, torch.bfloat16})
        new = x.clone()
        new[:, :, 3:5, 4:6] = 1
        here, _ = local.predict(stages, rows, new[:, :, 3:5, 4:6], ((3, 5), (4, 6)))
        assert torch.allclose(here.logits, predict(new).logits, atol=0.02)
    assert torch.allclose(here.logits[0], net(new), atol=0.02)


@pytest.mark.parametrize("window", [((2, 4), (5, 6)), ((0, 1), (11, 12)), ((6, 7), (6, 9))])
def test_pooling_after_pooling(window, everywhere):
    """Whole blocks of the second are blocks of four pixels, of which the first knows two."""
    convolution, pools = nn.Conv2d(2, 3, 3, padding=1), (nn.MaxPool2d(2), nn.ReLU(), nn.AvgPool2d(2))
    net = settled(nn.Sequential(convolution, nn.ReLU(), *pools, nn.Flatten(), nn.Linear(27, 4)), 0)
    local = local_of(net, torch.rand(3, 2, 12, 12, dtype=F64))
    assert local.stored
    agree(net, local, (2, 12, 12), window)


def test_a_network_that_looks_at_the_size_of_the_batch_is_computed_whole():
    net = Sized(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4)).double().eval()
    assert not local_of(net, torch.rand(5, 2, 6, 6, dtype=F64)).stored


class Sized(nn.Sequential):
    """What it computes depends on the size of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * (len(x) / 5))

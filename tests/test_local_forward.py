"""The prediction computed in a window must be the one computed whole."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from equipoise.local_forward import LocalForward
from equipoise.nets import Normalize, build
from equipoise.predictive import Single
from equipoise.types import Prediction


def local_of(net: nn.Module, x: Tensor) -> LocalForward:
    single = Single(net.eval())
    with torch.no_grad():
        return LocalForward.of(single, single.draw(), x)


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
        pointwise = pick.choice([nn.ReLU(), nn.ReLU(inplace=True), nn.ELU(), nn.BatchNorm2d(4), nn.Dropout()])
        size, step = pick.randint(1, 3), pick.randint(1, 3)
        more = [
            convolution,
            pointwise,
            pick.choice([nn.MaxPool2d(2), nn.MaxPool2d(size, step), nn.AvgPool2d(size, step)]),
        ]
        if pick.random() < 0.5:  # what is computed in quarters, where its sides are even
            plain = nn.Conv2d(channels, 4, kernel, padding=padding)
            more = [plain, nn.ReLU(), nn.MaxPool2d(2)] if pick.random() < 0.5 else [plain, nn.MaxPool2d(2)]
        try:
            with torch.no_grad():
                nn.Sequential(*layers, *more).eval()(x)
        except RuntimeError:  # nothing would be left of the image
            break
        layers, channels = layers + more, 4
    return layers, x.shape, window


@given(st.integers(0, 10**6))
def test_local_is_whole(seed):
    layers, shape, window = chain_and_window(seed)
    g = torch.Generator().manual_seed(seed)
    chain = nn.Sequential(*layers).eval()
    with torch.no_grad():
        features = chain(torch.zeros(shape)).flatten(1).shape[1]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 3)).double().eval()
    with torch.no_grad():
        for tensor in (*net.parameters(), *(b for n, b in net.named_buffers() if "running" in n)):
            tensor.copy_(torch.rand(tensor.shape, generator=g, dtype=torch.float64) + 0.1)
    x = torch.rand(5, *shape[1:], generator=g, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("equipoise.local_forward.MOST_MEMORY", 1000)
        local = local_of(net, x)
    with torch.no_grad():
        stages, rows = local.stages(x), torch.tensor([3, 0, 4])
        (a, b), (c, d) = window
        patch = torch.rand(3, shape[1], b - a, d - c, generator=g, dtype=torch.float64)
        new = x[rows]
        new[:, :, a:b, c:d] = patch
        prediction, changes = local.predict(stages, rows, patch, tuple(window))
        assert torch.allclose(prediction.logits[0], net(new), atol=1e-10)
        assert all(torch.allclose(s, t) for s, t in zip(stages, local.stages(x), strict=True))  # nothing written yet
        local.write(stages, rows, changes)
        x[rows] = new
        assert all(torch.allclose(s, t, atol=1e-10) for s, t in zip(stages, local.stages(x), strict=True))
    if any(isinstance(layer, nn.Conv2d) for layer in layers):
        assert local.segments


def test_it_splits_lenet_before_its_second_convolution():
    net = build("lenet", shape=(1, 28, 28), classes=10, seed=0)
    local = local_of(net, torch.rand(4, 1, 28, 28))
    assert [len(segment.layers) for segment in local.segments] == [3, 3]
    assert local.stages(torch.rand(3, 1, 28, 28))[1].shape == (3, 6, 14, 14)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.last = nn.Linear(3 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last((h + self.second(h)).flatten(1))


class Functional(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(torch.relu(self.first(x))).flatten(1))


class Scaled(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(2 * x - 1)).flatten(1))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(36, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.layer(x)).flatten(1))


@pytest.mark.parametrize(
    "kind", [Residual, Functional, Scaled, Twice, lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 4))]
)
def test_what_is_no_chain_is_computed_whole(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = kind().eval()
    x = torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    local = local_of(net, x)
    assert local.segments == ()
    patch, rows = torch.ones(2, 1, 2, 2), torch.tensor([1, 5])
    new = x[rows]
    new[:, :, 2:4, 0:2] = 1
    with torch.no_grad():
        prediction, _ = local.predict(local.stages(x), rows, patch, ((2, 4), (0, 2)))
        assert torch.allclose(prediction.logits[0], net(new), atol=1e-6)


def test_the_model_is_left_alone():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).eval()
    layers = list(net)
    local = local_of(net, torch.rand(2, 1, 6, 6))
    assert local.segments and list(net) == layers and not any(layer._forward_hooks for layer in layers)
    assert local.segments[0].layers[0].weight is net[0].weight


def test_many_rows_go_in_pieces():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).double().eval()
    x = torch.rand(600, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    single, sizes = Single(net), []

    def predict(x: Tensor) -> Prediction:
        sizes.append(len(x))
        return single.draw()(x)

    rows = torch.arange(600)
    with torch.no_grad():
        whole, split = LocalForward((), predict), local_of(net, x)
        here = [m.predict(m.stages(x), rows, 1 - x, ((0, 6), (0, 6)))[0].logits[0] for m in (whole, split)]
        assert max(sizes) <= 256 and all(torch.allclose(z, net(1 - x)) for z in here)


@pytest.mark.parametrize(("size", "kernel", "first"), [(28, 5, "_Pooled"), (27, 5, "Conv2d"), (28, 4, "Conv2d")])
@pytest.mark.parametrize("rectified", [True, False])
def test_a_pooled_convolution_is_computed_in_quarters_where_it_can_be(size, kernel, first, rectified):
    layers = [nn.Conv2d(1, 3, kernel), nn.ReLU(), nn.MaxPool2d(2)]
    chain = nn.Sequential(*layers if rectified else layers[::2])
    x = torch.rand(3, 1, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = chain(x).flatten(1).shape[1]
        net = nn.Sequential(*chain, nn.Flatten(), nn.Linear(features, 2)).eval()
        local = local_of(net, x)
        (segment,) = local.segments
        assert type(segment.layers[0]).__name__ == first
        assert torch.allclose(local.predict_whole(x).logits[0], net(x), atol=1e-6)

"""A network cut after each of its layers: the same numbers, the same parameters; what cannot be cut is refused."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from equipoise.core.errors import EquipoiseError
from equipoise.models import frozen_weights
from equipoise.nets import LeNet, Normalize, Staged, build, split, stages

LENET = ["conv1", "conv2", "fc1", "fc2", "logits"]
BLOCKS = [f"block{i}" for i in range(1, 9)]


def sequential():
    """Layers at two depths, one of them used twice."""
    relu = nn.ReLU()
    inner = nn.Sequential(nn.Linear(6, 6), relu, nn.Sequential(nn.Linear(6, 5)))
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), relu, inner, relu, nn.Linear(5, 3))


NETWORKS = {
    "lenet": (lambda: build("lenet", (1, 12, 12)), (1, 12, 12), LENET),
    "wide": (lambda: build("lenet-wide", (3, 14, 12)), (3, 14, 12), LENET),
    "mlp": (lambda: build("mlp", (1, 3, 3), widths=(5, 4, 6)), (1, 3, 3), ["fc1", "fc2", "fc3", "logits"]),
    "shallow": (lambda: build("mlp", (4,)), (4,), ["fc1", "logits"]),
    "linear": (lambda: build("mlp", (4,), widths=()), (4,), ["logits"]),
    "post": (lambda: build("resnet18", (3, 8, 8)), (3, 8, 8), ["stem", *BLOCKS, "features", "logits"]),
    "resnet": (lambda: build("preact-resnet18", (3, 8, 8)), (3, 8, 8), ["stem", *BLOCKS, "features", "logits"]),
    "normalized": (
        lambda: build("lenet", (1, 12, 12), normalize=((0.3,), (0.4,))),
        (1, 12, 12),
        ["normalize", *(f"net.{name}" for name in LENET)],
    ),
    "sequential": (sequential, (1, 4), ["0", "1", "2", "3.0", "3.1", "3.2.0", "4", "5"]),
}


def make(name):
    factory, shape, names = NETWORKS[name]
    return factory().eval(), torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)), names


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_its_halves_are_the_network_bit_for_bit(name, mode):
    net, x, names = make(name)
    net.train(mode == "train")
    expected = net(x)
    assert list(stages(net)) == names
    for layer in ["input", *names[:-1]]:
        encoder, classifier = split(net, layer)
        assert torch.equal(classifier(encoder(x)), expected), layer


@pytest.mark.parametrize("name", NETWORKS)
def test_its_halves_share_the_parameters_and_hold_them_all(name):
    net, _, names = make(name)
    for layer in names[:-1]:
        halves = split(net, layer)
        mine = {id(p) for half in halves for p in (*half.parameters(), *half.buffers())}
        assert mine == {id(p) for p in (*net.parameters(), *net.buffers())}


def test_weights_put_in_place_of_the_networks_reach_its_halves():
    net, x, _ = make("normalized")
    encoder, classifier = split(net, "fc1")
    zeros = {name: torch.zeros_like(w) for name, w in frozen_weights(net, "train").items()}

    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return classifier(encoder(x))

    assert functional_call(Halves(), {f"net.{n}": w for n, w in zeros.items()}, (x,)).abs().max() == 0


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("lenet", "conv1", (6, 6, 6)),
        ("lenet", "conv2", (16,)),  # flat: what the first linear layer takes
        ("lenet", "fc1", (120,)),
        ("lenet", "fc2", (84,)),
        ("normalized", "fc1", (120,)),
        ("mlp", "fc2", (4,)),
        ("resnet", "stem", (64, 8, 8)),
        ("resnet", "block2", (64, 8, 8)),
        ("resnet", "block8", (512, 1, 1)),
        ("resnet", "features", (512,)),
        ("post", "stem", (64, 8, 8)),
        ("post", "block8", (512, 1, 1)),
        ("post", "features", (512,)),
    ],
)
def test_the_latent_point(name, layer, shape):
    net, x, _ = make(name)
    latent = split(net, layer)[0](x)
    assert latent.shape[1:] == shape
    if layer.startswith(("conv", "fc", "features")):
        assert latent.min() == 0  # behind a ReLU


def test_a_short_name_means_the_same_layer():
    net, x, _ = make("normalized")
    for short, full in [("conv2", "net.conv2"), ("normalize", "normalize")]:
        assert torch.equal(split(net, short)[0](x), split(net, full)[0](x))


def test_nothing_comes_before_the_input():
    net, _, _ = make("lenet")
    encoder, classifier = split(net, "input")
    assert isinstance(encoder, nn.Identity) and classifier is net


def test_a_network_of_ones_own():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 2)

        def named_stages(self):
            return {"first": self.one, "second": self.two}

        def forward(self, x):
            return self.two(self.one(x))

    net, x = nn.Sequential(nn.Flatten(), Own()), torch.rand(2, 4)
    assert isinstance(net[1], Staged) and list(stages(net)) == ["0", "1.first", "1.second"]
    encoder, classifier = split(net, "first")
    assert torch.equal(classifier(encoder(x)), net(x))


class Backwards(nn.Sequential):
    def forward(self, x):
        for layer in reversed(self):
            x = layer(x)
        return x


def hooked():
    net = LeNet((1, 12, 12))
    net.register_forward_hook(lambda module, inputs, output: -output)
    return nn.Sequential(nn.Identity(), net)


@pytest.mark.parametrize(
    ("net", "layer", "message"),
    [
        (lambda: make("lenet")[0], "fc3", r"unknown layer 'fc3': did you mean .* conv1, conv2, fc1, fc2, input\."),
        (lambda: make("normalized")[0], "c1", r"hoose one of input, net\.conv1, .*net\.fc2, normalize\."),
        (lambda: make("lenet")[0], "logits", "'logits' is the last of .* choose one of input, conv1, conv2, fc1, fc2"),
        (lambda: make("normalized")[0], "net.logits", "no classifier is left after it"),
        (lambda: make("linear")[0], "logits", r"choose one of input\."),
        (lambda: nn.Sequential(sequential(), sequential()), "3.1", r"ambiguous: choose one of 0\.3\.1, 1\.3\.1\."),
        (lambda: nn.Linear(3, 2), "0", r"a Linear cannot be split: give it a method `named_stages\(\)`"),
        (lambda: nn.Sequential(Normalize((0.5,), (0.5,)), Backwards()), "1.0", "unknown layer"),
        (lambda: Backwards(nn.Linear(2, 2)), "0", "a Backwards cannot be split"),
        (hooked, "conv1", "a LeNet with forward hooks cannot be split"),
    ],
)
def test_refused(net, layer, message):
    with pytest.raises(EquipoiseError, match=message):
        split(net(), layer)

"""`build`: seeded, leaves the random state alone, takes the user's own networks, and refuses with one sentence."""

import sys

import pytest
import torch
from torch import nn

from equipoise.core.errors import EquipoiseError
from equipoise.nets import Normalize, build, extractors, how_built, names

OWN = """
import torch
from torch import nn
NUMBER = 3
MODEL = nn.Linear(2, 2)
def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
def shaped(shape, classes, hidden=7):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], hidden), nn.Linear(hidden, classes))
def only_classes(*, classes):
    return nn.Linear(4, classes)
def free(classes, **options):
    return nn.Linear(options["inputs"], classes)
def demanding(path):
    return nn.Linear(2, 2)
def returns_number():
    return 3
def broken():
    return {}["missing key"]
def noisy():
    torch.manual_seed(99)
    torch.rand(10)
    return nn.Linear(4, 2)
def normalising():
    from equipoise.nets import Normalize
    return nn.Sequential(Normalize((0.5,), (0.5,)), nn.Flatten(), nn.Linear(4, 2))
class Net(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.linear = nn.Linear(4, classes)
    def forward(self, x):
        return self.linear(x.flatten(1))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A directory with the user's modules, made current; nothing of it is left importable afterwards."""
    (tmp_path / "ownpackage").mkdir()
    (tmp_path / "ownpackage" / "__init__.py").write_text("")
    (tmp_path / "ownpackage" / "nets.py").write_text(OWN)
    (tmp_path / "ownbroken.py").write_text("import a_library_that_is_not_there\n")
    (tmp_path / "ownsyntax.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    known = set(sys.modules)
    yield "ownpackage.nets"
    for module in set(sys.modules) - known:
        if module.startswith("own"):
            del sys.modules[module]


def test_names():
    small = ("mlp", "lenet", "lenet-wide", "cnn4", "small-cnn")
    residual = ("preact-resnet18", "preact-resnet18-udp", "resnet18", "resnet18-dropout", "resnet20", "wide-resnet")
    assert names() == (*small, *residual)
    assert extractors() == ("fc-resnet", "wide-resnet-features")


@pytest.mark.parametrize("name", [*names()[:-1], *extractors()])
def test_same_seed_same_weights_and_global_state_untouched(name):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (build(name, (1, 28, 28), seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_the_shape_of_features_may_be_their_number():
    one, other = build("mlp", 64, 10), build("mlp", (64,), 10)
    assert all(a.equal(b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert how_built(one) == how_built(other)


def test_weights_are_those_of_pytorch_by_default():
    torch.manual_seed(8)
    expected = nn.Linear(6, 4), nn.Linear(4, 10)
    net = build("mlp", (6,), widths=(4,), seed=8)
    for mine, theirs in zip(net.parameters(), [p for layer in expected for p in layer.parameters()], strict=True):
        assert torch.equal(mine, theirs)


def test_normalisation_inside_equals_normalisation_outside():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    inside = build("lenet", (3, 28, 28), normalize=(mean, std), seed=2)
    bare = build("lenet", (3, 28, 28), seed=2)
    x = torch.rand(4, 3, 28, 28)
    outside = bare((x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    torch.testing.assert_close(inside(x), outside, rtol=0, atol=1e-6)
    assert isinstance(inside[0], Normalize)


def test_weights_survive_a_round_trip():
    one, two = (build("lenet", (1, 28, 28), normalize=((0.3,), (0.4,)), seed=seed) for seed in (0, 1))
    two.load_state_dict(one.state_dict())
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(one(x), two(x))


@pytest.mark.parametrize(
    ("factory", "options", "shape", "outputs"),
    [
        ("plain", {}, (1, 2, 2), 2),
        ("shaped", {}, (1, 2, 2), 3),
        ("shaped", {"hidden": 11}, (1, 2, 2), 3),
        ("only_classes", {}, (4,), 3),
        ("free", {"inputs": 4}, (4,), 3),
        ("Net", {}, (1, 2, 2), 3),
    ],
)
def test_own_network(own, factory, options, shape, outputs):
    path = list(sys.path)
    net = build(f"{own}:{factory}", shape, classes=3, **options)
    assert net(torch.rand(5, *shape)).shape == (5, outputs)
    assert sys.path == path


def test_own_network_is_seeded_and_may_draw_as_it_likes(own):
    before = torch.get_rng_state()
    one, two = (build(f"{own}:plain", (1, 2, 2), seed=6) for _ in range(2))
    assert torch.equal(one[1].weight, two[1].weight)
    build(f"{own}:noisy", (4,))
    assert torch.equal(torch.get_rng_state(), before)


def test_own_network_can_be_normalised(own):
    net = build(f"{own}:plain", (1, 2, 2), normalize=((0.5,), (0.5,)))
    x = torch.rand(2, 1, 2, 2)
    torch.testing.assert_close(net(x), net[1](2 * x - 1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lenett", "unknown net 'lenett': did you mean 'lenet'"),
        ("resnet", "hoose one of .*preact-resnet18"),
        ("ownpackage.nets:", "is not of the form package.module:factory"),
        (":plain", "is not of the form package.module:factory"),
        ("ownpackage.netz:plain", r"cannot import 'ownpackage.netz' .*No module named 'ownpackage.netz'.*run from"),
        (".nets:plain", "cannot import '.nets'"),
        ("ownbroken:make", "cannot import 'ownbroken' .*a_library_that_is_not_there"),
        ("ownsyntax:f", r"cannot import 'ownsyntax' .*SyntaxError"),
        ("ownpackage.nets:plane", "module 'ownpackage.nets' has no 'plane'"),
        ("ownpackage.nets:NUMBER", "'NUMBER' is an int; expected a function or class"),
        ("ownpackage.nets:MODEL", "'MODEL' is a Linear; expected a function or class"),
        ("ownpackage.nets:demanding", "requires path; a factory gets"),
        ("ownpackage.nets:returns_number", "returned an int; expected a torch.nn.Module"),
        ("ownpackage.nets:broken", "could not be made: KeyError: 'missing key'"),
    ],
)
def test_names_refused(own, name, message):
    with pytest.raises(EquipoiseError, match=message):
        build(name, (1, 28, 28))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("lenet", {"widht": 2}, "unknown option of net 'lenet' 'widht': did you mean 'width'"),
        ("mlp", {"depth": 2}, "unknown option of net 'mlp' 'depth': .*hoose one of negative_slope, widths"),
        ("preact-resnet18", {"width": 2}, "net 'preact-resnet18' takes no options, got 'width'"),
        ("ownpackage.nets:plain", {"width": 2}, "takes no options, got 'width'"),
        ("ownpackage.nets:shaped", {"hiden": 2}, "did you mean 'hidden'"),
        ("resnet18", {"drop": 0.1}, "unknown option of net 'resnet18' 'drop': did you mean 'dropout'"),
        ("lenet", {"width": "2"}, "net 'lenet' could not be made: Type"),
        ("mlp", {"classes": 1}, "at least 2 classes, got 1"),
        ("mlp", {"shape": (28, 28)}, r"must be \(channels, height, width\) or \(features,\).* got \(28, 28\)"),
        ("mlp", {"shape": 0}, r"must be \(channels, height, width\) or \(features,\).* got 0"),
        ("mlp", {"shape": (1, 0, 28)}, r"all at least 1, got \(1, 0, 28\)"),
        (
            "mlp",
            {"normalize": ((0.5, 0.5), (1.0, 1.0))},
            r"needs 1 or 3 means for .* \(3, 28, 28\), got 2",
        ),
        ("ownpackage.nets:normalising", {"normalize": ((0.5,), (1.0,))}, "normalised twice"),
    ],
)
def test_arguments_refused(own, name, arguments, message):
    with pytest.raises(EquipoiseError, match=message):
        build(name, **{"shape": (3, 28, 28), **arguments})

"""Networks that return something else than a tensor of logits are attacked as the plain network is."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from equipoise import attacks
from equipoise.masking.model_checks import check_model
from equipoise.models import Single, as_predictive, expected_normalisation, predict, recognised
from equipoise.nets import Normalize
from equipoise.training import load_weights

X = torch.rand(12, 6, generator=torch.Generator().manual_seed(0))


class Returns(nn.Module):
    """A linear network whose logits go through a function."""

    def __init__(self, change, classes: int = 3) -> None:
        super().__init__()
        self.layer, self.change = nn.Linear(6, classes), change
        with torch.random.fork_rng():
            torch.manual_seed(1)
            nn.init.normal_(self.layer.weight)

    def forward(self, x: Tensor):
        return self.change(self.layer(x))


FORMS = {
    "a tuple": lambda z: (z, z.exp()),
    "a list": lambda z: [z],
    "a dictionary with logits": lambda z: {"loss": z.sum(), "logits": z},
    "a dictionary of one tensor": lambda z: {"out": z, "name": "x"},
    "an object with logits": lambda z: SimpleNamespace(logits=z),
}


@pytest.mark.unchecked
@pytest.mark.parametrize("form", FORMS)
def test_containers_of_logits(form):
    plain, other = Returns(lambda z: z).eval(), Returns(FORMS[form]).eval()
    other.load_state_dict(plain.state_dict())
    y = plain(X).argmax(1)
    expected, found = (attacks.pgd(0.05, steps=5)(net, X, y, seed=1) for net in (plain, other))
    assert torch.equal(found.x, expected.x) and torch.equal(found.success, expected.success)
    assert bool(found.success.any())


@pytest.mark.parametrize("shape", [(-1, 1), (-1,)])
def test_a_single_logit_is_that_of_the_second_class(shape):
    net = Returns(lambda z: z.reshape(shape), 1).eval()
    share = torch.sigmoid(net(X)).reshape(-1)
    assert torch.allclose(predict(as_predictive(net), X).log_probs.exp()[:, 1], share, atol=1e-6)
    found = attacks.pgd(0.3, steps=5)(net, X, (share > 0.5).long())
    assert bool(found.success.any())
    assert torch.equal(found.success, (net(found.x).reshape(-1) > 0) != (share > 0.5))


def test_a_single_probability():
    net = Returns(lambda z: z.sigmoid(), 1).eval()
    logits = Single(net, "probabilities").draw()(X).logits[0]
    assert torch.allclose(logits.exp()[:, 1], net(X)[:, 0]) and torch.allclose(logits.exp().sum(1), torch.ones(12))


def test_excluded_classes_are_never_reached():
    mask = torch.tensor([0.0, 0.0, -torch.inf])
    net = Returns(lambda z: z + mask).eval()
    found = attacks.pgd(0.5, steps=10)(net, X, net(X).argmax(1))
    assert bool(found.success.any()) and not bool((found.prediction == 2).any())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(dtype):
    """Inputs and perturbations stay float32; every success is one of the network as it is."""
    net = Returns(lambda z: z).to(dtype).eval()
    y = net(X.to(dtype)).argmax(1)
    found = attacks.pgd(0.2, steps=5)(net, X, y)
    assert found.x.dtype == torch.float32 and bool(found.success.any())
    assert torch.equal(found.success, net(found.x.to(dtype)).argmax(1) != y)


def test_what_a_network_returns_is_said():
    def said(change, classes: int = 3) -> tuple[str, str]:
        predictive, notes = recognised(Returns(change, classes).eval(), X)
        return predictive.outputs, " ".join(notes)

    assert said(lambda z: z) == ("logits", "")
    assert said(lambda z: (z, z))[1] == "it returns a tuple: its first entry is taken as the logits."
    assert said(lambda z: {"out": z})[1] == "it returns a dictionary: its entry 'out' is taken as the logits."
    assert said(lambda z: z, 1)[1].startswith("it returns a single logit z, which becomes the logits (-z/2, z/2)")
    for change, classes, name in ((lambda z: z.softmax(1), 3, "softmax"), (lambda z: z.sigmoid(), 1, "sigmoid")):
        outputs, text = said(change, classes)
        assert outputs == "probabilities" and text.endswith(
            f"without its last {name}, as gradients vanish where one is 1."
        )
    notes = recognised(Returns(lambda z: z).bfloat16().eval(), X)[1]
    assert len(notes) == 1 and notes[0].startswith("its weights are bfloat16: predictions are made in that precision")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("pretrained_cfg", {"mean": (0.5, 0.25), "std": (0.5, 0.5), "url": ""}),
        ("default_cfg", SimpleNamespace(mean=[0.5, 0.25], std=[0.5, 0.5])),
        ("config", SimpleNamespace(image_mean=[0.5, 0.25], image_std=[0.5, 0.5])),
    ],
)
def test_a_missing_normalisation_is_a_warning(name, config):
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(8, 3)).eval()
    setattr(backbone, name, config)
    x, y = torch.rand(30, 2, 2, 2, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    assert expected_normalisation(backbone) == ((0.5, 0.25), (0.5, 0.5))
    (warning,) = (w for w in check_model(backbone, x, y) if w.name == "missing normalisation")
    assert "mean (0.5, 0.25) and std (0.5, 0.5)" in warning.figure and "nets.Normalize(mean, std)" in warning.advice
    wrapped = nn.Sequential(Normalize((0.5, 0.25), (0.5, 0.5)), backbone)
    assert "missing normalisation" not in [w.name for w in check_model(wrapped, x, y)]
    setattr(backbone, name, {"mean": (0.0, 0.0), "std": (1.0, 1.0)})
    assert expected_normalisation(backbone) is None


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "net.", "module._orig_mod.model."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
def test_weights_of_other_programs(tmp_path, prefix, wrapper):
    net = Returns(lambda z: z)
    weights = {prefix + name: value for name, value in net.state_dict().items()}
    torch.save(weights if wrapper is None else {wrapper: weights, "epoch": 3}, tmp_path / "weights.pth")
    other = Returns(lambda z: z)
    nn.init.zeros_(other.layer.weight)
    load_weights(other, tmp_path / "weights.pth")
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))

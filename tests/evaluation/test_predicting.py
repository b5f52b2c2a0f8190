"""What `predict` says of single inputs, against closed forms of a linear model."""

import math

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.evaluation.predicting import predict
from equipoise.models import Ensemble, MonteCarloDropout


def linear(scale: float = 1.0) -> nn.Module:
    """Two classes with logits 0 and s (x1 + x2 - 1): the boundary is the line x1 + x2 = 1."""
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 0.0], [scale, scale]]))
        layer.bias.copy_(torch.tensor([0.0, -scale]))
    return layer.eval()


X = torch.tensor([[0.2, 0.4], [0.9, 0.7]])


@pytest.mark.unchecked
@pytest.mark.parametrize(("norm", "factor"), [("linf", 0.5), ("l2", 1 / math.sqrt(2))])
def test_radius_and_uncertainty_of_a_linear_model(norm, factor):
    attack = eq.attacks.Bisected(eq.attacks.deepfool(norm=norm))
    found = predict(linear(3.0), X, norm=norm, attack=attack, certified=norm == "linf", classes=["low", "high"])
    for sample, x in zip(found.samples, X, strict=True):
        gap = abs(float(x.sum()) - 1)
        p = 1 / (1 + math.exp(-3 * gap))
        assert sample.name == ("low" if x.sum() < 1 else "high")
        assert sample.probability == pytest.approx(p, abs=1e-6)
        assert sample.entropy == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p), abs=1e-5)
        assert sample.distance == pytest.approx(factor * gap, rel=2e-3)
        assert sample.distance is not None and sample.distance >= factor * gap - 1e-6
        if sample.certified is not None:
            assert factor * gap * 0.99 < sample.certified <= factor * gap + 1e-6
    assert "radius" in repr(found) and found.to_frame()["distance"].tolist() == [s.distance for s in found.samples]


def test_members_that_disagree_have_mutual_information():
    """Members with probabilities p and 1 - p: the mean has entropy log 2, each member H(p)."""
    one, other = linear(2.0), linear(-2.0)
    (sample,) = predict(Ensemble([one, other]), X[:1], radius=False).samples
    p = 1 / (1 + math.exp(2 * 0.4))
    own = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert sample.entropy == pytest.approx(math.log(2), abs=1e-6)
    assert sample.mutual_information == pytest.approx(math.log(2) - own, abs=1e-6)
    assert sample.distance is None and "none found" not in repr(predict(one, X[:1], radius=False))
    assert predict(one, X[:1], radius=False)[0].mutual_information is None
    dropout = MonteCarloDropout(nn.Sequential(nn.Dropout(0.5), linear(5.0)).eval(), samples=8)
    disagreement = predict(dropout, X[:1], radius=False)[0].mutual_information
    assert disagreement is not None and disagreement > 0.01


@pytest.mark.unchecked
def test_results_do_not_depend_on_the_batch():
    net, digits = eq.load("digits/udp-0.15")[0], eq.data.load("digits").test.x[:3]
    fast = {"attack": eq.attacks.fmn(norm="linf", steps=10)}
    together, apart = predict(net, digits, **fast), predict(net, digits, batch_size=1, **fast)
    assert [s.label for s in together.samples] == [s.label for s in apart.samples]
    assert [s.distance for s in together.samples] == pytest.approx([s.distance for s in apart.samples], rel=1e-4)


def test_refusals():
    with pytest.raises(eq.EquipoiseError, match="3 names for 2 classes"):
        predict(linear(), X, radius=False, classes="abc")
    with pytest.raises(eq.EquipoiseError, match="1 sources for 2 inputs"):
        predict(linear(), X, radius=False, sources=["a"])
    with pytest.raises(eq.EquipoiseError, match="measures distances in l2, not in norm = 'linf'"):
        predict(linear(), X, attack=eq.attacks.fmn(norm="l2"))
    with pytest.raises(eq.EquipoiseError, match="nothing to predict"):
        predict(linear(), X[:0])

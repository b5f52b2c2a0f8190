"""What every predictive must satisfy. A new one adds a row: a function that makes it from nothing."""

from functools import partial

import pytest
import torch
from torch import nn

from equipoise import attacks
from equipoise.attacks import udp
from equipoise.attacks.execution import value_and_gradient
from equipoise.attacks.steps import Uniform
from equipoise.core.rng import Stream, Streams
from equipoise.core.types import Prediction, Predictive
from equipoise.losses.objectives import cross_entropy, entropy
from equipoise.models import Ensemble, MonteCarloDropout, Single, Smoothed, as_predictive, frozen_weights
from equipoise.models.deep_kernel_gp import deep_kernel_gp
from equipoise.nets import FCResNet

pgd = partial(attacks.pgd, start="zero", return_point="last")


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3)).eval()


def gaussian_process() -> Predictive:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = deep_kernel_gp(FCResNet((4,), 8, 2), 3, X, inducing=5)
        torch.nn.init.normal_(model.module.gp.variational_mean, std=0.5)
    model.module.eval()
    return model


ROWS = {
    "single": lambda: Single(network()),
    "single of probabilities": lambda: Single(nn.Sequential(network(), nn.Softmax(1)), "probabilities"),
    "ensemble": lambda: Ensemble([network(seed) for seed in range(3)]),
    "ensemble side by side": lambda: Ensemble([network(seed) for seed in range(3)], vectorize=True),
    "ensemble of probabilities": lambda: Ensemble([nn.Sequential(network(), nn.Softmax(1))] * 2, "probabilities"),
    "monte carlo dropout": lambda: MonteCarloDropout(network(), 4),
    "smoothed": lambda: Smoothed(network(), 0.1, 4),
    "deep-kernel GP": lambda: gaussian_process(),
}
X, Y = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
STREAMS = Streams.of(0, torch.arange(6))


@pytest.fixture(params=ROWS)
def predictive(request) -> Predictive:
    return ROWS[request.param]()


def test_it_satisfies_the_protocol(predictive):
    assert isinstance(predictive, Predictive) and as_predictive(predictive) is predictive
    assert isinstance(predictive.module, nn.Module)


def test_its_prediction_is_a_distribution(predictive):
    prediction = predictive.draw(STREAMS)(X)
    assert isinstance(prediction, Prediction) and prediction.logits.shape[1:] == (6, 3)
    assert torch.allclose(prediction.log_probs.exp().sum(1), torch.ones(6), atol=1e-5)
    assert torch.equal(prediction.labels, prediction.log_probs.argmax(1))


def test_a_drawn_function_is_frozen(predictive):
    predict = predictive.draw(STREAMS)
    assert torch.equal(predict(X).logits, predict(X).logits)
    again = predictive.draw(Streams.of(0, torch.arange(6)))
    assert torch.equal(predict(X).logits, again(X).logits)


def test_frozen_weights_give_the_same(predictive):
    frozen = predictive.draw(STREAMS, frozen_weights(predictive.module, "eval"))
    prediction = frozen(X)
    assert torch.allclose(prediction.logits, predictive.draw(STREAMS)(X).logits, atol=1e-5)
    assert not prediction.logits.requires_grad, "constants: only the input has a gradient"


def test_its_input_gradient(predictive):
    """By central differences in one random direction."""
    predict = predictive.draw(STREAMS)
    direction = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    _, gradient, _ = value_and_gradient(entropy, predict, X)
    step = 1e-2
    difference = (entropy(predict(X + step * direction)) - entropy(predict(X - step * direction))) / (2 * step)
    assert torch.allclose((gradient * direction).sum(1), difference, atol=2e-3)
    assert all(p.grad is None for p in predictive.module.parameters())


def test_it_can_be_attacked(predictive):
    """A random model is drawn once: for the climb, for its restarts, and where the points found are judged."""
    judge = predictive.draw(STREAMS.fold(Stream.MODEL))
    for attack in (pgd(0.1, 0.03, 4), udp(0.1, 0.03, 4), pgd(0.1, 0.03, 4, start=Uniform(), restarts=2)):
        found = attack(predictive, X, Y)
        assert torch.equal(found.prediction, judge(found.x).labels)
    (_, slope, _) = value_and_gradient(cross_entropy, judge, X, None, Y)
    assert torch.allclose(pgd(0.01, 0.01, 1)(predictive, X, Y).x, (X + 0.01 * slope.sign()).clamp(0, 1), atol=1e-6)

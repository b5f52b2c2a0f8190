"""What every attack promises, as tests."""

import copy
import json
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.attacks import AttackLike
from equipoise.attacks.result import AttackResult


def small_network(seed: int = 0) -> nn.Module:
    """A convolutional network in eval mode for inputs of shape (2, 4, 4) and 5 classes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
        ).eval()


def small_samples(model: nn.Module, count: int = 16) -> tuple[Tensor, Tensor]:
    """Inputs in [0, 1] of shape (count, 2, 4, 4), and the classes that the model predicts for them."""
    x = torch.rand(count, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, model(x).argmax(1)


class AttackContract:
    """The promises of an attack within a ball and the box [0, 1]; a subclass gives the fixture `attack`."""

    targeted = False
    """Whether a success is a certain class, and not any wrong one."""
    exact = True
    """Whether it computes in the precision of its input, so that a single sample is attacked as in a batch."""

    def test_points_lie_in_ball_and_box_and_every_success_is_one(self, attack: AttackLike) -> None:
        """Points, distances, predictions and successes are those that anybody would compute from the points."""
        model = small_network()
        x, y = small_samples(model)
        found = attack(model, x, y, seed=3)
        assert isinstance(found, AttackResult) and found.x.shape == x.shape and found.x.dtype == x.dtype
        assert attack.geometry.contains(found.x, x).all() and found.x.min() >= 0 and found.x.max() <= 1
        move = (found.x.double() - x.double()).flatten(1)
        length = {
            "linf": move.abs().amax(1),
            "l2": move.norm(dim=1),
            "l1": move.abs().sum(1),
            "l0": (move != 0).sum(1).double(),
        }[attack.geometry.norm]
        assert torch.allclose(found.distance.double(), length, rtol=1e-6)
        with torch.no_grad():
            predicted = model(found.x).argmax(1)
        assert torch.equal(found.prediction, predicted) and not found.x.requires_grad
        assert (predicted[found.success] != y[found.success]).all()
        assert self.targeted or torch.equal(found.success, predicted != y)
        assert (found.evaluations >= 1).all() and not found.nan_gradients.any()

    def test_the_seed_decides_and_the_model_stays(self, attack: AttackLike) -> None:
        """Two calls with one seed are alike, and leave weights, buffers and the random state as they were."""
        model = small_network()
        x, y = small_samples(model)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        state = torch.get_rng_state()
        first, again = attack(model, x, y, seed=3), attack(model, x, y, seed=3)
        assert torch.equal(first.x, again.x) and torch.equal(first.evaluations, again.evaluations)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), state)

    def test_neither_batch_size_nor_order_matters(self, attack: AttackLike) -> None:
        """A sample's outcome is its own: alone, in another order, in smaller batches."""
        model = small_network()
        x, y = small_samples(model)
        if self.exact:
            model, x = copy.deepcopy(model).double(), x.double()
        tolerance = 1e-9 if self.exact else 0.2
        index, order = torch.arange(len(x)), torch.arange(len(x)).flip(0)
        found = attack(model, x, y, seed=3, index=index)
        alone = attack(model, x[5:6], y[5:6], seed=3, index=index[5:6])
        assert torch.allclose(alone.x, found.x[5:6], atol=tolerance)
        turned = attack(model, x[order], y[order], seed=3, index=index[order], batch_size=5)
        assert torch.allclose(turned.x[order], found.x, atol=tolerance)

    def test_its_settings_are_data(self, attack: Any) -> None:
        """They go into records, and an attack is a value that can be compared."""
        assert json.loads(json.dumps(attack.settings())) and hash(attack) == hash(attack)

"""Monte-Carlo dropout against the enumeration of all masks, and what its randomness depends on."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from equipoise.attacks import pgd, udp
from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import Streams
from equipoise.core.types import Predictive
from equipoise.models import as_predictive, frozen_weights
from equipoise.models.dropout import MonteCarloDropout
from equipoise.models.splitting import parts
from equipoise.nets import build

pytestmark = pytest.mark.unchecked

ROWS = torch.arange(6)
STREAMS = Streams.of(3, ROWS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def global_seed(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def few_units(p: float = 0.5) -> nn.Module:
    """Four units that may be dropped."""
    return global_seed(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(p), nn.Linear(4, 3))).eval()


def convolutional(last: nn.Module | None = None) -> nn.Module:
    """Batch-norm, dropped channels, dropped units in place, and a dropout layer that is applied twice."""
    last = last or nn.Dropout(0.2, inplace=True)
    layers = lambda: nn.Sequential(  # noqa: E731
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout2d(0.5),
        nn.Flatten(),
        last,
        nn.Linear(144, 16),
        last,
        nn.Linear(16, 3),
    )
    return global_seed(layers).eval()


IMAGES, Y = torch.rand(6, 1, 8, 8, generator=generator()), torch.arange(6) % 3
POINTS = torch.rand(6, 3, generator=generator())


def masks_of(module: nn.Module, streams=STREAMS, x: Tensor = POINTS, samples: int = 5) -> Tensor:
    """What arrives, of ones, behind a single dropout layer: (members, batch, units)."""
    with torch.no_grad():
        return MonteCarloDropout(module, samples).draw(streams)(torch.ones_like(x)).logits


@pytest.mark.parametrize(("p", "mode"), [(0.5, "eval"), (0.3, "eval"), (0.3, "train")])
def test_its_mean_converges_to_the_mean_over_all_masks(p, mode):
    net, n = few_units(p), 1000
    first, tanh, _, last = net
    hidden = tanh(first(POINTS))
    kept = torch.tensor(list(product([0.0, 1.0], repeat=4)))
    weight = (p ** (1 - kept) * (1 - p) ** kept).prod(1)[:, None, None]
    every = last(hidden * kept[:, None, :] / (1 - p)).softmax(-1)
    mean = (weight * every).sum(0)
    deviation = (weight * (every - mean) ** 2).sum(0).sqrt()
    with torch.no_grad():
        found = MonteCarloDropout(net.train(mode == "train"), n).draw(STREAMS)(POINTS)
    assert len(found.logits) == n
    # Five standard errors of the mean of n independent masks.
    assert ((found.log_probs.exp() - mean).abs() <= 5 * deviation / n**0.5).all()
    # And they are drawn: the mean is not met exactly, nor are the members that of the whole network.
    assert ((found.logits.softmax(-1).std(0) / deviation - 1).abs() < 0.15).all()


@pytest.mark.parametrize(
    ("layer", "shape", "together"),
    [
        (nn.Dropout(0.25), (5, 4, 4), False),
        (nn.Dropout(0.25), (50,), False),
        (nn.Dropout1d(0.25), (50, 4), True),
        (nn.Dropout2d(0.25), (50, 4, 4), True),
        (nn.Dropout3d(0.25), (50, 2, 2, 2), True),
    ],
)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_masks_are_those_of_pytorch(layer, shape, together, mode):
    net = nn.Sequential(layer, nn.Flatten()).train(mode == "train")
    masks = masks_of(net, x=torch.ones(6, *shape), samples=20).reshape(20, 6, shape[0], -1)
    assert masks.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert torch.equal(masks, masks[..., :1].expand_as(masks)) == (together or len(shape) == 1)
    units = masks[..., 0] if together else masks
    of_all = 20 * units[0, 0].numel() * (6 if mode == "train" else 1)  # independent ones
    assert abs(float((units == 0).float().mean()) - 0.25) < 5 * (0.25 * 0.75 / of_all) ** 0.5
    assert torch.equal(masks[0], masks[0, :1].expand_as(masks[0])) == (mode == "eval"), "one per member, or per row"
    assert not torch.equal(masks[0], masks[1])


@pytest.mark.parametrize(("p", "expected"), [(0.0, 1.0), (1.0, 0.0)])
def test_nothing_or_everything_is_dropped(p, expected):
    assert (masks_of(nn.Sequential(nn.Dropout(p), nn.Identity())) == expected).all()


def test_every_layer_and_every_use_of_one_has_a_mask_of_its_own():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.other = nn.Dropout(), nn.Dropout()

        def forward(self, x):
            return torch.cat([self.drop(x), self.drop(input=x), self.other(x)], 1)

    once, again, other = masks_of(Twice().eval(), x=torch.ones(6, 60)).split(60, 2)
    assert not torch.equal(once, again) and not torch.equal(once, other) and not torch.equal(again, other)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_masks_stand_still_within_a_draw_and_change_with_the_streams(mode):
    predictive = MonteCarloDropout(convolutional().train(mode == "train"), 3)
    predict = predictive.draw(STREAMS)
    assert torch.equal(predict(IMAGES).logits, predict(IMAGES).logits)
    assert torch.equal(predict(IMAGES).logits, predictive.draw(Streams.of(3, ROWS))(IMAGES).logits)
    for streams in (STREAMS.fold(1), STREAMS.fold(2), Streams.of(4, ROWS), None):
        assert not torch.allclose(predict(IMAGES).logits, predictive.draw(streams)(IMAGES).logits, atol=1e-3)
    of_seed_0 = predictive.draw(Streams.of(0, ROWS))
    assert torch.equal(predictive.draw()(IMAGES).logits, of_seed_0(IMAGES).logits)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_shared_stream_decides_in_eval_mode_and_a_rows_own_in_train_mode(mode):
    net = few_units().train(mode == "train")
    there = MonteCarloDropout(net).draw(STREAMS)(POINTS).logits
    backwards = ROWS.flip(0)
    again = MonteCarloDropout(net).draw(STREAMS[backwards])(POINTS[backwards]).logits
    torch.testing.assert_close(again, there[:, backwards])  # a row takes its mask along
    other_batch = MonteCarloDropout(net).draw(Streams.of(3, ROWS, batch=1))(POINTS).logits
    other_rows = MonteCarloDropout(net).draw(Streams.of(3, ROWS + 6))(POINTS).logits
    assert torch.equal(there, other_batch) == (mode == "train")
    assert torch.equal(there, other_rows) == (mode == "eval")


def test_a_prediction_in_eval_mode_does_not_depend_on_the_batch():
    predictive = MonteCarloDropout(convolutional())
    predict = predictive.draw(STREAMS)
    whole = predict(IMAGES).logits
    for rows in (slice(0, 1), slice(2, 6), torch.tensor([5, 0])):
        torch.testing.assert_close(predict(IMAGES[rows]).logits, whole[:, rows])
        torch.testing.assert_close(predictive.draw(STREAMS[rows])(IMAGES[rows]).logits, whole[:, rows])


def test_rows_without_a_stream_have_masks_by_position_in_train_mode():
    net = nn.Sequential(nn.Dropout(), nn.Identity()).train()
    masks = masks_of(net, STREAMS, torch.ones(9, 40))
    assert len({tuple(row) for row in masks.flatten(0, 1).tolist()}) == 45
    assert torch.equal(masks, masks_of(net, STREAMS, torch.ones(9, 40)))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_it_leaves_the_network_and_all_random_states_as_they_were(mode):
    net = convolutional().train(mode == "train")
    net[3].training = False  # a mode of its own
    modes, state = [m.training for m in net.modules()], torch.get_rng_state()
    before, hooks = {k: v.clone() for k, v in net.state_dict().items()}, [len(m._forward_pre_hooks) for m in net]
    x = IMAGES.clone()
    MonteCarloDropout(net, 3).draw(STREAMS)(x)
    with pytest.raises(RuntimeError):
        MonteCarloDropout(net).draw(STREAMS)(torch.ones(6, 2, 8, 8))
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(x, IMAGES)
    assert [m.training for m in net.modules()] == modes and [len(m._forward_pre_hooks) for m in net] == hooks
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == (set() if mode == "eval" else {"1.running_mean", "1.running_var", "1.num_batches_tracked"})


def test_batch_statistics_are_those_of_one_member():
    """Behind a dropout layer in train mode, by hand from the masks."""
    net = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3, affine=False))
    masks = masks_of(nn.Sequential(net[0], nn.Identity()).train())
    found = MonteCarloDropout(net.train()).draw(STREAMS)(POINTS).logits
    h = masks * POINTS
    torch.testing.assert_close(found, (h - h.mean(1, True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt())
    assert net[1].num_batches_tracked == 5


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_weights_stand_in_for_the_networks(mode):
    net = convolutional()
    predictive = MonteCarloDropout(net.train(mode == "train"), 2)
    weights = frozen_weights(net, "train")
    expected = predictive.draw(STREAMS)(IMAGES).logits
    frozen = predictive.draw(STREAMS, weights)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
    frozen_copy = predictive.draw(STREAMS, {k: w - 1 for k, w in weights.items()})
    assert not torch.allclose(frozen(IMAGES).logits, expected, atol=1e-2)  # they share memory with the parameters
    torch.testing.assert_close(frozen_copy(IMAGES).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_gradients_pass_through_the_masks(mode):
    net = few_units().double().train(mode == "train")
    predict = MonteCarloDropout(net, 3).draw(STREAMS)
    x = POINTS.double().requires_grad_()
    assert predict(x).logits.dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: predict(x).log_probs, x)


def test_probabilities():
    net = few_units()
    found = MonteCarloDropout(nn.Sequential(net, nn.Softmax(1)).eval(), 4, "probabilities").draw(STREAMS)(POINTS)
    expected = MonteCarloDropout(net, 4).draw(STREAMS)(POINTS)
    torch.testing.assert_close(found.log_probs, expected.log_probs)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("attack", [udp, pgd])
def test_it_can_be_attacked(attack, mode):
    predictive = MonteCarloDropout(convolutional(), 3)
    assert isinstance(predictive, Predictive) and as_predictive(predictive) is predictive
    frozen = attack(0.1, 0.03, 5, mode=mode)(predictive, IMAGES, Y, seed=1)
    again = attack(0.1, 0.03, 5, mode=mode)(predictive, IMAGES, Y, seed=1)
    redrawn = attack(0.1, 0.03, 5, mode=mode, resample=True)(predictive, IMAGES, Y, seed=1)
    assert torch.equal(frozen.x, again.x) and not torch.equal(frozen.x, redrawn.x)
    assert ((frozen.x - IMAGES).abs() <= 0.1 + 1e-6).all() and not torch.equal(frozen.x, IMAGES)


def test_an_attack_in_eval_mode_does_not_depend_on_the_batch():
    predictive = MonteCarloDropout(convolutional(), 3)
    whole = udp(0.1, 0.03, 5)(predictive, IMAGES, Y, seed=1)
    for rows in ROWS.split(4):
        part = udp(0.1, 0.03, 5)(predictive, IMAGES[rows], Y[rows], seed=1, index=rows)
        torch.testing.assert_close(part.x, whole.x[rows])


def test_what_follows_an_encoder_has_the_masks_of_the_whole():
    predictive = MonteCarloDropout(convolutional(), 3)
    encoder, rest = parts(predictive, "2")
    torch.testing.assert_close(
        rest.draw(STREAMS)(encoder(IMAGES)).logits, predictive.draw(STREAMS)(IMAGES).logits, rtol=0, atol=0
    )


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout()

    def forward(self, x):
        return self.drop(x.T).T


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MonteCarloDropout(build("mlp", (3,))), "MLP has no dropout layer .* functional dropout is not seen"),
        (lambda: MonteCarloDropout(few_units(), 0), "samples = 0: .* at least one"),
        (lambda: MonteCarloDropout(nn.AlphaDropout()), "has a layer AlphaDropout, whose masks cannot be drawn"),
        (lambda: MonteCarloDropout(few_units(), outputs="odds"), "unknown outputs 'odds'"),
        (
            lambda: MonteCarloDropout(Transposed()).draw()(POINTS),
            r"shape \(3, 6\) for a batch of 6: expected the",
        ),
        (lambda: MonteCarloDropout(few_units()).split("2"), "the encoder that ends with '2' has dropout layers"),
        (lambda: MonteCarloDropout(convolutional()).split("8"), "no classifier is left"),
    ],
)
def test_refused(make, message):
    with pytest.raises(EquipoiseError, match=message):
        make()

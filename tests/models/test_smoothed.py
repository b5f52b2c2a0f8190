"""Randomised smoothing: the certificate against closed forms, and how an attack sees a smoothed model."""

import math

import pytest
import torch
from scipy.stats import beta, binom, norm
from torch import Tensor, nn

from equipoise import attacks
from equipoise.certified import certified
from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import Stream, Streams
from equipoise.geometry import Ball
from equipoise.losses import as_method, cross_entropy
from equipoise.models import Single, Smoothed

SIGMA = 0.25


class HalfSpace(nn.Module):
    """Class 1 where `w·x > b`, as logits without a gradient worth having; exact under noise."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0, 4.0]) / 5)

    def forward(self, x: Tensor) -> Tensor:
        z = 50 * (x @ self.w - 0.7)
        return torch.stack([-z, z], 1)


def points(n: int) -> Tensor:
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(0))


def distances(x: Tensor) -> Tensor:
    return (x.double() @ torch.tensor([0.6, 0.8], dtype=torch.float64) - 0.7).abs()


def test_of_a_half_space_the_radius_tends_to_the_distance():
    """The probability under noise is Φ(d/σ), so that σ Φ⁻¹(p) is the distance d itself (Cohen et al. 2019)."""
    x, n = points(40), 10_000
    found = Smoothed(HalfSpace(), SIGMA).certify(x, n=n, alpha=0.001)
    true = distances(x)
    held = found.prediction >= 0
    assert torch.equal(found.prediction[held], HalfSpace()(x).argmax(1)[held])
    assert (found.radius[held] <= true[held]).float().mean() == 1, "each with probability 0.999"
    near = held & (true < 2 * SIGMA)  # beyond, n draws of one class bound the radius
    assert near.sum() > 20 and ((true - found.radius)[near] < 0.2 * SIGMA).all()
    assert (true[~held] < 0.06 * SIGMA).all() and (found.radius[~held] == 0).all()


def test_the_lower_bound_is_that_of_clopper_and_pearson():
    x, n, alpha = points(40), 500, 0.01
    model = Smoothed(HalfSpace(), SIGMA)
    found = model.certify(x, n=n, alpha=alpha)
    streams = Streams.of(0, torch.arange(40))
    selected = model._counts(x, 100, streams.fold(Stream.SELECTION), 1000).argmax(1)
    counts = model._counts(x, n, streams.fold(Stream.ESTIMATION), 1000)
    assert (counts.sum(1) == n).all() and (counts.argmax(1) != selected).any(), "the class is chosen by other draws"
    for i in range(40):
        top = int(counts[i, selected[i]])
        p = beta.ppf(alpha, top, n - top + 1)
        assert binom.sf(top - 1, n, p) == pytest.approx(alpha)  # by what defines it
        assert float(found.probability[i]) == pytest.approx(p, rel=1e-9)
        expected = SIGMA * norm.ppf(p) if p > 0.5 else 0.0
        assert float(found.radius[i]) == pytest.approx(expected, rel=1e-6, abs=1e-12)
        assert (int(found.prediction[i]) == -1) == (p <= 0.5)


def test_the_confidence_holds_as_often_as_it_says():
    """At one point with probability 0.7 under noise, the bound exceeds it in at most alpha of the repetitions."""
    d = SIGMA * norm.ppf(0.7)
    x = (torch.tensor([[0.6, 0.8]], dtype=torch.float64) * (0.7 + d)).expand(2000, 2)
    found = Smoothed(HalfSpace().double(), SIGMA).certify(x, n0=50, n=200, alpha=0.1)
    too_high = int((found.probability > 0.7).sum())
    assert 0.04 * 2000 < too_high < 0.1 * 2000 + 3 * math.sqrt(0.09 * 2000)


def test_it_abstains_on_the_boundary():
    x = (torch.tensor([[0.6, 0.8]]) * 0.7).expand(200, 2)
    model = Smoothed(HalfSpace(), SIGMA)
    certificate, classes = model.certify(x, n=300, alpha=0.05), model.classify(x, n=300, alpha=0.05)
    assert (certificate.prediction == -1).float().mean() > 0.9
    assert 0.9 < (classes == -1).float().mean() < 1, "at level 0.05 some differ by chance"
    assert not certificate.certified(classes, 0.0)[certificate.prediction == -1].any()


def test_the_class_is_that_of_the_two_sided_test():
    x, n, alpha = points(40), 60, 0.02
    model = Smoothed(HalfSpace(), SIGMA)
    counts = model._counts(x, n, Streams.of(3, torch.arange(40)).fold(Stream.ESTIMATION), 1000)
    found = model.classify(x, n, alpha, seed=3)
    for i in range(40):
        first = int(counts[i].max())
        p = min(1.0, 2 * binom.sf(first - 1, n, 0.5))
        assert int(found[i]) == (int(counts[i].argmax()) if p <= alpha else -1)
    assert (found == -1).any() and (found >= 0).any()


def test_draws_belong_to_samples():
    model, x = Smoothed(HalfSpace(), SIGMA), points(12)
    whole = model.certify(x, n=350, alpha=0.01)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    mixed = model.certify(x[order], n=350, alpha=0.01, index=order, batch_size=1)
    assert torch.equal(whole.radius[order], mixed.radius) and torch.equal(whole.prediction[order], mixed.prediction)
    large = model.certify(x, n=350, alpha=0.01, batch_size=5000)
    assert torch.equal(whole.radius, large.radius)
    assert not torch.equal(whole.radius, model.certify(x, n=350, alpha=0.01, seed=1).radius)
    twice = model.certify(x[:1].expand(2, 2), n=350, alpha=0.01)
    assert twice.probability[0] != twice.probability[1], "two samples have two noises"


def test_what_is_not_finite_counts_for_no_class():
    class Broken(HalfSpace):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).masked_fill((x[:, :1] < 0.5), math.nan)

    x = torch.tensor([[0.5, 2.0]])
    model = Smoothed(Broken(), SIGMA)
    counts = model._counts(x, 1000, Streams.of(0, torch.arange(1)), 100)
    assert 400 < int(counts[0, 1]) < 600 and int(counts.sum()) == int(counts[0, 1])
    assert int(model.certify(x, n=1000).prediction) == -1


def test_the_model_and_the_random_state_stay_as_they_were():
    net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).train()
    before, random = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    Smoothed(net, SIGMA).certify(points(3), n=100)
    assert net.training and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


# As a predictive


def test_a_member_is_a_network_in_eval_mode_and_a_sample_has_its_own_noise_in_train_mode():
    net, x, streams = HalfSpace(), points(5), Streams.of(0, torch.arange(5))
    model = Smoothed(net.eval(), SIGMA, samples=3)
    shared = model.draw(streams)
    assert shared(x).logits.shape == (3, 5, 2)
    assert torch.allclose(shared(x)[slice(2, 4)].logits, shared(x[2:4]).logits)
    shift = [logits - Single(net).draw()(x).logits[0] for logits in shared(x).logits]
    assert all(torch.allclose(s, s[:1].expand(5, 2), atol=1e-4) for s in shift), "one noise moves all samples alike"
    net.train()
    own = model.draw(streams)(x).logits[0] - Single(net).draw()(x).logits[0]
    assert len(own[:, 0].unique()) == 5
    sigma = (model.draw(Streams.of(1, torch.arange(4000)))(points(1).expand(4000, 2)).logits[:, :, 1] / 50).std()
    assert sigma.item() == pytest.approx(SIGMA, rel=0.05)


def test_an_attack_ascends_the_mean_of_its_members_and_is_judged_by_them():
    model, x = Smoothed(HalfSpace().eval(), SIGMA), points(30)
    y = HalfSpace()(x).argmax(1)
    found = attacks.pgd(0.3, steps=10, norm="l2", start="zero")(model, x, y)
    judge = model.draw(Streams.of(0, torch.arange(30)).fold(Stream.MODEL))
    assert torch.equal(found.prediction, judge(found.x).labels)
    assert found.success.any() and not found.success.all()


def test_it_can_be_trained_on_noise():
    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2)).train()
    as_method(cross_entropy).loss(Smoothed(net, SIGMA, 2), points(40), torch.arange(40) % 2, step=0).backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Smoothed(HalfSpace(), 0.0), "sigma = 0.0: expected a standard deviation > 0"),
        (lambda: Smoothed(HalfSpace(), 0.1, 0), "samples = 0"),
        (lambda: Smoothed(HalfSpace(), 0.1).certify(points(2), alpha=0.0), "alpha = 0.0: expected a probability"),
        (lambda: Smoothed(HalfSpace(), 0.1).certify(points(2), n=0), "n = 0"),
        (lambda: Smoothed(HalfSpace(), 0.1).certify(points(0)), "x is empty"),
        (lambda: certified(Smoothed(HalfSpace(), 0.1), points(2), None, Ball("l2", 0.1)), "cannot bound a Smoothed"),
    ],
)
def test_refuses_values_that_make_no_sense(make, message):
    with pytest.raises(EquipoiseError, match=message):
        make()

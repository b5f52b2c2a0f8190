"""What every training method must satisfy. A new one adds a row."""

import copy

import pytest
import torch
from torch import nn

from equipoise import methods
from equipoise.attacks.ascent import Ascent
from equipoise.core.rng import Streams
from equipoise.generators import AdversarialGenerator, Manifold
from equipoise.losses import Bounds
from equipoise.losses.objectives import regularised
from equipoise.losses.terms import Method
from equipoise.models import Single, frozen
from equipoise.training.methods import variations

OPTIONS = {"step_size": 0.03, "steps": 3}
ROWS = {
    "standard": methods.standard,
    "entm": lambda **o: methods.entm(0.3),
    "label_smoothing": lambda **o: methods.label_smoothing(0.1),
    "adp": lambda **o: methods.adp(0.1, 0.1),
    "n_fgsm_at": lambda **o: methods.n_fgsm_at(0.1, **o),
    "gradalign_at": lambda **o: methods.gradalign_at(0.1, **o),
    "friendly_at": lambda **o: methods.friendly_at(0.1, **OPTIONS, **o),
    "pat": lambda **o: methods.pat(0.1, **OPTIONS, loss=regularised(0.2), **o),
    "corruption_at": lambda **o: methods.corruption_at(("rotate", "impulse_noise")),
    "mart": lambda **o: methods.mart(0.1, **OPTIONS, **o),
    "r2": lambda **o: methods.r2(AdversarialGenerator((1, 8, 8))),
    "fgsm_at": lambda **o: methods.fgsm_at(0.1, **o),
    "r_fgsm_at": lambda **o: methods.r_fgsm_at(0.1, **o),
    "pgd_at": lambda **o: methods.pgd_at(0.1, **OPTIONS, **o),
    "udp": lambda **o: methods.udp(0.1, **OPTIONS, **o),
    "uta": lambda **o: methods.uta(0.1, **OPTIONS, **o),
    "udpr": lambda **o: methods.udpr(0.1, **OPTIONS, **o),
    "trades": lambda **o: methods.trades(0.1, **OPTIONS, **o),
    "udp_trades": lambda **o: methods.udp_trades(0.1, **OPTIONS, **o),
    "ls_pgd": lambda **o: methods.ls_pgd(0.1, "3", **OPTIONS, **o),
    "ls_udp": lambda **o: methods.ls_udp(0.1, "3", **OPTIONS, **o),
    "ls_uta": lambda **o: methods.ls_uta(0.1, "3", **OPTIONS, **o),
    "ls_udpr": lambda **o: methods.ls_udpr(0.1, "3", **OPTIONS, **o),
    "ls_trades": lambda **o: methods.ls_trades(0.1, "3", **OPTIONS, **o),
    "hein": lambda **o: methods.hein(0.01),
    "r4": lambda **o: methods.r4(PIXELS),
    "fgsm_pgi": lambda **o: methods.fgsm_pgi(0.1),
    "mma": lambda **o: methods.mma(0.3, **OPTIONS, **o),
    "ibp": lambda **o: methods.ibp(0.02),
    "crown_ibp": lambda **o: methods.crown_ibp(0.02, linear=0.5),
    "mtl_ibp": lambda **o: methods.mtl_ibp(0.02, **OPTIONS, **o),
    "on_manifold_at": lambda **o: methods.on_manifold_at(PIXELS, 0.1, **OPTIONS, **o),
    "on_manifold_udp": lambda **o: methods.on_manifold_udp(PIXELS, 0.1, **OPTIONS, **o),
}
VARIED = {
    "alternating": lambda **o: methods.alternating(
        methods.pgd_at(0.1, **OPTIONS, **o), methods.pgd_at(0.2, **OPTIONS, **o)
    ),
    "worst_of": lambda **o: methods.worst_of(methods.pgd_at(0.1, **OPTIONS, **o), methods.udp(0.2, **OPTIONS, **o)),
    "average_of": lambda **o: methods.average_of(methods.pgd_at(0.1, **OPTIONS, **o), methods.udp(0.2, **OPTIONS, **o)),
    "every": lambda **o: methods.every(2, methods.trades(0.1, **OPTIONS, **o)),
    "remembering": lambda **o: methods.remembering(methods.udpr(0.1, **OPTIONS, **o)),
    "adaptive_eps": lambda **o: methods.adaptive_eps(methods.udp(0.1, **OPTIONS, **o)),
    "distilled": lambda **o: methods.distilled(methods.udp(0.1, **OPTIONS, **o), TEACHER),
}
"""Methods made of others."""
TEACHER = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
PIXELS = Manifold(nn.Flatten(), nn.Unflatten(1, (1, 8, 8)))  # the codes are the pixels
X, Y = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
STREAMS = Streams.of(0, torch.arange(12))


@pytest.fixture(params=ROWS | VARIED)
def make(request):
    return (ROWS | VARIED)[request.param]


@pytest.fixture(params=["eval", "train"])
def method(request, make) -> Method:
    return make() if make is methods.standard else make(mode=request.param)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 3)).train()


def test_every_public_method_has_a_row():
    public = {name for name in methods.__all__ if getattr(methods, name).__module__ != variations.__name__}
    assert public == set(ROWS)
    assert set(methods.__all__) - public == set(VARIED)


def test_perturbing_leaves_no_trace_in_the_gradients(method):
    model = network()
    points = method.points(Single(model), X, Y, STREAMS)
    assert len(points) == len(method.perturbations) and model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    for place, point in zip(method.perturbations, points, strict=True):
        assert (point is None) == (place is None or isinstance(place, Bounds))
        assert point is None or not point.requires_grad
        if point is not None and isinstance(place, Ascent):
            origin = place.space.enter(frozen(Single(model), place.mode), X)[1]
            assert place.geometry.contains(point, place.space.leave(origin, origin)).all()


def test_it_trains(method):
    """Twenty steps lower the training loss."""
    model = network()
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    for step in range(20):
        streams = STREAMS.fold(step)
        predictive = Single(model)
        values, shown = method.losses(predictive, X, Y, method.points(predictive, X, Y, streams), streams)
        assert values.shape == (12,) and shown.logits.shape == (1, 12, 3)
        optimiser.zero_grad()
        values.mean().backward()
        optimiser.step()
        losses.append(values.mean().item())
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_the_streams_decide(method):
    first, again = (method.points(Single(copy.deepcopy(network())), X, Y, STREAMS) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_it_describes_itself(method):
    assert "cross-entropy" in str(method)
    method.check(3, members=2)

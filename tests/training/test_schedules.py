"""Numbers that change over a training, and the methods and attacks made of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equipoise import EquipoiseError, Recipe, attacks, losses, methods, nets, schedules, train
from equipoise.core.schedules import Schedule, parse_schedule, piecewise, ramp
from equipoise.data import Dataset, Split
from equipoise.losses import cross_entropy, kl
from equipoise.training import Progress

SHARES = st.floats(0, 1)
POINTS = st.lists(st.tuples(SHARES, st.floats(-9, 9)), min_size=1, max_size=5).map(
    lambda points: tuple(sorted({round(share, 2): value for share, value in points}.items()))
)


@given(points=POINTS, done=SHARES)
def test_a_schedule_is_linear_between_its_points(points: tuple[tuple[float, float], ...], done: float) -> None:
    shares, values = zip(*points, strict=True)
    assert Schedule(points).at(done) == pytest.approx(float(np.interp(done, shares, values)), abs=1e-9)


@given(points=POINTS)
def test_a_schedule_can_be_read_from_its_text(points: tuple[tuple[float, float], ...]) -> None:
    again = parse_schedule(str(Schedule(points)))
    assert np.array(again.points) == pytest.approx(np.array(points), rel=1e-11)


def test_two_points_at_one_share_make_a_jump_to_the_second() -> None:
    jump = piecewise((0.0, 1.0), (0.5, 1.0), (0.5, 3.0))
    assert [jump.at(done) for done in (0, 0.499, 0.5, 1)] == [1, 1, 3, 3]


def test_a_method_of_a_schedule_is_that_of_its_number_at_every_moment() -> None:
    warm_up = methods.trades(eps=ramp(0, 0.2, until=0.5), beta=ramp(2, 6), steps=4)
    for done, eps, beta in ((0.125, 0.05, 2.5), (0.5, 0.2, 4.0), (1.0, 0.2, 6.0)):
        assert str(warm_up.at(done)) == str(methods.trades(eps=eps, beta=beta, steps=4))


def test_a_number_of_steps_is_rounded_and_the_size_of_a_step_follows() -> None:
    growing = attacks.pgd(eps=0.1, steps=ramp(1, 4))
    assert growing.at(0.5) == attacks.pgd(eps=0.1, steps=2)
    assert growing.at(0.6) == attacks.pgd(eps=0.1, steps=3)


def test_sums_of_terms_are_scheduled_term_by_term() -> None:
    ascent = attacks.trades(eps=0.1, steps=2)
    method = cross_entropy - ramp(1, 0) * losses.entropy + (kl() @ attacks.trades(eps=ramp(0.05, 0.1), steps=2)) / 2
    assert str(method.at(1.0)) == str(cross_entropy - 0.0 * losses.entropy + 0.5 * (kl() @ ascent))
    assert str(method.at(0.0)) == str(cross_entropy - losses.entropy + 0.5 * (kl() @ attacks.trades(eps=0.05, steps=2)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: methods.pgd_at(eps=ramp(0.1, -0.1)), "eps = -0.1 is not a radius"),
        (lambda: ramp(0, 1, until=1.5), "expected one or more shares of the training in"),
        (lambda: ramp(0, 1, until=0.2, after=0.4), "in rising order"),
        (lambda: piecewise(), "at the shares none"),
        (lambda: ramp(0, "1"), "expected a number"),
        (lambda: cross_entropy + ramp(0, 1), "numbers weigh terms"),
    ],
)
def test_wrong_schedules_are_refused_when_they_are_made(build, message: str) -> None:
    with pytest.raises(EquipoiseError, match=message):
        build()


def test_a_scheduled_method_says_how_to_compute_its_loss() -> None:
    with pytest.raises(AttributeError, match=r"take it at a moment of the training, as in \.at\(1\.0\)\.loss"):
        methods.pgd_at(eps=ramp(0, 0.1)).loss  # noqa: B018


def _epochs(method, epochs: int) -> list[torch.Tensor]:
    """The weights of the last layer after each epoch."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = 0.3 * torch.rand(60, 1, 4, 4, generator=generator) + 0.3 * y[:, None, None, None]
    data = Dataset("made-up", Split(x, y), Split(x[:10], y[:10]), ("a", "b", "c"), "0")
    net, seen = nets.build("mlp", data.shape, classes=3, seed=0, widths=(8,)), []

    def watch(progress: Progress) -> None:
        if progress.metrics is not None:
            seen.append([*net.parameters()][-2].detach().clone())

    train(method, net, data, Recipe(epochs=epochs, batch_size=16), progress=watch)
    return seen


@pytest.mark.filterwarnings("ignore:the network predicts one class")
def test_training_follows_the_schedule() -> None:
    """A radius that jumps in the middle: the first half is that of the small radius, the second is not."""
    jumping = _epochs(methods.pgd_at(eps=piecewise((0.5, 0.05), (0.5, 0.3)), step_size=0.1, steps=2), 4)
    small = _epochs(methods.pgd_at(eps=0.05, step_size=0.1, steps=2), 4)
    same = [one.equal(other) for one, other in zip(jumping, small, strict=True)]
    assert same == [True, True, False, False]


def test_they_are_part_of_the_public_face() -> None:
    assert schedules.ramp is ramp

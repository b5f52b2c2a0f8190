"""The studies in the plane in their quick form, and what they measure with."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from equipoise.attacks.ascent import Ascent
from equipoise.data import Split
from equipoise.losses.objectives import each
from equipoise.models.deep_kernel_gp import KLToPrior
from equipoise.reproduce.studies import STUDIES, Options, due, plane
from equipoise.reproduce.studies.lms5 import PAPERS, shuffled
from equipoise.reproduce.studies.narrow_corridor import best_of_the_others
from equipoise.reproduce.studies.plane import Sizes, Training, agreement, attack, crossed, method, network, train
from equipoise.reproduce.studies.processes import run_all
from equipoise.reproduce.studies.toys import Toy, lms5, two_distance
from equipoise.results.findings import Findings, Regions

pytestmark = pytest.mark.unchecked

TINY = Sizes(points=40, widths=(8,), steps=6, batch_size=16)
FIGURES = {
    "narrow-corridor": {"decision-regions": 4, "best-eps": 4, "radii": 9, "agreement": 1},
    "lms5": {"decision-regions": 4, "other-eps": 3},
    "two-distance": {"perturbations": 8, "trades": 1},
    "due": {"attacks": 2, "training": 5},
}


class Half(nn.Module):
    """Class 1 where the first coordinate, or one minus it, is above a value of the unit interval."""

    def __init__(self, at: float, flipped: bool = False) -> None:
        super().__init__()
        self.at, self.sign = at, -1.0 if flipped else 1.0
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = self.sign * 20 * (x[:, 0] - self.at) + self.weight
        return torch.stack([-score, score], 1)


def squares() -> Toy:
    """Two squares left and right of x = 0: the max-margin boundary is that line."""
    left = np.array([[-1.0, -0.5], [-0.5, -0.5], [-0.5, 0.5], [-1.0, 0.5]])
    return Toy("squares", ((left,), (left + np.array([1.5, 0.0]),)), (-1.0, 1.0, -1.0, 1.0), scale=4.0)


def test_agreement_is_a_share_of_the_windows_area() -> None:
    toy = squares()
    for at, expected in ((0.0, 1.0), (0.5, 0.75), (-1.0, 0.5)):
        model = Half(0.5 + at / toy.scale)
        assert agreement(model, toy) == pytest.approx(expected, abs=0.01)
        assert agreement(Half(0.5 + at / toy.scale, flipped=True), toy) == pytest.approx(1 - expected, abs=0.01)


def test_crossed_points_are_those_on_the_other_side() -> None:
    points = np.array([[-0.3, 0.0], [0.3, 0.1], [-0.3, 0.2], [0.3, 0.0]])
    assert crossed(squares(), points, np.array([0, 0, 1, 1])).tolist() == [False, True, True, False]


def test_perturbations_are_in_the_papers_units_and_leave_the_unit_square() -> None:
    toy = replace(squares(), scale=2.0)
    split = Split(toy.to_unit(np.array([[-0.9, 0.0], [0.9, 0.0]])), torch.tensor([0, 1]))
    model = Half(0.5)
    moved = plane.perturb(attack("PGD", toy, 0.5, 0.2, 4), model, toy, split, 0)
    assert np.allclose(moved[:, 0], (-0.4, 0.4), atol=1e-6)
    wrong = Split(split.x, torch.tensor([1, 0]))  # their loss grows outwards
    outwards = plane.perturb(attack("PGD", toy, 0.5, 0.2, 4), model, toy, wrong, 0)
    assert np.allclose(outwards[:, 0], (-1.4, 1.4), atol=1e-6)
    stays = plane.perturb(attack("UDP", toy, 2.0, 0.25, 40), model, toy, split, 0)
    assert (np.abs(stays[:, 0]) <= 0.25).all()


def test_methods_have_the_papers_lengths_in_units_of_the_scale() -> None:
    toy = two_distance()
    for name in ("PGD", "TRADES", "UDP"):
        (at,) = (t.at for t in method(name, toy, 0.3, 0.05, 10).terms if isinstance(t.at, Ascent))
        assert at.geometry.eps == pytest.approx(0.3 / toy.scale)
        assert at.settings()["step_size"]["size"] == pytest.approx(0.05 / toy.scale)
        assert at.geometry.box.low == -math.inf and at.geometry.box.high == math.inf
    assert method("standard", toy, 0.0).terms[0].at is None
    trades = method("TRADES", toy, 0.3)
    assert [t.weight for t in trades.terms] == [1.0, 1.0]
    assert "soft-cross-entropy" in trades.terms[1].objective.name


def test_methods_of_one_seed_start_from_the_same_points_and_weights() -> None:
    toy = two_distance()
    some, others = (Training(toy, method(n, toy, 0.2), 3, TINY) for n in ("PGD", "UDP"))
    assert torch.equal(some.data.train.x, others.data.train.x)
    first, second = (list(network(toy, (8,), 5).parameters()) for _ in range(2))
    assert all(map(torch.equal, first, second))
    member = replace(some, seed=9, data_seed=3)
    assert torch.equal(member.data.train.x, some.data.train.x)
    assert not torch.equal(replace(some, seed=9).data.train.x, some.data.train.x)


def test_training_takes_the_steps_it_is_asked_for_and_repeats() -> None:
    toy, seen = two_distance(), []
    task = Training(toy, method("UDP", toy, 0.2), 0, TINY)
    model = network(toy, TINY.widths, 0)
    plane.run_through(task.method, model, task.data, TINY, 0, seen.append)
    assert [p.step for p in seen if p.metrics is None] == list(range(1, TINY.steps + 1))
    one, two = (train(task).module.state_dict() for _ in range(2))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_flips_count_the_changes_of_every_point() -> None:
    toy, model = squares(), Half(0.5)
    counter = plane._Flips(model, toy, 10)
    for at in (0.75, 0.5, 0.5, 0.75):  # the points right of x = 0 and left of x = 1 change in every step but the third
        model.at = at
        counter(None)
    expected = np.where(toy.grid(10)[..., 0] > 0, 3, 0)
    assert np.array_equal(counter.count, expected)


def _square(value: int) -> int:
    return value * value


def test_processes_give_what_one_gives() -> None:
    told: list[int] = []
    assert run_all(_square, [1, 2, 3], told.append) == [1, 4, 9]
    assert told == [1, 2, 3]
    assert run_all(math.sqrt, [1.0, 4.0, 9.0], told.append, processes=2) == [1.0, 2.0, 3.0]
    assert told == [1, 2, 3] * 2


def _sum(numbers: torch.Tensor, factor: int) -> int:
    return factor * int(numbers.sum())


def test_what_others_see_of_a_tensor_stays_when_processes_get_it() -> None:
    numbers = torch.arange(100_000)
    seen = numbers.numpy()
    assert run_all(partial(_sum, numbers), [1, 2], lambda done: None, 2) == [seen.sum(), 2 * seen.sum()]
    assert not numbers.is_shared() and np.array_equal(seen, np.arange(100_000))


def test_shuffling_a_coordinate_leaves_the_other_and_every_label() -> None:
    split = lms5().dataset(40, 200, 0).test
    for place in (0, 1):
        mixed = shuffled(split, place, 0)
        assert torch.equal(mixed.x[:, 1 - place], split.x[:, 1 - place]) and torch.equal(mixed.y, split.y)
        assert torch.equal(mixed.x[:, place].sort().values, split.x[:, place].sort().values)
        assert (mixed.x[:, place] != split.x[:, place]).sum() > 150


def test_lms5_trains_the_others_with_the_largest_eps_that_keeps_the_balls_apart() -> None:
    """.15, half of the distance in Linf of points of two classes; not the .1 between either class and the line."""
    toy, eps = lms5(), dict(PAPERS)
    assert eps["PGD"] == eps["TRADES"] == pytest.approx(0.15) == toy.largest_eps("linf")
    assert eps["UDP"] == pytest.approx(2 * eps["PGD"])
    points, labels = toy.draw(4000, 0)
    gaps = np.abs(points[labels == 0][:, None] - points[labels == 1][None]).max(-1)
    assert 2 * eps["PGD"] - 1e-9 <= gaps.min() <= 2 * eps["PGD"] + 0.02


def test_narrow_corridor_judges_a_radius_by_the_seeds_that_did_not_choose_it() -> None:
    scores = np.array([[0.9, 0.1, 0.2], [0.5, 0.6, 0.5], [0.0, 0.7, 0.9]])
    assert best_of_the_others(scores).tolist() == [2, 0, 1]
    assert best_of_the_others(scores[:, :1]).tolist() == [0]


def test_narrow_corridor_gives_udp_twice_the_eps_of_the_others() -> None:
    found = STUDIES["narrow-corridor"].run(Options(quick=True, seeds=1), lambda *_: None)
    names = [number.name for number in found.numbers]
    for name, eps in (("PGD", 0.225), ("TRADES", 0.225), ("UDP", 0.45)):
        assert f"agreement with the max-margin boundary, {name}, eps {eps:g}" in names
        assert any(
            other.startswith(f"agreement with the max-margin boundary, {name} at its best eps") for other in names
        )
        assert set(found.settings["best_eps"][name]) <= set(found.settings["radii"])


def test_due_is_trained_with_smaller_steps_too() -> None:
    found = STUDIES["due"].run(Options(quick=True, seeds=1), lambda *_: None)
    for name in ("PGD", "UDP"):
        assert any(f"trained by {name}-5, eps 1, steps of 0.02" in number.name for number in found.numbers)
    assert pytest.approx(due.EPS) == due.SMALL_STEP * due.STEPS, "the ball is still reached"
    (term,) = due.bound("UDP", two_distance(), 50, 7, due.SMALL_STEP).terms
    assert isinstance(term.at, Ascent) and term.at.settings()["step_size"]["size"] == pytest.approx(0.02 / 6)


def test_due_descends_the_evidence_bound() -> None:
    toy = two_distance()
    bound = due.bound("PGD", toy, 50, 7)
    assert bound.penalties == ((1.0, KLToPrior(50)),)
    (term,) = bound.terms
    assert isinstance(term.at, Ascent) and term.at.geometry.eps == pytest.approx(1 / toy.scale)
    assert term.objective == each(due.cross_entropy)
    assert due.bound("clean", toy, 50, 7).terms[0].at is None


@pytest.mark.parametrize("name", FIGURES)
def test_studies_find_numbers_and_the_papers_figures(name: str) -> None:
    told: list[float] = []
    findings: Findings = STUDIES[name].run(Options(quick=True, seeds=1), lambda what, share: told.append(share))
    assert told == sorted(told) and told[-1] <= 1
    assert {p.name: len(p.panels) for p in findings.pictures} == FIGURES[name]
    assert findings.verdict.endswith(".") and findings.settings["seeds"] == [0]
    assert len({n.name for n in findings.numbers}) == len(findings.numbers)
    for number in findings.numbers:
        assert len(number.values) == 1 and np.isfinite(number.values).all()
        assert not number.percent or 0 <= number.mean <= 1
    for panel in (p for picture in findings.pictures for p in picture.panels if isinstance(p, Regions)):
        assert np.isfinite(panel.values).all() and panel.values.std() > 0
    for picture in findings.pictures:
        maps = [p for p in picture.panels if isinstance(p, Regions)]
        moved = np.concatenate([np.empty((0, 2)), *(p.moved for p in maps if p.moved is not None)])
        assert len({p.extent for p in maps}) <= 1, "the panels of a figure show one window"
        for left, right, bottom, top in (p.extent for p in maps):
            assert ((moved >= (left, bottom)) & (moved <= (right, top))).all()


def test_a_study_in_two_processes_finds_what_it_finds_in_one() -> None:
    options = Options(True, 1, limit=64, widths=(1,))
    one, two = (STUDIES["capacity"].run(replace(options, processes=n), lambda *_: None).numbers for n in (1, 2))
    assert [n.values for n in one] == [n.values for n in two]

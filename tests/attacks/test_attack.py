"""What `Attack` and `SearchAttack` do for every attack: refusals, restarts, what counts, what is searched again."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equipoise import attacks
from equipoise.attacks import Batch, Candidates, Chain, SearchAttack, described, fab
from equipoise.core.errors import EquipoiseError
from equipoise.geometry import Ball
from equipoise.results.differences import with_new_names

pgd = partial(attacks.pgd, start="zero", return_point="last")

X = torch.tensor([[0.2], [0.4], [0.6]])
Y = torch.tensor([1, 1, 1])


class Threshold(nn.Module):
    """Class 1 below 0.5, so that the last sample of class 1 is wrong already."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x - 0.5, 0.5 - x], 1)


@dataclass(frozen=True)
class Step(SearchAttack):
    """Moves every sample up by the radius, at one of its restarts, and elsewhere only half as far."""

    kind = "a step"
    geometry: Ball
    restarts: int = 1
    at: int = 0
    precision: str = "32"

    def settings(self) -> dict[str, Any]:
        return described("step", self)

    def search(self, batch: Batch) -> Candidates:
        far = 1.0 if batch.restart == self.at and self.precision == "32" else 0.5
        ones = torch.ones_like(batch.label)
        claimed = ones.bool() if self.precision == "bf16" else None
        return Candidates(batch.x + far * self.geometry.eps, ones, (batch.restart + 1) * ones, claimed=claimed)


def test_only_confirmed_errors_within_the_ball_count() -> None:
    found = Step(Ball("linf", 0.15))(Threshold(), X, Y)
    assert found.success.tolist() == [False, True, True]
    assert torch.equal(found.x[[0, 2]], X[[0, 2]]), "right as it is, and wrong already"
    assert found.distance.tolist() == pytest.approx([0.0, 0.15, 0.0], abs=1e-6)


def test_restarts_go_on_with_those_that_are_right_and_their_costs_add_up() -> None:
    found = Step(Ball("linf", 0.15), restarts=3, at=1)(Threshold(), X, Y)
    assert found.success.tolist() == [False, True, True] and found.iteration.tolist() == [0, 2, 0]
    searches = found.evaluations - found.evaluations[2]  # the clean points are looked at in any case
    assert searches[0] * 2 == searches[1] * 3 and searches[1] > 0, "three and two attempts, each confirmed"


def test_what_lower_precision_claims_and_float32_denies_is_searched_again() -> None:
    once = Step(Ball("linf", 0.15))(Threshold(), X, Y)
    found = Step(Ball("linf", 0.15), precision="bf16")(Threshold(), X, Y)
    searches, twice = once.evaluations - once.evaluations[2], found.evaluations - found.evaluations[2]
    assert twice[1] == 2 * searches[1] > 0, "both searches are counted"
    assert found.success.tolist() == [False, True, True] and float(found.distance[1]) == pytest.approx(0.15, abs=1e-6)


def test_a_search_that_keeps_its_best_point_returns_it() -> None:
    @dataclass(frozen=True)
    class Best(Step):
        returns_best = True

    found = Best(Ball("linf", 0.15))(Threshold(), X, Y)
    assert not found.success[0] and float(found.x[0]) == pytest.approx(0.35)


def test_without_labels_it_leads_away_from_the_prediction() -> None:
    found = Step(Ball("linf", 0.15))(Threshold(), X)
    assert found.success.tolist() == [False, True, False]


@pytest.mark.unchecked
def test_what_an_attack_cannot_do_is_refused_by_name() -> None:
    with pytest.raises(EquipoiseError, match=r"^fab takes no points to start from: leave out start"):
        fab(0.1)(Threshold(), X, Y, start=X)
    with pytest.raises(EquipoiseError, match=r"^a step takes no target classes: leave out target"):
        Chain((("step", Step(Ball("linf", 0.1))),))(Threshold(), X, Y, target=1 - Y)
    with pytest.raises(EquipoiseError, match=r"^a step takes no points to start from"):
        Step(Ball("linf", 0.1))(Threshold(), X, Y, start=X)
    with pytest.raises(EquipoiseError, match=r"^fab needs the labels y: give the true classes"):
        fab(0.1)(Threshold(), X)
    assert pgd(0.15)(Threshold(), X, Y, target=1 - Y, start=X).success.tolist() == [False, True, True]


@pytest.mark.unchecked
def test_settings_of_old_records_are_those_of_today():
    box = {"low": 0.0, "high": 1.0}
    old = {
        "objective": "dlr",
        "geometry": {"norm": "linf", "eps": 0.1, "box": {"kind": "Box", **box}},
        "target": 9,
        "keep": "best",
    }
    square = {"geometry": {"norm": "l2", "eps": 1.0, "box": box}, "queries": 5, "p_init": 0.8}
    chain = with_new_names({"kind": "Chain", "parts": [{"name": "a", **old}, {"name": "s", **square}], "notes": []})
    assert chain["attack"] == "chain" and "kind" not in chain
    ascent, squares = chain["parts"]
    assert (ascent["attack"], ascent["target"], ascent["num_targets"]) == ("ascent", None, 9)
    assert ascent["return_point"] == "best" and with_new_names(old | {"target": {"class": 3}})["target"] == 3
    assert (squares["attack"], squares["eot_samples"], squares["geometry"]["box"]["kind"]) == ("square", 1, "Box")
    assert with_new_names(chain) == chain, "what is new stays as it is"

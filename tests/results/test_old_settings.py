"""The settings of an attack that were recorded under the names of before."""

import json
from typing import Any

import pytest

from equipoise import attacks
from equipoise.core.errors import EquipoiseError
from equipoise.results.differences import differences, require_same


def settings(attack: attacks.Attack) -> Any:
    return json.loads(json.dumps(attack.settings()))


NOW = settings(attacks.pgd(0.1))
OLD_NAMES = {
    "return_point": "keep",
    "resample": "redraw",
    "eot_samples": "draws",
    "eps_schedule": "approach",
    "tau": "patience",
}
BEFORE = {OLD_NAMES.get(k, k): v for k, v in NOW.items() if k not in ("attack", "num_targets")}


def test_they_are_those_of_the_same_attack() -> None:
    assert set(OLD_NAMES.values()) <= BEFORE.keys()
    assert differences({"attacks": [BEFORE]}, {"attacks": [NOW]}) == []


def test_fab_and_square_too() -> None:
    fab, square = settings(attacks.fab(0.1)), settings(attacks.square(0.1, eot_samples=3))
    before = [fab | {"keep": fab["return_point"]}, square | {"draws": 3}]
    del before[0]["return_point"], before[1]["eot_samples"], before[1]["attack"]
    assert differences({"attacks": before}, {"attacks": [fab, square]}) == []


def test_random_search_has_draws() -> None:
    now = settings(attacks.random_search(0.1, draws=9))
    assert now["draws"] == 9 and differences({"attacks": [now]}, {"attacks": [now]}) == []


def test_a_difference_is_named_as_today() -> None:
    with pytest.raises(EquipoiseError, match="return_point: best before, last now"):
        require_same("evaluation.json", BEFORE | {"keep": "best"}, NOW | {"return_point": "last"})

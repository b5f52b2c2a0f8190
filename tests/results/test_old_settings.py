"""The settings of an attack that were recorded under the names of before."""

import json

import pytest

from equipoise import attacks
from equipoise.core.errors import EquipoiseError
from equipoise.results.differences import differences, require_same

NOW = json.loads(json.dumps(attacks.pgd(0.1).settings()))
OLD_NAMES = {
    "return_point": "keep",
    "resample": "redraw",
    "eot_samples": "draws",
    "eps_schedule": "approach",
    "tau": "patience",
}
BEFORE = {OLD_NAMES.get(name, name): value for name, value in NOW.items()}


def test_they_are_those_of_the_same_attack() -> None:
    assert set(OLD_NAMES.values()) <= BEFORE.keys()
    assert differences({"attacks": [BEFORE]}, {"attacks": [NOW]}) == []


def test_a_difference_is_named_as_today() -> None:
    with pytest.raises(EquipoiseError, match="return_point: best before, last now"):
        require_same("evaluation.json", BEFORE | {"keep": "best"}, NOW | {"return_point": "last"})

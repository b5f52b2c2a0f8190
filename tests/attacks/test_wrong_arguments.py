"""Wrong calls of any function of `equipoise.attacks`: one sentence each, as users run it."""

import inspect
from types import UnionType
from typing import Any, Union, get_args, get_origin

import numpy as np
import pytest
import torch
from torch import nn

from equipoise import attacks
from equipoise.attacks import RandomSearch, cw, pgd, square
from equipoise.attacks.attack import Batch, Candidates, SearchAttack
from equipoise.core.errors import EquipoiseError
from equipoise.geometry import Box
from equipoise.losses.objectives import cross_entropy, entropy, kl, misclassified_kl, smoothed_cross_entropy

pytestmark = pytest.mark.unchecked
GIVEN: dict[str, Any] = {
    **{"eps": 0.1, "p": 3, "k": 8, "proxy": nn.Linear(6, 3), "attack": pgd(0.1), "name": "pgd", "size": 1},
    **{"mask": torch.ones(6, dtype=torch.bool), "model": nn.Linear(6, 3), "x": torch.full((4, 6), 0.5)},
    "y": torch.zeros(4, dtype=torch.long),
}
FUNCTIONS = {name: make for name in attacks.__all__ if hasattr(make := getattr(attacks, name), "parameters")}


def needed(make: Any) -> dict[str, Any]:
    """The arguments without a default."""
    parameters = inspect.signature(make).parameters.values()
    return {p.name: GIVEN[p.name] for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD}


def kinds(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def numbers(make: Any) -> list[str]:
    """The arguments that may be a number."""
    return [name for name, parameter in make.parameters.items() if {int, float} & set(kinds(parameter.annotation))]


def test_every_function_that_makes_an_attack_is_checked():
    helpers = {"described", "fitted", "share_won"}
    assert {name for name in attacks.__all__ if inspect.isfunction(getattr(attacks, name))} - helpers == set(FUNCTIONS)
    assert sum(len(numbers(make)) for make in FUNCTIONS.values()) > 100


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_no_number_and_numbers_of_numpy(name):
    make = FUNCTIONS[name]
    for option in numbers(make):
        for wrong in ("0.1", [1], object(), {}, True, 1j):
            if option == "target" and isinstance(wrong, str):
                continue  # a rule, refused by its name
            with pytest.raises(EquipoiseError, match=rf"{option}( is|( = .*)).*: expected .*(number|integer)"):
                make(**needed(make) | {option: wrong})
        for number in (np.int64(1), np.float32(0.5)):
            try:
                make(**needed(make) | {option: number})
            except EquipoiseError as error:
                assert option in str(error) or "cannot be called like this" in str(error)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_names_that_are_none_and_missing_arguments(name):
    make, arguments = FUNCTIONS[name], needed(FUNCTIONS[name])
    with pytest.raises(EquipoiseError, match=r"unknown option of \w+ 'setps': .*[Cc]hoose one of "):
        make(**arguments, setps=3)
    with pytest.raises(
        EquipoiseError, match=rf"^{name} cannot be called like this: too many positional arguments; it takes "
    ):
        make(*range(30))
    if arguments:
        with pytest.raises(EquipoiseError, match=rf"^{name} cannot be called like this: .*missing"):
            make()


def test_a_mistyped_radius():
    with pytest.raises(EquipoiseError, match=r"unknown option of pgd 'esp': did you mean 'eps'\?"):
        pgd(esp=0.1)
    with pytest.raises(EquipoiseError, match=r"eps = '0.1' is a str: expected a number"):
        pgd("0.1")
    with pytest.raises(EquipoiseError, match=r"unknown option of pgd 'objective': .*one of box, eot_samples,"):
        pgd(0.1, objective=entropy)
    with pytest.raises(EquipoiseError, match=r"steps = 2.5: expected an integer"):
        pgd(0.1, steps=2.5)
    with pytest.raises(EquipoiseError, match=r"smoothing = '0.1' is a str: expected a number"):
        smoothed_cross_entropy("0.1")
    with pytest.raises(EquipoiseError, match=r"high = None: expected a number"):
        Box(0, None)
    with pytest.raises(EquipoiseError, match=r"radii = 0.1: give FGSM and PGD at least one radius"):
        attacks.margin_attack(radii=0.1)


def test_what_is_no_term_of_a_training_method():
    for function in (kl, misclassified_kl):
        name = function.__name__
        with pytest.raises(EquipoiseError, match=rf"^{name} @ ascent\(.*{name} is a function: write {name}\(\)\.$"):
            _ = function @ pgd(0.1)
    with pytest.raises(EquipoiseError, match=r"^cross-entropy @ square\(.*: expected an objective .* and an ascent"):
        _ = cross_entropy @ square(0.1)
    with pytest.raises(
        EquipoiseError, match=r"^cross-entropy @ pgd: expected an ascent on the right, such as pgd\(0.1\)"
    ):
        _ = cross_entropy @ pgd
    with pytest.raises(EquipoiseError, match=r"^kl is a function: write kl\(\)\.$"):
        _ = cross_entropy @ pgd(0.1) + kl


def test_an_attack_and_an_objective_print_as_their_names():
    assert repr(cw(0.1)) == str(cw(0.1)) == "ascent(margin, linf 0.1, 40 steps of 0.00625)"
    assert repr(square(0.1)) == "square(linf 0.1, 5000 queries)"
    assert repr(attacks.autoattack(0.1)) == "chain of apgd-ce, apgd-t, fab-t, square"
    assert repr(RandomSearch(square(0.1).geometry, 7)) == "random-search(linf 0.1, 7 draws)"
    assert repr(cross_entropy - 2 * entropy) == "cross-entropy - 2·entropy"

    class Own(SearchAttack):
        kind = "own"
        geometry = square(0.1).geometry

        def search(self, batch: Batch) -> Candidates:
            return Candidates.unmoved(batch.x)

    assert repr(Own()) == "own(linf 0.1)"

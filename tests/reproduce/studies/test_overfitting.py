"""Catastrophic overfitting: how it is told from the curves, and that following a training does not change it."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equipoise import attacks
from equipoise.data import Dataset, load
from equipoise.models import as_predictive
from equipoise.reproduce.studies import Options
from equipoise.reproduce.studies.design import Case
from equipoise.reproduce.studies.images import accuracy, images
from equipoise.reproduce.studies.overfitting import (
    FOLLOWED,
    Followed,
    Overfitting,
    Size,
    follow,
    largest_drop,
    overfits,
    run,
)
from equipoise.results.findings import Lines
from equipoise.training.methods import fgsm_at

pgd = partial(attacks.pgd, start="zero", return_point="last")

pytestmark = pytest.mark.unchecked


def silent(what: str, share: float) -> None:
    assert 0 <= share <= 1


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return images(load("digits").limit(100))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_largest_drop_is_that_of_all_pairs(course: list[float]) -> None:
    pairs = [a - b for i, a in enumerate(course) for b in course[i:]]
    assert largest_drop(course) == max(pairs)


RISING = [0.2, 0.4, 0.5, 0.6]
COLLAPSE = [0.2, 0.5, 0.1, 0.02]


def curves(fast: list[float], strong: list[float]) -> dict[str, list[float]]:
    return {"clean": [0.9] * len(fast), "FGSM": fast, "PGD-20": strong}


def test_overfitting_is_seen_where_it_is_and_nowhere_else() -> None:
    assert overfits(curves(RISING, COLLAPSE))
    assert not overfits(curves(RISING, RISING))
    assert not overfits(curves(COLLAPSE, COLLAPSE))  # the whole training has failed, not PGD alone
    assert not overfits(curves(RISING, [0.1, 0.5, 0.2, 0.4]))  # it recovered


def test_following_a_training_does_not_change_it_and_ends_at_its_end(digits: Dataset) -> None:
    size = Size(steps=8, every=4, samples=30)
    test = digits.test.limit(30)
    course, steps, model = follow(fgsm_at(0.2), digits, test, 3, size)
    _, none, same = follow(fgsm_at(0.2), digits, test, 3, size, measured=False)
    assert (steps, none) == ([4, 8], [])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    model.eval()
    with torch.no_grad():
        right = model(test.x).argmax(1) == test.y
    assert course["clean"][-1] == pytest.approx(float(right.double().mean()))
    fooled = pgd(0.2, 0.01, 20)(model, test.x, test.y).x
    with torch.no_grad():
        still = (model(fooled).argmax(1) == test.y) & right
    # The study stops at the first success, where this one goes on: it can only find fewer of them.
    assert course["PGD-20"][-1] <= float(still.double().mean()) + 1e-9


def test_accuracy_is_that_of_the_plain_count(digits: Dataset) -> None:
    _, _, model = follow(fgsm_at(0.2), digits, digits.test, 0, Size(steps=2, every=1, samples=5), measured=False)
    assert as_predictive(model).module is model
    with torch.no_grad():
        plain = (model.eval()(digits.test.x).argmax(1) == digits.test.y).double().mean()
    assert accuracy(model, digits.test) == pytest.approx(float(plain))
    assert accuracy(model, digits.test, pgd(0.0, 0.1, 1)) == pytest.approx(float(plain))


def test_quick_run() -> None:
    found = run(Options(quick=True, seeds=1, seed=4), silent)
    over, against = found.pictures
    for panel in over.panels:
        assert isinstance(panel, Lines)
        assert [s.name for s in panel.series] == ["clean", "FGSM", "PGD-20"]
        assert (np.diff(panel.x) > 0).all()
        for series in panel.series:
            assert series.low is not None and series.high is not None
            assert (series.low <= series.y).all() and (series.y <= series.high).all()
    assert isinstance(against.panels[0], Lines)
    for series in against.panels[0].series:
        assert (np.diff(series.y) <= 1e-9).all(), "accuracy falls with the radius"
    by_name = {n.name: n for n in found.numbers}
    for name in FOLLOWED:
        assert len(by_name[f"PGD-20 accuracy at the end, trained with {name}"].values) == 1
    assert found.settings["data"]["shape"] == [1, 16, 16]
    assert found.settings["data"]["enlarged"].startswith("2 times")


def verdict(fgsm: list[dict[str, list[float]]], udp: list[dict[str, list[float]]]) -> str:
    study = Overfitting(Options(quick=True, seeds=len(fgsm)))
    for name, courses in zip(FOLLOWED, (fgsm, udp), strict=True):
        for seed, course in enumerate(courses):
            study.results[Case(name, 0.0, seed)] = Followed(course, [1], [0.5] * 4)
    return study._conclude()


def test_the_verdict_follows_the_curves() -> None:
    good, bad = curves(RISING, RISING), curves(RISING, COLLAPSE)
    assert verdict([bad, bad], [good, good]).startswith("As in the paper: FGSM overfits in 2 of 2")
    assert verdict([bad, good], [good, good]).startswith("In part as in the paper: FGSM overfits in 1 of 2")
    assert verdict([good, good], [good, good]).startswith("No catastrophic overfitting here")
    assert verdict([bad, bad], [bad, bad]).startswith("Unlike in the paper")

"""The audit of models that are only asked: what is tested, what is left out and why."""

import numpy as np
import pytest
import torch

import equipoise as eq
from equipoise.core.errors import EquipoiseError
from equipoise.masking import plan
from equipoise.masking.indicators import LEFT_OUT
from equipoise.masking.investigate import investigate
from equipoise.masking.model_checks import check_model
from equipoise.models import BlackBox

pytestmark = pytest.mark.unchecked


@pytest.fixture(scope="module")
def digits():
    data = eq.data.load("digits")
    return data.test.x[:60], data.test.y[:60]


@pytest.fixture(scope="module")
def scores():
    module = eq.as_predictive(eq.load("digits/udp-0.15")[0]).module.eval()

    def scores(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(x)).numpy()

    return scores


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(plan, "QUERIES", 150)
    monkeypatch.setattr(plan, "DRAWS", 50)


def test_honest_scores_raise_nothing(digits, scores):
    report = investigate(BlackBox(scores, 10), *digits, 0.1, minutes=None)
    assert not report.masked and 0.5 < report.robust < report.clean
    assert [test.name for test in report.tests] == [
        "labels alone beat scores",
        "random search succeeds where a guided one fails",
        "accuracy does not reach 0",
        "a larger ball breaks fewer",
    ]
    (left_out,) = (text for text in report.skipped if "holes in the loss surface" in text)
    assert all(name in left_out for name in LEFT_OUT) and left_out.endswith("it gives scores alone.")


def test_scores_that_say_no_more_than_the_label_are_masked(digits, scores):
    def certain(x: np.ndarray) -> np.ndarray:
        return 5 * np.eye(10)[scores(x).argmax(1)] - 2

    report = investigate(BlackBox(certain, 10), *digits, 0.25, minutes=None)
    assert report.masked and "labels alone beat scores" in str(report)


def test_labels_alone(digits, scores):
    model = BlackBox(lambda x: scores(x).argmax(1), 10, "labels")
    report = investigate(model, *digits, 0.1, "l2", minutes=None)
    assert not report.masked and len(report.tests) == 3 and "it gives labels alone" in " ".join(report.skipped)
    with pytest.raises(EquipoiseError, match=r"labels alone are attacked in linf and l2, not in l1"):
        investigate(model, *digits, 0.1, "l1", minutes=None)


def test_what_a_model_says_of_itself_needs_no_gradient(digits, scores):
    rng = np.random.default_rng(0)
    assert check_model(BlackBox(scores, 10), *digits) == []
    noisy = BlackBox(lambda x: scores(x) + rng.normal(size=(len(x), 10)), 10)
    assert [warning.name for warning in check_model(noisy, *digits)] == ["randomised model"]

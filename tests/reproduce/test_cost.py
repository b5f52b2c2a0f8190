"""What tasks cost, and the data that stands in for published data."""

import time
from dataclasses import replace

import numpy as np
import pytest
from sweeps import evaluated, training

from equipoise import data, methods
from equipoise.core.errors import EquipoiseError
from equipoise.reproduce import (
    Evaluated,
    Net,
    StudyTask,
    Training,
    call,
    cost,
)
from equipoise.reproduce.stand_in import KINDS, stand_in
from equipoise.training import Recipe

pytestmark = [
    pytest.mark.unchecked,
    pytest.mark.filterwarnings("ignore::equipoise.core.errors.EquipoiseWarning"),  # so little trains nothing
]


def test_passes_are_counted():
    """By hand: 0.9 of 1000 samples, a step of descent and (K + 1)/2 of ascent; validation after each epoch."""
    one = Training(call(methods.udp, eps=0.1, steps=9), Net("mlp"), "digits", Recipe(epochs=3), 1000)
    assert cost.passes(one, {"digits": 2000}) == pytest.approx(3 * (900 * (1 + 5) + 900 * 11))
    assert cost.passes(one, {"digits": 500}) == pytest.approx(3 * (450 * (1 + 5) + 450 * 11))
    whole = replace(one, method=call(methods.udp, eps=0.1, steps=9, mode="train"))  # the batch goes all the way
    assert cost.passes(whole, {"digits": 2000}) == pytest.approx(3 * (900 * (1 + 9) + 900 * 11))
    trades = replace(one, method=call(methods.trades, eps=0.1, steps=9))  # descends at two places
    assert cost.passes(trades, {"digits": 2000}) == pytest.approx(3 * (900 * (2 + 9) + 900 * 11))
    for method, each in ((call(methods.hein, directions=2), 1 + 2 * 2), (call(methods.hein), 1 + 2 * 10),
                         (call(methods.r2, halvings=3), 1 + 7 + 3 / 3),
                         (call(methods.ls_udp, eps=0.1, layer="fc1", steps=9), 1 + 5 / 20)):  # fmt: skip
        assert cost.passes(replace(one, method=method), {"digits": 2000}) == pytest.approx(3 * (900 * each + 900 * 11))
    strong = Evaluated(one, ["autoattack"], [0.1, 0.2], examples=300)
    assert cost.passes(strong) == pytest.approx(300 * (1 / 3 + 0.5 * 2 * (100 + 900 + 900 + 5000 / 3)))
    assert cost.passes(Evaluated(one, ["pgd10-8"], examples=300)) == pytest.approx(300 * (1 / 3 + 0.5 * 5 * 10))


def test_several_workers_share_the_cost_but_a_chain_stays_one():
    trainings = [StudyTask(name) for name in ("theorem", "due")]
    assert cost.work(trainings).by(1) == sum(cost.STUDIES[name].seconds for name in ("theorem", "due"))
    assert cost.work(trainings).by(2) == max(cost.STUDIES["due"].seconds, 0.5 * cost.work(trainings).by(1))
    chain = [training(), evaluated()]
    assert cost.work(chain).by(2) == pytest.approx(cost.work(chain).by(1))


def test_what_a_pass_costs_does_not_hang_on_what_else_the_machine_does(monkeypatch):
    """Time in which the thread does not compute, as when others have the processor, does not count."""
    look = cost.value_and_gradient

    def waiting(*arguments):
        time.sleep(0.2)
        return look(*arguments)

    monkeypatch.setattr(cost, "value_and_gradient", waiting)
    assert cost.per_pass(Net("mlp", {"widths": (31,)}), "digits") < 0.2 / 256


def test_a_larger_network_costs_more():
    costs = [cost.per_pass(Net(net), "mnist") for net in ("mlp", "lenet", "resnet20")]
    assert costs == sorted(costs) and costs[0] > 0


@pytest.mark.parametrize("name", KINDS)
def test_stand_ins_have_the_shape_and_the_classes_and_can_be_learned(name, tmp_path):
    one = data.load(stand_in(name, tmp_path))
    kind = KINDS[name]
    assert one.name == f"synthetic-{name}" and one.shape == kind.shape and len(one.classes) == kind.classes
    means = np.stack([one.train.x[one.train.y == c].flatten(1).numpy().mean(0) for c in range(kind.classes)])
    x = one.test.x.flatten(1).numpy()
    nearest = ((x[:, None] - means[None]) ** 2).sum(2).argmin(1)
    assert (nearest == one.test.y.numpy()).mean() > 0.9
    assert one.sha256 == data.load(stand_in(name, tmp_path / "again")).sha256


def test_an_unknown_stand_in_is_refused(tmp_path):
    with pytest.raises(EquipoiseError, match="unknown dataset 'mnits': did you mean 'mnist'"):
        stand_in("mnits", tmp_path)

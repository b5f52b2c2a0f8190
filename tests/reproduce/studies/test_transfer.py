"""Transfer of features: the linear classifier, the pairs of datasets, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from equipoise.core.errors import EquipoiseError
from equipoise.data import Dataset, Split, load
from equipoise.nets import LeNet, split
from equipoise.reproduce.studies import Options
from equipoise.reproduce.studies.design import Case
from equipoise.reproduce.studies.transfer import (
    Transfer,
    features,
    halves,
    linear_probe,
    run,
    source_and_target,
)

pytestmark = [
    pytest.mark.unchecked,
    pytest.mark.filterwarnings("ignore:dataset .* samples are training samples"),
]


def silent(what: str, share: float) -> None:
    assert 0 <= share <= 1


def plane(label: "torch.Tensor", x: "torch.Tensor") -> Dataset:
    return Dataset("plane", Split(x[:400], label[:400]), Split(x[400:], label[400:]), ("a", "b"), "0")


def square() -> torch.Tensor:
    return torch.rand(800, 2, generator=torch.Generator().manual_seed(1))


def test_linearly_separable_features_are_classified_and_others_are_not() -> None:
    x = square()
    x = x[(x.sum(1) - 1).abs() > 0.1]
    separable = plane((x.sum(1) > 1).long(), x)
    assert linear_probe(nn.Flatten(), separable) == 1.0
    x = square()
    checkers = plane(((x[:, 0] > 0.5) ^ (x[:, 1] > 0.5)).long(), x)
    assert abs(linear_probe(nn.Flatten(), checkers) - 0.5) < 0.1
    product = nn.Sequential(nn.Flatten(), _Product())
    assert linear_probe(product, checkers) > 0.95  # (x - 1/2)(y - 1/2) has the class as its sign


class _Product(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x[:, 0] - 0.5) * (x[:, 1] - 0.5))[:, None]


def test_features_that_say_nothing_give_the_largest_class() -> None:
    x = square()
    label = (torch.arange(800) % 4 == 0).long()
    nothing = nn.Sequential(nn.Flatten(), nn.Linear(2, 3, bias=False))
    nn.init.zeros_(nothing[1].weight)
    assert linear_probe(nothing, plane(label, x)) == 0.75


def test_features_are_in_eval_mode_and_leave_the_network_alone() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = features(net, plane(torch.arange(800) % 2, square()).train)
    assert all(part.training for part in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    linear = net[1](square()[:400])
    torch.testing.assert_close(found, (linear / np.sqrt(1 + 1e-5)).detach())


def test_the_features_of_a_lenet_feed_its_last_layer() -> None:
    net = LeNet((1, 16, 16), 10).eval()
    x = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    found = features(split(net, "fc2")[0], Split(x, torch.arange(5)))
    assert found.shape == (5, 84)
    torch.testing.assert_close(net.classifier[-1](found), net(x))


def test_halves_of_the_digits() -> None:
    digits = load("digits")
    first, second = halves(digits)
    assert (first.name, first.classes) == ("digits 0-4", tuple("01234"))
    assert (second.name, second.classes) == ("digits 5-9", tuple("56789"))
    assert len(first.train) + len(second.train) == len(digits.train)
    torch.testing.assert_close(second.train.x, digits.train.x[digits.train.y >= 5])
    assert torch.equal(second.train.y, digits.train.y[digits.train.y >= 5] - 5)


def test_two_datasets_by_name_and_limit(tmp_path: Path) -> None:
    mine = images(tmp_path / "mine.npz", (8, 8), 3)
    source, target = source_and_target(Options(data=f"digits,{mine}", limit=20))
    assert (source.name, target.name, len(source.train), len(target.train)) == ("digits", "mine", 20, 20)


def images(place: Path, sides: tuple[int, int], classes: int) -> Path:
    rng = np.random.default_rng(0)
    y = np.arange(30) % classes
    x = rng.integers(256, size=(30, *sides, 1), dtype=np.uint8)
    np.savez(place, x_train=x, y_train=y, x_test=x, y_test=y)
    return place


def test_what_cannot_be_transferred_is_refused(tmp_path: Path) -> None:
    mine = images(tmp_path / "mine.npz", (12, 12), 3)
    with pytest.raises(EquipoiseError, match=r"digits has images of shape \(1, 8, 8\) and mine of \(1, 12, 12\)"):
        source_and_target(Options(data=f"digits,{mine}"))
    with pytest.raises(EquipoiseError, match="mine has 3 classes: to transfer within one dataset it needs at least 4"):
        source_and_target(Options(data=str(mine)))
    for data in ("digits,digits,digits", "digits,"):
        with pytest.raises(EquipoiseError, match="expected SOURCE,TARGET"):
            source_and_target(Options(data=data))
    with pytest.raises(EquipoiseError, match="unknown dataset 'digit': did you mean 'digits'"):
        source_and_target(Options(data="digits,digit"))


def test_quick_run() -> None:
    found = run(Options(quick=True), silent)
    values = {n.name: list(n.values) for n in found.numbers}
    for name in ("untrained", "standard", "UDP"):
        assert len(values[f"transfer accuracy, features of {name}"]) == 2
        assert all(0.2 < v <= 1 for v in values[f"transfer accuracy, features of {name}"])  # five classes
    udp, plain = (values[f"transfer accuracy, features of {name}"] for name in ("UDP", "standard"))
    assert values["transfer accuracy, UDP minus standard"] == [u - p for u, p in zip(udp, plain, strict=True)]
    assert found.settings["source"]["classes"] == list("01234")
    assert found.settings["source"]["shape"] == [1, 16, 16]


def test_the_verdict_follows_the_numbers() -> None:
    def verdict(udp: list[float]) -> str:
        transferred = {"untrained": [0.2, 0.3], "standard": [0.70, 0.71], "UDP": udp}
        study = Transfer(Options(quick=True))
        for name, values in transferred.items():
            study.results |= {Case(name, 0.0, seed): (0.5, [value]) for seed, value in enumerate(values)}
        return study._conclude()

    assert verdict([0.80, 0.81]).startswith("As in the paper")
    assert "not told apart from standard" in verdict([0.69, 0.80])
    assert "lower than with standard" in verdict([0.60, 0.61])

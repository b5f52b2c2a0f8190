"""Splits and datasets: what is refused, and the stratified choices."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.core.errors import EquipoiseError
from equipoise.data import Dataset, Split
from equipoise.data.dataset import stratified_order
from equipoise.data.published import SOURCES


def numbered(y: list[int] | torch.Tensor) -> Split:
    """A split whose only feature is the number of the sample, as a fraction."""
    y = torch.as_tensor(y)
    return Split(torch.arange(len(y), dtype=torch.float32)[:, None] / len(y), y)


def dataset(train: Split, test: Split, classes: int = 3) -> Dataset:
    return Dataset("toy", train, test, tuple("abcdefgh"[:classes]), "0" * 64)


GOOD_X, GOOD_Y = torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 2])


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.rand(3, 2, 2), GOOD_Y, r"x has shape \(3, 2, 2\); expected images \(n, channels, height, width\) or"),
        (GOOD_X, torch.tensor([0, 1]), r"x has shape .* and y has shape \(2,\); expected one label per sample"),
        (GOOD_X, GOOD_Y[:, None], r"y has shape \(3, 1\); expected one label per sample"),
        (torch.rand(0, 4), torch.zeros(0, dtype=torch.int64), "there are no samples"),
        (torch.zeros(3, 4, dtype=torch.uint8), GOOD_Y, "x has dtype torch.uint8; expected floats"),
        (GOOD_X, GOOD_Y.int(), "y has dtype torch.int32; expected int64"),
        (GOOD_X.clone().fill_(torch.nan), GOOD_Y, "x holds NaN"),
        (GOOD_X + torch.inf, GOOD_Y, "x has values from inf to inf"),
        (GOOD_X - 2, GOOD_Y, r"x has values from -.*; expected \[0, 1\]"),
        (
            torch.full((3, 4), 255.0),
            GOOD_Y,
            "x has values from 255 to 255; expected .*divide pixels of 0 to 255 by 255",
        ),
        (GOOD_X, torch.tensor([0, -1, 2]), "y holds the label -1; expected class numbers from 0 on"),
    ],
)
def test_a_split_refuses(x: torch.Tensor, y: torch.Tensor, message: str) -> None:
    with pytest.raises(EquipoiseError, match=message):
        Split(x, y)


def test_one_nan_among_good_pixels_is_found() -> None:
    x = torch.rand(3, 4)
    x[1, 2] = torch.nan
    with pytest.raises(EquipoiseError, match="NaN"):
        Split(x, GOOD_Y)


def test_a_dataset_refuses() -> None:
    good = numbered([0, 1, 2])
    for train, test, classes, message in (
        (numbered([0, 0]), numbered([0]), 1, "dataset 'toy' has 1 class; expected at least two"),
        (good, Split(torch.rand(3, 2), GOOD_Y), 3, r"shape \(1,\) and test samples of shape \(2,\)"),
        (numbered([0, 1, 2, 3]), good, 3, "has the label 3 in its training split; expected 0 to 2"),
        (good, numbered([0, 1, 2, 7]), 3, "has the label 7 in its test split; expected 0 to 2"),
        (numbered([0, 2]), good, 3, "has no training samples of class 'b'; expected every class in both splits"),
        (good, numbered([0]), 3, "has no test samples of class 'b', 'c'"),
        (numbered(range(8)), numbered([0]), 8, "of class 'b', 'c', 'd', 'e', 'f', ...;"),
    ):
        with pytest.raises(EquipoiseError, match=message):
            dataset(train, test, classes)


labels = st.lists(st.integers(0, 4), min_size=1, max_size=60)


@given(y=labels, seed=st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_every_prefix_of_the_order_has_the_shares_of_the_whole(y: list[int], seed: int) -> None:
    y_all = torch.tensor(y)
    order = stratified_order(y_all, seed)
    assert order.sort().values.tolist() == list(range(len(y)))
    assert order.equal(stratified_order(y_all, seed))
    present = len(y_all.unique())
    assert len(y_all[order[:present]].unique()) == present
    for n in range(1, len(y) + 1):
        drawn = torch.bincount(y_all[order[:n]], minlength=5)
        expected = torch.bincount(y_all, minlength=5) * n / len(y)
        assert (drawn - expected).abs().max() <= present  # each class holds ceil of one common share of its own


def test_balanced_classes_are_drawn_equally_and_the_seed_matters() -> None:
    y = torch.arange(40) % 4
    order = stratified_order(y, 1)
    assert torch.bincount(y[order[:12]]).tolist() == [3, 3, 3, 3]
    assert not order.equal(stratified_order(y, 2))


def test_the_order_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    stratified_order(torch.arange(10), 3)
    assert before.equal(torch.get_rng_state())


def test_limit_takes_training_samples_only_and_smaller_limits_come_first() -> None:
    data = dataset(numbered(torch.arange(30) % 3), numbered([0, 1, 2]))
    small, large = data.limit(6, seed=5), data.limit(9, seed=5)
    assert len(small.train) == 6 and len(large.train) == 9
    assert small.train.x.equal(large.train.x[:6])
    assert torch.bincount(small.train.y).tolist() == [2, 2, 2]
    original = (small.train.x[:, 0] * 30).round().long()
    assert small.train.y.equal(data.train.y[original])
    assert small.test is data.test and small.sha256 == data.sha256
    assert data.limit(30).train is data.train and data.limit(1000).train is data.train


def test_limit_refuses_too_few() -> None:
    data = dataset(numbered(torch.arange(30) % 3), numbered([0, 1, 2]))
    with pytest.raises(EquipoiseError, match="limit = 2 is below the 3 classes of 'toy'"):
        data.limit(2)
    with pytest.raises(EquipoiseError, match="limit = 0; expected at least one sample"):
        data.test.limit(0)


@given(per_class=st.integers(2, 20), share=st.floats(0.05, 0.6), seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_validation_is_a_stratified_part_of_train(per_class: int, share: float, seed: int) -> None:
    n = 3 * per_class
    count = min(max(round(share * n), 1), n - 3)
    data = dataset(numbered(torch.arange(n) % 3), numbered([0, 1, 2]))
    train, valid = data.split_validation(count, seed)
    assert (len(train), len(valid)) == (n - count, count)
    assert torch.cat([train.x, valid.x]).flatten().sort().values.equal(data.train.x.flatten())
    drawn = torch.bincount(valid.y, minlength=3)
    assert drawn.max() - drawn.min() <= 1
    assert train.y.unique().tolist() == [0, 1, 2]
    assert data.split_validation(count, seed)[1].x.equal(valid.x)


def test_validation_never_comes_from_test() -> None:
    data = dataset(numbered(torch.arange(30) % 3), numbered([0, 1, 2]))
    other = replace(data, test=Split(torch.ones(6, 1), torch.arange(6) % 3))
    for part, same in zip(data.split_validation(0.2, 7), other.split_validation(0.2, 7), strict=True):
        assert part.x.equal(same.x) and part.y.equal(same.y) and part.x.max() < 1
    assert len(data.split_validation(0.2)[1]) == 6


def test_a_class_with_one_sample_is_trained_on() -> None:
    data = dataset(numbered([0] * 10 + [1] * 10 + [2]), numbered([0, 1, 2]))
    for seed in range(5):
        train, valid = data.split_validation(4, seed)
        assert torch.bincount(train.y).tolist() == [8, 8, 1] and torch.bincount(valid.y).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0, "validation size 0 takes 0 of the 30 training samples of 'toy'; expected 1 to 27"),
        (28, "expected 1 to 27, so that every class keeps one"),
        (0.001, "validation size 0.001 takes 0 of the 30"),
        (1.5, "validation share = 1.5; expected a share between 0 and 1"),
        (-0.1, "validation share = -0.1"),
    ],
)
def test_validation_sizes_refused(size: float, message: str) -> None:
    with pytest.raises(EquipoiseError, match=message):
        dataset(numbered(torch.arange(30) % 3), numbered([0, 1, 2])).split_validation(size)


def test_to_moves_both_parts() -> None:
    data = dataset(numbered([0, 1, 2]), numbered([0, 1, 2])).to("cpu")
    assert data.train.x.device.type == data.test.y.device.type == "cpu" and data.shape == (1,)


def test_the_usual_share_is_held_out_unless_another_is_asked_for() -> None:
    data = dataset(numbered(torch.arange(30) % 3), numbered([0, 1, 2]))
    assert [len(part) for part in data.split_validation()] == [27, 3]
    usual = replace(data, validation=0.2)
    assert [len(part) for part in usual.split_validation()] == [24, 6]
    assert [len(part) for part in usual.split_validation(0.5)] == [15, 15]


def test_svhn_is_split_as_in_the_published_code() -> None:
    y = torch.arange(73_257) % 10
    svhn = Dataset(
        "svhn", numbered(y), numbered(y[:10]), tuple("0123456789"), "", validation=SOURCES["svhn"].validation
    )
    assert [len(part) for part in svhn.split_validation()] == [67_000, 6_257]
    assert all(source.validation is None for name, source in SOURCES.items() if name != "svhn")

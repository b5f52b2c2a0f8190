"""The arguments must be torch's own: the same names, in the same order, with the same defaults."""

import inspect
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from equipoise.kernels.torch_calls import AvgPool2d, BatchNorm, Conv2d, Dropout, MaxPool2d, leaves, map_leaves, pair


@pytest.mark.parametrize(
    ("call", "function"),
    [(BatchNorm, F.batch_norm), (MaxPool2d, vars(F)["_max_pool2d"]), (Dropout, F.dropout)],
)
def test_names_and_defaults(call, function):
    theirs = {p.name: p.default for p in inspect.signature(function).parameters.values()}
    none = inspect.Parameter.empty
    assert {name: call._field_defaults.get(name, none) for name in call._fields} == theirs


def test_order_and_defaults_where_torch_shows_no_signature():
    g = torch.Generator().manual_seed(0)
    x, w, b = torch.rand(2, 4, 9, 9, generator=g), torch.rand(4, 2, 3, 3, generator=g), torch.rand(4, generator=g)
    others: list[dict[str, Any]] = [{"groups": 2}, {"bias": b, "stride": 2, "padding": 1, "dilation": 2, "groups": 2}]
    for options in others:
        assert torch.equal(torch.conv2d(*Conv2d(x, w, **options)), torch.conv2d(x, w, **options))
    for options in ({}, {"stride": 1, "padding": 1, "ceil_mode": True, "count_include_pad": False}):
        assert torch.equal(F.avg_pool2d(*AvgPool2d(x, 3, **options)), F.avg_pool2d(x, 3, **options))


def test_what_they_say_of_themselves():
    x = torch.rand(2, 3, 8, 8)
    mean, variance = torch.zeros(3), torch.ones(3)
    assert BatchNorm(x, mean, variance).uses_running_statistics
    assert not BatchNorm(x, mean, variance, training=True).uses_running_statistics
    assert not BatchNorm(x, None, None).uses_running_statistics
    assert MaxPool2d(x, 2).is_2x2 and MaxPool2d(x, (2, 2), 2).is_2x2 and not MaxPool2d(x, 2, 1).is_2x2
    assert MaxPool2d(x, 3, 2).window == ((3, 3), (2, 2)) and MaxPool2d(x, 3, 2, 1).window is None
    assert MaxPool2d(x, 2, return_indices=True).window is MaxPool2d(x, 2, dilation=2).window is None
    assert AvgPool2d(x, 2).window == ((2, 2), (2, 2)) and AvgPool2d(x, 2, divisor_override=3).window is None
    assert pair(3) == (3, 3) and pair([1, 2]) == (1, 2) and pair("same") is pair((1, 2, 3)) is None


def test_nested_arguments_are_walked_in_order_and_keep_their_shape():
    arguments = ((1, [2, 3]), {"dim": 4, "options": (5, {})}, torch.Size([6]))
    assert list(leaves(arguments)) == [1, 2, 3, 4, 5, 6]
    doubled = map_leaves(arguments[:2], lambda value: 2 * value)
    assert doubled == ((2, [4, 6]), {"dim": 8, "options": (10, {})})
    assert map_leaves(arguments[2], lambda value: value) is arguments[2], "other containers are values themselves"

"""Random streams against published outputs, and their moments and independence."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equipoise.core.rng import Streams, fold

SEEDS = st.integers(-(2**70), 2**70)


def test_the_published_outputs_of_splitmix64():
    """The sequence of the authors' C code for seed 1234567."""
    outputs = Streams(torch.tensor([1234567])).bits(5)[0]
    assert [value % 2**64 for value in outputs.tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(seed=st.integers(0, 2**64 - 1))
def test_splitmix64_in_plain_integers(seed):
    z = (seed + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    expected = z ^ (z >> 31)
    key = torch.tensor([seed - 2**64 if seed >= 2**63 else seed])
    assert Streams(key).bits()[0].item() % 2**64 == expected


def _close(values: torch.Tensor, mean: float, variance: float, fourth: float) -> None:
    """Mean and variance within 4.5 standard errors of the exact law, whose fourth central moment is `fourth`."""
    n = values.numel()
    assert abs(values.mean().item() - mean) < 4.5 * math.sqrt(variance / n)
    assert abs(values.var().item() - variance) < 4.5 * math.sqrt((fourth - variance**2) / n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform(dtype):
    draws = Streams.of(3, torch.arange(400)).uniform(10, 50, dtype=dtype)
    assert draws.shape == (400, 10, 50) and draws.dtype == dtype
    assert draws.min() >= 0 and draws.max() < 1
    _close(draws.double(), 1 / 2, 1 / 12, 1 / 80)
    assert draws.unique().numel() > (0.98 if dtype == torch.float32 else 0.9999) * draws.numel()


def test_uniform_never_rounds_up_to_one():
    """The largest possible bits give the largest number below 1."""

    class Full(Streams):
        def bits(self, *shape):
            return torch.full((1, *shape), -1)

    for dtype, digits in ((torch.float32, 24), (torch.float64, 53)):
        assert Full(torch.zeros(1, dtype=torch.int64)).uniform(3, dtype=dtype).max().item() == 1 - 2.0**-digits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal(dtype):
    draws = Streams.of(5, torch.arange(1000)).normal(200, dtype=dtype)
    assert draws.dtype == dtype and draws.isfinite().all()
    _close(draws.double(), 0, 1, 3)
    assert abs((draws.abs() < 1).double().mean().item() - math.erf(math.sqrt(0.5))) < 0.005
    assert abs((draws.abs() > 3).double().mean().item() - math.erfc(3 / math.sqrt(2))) < 0.0006


def test_integers():
    draws = Streams.of(7, torch.arange(70_000)).integers(7)
    assert draws.dtype == torch.int64
    counts = draws.bincount(minlength=7)
    assert len(counts) == 7
    assert ((counts - 10_000).double() ** 2 / 10_000).sum() < 30  # chi-square with 6 degrees: 30 is beyond 1e-4


def test_neighbouring_samples_and_seeds_are_uncorrelated():
    index = torch.arange(50_000)
    mine = Streams.of(0, index)
    for other in (Streams.of(0, index + 1), Streams.of(1, index), mine.fold(1), Streams.of(0, -index - 1)):
        pair = torch.stack([mine.uniform(), other.uniform()])
        assert abs(pair.corrcoef()[0, 1].item()) < 4.5 / math.sqrt(50_000)


@given(seed=SEEDS, cut=st.integers(0, 12), order=st.permutations(range(12)))
def test_a_draw_belongs_to_its_sample(seed, cut, order):
    whole = Streams.of(seed, torch.arange(12)).fold(2, 5)
    index = torch.tensor(order)
    parts = [Streams.of(seed, i).fold(2).fold(5) for i in (index[:cut], index[cut:])]
    for draw in (lambda s: s.normal(3), lambda s: s.integers(9), lambda s: s.bits(2, 2)):
        assert torch.equal(draw(whole)[index], torch.cat([draw(part) for part in parts]))
        assert torch.equal(draw(whole)[3:7], draw(whole[3:7])) and torch.equal(draw(whole)[index], draw(whole[index]))


@given(seed=SEEDS, data=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3))
def test_folding_into_a_seed_and_into_streams_agree(seed, data):
    streams = Streams(torch.full((2,), fold(seed)))
    assert streams.fold(*data).keys.tolist() == [fold(seed, *data)] * 2


def test_folding_depends_on_every_value_and_their_order():
    keys = {fold(s, a, b) for s in range(10) for a in range(10) for b in range(10)}
    assert len(keys) == 1000
    assert fold(0) != fold(0, 0) != fold(0, 0, 0)


def test_one_value_per_sample_can_be_folded():
    streams = Streams.of(0, torch.arange(4))
    mixed = streams.fold(torch.tensor([1, 1, 2, 2], dtype=torch.int32))
    assert torch.equal(mixed[:2].keys, streams.fold(1)[:2].keys)
    assert torch.equal(mixed[2:].keys, streams.fold(2)[2:].keys)


def test_no_global_state_is_touched():
    before = torch.get_rng_state()
    Streams.of(0, torch.arange(4)).normal(3)
    fold(1, 2)
    assert torch.equal(before, torch.get_rng_state())

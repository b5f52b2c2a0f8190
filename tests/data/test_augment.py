"""Crop and flip against a plain loop over samples, and its independence of the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import Streams
from equipoise.data import crop_and_flip


def reference(x: torch.Tensor, streams: Streams, pad: int) -> torch.Tensor:
    n, c, h, w = x.shape
    out = torch.empty_like(x)
    for i in range(n):
        one = streams[i : i + 1]
        dy, dx = int(one.fold(0).integers(2 * pad + 1)), int(one.fold(1).integers(2 * pad + 1))
        big = torch.zeros(c, h + 2 * pad, w + 2 * pad)
        big[:, pad : pad + h, pad : pad + w] = x[i]
        crop = big[:, dy : dy + h, dx : dx + w]
        out[i] = torch.flip(crop, [2]) if int(one.fold(2).integers(2)) else crop
    return out


@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    pad=st.integers(0, 5),
    seed=st.integers(0, 2**62),
)
@settings(max_examples=60, deadline=None)
def test_it_is_the_plain_loop(shape: tuple[int, int, int, int], pad: int, seed: int) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    streams = Streams.of(seed, torch.arange(shape[0]))
    assert crop_and_flip(x, streams, pad=pad).equal(reference(x, streams, pad))


@given(cut=st.integers(1, 9), seed=st.integers(0, 2**62), epoch=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_it_does_not_depend_on_batch_or_order(cut: int, seed: int, epoch: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, index = torch.rand(10, 3, 6, 5, generator=generator), torch.randperm(1000, generator=generator)[:10]

    def augmented(rows: torch.Tensor) -> torch.Tensor:
        return crop_and_flip(x[rows], Streams.of(seed, index[rows]).fold(epoch))

    whole = augmented(torch.arange(10))
    assert torch.cat([augmented(torch.arange(cut)), augmented(torch.arange(cut, 10))]).equal(whole)
    order = torch.randperm(10, generator=generator)
    assert augmented(order).equal(whole[order])


def test_every_crop_and_both_directions_occur_and_epochs_differ() -> None:
    x = torch.arange(1, 5).float().view(1, 1, 2, 2).expand(400, 1, 2, 2) / 4
    streams = Streams.of(0, torch.arange(400))
    out = crop_and_flip(x, streams, pad=1)
    seen = {tuple(image.flatten().tolist()) for image in out}
    pattern = torch.tensor([[0, 0, 0, 0], [0, 1, 2, 0], [0, 3, 4, 0], [0, 0, 0, 0]]) / 4
    crops = [pattern[i : i + 2, j : j + 2] for i in range(3) for j in range(3)]
    assert seen == {tuple(p.flatten().tolist()) for crop in crops for p in (crop, crop.flip(1))}
    assert not out.equal(crop_and_flip(x, streams.fold(1), pad=1))


def test_no_padding_only_flips() -> None:
    x = torch.rand(64, 2, 3, 4)
    out = crop_and_flip(x, Streams.of(1, torch.arange(64)), pad=0)
    same = (out == x).flatten(1).all(1)
    mirrored = (out == x.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all() and 16 <= int(same.sum()) <= 48


def test_it_leaves_its_input_and_the_global_generator_alone() -> None:
    x = torch.rand(4, 1, 5, 5)
    copy, state = x.clone(), torch.get_rng_state()
    crop_and_flip(x, Streams.of(0, torch.arange(4)))
    assert x.equal(copy) and state.equal(torch.get_rng_state())


@pytest.mark.unchecked
def test_refusals() -> None:
    streams = Streams.of(0, torch.arange(4))
    with pytest.raises(EquipoiseError, match="pad = -1; expected a number of pixels"):
        crop_and_flip(torch.rand(4, 1, 5, 5), streams, pad=-1)
    with pytest.raises(EquipoiseError, match=r"needs images .*, got shape \(4, 5\); turn it off"):
        crop_and_flip(torch.rand(4, 5), streams)
    with pytest.raises(EquipoiseError, match="4 streams for 3 images"):
        crop_and_flip(torch.rand(3, 1, 5, 5), streams)

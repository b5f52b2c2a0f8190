"""Random draws that belong to a sample: a function of the run's seed and the sample's index, of nothing else.

A stream is the generator SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) started from a key; the keys of a batch are
hashes of `(seed, index)`. All arithmetic is on 64-bit integers, so that a draw is the same on every device, and the
same whichever batch, order or shard a sample comes in. No global state is read or written.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical (not arithmetic) right shift of signed 64-bit integers."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    """The output function of SplitMix64: a bijection of 64-bit integers that scatters every bit."""
    z = (z ^ _shift(z, 30)) * _MIX_1
    z = (z ^ _shift(z, 27)) * _MIX_2
    return z ^ _shift(z, 31)


def _mixed(value: int) -> int:
    """The same of one Python integer, which costs a hundredth of a tensor's."""
    z = value % (1 << 64)
    z = (z ^ z >> 30) * _MIX_1 % (1 << 64)
    z = (z ^ z >> 27) * _MIX_2 % (1 << 64)
    return _wrap(z ^ z >> 31)


def fold(seed: int, *data: int) -> int:
    """A new seed that depends on `seed` and on every integer of `data`, in order."""
    key = _wrap(seed)
    for value in data:
        key = _mixed((key ^ _mixed(value + _GOLDEN)) + _GOLDEN)
    return key


def _wrap(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


class Stream(IntEnum):
    """What a sample's stream is for: its number is folded into the key, so that no two share their numbers. A number
    stands for good, as another would change results.
    """

    START = 0
    """Where an ascent starts."""
    STEPS = 1
    """The number of its steps."""
    MODEL = 2
    """What a random model draws."""
    TARGET = 3
    """The class that is aimed at."""
    RESTART = 4
    """Everything of a further start."""
    GLOBAL = 5
    """The global generators, for a model that draws from them."""
    JUDGE = 6
    """What a random model draws when a point is judged, which no search has seen."""
    SQUARE_RESTART = 10
    SQUARE_START = 11
    SQUARE_WINDOW = 12
    SQUARE_SIGN = 13
    RANDOM_SEARCH = 14
    """The points that are tried."""
    RADII = 15
    """The radii at which a score is sampled."""
    NEIGHBOURS = 16
    """The points near a sample that a score looks at."""
    BOX = 17
    """Points of the whole box, for a score over it."""
    JITTER = 18
    """A small move of a sample, to see whether the model is smooth."""
    SIGNS = 19
    """Directions in which a gradient is checked by finite differences."""
    POWER_ITERATION = 21
    """The first vector of a power iteration."""
    DIRECTION = 22
    """The second direction of a surface."""


class RunStream(IntEnum):
    """The same of a training's seed, and of the seed of one of its epochs."""

    SPLIT = 0
    """Which samples are held out for validation."""
    ORDER = 1
    """The order of the samples."""
    AUGMENT = 2
    """Crops and flips."""
    ASCENT = 3
    """The streams of the samples that perturbations draw from."""
    NOISE = 4
    """The global generators, from which dropout draws; the codes that an auto-encoder is compared with."""
    PLAY = 5
    """The batches of the other networks that a method trains."""


@dataclass(frozen=True)
class Streams:
    """One independent random stream per sample of a batch, and one that all samples share.

    `Streams.of(seed, index)` makes them; each draw takes numbers from the start of every stream, so fold in what it is
    for (`streams.fold(Stream.START)`), and within that a different integer for each thing that is drawn.
    """

    keys: Int[Tensor, " batch"]
    """State from which each sample's stream starts."""
    common: Int[Tensor, " 1"] | None = None
    """State from which the shared stream starts."""

    @classmethod
    def of(cls, seed: int, index: Int[Tensor, " batch"], batch: int = 0) -> "Streams":
        """The streams of the samples `index` in the run with `seed`. The shared one depends on `seed`, `batch`."""
        start = torch.full_like(index, _wrap(seed), dtype=torch.int64)
        return cls(cls(start).fold(index).keys, cls(start.new_full((1,), _wrap(seed))).fold(batch).keys)

    @property
    def shared(self) -> "Streams":
        """The one stream that does not belong to a sample: for what is drawn for all of them, such as a network."""
        return Streams(self.keys.new_zeros(1) if self.common is None else self.common)

    def fold(self, *data: "int | Int[Tensor, ' batch']") -> "Streams":
        """Other streams, which depend on these and on `data` (an integer, or one per sample; the shared stream depends
        on the integers alone).
        """
        keys, common = self.keys, self.common
        for value in data:
            each = isinstance(value, Tensor)
            mixed = _mix(value.long() + _GOLDEN) if each else _mixed(value + _GOLDEN)
            keys = _mix((keys ^ mixed) + _GOLDEN)
            if common is not None and not each:
                common = _mix((common ^ mixed) + _GOLDEN)
        return Streams(keys, common)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: "slice | Tensor") -> "Streams":
        """The streams of some of the samples."""
        return Streams(self.keys[rows], self.common)

    def bits(self, *shape: int) -> Int[Tensor, "batch ..."]:
        """The first outputs of each stream: uniform 64-bit integers of shape `(batch, *shape)`."""
        counter = torch.arange(1, math.prod(shape) + 1, device=self.keys.device) * _GOLDEN
        return _mix(self.keys[:, None] + counter).reshape(len(self), *shape)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "batch ..."]:
        """Uniform numbers in [0, 1), of shape `(batch, *shape)`; 24 random bits in float32, 53 in float64."""
        digits = 53 if dtype == torch.float64 else 24
        return _shift(self.bits(*shape), 64 - digits).to(dtype) * 2.0**-digits

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "batch ..."]:
        """Standard normal numbers of shape `(batch, *shape)` (Box & Muller 1958)."""
        u, v = self.uniform(2, *shape, dtype=dtype).unbind(1)
        return (-2 * torch.log1p(-u)).sqrt() * torch.cos(2 * math.pi * v)

    def integers(self, high: int) -> Int[Tensor, " batch"]:
        """One integer per sample, uniform in `{0, ..., high - 1}` (bias below 2⁻⁵³ · high)."""
        return (self.uniform(dtype=torch.float64) * high).long()

"""Random numbers per sample: a function of the run's seed and the sample's index alone.

A stream is the generator SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) started from a key; the keys of a batch are
hashes of `(seed, index)`. All arithmetic is on 64-bit integers, so that a draw does not depend on the device, nor on
the batch, order or shard that the sample is in. No global state is read or written.
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
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    """The output function of SplitMix64, a bijection of 64-bit integers. In place: new memory costs more than that."""
    z = _shift(z, 30).bitwise_xor_(z).mul_(_MIX_1)
    z = _shift(z, 27).bitwise_xor_(z).mul_(_MIX_2)
    return _shift(z, 31).bitwise_xor_(z)


def _mix_int(value: int) -> int:
    """`_mix` of a Python integer, at a hundredth of the cost."""
    z = value % (1 << 64)
    z = (z ^ z >> 30) * _MIX_1 % (1 << 64)
    z = (z ^ z >> 27) * _MIX_2 % (1 << 64)
    return _wrap(z ^ z >> 31)


def fold(seed: int, *data: int) -> int:
    """Return a new seed that depends on `seed` and on every integer of `data`, in order."""
    key = _wrap(seed)
    for value in data:
        key = _mix_int((key ^ _mix_int(value + _GOLDEN)) + _GOLDEN)
    return key


def _wrap(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


class Stream(IntEnum):
    """Purposes of a sample's random numbers, which are folded into its key so that no two purposes share numbers.
    Changing a value would change results.
    """

    START = 0
    """The starting point of an ascent."""
    STEPS = 1
    """The number of its steps."""
    MODEL = 2
    """What a random model draws."""
    TARGET = 3
    """The target class."""
    RESTART = 4
    """Everything in a random restart."""
    GLOBAL = 5
    """The global generators, which some models draw from."""
    JUDGE = 6
    """What a random model draws when a result is confirmed, independently of the search."""
    SQUARE_RESTART = 10
    SQUARE_START = 11
    SQUARE_WINDOW = 12
    SQUARE_SIGN = 13
    RANDOM_SEARCH = 14
    """The points of random search."""
    RADII = 15
    """The radii at which a score is evaluated."""
    NEIGHBOURS = 16
    """The points near a sample at which a score is evaluated."""
    BOX = 17
    """Points of the box, for a score over all of it."""
    JITTER = 18
    """Small perturbations that test whether the model is smooth."""
    SIGNS = 19
    """Directions of finite differences, which check a gradient."""
    POWER_ITERATION = 21
    """The first vector of a power iteration."""
    DIRECTION = 22
    """The second direction of a loss surface."""
    SELECTION = 23
    """The noise by which a smoothed classifier's class is chosen."""
    ESTIMATION = 24
    """The noise by which the probability of that class is estimated."""
    HOP_SKIP_JUMP = 25
    """The first points and the directions of HopSkipJump."""


class RunStream(IntEnum):
    """Purposes of the seed of a training, or of one of its epochs."""

    SPLIT = 0
    """The choice of the validation samples."""
    ORDER = 1
    """The order of the samples."""
    AUGMENT = 2
    """Crops and flips."""
    ASCENT = 3
    """The samples' streams for perturbations."""
    NOISE = 4
    """The global generators, used by dropout; the codes that an auto-encoder is compared with."""
    PLAY = 5
    """The batches of auxiliary networks that a method trains."""
    UNLABELLED = 6
    """The order of the unlabelled samples, and their streams."""


@dataclass(frozen=True)
class Streams:
    """One independent random stream per sample of a batch, and one that all samples share.

    `Streams.of(seed, index)` creates them. Every draw starts at the beginning of the streams, so fold in its purpose
    (`streams.fold(Stream.START)`), and a different integer for each draw of the same purpose.
    """

    keys: Int[Tensor, " batch"]
    """Initial state of each sample's stream."""
    common: Int[Tensor, " 1"] | None = None
    """Initial state of the shared stream."""
    batch: int = 0
    """The number of the batch, for what takes turns."""

    @classmethod
    def of(cls, seed: int, index: Int[Tensor, " batch"], batch: int = 0) -> "Streams":
        """Return the streams of the samples `index` in the run with `seed`. The shared stream depends on
        `seed` and `batch`.
        """
        start = torch.full_like(index, _wrap(seed), dtype=torch.int64)
        return cls(cls(start).fold(index).keys, cls(start.new_full((1,), _wrap(seed))).fold(batch).keys, batch)

    @property
    def shared(self) -> "Streams":
        """The shared stream: for what is drawn once for all samples, such as a network."""
        return Streams(self.keys.new_zeros(1) if self.common is None else self.common)

    def fold(self, *data: "int | Int[Tensor, ' batch']") -> "Streams":
        """Return new streams that depend on these and on `data`: integers, or tensors of one per sample, which do not
        affect the shared stream.
        """
        keys, common = self.keys, self.common
        for value in data:
            per_sample = isinstance(value, Tensor)
            mixed = _mix(value.long() + _GOLDEN) if per_sample else _mix_int(value + _GOLDEN)
            keys = _mix((keys ^ mixed) + _GOLDEN)
            if common is not None and not per_sample:
                common = _mix((common ^ mixed) + _GOLDEN)
        return Streams(keys, common, self.batch)

    def at(self, batch: int) -> "Streams":
        """Return the same streams, as those of batch number `batch` for what takes turns."""
        return Streams(self.keys, self.common, batch)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: "slice | Tensor") -> "Streams":
        """Return the streams of some of the samples."""
        return Streams(self.keys[index], self.common, self.batch)

    def bits(self, *shape: int) -> Int[Tensor, "batch ..."]:
        """Return the first outputs of each stream: uniform 64-bit integers of shape `(batch, *shape)`."""
        counter = torch.arange(1, math.prod(shape) + 1, device=self.keys.device) * _GOLDEN
        return _mix(self.keys[:, None] + counter).reshape(len(self), *shape)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "batch ..."]:
        """Return uniform numbers in [0, 1), of shape `(batch, *shape)`; 24 random bits in float32, 53 in float64."""
        digits = 53 if dtype == torch.float64 else 24
        return _shift(self.bits(*shape), 64 - digits).to(dtype).mul_(2.0**-digits)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "batch ..."]:
        """Return standard normal numbers of shape `(batch, *shape)` (Box & Muller 1958)."""
        u, v = self.uniform(2, *shape, dtype=dtype).unbind(1)
        return (-2 * torch.log1p(-u)).sqrt() * torch.cos(2 * math.pi * v)

    def integers(self, high: int) -> Int[Tensor, " batch"]:
        """Return one integer per sample, uniform in `{0, ..., high - 1}` (bias below 2⁻⁵³ · high)."""
        return (self.uniform(dtype=torch.float64) * high).long()

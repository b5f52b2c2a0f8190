"""Many queries of the square attack at once on a network of native layers, by a C kernel (`square.c`)."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from equipoise.core.types import STORAGE, SUMMATION, UNDERFLOW
from equipoise.kernels.native.build import address, library, run_threaded
from equipoise.kernels.native.forward import NativeNetwork


class _PlanStruct(ctypes.Structure):
    """`plan` of `square.c`."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("channels", "height", "width", "queries", "targeted")),
        *((name, ctypes.c_float) for name in ("eps", "low", "high", "summation", "storage", "underflow")),
        *((name, ctypes.c_void_p) for name in ("windows", "scale", "shift")),
    ]


_FIELDS = ("origin", "signs", "label", "point", "value", "query", "kept", "evaluations")


class _SamplesStruct(ctypes.Structure):
    """`samples` of `square.c`."""

    _fields_ = [(name, ctypes.c_void_p) for name in _FIELDS]


@dataclass(frozen=True)
class SquarePlan:
    """The queries, which are the same for all samples."""

    eps: float
    """Radius of the Linf ball."""
    low: float
    """The smallest value of a pixel."""
    high: float
    """The largest value of a pixel."""
    windows: Sequence[tuple[int, int, int, int]]
    """The window of each query: its first row, the row behind its last, and the same for columns."""
    targeted: bool = False
    """Whether the labels are classes to reach."""


@dataclass(frozen=True)
class SquareSamples:
    """Where the search of each sample stands."""

    origin: Tensor
    """The clean images."""
    signs: Tensor
    """Of each sample, channel and query."""
    label: Tensor
    """The classes to lead away from, or to reach."""
    point: Tensor
    """The best points so far."""
    value: Tensor
    """Minus the margin of the label there, or the margin of the target, at most 0."""
    query: Tensor
    """The query that comes next."""


@dataclass(frozen=True)
class SquaresSearched:
    """Where it stands afterwards."""

    point: Tensor
    """The best points."""
    value: Tensor
    """The same there."""
    query: Tensor
    """The query that would have been a success, before which a sample has stopped; else their number."""
    kept: Tensor
    """The last query whose change was kept; -1 where none was."""
    evaluations: Tensor
    """How often the network was evaluated."""


def search_squares(network: NativeNetwork, plan: SquarePlan, samples: SquareSamples) -> SquaresSearched:
    """Put `x ± eps` in one window after the other, and keep it where the margin shrinks by more than rounding
    (Andriushchenko et al. 2020); a sample stops before a query that would be a success.

    A proposal that changes nothing is not evaluated. Results depend neither on the order of the samples nor on the
    number of threads.
    """
    kernels = library()
    assert kernels is not None
    layers, count, shape = network.layers, len(samples.origin), samples.origin.shape[1:]
    assert network.takes(shape)
    windows = torch.tensor(plan.windows, dtype=torch.int32)
    rounding = (torch.finfo(torch.float32).eps * bound for bound in (SUMMATION, STORAGE))
    numbers = plan.eps, plan.low, plan.high, *rounding, UNDERFLOW
    pointers = map(address, (windows, network.scale, network.shift))
    native_plan = _PlanStruct(*shape, len(plan.windows), plan.targeted, *numbers, *pointers)
    given = [value.contiguous() for value in (samples.origin, samples.signs, samples.label)]
    point, value = (x.clone(memory_format=torch.contiguous_format) for x in (samples.point, samples.value))
    searched = SquaresSearched(point, value, samples.query.clone(), *samples.query.new_empty(2, count))
    native_samples = _SamplesStruct(*map(address, (*given, *vars(searched).values())))

    def run(first: int, number: int) -> int:
        where = ctypes.c_int64(first), ctypes.c_int64(number)
        plan_and_samples = ctypes.byref(native_plan), ctypes.byref(native_samples)
        return kernels.search_squares(layers.structs, len(layers.structs), *plan_and_samples, *where)

    most = layers.samples_at_once(len(plan.windows)) // torch.get_num_threads()
    run_threaded(count, layers.simd_width, run, most=most)
    return searched

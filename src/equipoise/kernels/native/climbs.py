"""Whole climbs of samples on a network of native layers, by a C kernel (`climb.c`)."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from equipoise.core import progress
from equipoise.kernels.native.build import address, library, run_threaded
from equipoise.kernels.native.forward import NativeNetwork

KINDS = (
    "cross-entropy", "entropy", "clean||here", "here||clean", "soft-cross-entropy", "margin", "dlr",
    "negated-probability", "rival-probability",
)  # fmt: skip
"""The objectives in `objectives.h`."""
RETURN_POINTS = ("last", "best", "first_success")
"""Which point is returned, as in `climb.c`."""


class _TermStruct(ctypes.Structure):
    """`term` of `objectives.h`."""

    _fields_ = [("kind", ctypes.c_int32), ("weight", ctypes.c_double), ("smoothing", ctypes.c_double)]


class _PlanStruct(ctypes.Structure):
    """`plan` of `climb.c`."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("terms_count", "steps", "return_point", "l2_step", "l2_ball")),
        *((name, ctypes.c_int32) for name in ("tau", "may_cycle", "evaluations", "targets", "auto_step")),
        *((name, ctypes.c_float) for name in ("eps", "low", "high", "inertia", "progress")),
        ("intervals", ctypes.c_void_p),
        ("terms", ctypes.POINTER(_TermStruct)),
        *((name, ctypes.c_void_p) for name in ("sizes", "scale", "shift")),
    ]


_INPUTS = ("origin", "start", "clean", "label", "target", "own", "wanted", "steps", "radii", "paces")
_RESULTS = ("point", "value", "iteration", "evaluations", "not_finite", "zero", "succeeded")
_ZERO, _NOT_FINITE = 1, 2
"""What may be noted of a gradient in `events` of `climb.c`."""


class _SamplesStruct(ctypes.Structure):
    """`samples` of `climb.c`."""

    _fields_ = [(name, ctypes.c_void_p) for name in (*_INPUTS, *_RESULTS, "events", "earliest")]


@dataclass(frozen=True)
class ClimbTerm:
    """`weight` times an objective."""

    kind: str
    """One of `KINDS`."""
    weight: float = 1.0
    """Its weight in the sum."""
    smoothing: float = 0.0
    """Label smoothing of the cross-entropy."""


@dataclass(frozen=True)
class AutoSteps:
    """Steps of Auto-PGD, which choose their own length (`equipoise.attacks.auto_step.AutoStep`)."""

    inertia: float
    """How much of a step is the new direction."""
    progress: float
    """The share of steps that have to improve the objective."""
    intervals: Sequence[int]
    """Of each step: at a checkpoint the number of steps since the last one, else 0."""


@dataclass(frozen=True)
class ClimbPlan:
    """What is climbed, how, and which point is returned."""

    terms: Sequence[ClimbTerm]
    """The objective, a weighted sum."""
    sizes: Sequence[float]
    """The length of each step."""
    l2_step: bool
    """Whether a step has that length in L2; else every coordinate moves by it."""
    l2_ball: bool
    """Whether the ball is one of L2; else of Linf."""
    eps: float
    """Its radius."""
    low: float
    """The smallest value of a coordinate."""
    high: float
    """The largest value of a coordinate."""
    return_point: str
    """One of `RETURN_POINTS`."""
    tau: int | None
    """Stop where the prediction has been wrong more often."""
    may_cycle: bool
    """Whether a climb that comes back to an earlier point has finished."""
    auto: AutoSteps | None = None
    """Of steps that choose their own length, the first being as long as `sizes` says."""
    targets: int = 1
    """Climbs of each sample towards different targets, one after the other: the first success ends them all."""


@dataclass(frozen=True)
class ClimbSamples:
    """What each sample climbs from and to; classes are -1 where there is none."""

    origin: Tensor
    """The clean points."""
    start: Tensor
    """The points to start from, in ball and box."""
    label: Tensor
    """The class that the objective knows."""
    target: Tensor
    """The class that the objective is climbed towards."""
    own: Tensor
    """The class that the prediction should not be."""
    wanted: Tensor
    """The class that it should be."""
    clean: Tensor | None = None
    """The logits at the clean points, where the objective compares with them."""
    steps: Tensor | None = None
    """How many steps each sample takes; None: all of them."""
    radii: Tensor | None = None
    """The radius of each sample; None: that of the plan."""
    paces: Tensor | None = None
    """By how much each sample's steps are longer than the plan says; None: not at all."""


@dataclass(frozen=True)
class Climbed:
    """What became of each sample."""

    point: Tensor
    """The point that is returned."""
    value: Tensor
    """The objective there; -∞ where nobody looked."""
    iteration: Tensor = field(repr=False)
    """After how many steps it was reached."""
    evaluations: Tensor = field(repr=False)
    """How often the network was evaluated."""
    not_finite: Tensor = field(repr=False)
    """Steps with a gradient that is not finite."""
    zero: Tensor = field(repr=False)
    """Steps with a gradient of 0."""
    succeeded: Tensor = field(repr=False)
    """Whether it stopped at a success."""


def climb(network: NativeNetwork, plan: ClimbPlan, samples: ClimbSamples, evaluations: int = 0) -> Climbed:
    """Compute `x_{i+1} = Π(x_i + step(∇ objective(x_i), size_i))` for every sample, as `equipoise.attacks.Ascent` does.

    `evaluations` is how often each sample was looked at before. Results depend neither on the order of the samples nor
    on the number of threads; those of several climbs of a sample are as if all had taken their steps together. It is
    fastest where samples with as many steps follow each other.
    """
    kernels = library()
    assert kernels is not None
    layers, count = network.layers, len(samples.origin)
    given, new = (getattr(samples, name) for name in _INPUTS), samples.origin.new_zeros
    inputs = [None if value is None else value.contiguous() for value in given]
    point, value, succeeded = new(samples.origin.shape), new(count), new(count, dtype=torch.bool)
    iteration, looked, not_finite, zero = (new(count, dtype=torch.int64) for _ in range(4))
    climbed = Climbed(point, value, iteration, looked, not_finite, zero, succeeded)
    terms = (_TermStruct * len(plan.terms))(*((KINDS.index(t.kind), t.weight, t.smoothing) for t in plan.terms))
    sizes, auto = samples.origin.new_tensor(plan.sizes), plan.auto or AutoSteps(0.0, 0.0, [])
    intervals = sizes.new_tensor(auto.intervals, dtype=torch.int32)
    several = plan.targets > 1
    events = new(count, len(plan.sizes), dtype=torch.int8) if several else None
    earliest = None if events is None else new(count // plan.targets, dtype=torch.int64).fill_(len(plan.sizes) + 1)
    numbers = len(plan.terms), len(plan.sizes), RETURN_POINTS.index(plan.return_point), plan.l2_step, plan.l2_ball
    stop = -1 if plan.tau is None else plan.tau, plan.may_cycle, evaluations, plan.targets, plan.auto is not None
    lengths = plan.eps, plan.low, plan.high, auto.inertia, auto.progress
    affine = address(network.scale), address(network.shift)
    native_plan = _PlanStruct(*numbers, *stop, *lengths, address(intervals), terms, address(sizes), *affine)
    results = (getattr(climbed, name) for name in _RESULTS)
    native_samples = _SamplesStruct(*map(address, (*inputs, *results, events, earliest)))

    def run(first: int, number: int) -> int:
        progress.report(first, count, "sample")  # of the caller's thread: nobody listens to the others
        where = ctypes.c_int64(first), ctypes.c_int64(number)
        plan_and_samples = ctypes.byref(native_plan), ctypes.byref(native_samples)
        return kernels.climb(layers.structs, len(layers.structs), *plan_and_samples, *where)

    most, width = layers.samples_at_once(len(plan.sizes)) // torch.get_num_threads(), layers.simd_width
    run_threaded(count, width if _leave_together(plan, samples) else _share(count, width, most), run, most)
    return climbed if events is None else _together(climbed, events, plan.targets, evaluations)


def _leave_together(plan: ClimbPlan, samples: ClimbSamples) -> bool:
    """Whether it is known from the start how many steps each sample takes, so that small chunks waste nothing: where a
    sample leaves by itself, the next one of its chunk takes its place.
    """
    stops = plan.return_point == "first_success" or plan.tau is not None or plan.may_cycle
    return samples.steps is not None or not stops


def _share(count: int, width: int, most: int) -> int:
    """The share of a thread, in multiples of `width`: no more than `most`."""
    return -(-min(-(-count // torch.get_num_threads()), most) // width) * width


def _together(climbed: Climbed, events: Tensor, targets: int, evaluations: int) -> Climbed:
    """What several climbs of each sample cost that take their steps together until the first success of any."""
    steps = events.shape[1]
    success = torch.where(climbed.succeeded, climbed.iteration, steps).reshape(-1, targets).amin(1)
    last = success.repeat_interleave(targets)
    counted = events * (torch.arange(steps, device=events.device) < last[:, None])
    return replace(
        climbed,
        evaluations=climbed.evaluations.minimum(evaluations + last + 1),
        not_finite=(counted == _NOT_FINITE).sum(1),
        zero=(counted == _ZERO).sum(1),
        succeeded=climbed.succeeded & (climbed.iteration == last),
    )

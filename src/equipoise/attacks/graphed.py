"""The steps of a gradient ascent as one recording, a CUDA graph, that is replayed.

A step of a small network, or of a small batch, keeps a GPU busy for less time than Python needs to ask for it. What a
step computes up to the projection is therefore recorded once and replayed: the prediction, the gradient, the selection
and the step rule, on tensors that stay where they are. The number of rows is rounded up to a power of two
(`equipoise.attacks.active.Active`), and each is recorded anew. Whoever has finished is only asked for every
`equipoise.attacks.climb.CHECK_EVERY` steps; the projection onto an L2 ball is not recorded, and waits for the device.

`is_recordable` says which ascents do the same at every step. It has not been measured on a GPU yet.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from equipoise.attacks.climb import ActiveBatch, ClimbState, Draws, Phase, Selection
from equipoise.attacks.native_climb import climb_terms
from equipoise.attacks.steps import Normalized, Sign, Steepest
from equipoise.core.errors import EquipoiseWarning
from equipoise.core.types import AscentState, Number, Points, Predict, StepRule
from equipoise.losses.objectives import Objective
from equipoise.models import Frozen, Single

Tensors = tuple[Tensor | None, ...]
Compute = Callable[[], Tensors]


@runtime_checkable
class Recorder(Protocol):
    """What records a computation on tensors that stay where they are."""

    def warm_up(self, compute: Compute) -> Tensors:
        """Compute it once, as often as it takes until it can be recorded."""
        ...

    def record(self, compute: Compute) -> Compute:
        """Return what computes it again from what the same tensors then hold; recording alone computes nothing."""
        ...


class CudaGraphs:
    """Records on a stream of its own, as https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs asks for.

    Unlike `torch.cuda.graph` it does not collect garbage, empty the cache or wait for the device: an ascent is over
    after some milliseconds.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def warm_up(self, compute: Compute) -> Tensors:
        """Compute it on the stream of the recording, where libraries thereby set themselves up."""
        return self._beside(compute)

    def record(self, compute: Compute) -> Compute:
        """Capture a graph; its results lie in memory of its own, which the next replay writes again."""
        graph = torch.cuda.CUDAGraph()

        def capture() -> Tensors:
            graph.capture_begin(capture_error_mode="thread_local")  # threads of others, such as loaders, may go on
            try:
                return compute()
            finally:
                graph.capture_end()

        results = self._beside(capture)

        def replay() -> Tensors:
            graph.replay()
            return results

        return replay

    def _beside(self, compute: Compute) -> Tensors:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            results = compute()
        current.wait_stream(self._stream)
        return results


def recorder_for(device: torch.device) -> Recorder | None:
    """Return what records on this device; None where nothing is gained."""
    return CudaGraphs(device) if device.type == "cuda" else None


def is_recordable(predictive: Frozen, objective: Objective, rule: StepRule, selection: Selection, drawn: bool) -> bool:
    """Whether every step of an ascent does the same, whatever the numbers: a single network of known layers without
    hooks, an objective without a test of its values, and a rule that remembers nothing. `drawn`: whether samples differ
    in their number of steps.

    An ascent of independent samples in eval mode is meant, with one draw of the model and one ball.
    """
    terms, layers = climb_terms(objective), list(predictive.module.modules())
    return (
        isinstance(predictive.original, Single)
        and not predictive.random
        and all(_only_computes(layer) for layer in layers)
        and terms is not None
        and all(term.kind != "dlr" for term in terms)
        and type(rule) in (Steepest, Sign, Normalized)
        and not (drawn and selection.tau is not None)  # whose rows would count the errors of their last point again
    )


def _only_computes(layer: nn.Module) -> bool:
    is_known = type(layer).__module__.startswith(("torch.nn.modules.", "equipoise.nets."))
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    return is_known and not any(hooks)


@dataclass
class Stepping:
    """What a step of an ascent computes up to the projection."""

    active: ActiveBatch
    objective: Objective
    rule: StepRule
    model: Draws
    predict: Predict

    def __call__(self, step: Number, size: Any, phase: Phase) -> tuple[Points, tuple[Tensor, ...]]:
        """Look at the points of all active rows; return `x + step(∇ objective(x), size)` and the rule's memory. While
        this is recorded, the number of the step and its size are tensors.
        """
        active = self.active
        value, gradient, output = self.model.value_and_gradient(self.objective, active.rows, step, self.predict)
        value, gradient = active.observe(step, value, gradient, output, phase.final)
        state = active.rows
        if len(state) == 0:
            return state.point, state.memory
        x, origin = state.point, state.origin
        length = size[state.sample] if isinstance(size, Tensor) and size.ndim == 1 else size
        ball = phase.ball[state.sample]
        at = AscentState(x, value, gradient, origin, length, step - phase.start, phase.steps, ball)
        return self.rule(at, state.memory)


_CHANGING = ("point", "best", "best_value", "best_step", "succeeded", "num_errors", "finished", "looks", "nan", "zero")
"""The columns of a `ClimbState` that a step reads and writes."""


class RecordedStepping:
    """The same from a recording, as long as the batch has the same rows."""

    def __init__(self, stepping: Stepping, recorder: Recorder) -> None:
        self._stepping, self._recorder, self._can_record = stepping, recorder, True
        self._rows: ClimbState | None = None

    def __call__(self, step: int, size: Any, phase: Phase) -> tuple[Points, tuple[Tensor, ...]]:
        """As `Stepping`. The first step on some rows is computed, the second recorded."""
        active = self._stepping.active
        rows = active.rows
        if rows is not self._rows:
            self._rows, self._replay = rows, cast(Compute | None, None)
            self._inputs = {name: getattr(rows, name).clone() for name in _CHANGING}
            self._step, self._size = rows.output_index.new_tensor(step), rows.point.new_tensor(size)
            results = self._recorder.warm_up(self._compute(rows, phase))
        else:
            for name, tensor in self._inputs.items():
                tensor.copy_(getattr(rows, name))
            self._step.fill_(step)
            self._size.fill_(size)
            if self._replay is None:
                self._replay = self._recorded(self._compute(rows, phase))
            results = self._replay()
        moved, active.still, *columns = results
        for name, column in zip(_CHANGING, columns, strict=True):
            setattr(rows, name, column)
        return cast(Tensor, moved), ()

    def _recorded(self, compute: Compute) -> Compute:
        """The recording; with a warning the computation itself where the device refuses to record it."""
        if self._can_record:
            try:
                return self._recorder.record(compute)
            except RuntimeError as error:
                self._can_record = False
                reason = (str(error).splitlines() or ["no reason is given"])[0]
                warnings.warn(
                    f"a step could not be recorded as a CUDA graph ({reason}): steps are taken one by one, which is "
                    "slower. Please report it.",
                    EquipoiseWarning,
                    stacklevel=2,
                )
        return compute

    def _compute(self, rows: ClimbState, phase: Phase) -> Compute:
        def compute() -> Tensors:
            active = self._stepping.active
            active.rows = replace(rows, **self._inputs)
            try:
                moved, _ = self._stepping(self._step, self._size, phase)
                return moved, active.still, *(getattr(active.rows, name) for name in _CHANGING)
            finally:
                active.rows = rows

        return compute

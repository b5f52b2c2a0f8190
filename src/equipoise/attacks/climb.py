"""The parts of a gradient ascent: the active batch, the selection of the point to return, phases, model draws, cycles.

`Ascent` strings them together; each can be read and tested alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from equipoise.attacks.active import Active, SampleTable
from equipoise.attacks.execution import value_and_gradient
from equipoise.attacks.result import Criterion, like
from equipoise.attacks.steps import Start
from equipoise.core.errors import require
from equipoise.core.rng import Streams
from equipoise.core.types import Number, PerSample, Points, Predict, Prediction, StepRule
from equipoise.geometry import Ball
from equipoise.losses.objectives import Objective
from equipoise.models import Frozen

ReturnPoint = Literal["last", "best", "first_success"]

CHECK_EVERY = 8  # steps between two looks at who has succeeded on an accelerator, where looking waits for the device


@dataclass(frozen=True)
class Attempt(SampleTable):
    """A batch under attack, and where the ascent starts."""

    x: Tensor
    predictive: Frozen
    y: Tensor | None
    target: Tensor | None  # one class per sample, or several targets side by side
    clean: Prediction | None
    streams: Streams  # from which a random model is drawn: the same in every attempt, and where the points are judged
    own_streams: Streams  # from which this attempt draws its starts and numbers of steps
    criterion: Criterion
    start: Tensor | None = None
    batch_dependent: bool = False  # whether samples depend on each other
    exact: bool = False  # whether PyTorch computes the ascent, as it confirms the result
    start_rule: Start | None = None  # where this attempt starts, if not as the ascent says

    def unfooled(self, success: Bool[Tensor, " batch"]) -> Int[Tensor, " again"]:
        """The samples to try again: the whole batch, if any, where samples depend on each other."""
        again = ~success if not self.batch_dependent or success.all() else torch.ones_like(success)
        return again.nonzero()[:, 0]


@dataclass
class ClimbState(SampleTable):
    """The state of the ascents of all samples and targets, one per row."""

    output_index: Tensor  # where the row's result belongs
    sample: Tensor  # whose row it is: several rows have different targets for one sample
    point: Tensor
    origin: Tensor
    labels: Tensor | None
    target: Tensor | None
    criterion: Criterion
    clean: Prediction | None
    steps: Tensor | None  # how many steps it takes, if not all the same
    memory: tuple[Tensor, ...]  # of the step rule
    best: Tensor
    best_value: Tensor
    best_step: Tensor  # the step at which the best point was reached
    succeeded: Tensor  # whether it has succeeded, and stands still
    num_errors: Tensor  # at how many of its points the prediction has been wrong
    finished: Tensor  # whether more steps can change nothing: its sample has succeeded, or it cycles
    looks: Tensor  # how often it was looked at until it had finished, where rows stay longer than that; 0 until then
    cycle_probe: Tensor | None  # an earlier point: when the ascent comes back to it, it cycles
    nan: Tensor  # steps with a gradient that is not finite
    zero: Tensor  # steps with a gradient of 0

    @staticmethod
    def of(
        batch: Attempt, clean: Prediction | None, start: Points, steps: Tensor | None, rule: StepRule, may_cycle: bool
    ) -> "ClimbState":
        """One row per sample, or one per sample and target."""
        origin = batch.x
        index = torch.arange(len(origin), device=origin.device)
        no, none = torch.zeros_like(index, dtype=torch.bool), torch.zeros_like(index)
        state = ClimbState(
            output_index=index,
            sample=index,
            point=start,
            origin=origin,
            labels=batch.y,
            target=batch.target,
            criterion=batch.criterion,
            clean=clean,
            steps=steps,
            memory=rule.init(start),
            best=start,
            best_value=torch.full((len(origin),), -torch.inf, device=origin.device, dtype=origin.dtype),
            best_step=none,
            succeeded=no,
            num_errors=none,
            finished=no,
            looks=none,
            cycle_probe=start if may_cycle else None,
            nan=none,
            zero=none,
        )
        if batch.target is None or batch.target.ndim == 1:
            return state
        state = state[index.repeat_interleave(batch.target.shape[1])]
        state.output_index, state.target = torch.arange(len(state), device=index.device), batch.target.flatten()
        return state

    def enter(self, phase: "Phase", rule: StepRule) -> None:
        """Start anew from the best point so far, in another ball."""
        self.point = self.best = phase.ball[self.sample].project(self.best, self.origin)
        self.best_value = torch.full_like(self.best_value, -torch.inf)
        self.memory = rule.init(self.point)


@dataclass
class Outcome(SampleTable):
    """The results of all ascents by `output_index`, filled in as they finish."""

    point: Tensor
    value: Tensor
    target: Tensor | None
    iteration: Tensor
    evaluations: Tensor
    nan: Tensor
    zero: Tensor
    succeeded: Tensor

    @staticmethod
    def unmoved(state: ClimbState) -> "Outcome":
        """The outcome before the first step: every result is the clean point."""
        iteration, evaluations, nan, zero = (torch.zeros_like(state.output_index) for _ in range(4))
        point, value, succeeded = state.origin.clone(), state.best_value.clone(), state.succeeded.clone()
        return Outcome(point, value, state.target, iteration, evaluations, nan, zero, succeeded)

    def leading_rows(self, targets: int) -> "Outcome":
        """Of each sample's rows the first to succeed, else that with the highest value; the costs of all of them."""
        late = torch.where(self.succeeded, -self.iteration.double(), -torch.inf).reshape(-1, targets)
        best = torch.where(late.amax(1) > -torch.inf, late.argmax(1), self.value.reshape(-1, targets).argmax(1))
        leading = self[torch.arange(len(best), device=best.device) * targets + best]
        costs = {name: getattr(self, name).reshape(-1, targets).sum(1) for name in ("evaluations", "nan", "zero")}
        return replace(leading, **costs)


@dataclass(frozen=True)
class Phase:
    """Some steps of an ascent, in one ball."""

    start: int
    steps: int
    factor: float
    ball: Ball
    final: bool = False


def phases(geometry: Ball, most: int, eps_schedule: Sequence[tuple[float, float]]) -> dict[int, Phase]:
    """The balls of an ascent of `most` steps by their first step: first those of `eps_schedule`, each
    a radius in multiples of eps and a share of the steps, then `geometry` itself. Raises `EquipoiseError` if no step is
    left for it.
    """
    found, start = {}, 0
    for factor, share in eps_schedule:
        steps = max(math.ceil(share * most), 1)
        found[start] = Phase(start, steps, factor, geometry.scaled(factor))
        start += steps
    require(
        start < most,
        f"steps = {most}: too few to approach the ball in {len(eps_schedule)} phases, give at least {start + 1}.",
    )
    return {**found, start: Phase(start, most - start, 1.0, geometry, final=True)}


@dataclass(frozen=True)
class Draws:
    """The model to follow at a step: drawn once for all steps or, with `anew`, at each; the mean over `count` draws."""

    draw: Callable[[Streams], Predict]
    streams: Streams
    count: int
    anew: bool
    at_once: int | None  # samples per gradient

    def at(self, step: Number, first: Predict) -> list[Predict]:
        """The draws at a step; `first` is that which all steps share."""
        if not self.anew:
            return [first] * self.count
        numbers = ([number] if self.count > 1 else [] for number in range(self.count))
        return [self.draw(self.streams.fold(step + 1, *number)) for number in numbers]

    def value_and_gradient(
        self, objective: Objective, state: ClimbState, step: Number, first: Predict
    ) -> tuple[PerSample, Points, Prediction]:
        """Objective and gradient, averaged over the draws, and the prediction of all of them together."""
        found = [
            value_and_gradient(
                objective, predict, state.point, state.clean, state.labels, state.target, at_once=self.at_once
            )
            for predict in self.at(step, first)
        ]
        if len(found) == 1:
            return found[0]
        values, gradients, outputs = zip(*found, strict=True)
        together = Prediction(torch.cat([output.logits for output in outputs]))
        return torch.stack(values).mean(0), torch.stack(gradients).mean(0), together


@dataclass(frozen=True)
class Selection:
    """Which point an ascent returns: its last, its best, or its first success."""

    return_point: ReturnPoint
    tau: int | None
    """Stop where the prediction has been wrong more than this many times; None: only if `first_success`."""

    @property
    def watches(self) -> bool:
        """Whether every point on the way is looked at, or only the last."""
        return self.return_point != "last" or self.tau is not None

    def observe(
        self,
        state: ClimbState,
        value: PerSample,
        output: Prediction,
        step: "Tensor | Number",
        successes: Int[Tensor, " samples"],
        final: bool = True,
    ) -> None:
        """Remember the best point so far, or the last; the first success beats any value. NaN is never better.

        `successes` counts them per sample: once there is one, all rows of the sample are finished.
        """
        better = ((value > state.best_value) | (self.return_point == "last")) & ~state.finished
        if self.return_point != "best" and final:
            state.num_errors = state.num_errors + state.criterion.reached(output)
            stops = (state.num_errors > (self.tau or 0)) & ~state.finished
            better, state.succeeded = better | stops, state.succeeded | stops
            successes.index_add_(0, state.sample, state.succeeded.long())
            state.finished = state.finished | (successes[state.sample] > 0)
        state.best = torch.where(like(better, state.best), state.point, state.best)
        state.best_value = torch.where(better, value, state.best_value)
        state.best_step = torch.where(better, step, state.best_step)


class ActiveBatch(Active[ClimbState]):
    """The ascents still active. Finished ones leave, unless samples depend on each other: then they do not move.

    On a CPU they leave at once, elsewhere every `CHECK_EVERY` steps. With `buckets` they leave between steps, and stand
    still until then, so that a step always does the same to as many rows.
    """

    def __init__(
        self,
        state: ClimbState,
        samples: int,
        most: int,
        selection: Selection,
        independent: bool,
        buckets: bool = False,
    ) -> None:
        self.on_cpu = state.point.device.type == "cpu"
        super().__init__(state, check_every=1 if self.on_cpu else CHECK_EVERY, buckets=buckets)
        self.most, self.selection, self.independent = most, selection, independent
        self.outcome, self.successes = Outcome.unmoved(state), torch.zeros_like(state.output_index[:samples])
        self.before = self.evaluations = int(state.clean is not None)
        self._remaining: list[int] | None = None  # how many rows take more than i steps
        self.still: Tensor | None = None  # the rows that stand still at this step
        if state.steps is not None and independent:
            self.rows = state[state.steps.argsort(descending=True, stable=True)]
            self._count()

    def _count(self) -> None:
        steps = self.rows.steps
        if steps is not None:
            self._remaining = (len(steps) - steps.bincount(minlength=self.most + 1).cumsum(0)).tolist()

    def begin_step(self, step: int, objective: Objective, predict: Predict) -> bool:
        """Let rows leave that have taken all their steps. Returns whether any is left."""
        if self.buckets and self.selection.watches and step > 0:
            self._leave(step)
        if self._remaining is not None and (kept := self.kept(self._remaining[step])) < len(self):
            self._settle(self.rows[kept:], objective, predict)
            self.rows = self.rows[:kept]
        return len(self) > 0

    def _leave(self, step: int) -> Tensor | None:
        """Let finished rows leave; the index of the others if any has left."""
        released = self.release(self.rows.finished, step)
        if released is None:
            return None
        left, active = released
        self._write(left, left.best, left.best_step, 0)
        if self._remaining is not None:
            self._count()
        return active

    def observe(
        self, step: Number, value: PerSample, gradient: Points, output: Prediction, final: bool
    ) -> tuple[Float[Tensor, " active"], Float[Tensor, "active ..."]]:
        """Look at what the model says at the points; finished rows leave. Returns value and gradient of the others.

        A gradient that is not finite is counted and taken as 0; one that is 0 is counted.
        """
        state = self.rows
        leaves_in_time = self._remaining is not None and not self.buckets
        still = None if state.steps is None or leaves_in_time else state.steps <= step
        if self.selection.watches:
            before = state.finished
            self.selection.observe(state, value, output, step, self.successes, final)
            state.looks = torch.where(state.finished & ~before, step + 1, state.looks) if self.buckets else state.looks
            still = state.finished if still is None else state.finished | still
            active = self._leave(step) if self.independent and not self.buckets else None
            if active is not None:
                state, value, gradient, still = self.rows, value[active], gradient[active], still[active]
            if self.independent and self.on_cpu and state.steps is None and not self.buckets:
                still = None  # whoever would stand still has left
        self.still = still
        strength = gradient.abs().flatten(1).amax(1) if len(state) else gradient.new_zeros(0)
        not_finite, flat = ~strength.isfinite(), strength == 0
        state.nan = state.nan + (not_finite if still is None else not_finite & ~still)
        state.zero = state.zero + (flat if still is None else flat & ~still)
        return value, gradient.nan_to_num(0.0, 0.0, 0.0)  # a copy: of a sum the gradient is one number, expanded

    def move(self, step: int, point: Points, memory: tuple[Tensor, ...]) -> None:
        """Take the rows to their next points; one that comes back to an earlier point has finished: it cycles."""
        state, still = self.rows, self.still
        state.point = point if still is None else torch.where(like(still, point), state.point, point)
        state.memory = memory
        if state.cycle_probe is not None:
            cycles = (state.point == state.cycle_probe).flatten(1).all(1) & ~state.finished
            state.looks = torch.where(cycles, step + 2, state.looks) if self.buckets else state.looks
            state.finished = state.finished | cycles
            if step & (step + 1) == 0:  # at every power of two (Brent 1980)
                state.cycle_probe = state.point

    def finish(self, objective: Objective, predict: Predict) -> Outcome:
        """The outcome, after the last step."""
        self._settle(self.rows, objective, predict)
        return self.outcome

    def _settle(self, state: ClimbState, objective: Objective, predict: Predict) -> None:
        """Write down rows that have taken their last step."""
        if len(state) == 0:
            return
        taken = torch.full_like(state.output_index, self.most) if state.steps is None else state.steps
        if not self.selection.watches:
            self._write(state, state.point, taken, 0)
            return
        output = predict(state.point)
        value = objective(output, state.clean, state.labels, state.target)
        self.selection.observe(state, value, output, taken, self.successes)
        self._write(state, state.best, state.best_step, 1)

    def _write(self, state: ClimbState, point: Tensor, iteration: Tensor, last_looks: int) -> None:
        evaluations = self.evaluations + last_looks
        if self.buckets:  # where rows that wait for others, to leave with them, are looked at for nothing
            taken = self.most if state.steps is None else state.steps
            evaluations = self.before + torch.where(state.looks > 0, state.looks, taken + last_looks)
        results = {"value": state.best_value, "succeeded": state.succeeded, "nan": state.nan, "zero": state.zero}
        self.outcome.write(state.output_index, point=point, iteration=iteration, evaluations=evaluations, **results)

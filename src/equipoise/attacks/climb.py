"""The parts of a gradient ascent: the active batch, the selection of the point to return, phases, model draws, cycles.

`Ascent` strings them together; each can be read and tested alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from equipoise.attacks.execution import value_and_gradient
from equipoise.attacks.result import Criterion, at, like
from equipoise.attacks.steps import Start
from equipoise.core.errors import require
from equipoise.core.rng import Streams
from equipoise.core.types import PerSample, Points, Predict, Prediction, StepRule
from equipoise.geometry import Ball
from equipoise.losses.objectives import Objective
from equipoise.models import Frozen

ReturnPoint = Literal["last", "best", "first_success"]

CHECK_EVERY = 8  # steps between two looks at who has succeeded on an accelerator, where looking waits for the device


@dataclass(frozen=True)
class Case:
    """A batch under attack."""

    predictive: Frozen
    x: Tensor
    y: Tensor | None
    target: Tensor | None  # one class per sample, or several to climb towards side by side
    clean: Prediction | None
    streams: Streams  # from which a random model is drawn: the same in every attempt, and where the points are judged
    attempt: Streams  # from which this attempt draws its starts and numbers of steps
    criterion: Criterion
    start: Tensor | None = None
    couples: bool = False  # whether samples depend on each other
    rule: Start | None = None  # where this attempt starts, if not as the ascent says

    def __getitem__(self, rows: Tensor) -> "Case":
        whole = ("predictive", "couples", "rule")
        return replace(self, **{f.name: at(getattr(self, f.name), rows) for f in fields(self) if f.name not in whole})

    def unfooled(self, success: Bool[Tensor, " batch"]) -> Int[Tensor, " again"]:
        """The samples to try again: the whole batch, if any, where samples depend on each other."""
        again = ~success if not self.couples or success.all() else torch.ones_like(success)
        return again.nonzero()[:, 0]


@dataclass
class Rows:
    """What is known of the samples that still climb. Every field is per row, so that rows can leave."""

    slot: Tensor  # where the row's result belongs
    sample: Tensor  # whose row it is: several rows climb towards different targets for one sample
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
    best_at: Tensor  # the step at which the best point was reached
    succeeded: Tensor  # whether it has succeeded, and stands still
    num_wrong: Tensor  # at how many of its points the prediction has been wrong
    done: Tensor  # whether more steps can change nothing: it, or another row of its sample, has succeeded, or it cycles
    cycle_probe: Tensor | None  # an earlier point: when the ascent comes back to it, it cycles
    nan: Tensor  # steps with a gradient that is not finite
    zero: Tensor  # steps with a gradient of 0

    def __len__(self) -> int:
        return len(self.slot)

    def __getitem__(self, rows: "slice | Tensor") -> "Rows":
        def take(value: Any) -> Any:
            if value is None:
                return None
            return tuple(v[rows] for v in value) if isinstance(value, tuple) else value[rows]

        return Rows(*[take(getattr(self, name)) for name in _FIELDS])

    @staticmethod
    def of(
        case: Case, clean: Prediction | None, start: Points, steps: Tensor | None, rule: StepRule, may_cycle: bool
    ) -> "Rows":
        """One row per sample, or one per sample and target."""
        origin = case.x
        slot = torch.arange(len(origin), device=origin.device)
        no, none = torch.zeros_like(slot, dtype=torch.bool), torch.zeros_like(slot)
        rows = Rows(
            slot=slot,
            sample=slot,
            point=start,
            origin=origin,
            labels=case.y,
            target=case.target,
            criterion=case.criterion,
            clean=clean,
            steps=steps,
            memory=rule.init(start),
            best=start,
            best_value=torch.full((len(origin),), -torch.inf, device=origin.device, dtype=origin.dtype),
            best_at=none,
            succeeded=no,
            num_wrong=none,
            done=no,
            cycle_probe=start if may_cycle else None,
            nan=none,
            zero=none,
        )
        if case.target is None or case.target.ndim == 1:
            return rows
        rows = rows[slot.repeat_interleave(case.target.shape[1])]
        rows.slot, rows.target = torch.arange(len(rows), device=slot.device), case.target.flatten()
        return rows

    def enter(self, phase: "Phase", rule: StepRule) -> None:
        """Start anew from the best point so far, in another ball."""
        self.point = self.best = phase.ball.project(self.best, self.origin)
        self.best_value = torch.full_like(self.best_value, -torch.inf)
        self.memory = rule.init(self.point)


_FIELDS = tuple(f.name for f in fields(Rows))


@dataclass
class Outcome:
    """Results by slot, filled in as rows finish."""

    point: Tensor
    value: Tensor
    target: Tensor | None
    iteration: Tensor
    evaluations: Tensor
    nan: Tensor
    zero: Tensor
    succeeded: Tensor
    num_succeeded: Tensor  # by sample, not by slot: more than 0 once one of its rows has succeeded

    @classmethod
    def empty(cls, rows: Rows, samples: int) -> "Outcome":
        """The outcome before the first step: every result is the clean point."""

        def none() -> Tensor:
            return torch.zeros_like(rows.slot)

        return cls(
            rows.origin.clone(),
            rows.best_value.clone(),
            rows.target,
            none(),
            none(),
            none(),
            none(),
            torch.zeros_like(rows.succeeded),
            none()[:samples],
        )

    def write(self, rows: Rows, point: Tensor, iteration: Tensor, evaluations: int) -> None:
        """Write down what was found of these rows."""
        self.point[rows.slot] = point
        self.evaluations[rows.slot], self.iteration[rows.slot] = evaluations, iteration
        self.nan[rows.slot], self.zero[rows.slot] = rows.nan, rows.zero
        self.value[rows.slot], self.succeeded[rows.slot] = rows.best_value, rows.succeeded

    def leading_row(self, several: int) -> "Outcome":
        """Of each sample's rows the first to succeed, else that with the highest value; the costs of all of them."""
        late = torch.where(self.succeeded, -self.iteration.double(), -torch.inf).reshape(-1, several)
        best = torch.where(late.amax(1) > -torch.inf, late.argmax(1), self.value.reshape(-1, several).argmax(1))
        rows = torch.arange(len(best), device=best.device) * several + best
        one = {f.name: at(getattr(self, f.name), rows) for f in fields(self) if f.name != "num_succeeded"}
        costs = {name: getattr(self, name).reshape(-1, several).sum(1) for name in ("evaluations", "nan", "zero")}
        return Outcome(num_succeeded=self.num_succeeded, **one | costs)


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
        found[start] = Phase(start, steps, factor, replace(geometry, eps=factor * geometry.eps))
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

    def at(self, step: int, first: Predict) -> list[Predict]:
        """The draws at a step; `first` is that which all steps share."""
        if not self.anew:
            return [first] * self.count
        numbers = ([number] if self.count > 1 else [] for number in range(self.count))
        return [self.draw(self.streams.fold(step + 1, *number)) for number in numbers]

    def value_and_gradient(
        self, objective: Objective, rows: Rows, step: int, first: Predict
    ) -> tuple[PerSample, Points, Prediction]:
        """Objective and gradient, averaged over the draws, and the prediction of all of them together."""
        found = [
            value_and_gradient(
                objective, predict, rows.point, rows.clean, rows.labels, rows.target, at_once=self.at_once
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
    """Stop at the point where the prediction has been wrong more than so many times; None: only if `first_success`."""

    @property
    def watches(self) -> bool:
        """Whether every point on the way is looked at, or only the last."""
        return self.return_point != "last" or self.tau is not None

    def observe(
        self,
        rows: Rows,
        value: PerSample,
        output: Prediction,
        step: "Tensor | int",
        outcome: Outcome,
        final: bool = True,
    ) -> None:
        """Remember the best point so far, or the last; the first success beats any value. NaN is never better."""
        better = ((value > rows.best_value) | (self.return_point == "last")) & ~rows.done
        if self.return_point != "best" and final:
            rows.num_wrong = rows.num_wrong + rows.criterion.reached(output)
            stops = (rows.num_wrong > (self.tau or 0)) & ~rows.done
            better, rows.succeeded = better | stops, rows.succeeded | stops
            outcome.num_succeeded.index_add_(0, rows.sample, rows.succeeded.long())
            rows.done = rows.done | (outcome.num_succeeded[rows.sample] > 0)
        rows.best = torch.where(like(better, rows.best), rows.point, rows.best)
        rows.best_value = torch.where(better, value, rows.best_value)
        rows.best_at = torch.where(better, step, rows.best_at)


class ActiveBatch:
    """The rows that still climb. Those that are done leave, unless samples depend on each other: then they stand still.

    On a CPU they leave at once, elsewhere every `CHECK_EVERY` steps, since to see who is done waits for the device.
    """

    def __init__(self, rows: Rows, samples: int, most: int, selection: Selection, independent: bool) -> None:
        self.rows, self.most, self.selection, self.independent = rows, most, selection, independent
        self.outcome = Outcome.empty(rows, samples)
        self.evaluations = 0
        self._on_cpu = rows.point.device.type == "cpu"
        self._remaining: list[int] | None = None  # how many rows take more than i steps
        self._still: Tensor | None = None  # the rows that stand still at this step
        if rows.steps is not None and independent:
            self.rows = rows[rows.steps.argsort(descending=True, stable=True)]
            self._count()

    def __len__(self) -> int:
        return len(self.rows)

    def _count(self) -> None:
        steps = self.rows.steps
        if steps is not None:
            self._remaining = (len(steps) - steps.bincount(minlength=self.most + 1).cumsum(0)).tolist()

    def begin_step(self, step: int, objective: Objective, predict: Predict) -> bool:
        """Let rows leave that have taken all their steps. Returns whether any is left."""
        if self._remaining is not None and self._remaining[step] < len(self.rows):
            self._settle(self.rows[self._remaining[step] :], objective, predict)
            self.rows = self.rows[: self._remaining[step]]
        return len(self.rows) > 0

    def observe(
        self, step: int, value: PerSample, gradient: Points, output: Prediction, final: bool
    ) -> tuple[Float[Tensor, " left"], Float[Tensor, "left ..."]]:
        """Look at what the model says at the points; rows that are done leave. Returns value and gradient of the rest.

        A gradient that is not finite is counted and taken as 0; one that is 0 is counted.
        """
        rows = self.rows
        still = None if rows.steps is None or self._remaining is not None else rows.steps <= step
        if self.selection.watches:
            self.selection.observe(rows, value, output, step, self.outcome, final)
            still = rows.done if still is None else rows.done | still
            if self.independent and (self._on_cpu or step % CHECK_EVERY == 0):
                left = (~rows.done).nonzero()[:, 0]
                if len(left) < len(rows):
                    finished = rows[rows.done]
                    self.outcome.write(finished, finished.best, finished.best_at, self.evaluations)
                    self.rows = rows = rows[left]
                    value, gradient, still = value[left], gradient[left], still[left]
                    if self._remaining is not None:
                        self._count()
                if self._on_cpu and rows.steps is None:
                    still = None  # whoever would stand still has left
        self._still = still
        strength = gradient.abs().flatten(1).amax(1) if len(rows) else gradient.new_zeros(0)
        lost, flat = ~strength.isfinite(), strength == 0
        rows.nan = rows.nan + (lost if still is None else lost & ~still)
        rows.zero = rows.zero + (flat if still is None else flat & ~still)
        return value, gradient.nan_to_num(0.0, 0.0, 0.0)  # a copy: of a sum the gradient is one number, expanded

    def move(self, step: int, point: Points, memory: tuple[Tensor, ...]) -> None:
        """Take the rows to their next points; one that comes back to an earlier point sees nothing new, and is done."""
        rows, still = self.rows, self._still
        rows.point = point if still is None else torch.where(like(still, point), rows.point, point)
        rows.memory = memory
        if rows.cycle_probe is not None:
            rows.done = rows.done | (rows.point == rows.cycle_probe).flatten(1).all(1)
            if step & (step + 1) == 0:  # at every power of two (Brent 1980)
                rows.cycle_probe = rows.point

    def finish(self, objective: Objective, predict: Predict) -> Outcome:
        """The outcome, after the last step."""
        self._settle(self.rows, objective, predict)
        return self.outcome

    def _settle(self, rows: Rows, objective: Objective, predict: Predict) -> None:
        """Write down rows that have taken their last step."""
        if len(rows) == 0:
            return
        taken = torch.full_like(rows.slot, self.most) if rows.steps is None else rows.steps
        if not self.selection.watches:
            self.outcome.write(rows, rows.point, taken, self.evaluations)
            return
        output = predict(rows.point)
        value = objective(output, rows.clean, rows.labels, rows.target)
        self.selection.observe(rows, value, output, taken, self.outcome)
        self.outcome.write(rows, rows.best, rows.best_at, self.evaluations + 1)

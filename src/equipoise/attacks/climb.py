"""A climb under way: the samples that still move, what was found of each, and the phases."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from equipoise.attacks.result import (
    Goal,
    at,
)
from equipoise.attacks.steps import (
    Start,
)
from equipoise.core.rng import Streams
from equipoise.core.types import (
    Prediction,
    StepRule,
)
from equipoise.geometry import Ball
from equipoise.models import Frozen

CHECK_EVERY = 8  # steps between two looks at who has succeeded on an accelerator, where looking waits for the device


@dataclass
class Active:
    """The samples still climbing. Every field is per sample, so that rows can leave."""

    slot: Tensor  # where the row's result belongs
    sample: Tensor  # whose row it is: several rows climb towards different targets for one sample
    point: Tensor
    origin: Tensor
    labels: Tensor | None
    target: Tensor | None
    avoid: Tensor
    reach: Tensor | None
    clean: Prediction | None
    steps: Tensor | None  # how many steps it takes, if not all the same
    memory: tuple[Tensor, ...]
    best: Tensor
    best_value: Tensor
    best_at: Tensor  # the step at which the best point was reached
    won: Tensor  # whether it has succeeded, and stands still
    wrong: Tensor  # at how many of its points the prediction has been wrong
    done: Tensor  # whether more steps can change nothing: it, or another row of its sample, has succeeded, or it cycles
    turtle: Tensor | None  # an earlier point: when the climb comes back to it, it cycles
    nan: Tensor
    zero: Tensor

    def __len__(self) -> int:
        return len(self.slot)

    def enter(self, ball: Ball, rule: StepRule) -> None:
        """Start anew from the best point so far, in another ball."""
        self.point = self.best = ball.project(self.best, self.origin)
        self.best_value = torch.full_like(self.best_value, -torch.inf)
        self.memory = rule.init(self.point)

    def __getitem__(self, rows: "slice | Tensor") -> "Active":
        def take(value: Any) -> Any:
            if value is None:
                return None
            return tuple(v[rows] for v in value) if isinstance(value, tuple) else value[rows]

        return Active(*[take(getattr(self, name)) for name in _FIELDS])


_FIELDS = tuple(f.name for f in fields(Active))


@dataclass(frozen=True)
class Phase:
    """Some steps of a climb, in one ball."""

    start: int
    steps: int
    factor: float
    ball: Ball
    final: bool = False


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
    won: Tensor
    fallen: Tensor  # by sample, not by slot: more than 0 once one of its rows has succeeded

    @classmethod
    def empty(cls, rows: Active, samples: int) -> "Outcome":
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
            torch.zeros_like(rows.won),
            none()[:samples],
        )

    def write(self, rows: Active, point: Tensor, iteration: Tensor, evaluations: int) -> None:
        """Write down what was found of these rows."""
        self.point[rows.slot] = point
        self.evaluations[rows.slot], self.iteration[rows.slot] = evaluations, iteration
        self.nan[rows.slot], self.zero[rows.slot], self.won[rows.slot] = rows.nan, rows.zero, rows.won
        self.value[rows.slot] = rows.best_value

    def leading_row(self, several: int) -> "Outcome":
        """Of each sample's rows the first to succeed, else that with the highest value; the costs of all of them."""
        late = torch.where(self.won, -self.iteration.double(), -torch.inf).reshape(-1, several)
        best = torch.where(late.amax(1) > -torch.inf, late.argmax(1), self.value.reshape(-1, several).argmax(1))
        rows = torch.arange(len(best), device=best.device) * several + best
        one = {f.name: at(getattr(self, f.name), rows) for f in fields(self) if f.name != "fallen"}
        costs = {name: getattr(self, name).reshape(-1, several).sum(1) for name in ("evaluations", "nan", "zero")}
        return Outcome(fallen=self.fallen, **one | costs)


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
    goal: Goal
    start: Tensor | None = None
    couples: bool = False  # whether samples depend on each other
    rule: Start | None = None  # where this attempt starts, if not as the ascent says

    def __getitem__(self, rows: Tensor) -> "Case":
        whole = ("predictive", "couples", "rule")
        return replace(self, **{f.name: at(getattr(self, f.name), rows) for f in fields(self) if f.name not in whole})


def unfooled(case: Case, success: Bool[Tensor, " batch"]) -> Int[Tensor, " again"]:
    """The samples to try again: the whole batch, if any, where samples depend on each other."""
    again = ~success if not case.couples or success.all() else torch.ones_like(success)
    return again.nonzero()[:, 0]


def still_climbing(steps: Int[Tensor, " batch"], most: int) -> list[int]:
    """How many samples take more than i steps, for i = 0, ..., most."""
    return (len(steps) - steps.bincount(minlength=most + 1).cumsum(0)).tolist()

"""Attacks on as many samples as a time budget allows."""

import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from equipoise.attacks.attack import AttackLike
from equipoise.attacks.result import AttackResult
from equipoise.core.errors import EquipoiseWarning
from equipoise.core.rng import fold
from equipoise.core.types import Labels, Points, Predictive
from equipoise.masking.plan import Plan, cost

ReportProgress = Callable[[str, float], None]
"""Called with the name of the current attack and the share of the whole that is done."""

MIN_SAMPLES, MAX_SAMPLES = 100, 1000
_WORTHWHILE = 0.1  # how many more samples, relative to those before, are worth another round
_SHARE_OF_ROUND = 0.9  # of the remaining work, as far as progress can know before a round


@dataclass(frozen=True)
class AttackedSamples:
    """A model, samples, and how these are attacked."""

    predictive: Predictive
    x: Points
    y: Labels
    index: Tensor  # positions among all samples, which decide what is drawn for them
    seed: int
    batch_size: int

    def __getitem__(self, samples: "slice | Tensor") -> "AttackedSamples":
        return replace(self, x=self.x[samples], y=self.y[samples], index=self.index[samples])

    def attack(self, attack: AttackLike) -> AttackResult:
        """Return the result of one attack."""
        return attack(self.predictive, self.x, self.y, seed=self.seed, index=self.index, batch_size=self.batch_size)

    def run(self, plan: Plan, report_progress: ReportProgress | None) -> dict[str, AttackResult]:
        """Return the result of every attack, by name."""
        results, done = {}, 0.0
        for name, planned in plan.items():
            if report_progress is not None:
                report_progress(name, done / cost(plan))
            results[name] = self.attack(planned.attack)
            done += planned.cost
        return results

    def run_until(
        self, deadline: float, plan: Plan, first: int, report_progress: ReportProgress | None
    ) -> "tuple[AttackedSamples, dict[str, AttackResult]]":
        """Run a plan on the first samples, then on as many more as the time until `deadline` (of `time.monotonic`)
        allows, judging by the time those before took. Return the attacked samples and their results, which do not
        depend on how many these are.
        """
        rounds: list[dict[str, AttackResult]] = []
        n, size, start, done = 0, first, time.monotonic(), 0.0
        while size > n * _WORTHWHILE:
            share = (1 - done) * (1 if n + size == len(self.x) else _SHARE_OF_ROUND)
            rounds.append(self[n : n + size].run(plan, _within(report_progress, done, share)))
            n, done = n + size, done + share
            seconds_each = (time.monotonic() - start) / n
            size = int(min((deadline - time.monotonic()) / max(seconds_each, 1e-9), len(self.x) - n))
        if len(rounds) == 1:
            return self[:n], rounds[0]
        return self[:n], {name: AttackResult.cat([results[name] for results in rounds]) for name in plan}

    def repeat_until(
        self,
        deadline: float,
        plan: Plan,
        alive: Bool[Tensor, " samples"],
        seconds: float,
        report_progress: ReportProgress | None,
    ) -> Iterator[tuple[Int[Tensor, " attacked"], dict[str, AttackResult]]]:
        """Run a plan again and again with fresh random numbers on the samples that are `alive`, as many as the time
        until `deadline` allows, and yield which these were, with their results. `seconds` is about how long one
        gradient of one sample takes.
        """
        alive = alive.clone()
        for i in itertools.count(1):
            left = max(deadline - time.monotonic(), 0)
            index = alive.nonzero()[: int(left / max(seconds * cost(plan), 1e-9)), 0]
            if not len(index):
                return
            start = time.monotonic()
            results = replace(self[index], seed=fold(self.seed, i)).run(plan, _within(report_progress, 1.0, 0.0))
            seconds = (time.monotonic() - start) / cost(plan) / len(index)
            alive[index] = ~torch.stack([result.success for result in results.values()]).any(0)
            yield index, results


def within_time(report_progress: ReportProgress | None, start: float, deadline: float) -> ReportProgress | None:
    """Report as the share that is done that of the time, as long as it is smaller."""
    if report_progress is None or deadline == float("inf"):
        return report_progress
    return lambda name, done: report_progress(name, min(done, (time.monotonic() - start) / (deadline - start)))


def _within(report_progress: ReportProgress | None, start: float, share: float) -> ReportProgress | None:
    """Report the progress of a part, which begins at `start` and is that share of the whole, as that of the whole."""
    return None if report_progress is None else lambda name, done: report_progress(name, start + share * done)


def affordable(samples: AttackedSamples, plan: Plan, minutes: float, trial: AttackLike) -> int:
    """Return how many samples the time allows, by the time that `trial`, an attack of five gradients, takes."""
    few = samples[:64]
    seconds = []
    for _ in range(2):  # a first attack also pays for what is made only once
        start = time.monotonic()
        few.attack(trial)
        seconds.append(time.monotonic() - start)
    minutes_each = cost(plan) * min(seconds) / 5 / len(few.x) / 60
    fewest = min(MIN_SAMPLES, len(samples.x))
    if fewest * minutes_each > 2 * minutes:
        warnings.warn(
            f"{fewest} samples, the fewest that are looked at, take about {fewest * minutes_each:.0f} minutes here "
            f"instead of {minutes:g}.",
            EquipoiseWarning,
            stacklevel=3,
        )
    return int(min(max(minutes / minutes_each, MIN_SAMPLES), len(samples.x)))

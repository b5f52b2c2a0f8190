"""Trainings that differ in their seed alone, and their mean accuracy. No torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from equipoise.results.records import AttackRecord, Run
from equipoise.results.statistics import mean_of_seeds


@dataclass(frozen=True)
class SeedMean:
    """The mean accuracy under one attack of two or more trainings on the same samples."""

    results: Sequence[AttackRecord]
    """One per training."""

    @property
    def attack(self) -> str:
        """Name of the attack."""
        return self.results[0].attack

    @property
    def settings(self) -> Mapping[str, Any]:
        """Parameters of the attack on the first."""
        return self.results[0].settings

    @property
    def n(self) -> int:
        """Number of samples of each; if they differ, the smallest."""
        return min(result.n for result in self.results)

    @property
    def runs(self) -> int:
        """Number of trainings."""
        return len(self.results)

    @property
    def accuracy(self) -> float:
        """Mean of the accuracies, in [0, 1]."""
        return fmean(result.accuracy for result in self.results)

    @property
    def deviation(self) -> float:
        """Standard deviation of the accuracies over the trainings."""
        return stdev(result.accuracy for result in self.results)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `accuracy`, which holds the noise of training and of the choice of samples."""
        return mean_of_seeds([result.accuracy for result in self.results], self.n)


def mean(results: Sequence[AttackRecord]) -> AttackRecord | SeedMean:
    """Return the mean over trainings; of one training its result itself."""
    return SeedMean(results) if len(results) > 1 else results[0]


def single_runs(result: AttackRecord | SeedMean) -> Sequence[AttackRecord]:
    """Return the results of the trainings behind a mean; of one training its result."""
    return result.results if isinstance(result, SeedMean) else [result]


def but_for_seed(run: Run) -> str:
    """Return all that a training was asked for but its seed, as text: equal for runs that differ in their seed alone.

    On which device it was computed and how often it was saved is left out too.
    """
    left_out = ("seed", "device", "checkpoint_minutes", "tensorboard")
    parts = ({k: v for k, v in part.items() if k not in left_out} for part in (run.method, run.recipe, run.net))
    data = [run.data.get(name) for name in ("sha256", "n_train", "preprocessing")]
    return json.dumps([*parts, *data], sort_keys=True, default=str)

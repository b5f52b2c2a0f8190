"""What a training needs, and the progress that it reports."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from equipoise.attacks.ascent import Ascent
from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import RunStream, fold
from equipoise.core.schedules import Scheduled
from equipoise.core.types import Points, Predictive
from equipoise.data import Dataset, Split
from equipoise.losses.terms import Method, as_method
from equipoise.losses.worst_case import during, is_warmed_up
from equipoise.results.records import Run
from equipoise.training.recipe import Recipe


@dataclass(frozen=True)
class Progress:
    """The progress of a run, reported after every step, and with `metrics` after every epoch."""

    epoch: int
    """Epoch, from 1."""
    epochs: int
    """Number of epochs."""
    step: int
    """Steps taken in this epoch."""
    steps: int
    """Steps per epoch."""
    seconds: float
    """Training time so far in seconds, over all starts of the run."""
    remaining: float
    """Estimated remaining time in seconds."""
    metrics: Mapping[str, float] | None = None
    """The epoch's metrics, once it is over."""
    message: str | None = None
    """Alarms of the epoch."""


@dataclass(frozen=True)
class Job:
    """Everything that a training process needs."""

    method: Method
    """The method; of one that changes over the training, as it is at the end."""
    schedule: Scheduled | None
    """The method at any moment, if it changes."""
    model: "nn.Module | Predictive"
    data: Dataset
    unlabelled: Points | None
    """Further inputs to train on, without labels."""
    recipe: Recipe
    out: Path | None
    resume: bool
    overwrite: bool
    run: Run
    progress: Callable[[Progress], None] | None

    @property
    def changes(self) -> bool:
        """Whether the method changes over the training."""
        return self.schedule is not None or is_warmed_up(self.method)

    def method_at(self, done: float) -> Method:
        """The method after the share `done` of the training."""
        if self.schedule is None:
            return during(self.method, done)
        now = in_precision(as_method(self.schedule.at(done)), self.recipe)
        return during(now.with_networks(self.method.auxiliary_networks), done)


def in_precision(method: Method, recipe: Recipe) -> Method:
    """The method with its ascents computed in bf16 if the recipe says so."""
    if recipe.precision == "32":
        return method
    return replace(method, terms=tuple(replace(term, at=_in_bf16(term.at)) for term in method.terms))


def _in_bf16(at: Any) -> Any:
    if isinstance(at, Ascent):
        return replace(at, precision="bf16")
    return at.with_parts([_in_bf16(part) for part in at.parts]) if hasattr(at, "with_parts") else at


def training_split(data: Dataset, recipe: Recipe) -> tuple[Split, Split]:
    """The samples that `fit` trains on with this recipe, and those that it holds out for validation."""
    return data.split_validation(recipe.validation, seed=fold(recipe.seed, RunStream.SPLIT))


def summary_writer() -> Any:
    """TensorBoard's `SummaryWriter`. Raises `EquipoiseError` if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise EquipoiseError("--tensorboard needs the tensorboard package: pip install 'equipoise[logs]'.") from error
    return SummaryWriter

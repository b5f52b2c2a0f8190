"""Features of a training as handlers of a few events: the loop knows of none of them.

    started     before the first step of a sitting
    stepped     a step has been taken, and is part of what a checkpoint has to hold
    counted     the step is counted: from here a checkpoint can be made again
    measure     all steps of an epoch are taken: what is measured of it; after an interruption it is measured again
    add_up      what has been added up over the epoch
    judge       all of the epoch is known
    epoch_over  the epoch is counted: from here a checkpoint can be made again
    finished    the training has come to its end
    closed      the sitting has, however it came

`tensors` is what a checkpoint has to hold of a feature, by which `restore` puts it back as it was.
"""

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from equipoise.attacks import fgsm, pgd
from equipoise.attacks.ascent import Ascent
from equipoise.attacks.spaces import Input
from equipoise.core.errors import EquipoiseWarning
from equipoise.core.rng import RunStream, Streams, fold
from equipoise.core.types import Predictive
from equipoise.data import Split
from equipoise.geometry import Ball
from equipoise.losses.terms import Method
from equipoise.models import predict
from equipoise.training.checkpoint import copy_into, part, plain_state
from equipoise.training.job import Job, Progress, summary_writer
from equipoise.training.judgement import alarms_of, improves, majority_share
from equipoise.training.players import Seat

if TYPE_CHECKING:
    from equipoise.training.loop import Training


class Handler:
    """A feature that does nothing yet: each defines the events it has something to do at."""

    def started(self, run: "Training") -> None:
        """Before the first step of this sitting."""

    def stepped(self, run: "Training", other: Tensor, seed: int) -> None:
        """After step `run.memory.step` of an epoch of that `seed`; `other` are as many samples of another shuffle."""

    def counted(self, run: "Training") -> None:
        """After a step, once it is counted."""

    def measure(self, run: "Training") -> Mapping[str, float]:
        """What is measured of the epoch that is over, by name."""
        return {}

    def add_up(self, run: "Training") -> Mapping[str, float]:
        """What was added up over the epoch, by name; the sums start again."""
        return {}

    def judge(self, run: "Training", metrics: dict[str, float]) -> None:
        """Draw conclusions from all metrics of the epoch."""

    def epoch_over(self, run: "Training", metrics: dict[str, float]) -> None:
        """After an epoch, once it is counted."""

    def finished(self, run: "Training") -> None:
        """At the end of the last epoch, or where the training is stopped early."""

    def closed(self) -> None:
        """At the end of this sitting, however it came."""

    def wants_to_stop(self, run: "Training") -> bool:
        """Whether no other epoch is needed."""
        return False

    def tensors(self, run: "Training") -> Mapping[str, Tensor]:
        """What a checkpoint has to hold; every process must ask for it."""
        return {}

    def restore(self, tensors: dict[str, Tensor], where: str) -> None:
        """Put back what `tensors` returned, out of all of a checkpoint; `where` it is from, for messages."""


class Averaging(Handler):
    """An exponential moving average of the weights, which is what is validated, saved and returned."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))

    @property
    def module(self) -> nn.Module:
        """The network with the averaged weights."""
        return self.average.module

    def stepped(self, run: "Training", other: Tensor, seed: int) -> None:
        """Move the average towards the weights."""
        self.average.update_parameters(run.module)
        copy_buffers(run.module, self.module)

    def finished(self, run: "Training") -> None:
        """Make the average the result."""
        copy_into(run.module, plain_state(self.module), "the average")

    def tensors(self, run: "Training") -> Mapping[str, Tensor]:
        """Average and number of updates."""
        return {f"ema.{k}": v for k, v in plain_state(self.average).items()}

    def restore(self, tensors: dict[str, Tensor], where: str) -> None:
        """Go on with the average of a checkpoint."""
        copy_into(self.average, part(tensors, "ema."), where)


class Players(Handler):
    """The other networks that a method trains: after every step of the classifier each takes its own."""

    def __init__(self, seats: Sequence[Seat]) -> None:
        self.seats = seats

    def stepped(self, run: "Training", other: Tensor, seed: int) -> None:
        """Let each take its steps on the samples of the other shuffle."""
        seed, index = fold(seed, RunStream.PLAY), run.mine(other)
        x = run.inputs(index, fold(seed, RunStream.AUGMENT))
        for i, seat in enumerate(self.seats):
            seat.step(run.predictive, x, Streams.of(fold(seed, i), index, batch=run.memory.step), len(other))

    def add_up(self, run: "Training") -> Mapping[str, float]:
        """The means of what each reports."""
        found: dict[str, float] = {}
        for seat in self.seats:
            played = seat.finish_epoch()
            run.require_finite(torch.tensor([*played.values()]), f"loss of the {seat.player.name} is")
            found |= played
        return found

    def tensors(self, run: "Training") -> Mapping[str, Tensor]:
        """Networks, optimisers and sums, under the players' names."""
        found: dict[str, Tensor] = {}
        for seat in self.seats:
            for weight in seat.network.parameters():
                run.require_finite(weight, f"weights of the {seat.player.name} are")
            found |= {f"{seat.player.name}.{k}": v for k, v in seat.tensors().items()}
        return found

    def restore(self, tensors: dict[str, Tensor], where: str) -> None:
        """Go on with the players of a checkpoint."""
        for seat in self.seats:
            seat.restore(part(tensors, f"{seat.player.name}."), where)

    def write(self, folder: Path) -> Mapping[str, str]:
        """Write their networks and pictures; returns the SHA-256 of each file of weights."""
        return {f"{seat.player.name}.safetensors": seat.write(folder) for seat in self.seats}


class Validation(Handler):
    """Accuracy on held-out samples after each epoch: clean, under FGSM and under PGD."""

    def __init__(self, job: Job, valid: Split) -> None:
        self.valid, self.seed, self.ball = valid, job.recipe.seed, validation_ball(job)
        self.correct = torch.zeros(len(valid.y), dtype=torch.bool)
        """Which samples withstood PGD in the last epoch."""
        steps, how = job.recipe.valid_steps, {"box": self.ball.box, "precision": job.recipe.precision}
        self.attacks = {
            "valid_fgsm": fgsm(self.ball.eps, self.ball.norm, **how),
            "valid_pgd": pgd(self.ball.eps, steps=steps, norm=self.ball.norm, start="zero", **how),
        }

    def measure(self, run: "Training") -> Mapping[str, float]:
        """The accuracies; the first process measures for all."""
        found: Any = self._accuracies(run.judged) if run.fabric.is_global_zero else None
        metrics, self.correct = run.fabric.broadcast(found)
        run.require_finite(torch.tensor(metrics["valid_clean"]), "network's outputs are")
        return metrics

    def _accuracies(self, predictive: Predictive) -> tuple[dict[str, float], Tensor]:
        """Metrics, and which samples withstand PGD."""
        x, y = self.valid.x, self.valid.y
        scores = torch.cat([predict(predictive, some).scores for some in x.split(512)])
        correct = torch.zeros_like(y, dtype=torch.bool)
        if not scores.isfinite().all():
            return dict.fromkeys(("valid_clean", *self.attacks), math.nan), correct.cpu()
        predicted = scores.argmax(1)
        metrics = {
            "valid_clean": float((predicted == y).double().mean()),
            "valid_predicted_classes": float(len(predicted.unique())),
        }
        for name, attack in self.attacks.items():
            correct = ~attack(predictive, x, y, seed=self.seed).success
            metrics[name] = float(correct.double().mean())
        return metrics, correct.cpu()


class Judgement(Handler):
    """Which epoch is the best, what is going wrong, and when to stop early."""

    def __init__(self, method: Method, validation: Validation, classes: int, patience: int) -> None:
        self.validation, self.classes, self.patience = validation, classes, patience
        self.climbs = any(isinstance(place, Ascent) for place in method.places)
        self.majority = majority_share(validation.valid.y)
        self.top_correct = torch.zeros(len(validation.valid.y), dtype=torch.bool)  # in the epoch of `memory.top`
        self.news: list[str] = []
        """Alarms of the last epoch."""

    def judge(self, run: "Training", metrics: dict[str, float]) -> None:
        """Compare the epoch with those before."""
        memory, correct, n = run.memory, self.validation.correct, len(self.top_correct)
        better, highest = improves(metrics, correct, memory.top, self.top_correct, self.majority)
        alarms = alarms_of(memory.metrics, metrics, self.classes, n, self.climbs, self.majority)
        new = {alarm.kind: alarm.text for alarm in alarms if alarm.kind not in memory.alarms}
        if better:
            memory.best = metrics
        if highest:
            memory.top, self.top_correct = metrics, correct
        memory.alarms |= new
        self.news = list(new.values())

    def epoch_over(self, run: "Training", metrics: dict[str, float]) -> None:
        """Raise the new alarms."""
        if run.fabric.is_global_zero:
            for text in self.news:
                warnings.warn(text, EquipoiseWarning, stacklevel=2)

    def wants_to_stop(self, run: "Training") -> bool:
        """Whether the highest robust accuracy is as many epochs old as there is patience for."""
        return 0 < self.patience <= run.memory.epoch - run.memory.top.get("epoch", 0)

    def tensors(self, run: "Training") -> Mapping[str, Tensor]:
        """What withstood PGD in the epoch with the highest accuracy."""
        return {"top_correct": self.top_correct.byte()}

    def restore(self, tensors: dict[str, Tensor], where: str) -> None:
        """Go on comparing with the epochs of a checkpoint."""
        self.top_correct = tensors["top_correct"].bool()


class TensorBoard(Handler):
    """The metrics of each epoch for TensorBoard, in the folder of the run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None

    def epoch_over(self, run: "Training", metrics: dict[str, float]) -> None:
        """Write them; one file a sitting, in which what a killed one wrote of this epoch or later is hidden."""
        if not run.fabric.is_global_zero:
            return
        epoch = int(metrics["epoch"])
        self.writer = self.writer or summary_writer()(str(self.folder / "tensorboard"), purge_step=epoch)
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def closed(self) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()


class Reporting(Handler):
    """Tells the caller of `fit` where the run is, after every step and every epoch."""

    def __init__(self, job: Job, judgement: Judgement) -> None:
        self.progress, self.judgement = job.progress, judgement

    def counted(self, run: "Training") -> None:
        """After a step."""
        self._tell(run)

    def epoch_over(self, run: "Training", metrics: dict[str, float]) -> None:
        """After an epoch, with its metrics and alarms."""
        self._tell(run, metrics, " ".join(self.judgement.news) or None)

    def _tell(self, run: "Training", metrics: Mapping[str, float] | None = None, message: str | None = None) -> None:
        if self.progress is None or not run.fabric.is_global_zero:
            return
        memory, epochs, steps = run.memory, run.recipe.epochs, run.steps
        done, taken = memory.epoch * steps + memory.step, memory.seconds + time.monotonic() - run.began
        left = taken / max(done, 1) * (epochs * steps - done)
        epoch = memory.epoch + (metrics is None)
        self.progress(Progress(epoch, epochs, memory.step, steps, taken, left, metrics, message))


@torch.no_grad()
def copy_buffers(source: nn.Module, destination: nn.Module) -> None:
    """Copy the buffers of one network into another of the same kind."""
    for mine, theirs in zip(source.buffers(), destination.buffers(), strict=True):
        theirs.copy_(mine)


def validation_ball(job: Job) -> Ball:
    """The ball of the validation attacks, which are in the input whatever space the method perturbs."""
    balls = [t.at.geometry for t in job.method.terms if isinstance(t.at, Ascent) and isinstance(t.at.space, Input)]
    ball = balls[0] if balls else Ball("linf", 0.0)
    usual = 8 / 255 if job.data.train.x.ndim == 4 and job.data.train.x.shape[1] == 3 else 0.1
    if job.recipe.valid_eps is not None:
        return replace(ball, eps=job.recipe.valid_eps)
    return ball if ball.eps > 0 and (ball.norm != "linf" or ball.eps < usual) else replace(ball, eps=usual)

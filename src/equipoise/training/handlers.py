"""The features of a training as handlers of the loop's events, in this order:

    on_start       before the first step, after each (re)start
    after_step     a step has been taken; whatever changes here belongs to the same checkpoint as the step
    on_step_end    the step is counted, and a checkpoint can be made
    measure        after the last step of an epoch; repeated if it is interrupted
    take_averages  averages over the epoch's steps, which start again
    on_metrics     all metrics of the epoch are known
    on_epoch_end   the epoch is counted, and a checkpoint can be made
    on_finish      the training has come to its regular end
    on_close       always, also after an exception

`tensors` returns what a checkpoint must hold of a handler, and `restore` takes it back.
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
from equipoise.geometry import Ball, Box
from equipoise.losses.memory import SampleMemory
from equipoise.losses.terms import Method
from equipoise.losses.worst_case import Bounds
from equipoise.models import predict
from equipoise.training.auxiliary import AuxiliaryTraining
from equipoise.training.checkpoint import copy_into, plain_state, with_prefix
from equipoise.training.job import Job, Progress, summary_writer
from equipoise.training.monitoring import alarms_of, improves, majority_share

if TYPE_CHECKING:
    from equipoise.training.loop import Training


class Handler:
    """A feature that does nothing: each handler overrides the events it needs."""

    def on_start(self, run: "Training") -> None:
        """Before the first step."""

    def after_step(self, run: "Training", auxiliary_batch: Tensor, seed: int) -> None:
        """After step `run.state.step` of the epoch with that `seed`. `auxiliary_batch` holds the indices of as many
        samples, from another shuffle.
        """

    def on_step_end(self, run: "Training") -> None:
        """After a step, once it is counted."""

    def measure(self, run: "Training") -> Mapping[str, float]:
        """Measured metrics of the finished epoch, by name."""
        return {}

    def take_averages(self, run: "Training") -> Mapping[str, float]:
        """Averages over the epoch's steps, by name; they start again."""
        return {}

    def on_metrics(self, run: "Training", metrics: dict[str, float]) -> None:
        """Draw conclusions from all metrics of the epoch."""

    def on_epoch_end(self, run: "Training", metrics: dict[str, float]) -> None:
        """After an epoch, once it is counted."""

    def on_finish(self, run: "Training") -> None:
        """After the last epoch, or when the training stops early."""

    def on_close(self) -> None:
        """At the end, also after an exception."""

    def wants_to_stop(self, run: "Training") -> bool:
        """Whether to stop before the next epoch."""
        return False

    def tensors(self, run: "Training") -> Mapping[str, Tensor]:
        """The tensors for a checkpoint. Every process must call it."""
        return {}

    def restore(self, tensors: dict[str, Tensor], path: str) -> None:
        """Restore what `tensors` returned, given all tensors of the checkpoint at `path`."""


class Averaging(Handler):
    """An exponential moving average of the weights, which is validated, saved and returned in their place."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))

    @property
    def module(self) -> nn.Module:
        """The network with the averaged weights."""
        return self.average.module

    def after_step(self, run: "Training", auxiliary_batch: Tensor, seed: int) -> None:
        """Update the average; buffers are copied."""
        self.average.update_parameters(run.module)
        with torch.no_grad():
            for buffer, averaged in zip(run.module.buffers(), self.module.buffers(), strict=True):
                averaged.copy_(buffer)

    def on_finish(self, run: "Training") -> None:
        """Copy the average into the trained network."""
        copy_into(run.module, plain_state(self.module), "the average")

    def tensors(self, run: "Training") -> Mapping[str, Tensor]:
        """The average and its number of updates."""
        return {f"ema.{k}": v for k, v in plain_state(self.average).items()}

    def restore(self, tensors: dict[str, Tensor], path: str) -> None:
        """Restore the average."""
        copy_into(self.average, with_prefix(tensors, "ema."), path)


class AuxiliaryNetworks(Handler):
    """The other networks that a method trains, after every step of the classifier."""

    def __init__(self, trainings: Sequence[AuxiliaryTraining]) -> None:
        self.trainings = trainings

    def after_step(self, run: "Training", auxiliary_batch: Tensor, seed: int) -> None:
        """Train each network on the samples of the other shuffle."""
        seed, index = fold(seed, RunStream.PLAY), run.local_share(auxiliary_batch)
        x = run.inputs(run.train.x[index], index, fold(seed, RunStream.AUGMENT))
        for i, training in enumerate(self.trainings):
            streams = Streams.of(fold(seed, i), index, batch=run.state.step)
            training.step(run.predictive, x, streams, len(auxiliary_batch))

    def take_averages(self, run: "Training") -> Mapping[str, float]:
        """The means of what each network reports."""
        result: dict[str, float] = {}
        for training in self.trainings:
            means = training.finish_epoch()
            run.require_finite(torch.tensor([*means.values()]), f"loss of the {training.name} is")
            result |= means
        return result

    def tensors(self, run: "Training") -> Mapping[str, Tensor]:
        """Networks, optimisers and totals, under the networks' names."""
        result: dict[str, Tensor] = {}
        for training in self.trainings:
            for weight in training.network.parameters():
                run.require_finite(weight, f"weights of the {training.name} are")
            result |= {f"{training.name}.{k}": v for k, v in training.tensors().items()}
        return result

    def restore(self, tensors: dict[str, Tensor], path: str) -> None:
        """Restore each network's training."""
        for training in self.trainings:
            training.restore(with_prefix(tensors, f"{training.name}."), path)

    def write(self, folder: Path) -> Mapping[str, str]:
        """Write the networks and their pictures; return the SHA-256 of each file of weights."""
        return {f"{training.name}.safetensors": training.write(folder) for training in self.trainings}


class Memory(Handler):
    """What perturbations keep of each sample, which belongs to the checkpoints."""

    def __init__(self) -> None:
        self.of_samples, self.of_unlabelled = SampleMemory(), SampleMemory()

    def tensors(self, run: "Training") -> Mapping[str, Tensor]:
        """All of it."""
        both = {"samples": self.of_samples, "unlabelled": self.of_unlabelled}
        return {f"memory.{k}.{name}": value for k, memory in both.items() for name, value in memory.tensors().items()}

    def restore(self, tensors: dict[str, Tensor], path: str) -> None:
        """Restore it."""
        self.of_samples.restore(with_prefix(tensors, "memory.samples."))
        self.of_unlabelled.restore(with_prefix(tensors, "memory.unlabelled."))


class Validation(Handler):
    """Accuracy on held-out samples after each epoch: clean, under FGSM and under PGD."""

    def __init__(self, job: Job, valid: Split) -> None:
        self.valid, self.seed, self.ball = valid, job.recipe.seed, validation_ball(job)
        self.robust = torch.zeros(len(valid.y), dtype=torch.bool)
        """Which samples withstood PGD in the last epoch."""
        steps, options = job.recipe.valid_steps, {"box": self.ball.box, "precision": job.recipe.precision}
        self.attacks = {
            "valid_fgsm": fgsm(self.ball.eps, self.ball.norm, **options),
            "valid_pgd": pgd(self.ball.eps, steps=steps, norm=self.ball.norm, start="zero", **options),
        }

    def measure(self, run: "Training") -> Mapping[str, float]:
        """The accuracies, measured by the first process for all."""
        result: Any = self._accuracies(run.evaluated_model) if run.fabric.is_global_zero else None
        metrics, self.robust = run.fabric.broadcast(result)
        run.require_finite(torch.tensor(metrics["valid_clean"]), "network's outputs are")
        return metrics

    def _accuracies(self, predictive: Predictive) -> tuple[dict[str, float], Tensor]:
        """Metrics, and which samples withstand PGD."""
        x, y = self.valid.x, self.valid.y
        scores = torch.cat([predict(predictive, batch).scores for batch in x.split(512)])
        robust = torch.zeros_like(y, dtype=torch.bool)
        if not scores.isfinite().all():
            return dict.fromkeys(("valid_clean", *self.attacks), math.nan), robust.cpu()
        predicted = scores.argmax(1)
        metrics = {
            "valid_clean": float((predicted == y).double().mean()),
            "valid_predicted_classes": float(len(predicted.unique())),
        }
        for name, attack in self.attacks.items():
            robust = ~attack(predictive, x, y, seed=self.seed).success
            metrics[name] = float(robust.double().mean())
        return metrics, robust.cpu()


class Monitoring(Handler):
    """Selection of the best epoch, alarms, and early stopping."""

    def __init__(self, method: Method, validation: Validation, classes: int, patience: int) -> None:
        self.validation, self.classes, self.patience = validation, classes, patience
        self.adversarial = any(isinstance(perturbation, Ascent) for perturbation in method.all_perturbations)
        self.majority = majority_share(validation.valid.y)
        self.top_robust = torch.zeros(len(validation.valid.y), dtype=torch.bool)  # in the epoch of `state.top`
        self.new_alarms: list[str] = []
        """Alarms of the last epoch."""

    def on_metrics(self, run: "Training", metrics: dict[str, float]) -> None:
        """Compare the epoch with the earlier ones."""
        state, robust = run.state, self.validation.robust
        best, highest = improves(metrics, robust, state.top, self.top_robust, self.majority)
        alarms = alarms_of(state.metrics, metrics, self.classes, len(robust), self.adversarial, self.majority)
        new = {alarm.kind: alarm.text for alarm in alarms if alarm.kind not in state.alarms}
        if best:
            state.best = metrics
        if highest:
            state.top, self.top_robust = metrics, robust
        state.alarms |= new
        self.new_alarms = list(new.values())

    def on_epoch_end(self, run: "Training", metrics: dict[str, float]) -> None:
        """Warn of new alarms."""
        if run.fabric.is_global_zero:
            for text in self.new_alarms:
                warnings.warn(text, EquipoiseWarning, stacklevel=2)

    def wants_to_stop(self, run: "Training") -> bool:
        """Whether the highest robust accuracy is at least `patience` epochs old."""
        return 0 < self.patience <= run.state.epoch - run.state.top.get("epoch", 0)

    def tensors(self, run: "Training") -> Mapping[str, Tensor]:
        """Which samples withstood PGD in the epoch with the highest accuracy."""
        return {"top_correct": self.top_robust.byte()}

    def restore(self, tensors: dict[str, Tensor], path: str) -> None:
        """Restore the epoch to compare with."""
        self.top_robust = tensors["top_correct"].bool()


class TensorBoard(Handler):
    """The metrics of each epoch for TensorBoard, in the folder of the run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None

    def on_epoch_end(self, run: "Training", metrics: dict[str, float]) -> None:
        """Write the metrics. Each start of the run opens a file of its own, which hides what a killed run wrote of
        this epoch or later ones.
        """
        if not run.fabric.is_global_zero:
            return
        epoch = int(metrics["epoch"])
        self.writer = self.writer or summary_writer()(str(self.folder / "tensorboard"), purge_step=epoch)
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def on_close(self) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()


class ProgressReports(Handler):
    """Calls the `progress` function of `fit` after every step and every epoch."""

    def __init__(self, job: Job, monitoring: Monitoring) -> None:
        self.progress, self.monitoring = job.progress, monitoring

    def on_step_end(self, run: "Training") -> None:
        """Report a step."""
        self._report(run)

    def on_epoch_end(self, run: "Training", metrics: dict[str, float]) -> None:
        """Report an epoch, with its metrics and alarms."""
        self._report(run, metrics, " ".join(self.monitoring.new_alarms) or None)

    def _report(self, run: "Training", metrics: Mapping[str, float] | None = None, message: str | None = None) -> None:
        if self.progress is None or not run.fabric.is_global_zero:
            return
        state, epochs, steps = run.state, run.recipe.epochs, run.steps
        done, seconds = state.epoch * steps + state.step, state.seconds + time.monotonic() - run.started_at
        remaining = seconds / max(done, 1) * (epochs * steps - done)
        epoch = state.epoch + (metrics is None)
        self.progress(Progress(epoch, epochs, state.step, steps, seconds, remaining, metrics, message))


def validation_ball(job: Job) -> Ball:
    """The ball of the validation attacks, which perturb the input whatever space the method perturbs: that of the
    method's ascents, or of its bounds.
    """
    ascents = (p for p in job.method.all_perturbations if isinstance(p, Ascent) and isinstance(p.space, Input))
    bounds = [at.geometry for at in job.method.perturbations if isinstance(at, Bounds)]
    balls = [ascent.geometry for ascent in ascents] or bounds
    ball = balls[0] if balls else Ball("linf", 0.0, Box(*job.data.box))
    default = 8 / 255 if job.data.train.x.ndim == 4 and job.data.train.x.shape[1] == 3 else 0.1
    default *= ball.box.scale
    if job.recipe.valid_eps is not None:
        return replace(ball, eps=job.recipe.valid_eps)
    return ball if ball.eps > 0 and (ball.norm != "linf" or ball.eps < default) else replace(ball, eps=default)

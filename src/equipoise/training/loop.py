"""The only training loop.

Each step perturbs a batch with the method's ascents, on the unwrapped network, and descends the weighted sum of its
terms. Every random choice is a function of the seed, the epoch and the sample's index, never of a generator's state, so
that a run that was killed and resumed takes exactly the steps of an uninterrupted one. Everything else is a handler of
the loop's events.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from equipoise.core.errors import EquipoiseError, require
from equipoise.core.rng import RunStream, Streams, fold
from equipoise.core.types import Prediction, Predictive
from equipoise.data import crop_and_flip
from equipoise.kernels.input_gradients import mostly_wide
from equipoise.losses.memory import BatchMemory
from equipoise.losses.terms import Method
from equipoise.models import as_predictive, module_mode, reseed, with_module
from equipoise.results.records import Run
from equipoise.training.auxiliary import AuxiliaryTraining
from equipoise.training.awp import perturbed_weights
from equipoise.training.handlers import (
    AuxiliaryNetworks,
    Averaging,
    Handler,
    Memory,
    Monitoring,
    ProgressReports,
    TensorBoard,
    Validation,
)
from equipoise.training.interruption import Interrupted, Stop
from equipoise.training.job import Job, training_split
from equipoise.training.saving import Checkpoints

INTERRUPTED = "failed: interrupted"
_CHECK_EVERY = 20  # steps between two checks of the loss, which on an accelerator wait for the device


@dataclass
class RunState:
    """The state of a run besides its tensors; JSON-ready."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    metrics: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    top: dict[str, float] = field(default_factory=dict)
    alarms: dict[str, str] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)


_Samples = tuple[Tensor, Tensor, list[Tensor | None], Tensor, Tensor | None]
"""A batch, its labels, where the terms are evaluated, and its streams."""


class _Loss(nn.Module):
    """The method's loss as a module, so that one forward pass through a parallel wrapper holds all of it."""

    def __init__(self, predictive: Predictive, method: Method) -> None:
        super().__init__()
        self.module = predictive.module
        self.method = method
        self._predictive = (predictive,)  # in a tuple: a predictive may be a module too, and is not registered twice

    def forward(
        self, number: int, labelled: _Samples, unlabelled: _Samples | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The losses and scores of the labelled samples, and the losses of the unlabelled ones."""
        losses, prediction = self._losses(self.method.on_labelled, number, labelled)
        further = self.method.on_unlabelled
        more = None if further is None or unlabelled is None else self._losses(further, number, unlabelled)[0]
        return losses, prediction.scores.detach(), more

    def _losses(self, method: Method, number: int, samples: _Samples) -> tuple[Tensor, Prediction]:
        x, y, points, keys, common = samples
        return method.losses(self._predictive[0], x, y, points, Streams(keys, common, number))


class Training:
    """One run in one process: the network, its optimiser, the data on the device, and the state of the run."""

    def __init__(self, fabric: Fabric, job: Job, stop: Stop) -> None:
        self.fabric, self.job, self.recipe, self.stop = fabric, job, job.recipe, stop
        # Votes of the processes between two steps must not wait for their accelerators.
        self.vote_group = torch.distributed.new_group(backend="gloo") if fabric.world_size > 1 else None
        self.consistent = True  # whether state and weights belong to the same step, so that they can be saved
        self.predictive = as_predictive(job.model)
        module = self.module
        last = self.recipe.channels_last
        self.channels_last = mostly_wide(module.parameters()) if last is None else last
        if self.channels_last:
            module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        train, valid = training_split(job.data, self.recipe)
        self.train, valid = train.to(fabric.device), valid[: self.recipe.valid_examples].to(fabric.device)
        self.unlabelled = torch.empty(0) if job.unlabelled is None else job.unlabelled.to(fabric.device)
        module.to(fabric.device)
        self.optimizer = self.recipe.make_optimizer(module)
        self.plain_loss = _Loss(self.predictive, job.method)
        self.loss, self.wrapped_optimizer = fabric.setup(self.plain_loss, self.optimizer)
        self.state = RunState()
        # Loss, correct predictions and samples of the running epoch, in float64 on the device.
        self.epoch_totals = torch.zeros(3, dtype=torch.float64, device=fabric.device)
        self.steps = len(_batches(torch.arange(len(self.train.y)), self.recipe.batch_size, 2 * fabric.world_size))
        self.started_at = time.monotonic()
        validation = Validation(job, valid)
        monitoring = Monitoring(job.method, validation, len(job.data.classes), self.recipe.patience)
        self.averaging = Averaging(module, self.recipe.ema) if self.recipe.ema > 0 else None
        self.memory = Memory()
        networks = job.method.auxiliary_networks
        self.auxiliary = AuxiliaryNetworks([AuxiliaryTraining(network, fabric, valid.x) for network in networks])
        self.record = replace(
            job.run,
            data={**job.run.data, "n_train": len(self.train.y), "n_valid": len(valid.y)},
            recipe={**job.run.recipe, "valid_eps": validation.ball.eps, "valid_norm": validation.ball.norm},
        )
        self.checkpoints = None if job.out is None else Checkpoints(self, job.out)
        board = TensorBoard(job.out) if job.out is not None and self.recipe.tensorboard else None
        reports = ProgressReports(job, monitoring)
        handlers = (
            self.averaging,
            self.memory,
            self.auxiliary,
            validation,
            monitoring,
            self.checkpoints,
            board,
            reports,
        )
        self.handlers: list[Handler] = [handler for handler in handlers if handler is not None]

    @property
    def module(self) -> nn.Module:
        """The network that is trained."""
        return self.predictive.module

    @property
    def evaluated_model(self) -> Predictive:
        """The model that is validated and saved: with averaged weights if the recipe averages them."""
        return self.predictive if self.averaging is None else with_module(self.predictive, self.averaging.module)

    def run(self) -> Run:
        """Train to the end."""
        for handler in self.handlers:
            handler.on_start(self)
        status = INTERRUPTED
        try:
            with module_mode(self.module, "train"):
                while self.state.epoch < self.recipe.epochs and not any(h.wants_to_stop(self) for h in self.handlers):
                    self._epoch()
            status = "finished" if self.state.epoch == self.recipe.epochs else "stopped early"
            for handler in self.handlers:
                handler.on_finish(self)
        except KeyboardInterrupt:
            self.stop.settle()
            if self.checkpoints and self.consistent and self.vote_group is None:  # several processes have saved already
                self.checkpoints.save(self)
            raise
        except Exception as error:
            reason = str(error) if isinstance(error, EquipoiseError) else f"{type(error).__name__}: {error}"
            status = f"failed: {(reason.splitlines() or [''])[0]}"
            raise
        finally:
            for handler in self.handlers:
                handler.on_close()
            self.record = replace(self.current_record(), status=status)
            if self.checkpoints is not None:
                self.checkpoints.write_record(self, self.record)
        return self.record

    def _epoch(self) -> None:
        state, seed = self.state, fold(self.recipe.seed, self.state.epoch)
        orders = (self._shuffle(fold(seed, stream)) for stream in (RunStream.ORDER, RunStream.PLAY))
        for number, (batch, auxiliary_batch) in enumerate(zip(*orders, strict=True)):
            if number < state.step:
                continue
            reseed(abs(fold(seed, RunStream.NOISE, number, self.fabric.global_rank)), self.fabric.device)
            with self._atomic():
                self._step(batch, seed)
                for handler in self.handlers:
                    handler.after_step(self, auxiliary_batch, seed)
                state.step += 1
            if state.step % _CHECK_EVERY == 0:
                self.require_finite(self.reduced_totals())
            for handler in self.handlers:
                handler.on_step_end(self)
            self._save_or_stop_if_due()
        self._finish_epoch()

    def _step(self, batch: Tensor, seed: int) -> None:
        """Perturb the batch, and take a descent step on the loss."""
        index = self.local_share(batch)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(self.state.step)
        method = self.plain_loss.method = self.job.method_at(self._share_done(self.state.step))
        x, y = self.inputs(self.train.x[index], index, fold(seed, RunStream.AUGMENT)), self.train.y[index]
        streams = Streams.of(fold(seed, RunStream.ASCENT), index, batch=self.state.step).at(self._number)
        labelled = self._perturbed(method.on_labelled, x, y, streams, self.memory.of_samples.of(index))
        further = method.on_unlabelled
        unlabelled = None if further is None else self._perturbed(further, *self._unlabelled_batch())

        def backward() -> tuple[Tensor, Tensor]:
            losses, scores, more = self.loss(self._number, labelled, unlabelled)
            self.wrapped_optimizer.zero_grad()
            # Shards differ by a sample at the end of an epoch; scaled like this their mean gradient is the batch's.
            world = self.fabric.world_size
            total = losses.sum() * (world / len(batch))
            self.fabric.backward(total if more is None else total + more.sum() * (world / self.recipe.batch_size))
            return losses, scores

        awp = self.recipe.awp if self.state.epoch >= self.recipe.awp_warmup else 0.0
        with perturbed_weights(self.module, awp, backward) if awp else nullcontext():
            losses, scores = backward()
        self.wrapped_optimizer.step()
        totals = losses.detach().double().sum(), (scores.argmax(1) == y).sum().double()
        self.epoch_totals += torch.stack([*totals, self.epoch_totals.new_tensor(len(y))])

    def _perturbed(self, method: Method, x: Tensor, y: Tensor, streams: Streams, memory: BatchMemory) -> _Samples:
        points = method.points(self.predictive, x, y, streams, memory)
        return x, y, points, streams.keys, streams.common

    def _unlabelled_batch(self) -> tuple[Tensor, Tensor, Streams, BatchMemory]:
        """This process's share of the unlabelled samples of a step: `batch_size` of them, in a random order that starts
        anew when all have been seen.
        """
        state, size, count = self.state, self.recipe.batch_size, len(self.unlabelled)
        places = torch.arange(size) + self._number * size
        index, seed = torch.empty_like(places), fold(self.recipe.seed, RunStream.UNLABELLED)
        for number in places.div(count, rounding_mode="floor").unique().tolist():
            order = torch.randperm(count, generator=torch.Generator().manual_seed(abs(fold(seed, number))))
            now = places.div(count, rounding_mode="floor") == number
            index[now] = order[places[now] % count]
        index = self.local_share(index)
        x = self.inputs(self.unlabelled[index], index, fold(seed, state.epoch, state.step))
        streams = Streams.of(fold(seed, state.epoch), index, batch=state.step).at(self._number)
        return x, index.new_zeros(len(index)), streams, self.memory.of_unlabelled.of(index)

    def _finish_epoch(self) -> None:
        state, totals = self.state, self.reduced_totals()
        self.require_finite(totals)
        loss, correct, samples = totals.tolist()
        metrics = {
            "epoch": state.epoch + 1,
            "step": (state.epoch + 1) * self.steps,
            "lr": self._learning_rate(self.steps - 1),
            "train_loss": loss / samples,
            "train_accuracy": correct / samples,
        }
        for handler in self.handlers:
            metrics |= handler.measure(self)
        self.stop.settle()
        with self._atomic():
            for handler in self.handlers:
                metrics |= handler.take_averages(self)
            for handler in self.handlers:
                handler.on_metrics(self, metrics)
            state.metrics.append(metrics)
            state.epoch, state.step = state.epoch + 1, 0
            self.epoch_totals.zero_()
        for handler in self.handlers:
            handler.on_epoch_end(self, metrics)
        self._save_or_stop_if_due()

    @contextmanager
    def _atomic(self) -> Iterator[None]:
        """An interruption inside leaves a state that must not be saved."""
        self.consistent = False
        yield
        self.consistent = True

    def _save_or_stop_if_due(self) -> None:
        """Save if a checkpoint is due, and stop if a signal asked for it. Several processes decide together."""
        due, asked = self.checkpoints is not None and self.checkpoints.due, self.stop.signal
        if self.vote_group is not None:
            votes = torch.tensor([int(due), asked])
            torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MAX, self.vote_group)
            due, asked = bool(votes[0]), int(votes[1])
        if self.checkpoints is not None and (due or (asked and self.vote_group is not None)):
            self.checkpoints.save(self)
        if asked:
            raise Interrupted(asked)

    def _shuffle(self, seed: int) -> list[Tensor]:
        """All training samples in batches, in random order."""
        order = torch.randperm(len(self.train.y), generator=torch.Generator().manual_seed(abs(seed)))
        return _batches(order, self.recipe.batch_size, 2 * self.fabric.world_size)

    def local_share(self, batch: Tensor) -> Tensor:
        """This process's share of a batch of indices, on the device."""
        return batch[self.fabric.global_rank :: self.fabric.world_size].to(self.fabric.device)

    def inputs(self, x: Tensor, index: Tensor, seed: int) -> Tensor:
        """The samples `index`, augmented, in the memory format of the network."""
        if self.recipe.augment == "crop-flip":
            x = crop_and_flip(x, Streams.of(seed, index))
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    def _learning_rate(self, step: int) -> float:
        return self.recipe.learning_rate(self._share_done(step))

    @property
    def _number(self) -> int:
        """The number of the step in the training."""
        return self.state.epoch * self.steps + self.state.step

    def _share_done(self, step: int) -> float:
        """The share of the training that is done before a step of this epoch."""
        return (self.state.epoch + step / self.steps) / self.recipe.epochs

    def require_finite(self, values: Tensor, subject: str = "loss is") -> None:
        """Raise `EquipoiseError` unless all values are finite. Every process must pass the same values, so that none
        is left waiting for another.
        """
        require(
            bool(values.isfinite().all()),
            f"the {subject} no longer finite in epoch {self.state.epoch + 1}: lower lr (now {self.recipe.lr:g}) or "
            "eps, or use precision 32; the last checkpoint is from before it happened.",
        )

    def reduced_totals(self) -> Tensor:
        """`epoch_totals` summed over all processes."""
        total = self.fabric.all_reduce(self.epoch_totals.clone(), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def current_record(self) -> Run:
        """The record of the run so far."""
        state = self.state
        return replace(
            self.record,
            best=state.best,
            last=state.metrics[-1] if state.metrics else {},
            alarms=tuple(state.alarms.values()),
            seconds=state.seconds + time.monotonic() - self.started_at,
            weights=dict(state.weights),
        )


def _batches(order: Tensor, size: int, smallest: int) -> list[Tensor]:
    """`order` in batches of `size`; a last batch smaller than `smallest` joins the one before, because a process needs
    at least one sample of each batch, and batch-norm two.
    """
    batches = list(order.split(size))
    if len(batches) > 1 and len(batches[-1]) < min(smallest, size):
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches

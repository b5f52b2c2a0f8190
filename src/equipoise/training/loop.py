"""The only training loop.

Each step perturbs a batch as the method's ascents say, on the raw network, and descends the sum of its terms. Every
random choice is a function of the seed, the epoch and the sample's index, never of state: a run that was killed and
resumed takes exactly the steps of one that was not. Everything else is a handler of the loop's events.
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
from equipoise.core.types import Predictive
from equipoise.data import crop_and_flip
from equipoise.kernels.input_gradients import mostly_wide
from equipoise.losses.terms import Method
from equipoise.models import as_predictive, module_mode, reseed, with_module
from equipoise.results.records import Run
from equipoise.training.awp import perturbed_weights
from equipoise.training.handlers import Averaging, Handler, Judgement, Players, Reporting, TensorBoard, Validation
from equipoise.training.interruption import Interrupted, Stop
from equipoise.training.job import Job, training_split
from equipoise.training.players import Seat
from equipoise.training.saving import Checkpoints

INTERRUPTED = "failed: interrupted"
_LOOK_EVERY = 20  # steps between two looks at the loss, which on an accelerator wait for the device


@dataclass
class Memory:
    """What a run remembers besides its weights; JSON-ready."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    metrics: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    top: dict[str, float] = field(default_factory=dict)
    alarms: dict[str, str] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)


class _Loss(nn.Module):
    """The method's sum as a module, so that one forward pass through a parallel wrapper holds all of it."""

    def __init__(self, method: Method, predictive: Predictive) -> None:
        super().__init__()
        self.module = predictive.module
        self._parts = (method, predictive)

    def forward(
        self, x: Tensor, y: Tensor, points: list[Tensor | None], keys: Tensor, common: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        method, predictive = self._parts
        losses, shown = method.losses(predictive, x, y, points, Streams(keys, common))
        return losses, shown.scores.detach()


class Training:
    """One run in one process: the network, its optimiser, the data on the device, and what has happened so far."""

    def __init__(self, fabric: Fabric, job: Job, stop: Stop) -> None:
        self.fabric, self.job, self.recipe, self.stop = fabric, job, job.recipe, stop
        # What the processes agree on between two steps must not wait for their accelerators.
        self.agreement = torch.distributed.new_group(backend="gloo") if fabric.world_size > 1 else None
        self.whole = True  # whether memory and weights belong together, so that they can be saved
        self.predictive = as_predictive(job.model)
        module = self.predictive.module
        last = self.recipe.channels_last
        self.channels_last = mostly_wide(module.parameters()) if last is None else last
        if self.channels_last:
            module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        train, valid = training_split(job.data, self.recipe)
        self.train, valid = train.to(fabric.device), valid[: self.recipe.valid_examples].to(fabric.device)
        module.to(fabric.device)
        self.optimizer = self.recipe.make_optimizer(module)
        self.loss, self.wrapped = fabric.setup(_Loss(job.method, self.predictive), self.optimizer)
        self.memory = Memory()
        # Loss, correct predictions and samples of the running epoch, in float64 on the device.
        self.sums = torch.zeros(3, dtype=torch.float64, device=fabric.device)
        self.steps = len(_batches(torch.arange(len(self.train.y)), self.recipe.batch_size, 2 * fabric.world_size))
        self.began = time.monotonic()
        validation = Validation(job, valid)
        judgement = Judgement(job.method, validation, len(job.data.classes), self.recipe.patience)
        self.averaging = Averaging(module, self.recipe.ema) if self.recipe.ema > 0 else None
        self.players = Players([Seat(player, fabric, valid.x) for player in job.method.players])
        ball = validation.ball
        self.record = replace(
            job.run,
            data={**job.run.data, "n_train": len(self.train.y), "n_valid": len(valid.y)},
            recipe={**job.run.recipe, "valid_eps": ball.eps, "valid_norm": ball.norm},
        )
        self.checkpoints = None if job.out is None else Checkpoints(self, job.out)
        board = TensorBoard(job.out) if job.out is not None and self.recipe.tensorboard else None
        features = (
            self.averaging, self.players, validation, judgement, self.checkpoints, board, Reporting(job, judgement)
        )  # fmt: skip
        self.handlers: list[Handler] = [one for one in features if one is not None]

    @property
    def module(self) -> nn.Module:
        """The network that is trained."""
        return self.predictive.module

    @property
    def judged(self) -> Predictive:
        """What is validated and saved: with the averaged weights if there are some."""
        return self.predictive if self.averaging is None else with_module(self.predictive, self.averaging.module)

    def run(self) -> Run:
        """Train to the end."""
        for handler in self.handlers:
            handler.started(self)
        status = INTERRUPTED
        try:
            with module_mode(self.module, "train"):
                while self.memory.epoch < self.recipe.epochs and not self._may_stop():
                    self._epoch()
            status = "finished" if self.memory.epoch == self.recipe.epochs else "stopped early"
            for handler in self.handlers:
                handler.finished(self)
        except KeyboardInterrupt:
            self.stop.settle()
            if self.checkpoints and self.whole and self.agreement is None:  # several processes have saved together
                self.checkpoints.save(self)
            raise
        except Exception as error:
            reason = str(error) if isinstance(error, EquipoiseError) else f"{type(error).__name__}: {error}"
            status = f"failed: {(reason.splitlines() or [''])[0]}"
            raise
        finally:
            for handler in self.handlers:
                handler.closed()
            self.record = replace(self.recorded(), status=status)
            if self.checkpoints is not None:
                self.checkpoints.write_record(self, self.record)
        return self.record

    def _may_stop(self) -> bool:
        return any(handler.wants_to_stop(self) for handler in self.handlers)

    def _epoch(self) -> None:
        memory, seed = self.memory, fold(self.recipe.seed, self.memory.epoch)
        orders = (self._shuffle(fold(seed, stream)) for stream in (RunStream.ORDER, RunStream.PLAY))
        for number, (batch, other) in enumerate(zip(*orders, strict=True)):
            if number < memory.step:
                continue
            reseed(abs(fold(seed, RunStream.NOISE, number, self.fabric.global_rank)), self.fabric.device)
            with self._indivisible():
                self._step(batch, seed)
                for handler in self.handlers:
                    handler.stepped(self, other, seed)
                memory.step += 1
            if memory.step % _LOOK_EVERY == 0:
                self.require_finite(self.total())
            for handler in self.handlers:
                handler.counted(self)
            self._pause()
        self._finish_epoch()

    def _step(self, batch: Tensor, seed: int) -> None:
        """Perturb, and descend."""
        index, rate = self.mine(batch), self._learning_rate(self.memory.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        x, y = self.inputs(index, fold(seed, RunStream.AUGMENT)), self.train.y[index]
        streams = Streams.of(fold(seed, RunStream.ASCENT), index, batch=self.memory.step)
        points = self.job.method.points(self.predictive, x, y, streams)

        def descend() -> tuple[Tensor, Tensor]:
            losses, scores = self.loss(x, y, points, streams.keys, streams.common)
            self.wrapped.zero_grad()
            # Shards differ by a sample at the end of an epoch; scaled like this their mean gradient is the batch's.
            self.fabric.backward(losses.sum() * (self.fabric.world_size / len(batch)))
            return losses, scores

        awp = self.recipe.awp if self.memory.epoch >= self.recipe.awp_warmup else 0.0
        with perturbed_weights(self.module, awp, descend) if awp else nullcontext():
            losses, scores = descend()
        self.wrapped.step()
        correct = (scores.argmax(1) == y).sum()
        self.sums += torch.stack([losses.detach().double().sum(), correct.double(), self.sums.new_tensor(len(y))])

    def _finish_epoch(self) -> None:
        memory, total = self.memory, self.total()
        self.require_finite(total)
        loss, correct, seen = total.tolist()
        metrics = {
            "epoch": memory.epoch + 1,
            "step": (memory.epoch + 1) * self.steps,
            "lr": self._learning_rate(self.steps - 1),
            "train_loss": loss / seen,
            "train_accuracy": correct / seen,
        }
        for handler in self.handlers:
            metrics |= handler.measure(self)
        self.stop.settle()
        with self._indivisible():
            for handler in self.handlers:
                metrics |= handler.add_up(self)
            for handler in self.handlers:
                handler.judge(self, metrics)
            memory.metrics.append(metrics)
            memory.epoch, memory.step = memory.epoch + 1, 0
            self.sums.zero_()
        for handler in self.handlers:
            handler.epoch_over(self, metrics)
        self._pause()

    @contextmanager
    def _indivisible(self) -> Iterator[None]:
        """What is interrupted inside leaves nothing that could be saved."""
        self.whole = False
        yield
        self.whole = True

    def _pause(self) -> None:
        """Save, if it is time for a checkpoint, and stop, if somebody asked to. Processes do so together."""
        due, asked = self.checkpoints is not None and self.checkpoints.due, self.stop.signal
        if self.agreement is not None:
            votes = torch.tensor([int(due), asked])
            torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MAX, self.agreement)
            due, asked = bool(votes[0]), int(votes[1])
        if self.checkpoints is not None and (due or (asked and self.agreement is not None)):
            self.checkpoints.save(self)
        if asked:
            raise Interrupted(asked)

    def _shuffle(self, seed: int) -> list[Tensor]:
        """All training samples in batches, in random order."""
        order = torch.randperm(len(self.train.y), generator=torch.Generator().manual_seed(abs(seed)))
        return _batches(order, self.recipe.batch_size, 2 * self.fabric.world_size)

    def mine(self, batch: Tensor) -> Tensor:
        """This process's share of a batch, on the device."""
        return batch[self.fabric.global_rank :: self.fabric.world_size].to(self.fabric.device)

    def inputs(self, index: Tensor, seed: int) -> Tensor:
        """The training samples of that index, augmented, in the order of memory that the network likes."""
        x = self.train.x[index]
        if self.recipe.augment == "crop-flip":
            x = crop_and_flip(x, Streams.of(seed, index))
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    def _learning_rate(self, number: int) -> float:
        """The learning rate of a step of the running epoch."""
        return self.recipe.learning_rate((self.memory.epoch + number / self.steps) / self.recipe.epochs)

    def require_finite(self, values: Tensor, what: str = "loss is") -> None:
        """Stop with a sentence. Every process sees the same values, so that none is left waiting for another."""
        require(
            bool(values.isfinite().all()),
            f"the {what} no longer finite in epoch {self.memory.epoch + 1}: lower lr (now {self.recipe.lr:g}) or eps, "
            "or use precision 32; the last checkpoint is from before it happened.",
        )

    def total(self) -> Tensor:
        """The sums of all processes."""
        total = self.fabric.all_reduce(self.sums.clone(), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def recorded(self) -> Run:
        """The record of the run as it stands."""
        memory = self.memory
        return replace(
            self.record,
            best=memory.best,
            last=memory.metrics[-1] if memory.metrics else {},
            alarms=tuple(memory.alarms.values()),
            seconds=memory.seconds + time.monotonic() - self.began,
            weights=dict(memory.weights),
        )


def _batches(order: Tensor, size: int, fewest: int) -> list[Tensor]:
    """`order` in batches of `size`; a last one of less than `fewest` joins the one before.

    A process needs at least a sample of each batch, and batch-norm two.
    """
    batches = list(order.split(size))
    if len(batches) > 1 and len(batches[-1]) < min(fewest, size):
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches

"""The only training loop.

Each step perturbs a batch as the method's ascents say, on the raw network, and descends the sum of its terms. Every
random choice is a function of the seed, the epoch and the sample's index, never of state: a run that was killed and
resumed takes exactly the steps of one that was not.
"""

import json
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from equipoise.attacks import fgsm, pgd
from equipoise.attacks.ascent import Ascent
from equipoise.attacks.spaces import Input
from equipoise.core.errors import EquipoiseError, EquipoiseWarning, require
from equipoise.core.files import write_atomically
from equipoise.core.rng import RunStream, Streams, fold
from equipoise.core.types import Predictive
from equipoise.core.world import World
from equipoise.data import crop_and_flip
from equipoise.geometry import Ball
from equipoise.kernels.input_gradients import mostly_wide
from equipoise.losses.terms import Method
from equipoise.models import as_predictive, predict, reseed, standing, with_module
from equipoise.results.records import Run, from_json, load, save, to_json
from equipoise.training.awp import perturbed_weights
from equipoise.training.checkpoint import (
    copy_into,
    load_tensors,
    load_weights,
    optimizer_tensors,
    part,
    plain_state,
    restore_optimizer,
    save_tensors,
)
from equipoise.training.folder import forget_replaced
from equipoise.training.interruption import Interrupted, Stop, listening
from equipoise.training.job import Job, Progress, summary_writer, training_split
from equipoise.training.judgement import alarms_of, improves, majority_share
from equipoise.training.players import Seat
from equipoise.training.processes import ProcessLost, fabric_of, run_processes
from equipoise.training.recipe import MAY_CHANGE, Recipe

_INTERRUPTED = "failed: interrupted"
_DERIVED = ("sum", "terms", "sha256", "classes", "shape", "n_train", "n_valid", "n_test", "notes", "parameters")
"""What follows from the options of a run, and is no option itself."""
_LOOK_EVERY = 20  # steps between two looks at the loss, which on an accelerator wait for the device


@dataclass
class _Memory:
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


def launch(job: Job) -> Run:
    """Train in this process, in those that it starts, or as one of those that torchrun started."""
    world = World.from_environment()
    if world is None and job.recipe.devices > 1:
        with tempfile.TemporaryDirectory() as scratch:
            return _train_in_processes(replace(job, out=job.out or Path(scratch)))
    stop = Stop()
    with listening(stop):
        return _train(job, world or World(), stop)


def _train(job: Job, world: World, stop: Stop) -> Run:
    """The training of one process."""
    precision = "bf16-mixed" if job.recipe.precision == "bf16" else "32-true"
    fabric = fabric_of(world, job.recipe.pick_device().type, precision)
    if fabric.world_size > 1 and fabric.device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // fabric.world_size))
    with _own_randomness(fabric.device):
        try:
            return _Training(fabric, job, stop).run()
        finally:
            if fabric.world_size > 1 and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def _train_in_processes(job: Job) -> Run:
    """The training of several processes, which this one starts and follows."""
    folder = job.out
    assert folder is not None

    def tell(what: str, content: Any) -> None:
        if what == "warning":
            warnings.warn(content, EquipoiseWarning, stacklevel=2)
        elif job.progress is not None:
            job.progress(content)

    try:
        with listening(None):
            data = run_processes(job.recipe.devices, partial(_one_of_several, replace(job, progress=None)), tell)
    except ProcessLost as error:
        _note(folder, f"failed: {error}")
        raise
    except KeyboardInterrupt:
        _note(folder, _INTERRUPTED)
        raise
    load_weights(as_predictive(job.model).module, folder / "last.safetensors")
    for player in job.method.players:
        load_weights(player.network(), folder / f"{player.name}.safetensors")
    run = from_json(data)
    assert isinstance(run, Run)
    return run


def _one_of_several(job: Job, world: World, stop: Stop, tell: Callable[[str, Any], None]) -> dict[str, Any]:
    """The training of a started process, with a result that can travel.

    Networks arrive in shared memory, where each process's steps would be everyone's: train copies.
    """
    job = replace(job, model=deepcopy(job.model), method=deepcopy(job.method), progress=partial(tell, "progress"))
    return to_json(_train(job, world, stop))


def _note(folder: Path, status: str) -> None:
    """Write into the record how a training ended whose processes could not."""
    if (folder / "run.json").exists():
        run = load(folder / "run.json")
        if isinstance(run, Run) and not run.status.startswith(("finished", "stopped early")):
            save(folder / "run.json", replace(run, status=status))


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """Dropout and the like draw from the global generator: lend it to the run and give it back as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


class _Training:
    """One run in one process: the network, its optimiser, the data on the device, and what has happened so far."""

    def __init__(self, fabric: Fabric, job: Job, stop: Stop) -> None:
        self.fabric, self.job, self.recipe, self.out, self.stop = fabric, job, job.recipe, job.out, stop
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
        few = slice(0, self.recipe.valid_examples)
        self.train, self.valid = train.to(fabric.device), valid[few].to(fabric.device)
        module.to(fabric.device)
        self.optimizer = self.recipe.make_optimizer(module)
        self.loss, self.wrapped = fabric.setup(_Loss(job.method, self.predictive), self.optimizer)
        self.averaged = None
        if self.recipe.ema > 0:
            self.averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(self.recipe.ema))
        self.seats = [Seat(player, fabric, self.valid.x) for player in job.method.players]
        self.memory = _Memory()
        self.majority = majority_share(self.valid.y)
        self.top_correct = torch.zeros(len(self.valid.y), dtype=torch.bool)  # in the epoch of `memory.top`
        self.writer: Any = None
        # Loss, correct predictions and samples of the running epoch, in float64 on the device.
        self.sums = torch.zeros(3, dtype=torch.float64, device=fabric.device)
        self.steps = len(_batches(torch.arange(len(self.train.y)), self.recipe.batch_size, 2 * fabric.world_size))
        n_valid = len(self.valid.y)
        self.record = replace(job.run, data={**job.run.data, "n_train": len(self.train.y), "n_valid": n_valid})
        self.saved = self.began = time.monotonic()
        ball, precision = _validation_ball(job), self.recipe.precision
        self.record = replace(
            self.record, recipe={**self.record.recipe, "valid_eps": ball.eps, "valid_norm": ball.norm}
        )
        self.checks = {
            "valid_fgsm": fgsm(ball.eps, ball.norm, box=ball.box, precision=precision),
            "valid_pgd": pgd(
                ball.eps,
                steps=self.recipe.valid_steps,
                norm=ball.norm,
                box=ball.box,
                keep="first_success",
                precision=precision,
            ),
        }

    @property
    def module(self) -> nn.Module:
        """The network that is trained."""
        return self.predictive.module

    @property
    def judged(self) -> nn.Module:
        """The network that is validated and saved: the averaged one if there is one."""
        return self.module if self.averaged is None else self.averaged.module

    @property
    def folder(self) -> Path:
        """The run directory, where there is one."""
        assert self.out is not None
        return self.out

    def run(self) -> Run:
        """Train to the end."""
        if self.out is not None:
            self._open()
        status = _INTERRUPTED
        try:
            with standing(self.module, "train"):
                while self.memory.epoch < self.recipe.epochs and not self._stalled():
                    self._epoch()
            status = "finished" if self.memory.epoch == self.recipe.epochs else "stopped early"
            if self.averaged is not None:
                copy_into(self.module, plain_state(self.averaged.module), "the average")
        except KeyboardInterrupt:
            self.stop.settle()
            if self.out and self.whole and self.agreement is None:  # several processes have saved together
                self._save()
            raise
        except Exception as error:
            reason = str(error) if isinstance(error, EquipoiseError) else f"{type(error).__name__}: {error}"
            status = f"failed: {(reason.splitlines() or [''])[0]}"
            raise
        finally:
            self._close(status)
        return self.record

    def _epoch(self) -> None:
        recipe, memory, device = self.recipe, self.memory, self.fabric.device
        seed = fold(recipe.seed, memory.epoch)
        mine = slice(self.fabric.global_rank, None, self.fabric.world_size)
        batches = zip(
            self._shuffle(fold(seed, RunStream.ORDER)), self._shuffle(fold(seed, RunStream.PLAY)), strict=True
        )
        for number, (batch, other) in enumerate(batches):
            if number < memory.step:
                continue
            reseed(abs(fold(seed, RunStream.NOISE, number, self.fabric.global_rank)), device)
            self.whole = False
            self._step(batch[mine].to(device), len(batch), seed, number)
            if self.seats:
                self._play(other[mine].to(device), len(other), seed, number)
            memory.step = number + 1
            self.whole = True
            if memory.step % _LOOK_EVERY == 0:
                self._require_finite(self._total())
            self._tell()
            self._pause()
        self._finish_epoch()

    def _pause(self) -> None:
        """Save, if it is time for a checkpoint, and stop, if somebody asked to. Processes do so together."""
        due = self.out is not None and time.monotonic() - self.saved > 60 * self.recipe.checkpoint_minutes > 0
        asked = self.stop.signal
        if self.agreement is not None:
            votes = torch.tensor([int(due), asked])
            torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MAX, self.agreement)
            due, asked = bool(votes[0]), int(votes[1])
        if due or (asked and self.out is not None and self.agreement is not None):
            self._save()
        if asked:
            raise Interrupted(asked)

    def _shuffle(self, seed: int) -> list[Tensor]:
        """All training samples in batches, in random order."""
        order = torch.randperm(len(self.train.y), generator=torch.Generator().manual_seed(abs(seed)))
        return _batches(order, self.recipe.batch_size, 2 * self.fabric.world_size)

    def _step(self, index: Tensor, total: int, seed: int, number: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(number)
        x, y = self._inputs(index, fold(seed, RunStream.AUGMENT)), self.train.y[index]
        streams = Streams.of(fold(seed, RunStream.ASCENT), index, batch=number)
        points = self.job.method.points(self.predictive, x, y, streams)

        def descend() -> tuple[Tensor, Tensor]:
            losses, scores = self.loss(x, y, points, streams.keys, streams.common)
            self.wrapped.zero_grad()
            # Shards differ by a sample at the end of an epoch; scaled like this their mean gradient is the batch's.
            self.fabric.backward(losses.sum() * (self.fabric.world_size / total))
            return losses, scores

        awp = self.recipe.awp if self.memory.epoch >= self.recipe.awp_warmup else 0.0
        with perturbed_weights(self.module, awp, descend) if awp else nullcontext():
            losses, scores = descend()
        self.wrapped.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.module)
            copy_buffers(self.module, self.averaged.module)
        correct = (scores.argmax(1) == y).sum()
        self.sums += torch.stack([losses.detach().double().sum(), correct.double(), self.sums.new_tensor(len(y))])

    def _learning_rate(self, number: int) -> float:
        """The learning rate of a step of the running epoch."""
        return self.recipe.learning_rate((self.memory.epoch + number / self.steps) / self.recipe.epochs)

    def _inputs(self, index: Tensor, seed: int) -> Tensor:
        x = self.train.x[index]
        if self.recipe.augment == "crop-flip":
            x = crop_and_flip(x, Streams.of(seed, index))
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    def _play(self, index: Tensor, total: int, seed: int, number: int) -> None:
        """The other players' step."""
        seed = fold(seed, RunStream.PLAY)
        x = self._inputs(index, fold(seed, RunStream.AUGMENT))
        for i, seat in enumerate(self.seats):
            seat.step(self.predictive, x, Streams.of(fold(seed, i), index, batch=number), total)

    def _require_finite(self, values: Tensor, what: str = "loss is") -> None:
        """Stop with a sentence. Every process sees the same values, so that none is left waiting for another."""
        require(
            bool(values.isfinite().all()),
            f"the {what} no longer finite in epoch {self.memory.epoch + 1}: lower lr (now {self.recipe.lr:g}) or eps, "
            "or use precision 32; the last checkpoint is from before it happened.",
        )

    def _total(self) -> Tensor:
        """The sums of all processes."""
        total = self.fabric.all_reduce(self.sums.clone(), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def _finish_epoch(self) -> None:
        memory = self.memory
        total = self._total()
        self._require_finite(total)
        loss, correct, seen = total.tolist()
        metrics = {
            "epoch": memory.epoch + 1,
            "step": (memory.epoch + 1) * self.steps,
            "lr": self._learning_rate(self.steps - 1),
            "train_loss": loss / seen,
            "train_accuracy": correct / seen,
        }
        correct, found = self.top_correct, {}
        if self.fabric.is_global_zero:
            found, correct = self._validate()
        found, correct = self.fabric.broadcast((found, correct))
        self._require_finite(torch.tensor(found["valid_clean"]), "network's outputs are")
        self.stop.settle()
        self.whole = False
        for seat in self.seats:
            played = seat.finish_epoch()
            self._require_finite(torch.tensor([*played.values()]), f"loss of the {seat.player.name} is")
            metrics |= played
        self._judge(metrics | found, correct)
        self._pause()

    def _judge(self, metrics: dict[str, float], correct: Tensor) -> None:
        """Remember the metrics of the epoch that is over, and what they say."""
        memory = self.memory
        better, highest = improves(metrics, correct, memory.top, self.top_correct, self.majority)
        climbs = any(isinstance(place, Ascent) for place in self.job.method.places)
        n, classes = len(self.valid.y), len(self.job.data.classes)
        new = [
            alarm
            for alarm in alarms_of(memory.metrics, metrics, classes, n, climbs, self.majority)
            if alarm.kind not in memory.alarms
        ]
        if better:
            memory.best = metrics
        if highest:
            memory.top, self.top_correct = metrics, correct
        memory.alarms |= {alarm.kind: alarm.text for alarm in new}
        memory.metrics.append(metrics)
        memory.epoch, memory.step = memory.epoch + 1, 0
        self.sums.zero_()
        self.whole = True
        if self.fabric.is_global_zero:
            for alarm in new:
                warnings.warn(alarm.text, EquipoiseWarning, stacklevel=2)
        if self.out:
            self._save()
            if self.recipe.tensorboard and self.fabric.is_global_zero:
                self._to_tensorboard(metrics)
        self._tell(metrics, " ".join(alarm.text for alarm in new) or None)

    def _validate(self) -> tuple[dict[str, float], Tensor]:
        """Metrics on the validation samples, and which of them withstand PGD."""
        valid, judged = self.valid, self.predictive
        if self.averaged is not None:
            judged = with_module(judged, self.judged)
        scores = torch.cat([predict(judged, x).scores for x in valid.x.split(512)])
        correct = torch.zeros_like(valid.y, dtype=torch.bool)
        if not scores.isfinite().all():
            return dict.fromkeys(("valid_clean", *self.checks), math.nan), correct.cpu()
        predicted = scores.argmax(1)
        metrics = {
            "valid_clean": float((predicted == valid.y).double().mean()),
            "valid_predicted_classes": float(len(predicted.unique())),
        }
        for name, attack in self.checks.items():
            correct = ~attack(judged, valid.x, valid.y, seed=self.recipe.seed).success
            metrics[name] = float(correct.double().mean())
        return metrics, correct.cpu()

    def _stalled(self) -> bool:
        since = self.memory.epoch - self.memory.top.get("epoch", 0)
        return 0 < self.recipe.patience <= since

    def _tell(self, metrics: Mapping[str, float] | None = None, message: str | None = None) -> None:
        if self.job.progress is None or not self.fabric.is_global_zero:
            return
        memory, now = self.memory, time.monotonic() - self.began
        done = memory.epoch * self.steps + memory.step
        taken = memory.seconds + now
        left = taken / max(done, 1) * (self.recipe.epochs * self.steps - done)
        self.job.progress(
            Progress(
                memory.epoch + (metrics is None),
                self.recipe.epochs,
                memory.step,
                self.steps,
                taken,
                left,
                metrics,
                message,
            )
        )

    def _open(self) -> None:
        """Begin or continue the run directory."""
        checkpoint = self.folder / "checkpoint.safetensors"
        if self.job.resume and checkpoint.is_file():
            self._restore(checkpoint)
        self.fabric.barrier()
        self._write_record()
        self._save()  # a full disk is found out now, and a kill before the next checkpoint can be resumed too
        self.fabric.barrier()

    def _restore(self, path: Path) -> None:
        tensors, state = load_tensors(path)
        now = json.loads(json.dumps(self._identity()))
        usual = json.loads(json.dumps(asdict(Recipe())))  # of a record that was written before there was the field
        require_same({**state, "recipe": {**usual, **state["recipe"]}}, now, self.folder)
        then, epochs = state["memory"]["epoch"], self.recipe.epochs
        require(
            then <= epochs,
            f"cannot resume {self.folder}: it has seen {then} epochs, more than epochs = {epochs}.",
        )
        if self.recipe.depends_on_epochs and state["recipe"]["epochs"] != epochs and self.fabric.is_global_zero:
            text = (
                f"the learning rate follows a {self.recipe.schedule} schedule over all epochs: going on with {epochs} "
                f"instead of {state['recipe']['epochs']} is not the same as {epochs} from the start."
            )
            warnings.warn(text, EquipoiseWarning, stacklevel=2)
        copy_into(self.module, part(tensors, "model."), str(path))
        restore_optimizer(self.optimizer, part(tensors, "optimizer."))
        if self.averaged is not None:
            copy_into(self.averaged, part(tensors, "ema."), str(path))
        for seat in self.seats:
            seat.restore(part(tensors, f"{seat.player.name}."), str(path))
        rows = tensors["sums"]
        if self.fabric.is_global_zero:  # sums of all processes are saved together
            self.sums.copy_(rows)
        self.top_correct = tensors["top_correct"].bool()
        self.memory = _Memory(**state["memory"])

    def _identity(self) -> dict[str, Any]:
        """What must be the same when the run is resumed."""
        record = self.record
        recipe = {**record.recipe, "valid_eps": self.recipe.valid_eps}
        return {"recipe": recipe, "method": record.method, "net": record.net, "data": record.data}

    def _save(self) -> None:
        sums = self._total()
        now = time.monotonic()
        self.memory.seconds, self.began, self.saved = self.memory.seconds + now - self.began, now, now
        tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in plain_state(self.module).items()}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer_tensors(self.optimizer).items()}
        if self.averaged is not None:
            tensors |= {f"ema.{k}": v for k, v in plain_state(self.averaged).items()}
        for seat in self.seats:
            tensors |= {f"{seat.player.name}.{k}": v for k, v in seat.tensors().items()}
            for weight in seat.network.parameters():
                self._require_finite(weight, f"weights of the {seat.player.name} are")
        for tensor in [*self.module.parameters(), *optimizer_tensors(self.optimizer).values()]:
            self._require_finite(tensor, "weights are")
        if not self.fabric.is_global_zero:
            return
        memory, judged = self.memory, plain_state(self.judged)
        memory.weights["last.safetensors"] = save_tensors(self.folder / "last.safetensors", judged)
        best = memory.epoch > 0 and memory.step == 0 and memory.best.get("epoch") == memory.epoch
        if best:  # the same weights
            memory.weights["best.safetensors"] = memory.weights["last.safetensors"]
        tensors |= {"sums": sums, "top_correct": self.top_correct.byte()}
        state = {"memory": asdict(memory), **self._identity()}
        save_tensors(self.folder / "checkpoint.safetensors", tensors, state)
        # After the checkpoint: killed in between, the run writes the same file when it is resumed.
        if best:
            save_tensors(self.folder / "best.safetensors", judged)
        for seat in self.seats:
            memory.weights[f"{seat.player.name}.safetensors"] = seat.write(self.folder)
        self._write_metrics()
        self._write_record()
        if memory.epoch + memory.step > 0:
            forget_replaced(self.folder)

    def _write_metrics(self) -> None:
        lines = "".join(json.dumps(m) + "\n" for m in self.memory.metrics)
        write_atomically(self.folder / "metrics.jsonl", lines.encode())

    def _close(self, status: str) -> None:
        if self.writer is not None:
            self.writer.close()
        self.record = replace(self._recorded(), status=status)
        if self.out and self.fabric.is_global_zero:
            save(self.out / "run.json", self.record)

    def _recorded(self) -> Run:
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

    def _write_record(self) -> None:
        if self.fabric.is_global_zero:
            save(self.folder / "run.json", self._recorded())

    def _to_tensorboard(self, metrics: Mapping[str, float]) -> None:
        epoch = int(metrics["epoch"])
        if self.writer is None:  # one file a sitting; what a killed one wrote of this epoch or later is hidden
            self.writer = summary_writer()(str(self.folder / "tensorboard"), purge_step=epoch)
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()


def require_same(then: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raise `EquipoiseError`, naming the options that differ, unless two runs are one and the same to be resumed."""
    named: dict[str, str] = {}
    others: list[str] = []
    for kind in ("recipe", "method", "net", "data"):
        usual = vars(Recipe()) if kind == "recipe" else {}  # of a record that was written before there was the field
        old, new = _flat(usual | then.get(kind, {})), _flat(now[kind])
        free = MAY_CHANGE if kind == "recipe" else ()
        differ = [key for key in {**old, **new} if old.get(key) != new.get(key) and key not in free]
        shown = [key for key in differ if key not in _DERIVED]
        for key in shown:
            name = kind if key == "name" else key
            named.setdefault(name, f"{name} = {old.get(key)}, not {new.get(key)}")
        if differ and not shown:
            others.append(f"another {kind}")
    told = ", ".join(named.values()) or " and ".join(others)
    require(not told, f"cannot resume {folder}: it was started with {told}; give the same options or a new --out.")


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table with the entries of the tables in it among its own."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= value if isinstance(value, Mapping) else {key: value}
    return flat


def _batches(order: Tensor, size: int, fewest: int) -> list[Tensor]:
    """`order` in batches of `size`; a last one of less than `fewest` joins the one before.

    A process needs at least a sample of each batch, and batch-norm two.
    """
    batches = list(order.split(size))
    if len(batches) > 1 and len(batches[-1]) < min(fewest, size):
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


@torch.no_grad()
def copy_buffers(source: nn.Module, destination: nn.Module) -> None:
    """Copy the buffers of one network into another of the same kind."""
    for mine, theirs in zip(source.buffers(), destination.buffers(), strict=True):
        theirs.copy_(mine)


def _validation_ball(job: Job) -> Ball:
    """The ball of the validation attacks, which are in the input whatever space the method perturbs."""
    balls = [t.at.geometry for t in job.method.terms if isinstance(t.at, Ascent) and isinstance(t.at.space, Input)]
    ball = balls[0] if balls else Ball("linf", 0.0)
    usual = 8 / 255 if job.data.train.x.ndim == 4 and job.data.train.x.shape[1] == 3 else 0.1
    if job.recipe.valid_eps is not None:
        return replace(ball, eps=job.recipe.valid_eps)
    return ball if ball.eps > 0 and (ball.norm != "linf" or ball.eps < usual) else replace(ball, eps=usual)

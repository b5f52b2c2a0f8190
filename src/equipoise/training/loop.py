"""The only training loop.

Each step perturbs a batch as the method's ascents say, on the raw network, and descends the sum of its terms. Every
random choice is a function of the seed, the epoch and the sample's index, never of state: a run that was killed and
resumed takes exactly the steps of one that was not.
"""

import json
import math
import os
import pickle
import re
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from equipoise.ascent import Ascent
from equipoise.attacks import fgsm, pgd
from equipoise.convolution import mostly_wide
from equipoise.data import crop_and_flip
from equipoise.errors import EquipoiseError, EquipoiseWarning, require
from equipoise.geometry import Ball
from equipoise.predictive import as_predictive, predict, reseed, standing, with_module
from equipoise.records import Run, from_json, save, to_json, write_atomically
from equipoise.rng import Streams, fold
from equipoise.spaces import Input
from equipoise.terms import Method
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
from equipoise.training.job import ASCENT, AUGMENT, NOISE, ORDER, PLAY, Job, Progress, summary_writer, training_split
from equipoise.training.players import Seat
from equipoise.types import Predictive

_LOOK_EVERY = 20  # steps between two looks at the loss, which on an accelerator wait for the device


@dataclass
class _Memory:
    """What a run remembers besides its weights; JSON-ready."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    metrics: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)


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
    recipe = job.recipe
    kind, precision = recipe.pick_device().type, "bf16-mixed" if recipe.precision == "bf16" else "32-true"
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:  # started by torchrun: one of its processes
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        fabric = Fabric(
            accelerator=kind, strategy=_parallel("popen"), devices=local, num_nodes=world // local, precision=precision
        )
        fabric.launch()
        return _train(job, fabric)
    if recipe.devices > 1:
        with tempfile.TemporaryDirectory() as scratch:
            folder = job.out or Path(scratch)
            job = replace(job, out=folder)
            fabric = Fabric(accelerator=kind, strategy=_parallel("spawn"), devices=recipe.devices, precision=precision)
            try:
                run = from_json(fabric.launch(partial(_train_to_json, job)))
            except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and "serializ" not in str(error).lower():
                    raise
                raise EquipoiseError(
                    f"devices > 1 sends the network, the method and the progress to new processes, and one of them "
                    f"does not pickle ({error}): define it in a module, or start the processes by torchrun."
                ) from error
            except ProcessRaisedException as error:
                found = re.search(r"EquipoiseError: (.*)", str(error))
                if found is None:
                    raise
                raise EquipoiseError(found[1]) from None
            load_weights(as_predictive(job.model).module, folder / "last.safetensors")
            for player in job.method.players:
                load_weights(player.network(), folder / f"{player.name}.safetensors")
            assert isinstance(run, Run)
            return run
    return _train(job, Fabric(accelerator=kind, devices=1, precision=precision))


def _parallel(start: Literal["popen", "spawn"]) -> DDPStrategy:
    """Gradients averaged over processes; a network may have parameters that its outputs do not use."""
    return DDPStrategy(start_method=start, find_unused_parameters=True)


def _train(job: Job, fabric: Fabric) -> Run:
    """The training of one process."""
    if fabric.world_size > 1 and fabric.device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // fabric.world_size))
    with _own_randomness(fabric.device):
        try:
            return _Training(fabric, job).run()
        finally:
            if fabric.world_size > 1 and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def _train_to_json(job: Job, fabric: Fabric) -> dict[str, Any]:
    """The same in a spawned process, with a result that can travel.

    Networks arrive in shared memory, where each process's steps would be everyone's: train copies.
    """
    return to_json(_train(replace(job, model=deepcopy(job.model), method=deepcopy(job.method)), fabric))


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """Dropout and the like draw from the global generator: lend it to the run and give it back as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


class _Training:
    """One run in one process: the network, its optimiser, the data on the device, and what has happened so far."""

    def __init__(self, fabric: Fabric, job: Job) -> None:
        self.fabric, self.job, self.recipe, self.out = fabric, job, job.recipe, job.out
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
        # Loss, correct predictions and samples of the running epoch, in float64 on the device.
        self.sums = torch.zeros(3, dtype=torch.float64, device=fabric.device)
        self.steps = len(_batches(torch.arange(len(self.train.y)), self.recipe.batch_size, 2 * fabric.world_size))
        require(
            min(self.recipe.batch_size, len(self.train.y)) >= fabric.world_size,
            f"{fabric.world_size} processes cannot share batches of {self.recipe.batch_size} of {len(self.train.y)} "
            "samples: use fewer devices or larger batches.",
        )
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
        status = "failed: interrupted"
        try:
            with standing(self.module, "train"):
                while self.memory.epoch < self.recipe.epochs and not self._stalled():
                    self._epoch()
            status = "finished" if self.memory.epoch == self.recipe.epochs else "stopped early"
            if self.averaged is not None:
                copy_into(self.module, plain_state(self.averaged.module), "the average")
        except EquipoiseError as error:
            status = f"failed: {error}"
            raise
        finally:
            self._close(status)
        return self.record

    def _epoch(self) -> None:
        recipe, memory, device = self.recipe, self.memory, self.fabric.device
        seed = fold(recipe.seed, memory.epoch)
        mine = slice(self.fabric.global_rank, None, self.fabric.world_size)
        batches = zip(self._shuffle(fold(seed, ORDER)), self._shuffle(fold(seed, PLAY)), strict=True)
        for number, (batch, other) in enumerate(batches):
            if number < memory.step:
                continue
            reseed(abs(fold(seed, NOISE, number, self.fabric.global_rank)), device)
            self._step(batch[mine].to(device), len(batch), seed, number)
            if self.seats:
                self._play(other[mine].to(device), len(other), seed, number)
            memory.step = number + 1
            if memory.step % _LOOK_EVERY == 0:
                self._require_finite(self._total())
            self._tell()
            if self.out and self._due():
                self._save()
        self._finish_epoch()

    def _shuffle(self, seed: int) -> list[Tensor]:
        """All training samples in batches, in random order."""
        order = torch.randperm(len(self.train.y), generator=torch.Generator().manual_seed(abs(seed)))
        return _batches(order, self.recipe.batch_size, 2 * self.fabric.world_size)

    def _due(self) -> bool:
        """Whether it is time for a checkpoint. Processes save together, so the first one decides, now and then."""
        due = time.monotonic() - self.saved > 60 * self.recipe.checkpoint_minutes > 0
        if self.fabric.world_size == 1:
            return due
        return self.memory.step % _LOOK_EVERY == 0 and self.fabric.broadcast(due)

    def _step(self, index: Tensor, total: int, seed: int, number: int) -> None:
        done = (self.memory.epoch + number / self.steps) / self.recipe.epochs
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(done)
        x, y = self._inputs(index, fold(seed, AUGMENT)), self.train.y[index]
        streams = Streams.of(fold(seed, ASCENT), index, batch=number)
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

    def _inputs(self, index: Tensor, seed: int) -> Tensor:
        x = self.train.x[index]
        if self.recipe.augment == "crop-flip":
            x = crop_and_flip(x, Streams.of(seed, index))
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    def _play(self, index: Tensor, total: int, seed: int, number: int) -> None:
        """The other players' step."""
        seed = fold(seed, PLAY)
        x = self._inputs(index, fold(seed, AUGMENT))
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
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": loss / seen,
            "train_accuracy": correct / seen,
        }
        for seat in self.seats:
            played = seat.finish_epoch()
            self._require_finite(torch.tensor([*played.values()]), f"loss of the {seat.player.name} is")
            metrics |= played
        if self.fabric.is_global_zero:
            metrics |= self._validate()
        metrics = self.fabric.broadcast(metrics)
        self._require_finite(torch.tensor(metrics["valid_clean"]), "network's outputs are")
        if metrics["valid_pgd"] > memory.best.get("valid_pgd", -1.0):
            memory.best = metrics
            if self.out and self.fabric.is_global_zero:
                save_tensors(self.out / "best.safetensors", plain_state(self.judged))
        climbs = any(isinstance(place, Ascent) for place in self.job.method.places)
        alarm = alarm_of(memory.metrics, metrics, len(self.job.data.classes), len(self.valid.y), climbs)
        if alarm is not None and alarm not in memory.alarms:
            memory.alarms.append(alarm)
            if self.fabric.is_global_zero:
                warnings.warn(alarm, EquipoiseWarning, stacklevel=2)
        memory.metrics.append(metrics)
        memory.epoch, memory.step = memory.epoch + 1, 0
        self.sums.zero_()
        if self.out:
            self._save()
            if self.recipe.tensorboard and self.fabric.is_global_zero:
                _to_tensorboard(self.folder, metrics)
        self._tell(metrics, alarm)

    def _validate(self) -> dict[str, float]:
        valid, judged = self.valid, self.predictive
        if self.averaged is not None:
            judged = with_module(judged, self.judged)
        scores = torch.cat([predict(judged, x).scores for x in valid.x.split(512)])
        if not scores.isfinite().all():
            return dict.fromkeys(("valid_clean", *self.checks), math.nan)
        metrics = {"valid_clean": float((scores.argmax(1) == valid.y).double().mean())}
        for name, attack in self.checks.items():
            found = attack(judged, valid.x, valid.y, seed=self.recipe.seed)
            metrics[name] = 1 - float(found.success.double().mean())
        return metrics

    def _stalled(self) -> bool:
        since = self.memory.epoch - self.memory.best.get("epoch", 0)
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
        if self.job.resume:
            require(
                checkpoint.is_file(),
                f"nothing to resume in {self.folder}: it has no checkpoint.",
            )
            self._restore(checkpoint)
        else:
            require(
                not (self.folder / "run.json").exists(),
                f"{self.folder} already holds a run: resume it, or choose another place for this one.",
            )
        self.fabric.barrier()
        self._save()  # a full disk is found out now, and a kill before the next checkpoint can be resumed too
        if self.fabric.is_global_zero:
            save(self.folder / "run.json", self.record)
        self.fabric.barrier()

    def _restore(self, path: Path) -> None:
        tensors, state = load_tensors(path)
        same = {
            "method": (state.get("method"), self.record.method),
            "network": (state.get("net"), self.record.net),
            "data": (state.get("data"), self.record.data),
        }
        plain = json.loads(json.dumps({k: v[1] for k, v in same.items()}))
        for name, (then, _) in same.items():
            require(
                then == plain[name],
                f"cannot resume {self.folder}: it was started with another {name}; give the same options.",
            )
        differ = self.recipe.differences(state["recipe"])
        then = ", ".join(f"{k} = {state['recipe'].get(k)}" for k in differ)
        require(
            not differ,
            f"cannot resume {self.folder}: it was started with {then}; give the same options or a new --out.",
        )
        copy_into(self.module, part(tensors, "model."), str(path))
        restore_optimizer(self.optimizer, part(tensors, "optimizer."))
        if self.averaged is not None:
            copy_into(self.averaged, part(tensors, "ema."), str(path))
        for seat in self.seats:
            seat.restore(part(tensors, f"{seat.player.name}."), str(path))
        rows = tensors["sums"]
        if self.fabric.is_global_zero:  # sums of all processes are saved together
            self.sums.copy_(rows)
        self.memory = _Memory(**state["memory"])

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
        state = {
            "memory": asdict(self.memory),
            "method": self.record.method,
            "net": self.record.net,
            "data": self.record.data,
            "recipe": {**self.record.recipe, "valid_eps": self.recipe.valid_eps},
        }
        save_tensors(self.folder / "last.safetensors", plain_state(self.judged))
        save_tensors(self.folder / "checkpoint.safetensors", tensors | {"sums": sums}, state)
        for seat in self.seats:
            seat.write(self.folder)
        self._write_metrics()

    def _write_metrics(self) -> None:
        lines = "".join(json.dumps(m) + "\n" for m in self.memory.metrics)
        write_atomically(self.folder / "metrics.jsonl", lines.encode())

    def _close(self, status: str) -> None:
        memory = self.memory
        last = memory.metrics[-1] if memory.metrics else {}
        self.record = replace(
            self.record,
            status=status,
            best=memory.best,
            last=last,
            alarms=tuple(memory.alarms),
            seconds=memory.seconds + time.monotonic() - self.began,
        )
        if self.out and self.fabric.is_global_zero:
            save(self.out / "run.json", self.record)


def alarm_of(past: list[dict[str, float]], now: Mapping[str, float], classes: int, n: int, climbs: bool) -> str | None:
    """What is going wrong, in a sentence, or None.

    Catastrophic overfitting (Wong et al. 2020) of a method that `climbs`: since the epoch of the best PGD accuracy, PGD
    accuracy has lost a third of itself and more than chance explains, while FGSM accuracy rose. Collapse: clean
    accuracy within three standard errors of chance from the second epoch on.
    """
    chance = 1 / classes
    noise = 3 * (chance * (1 - chance) / n) ** 0.5
    if past:
        top = max(past, key=lambda m: m["valid_pgd"])
        fell = top["valid_pgd"] - now["valid_pgd"]
        if climbs and fell > max(top["valid_pgd"] / 3, noise) and now["valid_fgsm"] > top["valid_fgsm"]:
            return (
                f"catastrophic overfitting: since epoch {top['epoch']:.0f} FGSM accuracy rose from "
                f"{top['valid_fgsm']:.1%} to {now['valid_fgsm']:.1%} while PGD accuracy fell from "
                f"{top['valid_pgd']:.1%} to {now['valid_pgd']:.1%}; use more steps or a smaller step size."
            )
        if now["valid_clean"] <= chance + noise:
            return (
                f"the network predicts no better than chance ({now['valid_clean']:.1%} of {n} validation samples after "
                f"epoch {now['epoch']:.0f}): lower eps, or lr, or train longer."
            )
    return None


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


def _to_tensorboard(out: Path, metrics: Mapping[str, float]) -> None:
    with summary_writer()(str(out / "tensorboard")) as writer:
        for name, value in metrics.items():
            writer.add_scalar(name, value, int(metrics["epoch"]))

"""What a training leaves in its folder, and how it goes on from there: checkpoints, weights, metrics, the record."""

import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.core.errors import EquipoiseWarning, require
from equipoise.core.files import write_atomically
from equipoise.results.differences import with_new_names
from equipoise.results.records import Run, save
from equipoise.training.checkpoint import (
    copy_into,
    load_tensors,
    optimizer_tensors,
    part,
    plain_state,
    restore_optimizer,
    save_tensors,
)
from equipoise.training.folder import forget_replaced
from equipoise.training.handlers import Handler
from equipoise.training.recipe import MAY_CHANGE, Recipe

if TYPE_CHECKING:
    from equipoise.training.loop import Training

_DERIVED = ("sum", "terms", "sha256", "classes", "shape", "n_train", "n_valid", "n_test", "notes", "parameters")
"""What follows from the options of a run, and is no option itself."""


class Checkpoints(Handler):
    """The folder of a run: from each checkpoint in it the run goes on as if it had never been stopped."""

    def __init__(self, run: "Training", folder: Path) -> None:
        self.folder, self.resume, self.minutes = folder, run.job.resume, run.recipe.checkpoint_minutes
        self.saved = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is old enough for another within an epoch."""
        return time.monotonic() - self.saved > 60 * self.minutes > 0

    def started(self, run: "Training") -> None:
        """Begin or continue the run."""
        checkpoint = self.folder / "checkpoint.safetensors"
        if self.resume and checkpoint.is_file():
            self._restore(run, checkpoint)
        run.fabric.barrier()
        self.write_record(run, run.recorded())
        self.save(run)  # a full disk is found out now, and a kill before the next checkpoint can be resumed too
        run.fabric.barrier()

    def epoch_over(self, run: "Training", metrics: dict[str, float]) -> None:
        """Save after every epoch."""
        self.save(run)

    def save(self, run: "Training") -> None:
        """Write a checkpoint, and what people look at beside it. Every process takes part, one writes."""
        memory, sums, now = run.memory, run.total(), time.monotonic()
        memory.seconds, run.began, self.saved = memory.seconds + now - run.began, now, now
        optimizer, tensors = optimizer_tensors(run.optimizer), {"sums": sums}
        for handler in run.handlers:
            tensors |= handler.tensors(run)
        for tensor in [*run.module.parameters(), *optimizer.values()]:
            run.require_finite(tensor, "weights are")
        tensors |= {f"model.{k}": v for k, v in plain_state(run.module).items()}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer.items()}
        if not run.fabric.is_global_zero:
            return
        judged = plain_state(run.judged.module)
        memory.weights["last.safetensors"] = save_tensors(self.folder / "last.safetensors", judged)
        best = memory.epoch > 0 and memory.step == 0 and memory.best.get("epoch") == memory.epoch
        if best:  # the same weights
            memory.weights["best.safetensors"] = memory.weights["last.safetensors"]
        state = {"memory": asdict(memory), **_identity(run)}
        save_tensors(self.folder / "checkpoint.safetensors", tensors, state)
        # After the checkpoint: killed in between, the run writes the same files when it is resumed.
        if best:
            save_tensors(self.folder / "best.safetensors", judged)
        memory.weights |= run.players.write(self.folder)
        lines = "".join(json.dumps(metrics) + "\n" for metrics in memory.metrics)
        write_atomically(self.folder / "metrics.jsonl", lines.encode())
        self.write_record(run, run.recorded())
        if memory.epoch + memory.step > 0:
            forget_replaced(self.folder)

    def write_record(self, run: "Training", record: Run) -> None:
        """Write `run.json`."""
        if run.fabric.is_global_zero:
            save(self.folder / "run.json", record)

    def _restore(self, run: "Training", path: Path) -> None:
        tensors, state = load_tensors(path)
        state = with_new_names(state)
        now, recipe = json.loads(json.dumps(_identity(run))), run.recipe
        usual = json.loads(json.dumps(asdict(Recipe())))  # of a record that was written before there was the field
        require_same({**state, "recipe": {**usual, **state["recipe"]}}, now, self.folder)
        then, epochs, before = state["memory"]["epoch"], recipe.epochs, state["recipe"]["epochs"]
        require(
            then <= epochs,
            f"cannot resume {self.folder}: it has seen {then} epochs, more than epochs = {epochs}.",
        )
        if recipe.depends_on_epochs and before != epochs and run.fabric.is_global_zero:
            text = (
                f"the learning rate follows a {recipe.schedule} schedule over all epochs: going on with {epochs} "
                f"instead of {before} is not the same as {epochs} from the start."
            )
            warnings.warn(text, EquipoiseWarning, stacklevel=2)
        copy_into(run.module, part(tensors, "model."), str(path))
        restore_optimizer(run.optimizer, part(tensors, "optimizer."))
        for handler in run.handlers:
            handler.restore(tensors, str(path))
        if run.fabric.is_global_zero:  # sums of all processes are saved together
            run.sums.copy_(tensors["sums"])
        run.memory = type(run.memory)(**state["memory"])


def _identity(run: "Training") -> dict[str, Any]:
    """What must be the same when the run is resumed."""
    record = run.record
    recipe = {**record.recipe, "valid_eps": run.recipe.valid_eps}
    return {"recipe": recipe, "method": record.method, "net": record.net, "data": record.data}


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

"""Checkpoints: what a training writes to its folder, and how it resumes from there."""

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
    plain_state,
    restore_optimizer,
    save_tensors,
    with_prefix,
)
from equipoise.training.folder import delete_replaced
from equipoise.training.handlers import Handler
from equipoise.training.recipe import MAY_CHANGE, Recipe

if TYPE_CHECKING:
    from equipoise.training.loop import Training

_DERIVED = ("sum", "terms", "sha256", "classes", "shape", "n_train", "n_valid", "n_test", "notes", "parameters")
"""Entries of a record that follow from the options of the run."""


class Checkpoints(Handler):
    """The folder of a run. A run resumed from one of its checkpoints continues as if it had never been stopped."""

    def __init__(self, run: "Training", folder: Path) -> None:
        self.folder, self.resume, self.minutes = folder, run.job.resume, run.recipe.checkpoint_minutes
        self.saved_at = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is old enough for another within an epoch."""
        return time.monotonic() - self.saved_at > 60 * self.minutes > 0

    def on_start(self, run: "Training") -> None:
        """Resume the run if asked to, and save."""
        checkpoint = self.folder / "checkpoint.safetensors"
        if self.resume and checkpoint.is_file():
            self._restore(run, checkpoint)
        run.fabric.barrier()
        self.write_record(run, run.current_record())
        self.save(run)  # finds a full disk before the first step, and makes a kill in the first epoch resumable
        run.fabric.barrier()

    def on_epoch_end(self, run: "Training", metrics: dict[str, float]) -> None:
        """Save after every epoch."""
        self.save(run)

    def save(self, run: "Training") -> None:
        """Write a checkpoint, weights, metrics and record. Every process takes part, the first one writes."""
        state, totals, now = run.state, run.reduced_totals(), time.monotonic()
        state.seconds, run.started_at, self.saved_at = state.seconds + now - run.started_at, now, now
        optimizer, tensors = optimizer_tensors(run.optimizer), {"sums": totals}
        for handler in run.handlers:
            tensors |= handler.tensors(run)
        for tensor in [*run.module.parameters(), *optimizer.values()]:
            run.require_finite(tensor, "weights are")
        tensors |= {f"model.{k}": v for k, v in plain_state(run.module).items()}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer.items()}
        if not run.fabric.is_global_zero:
            return
        weights = plain_state(run.evaluated_model.module)
        state.weights["last.safetensors"] = save_tensors(self.folder / "last.safetensors", weights)
        best = state.epoch > 0 and state.step == 0 and state.best.get("epoch") == state.epoch
        if best:  # the same weights
            state.weights["best.safetensors"] = state.weights["last.safetensors"]
        save_tensors(self.folder / "checkpoint.safetensors", tensors, {"memory": asdict(state), **_identity(run)})
        # After the checkpoint: killed in between, the run writes the same files when it is resumed.
        if best:
            save_tensors(self.folder / "best.safetensors", weights)
        state.weights |= run.auxiliary.write(self.folder)
        lines = "".join(json.dumps(metrics) + "\n" for metrics in state.metrics)
        write_atomically(self.folder / "metrics.jsonl", lines.encode())
        self.write_record(run, run.current_record())
        if state.epoch + state.step > 0:
            delete_replaced(self.folder)

    def write_record(self, run: "Training", record: Run) -> None:
        """Write `run.json`."""
        if run.fabric.is_global_zero:
            save(self.folder / "run.json", record)

    def _restore(self, run: "Training", path: Path) -> None:
        tensors, saved = load_tensors(path)
        saved = with_new_names(saved)
        require_same(saved, json.loads(json.dumps(_identity(run))), self.folder)
        recipe, done, epochs = run.recipe, saved["memory"]["epoch"], saved["recipe"]["epochs"]
        require(
            done <= recipe.epochs,
            f"cannot resume {self.folder}: it has seen {done} epochs, more than epochs = {recipe.epochs}.",
        )
        follows = "method" if run.job.changes else "learning rate" if recipe.depends_on_epochs else ""
        if follows and epochs != recipe.epochs and run.fabric.is_global_zero:
            text = (
                f"the {follows} follows a schedule over all epochs: going on with "
                f"{recipe.epochs} instead of {epochs} is not the same as {recipe.epochs} from the start."
            )
            warnings.warn(text, EquipoiseWarning, stacklevel=2)
        copy_into(run.module, with_prefix(tensors, "model."), str(path))
        restore_optimizer(run.optimizer, with_prefix(tensors, "optimizer."))
        for handler in run.handlers:
            handler.restore(tensors, str(path))
        if run.fabric.is_global_zero:  # one process takes the totals of all
            run.epoch_totals.copy_(tensors["sums"])
        run.state = type(run.state)(**saved["memory"])


def _identity(run: "Training") -> dict[str, Any]:
    """The parts of the record that must be the same when the run is resumed."""
    record = run.record
    recipe = {**record.recipe, "valid_eps": run.recipe.valid_eps}
    return {"recipe": recipe, "method": record.method, "net": record.net, "data": record.data}


def require_same(saved: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raise `EquipoiseError`, naming the options that differ, unless a saved run is the one to be resumed.

    A field that a record of an earlier version lacks has its default.
    """
    named: dict[str, str] = {}
    unnamed: list[str] = []
    for kind in ("recipe", "method", "net", "data"):
        defaults = json.loads(json.dumps(asdict(Recipe()))) if kind == "recipe" else {}
        old, new = _flat(defaults | saved.get(kind, {})), _flat(now[kind])
        ignored = MAY_CHANGE if kind == "recipe" else ()
        differ = [key for key in {**old, **new} if old.get(key) != new.get(key) and key not in ignored]
        options = [key for key in differ if key not in _DERIVED]
        for key in options:
            name = kind if key == "name" else key
            named.setdefault(name, f"{name} = {old.get(key)}, not {new.get(key)}")
        if differ and not options:
            unnamed.append(f"{'other' if kind == 'data' else 'another'} {kind}")
    differences = ", ".join(named.values()) or " and ".join(unnamed)
    require(
        not differences,
        f"cannot resume {folder}: it was started with {differences}; give the same options or a new --out.",
    )


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table with the entries of nested tables among its own."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= value if isinstance(value, Mapping) else {key: value}
    return flat

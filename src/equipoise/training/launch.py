"""Where a training runs: in this process, in several that this one starts, or as one of those that torchrun started."""

import tempfile
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from equipoise.core.errors import EquipoiseWarning
from equipoise.core.torchrun import World
from equipoise.models import as_predictive
from equipoise.results.records import Run, from_json, load, save, to_json
from equipoise.training.checkpoint import load_weights
from equipoise.training.interruption import Stop, listening
from equipoise.training.job import Job
from equipoise.training.loop import INTERRUPTED, Training
from equipoise.training.processes import ProcessLost, fabric_of, run_processes


def launch(job: Job) -> Run:
    """Train in this process, in processes that it starts, or as one of those that torchrun started."""
    world = World.from_environment()
    if world is None and job.recipe.devices > 1:
        with tempfile.TemporaryDirectory() as scratch:
            return _train_in_processes(job, job.out or Path(scratch))
    stop = Stop()
    with listening(stop):
        return _train(job, world or World(), stop)


def _train(job: Job, world: World, stop: Stop) -> Run:
    """Train in one process, whose global random state is left as it was."""
    precision = "bf16-mixed" if job.recipe.precision == "bf16" else "32-true"
    fabric = fabric_of(world, job.recipe.pick_device().type, precision)
    if fabric.world_size > 1 and fabric.device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // fabric.world_size))
    with torch.random.fork_rng(devices=[fabric.device] if fabric.device.type == "cuda" else []):
        try:
            return Training(fabric, job, stop).run()
        finally:
            if fabric.world_size > 1 and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def _train_in_processes(job: Job, folder: Path) -> Run:
    """Start processes, pass on what they report, and load their result into the model."""

    def report(kind: str, content: Any) -> None:
        if kind == "warning":
            warnings.warn(content, EquipoiseWarning, stacklevel=2)
        elif job.progress is not None:
            job.progress(content)

    work = partial(_train_in_new_process, replace(job, out=folder, progress=None))
    try:
        with listening(None):
            record = run_processes(job.recipe.devices, work, report)
    except ProcessLost as error:
        _record_status(folder, f"failed: {error}")
        raise
    except KeyboardInterrupt:
        _record_status(folder, INTERRUPTED)
        raise
    load_weights(as_predictive(job.model).module, folder / "last.safetensors")
    for auxiliary in job.method.auxiliary_networks:
        load_weights(auxiliary.network(), folder / f"{auxiliary.name}.safetensors")
    run = from_json(record)
    assert isinstance(run, Run)
    return run


def _train_in_new_process(job: Job, world: World, stop: Stop, report: Callable[[str, Any], None]) -> dict[str, Any]:
    # Networks arrive in shared memory, where each process's steps would be everyone's: train copies.
    job = replace(job, model=deepcopy(job.model), method=deepcopy(job.method), progress=partial(report, "progress"))
    return to_json(_train(job, world, stop))


def _record_status(folder: Path, status: str) -> None:
    """Record how a training ended whose processes could not do so themselves."""
    if (folder / "run.json").exists():
        run = load(folder / "run.json")
        if isinstance(run, Run) and not run.status.startswith(("finished", "stopped early")):
            save(folder / "run.json", replace(run, status=status))

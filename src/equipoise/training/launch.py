"""Where a training runs: in this process, in several that this one starts, or as one of those that torchrun started."""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
            return Training(fabric, job, stop).run()
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
        _note(folder, INTERRUPTED)
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

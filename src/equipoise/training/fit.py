"""Training a model: what was asked is checked, then `equipoise.training.launch` does it."""

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from equipoise.attacks.ascent import Ascent
from equipoise.core.errors import EquipoiseError, require
from equipoise.core.torchrun import World, is_main_process
from equipoise.core.types import Predictive
from equipoise.data import Dataset
from equipoise.losses.objectives import Objective
from equipoise.losses.terms import Method, Term, as_method
from equipoise.models import as_predictive, frozen, validate_output, with_module
from equipoise.nets import count_parameters
from equipoise.results.provenance import provenance
from equipoise.results.records import Run
from equipoise.training.checkpoint import described
from equipoise.training.corruption import Corrupted
from equipoise.training.folder import claimed
from equipoise.training.job import Job, Progress, summary_writer, training_split
from equipoise.training.recipe import Recipe, require_devices


def fit(
    method: "Method | Term | Objective",
    model: "nn.Module | Predictive",
    data: Dataset,
    recipe: Recipe | None = None,
    *,
    out: "Path | str | None" = None,
    resume: bool = False,
    overwrite: bool = False,
    method_record: Mapping[str, Any] | None = None,
    net_record: Mapping[str, Any] | None = None,
    command: str = "",
    progress: Callable[[Progress], None] | None = None,
) -> Run:
    """Train `model` in place by `method` on `data`, and return the record of the run.

    With `out` the run directory is written (see `equipoise.results.records.Run`), a checkpoint after every epoch and
    every few minutes; `resume=True` continues from it, also with more epochs or another patience than before.
    `overwrite=True` replaces a run that is there: it is set aside once everything has been checked, and deleted at the
    first checkpoint of the new one. Nobody else can train in `out` meanwhile. At the end `model` holds the last
    weights, or with `recipe.ema` their average; `load_run(out, "best")` gives those of the best epoch (see
    `equipoise.training.judgement.improves`). `method_record` and `net_record` go into the record; without the latter a
    network that `equipoise.nets.build` made is described by its arguments. With `recipe.devices > 1` processes are
    started, to which the network and the method must be able to travel (something that pickles); under torchrun each
    process calls `fit`. After SIGINT or SIGTERM a checkpoint is written and `equipoise.training.Interrupted`, a
    `KeyboardInterrupt`, is raised, unless the caller handles the signal. Raises `EquipoiseError` for unusable input and
    when the loss stops being finite.
    """
    return train(
        prepare(
            method,
            model,
            data,
            recipe,
            out=out,
            resume=resume,
            overwrite=overwrite,
            method_record=method_record,
            net_record=net_record,
            command=command,
            progress=progress,
        )
    )


def train(job: Job) -> Run:
    """Do what was prepared, in the folder of the run, where nobody else may train meanwhile."""
    with claim(job):
        return launch(job)


@contextmanager
def claim(job: Job) -> Iterator[None]:
    """Hold the folder of the run, for the process that writes there."""
    with claimed(job.out if is_main_process() else None, resume=job.resume, overwrite=job.overwrite):
        yield


def launch(job: Job) -> Run:
    """Do what was prepared, in a folder that is held."""
    from equipoise.training import (
        launch as started,  # what it is made of takes seconds to import, and not everyone trains
    )

    return started.launch(job)


def prepare(
    method: "Method | Term | Objective",
    model: "nn.Module | Predictive",
    data: Dataset,
    recipe: Recipe | None = None,
    *,
    out: "Path | str | None" = None,
    resume: bool = False,
    overwrite: bool = False,
    method_record: Mapping[str, Any] | None = None,
    net_record: Mapping[str, Any] | None = None,
    words: Sequence[str] = (),
    command: str = "",
    progress: Callable[[Progress], None] | None = None,
) -> Job:
    """Check everything about a training that can be checked before it, and touch nothing.

    The arguments are those of `fit`, and the `words` of a command line, for the record. Raises `EquipoiseError` for
    what cannot be done.
    """
    method = as_method(method)
    require(
        isinstance(data, Dataset),
        f"data is a {type(data).__name__}: expected an equipoise.data.Dataset, as equipoise.data.load returns; of "
        "tensors, Dataset(name, Split(x, y), Split(x_test, y_test), classes, sha256).",
    )
    recipe = recipe or Recipe()
    recipe = recipe if recipe.validation else replace(recipe, validation=data.validation)
    method = method.build_for(data.shape, recipe.seed)
    predictive = as_predictive(model)
    require(out is None or str(out) != "", "out is empty: expected the path of a directory, which may not exist yet.")
    out = Path(out) if out is not None else None
    device = recipe.pick_device()
    world = World.from_environment()
    if world is None:
        require_devices(recipe.devices, device.type)
    require(any(p.requires_grad for p in predictive.module.parameters()), "the network has no parameters to train.")
    weight = next(predictive.module.parameters())
    require(
        weight.dtype == torch.float32,
        f"the network is {weight.dtype}: keep it in float32 (Recipe's precision may be bf16).",
    )
    first = validate_output(predictive, data.train.x[:2].to(weight.device))
    method.check(len(data.classes), len(first.logits))
    for place in method.places:
        if isinstance(place, Ascent):
            place.space.enter(frozen(predictive), data.train.x[:2].to(weight.device))
        if isinstance(place, Corrupted):
            place.check(data.train.x[:2])
    require(
        recipe.augment == "none" or data.train.x.ndim == 4,
        f"augment = {recipe.augment!r} needs images, {data.name} has inputs of shape {tuple(data.train.x.shape[1:])}.",
    )
    if recipe.tensorboard:
        summary_writer()
    require(
        first.classes == len(data.classes),
        f"the network has {first.classes} classes, {data.name} has {len(data.classes)}.",
    )
    in_training = len(training_split(data, recipe)[0])
    processes = recipe.devices if world is None else world.size
    require(
        min(recipe.batch_size, in_training) >= processes,
        f"{processes} processes cannot share batches of {recipe.batch_size} of {in_training} samples: use fewer "
        "devices or larger batches.",
    )
    if recipe.ema > 0:
        with_module(predictive, predictive.module)
    if world is None and recipe.devices > 1:
        _require_that_it_travels(method, model)
    run = Run(
        method={"name": "custom", **(method_record or {}), "sum": str(method), "terms": method.settings()},
        recipe={k: list(v) if isinstance(v, tuple) else v for k, v in asdict(recipe).items()},
        net={"parameters": count_parameters(predictive.module), **(net_record or described(model) or {})},
        data={
            "name": data.name,
            "sha256": data.sha256,
            "classes": list(data.classes),
            "shape": list(data.train.x.shape[1:]),
            "n_train": len(data.train.y),
            "n_test": len(data.test.y),
            **({"notes": list(data.notes)} if data.notes else {}),
        },
        provenance=provenance(recipe.seed, device, command),
        words=list(words),
    )
    return Job(_in_precision(method, recipe), model, data, recipe, out, resume, overwrite, run, progress)


def _require_that_it_travels(method: Method, model: "nn.Module | Predictive") -> None:
    """Raise `EquipoiseError` unless processes can be given the method and the network."""
    try:
        pickle.dumps((method, model))
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        raise EquipoiseError(
            "devices > 1 sends the network and the method to new processes, and one of them does not pickle "
            f"({error}): define it in a module, or start the processes by torchrun."
        ) from error


def _in_precision(method: Method, recipe: Recipe) -> Method:
    """The method with its ascents computed in bf16 if the recipe says so."""
    if recipe.precision == "32":
        return method
    terms = (replace(t, at=replace(t.at, precision="bf16")) if isinstance(t.at, Ascent) else t for t in method.terms)
    return replace(method, terms=tuple(terms))

"""Training a model: the arguments are checked here, then `equipoise.training.launch` trains."""

import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from equipoise.attacks.ascent import Ascent
from equipoise.core.checks import checked_call
from equipoise.core.errors import EquipoiseError, EquipoiseWarning, kind_of, require
from equipoise.core.schedules import Scheduled
from equipoise.core.torchrun import World, is_main_process
from equipoise.core.types import Points, Predictive
from equipoise.data import Dataset
from equipoise.losses.objectives import Objective
from equipoise.losses.terms import Method, Term, as_method
from equipoise.losses.worst_case import Bounds
from equipoise.models import as_predictive, frozen, validate_output, with_module
from equipoise.nets import count_parameters
from equipoise.results.provenance import provenance
from equipoise.results.records import Run
from equipoise.training.checkpoint import described
from equipoise.training.corruption import Corrupted
from equipoise.training.folder import locked_run_folder
from equipoise.training.job import Job, Progress, in_precision, summary_writer, training_split
from equipoise.training.loggers import with_logger
from equipoise.training.recipe import Recipe, require_devices


@checked_call(unless=("method", "data"))
def fit(
    method: "Method | Term | Objective | Scheduled",
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
    unlabelled: Points | None = None,
    logger: Any = None,
) -> Run:
    """Train `model` in place by `method` on `data`, and return the record of the run.

    `out` is the run directory (see `equipoise.results.records.Run`), which gets a checkpoint after every epoch and
    every few minutes, and is locked meanwhile. `resume=True` continues the run in it, also with more epochs or another
    patience than before. `overwrite=True` replaces the run in it, which is set aside once everything has been checked,
    and deleted at the first checkpoint of the new run. `method_record` and `net_record` go into the record; without
    the latter a network that `equipoise.nets.build` made is described by its arguments. `progress` is called after
    every step and every epoch; `logger` gets the metrics of each epoch (see `equipoise.training.loggers`): a function
    of metrics and step, a run of W&B, trackio, MLflow, TensorBoard, or a CSV file. `unlabelled` are further inputs, for
    the terms of a method that are evaluated `on_unlabelled` samples: as many in each step as a batch has, in a random
    order of their own.

    Numbers of a method may change over the training: `methods.pgd_at(eps=ramp(0, 0.1, until=0.3))`, see
    `equipoise.core.schedules`.

    At the end `model` holds the last weights, or with `recipe.ema` their average; `load_run(out, "best")` returns those
    of the best epoch (see `equipoise.training.monitoring.improves`). With `recipe.devices > 1` processes are started,
    and network and method must be picklable; under torchrun each process calls `fit`. After SIGINT or SIGTERM a
    checkpoint is written and `equipoise.training.Interrupted`, a `KeyboardInterrupt`, is raised, unless the caller
    handles the signal. Raises `EquipoiseError` for unusable input and when the loss stops being finite.
    """
    job = prepare(
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
        progress=with_logger(progress, logger),
        unlabelled=unlabelled,
    )
    with locked_run_folder(job):
        return launch(job)


def launch(job: Job) -> Run:
    """Train as prepared, in a locked run folder."""
    from equipoise.training.launch import launch  # its imports take seconds, and most commands do not train

    still = [p for p in job.method.all_perturbations if isinstance(p, Ascent) and p.geometry.eps == 0]
    if still and is_main_process():
        text = (
            "eps = 0: the ball holds the sample alone, so nothing is perturbed; give eps > 0, or train by `standard`."
        )
        warnings.warn(text, EquipoiseWarning, stacklevel=2)
    return launch(job)


def prepare(
    method: "Method | Term | Objective | Scheduled",
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
    unlabelled: Points | None = None,
) -> Job:
    """Check everything that can be checked before a training, and write nothing.

    The arguments are those of `fit`, and the `words` of a command line, for the record. Raises `EquipoiseError` for
    unusable input.
    """
    schedule = method if isinstance(method, Scheduled) else None
    method = as_method(schedule.at(1.0) if schedule is not None else method)
    require(
        isinstance(data, Dataset),
        f"data is {kind_of(data)}: expected an equipoise.data.Dataset, as equipoise.data.load returns; of "
        "tensors, Dataset(name, Split(x, y), Split(x_test, y_test), classes, sha256).",
    )
    recipe = recipe or Recipe()
    recipe = recipe if recipe.validation else replace(recipe, validation=data.validation)
    method = method.build_for(data.shape, recipe.seed)
    require(out is None or str(out) != "", "out is empty: expected the path of a directory, which may not exist yet.")
    device, world = recipe.pick_device(), World.from_environment()
    if world is None:
        require_devices(recipe.devices, device.type)
    _check(method, model, data, unlabelled, recipe, world)
    if recipe.tensorboard:
        summary_writer()
    if world is None and recipe.devices > 1:
        _require_picklable(schedule or method, model)
    run = Run(
        method={"name": "custom", **(method_record or {}), "sum": str(schedule or method), "terms": method.settings()},
        recipe={k: list(v) if isinstance(v, tuple) else v for k, v in asdict(recipe).items()},
        net={"parameters": count_parameters(as_predictive(model).module), **(net_record or described(model) or {})},
        data=_data_record(data),
        provenance=provenance(recipe.seed, device, command),
        words=list(words),
    )
    folder = Path(out) if out is not None else None
    made = in_precision(method, recipe)
    return Job(made, schedule, model, data, unlabelled, recipe, folder, resume, overwrite, run, progress)


def _check(
    method: Method,
    model: "nn.Module | Predictive",
    data: Dataset,
    unlabelled: Points | None,
    recipe: Recipe,
    world: World | None,
) -> None:
    """Raise `EquipoiseError` unless all of it goes together."""
    _check_model(method, model, data, recipe)
    _check_memory(method, recipe, world)
    _check_unlabelled(method, data, unlabelled)
    _check_data(data, recipe, recipe.devices if world is None else world.size)


def _check_model(method: Method, model: "nn.Module | Predictive", data: Dataset, recipe: Recipe) -> None:
    """Raise `EquipoiseError` unless the method can train the model on such data."""
    predictive = as_predictive(model)
    require(any(p.requires_grad for p in predictive.module.parameters()), "the network has no parameters to train.")
    weight = next(predictive.module.parameters())
    require(
        weight.dtype == torch.float32,
        f"the network is {weight.dtype}: keep it in float32 (Recipe's precision may be bf16).",
    )
    x = data.train.x[:2]
    prediction = validate_output(predictive, x.to(weight.device))
    method.check(len(data.classes), len(prediction.logits))
    at: Any
    for at in dict.fromkeys([*method.all_perturbations, *method.perturbations]):
        if isinstance(at, Ascent):
            at.space.enter(frozen(predictive), x.to(weight.device))
        if isinstance(at, Corrupted):
            at.check(x)
        if isinstance(at, Bounds):
            at.check(predictive, x.to(weight.device))
    require(
        prediction.classes == len(data.classes),
        f"the network has {prediction.classes} classes, {data.name} has {len(data.classes)}.",
    )
    if recipe.ema > 0:
        with_module(predictive, predictive.module)


def _check_data(data: Dataset, recipe: Recipe, processes: int) -> None:
    """Raise `EquipoiseError` unless the inputs can be augmented, and shared out to the processes."""
    require(
        recipe.augment == "none" or data.train.x.ndim == 4,
        f"augment = {recipe.augment!r} needs images, {data.name} has inputs of shape {tuple(data.train.x.shape[1:])}.",
    )
    samples = len(training_split(data, recipe)[0])
    require(
        min(recipe.batch_size, samples) >= processes,
        f"{processes} processes cannot share batches of {recipe.batch_size} of {samples} samples: use fewer devices or "
        "larger batches.",
    )


def _check_memory(method: Method, recipe: Recipe, world: World | None) -> None:
    """Raise `EquipoiseError` unless what perturbations keep of each sample is known where it is needed."""
    kept = "a perturbation of the method keeps something of each sample"
    require(
        not method.remembers or (recipe.devices == 1 and world is None),
        f"{kept}, of which every process would know a part: train on one device.",
    )
    require(
        not method.remembers or recipe.augment == "none",
        f"{kept}, which crops and flips would move: train without augment.",
    )


def _check_unlabelled(method: Method, data: Dataset, unlabelled: Points | None) -> None:
    """Raise `EquipoiseError` unless there are unlabelled samples like those of the data just if the method has terms on
    such.
    """
    asked, given = method.on_unlabelled is not None, unlabelled is not None
    require(not asked or given, "the method has terms on unlabelled samples: give unlabelled=x, inputs without labels.")
    require(asked or not given, "no term of the method is on_unlabelled samples: leave out unlabelled, or add one.")
    if unlabelled is None:
        return
    shape, like = tuple(unlabelled.shape[1:]), data.shape
    require(
        len(unlabelled) > 0 and shape == tuple(like) and unlabelled.dtype == torch.float32,
        f"unlabelled samples of shape {shape} and {unlabelled.dtype}: expected inputs like those of {data.name}, of "
        f"shape {like} in float32.",
    )


def _data_record(data: Dataset) -> dict[str, Any]:
    return {
        "name": data.name,
        "sha256": data.sha256,
        "classes": list(data.classes),
        "shape": list(data.train.x.shape[1:]),
        "n_train": len(data.train.y),
        "n_test": len(data.test.y),
        **({"notes": list(data.notes)} if data.notes else {}),
    }


def _require_picklable(method: "Method | Scheduled", model: "nn.Module | Predictive") -> None:
    try:
        pickle.dumps((method, model))
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        raise EquipoiseError(
            "devices > 1 sends the network and the method to new processes, and one of them does not pickle "
            f"({error}): define it in a module, or start the processes by torchrun."
        ) from error

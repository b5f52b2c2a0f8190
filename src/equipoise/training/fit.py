"""Training a model: what was asked is checked, then `equipoise.training.loop` does it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from equipoise.ascent import Ascent
from equipoise.corrupted import Corrupted
from equipoise.data import Dataset
from equipoise.errors import require
from equipoise.nets import count_parameters
from equipoise.objectives import Objective
from equipoise.predictive import as_predictive, first_look
from equipoise.provenance import provenance
from equipoise.records import Run
from equipoise.terms import Method, Term, as_method
from equipoise.training.job import Job, Progress, summary_writer
from equipoise.training.recipe import Recipe
from equipoise.types import Predictive


def fit(
    method: "Method | Term | Objective",
    model: "nn.Module | Predictive",
    data: Dataset,
    recipe: Recipe | None = None,
    *,
    out: "Path | str | None" = None,
    resume: bool = False,
    method_record: Mapping[str, Any] | None = None,
    net_record: Mapping[str, Any] | None = None,
    command: str = "",
    progress: Callable[[Progress], None] | None = None,
) -> Run:
    """Train `model` in place by `method` on `data`, and return the record of the run.

    With `out` the run directory is written (see `equipoise.records.Run`), a checkpoint after every epoch and every few
    minutes; `resume=True` continues from it. At the end `model` holds the last weights, or with `recipe.ema` their
    average; `load_run(out, "best")` gives those of the epoch with the best validation robust accuracy.
    `method_record` and `net_record` go into the record.
    With `recipe.devices > 1` processes are started, to which `progress` must be able to travel (something that
    pickles); under torchrun each process calls `fit`.
    Raises `EquipoiseError` for unusable input and when the loss stops being finite.
    """
    recipe = recipe or Recipe()
    recipe = recipe if recipe.validation else replace(recipe, validation=data.validation)
    method = as_method(method).made_for(data.shape, recipe.seed)
    predictive = as_predictive(model)
    out = Path(out) if out is not None else None
    device = recipe.pick_device()
    require(any(p.requires_grad for p in predictive.module.parameters()), "the network has no parameters to train.")
    weight = next(predictive.module.parameters())
    require(
        weight.dtype == torch.float32,
        f"the network is {weight.dtype}: keep it in float32 (Recipe's precision may be bf16).",
    )
    first = first_look(predictive, data.train.x[:2].to(weight.device))
    method.check(len(data.classes), len(first.logits))
    for place in method.places:
        if isinstance(place, Ascent):
            place.space.enter(predictive, data.train.x[:2].to(weight.device), "eval")
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
    run = Run(
        method={"name": "custom", **(method_record or {}), "sum": str(method), "terms": method.settings()},
        recipe={k: list(v) if isinstance(v, tuple) else v for k, v in asdict(recipe).items()},
        net={"parameters": count_parameters(predictive.module), **(net_record or {})},
        data={
            "name": data.name,
            "sha256": data.sha256,
            "classes": list(data.classes),
            "shape": list(data.train.x.shape[1:]),
            "n_train": len(data.train.y),
            "n_test": len(data.test.y),
        },
        provenance=provenance(recipe.seed, device, command),
    )
    from equipoise.training.loop import launch  # what it is made of takes seconds to import, and not everyone trains

    return launch(Job(_in_precision(method, recipe), model, data, recipe, out, resume, run, progress))


def _in_precision(method: Method, recipe: Recipe) -> Method:
    """The method with its ascents computed in bf16 if the recipe says so."""
    if recipe.precision == "32":
        return method
    terms = (replace(t, at=replace(t.at, precision="bf16")) if isinstance(t.at, Ascent) else t for t in method.terms)
    return replace(method, terms=tuple(terms))

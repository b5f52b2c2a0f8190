"""The model of a request and its data, from a run or from the user's own code."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from equipoise.cli.console import say
from equipoise.cli.own_models import load_own, require_own
from equipoise.cli.parsing import parse
from equipoise.cli.requests import ModelRequest, Train
from equipoise.core.errors import require
from equipoise.core.types import Predictive
from equipoise.data import Dataset, Reading, load_as
from equipoise.evaluation.verification import fingerprint
from equipoise.models import as_predictive
from equipoise.pretrained import WEIGHTS, find
from equipoise.results.records import Run
from equipoise.training import Recipe, load_run, load_weights


@dataclass(frozen=True)
class LoadedModel:
    """A model to be measured, its data, and the record of its training."""

    model: nn.Module | Predictive
    """The network, in eval mode."""
    data: Dataset
    run: Run | None
    """The record of its training; None for a model of the user's own."""
    weights: str = "given"
    """Which weights of a run, `best` or `last`; `given` for a model of the user's own or a published one."""


def load_model(options: ModelRequest) -> LoadedModel:
    """The model that was asked for, and its data. Raises `EquipoiseError` if one of them cannot be had."""
    device = Recipe(device=options.device).pick_device()
    folder = find(options.target)
    if not (folder / "run.json").is_file():
        require_own(options)
        data = load_as(options.reading, str(options.data), options.data_root)
        say(data.summary)
        return LoadedModel(load_own(options, data, device), data, None)
    model, run = load_run(folder, options.weights, device)
    data = _data_of(options, run)
    say(data.summary)
    shape, classes = run.data["shape"], run.data["classes"]
    require(
        list(data.shape) == list(shape) and len(data.classes) == len(classes),
        f"{data.name} has {len(data.classes)} classes of inputs {data.shape}, "
        f"the network was trained for {len(classes)} of {tuple(shape)}.",
    )
    return LoadedModel(model, data, run, "given" if WEIGHTS in run.weights else options.weights)


def start_from(source: Path, model: nn.Module | Predictive, net: Mapping[str, Any]) -> dict[str, str]:
    """Copy the weights of a run, of a published model, or in a file, into the untrained `model` that `net` describes,
    and return where they come from, for the record. Raises `EquipoiseError` for weights of another network, naming what
    differs.
    """
    module = as_predictive(model).module
    if source.is_file():
        load_weights(module, source)
        return {"from": str(source), "sha256": fingerprint(module)["sha256"]}
    trained, run = load_run(source)
    own, theirs = (json.loads(json.dumps({key: about.get(key) for key in _BUILT_FROM})) for about in (net, run.net))
    for key in _BUILT_FROM:
        require(
            own[key] == theirs[key],
            f"--init {source} is another network: its {_BUILT_FROM[key]} {theirs[key]}, this one's {own[key]}.",
        )
    module.load_state_dict(as_predictive(trained).module.state_dict())
    return {"from": str(source), "sha256": fingerprint(module)["sha256"]}


_BUILT_FROM = {
    "name": "name is",
    "shape": "inputs have the shape",
    "classes": "number of classes is",
    "options": "options are",
    "normalize": "standardisation is",
    "members": "number of members is",
    "dropout_samples": "number of dropout samples is",
    "inducing": "number of inducing points is",
}
"""What two networks have in common that have the same weights, in words."""


def norm_of(typed: str | None, run: Run | None) -> str:
    """The norm that was asked for, or else that of the run's validation attacks, or linf."""
    return typed or (run.recipe.get("valid_norm", "linf") if run else "linf")


def _data_of(options: ModelRequest, run: Run) -> Dataset:
    """The dataset asked for, or else that of the run, found as its training found it and checked to be the same."""
    if options.data is not None:
        return load_as(options.reading, options.data, options.data_root, preprocessing=_preprocessing(run))
    name, root, reading = _source_of_data(run)
    typed = {key: value for key, value in vars(options.reading).items() if value not in (None, False, ())}
    reading = replace(reading, **typed)
    data = load_as(reading, name, options.data_root or root, preprocessing=_preprocessing(run))
    require(
        data.sha256 == run.data["sha256"],
        f"{name} is not the data that {options.target} was trained on (SHA-256 {data.sha256}, then "
        f"{run.data['sha256']}): give other data with --data if that is meant.",
    )
    return data


def _preprocessing(run: Run) -> Mapping[str, Any]:
    """How the inputs of a run were made from images or features."""
    return run.data.get("preprocessing", {})


def _source_of_data(run: Run) -> tuple[str, Path | None, Reading]:
    """The name of a run's dataset or file, where it was looked for and how it was read, as typed for its training."""
    typed = run.provenance.options
    if typed.get("command") == "train" and isinstance(typed.get("data"), str):
        root = typed.get("data_root")
        reading = Reading.of({field.name: typed[field.name] for field in fields(Reading) if field.name in typed})
        return typed["data"], Path(root) if isinstance(root, str) else None, reading
    words = shlex.split(run.provenance.command)  # of the first version, which stored the text alone
    options = parse(words[1:]) if words[:2] == ["equipoise", "train"] else None
    if isinstance(options, Train):
        return options.data, options.data_root, options.reading
    return run.data["name"], None, Reading()

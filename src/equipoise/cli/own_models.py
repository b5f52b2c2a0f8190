"""The user's own model, as it is named on the command line: a factory, a function, a classifier, a file."""

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from equipoise import nets
from equipoise.cli.console import say
from equipoise.cli.options import pairs
from equipoise.cli.requests import ModelRequest
from equipoise.core.errors import EquipoiseError, require
from equipoise.core.types import Predictive
from equipoise.data import Dataset
from equipoise.models import BlackBox, from_callable, from_estimator, from_onnx, recognised
from equipoise.models.black_box import is_estimator
from equipoise.pretrained import hint
from equipoise.training import load_weights

ONNX = ".onnx"


def load_own(options: ModelRequest, data: Dataset, device: "torch.device | str") -> Predictive:
    """Return the user's own model for these data, in eval mode, and say how it is read. Raises `EquipoiseError` if it
    cannot be had.
    """
    target, samples, classes = options.target, data.test.x, len(data.classes)
    if Path(target).suffix == ONNX:
        made: Any = from_onnx(target, samples, classes)
    else:
        made = _made(options, data)
        if is_estimator(made):
            made = from_estimator(made, classes, name=target)
        elif callable(made) and not isinstance(made, nn.Module | Predictive):
            made = from_callable(made, samples, classes, name=target)
    require(
        isinstance(made, nn.Module | Predictive),
        f"{target} is {type(made).__name__}: expected a torch.nn.Module, a function of arrays or a classifier of "
        "scikit-learn, or a function that makes one.",
    )
    if options.checkpoint is not None:
        require(
            not isinstance(made, BlackBox),
            f"--checkpoint {options.checkpoint}: {target} is asked as a function and has no weights to load.",
        )
        load_weights(made if isinstance(made, nn.Module) else made.module, options.checkpoint)
    (made if isinstance(made, nn.Module) else made.module).eval().to(device)
    predictive, notes = recognised(made, samples)
    for note in notes:
        say(f"note: {note}")
    return predictive


def _made(options: ModelRequest, data: Dataset) -> Any:
    """What the name stands for, made if it is a factory."""
    target, arguments = options.target, pairs(options.net_option, "--net-option")
    if ":" in target:
        named = nets.imported("model", target, "factory")
        if isinstance(named, nn.Module | Predictive) and not isinstance(named, type):
            return named
        if is_estimator(named) or (callable(named) and _is_function(options, named, arguments)):
            require(not arguments, f"--net-option is for factories of networks, and {target} is the model itself.")
            return named
    try:
        return nets.made(target, data.shape, len(data.classes), seed=options.seed, **arguments)
    except EquipoiseError as error:
        if options.model_kind is not None or not isinstance(error.__cause__, TypeError):
            raise
        raise EquipoiseError(f"{error} If it predicts itself, add --model-kind function.") from error


def _is_function(options: ModelRequest, named: Callable[..., Any], given: Iterable[str]) -> bool:
    """Whether a callable predicts, and does not make a model: it has exactly one parameter that must be given, which is
    none of those that a factory gets.
    """
    if options.model_kind is not None:
        return options.model_kind == "function"
    try:
        parameters = inspect.signature(named).parameters.values()
    except ValueError as error:
        raise EquipoiseError(
            f"{options.target} does not say what it takes: add --model-kind function if it predicts, or --model-kind "
            "factory if it makes a model."
        ) from error
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(required) != 1 or required[0].kind is required[0].KEYWORD_ONLY:
        return False
    return required[0].name not in {"shape", "classes", *given}


def require_own(options: ModelRequest) -> None:
    """Raise `EquipoiseError` unless the target can be the name of somebody's own model, and data are given for it."""
    target = options.target
    require(not Path(target).is_dir(), f"{target} is not a run directory: it has no run.json.")
    if Path(target).is_file() and Path(target).suffix != ONNX:
        stem = Path(target).stem
        raise EquipoiseError(
            f"{target} is a source file: name the function in it that makes the model, as {stem}:FUNCTION."
            if Path(target).suffix == ".py"
            else f"{target} is a file, and a network is needed to load weights into: name the function that makes it, "
            f"as package.module:function --checkpoint {target}; a run of equipoise is evaluated by its folder."
        )
    require(
        ":" in target or target in nets.names() or Path(target).is_file(),
        f"there is no run directory {target}; expected one that `equipoise train` wrote, or a model as "
        f"package.module:factory{hint(target)}.",
    )
    require(options.data is not None, f"to evaluate {target} give a dataset with --data, such as mnist or my.npz.")

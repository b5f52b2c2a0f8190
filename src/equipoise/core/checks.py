"""Checks of what users pass: the labels and sample indices of a batch, and the arguments of a function."""

import inspect
from collections.abc import Callable
from functools import wraps
from numbers import Integral
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

import torch
from torch import Tensor

from equipoise.core.errors import EquipoiseError, require, require_number, unknown

F = TypeVar("F", bound=Callable[..., Any])


def check_index(index: Any, batch: int, unit: str = "sample") -> None:
    """Raise `EquipoiseError` unless `index` is one integer per sample; `unit` is its name in the message."""
    require(
        isinstance(index, Tensor)
        and index.shape == (batch,)
        and not index.is_floating_point()
        and index.dtype != torch.bool,
        f"index must be a tensor of {batch} integers, one per {unit}.",
    )


def check_labels(name: str, labels: Any, batch: int, classes: int | None) -> None:
    """Raise `EquipoiseError` unless `labels` is None or one class index per sample; `classes` None allows
    any.
    """
    if labels is None:
        return
    require(
        isinstance(labels, Tensor), f"{name} is a {type(labels).__name__}: expected a torch tensor of class indices."
    )
    require(labels.dtype == torch.int64, f"{name} has dtype {labels.dtype}: expected int64 class indices.")
    require(
        labels.shape == (batch,),
        f"{name} has shape {tuple(labels.shape)}: expected ({batch},), one class per sample"
        + (", as x[None] and y[None] are of a single one." if labels.ndim == 0 else "."),
    )
    low, high = int(labels.min()), int(labels.max())
    require(
        low >= 0 and (classes is None or high < classes),
        f"{name} holds class {low if low < 0 else high}, "
        + ("which is none." if classes is None else f"but the model has {classes} classes, 0 to {classes - 1}."),
    )


def checked_call(*forwarded: Callable[..., Any]) -> Callable[[F], F]:
    """Decorate a function that passes its `**options` on to the callables `forwarded`: a call that Python would refuse
    by a `TypeError` raises an `EquipoiseError`, and so does anything but a number where the annotation asks for one.
    """

    def decorate(function: F) -> F:
        name, signature, parameters = function.__name__, inspect.signature(function), {}
        for target in forwarded:  # those without a default are given by the function
            taken = getattr(target, "parameters", inspect.signature(target).parameters)
            parameters |= {key: p for key, p in taken.items() if p.default is not p.empty}
        parameters |= {key: p for key, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD}

        @wraps(function)
        def checked(*args: Any, **options: Any) -> Any:
            try:
                for key, value in (signature.bind_partial(*args).arguments | options).items():
                    if key in parameters:
                        _check_number(key, value, parameters[key].annotation)
                return function(*args, **options)
            except TypeError as error:
                for key in options:
                    if key not in parameters:
                        raise unknown(f"option of {name}", key, parameters) from error
                raise EquipoiseError(f"{name} cannot be called like this: {error}.") from error

        vars(checked)["parameters"] = parameters
        return cast(F, checked)

    return decorate


def _check_number(name: str, value: Any, annotation: Any) -> None:
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    is_choice = isinstance(value, str) and any(get_origin(kind) is Literal for kind in kinds)
    others = tuple(kind for kind in kinds if isinstance(kind, type) and kind not in (int, float))
    if not {int, float} & set(kinds) or is_choice or isinstance(value, others):
        return
    require_number(name, value)
    require(float in kinds or isinstance(value, Integral), f"{name} = {value!r}: expected an integer.")

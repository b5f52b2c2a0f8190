"""Checks of what users pass: labels and sample indices, arguments of functions, fields of dataclasses.

A wrong argument gets one sentence that names it, its value and what was expected. `check_type` leaves alone what has a
sentence of its own elsewhere: models, arrays of a shape, and containers other than tuples.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache, partial, wraps
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from equipoise.core.errors import LONGEST, EquipoiseError, article, kind_of, require, unknown

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
    require(isinstance(labels, Tensor), f"{name} is {kind_of(labels)}: expected a torch tensor of class indices.")
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
        + ("which is not a class." if classes is None else f"but the model has {classes} classes, 0 to {classes - 1}."),
    )


def checked_call(*forwarded: Callable[..., Any], unless: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Decorate a function so that a wrong call raises an `EquipoiseError`: arguments missing, unknown or of a wrong
    type. `forwarded` are the callables that take its `**options`; arguments in `unless` are checked by the function.
    """

    def decorate(function: F) -> F:
        name, signature, parameters = function.__name__, inspect.signature(function), {}
        takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        for target in forwarded:  # those without a default are given by the function
            taken = getattr(target, "parameters", inspect.signature(target).parameters)
            parameters |= {key: p for key, p in taken.items() if p.default is not p.empty}
        parameters |= {key: p for key, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD}

        @cache
        def annotations() -> dict[str, Any]:
            known = [getattr(target, "annotations", partial(_annotations, target))() for target in forwarded]
            return {key: kind for kinds in (*known, _annotations(function)) for key, kind in kinds.items()}

        def diagnosis(error: TypeError, options: Mapping[str, Any]) -> EquipoiseError:
            for key in () if takes_any and not forwarded else options:
                if key not in parameters:
                    return _unknown_option(name, key, parameters, annotations())
            usual = [key for key, p in signature.parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
            takes = ", ".join(usual[usual[:1] == ["self"] :])
            return EquipoiseError(f"{name} cannot be called like this: {error}; it takes {takes}.")

        @wraps(function)
        def checked(*args: Any, **options: Any) -> Any:
            try:
                given = signature.bind(*args, **options).arguments
            except TypeError as error:
                raise diagnosis(error, options) from error
            for key, value in (given | options).items():
                if key in annotations() and key not in unless:
                    check_type(key, value, annotations()[key])
            if not forwarded:
                return function(*args, **options)
            try:
                return function(*args, **options)
            except TypeError as error:  # of the call that takes the options
                raise diagnosis(error, options) from error

        vars(checked).update(parameters=parameters, annotations=annotations)
        return cast(F, checked)

    return decorate


def check_fields(record: Any) -> None:
    """Raise `EquipoiseError` for the first field of a dataclass whose value is not of the type of its annotation."""
    annotations = _annotations(type(record))
    for field in (f for f in fields(record) if f.init):
        check_type(field.name, getattr(record, field.name), annotations[field.name])


def check_type(name: str, value: object, annotation: Any) -> None:
    """Raise `EquipoiseError` unless `value`, the argument `name`, is of the type `annotation`."""
    if _fits(value, annotation):
        return
    choices = [choice for kind in _kinds(annotation) if get_origin(kind) is Literal for choice in get_args(kind)]
    if isinstance(value, str) and choices:
        raise unknown(name, value, map(str, choices))
    raise EquipoiseError(f"{name}{_shown(value)}: expected {_in_words(annotation)}.")


_annotations = cache(get_type_hints)


def _kinds(annotation: Any) -> Iterator[Any]:
    """The alternatives of a union, or the annotation itself."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        for kind in get_args(annotation):
            yield from _kinds(kind)
    else:
        yield annotation


def _unknown_option(
    function: str, option: str, parameters: Mapping[str, Any], annotations: Mapping[str, Any]
) -> EquipoiseError:
    """The error for an option that a function does not take, but perhaps an object that it takes."""
    for name in parameters:
        for kind in _kinds(annotations.get(name)):
            if is_dataclass(kind) and option in (f.name for f in fields(kind)):
                made = getattr(kind, "__name__", kind)
                return EquipoiseError(f"{option} is a field of {made}: write {name}={made}({option}=...).")
    return unknown(f"option of {function}", option, parameters)


def _fits(value: object, annotation: Any) -> bool:
    kinds = list(_kinds(annotation))
    return (nn.Module in kinds and len(kinds) > 1) or any(_is_a(value, kind) for kind in kinds)


def _is_a(value: object, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if kind in (float, int):
        return isinstance(value, Real if kind is float else Integral) and not isinstance(value, bool)
    if origin is Literal:
        return isinstance(value, str | Real) and value in inner
    if origin is tuple:
        kinds = inner[:1] * len(value) if inner[1:] == (...,) and isinstance(value, tuple | list) else inner
        return isinstance(value, tuple | list) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if Callable in (kind, origin):
        return callable(value)
    if (
        kind is Any
        or hasattr(kind, "array_type")
        or not isinstance(kind, type)
        or not getattr(kind, "_is_runtime_protocol", True)
    ):
        return True
    return isinstance(value, kind) and not isinstance(value, type)


def _shown(value: object) -> str:
    """Such as ` = '3' is a str`, or the type alone of what prints in several lines or as an address."""
    if inspect.isfunction(value) or isinstance(value, type):
        return f" is the {'class' if isinstance(value, type) else 'function'} {value.__name__}"
    text = repr(value)
    if isinstance(value, NoneType | bool | float):
        return f" = {text}"
    if "\n" in text or " at 0x" in text:
        return f" is {kind_of(value)}"
    return f" = {text:.{LONGEST}} is {kind_of(value)}"


def _in_words(annotation: Any) -> str:
    """What is expected: `a StepSize, a number or None`."""
    words = [word for kind in _kinds(annotation) for word in _described(kind)]
    *others, last = dict.fromkeys(words)
    return f"{', '.join(others)} or {last}" if others else last


def _described(kind: Any) -> list[str]:
    """One alternative in words, or all choices of a literal."""
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return [repr(choice) for choice in inner]
    if get_origin(kind) is tuple:
        shape = (
            f"a tuple of {_in_words(inner[0])} each" if inner[1:] == (...,) else f"({', '.join(map(_in_words, inner))})"
        )
        return [shape]
    if Callable in (kind, get_origin(kind)):
        return ["a function"]
    names = {float: "a number", int: "an integer", str: "a string", bool: "True or False", NoneType: "None"}
    example = getattr(kind, "example", None)
    usual = article(kind.__name__) + (f" such as {example}" if isinstance(example, str) else "")
    return [names.get(kind, usual)]

"""Checks of arguments against their annotations, for functions and for the fields of dataclasses.

A wrong call gets one sentence that names the argument, its value and what was expected. What has a sentence of its own
elsewhere is left alone: models, arrays of a shape, and containers other than tuples.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache, wraps
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from torch import nn

from equipoise.core.errors import LONGEST, EquipoiseError, unknown

F = TypeVar("F", bound=Callable[..., Any])


def checked_call(*forwarded: Callable[..., Any], unless: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Decorate a function so that a wrong call raises an `EquipoiseError`: arguments missing, unknown or of a wrong
    type. `forwarded` are the callables that take its `**options`; arguments in `unless` are checked by the function.
    """

    def decorate(function: F) -> F:
        name, signature, parameters = function.__name__, inspect.signature(function), {}
        open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()) and not forwarded
        for target in forwarded:  # those without a default are given by the function
            taken = getattr(target, "parameters", inspect.signature(target).parameters)
            parameters |= {key: p for key, p in taken.items() if p.default is not p.empty}
        parameters |= {key: p for key, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD}

        @wraps(function)
        def checked(*args: Any, **options: Any) -> Any:
            for key in options:
                if key not in parameters and not open_ended:
                    raise unknown(f"option of {name}", key, parameters)
            try:
                given = signature.bind(*args, **options).arguments
            except TypeError as error:
                takes = ", ".join(key for key, p in parameters.items() if p.kind is not p.KEYWORD_ONLY)
                raise EquipoiseError(f"{name} cannot be called like this: {error}; it takes {takes}.") from error
            annotations = _annotations(function)
            for key, value in given.items():
                if key in annotations and key not in unless:
                    check_type(key, value, annotations[key])
            return function(*args, **options)

        vars(checked)["parameters"] = parameters
        return cast(F, checked)

    return decorate


def check_fields(record: Any) -> None:
    """Raise `EquipoiseError` for the first field of a dataclass whose value is not of the type of its annotation."""
    annotations = _annotations(type(record))
    for field in fields(record):
        check_type(field.name, getattr(record, field.name), annotations[field.name])


def check_type(name: str, value: object, annotation: Any) -> None:
    """Raise `EquipoiseError` unless `value`, the argument `name`, is of the type `annotation`."""
    if _fits(value, annotation):
        return
    choices = [choice for kind in _kinds(annotation) if get_origin(kind) is Literal for choice in get_args(kind)]
    if isinstance(value, str) and choices:
        raise unknown(name, value, map(str, choices))
    kind = type(value).__name__
    if inspect.isfunction(value) or isinstance(value, type):
        given = f"{name} is the {'class' if isinstance(value, type) else 'function'} {value.__name__}"
    elif isinstance(value, NoneType | float | bool):
        given = f"{name} = {value!r}"
    elif isinstance(value, str | int | tuple):
        given = f"{name} = {value!r:.{LONGEST}} is {_article(kind)}"
    else:
        given = f"{name} is {_article(kind)}"
    raise EquipoiseError(f"{given}: expected {_in_words(annotation)}.")


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


def _fits(value: object, annotation: Any) -> bool:
    return any(_is_a(value, kind) for kind in _kinds(annotation))


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
    explained_elsewhere = kind is nn.Module or hasattr(kind, "array_type")
    if explained_elsewhere or not isinstance(kind, type) or not getattr(kind, "_is_runtime_protocol", True):
        return True
    return isinstance(value, kind) and not isinstance(value, type)


def _in_words(annotation: Any) -> str:
    """What is expected: `a number or None`."""
    return " or ".join(dict.fromkeys(map(_described, _kinds(annotation))))


def _described(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        return (
            f"a tuple of {_described(inner[0])} each"
            if inner[1:] == (...,)
            else f"({', '.join(map(_described, inner))})"
        )
    if Callable in (kind, get_origin(kind)):
        return "a function"
    names = {float: "a number", int: "an integer", str: "a name", bool: "True or False", NoneType: "None"}
    if kind in names:
        return names[kind]
    example = getattr(kind, "example", None)
    return f"{_article(kind.__name__)} such as {example}" if isinstance(example, str) else _article(kind.__name__)


def _article(noun: str) -> str:
    return noun if noun == "NoneType" else f"{'an' if noun[0] in 'AEIOUaeio' else 'a'} {noun}"

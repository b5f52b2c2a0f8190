"""The options of a command as data, for records, and back."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from equipoise.errors import EquipoiseError

T = TypeVar("T")


def as_data(options: Any) -> dict[str, Any]:
    """Return the options of a command, JSON-ready, with the name of the command as `command`."""
    return {
        "command": type(options).__name__.lower(),
        **{f.name: _plain(getattr(options, f.name)) for f in fields(options)},
    }


def from_data(kind: type[T], data: Mapping[str, Any], where: str) -> T:
    """Return the options that `as_data` described; those that are missing have their defaults.

    Raises `EquipoiseError` naming `where` for an option that a command of this `kind` does not have, or another value
    than it takes.
    """
    hints = get_type_hints(kind)
    given = {name: value for name, value in data.items() if name != "command"}
    strange = [name for name in given if name not in hints]
    if data.get("command") != kind.__name__.lower() or strange:
        raise EquipoiseError(f"{where} is damaged: its options are not those of equipoise {kind.__name__.lower()}.")
    try:
        return kind(**{name: _typed(value, hints[name]) for name, value in given.items()})
    except TypeError as error:
        raise EquipoiseError(f"{where} is damaged: its options hold {error}.") from error


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {"kind": type(value).__name__, **{f.name: _plain(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _typed(value: Any, hint: Any) -> Any:
    """The value as its type has it. Raises `TypeError` for one of another type."""
    kinds = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        if value is None and type(None) in kinds:
            return None
        return _typed(value, next(kind for kind in kinds if kind is not type(None)))
    if get_origin(hint) is Literal and value in kinds:
        return value
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_typed(part, kinds[0]) for part in value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (str, int, bool) and type(value) is hint:
        return value
    raise TypeError(f"{value!r} where {getattr(hint, '__name__', hint)} was expected")

"""The options of a command as data, for records, and back."""

import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from equipoise.core.errors import EquipoiseError
from equipoise.core.files import plain_json
from equipoise.results.records import require_same

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


_NEUTRAL = ("command", "out", "overwrite", "resume", "device", "batch_size", "data_root", "checkpoint", "processes")
"""Options that say where, whether and how, but not what is computed."""


def answered(
    record: Path, page: Path, options: Any, facts: Mapping[str, Any], overwrite: bool
) -> "Mapping[str, Any] | None":
    """Return the finished record if it answers the request `options`; None if nothing is there, or with `overwrite`.

    `facts` are entries of the record that a request for the same has the same: the model, the data. Raises
    `EquipoiseError` naming what differs if another result is at `record`, or if a page without a record is at `page`.
    """
    if overwrite or not (os.path.lexists(record) or os.path.lexists(page)):
        return None
    try:
        found = plain_json(record)
        before = found["provenance"]["options"]
        then = _flags(before) | {name: found[name] for name in facts}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        there = record if os.path.lexists(record) else page
        raise EquipoiseError(
            f"{there} exists, and does not say which request it answers: add --overwrite to replace it, or choose "
            "another place with --out."
        ) from error
    require_same(record, then, _flags(as_data(options)) | dict(facts))
    return found


def _flags(options: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for, by flag; nothing where nothing was typed."""
    return {f"--{k.replace('_', '-')}": v for k, v in options.items() if k not in _NEUTRAL and v not in (None, [], ())}


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

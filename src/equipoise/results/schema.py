"""Parsing of plain data into records by the types of their fields, for every file."""

import os
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import read_json, reason

T = TypeVar("T")

Finite = Annotated[float, msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
"""A number that is neither infinite nor NaN."""
Radius = Annotated[float, msgspec.Meta(ge=0)]
"""A number from 0 to infinity."""
Whole = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""An integer of 64 bits."""


def parse(kind: type[T], data: Any, where: str) -> T:
    """Return `data`, as read from a JSON file, as an object of `kind`: a dataclass, whose fields may be dataclasses.

    A field that `data` lacks has its default. Raises `EquipoiseError` for any other difference, naming `where` and the
    path of the field: `run.json is damaged: results[2].eps: expected number, got text.`
    """
    try:
        record = msgspec.convert(data, kind, dec_hook=_from_text)
    except msgspec.ValidationError as error:
        raise EquipoiseError(f"{where} is damaged: {_worded(str(error))}.") from error
    for path in _unknown_fields(record, data, ""):
        raise EquipoiseError(f"{where} is damaged: {path} is no field that this version of equipoise knows.")
    return record


def read_data(path: str | os.PathLike[str], what: str) -> Any:
    """Return the content of a JSON file. Raises `EquipoiseError`, saying `what` was expected, if there is none."""
    try:
        return read_json(path)
    except OSError as error:
        raise EquipoiseError(f"cannot read {path}: {reason(error)}; expected {what}.") from error
    except ValueError as error:
        raise EquipoiseError(f"{path} is not JSON ({error}); expected {what}.") from error


def require_kind(data: Any, kinds: Collection[str], schema: int, where: str, what: str) -> None:
    """Raise `EquipoiseError`, naming `where`, unless `data` is a record of one of the kinds, `what` in words, and of
    the schema number that this version reads.
    """
    kind, given = (data.get("kind"), data.get("schema")) if isinstance(data, Mapping) else (None, None)
    named = repr(kind) if isinstance(kind, str) else "not named"
    require(isinstance(kind, str) and kind in kinds, f"{where} is not {what}: its kind is {named}.")
    require(
        type(given) is int and given == schema, f"{where} has schema {given!r}, this version reads schema {schema}."
    )


def _from_text(kind: type, value: Any) -> Any:
    """A value of a type that JSON lacks."""
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")


_WORDS = {
    "array": "list",
    "object": "table",
    "str": "text",
    "float": "number",
    "int": "integer",
    "bool": "true or false",
}


def _worded(error: str) -> str:
    """The path of the field, then the error, in terms of JSON: 'results[2].eps: expected number, got text'."""
    message, _, path = error.partition(" - at `$")
    for word, ours in _WORDS.items():
        message = message.replace(f"`{word}`", ours).replace(f"`{word} | null`", f"{ours} or null")
    message = message.replace("Object missing required field", "it lacks the field").replace("`", "")
    return (f"{path.strip('.`')}: " if path else "") + message[:1].lower() + message[1:].rstrip(".")


def _unknown_fields(value: Any, data: Any, path: str) -> Iterator[str]:
    """The paths of the entries of `data` that are not fields of the dataclasses in `value`."""
    if is_dataclass(value) and isinstance(data, Mapping):
        names = {field.name for field in fields(value)}
        yield from (f"{path}{name}" for name in data if name not in names)
        for name in names & data.keys():
            yield from _unknown_fields(getattr(value, name), data[name], f"{path}{name}.")
    elif isinstance(value, Mapping) and isinstance(data, Mapping):
        for name in value.keys() & data.keys():
            yield from _unknown_fields(value[name], data[name], f"{path}{name}.")
    elif isinstance(value, list | tuple) and any(map(is_dataclass, value[:1])):  # all of a list are of one type
        for number, (item, item_data) in enumerate(zip(value, data, strict=True)):
            yield from _unknown_fields(item, item_data, f"{path.removesuffix('.')}[{number}].")

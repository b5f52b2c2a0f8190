"""The options of a command as data, for records, and back."""

import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from equipoise.cli.options import RENAMED, flag_of
from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import read_json
from equipoise.results.differences import require_same
from equipoise.results.schema import parse

T = TypeVar("T")


def as_data(options: Any) -> dict[str, Any]:
    """Return the options of a command that are shown, JSON-ready, with the name of the command as `command`."""
    return {
        "command": type(options).__name__.lower(),
        **{f.name: _plain(getattr(options, f.name)) for f in fields(options) if f.repr},
    }


def from_data(kind: type[T], data: Mapping[str, Any], where: str) -> T:
    """Return the options that `as_data` described; those that are missing have their defaults.

    Raises `EquipoiseError` naming `where` for an option that a command of this `kind` does not have, or another value
    than it takes.
    """
    command = kind.__name__.lower()
    require(data.get("command") == command, f"{where} is damaged: its options are not those of equipoise {command}.")
    return parse(kind, {RENAMED.get(name, name): value for name, value in data.items() if name != "command"}, where)


_NEUTRAL = (
    "command",
    "out",
    "overwrite",
    "resume",
    "device",
    "batch_size",
    "data_root",
    "checkpoint",
    "processes",
    "address",
)
"""Options that say where, whether and how, but not what is computed."""


def answered(
    record: Path, page: Path, options: Any, facts: Mapping[str, Any], overwrite: bool
) -> "Mapping[str, Any] | None":
    """Return the finished record if it answers the request `options`; None if nothing is there, or with `overwrite`,
    or if its page is missing, because whoever wrote it was stopped in between.

    `facts` are entries of the record that a request for the same has the same: the model, the data. Raises
    `EquipoiseError` naming what differs if another result is at `record`, or if a page without a record is at `page`.
    """
    if overwrite or not (os.path.lexists(record) or os.path.lexists(page)):
        return None
    try:
        finished = read_json(record)
        then = _flags(finished["provenance"]["options"]) | {name: finished[name] for name in facts}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        file = record if os.path.lexists(record) else page
        raise EquipoiseError(
            f"{file} exists, and does not say which request it answers: add --overwrite to replace it, or choose "
            "another place with --out."
        ) from error
    require_same(record, then, _flags(as_data(options)) | dict(facts))
    return finished if os.path.lexists(page) else None


def require_file(out: Path, ending: str = "", option: str = "--out") -> None:
    """Raise `EquipoiseError` if `out` is a directory, or a file of another ending."""
    require(not out.is_dir(), f"{option} {out} is a directory: expected a file.")
    require(out.suffix == ending or not ending, f"{option} {out}: expected a file that ends in {ending}.")


def _flags(options: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for, by flag; nothing where nothing was typed."""
    return {
        flag_of(RENAMED.get(k, k)): v
        for k, v in options.items()
        if k not in _NEUTRAL and v not in (None, [], ()) and v is not False
    }


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {"kind": type(value).__name__, **{f.name: _plain(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)

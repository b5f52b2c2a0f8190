"""The options of a command, read from the fields of a dataclass: each field a flag, each docstring its help."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from msgspec import Meta

from equipoise.core.documentation import attribute_docs
from equipoise.core.errors import EquipoiseError, require, require_integer, unknown

T = TypeVar("T")
Positional = Annotated[T, "positional"]
"""A value that is typed without a flag."""
Count = Annotated[int, Meta(ge=1)]
"""An integer of at least 1."""
CountOrZero = Annotated[int, Meta(ge=0)]
"""An integer of at least 0."""

RENAMED = {
    "together": "joint_loss",
    "inducing": "gp_inducing_points",
    "directions": "random_directions",
    "codes": "code_dim",
    "halvings": "bisection_steps",
    "reported": "expected_clean_accuracy",
    "minutes": "time_budget",
    "only": "select",
    "limit": "examples",
}
"""Old names of options, and new ones: the old ones can still be typed, and stand in records."""
FORMERLY = {
    "train": ("together", "inducing", "limit", "directions", "codes", "halvings"),
    "evaluate": ("reported",),
    "audit": ("minutes",),
    "study": ("limit",),
    "reproduce": ("only",),
}
"""The old names that each command had."""

_LARGEST_INTEGER = 2**63 - 1


def flag_of(name: str) -> str:
    """The flag of a field: `--batch-size` for `batch_size`."""
    return f"--{name.replace('_', '-')}"


def with_new_flags(words: Sequence[str]) -> list[str]:
    """The words of a command line, with the flags that its command had before replaced by those of today."""
    flags = {flag_of(old): flag_of(RENAMED[old]) for old in FORMERLY.get(words[0] if words else "", ())}
    split = [word.partition("=") for word in words]
    return [flags.get(flag, flag) + equals + value for flag, equals, value in split]


@dataclass(frozen=True)
class Option:
    """What can be typed for one field of a dataclass."""

    name: str
    flag: str
    """Such as `--batch-size`; for a positional value its name in the help, such as `TARGET`."""
    kind: Any
    """`int`, `float`, `str`, `bool`, `Path`, or a `Literal`."""
    default: Any
    """The value if nothing is typed; `MISSING` if something has to be."""
    help: str
    many: bool = False
    """Whether it takes any number of values."""
    positional: bool = False
    """Whether it is typed without a flag."""
    low: int | None = None
    """The least value of an integer."""
    scheduled: bool = False
    """Whether a number may change over the training, as in `0..0.1@0.3`."""

    @property
    def required(self) -> bool:
        """Whether a value has to be typed."""
        return self.default is MISSING

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a `Literal`; empty for any other kind."""
        return tuple(map(str, get_args(self.kind)))

    @property
    def expected(self) -> str:
        """What kind of value it takes, in words."""
        return _EXPECTED.get(self.kind) or f"one of {', '.join(self.choices)}"

    def value_of(self, text: str) -> Any:
        """The value that a word stands for. Raises `EquipoiseError` if it stands for none."""
        if self.choices and text not in self.choices:
            raise unknown(self.flag, text, self.choices)
        if self.scheduled and (".." in text or "@" in text):
            return self._schedule_of(text)
        if self.kind is int:
            return _integer(self.flag, text, self.low or 0)
        if self.kind is Path:
            require(text != "", f"{self.flag}: expected a path, got an empty text.")  # `Path("")` is the current folder
            return Path(text)
        try:
            return fraction(text) if self.kind is float else text
        except ValueError as error:
            raise EquipoiseError(f"{self.flag}: {error}.") from error

    def _schedule_of(self, text: str) -> Any:
        from equipoise.core.schedules import parse_schedule  # imports torch, which other commands do not need

        try:
            return parse_schedule(text, replace(self, scheduled=False).value_of)
        except ValueError as error:
            raise EquipoiseError(
                f"{self.flag} {text!r:.80}: expected a number, or one that changes over the training, such as "
                "0..0.1@0.3, from 0 to 0.1 over the first 0.3 of it."
            ) from error


def options_of(kind: type) -> list[Option]:
    """The options of a dataclass, those of dataclasses in its fields among them."""
    return list(_options(kind))


@cache
def _options(kind: type) -> tuple[Option, ...]:
    hints, docs, options = (get_type_hints(kind, include_extras=True), attribute_docs(kind), [])
    for field in fields(kind):
        value_kind, many, notes = _resolved(hints[field.name])
        if is_dataclass(value_kind):
            options += _options(value_kind)  # pyright: ignore[reportArgumentType]
        elif value_kind is not Any:
            options.append(
                _option(field, value_kind, many, notes, field.metadata.get("help", docs.get(field.name, "")))
            )
    return tuple(options)


def _option(field: "Field[Any]", kind: Any, many: bool, notes: Iterable[Any], text: str) -> Option:
    positional = "positional" in notes
    return Option(
        field.name,
        field.name.upper() if positional else field.metadata.get("flag", flag_of(RENAMED.get(field.name, field.name))),
        kind,
        field.default if field.default_factory is MISSING else field.default_factory(),
        text,
        many,
        positional,
        next((cast(int, note.ge) for note in notes if isinstance(note, Meta)), None),
        "scheduled" in field.metadata,
    )


def _resolved(hint: Any) -> tuple[Any, bool, list[Any]]:
    """The kind of a field's values, whether there may be many, and the annotations."""
    many, notes = False, []
    while (origin := get_origin(hint)) in (Annotated, Union, UnionType, tuple):
        if origin is Annotated:
            hint, *more = get_args(hint)
            notes += more
        elif origin is tuple:
            hint, many = get_args(hint)[0], True
        else:
            (hint,) = (kind for kind in get_args(hint) if kind is not NoneType)
    return hint, many, notes


def fraction(text: str) -> float:
    """Return a number, or a quotient such as `8/255`. Raises `ValueError` for anything else, NaN included."""
    above, slash, below = text.partition("/")
    try:
        value = number(above) / number(below) if slash else number(above)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if math.isnan(value):
        raise ValueError(f"expected a number or a fraction such as 8/255, got {text!r:.80}")
    return value


def number(text: str) -> float:
    """Return a number in ASCII digits, without the underscores of Python. Raises `ValueError` for anything else."""
    if "_" in text or not text.isascii():
        raise ValueError(text)
    return float(text)


def _integer(flag: str, text: str, low: int) -> int:
    value = int(text[:25]) if re.fullmatch("-?[0-9]+", text) else text  # Python refuses to convert thousands of digits
    if isinstance(value, int) and value > _LARGEST_INTEGER:
        raise EquipoiseError(f"{flag} = {text:.80}: expected an integer of at most {_LARGEST_INTEGER}.")
    require_integer(flag, value, low)
    return cast(int, value)


def pairs(words: Sequence[str], flag: str, dotted: bool = False) -> dict[str, Any]:
    """`key=value` words of a flag, with values as numbers, true, false, tuples ("3,4", "3,", ",") or else text; a
    `dotted` key may be one of a part, as `part.key`.

    Raises `EquipoiseError` for anything that is no such pair.
    """
    options: dict[str, Any] = {}
    for pair in words:
        key, equals, value = pair.partition("=")
        if not (all(part.isidentifier() for part in (key.split(".") if dotted else [key])) and equals):
            raise EquipoiseError(f"{flag} {pair!r} is not of the form key=value.")
        options[key] = tuple(_scalar(v) for v in value.split(",") if v) if "," in value else _scalar(value)
    return options


def _scalar(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = number(text)
        return int(text) if re.fullmatch("[+-]?[0-9]+", text) else value
    except ValueError:
        return text


_EXPECTED = {float: "a number or a fraction, such as 8/255", int: "an integer", Path: "a path", str: "a text"}

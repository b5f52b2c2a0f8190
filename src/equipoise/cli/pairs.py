"""Words of the command line that name something and its value."""

from collections.abc import Sequence
from typing import Any

from equipoise.core.errors import EquipoiseError


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
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text

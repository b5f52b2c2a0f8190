"""Differences between two requests, and the refusal to replace the finished result of another request."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from equipoise.core.errors import require

RENAMED = {
    "keep": "return_point",
    "redraw": "resample",
    "draws": "eot_samples",
    "approach": "eps_schedule",
    "patience": "tau",
}
"""Old and new names of the fields of an ascent."""


def with_new_names(record: Any) -> Any:
    """Return JSON-ready data in which the settings of every attack have the names and the shape of today."""
    if isinstance(record, list):
        return [with_new_names(value) for value in record]
    if not isinstance(record, Mapping):
        return record
    return _attack({key: with_new_names(value) for key, value in record.items()})


def _attack(record: dict[str, Any]) -> dict[str, Any]:
    """The settings of an attack in today's shape; all else as it is."""
    kind = record.get("kind")
    if kind in ("Chain", "Nearest") and "parts" in record:
        record = {"attack": kind.lower(), **{key: value for key, value in record.items() if key != "kind"}}
    elif "attack" not in record and {"objective", "geometry"} <= record.keys():
        record = {"attack": "ascent", **{RENAMED.get(key, key): value for key, value in record.items()}}
        target = record.get("target")
        if isinstance(target, Mapping):
            record["target"] = target.get("class")
        if "num_targets" not in record:
            several = isinstance(target, int)
            record |= {"num_targets": target, "target": None} if several else {"num_targets": None}
    elif "attack" not in record and {"queries", "p_init", "geometry"} <= record.keys():
        record = {"attack": "square", "eot_samples": 1, **{RENAMED.get(key, key): v for key, v in record.items()}}
    elif record.get("attack") == "fab":
        record = {"eot_samples": 1, **{RENAMED.get(key, key): value for key, value in record.items()}}
    ball = record.get("geometry")
    if isinstance(ball, Mapping) and isinstance(ball.get("box"), Mapping):
        record["geometry"] = {**ball, "box": {"kind": "Box", **ball["box"]}}
    return record


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences between two requests, both JSON-ready, as phrases: `pgd linf 0.1, steps: 20 before, 2
    now`.
    """
    return [
        f"{', '.join(path)}: {_brief(old)} before, {_brief(new)} now"
        for path, old, new in _changes(with_new_names(json.loads(json.dumps(before))), json.loads(json.dumps(now)), ())
    ]


_ABSENT = object()


def _changes(before: Any, now: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in {**before, **now}:
            yield from _changes(before.get(key, _ABSENT), now.get(key, _ABSENT), (*path, key))
    elif before is _ABSENT or now is _ABSENT or before != now:
        yield path, before, now


def _brief(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    if isinstance(value, Mapping | list) and len(str(value)) > 40:
        return "present"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) < 64 else f"{text[:12]}..."  # a SHA-256


def require_same(path: str | os.PathLike[str], before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `EquipoiseError` with the differences unless the finished result at `path`, of the request `before`,
    also answers the request `now`.
    """
    phrases = differences(before, now)
    more = f"; and {len(phrases) - 3} more" if len(phrases) > 3 else ""
    require(
        not phrases,
        f"{path} already holds another result ({'; '.join(phrases[:3])}{more}): add --overwrite to replace it, or "
        "choose another place with --out.",
    )

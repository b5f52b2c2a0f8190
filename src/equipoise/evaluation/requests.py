"""Requests of evaluations: a finished record answers the same request, and no other record replaces it unasked."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from equipoise.attacks import fitted
from equipoise.core.errors import EquipoiseError
from equipoise.core.files import read_bytes
from equipoise.evaluation.journal import images_of
from equipoise.evaluation.suites import Suite
from equipoise.evaluation.summaries import WORST
from equipoise.results.differences import require_same
from equipoise.results.records import Evaluation, load

_NEUTRAL = ("batch_size", "torch", "device", "threads", "processes")
"""Entries of an evaluation key that change the last bits of a result, or how it is computed, but not the request."""


def finished(
    out: "Path | str", request: Mapping[str, Any], overwrite: bool = False, images: bytes | None = None
) -> Evaluation | None:
    """Return the finished record at `out` if it answers the request, as `comparable` describes it; None if there is
    none, or with `overwrite`.

    Raises `EquipoiseError` if anything else is there. This includes images without a record, unless they are equal to
    `images`: then the process that wrote them was stopped before it wrote the record.
    """
    path, image_file = Path(out), images_of(out)
    if overwrite or not (os.path.lexists(path) or os.path.lexists(image_file)):
        return None
    if not os.path.lexists(path):
        if images is not None and image_file.is_file() and read_bytes(image_file) == images:
            return None
        raise EquipoiseError(
            f"{image_file}, where the adversarial images would be written, is of another record: add --overwrite to "
            "replace it, or choose another place with --out."
        )
    try:
        record = load(path)
    except EquipoiseError as error:
        raise EquipoiseError(
            f"{path} exists and is not a readable record: choose another place with --out, or add --overwrite to "
            "replace it."
        ) from error
    require_same(path, asked_for(record) if isinstance(record, Evaluation) else {"kind": "run"}, request)
    return record if isinstance(record, Evaluation) else None


def asked_for(record: Evaluation) -> dict[str, Any]:
    """Return the request that a record answers, in the form of `comparable`."""
    attacks = [{"name": r.attack, **r.settings} for r in record.results if r.attack not in ("clean", WORST)]
    request = {
        "target": record.target,
        "weights": record.weights,
        "data": {key: value for key, value in record.data.items() if key != "shard"},
        "model": record.model,
        "attacks": _by_name(attacks),
        "seed": record.provenance.seed,
        "shard": record.data.get("shard", "1/1"),
        "images": bool(record.images),
    }
    sources = {result.corruption: result.source for result in record.corruptions}
    request |= {"corruptions": sources} if sources else {}
    return request | ({"certified": record.certified[0].method} if record.certified else {})


def comparable(evaluation_key: Mapping[str, Any], attacks: Suite, classes: int) -> dict[str, Any]:
    """Return the request behind `evaluation_key`, with the attacks fitted to a model of `classes` classes."""
    settings = [{"name": name, **fitted(name, attack, classes)[0].settings()} for name, attack in attacks]
    request = {key: value for key, value in evaluation_key.items() if key not in _NEUTRAL}
    return json.loads(json.dumps(request | {"attacks": _by_name(settings)}))


def _by_name(attacks: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings of each attack by its name and ball, without the entries that describe the outcome."""
    by_name = {}
    for attack in attacks:
        settings = {key: value for key, value in attack.items() if key not in ("name", "refused", "notes")}
        ball = settings.get("geometry", {})
        by_name[f"{attack['name']} {ball.get('norm')} {ball.get('eps', 0.0):.6g}"] = settings
    return by_name

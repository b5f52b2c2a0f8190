"""A study as files: `study.json`, the arrays of its panels in `study.npz`, `index.html`, and a picture per figure.

In `study.json` an array stands as `{"array": NAME}`, a panel carries its kind. The JSON is written last and holds the
digest of the arrays: where it is, the rest is, and belongs to it.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import read_bytes, reason, write_atomically
from equipoise.report.studies import draw, page
from equipoise.results.findings import Findings, Histogram, Images, Lines, Number, Picture, Regions, Series, Study
from equipoise.results.schema import read_data, require_kind

SCHEMA = 1
_KINDS: dict[str, type] = {
    cls.__name__.lower(): cls for cls in (Study, Findings, Number, Picture, Regions, Lines, Series, Histogram, Images)
}


def save(folder: Path, study: Study) -> Path:
    """Write the study, its page and its figures into `folder`, and return the page's path.

    Figures of the study that was there before are removed, other pictures stay. Raises `EquipoiseError` if it cannot be
    written.
    """
    figures = {f"{picture.name}.png": draw(picture) for picture in study.findings.pictures}
    arrays: dict[str, np.ndarray] = {}
    body = _plain(study, arrays, "")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    content = buffer.getvalue()
    record = {"schema": SCHEMA, "arrays": hashlib.sha256(content).hexdigest(), **body}
    for old in ("study.json", *_figures(folder)):
        (folder / old).unlink(missing_ok=True)
    files = {
        **figures,
        "study.npz": content,
        "index.html": page(study),
        "study.json": json.dumps(record, indent=1) + "\n",
    }
    for name, file in files.items():
        write_atomically(folder / name, file)
    return folder / "index.html"


def _figures(folder: Path) -> list[str]:
    """The files of the figures of the study in `folder`; none if there is no readable study."""
    try:
        return [f"{picture.name}.png" for picture in load(folder).findings.pictures]
    except EquipoiseError:
        return []


def load(folder: Path) -> Study:
    """Read a study. Raises `EquipoiseError` if there is none, or it is damaged."""
    path, arrays_path = folder / "study.json", folder / "study.npz"
    record = read_data(path, "the record of a study")
    require_kind(record, ["study"], SCHEMA, str(path), "the record of a study")
    try:
        content = read_bytes(arrays_path)
    except OSError as error:
        raise EquipoiseError(f"cannot read {arrays_path}: {reason(error)}; run the study again.") from error
    require(
        record.get("arrays") == hashlib.sha256(content).hexdigest(),
        f"{arrays_path} does not belong to {path.name}: one of the two was changed; run the study again.",
    )
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            body = _restored({k: v for k, v in record.items() if k not in ("schema", "arrays")}, arrays)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise EquipoiseError(f"{path} is damaged ({error}); run the study again.") from error
    require(isinstance(body, Study), f"{path} is damaged: it lacks a field of a study; run the study again.")
    return body


def _plain(value: Any, arrays: dict[str, np.ndarray], name: str) -> Any:
    """`value` as JSON-ready data; its arrays go into `arrays`, named by their path in the record."""
    if isinstance(value, np.ndarray):
        arrays[name] = value
        return {"array": name}
    if is_dataclass(value):
        return {
            "kind": type(value).__name__.lower(),
            **_plain({f.name: getattr(value, f.name) for f in fields(value)}, arrays, name),
        }
    prefix = f"{name}." if name else ""
    if isinstance(value, Mapping):
        return {str(k): _plain(v, arrays, f"{prefix}{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, arrays, f"{prefix}{i}") for i, v in enumerate(value)]
    return value.item() if isinstance(value, np.generic) else value


def _restored(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The inverse of `_plain`; a field that an older record lacks has its default."""
    if isinstance(value, list):
        return [_restored(v, arrays) for v in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"array"}:
        return arrays[value["array"]]
    inner = {k: _restored(v, arrays) for k, v in value.items()}
    cls = _KINDS.get(str(inner.get("kind")))
    if cls is None:
        return inner
    required = {f.name for f in fields(cls) if f.default is f.default_factory is MISSING}
    if not required <= inner.keys() - {"kind"} <= {f.name for f in fields(cls)}:
        return inner  # a mapping of settings with a key of that name
    del inner["kind"]
    return cls(**{k: tuple(v) if k == "extent" else v for k, v in inner.items()})

"""Writing a trained model as a folder that can be given to others."""

import gzip
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import read_bytes, reason, require_writable, write_once
from equipoise.pretrained.cards import card
from equipoise.pretrained.catalogue import EVALUATION, RECORD, WEIGHTS, PublishedModel
from equipoise.results.records import Evaluation, Provenance, Run, digest, load, to_json, weights_error
from equipoise.results.schema import parse

_PLACES = ("--data-root", "--out", "--checkpoint", "--corruptions-root")
"""Options that name places on the machine of a training or an evaluation."""


def publish(
    folder: "Path | str",
    weights: Literal["best", "last"],
    evaluation: Evaluation,
    out: "Path | str",
    *,
    name: str = "",
    licence: str = "other",
    images: "Path | None" = None,
    overwrite: bool = False,
) -> Path:
    """Write a run as a published model to the folder `out`, and return that.

    The records are those of the run in `folder` and its `evaluation`, about its `weights`; places on this machine are
    left out of them, and the model is called `name` (by default as `out`), so that the command of the evaluation, given
    again, has the digest of the record. `images` is the file of the adversarial images of the evaluation, if it has
    some. `licence` goes on the card. Raises `EquipoiseError` if the run cannot be read, its weights are not the
    recorded ones, or `out` holds other files of these names and `overwrite` is False.
    """
    folder, out = Path(folder), Path(out)
    run = load(folder / RECORD)
    if not isinstance(run, Run):
        raise EquipoiseError(f"{folder / RECORD} is not the record of a training run.")
    require(WEIGHTS not in run.weights, f"{folder} is a published model already: copy it as it is.")
    source = f"{weights}.safetensors"
    content = _content(folder / source)
    if run.weights.get(source) != sha256(content).hexdigest():
        raise weights_error(folder, source)
    require(not out.exists() or out.is_dir(), f"--out {out} is a file: expected a directory, which may not exist yet.")
    name = name or out.resolve().name
    run = replace(
        run,
        weights={WEIGHTS: run.weights[source]},
        words=_without_places(run.words),
        provenance=_portable(run.provenance, {}, {}),
        net=_shortened(dict(run.net)),
        method=_shortened(dict(run.method)),
    )
    asked = {"target": name, "weights": "best"} if evaluation.provenance.options else {}
    origin = _portable(evaluation.provenance, asked, {evaluation.target: name})
    evaluation = replace(evaluation, target=name, weights="given", provenance=origin)
    model = PublishedModel(run, evaluation)
    record = to_json(evaluation) | {"digest": digest(evaluation)}
    files = {
        WEIGHTS: content,
        EVALUATION: gzip.compress(json.dumps(record).encode(), mtime=0),
        "README.md": card(model, weights, licence).encode(),
        RECORD: (json.dumps(to_json(run), indent=1) + "\n").encode(),  # last, for without it the folder is no model
    }
    if images is not None:
        files = {images.name: _content(images)} | files
    require_writable(out)
    # Those that are there come first: if one of them is not to be replaced, nothing is written.
    for file in sorted(files, key=lambda file: not (out / file).exists()):
        write_once(out / file, files[file], overwrite)
    return out


def _content(file: Path) -> bytes:
    try:
        return read_bytes(file)
    except OSError as error:
        raise EquipoiseError(f"cannot read {file}: {reason(error)}.") from error


def _portable(origin: Provenance, options: Mapping[str, Any], renamed: Mapping[str, str]) -> Provenance:
    """The provenance without places on this machine, with `options` of another value and words that are `renamed`."""
    words = [renamed.get(word, word) for word in shlex.split(origin.command)]
    kept = asdict(origin)
    kept["command"] = shlex.join(_without_places(_without(words, ("--weights",)) if renamed else words))
    places = {place[2:].replace("-", "_"): None for place in _PLACES if place[2:].replace("-", "_") in origin.options}
    begun = {name: False for name in ("resume", "overwrite") if name in origin.options}
    kept["options"] = _shortened(dict(origin.options) | places | begun | dict(options))
    return parse(Provenance, kept, "its provenance")


def _without_places(words: Sequence[str]) -> list[str]:
    return _shortened(_without(words, _PLACES))


def _without(words: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The words of a command without these flags, which have a value each, and without those that say how to begin."""
    kept, remaining = [], iter(words)
    for word in remaining:
        if word in flags:
            next(remaining, None)
        elif word.partition("=")[0] not in flags and word not in ("--resume", "--overwrite"):
            kept.append(word)
    return kept


def _shortened(value: Any) -> Any:
    """Data, in which of absolute paths the last name is left."""
    if isinstance(value, str):
        return Path(value).name if value.startswith("/") else value
    if isinstance(value, list | tuple):
        return [_shortened(item) for item in value]
    return {key: _shortened(item) for key, item in value.items()} if isinstance(value, dict) else value

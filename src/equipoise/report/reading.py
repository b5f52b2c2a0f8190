"""The contents of a report: run directories, separate evaluation files and scores, read from disk."""

import base64
import json
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.core.errors import EquipoiseError, require
from equipoise.pretrained import EVALUATION, find
from equipoise.report.scored import ModelScore
from equipoise.results.records import Evaluation, Run, Scores, check_weights, load

PICTURES = {
    "manifold": "The data manifold: in each row a test image, its reconstruction, and samples near it.",
    "generator": "The generator of adversarial examples: images, and what it made of them after each epoch.",
}
"""Captions of the pictures that a run may keep, by the NAME of NAME.png."""

_KINDS = ("clean", "judged", "udp", "pgd")
"""Kinds of example images, in the order they are shown."""


@dataclass(frozen=True)
class Samples:
    """The same few images, clean and perturbed, with their predictions."""

    labels: np.ndarray
    """True classes, shape (n,)."""
    images: Mapping[str, np.ndarray]
    """`clean` first, then `judged`, `udp` and `pgd` if present: (n, channels, height, width), in [0, 1]."""
    predictions: Mapping[str, np.ndarray]
    """Predicted classes by the same names, shape (n,)."""
    balls: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    """Norm and radius of the perturbation by the names of the perturbed images, where recorded."""


@dataclass(frozen=True)
class Source:
    """One line of the comparison: a run directory, or a model that was only evaluated."""

    name: str
    """The method, or the evaluated target; unique in a report."""
    path: Path
    """Its file or directory."""
    run: Run | None = None
    """Record of the training; None for a model trained elsewhere."""
    metrics: Sequence[Mapping[str, Any]] = ()
    """One entry per epoch, in order."""
    evaluations: Sequence[tuple[Path, Evaluation]] = ()
    """File and content of each evaluation."""
    samples: Samples | None = None
    """Example images, if the run kept some."""
    scores: Sequence[ModelScore] = ()
    """Its scores, measured by `equipoise score`."""
    pictures: Mapping[str, str] = field(default_factory=dict)
    """Pictures of its manifold and of its generator: PNG data URIs by the name in `PICTURES`."""

    @property
    def classes(self) -> Sequence[str]:
        """Class names, empty if unknown."""
        return [str(name) for name in (self.run.data.get("classes") or ())] if self.run else []


def read(paths: Sequence[Path]) -> list[Source]:
    """Return the sources at `paths`, each once and with a unique name; evaluations and scores of a given run directory
    are part of that run. A path may also name a model that comes with equipoise.

    Raises `EquipoiseError` for no paths at all and for a path that is missing, unreadable, or neither a run directory
    nor an evaluation nor a record of scores.
    """
    require(len(paths) > 0, "a report needs at least one run directory, evaluation or score, got none.")
    unique = list({path.resolve(): path for path in map(find, paths)}.values())
    for path in unique:
        require(path.exists(), f"{path} does not exist; expected a run directory, an evaluation or a score.")
    sources = {path.resolve(): _read_run(path) for path in unique if path.is_dir()}
    for path in (p for p in unique if not p.is_dir()):
        run = sources.get(path.resolve().parent)
        if run is not None and any(file.name == path.name for file, _ in run.evaluations):
            continue
        record = load(path)
        if isinstance(record, Run):
            raise EquipoiseError(f"{path} is a training run, expected an evaluation; give its directory instead.")
        owner = Path(record.target).resolve()
        source = sources.get(owner, Source(record.target, path))
        if isinstance(record, Scores):
            scores = [ModelScore(path, key, record) for key in record.scores]
            sources[owner] = replace(source, scores=(*source.scores, *scores))
        else:
            sources[owner] = replace(source, evaluations=(*source.evaluations, (path, record)))
    return _with_unique_names(list(sources.values()))


def _with_unique_names(sources: Sequence[Source]) -> list[Source]:
    """Add the directory's name to sources of the same name, or the whole path where that is the same too."""
    for suffix in (lambda source: source.path.resolve().name, lambda source: str(source.path.resolve())):
        count = Counter(source.name for source in sources)
        sources = [replace(s, name=f"{s.name} ({suffix(s)})") if count[s.name] > 1 else s for s in sources]
    return list(sources)


def _read_run(path: Path) -> Source:
    file = path / "run.json"
    require(
        file.is_file(), f"{path} is not a run directory: it has no run.json; give one that `equipoise train` wrote."
    )
    run = load(file)
    if not isinstance(run, Run):
        raise EquipoiseError(f"{file} is no training run, expected one; give the file itself instead.")
    if run.status != "running":
        check_weights(path, run)
    files = sorted([*path.glob("evaluation*.json"), *path.glob(EVALUATION)])
    records = [(file, load(file)) for file in files]
    evaluations = [(file, record) for file, record in records if isinstance(record, Evaluation)]
    name = str(run.method.get("name", path.resolve().name))
    return Source(
        name,
        path,
        run,
        read_metrics(path / "metrics.jsonl"),
        sorted(evaluations, key=lambda named: named[1].weights),  # best before last
        _read_samples(path / "samples.npz"),
        pictures={name: uri for name in PICTURES if (uri := _read_png(path / f"{name}.png")) is not None},
    )


def _read_png(path: Path) -> str | None:
    """A picture as a data URI; None if there is no such file. Raises `EquipoiseError` if it is no PNG."""
    if not path.exists():
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EquipoiseError(f"cannot read {path}: {error.strerror}.") from error
    require(content.startswith(b"\x89PNG\r\n"), f"{path} is not a PNG picture.")
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _numbers(*values: Any) -> bool:
    """Whether all are finite numbers."""
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def read_metrics(path: Path) -> tuple[Mapping[str, Any], ...]:
    """Return the epochs of a `metrics.jsonl`, by number; none if the file is missing.

    A killed run may leave a last line without a line feed: it is dropped if it does not parse. Any other line that is
    not an object raises `EquipoiseError`. Of an epoch that occurs twice (after a resume), the later line counts.
    """
    try:
        lines = path.read_bytes().split(b"\n") if path.exists() else []
    except OSError as error:
        raise EquipoiseError(f"cannot read {path}: {error.strerror}.") from error
    epochs: dict[float, Mapping[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if isinstance(entry, Mapping) and _numbers(entry.get("epoch", number)):
            epochs[entry.get("epoch", number)] = {"epoch": number, **entry}
        elif number < len(lines):
            raise EquipoiseError(
                f"line {number} of {path} is not a JSON object with a numeric epoch; the file is damaged."
            )
    return tuple(epochs[epoch] for epoch in sorted(epochs))


def _read_samples(path: Path) -> Samples | None:
    if not path.exists():
        return None
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise EquipoiseError(f"cannot read {path}: it is not a whole .npz file of arrays ({error}).") from error
    kinds = [kind for kind in _KINDS if f"{kind}_prediction" in arrays and kind in arrays]
    shape = arrays["clean"].shape if "clean" in kinds else ()
    per_sample = [arrays.get("labels"), *(arrays[f"{kind}_prediction"] for kind in kinds)]
    valid = (
        len(shape) == 4
        and min(shape) > 0
        and shape[1] in (1, 3)
        and all(arrays[kind].shape == shape and np.issubdtype(arrays[kind].dtype, np.floating) for kind in kinds)
        and all(a is not None and a.shape == shape[:1] and np.issubdtype(a.dtype, np.integer) for a in per_sample)
    )
    require(
        valid,
        f"{path} does not hold images: expected clean, udp and pgd of one shape (n, 1 or 3 channels, height, width) "
        "with labels and predictions of length n.",
    )
    images = {kind: np.nan_to_num(arrays[kind].astype(np.float64)).clip(0, 1) for kind in kinds}
    balls = {kind: ball for kind in kinds if (ball := _ball(arrays, kind)) is not None}
    return Samples(arrays["labels"], images, {kind: arrays[f"{kind}_prediction"] for kind in kinds}, balls)


def _ball(arrays: Mapping[str, np.ndarray], kind: str) -> tuple[str, float] | None:
    """Norm and radius of that kind of images, if recorded."""
    norm, eps = arrays.get(f"{kind}_norm"), arrays.get(f"{kind}_eps")
    if norm is None or eps is None or norm.dtype.kind != "U" or eps.dtype.kind != "f" or norm.ndim or eps.ndim:
        return None
    return str(norm), float(eps)

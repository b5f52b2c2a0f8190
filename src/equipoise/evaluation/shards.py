"""Shards of an evaluation, computed separately, and the record into which they are merged."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from equipoise.core.errors import EquipoiseError, require
from equipoise.core.locks import locked
from equipoise.evaluation.journal import images_of, joined_points, pack_points, read_points, save_points
from equipoise.evaluation.proofs import check_proofs
from equipoise.evaluation.requests import asked_for, finished
from equipoise.evaluation.summaries import WORST, concatenated, joined, reordered, result_warnings, with_worst_cases
from equipoise.masking.result_checks import check_results
from equipoise.results.differences import with_new_names
from equipoise.results.provenance import recommanded
from equipoise.results.records import Evaluation, ResultWarning, load, save

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Every `count`-th block of an evaluation, from the `number`-th on (counted from 1)."""

    number: int = 1
    """Number of the shard, from 1."""
    count: int = 1

    def __post_init__(self) -> None:
        require(
            1 <= self.number <= self.count,
            f"shard {self.number}/{self.count}: expected i/n with i from 1 to n, such as 1/4.",
        )

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Return the shard that `i/n` names. Raises `EquipoiseError` for anything else."""
        match = re.fullmatch("([0-9]{1,18})/([0-9]{1,18})", text)
        if match is None:
            raise EquipoiseError(f"shard {text!r:.80}: expected i/n with i from 1 to n, such as 1/4.")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, blocks: Sequence[T]) -> list[tuple[int, T]]:
        """Return the blocks of this shard, each with its number in the whole. Raises `EquipoiseError` if empty."""
        chosen = list(enumerate(blocks))[self.number - 1 :: self.count]
        require(
            len(chosen) > 0,
            f"shard {self} is empty: the samples make {len(blocks)} blocks; use a smaller batch size or fewer shards.",
        )
        return chosen


WHOLE = Shard()
_MAX_NAMED = 20  # missing shards in a message


def merge(
    paths: Sequence["Path | str"], out: "Path | str", command: str | None = None, *, overwrite: bool = False
) -> Evaluation:
    """Merge the records of all shards, and their images, into the record that one process would have written to `out`.

    `command` is the command stored in the record, by default that of the first shard. An existing record at `out` that
    answers the same request is returned. Raises `EquipoiseError` if a file is not the record of a shard with its
    images, if they are not of one evaluation, if a shard is missing or given twice, if `out` would overwrite one of
    them, or if another record is there and `overwrite` is not set.
    """
    with locked(out):
        return merged(paths, out, command, overwrite)


def merged(paths: Sequence["Path | str"], out: "Path | str", command: str | None, overwrite: bool) -> Evaluation:
    """`merge` for a caller that holds the lock of `out`."""
    require(len(paths) > 0, "there is nothing to merge: give the records of all shards.")
    records = [_shard_at(path) for path in paths]
    images = _images_at(paths, records)
    for path in (*paths, *images):
        require(
            Path(path).resolve() not in (Path(out).resolve(), images_of(out).resolve()),
            f"merging into {out} would overwrite {path}, a part of it: choose another place with --out.",
        )
    shards = [Shard.parse(record.data["shard"]) for record in records]
    first = records[0]
    for path, record in zip(paths, records, strict=True):
        identity = _identity(record)
        differing = [name for name, value in _identity(first).items() if identity[name] != value]
        require(not differing, f"{path} is of another evaluation than {paths[0]}: other {', '.join(differing)}.")
    given = {shard.number for shard in shards}
    missing = [str(n) for n in islice((n for n in range(1, shards[0].count + 1) if n not in given), _MAX_NAMED + 1)]
    more = ", ..." if len(missing) > _MAX_NAMED else ""
    require(not missing, f"shards {', '.join(missing[:_MAX_NAMED])}{more} of {shards[0].count} are missing.")
    require(len(records) == shards[0].count, "a shard is given twice.")

    index = [i for record in records for i in record.index]
    twice = [i for i, count in Counter(index).items() if count > 1]
    require(
        not twice, f"sample {min(twice, default=None)} is in two of the shards: they were not made with one batch size."
    )
    expected = first.data.get("n")
    require(
        sorted(index) == list(range(len(index))) and len(index) == expected,
        f"the shards hold {len(index)} samples, the evaluation has {expected}: they were not made with one batch size.",
    )
    order = sorted(range(len(index)), key=index.__getitem__)
    attacked = joined([[r for r in record.results if r.attack != WORST] for record in records])
    results = with_worst_cases([reordered(result, order) for result in attacked])
    corruptions = _whole([record.corruptions for record in records], order)
    certified = _whole([record.certified for record in records], order)
    flags = dict.fromkeys(flag for record in records for flag in record.flags if flag not in _derived_flags(record))
    whole = replace(
        first,
        data={key: value for key, value in first.data.items() if key != "shard"},
        results=results,
        warnings=result_warnings(results),
        flags=[*flags, *check_results(results), *check_proofs(results, certified)],
        index=sorted(index),
        images={},
        corruptions=corruptions,
        certified=certified,
        provenance=first.provenance if command is None else recommanded(first.provenance, command),
    )
    points = [(read_points(file), record.index) for file, record in zip(images, records, strict=False)]
    packed = pack_points(joined_points(points)) if images else None
    before = finished(out, asked_for(whole) | {"images": bool(images)}, overwrite, packed)
    if before is not None:
        return before
    if packed is not None:
        whole = replace(whole, images=save_points(out, packed))
    save(out, whole)
    return whole


def _whole(shards: Sequence[Sequence[Any]], order: Sequence[int]) -> list[Any]:
    """The results of all shards, with the samples in order."""
    return [reordered(concatenated(parts), order) for parts in zip(*shards, strict=True)]


def _derived_flags(record: Evaluation) -> list[ResultWarning]:
    """The flags that follow from the outcomes of the record itself."""
    return [*check_results(record.results), *check_proofs(record.results, record.certified)]


def _shard_at(path: "Path | str") -> Evaluation:
    record = load(path)
    if not isinstance(record, Evaluation) or not isinstance(record.data, dict) or "shard" not in record.data:
        raise EquipoiseError(f"{path} is not the record of a shard: expected what evaluate --shard i/n wrote.")
    shard = record.data["shard"]
    require(isinstance(shard, str), f"{path} is damaged: its shard is {shard!r}; expected i/n, such as '1/4'.")
    require(
        all(result.n == len(record.index) for result in record.results),
        f"{path} is damaged: its index does not hold one position per sample.",
    )
    return record


def _images_at(paths: Sequence["Path | str"], records: Sequence[Evaluation]) -> list[Path]:
    """The image files of all shards, which must be unchanged; none if the shards were made without images."""
    without = [str(path) for path, record in zip(paths, records, strict=True) if not record.images]
    if len(without) == len(records):
        return []
    require(not without, f"{', '.join(without)}: made without images, the other shards with: evaluate them alike.")
    files = []
    for path, record in zip(paths, records, strict=True):
        recorded = record.images.get("file")
        file = Path(path).with_name(Path(str(recorded)).name or "?")
        require(file.is_file(), f"{path} says that its images are in {recorded}, which is not beside it.")
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        require(
            sha256 == record.images.get("sha256"),
            f"{file} was changed since {path} was written: its SHA-256 is {sha256}; evaluate that shard again.",
        )
        files.append(file)
    return files


def _identity(record: Evaluation) -> dict[str, object]:
    return {
        "data": {k: v for k, v in record.data.items() if k != "shard"},
        "number of shards": record.data["shard"].split("/")[1],
        "attacks": [
            (r.attack, r.norm, r.eps, with_new_names({k: v for k, v in r.settings.items() if k != "refused"}))
            for r in record.results
        ],
        "corruptions": [(r.corruption, r.source) for r in record.corruptions],
        "certificates": [(r.method, r.norm, r.eps) for r in record.certified],
        "model": record.model,
        "weights": record.weights,
        "seed": record.provenance.seed,
        "target": record.target,
        "versions": record.provenance.versions,
        "device": record.provenance.device,
        "threads": record.provenance.threads,
    }

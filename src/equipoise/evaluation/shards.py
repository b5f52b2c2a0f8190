"""Parts of an evaluation that are computed apart, and the record that they make together."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

from equipoise.core.errors import EquipoiseError, require
from equipoise.core.locks import locked
from equipoise.evaluation.corrupted import joined_corruptions
from equipoise.evaluation.journal import images_of, joined_points, pack_points, read_points, save_points
from equipoise.evaluation.requests import asked_for, finished
from equipoise.evaluation.summaries import PER_SAMPLE, WORST, joined, result_warnings, with_worst_cases
from equipoise.masking.result_checks import check_results
from equipoise.results.provenance import recommanded
from equipoise.results.records import AttackRecord, CorruptionResult, Evaluation, load, save

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Every `count`-th block of an evaluation, from the `number`-th on (counted from 1)."""

    number: int = 1
    """Which one."""
    count: int = 1
    """Of how many."""

    def __post_init__(self) -> None:
        require(
            1 <= self.number <= self.count,
            f"shard {self.number}/{self.count}: expected i/n with i from 1 to n, such as 1/4.",
        )

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """The shard that `i/n` names. Raises `EquipoiseError` for anything else."""
        match = re.fullmatch(r"(\d{1,18})/(\d{1,18})", text)
        if match is None:
            raise EquipoiseError(f"shard {text!r:.80}: expected i/n with i from 1 to n, such as 1/4.")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, blocks: Sequence[T]) -> list[tuple[int, T]]:
        """The blocks of this shard, each with its number in the whole. Raises `EquipoiseError` if there are none."""
        own = list(enumerate(blocks))[self.number - 1 :: self.count]
        require(
            len(own) > 0,
            f"shard {self} is empty: the samples make {len(blocks)} blocks; use a smaller batch size or fewer shards.",
        )
        return own


WHOLE = Shard()
_MOST_NAMED = 20  # missing shards in a message


def merge(
    paths: Sequence["Path | str"], out: "Path | str", command: str | None = None, *, overwrite: bool = False
) -> Evaluation:
    """Write to `out` the record, and its images, that one process would have written from those of all its shards.

    `command` is what the record says it was made by, by default what made the first shard. A record at `out` that
    answers the same request stays as it is, and is returned. Raises `EquipoiseError` if a file is not the record of a
    shard with its images, if they are not of one evaluation, if a shard is missing or given twice, if `out` would
    overwrite one of them, or if another record is there and `overwrite` is not set.
    """
    with locked(out):
        return merged(paths, out, command, overwrite)


def merged(paths: Sequence["Path | str"], out: "Path | str", command: str | None, overwrite: bool) -> Evaluation:
    """`merge` by somebody who holds the lock of `out`."""
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
        mine = _identity(record)
        changed = [name for name, value in _identity(first).items() if mine[name] != value]
        require(not changed, f"{path} is of another evaluation than {paths[0]}: other {', '.join(changed)}.")
    given = {shard.number for shard in shards}
    missing = [str(n) for n in islice((n for n in range(1, shards[0].count + 1) if n not in given), _MOST_NAMED + 1)]
    more = ", ..." if len(missing) > _MOST_NAMED else ""
    require(not missing, f"shards {', '.join(missing[:_MOST_NAMED])}{more} of {shards[0].count} are missing.")
    require(len(records) == shards[0].count, "a shard is given twice.")

    index = [place for record in records for place in record.index]
    twice = [place for place, times in Counter(index).items() if times > 1]
    require(
        not twice, f"sample {min(twice, default=None)} is in two of the shards: they were not made with one batch size."
    )
    expected = first.data.get("n")
    require(
        sorted(index) == list(range(len(index))) and len(index) == expected,
        f"the shards hold {len(index)} samples, the evaluation has {expected}: they were not made with one batch size.",
    )
    order = sorted(range(len(index)), key=index.__getitem__)
    parts = [[r for r in record.results if r.attack != WORST] for record in records]
    results = with_worst_cases([_ordered(of_attack, order) for of_attack in zip(*parts, strict=True)])
    doubts = dict.fromkeys(f for record in records for f in record.flags if f not in check_results(record.results))
    whole = replace(
        first,
        data={key: value for key, value in first.data.items() if key != "shard"},
        results=results,
        warnings=result_warnings(results),
        flags=[*doubts, *check_results(results)],
        index=sorted(index),
        images={},
        corruptions=[_in_order(r, order) for r in joined_corruptions([record.corruptions for record in records])],
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


def _shard_at(path: "Path | str") -> Evaluation:
    """The record of a shard."""
    record = load(path)
    if not isinstance(record, Evaluation) or not isinstance(record.data, dict) or "shard" not in record.data:
        raise EquipoiseError(f"{path} is not the record of a shard: expected what evaluate --shard i/n wrote.")
    shard = record.data["shard"]
    require(isinstance(shard, str), f"{path} is damaged: its shard is {shard!r}; expected i/n, such as '1/4'.")
    require(
        all(result.n == len(record.index) for result in record.results),
        f"{path} is damaged: its index does not hold one place per sample.",
    )
    return record


def _images_at(paths: Sequence["Path | str"], records: Sequence[Evaluation]) -> list[Path]:
    """The files of images of all shards, as they were written; none if the shards were made without."""
    without = [str(path) for path, record in zip(paths, records, strict=True) if not record.images]
    if len(without) == len(records):
        return []
    require(not without, f"{', '.join(without)}: made without images, the other shards with: evaluate them alike.")
    files = []
    for path, record in zip(paths, records, strict=True):
        told = record.images.get("file")
        file = Path(path).with_name(Path(str(told)).name or "?")
        require(file.is_file(), f"{path} says that its images are in {told}, which is not beside it.")
        now = hashlib.sha256(file.read_bytes()).hexdigest()
        require(
            now == record.images.get("sha256"),
            f"{file} was changed since {path} was written: its SHA-256 is {now}; evaluate that shard again.",
        )
        files.append(file)
    return files


def _identity(record: Evaluation) -> dict[str, object]:
    return {
        "data": {k: v for k, v in record.data.items() if k != "shard"},
        "number of shards": record.data["shard"].split("/")[1],
        "attacks": [
            (r.attack, r.norm, r.eps, {k: v for k, v in r.settings.items() if k != "refused"}) for r in record.results
        ],
        "corruptions": [(r.corruption, r.source) for r in record.corruptions],
        "model": record.model,
        "weights": record.weights,
        "seed": record.provenance.seed,
        "target": record.target,
        "versions": record.provenance.versions,
        "device": record.provenance.device,
        "threads": record.provenance.threads,
    }


def _in_order(result: CorruptionResult, order: Sequence[int]) -> CorruptionResult:
    """The result on all shards, in the order of the samples."""
    correct, prediction = ([column[i] for i in order] for column in (result.correct, result.prediction))
    return replace(result, correct=correct, prediction=prediction)


def _ordered(parts: Sequence[AttackRecord], order: Sequence[int]) -> AttackRecord:
    """The results of one attack on all shards, in the order of the samples."""
    (whole,) = joined([[part] for part in parts])
    columns = {name: list(getattr(whole, name)) for name in PER_SAMPLE}
    return replace(
        whole, **{name: [column[i] for i in order] if column else column for name, column in columns.items()}
    )

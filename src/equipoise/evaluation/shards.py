"""Parts of an evaluation that are computed apart, and the record that they make together."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from equipoise.errors import EquipoiseError, require
from equipoise.evaluation.evaluate import WORST, cautions, joined, with_worst_cases
from equipoise.evaluation.flags import judge
from equipoise.evaluation.journal import joined_points, read_points, save_points
from equipoise.records import AttackResult, Evaluation, load, save

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
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None:
            raise EquipoiseError(f"shard {text!r}: expected i/n with i from 1 to n, such as 1/4.")
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


def merge(paths: Sequence["Path | str"], out: "Path | str") -> Evaluation:
    """Write to `out` the record, and its images, that one process would have written from those of all its shards.

    Raises `EquipoiseError` if a file is no evaluation, if they are not of one evaluation, or if a shard is missing or
    given twice.
    """
    require(len(paths) > 0, "there is nothing to merge: give the records of all shards.")
    records: list[Evaluation] = []
    for path in paths:
        record = load(path)
        if not isinstance(record, Evaluation) or "shard" not in record.data:
            raise EquipoiseError(f"{path} is not the record of a shard: expected what evaluate --shard i/n wrote.")
        records.append(record)
    shards = [Shard.parse(record.data["shard"]) for record in records]
    first = records[0]
    for path, record in zip(paths, records, strict=True):
        mine = _identity(record)
        changed = [name for name, value in _identity(first).items() if mine[name] != value]
        require(not changed, f"{path} is of another evaluation than {paths[0]}: other {', '.join(changed)}.")
    missing = sorted(set(range(1, shards[0].count + 1)) - {shard.number for shard in shards})
    require(not missing, f"shards {', '.join(map(str, missing))} of {shards[0].count} are missing.")
    require(len(records) == shards[0].count, "a shard is given twice.")

    index = [place for record in records for place in record.index]
    order = sorted(range(len(index)), key=index.__getitem__)
    parts = [[r for r in record.results if r.attack != WORST] for record in records]
    results = with_worst_cases([_ordered(of_attack, order) for of_attack in zip(*parts, strict=True)])
    own = {flag.name for record in records for flag in judge(record.results)}
    whole = replace(
        first,
        data={key: value for key, value in first.data.items() if key != "shard"},
        results=results,
        warnings=cautions(results),
        flags=[flag for flag in first.flags if flag.name not in own] + judge(results),
        index=sorted(index),
        images={},
    )
    if all(record.images for record in records):
        rank = {place: row for row, place in enumerate(whole.index)}
        points = [read_points(Path(path).with_name(r.images["file"])) for path, r in zip(paths, records, strict=True)]
        rows = [[rank[place] for place in record.index] for record in records]
        whole = replace(whole, images=save_points(out, joined_points(list(zip(points, rows, strict=True)))))
    save(out, whole)
    return whole


def _identity(record: Evaluation) -> dict[str, object]:
    return {
        "data": {k: v for k, v in record.data.items() if k != "shard"},
        "number of shards": record.data["shard"].split("/")[1],
        "attacks": [
            (r.attack, r.norm, r.eps, {k: v for k, v in r.settings.items() if k != "refused"}) for r in record.results
        ],
        "weights": record.model,
        "seed": record.provenance.seed,
        "target": record.target,
    }


def _ordered(parts: Sequence[AttackResult], order: Sequence[int]) -> AttackResult:
    """The results of one attack on all shards, in the order of the samples."""
    (whole,) = joined([[part] for part in parts])
    lists = ("correct", "distance", "prediction", "winner", "iteration", "queries")
    columns = {name: list(getattr(whole, name)) for name in lists}
    return replace(
        whole, **{name: [column[i] for i in order] if column else column for name, column in columns.items()}
    )

"""The tables of accuracy on corrupted images: a line per corruption, a column per model (F, Table 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from equipoise.results.records import AttackRecord, CorruptionResult, Evaluation, MeanResult

Result = AttackRecord | CorruptionResult | MeanResult
"""Anything with an accuracy, its interval and its n."""


@dataclass(frozen=True)
class Table:
    """Models measured on the same corrupted images."""

    data: Mapping[str, Any]
    """Of the test set."""
    origin: str
    """Where the images come from, in words."""
    columns: Sequence[Any]
    """The rows of the accuracy table that these models have there, for their names."""
    evaluations: Sequence[Evaluation]
    """Of each column."""

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.evaluations[0].corruptions[0].n

    @property
    def lines(self) -> list[tuple[str, Sequence[Result]]]:
        """Name and results of each corruption, and their mean at last."""
        by_corruption = zip(*(e.corruptions for e in self.evaluations), strict=True)
        means = [MeanResult(e.corruptions) for e in self.evaluations]
        return [
            *((results[0].corruption.replace("_", " "), results) for results in by_corruption),
            ("mean", means),
        ]


def tables(found: Sequence[tuple[Any, Evaluation]]) -> list[Table]:
    """The tables of what was measured on corrupted images, one for each set of them: pairs of a model's row in the
    accuracy table and an evaluation. A row is listed once in a table.
    """
    together: dict[tuple[Any, ...], list[tuple[Any, Evaluation]]] = {}
    for row, evaluation in found:
        if evaluation.corruptions:
            entries = together.setdefault(_images(evaluation), [])
            if all(row is not other for other, _ in entries):
                entries.append((row, evaluation))
    return [
        Table(e[0][1].data, _origin(e[0][1]), [row for row, _ in e], [evaluation for _, evaluation in e])
        for e in together.values()
    ]


def _images(evaluation: Evaluation) -> tuple[Any, ...]:
    """What makes the corrupted images of two evaluations the same."""
    told = tuple(str(evaluation.data.get(part, "")) for part in ("name", "sha256", "split", "shard", "n"))
    return *told, _origin(evaluation), tuple((r.corruption, r.source) for r in evaluation.corruptions)


def _origin(evaluation: Evaluation) -> str:
    published = any(result.source for result in evaluation.corruptions)
    return "the published images" if published else f"images made from seed {evaluation.provenance.seed}"

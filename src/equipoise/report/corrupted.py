"""The tables of accuracy on corrupted images: a line per corruption, a column per model (F, Table 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from equipoise.results.records import AttackRecord, CorruptionResult, Evaluation, MeanResult
from equipoise.results.seeds import SeedMean

Result = AttackRecord | CorruptionResult | MeanResult | SeedMean
"""Anything with an accuracy, its interval and its n."""


@dataclass(frozen=True)
class CorruptionTable:
    """Models measured on the same corrupted images."""

    data: Mapping[str, Any]
    origin: str
    """Where the images come from, in words."""
    columns: Sequence[Any]
    """The rows of these models in the accuracy table, for their names."""
    evaluations: Sequence[Evaluation]

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.evaluations[0].corruptions[0].n

    @property
    def lines(self) -> list[tuple[str, Sequence[Result]]]:
        """Name and results of each corruption, over its severities, and at the end their mean."""
        means = [MeanResult(e.corruptions) for e in self.evaluations]
        families = [mean.by_corruption for mean in means]
        named = [(name.replace("_", " "), [family[name] for family in families]) for name in families[0]]
        return [*named, ("mean", means)]


def tables(evaluations: Sequence[tuple[Any, Evaluation]]) -> list[CorruptionTable]:
    """Return one table for each set of corrupted images, of pairs of a model's row in the accuracy table and an
    evaluation. A row is listed once in a table.
    """
    by_images: dict[tuple[Any, ...], list[tuple[Any, Evaluation]]] = {}
    for row, evaluation in evaluations:
        if evaluation.corruptions:
            entries = by_images.setdefault(_images(evaluation), [])
            if all(row is not other for other, _ in entries):
                entries.append((row, evaluation))
    tables = []
    for entries in by_images.values():
        rows, measured = zip(*entries, strict=True)
        tables.append(CorruptionTable(measured[0].data, _origin(measured[0]), rows, measured))
    return tables


def _images(evaluation: Evaluation) -> tuple[Any, ...]:
    """What is the same for two evaluations on the same corrupted images."""
    data = tuple(str(evaluation.data.get(key, "")) for key in ("name", "sha256", "split", "shard", "n"))
    return *data, _origin(evaluation), tuple((r.corruption, r.source) for r in evaluation.corruptions)


def _origin(evaluation: Evaluation) -> str:
    published = any(result.source for result in evaluation.corruptions)
    return "the published images" if published else f"images made from seed {evaluation.provenance.seed}"

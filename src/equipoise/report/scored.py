"""Scores in a report: a table for each score and each test set, with a line per model, and their curves."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.results.records import ScoreResult, Scores


@dataclass(frozen=True)
class Scored:
    """One score of one model, as its record says."""

    file: Path
    """Where it was read."""
    key: str
    """What the record calls it, such as `r2`."""
    record: Scores
    """The whole record."""

    @property
    def result(self) -> ScoreResult:
        """The score itself."""
        return self.record.scores[self.key]

    @property
    def name(self) -> str:
        """What to call it."""
        return str(self.result.settings.get("name", self.key))

    @property
    def band(self) -> Sequence[tuple[float, float]]:
        """95 % intervals of the curve."""
        low, high = self.result.curve.interval
        return list(zip(low, high, strict=True))


@dataclass(frozen=True)
class Table:
    """Models under one score on one test set."""

    data: Mapping[str, Any]
    """Of the test set."""
    settings: Mapping[str, Any]
    """Of the score."""
    lines: Sequence[tuple[Any, Scored]]
    """A model, in whatever way the report names it, and one of its scores; a certified one after that of attacks."""

    @property
    def name(self) -> str:
        """The score."""
        return str(self.settings.get("name", "score"))

    @property
    def curves(self) -> Sequence[tuple[Any, Scored]]:
        """The lines whose curves are shares: of samples, or of the points near them."""
        return [
            line
            for line in self.lines
            if min(line[1].result.curve.value) >= 0 and max(line[1].result.curve.value) <= 1 + 1e-9
        ]


def tables(found: Sequence[tuple[Any, Scored]]) -> list[Table]:
    """A table for each score and each test set, of pairs of a model and a score. The scores of one record stay
    together: they bound each other.
    """
    first: dict[Path, Scored] = {}
    together: dict[str, list[tuple[Any, Scored]]] = {}
    for model, scored in found:
        leader = first.setdefault(scored.file, scored)
        test_set = [str(leader.record.data.get(part, "")) for part in ("name", "sha256", "split")]
        together.setdefault(json.dumps([test_set, leader.result.settings], sort_keys=True), []).append((model, scored))
    return [Table(e[0][1].record.data, first[e[0][1].file].result.settings, e) for e in together.values()]

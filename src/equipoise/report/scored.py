"""Scores in a report: a table for each score and each test set, with a line per model, and their curves."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.results.records import ScoreResult, Scores


@dataclass(frozen=True)
class ModelScore:
    """One score of one model, from its record."""

    file: Path
    """Where it was read."""
    key: str
    """What the record calls it, such as `r2`."""
    record: Scores

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
class ScoreTable:
    """Models under one score on one test set."""

    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    lines: Sequence[tuple[Any, ModelScore]]
    """A model, as the report names it, and one of its scores; a certified one after that of attacks."""

    @property
    def name(self) -> str:
        """The score."""
        return str(self.settings.get("name", "score"))

    @property
    def curves(self) -> Sequence[tuple[Any, ModelScore]]:
        """The lines whose curves are shares: of samples, or of the points near them."""
        values = [score.result.curve.value for _, score in self.lines]
        return [line for line, v in zip(self.lines, values, strict=True) if min(v) >= 0 and max(v) <= 1 + 1e-9]


def tables(scores: Sequence[tuple[Any, ModelScore]]) -> list[ScoreTable]:
    """Return a table for each score and each test set, of pairs of a model and a score. The scores of one record stay
    together: they bound each other.
    """
    first: dict[Path, ModelScore] = {}
    groups: dict[str, list[tuple[Any, ModelScore]]] = {}
    for model, score in scores:
        leader = first.setdefault(score.file, score)
        test_set = [str(leader.record.data.get(key, "")) for key in ("name", "sha256", "split")]
        groups.setdefault(json.dumps([test_set, leader.result.settings], sort_keys=True), []).append((model, score))
    leaders = [first[lines[0][1].file] for lines in groups.values()]
    return [
        ScoreTable(leader.record.data, leader.result.settings, lines)
        for leader, lines in zip(leaders, groups.values(), strict=True)
    ]

"""What each part of a composite attack did, from the per-sample outcomes of an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median

from equipoise.results.records import AttackRecord, Evaluation
from equipoise.results.statistics import wilson

CLEAN = "clean"


@dataclass(frozen=True)
class Stage:
    """One part of a composite attack at one radius, or, before the first, the model without an attack."""

    name: str
    """The part, or `clean`."""
    fooled: int
    """Samples that fell to it."""
    left: int
    """Samples that are right after it and everything before it."""
    n: int
    """All samples."""
    iteration: float | None
    """Median of the steps after which it fooled; None where it fooled nobody or nothing was recorded."""
    queries: float | None
    """Median of the queries spent on the samples it fooled, those of the parts before it included."""

    @property
    def accuracy(self) -> float:
        """Share of samples left, in [0, 1]."""
        return self.left / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `accuracy`."""
        return wilson(self.left, self.n)


def composites(evaluation: Evaluation) -> list[list[AttackRecord]]:
    """The composite attacks that say who fooled each sample: one list per attack and norm, by radius."""
    found: dict[tuple[str, str], list[AttackRecord]] = {}
    for result in evaluation.results:
        if len(_parts(result)) > 1 and len(result.winner) == result.n:
            found.setdefault((result.attack, result.norm), []).append(result)
    return [sorted(results, key=lambda r: r.eps) for results in found.values()]


def stages(result: AttackRecord) -> list[Stage]:
    """Clean accuracy, then the parts of a composite attack in the order in which they ran."""
    names = [CLEAN, *_parts(result)]
    won = [[i for i, winner in enumerate(result.winner) if winner == name] for name in names]
    fallen = accumulate(map(len, won))
    return [
        Stage(
            name,
            len(rows),
            result.n - gone,
            result.n,
            None if name == CLEAN else _median(result.iteration, rows),
            None if name == CLEAN else _median(result.queries, rows),
        )
        for name, rows, gone in zip(names, won, fallen, strict=True)
    ]


def descent(result: AttackRecord) -> tuple[list[int], list[float]] | None:
    """Robust accuracy against the queries spent on each sample: where it steps down, and what is left from there.

    Begins with the first query and ends with the most that any sample took. None without recorded queries.
    """
    if len(result.queries) != result.n:
        return None
    spent = sorted(q for q, right in zip(result.queries, result.correct, strict=True) if not right and q > 1)
    at_once = sum(q <= 1 and not right for q, right in zip(result.queries, result.correct, strict=True))
    left = [result.n - at_once - fallen for fallen in range(len(spent) + 1)]
    places = [1, *spent, max(1, *result.queries)]
    return places, [count / result.n for count in [*left, left[-1]]]


def _parts(result: AttackRecord) -> list[str]:
    parts = result.settings.get("parts")
    return [str(p.get("name")) for p in parts if isinstance(p, Mapping)] if isinstance(parts, list | tuple) else []


def _median(values: Sequence[int | None], rows: Sequence[int]) -> float | None:
    known = [v for row in rows if row < len(values) and (v := values[row]) is not None]
    return median(known) if known else None

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
    """Number of samples it fooled."""
    remaining: int
    """Number of samples still classified correctly after it."""
    n: int
    iteration: float | None
    """Median iteration of its successes; None without any, or where none was recorded."""
    queries: float | None
    """Median number of queries of the samples it fooled, including those of the parts before it."""

    @property
    def accuracy(self) -> float:
        """Share of samples remaining, in [0, 1]."""
        return self.remaining / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `accuracy`."""
        return wilson(self.remaining, self.n)


def composites(evaluation: Evaluation) -> list[list[AttackRecord]]:
    """Return the composite attacks that record who fooled each sample: one list per attack and norm, by radius."""
    attacks: dict[tuple[str, str], list[AttackRecord]] = {}
    for result in evaluation.results:
        if len(_parts(result)) > 1 and len(result.winner) == result.n:
            attacks.setdefault((result.attack, result.norm), []).append(result)
    return [sorted(results, key=lambda r: r.eps) for results in attacks.values()]


def stages(result: AttackRecord) -> list[Stage]:
    """Return clean accuracy, then the parts of a composite attack in the order in which they ran."""
    names = [CLEAN, *_parts(result)]
    fooled = [[i for i, winner in enumerate(result.winner) if winner == name] for name in names]
    return [
        Stage(
            name,
            len(samples),
            result.n - total,
            result.n,
            None if name == CLEAN else _median(result.iteration, samples),
            None if name == CLEAN else _median(result.queries, samples),
        )
        for name, samples, total in zip(names, fooled, accumulate(map(len, fooled)), strict=True)
    ]


def descent(result: AttackRecord) -> tuple[list[int], list[float]] | None:
    """Return robust accuracy against the queries per sample: where it steps down, and its value from there.

    Begins with the first query and ends with the largest number of any sample. None without recorded queries.
    """
    if len(result.queries) != result.n:
        return None
    fooling = [q for q, correct in zip(result.queries, result.correct, strict=True) if not correct]
    steps = sorted(q for q in fooling if q > 1)
    remaining = [result.n - (len(fooling) - len(steps)) - fooled for fooled in range(len(steps) + 1)]
    queries = [1, *steps, max(1, *result.queries)]
    return queries, [count / result.n for count in [*remaining, remaining[-1]]]


def _parts(result: AttackRecord) -> list[str]:
    parts = result.settings.get("parts")
    return [str(p.get("name")) for p in parts if isinstance(p, Mapping)] if isinstance(parts, list | tuple) else []


def _median(values: Sequence[int | None], samples: Sequence[int]) -> float | None:
    recorded = [value for i in samples if i < len(values) and (value := values[i]) is not None]
    return median(recorded) if recorded else None

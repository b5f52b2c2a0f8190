"""What is certain of robust accuracy: at least what is certified, at most what withstood the attacks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from equipoise.results.outcomes import CertifiedResult
from equipoise.results.records import AttackRecord, Evaluation


@dataclass(frozen=True)
class Bracket:
    """`certified <= true <= attacked` in one ball, on the samples of one evaluation."""

    clean: AttackRecord
    attacked: AttackRecord
    """The attack, or the worst case of several, that leaves least."""
    certified: CertifiedResult


@dataclass(frozen=True)
class BracketTable:
    """The brackets of all models that have one in a ball."""

    data: Mapping[str, Any]
    ball: tuple[str, float]
    """Norm and radius."""
    lines: Sequence[tuple[Any, Bracket]]
    """A model's row in the accuracy table, and its bracket."""


def brackets(evaluation: Evaluation) -> dict[tuple[str, float], Bracket]:
    """Return the bracket of each ball that has a certificate, by norm and radius."""
    clean, *attacked = evaluation.results
    found = {}
    for proof in evaluation.certified:
        in_ball = [result for result in attacked if (result.norm, result.eps) == (proof.norm, proof.eps)]
        if in_ball:
            weakest = min(in_ball, key=lambda result: result.accuracy)
            found[proof.norm, float(proof.eps)] = Bracket(clean, weakest, proof)
    return found


def narrower(first: Mapping[Any, Bracket], second: Mapping[Any, Bracket]) -> dict[Any, Bracket]:
    """Return the brackets of both; of two in one ball that with more certified."""
    return {
        ball: max((side[ball] for side in (first, second) if ball in side), key=lambda b: b.certified.accuracy)
        for ball in {**first, **second}
    }


def tables(comparisons: Sequence[Any]) -> list[BracketTable]:
    """Return one table for each test set and ball with a certificate."""
    return [
        BracketTable(
            comparison.data, ball, [(row, row.brackets[ball]) for row in comparison.rows if ball in row.brackets]
        )
        for comparison in comparisons
        for ball in sorted({ball for row in comparison.rows for ball in row.brackets})
    ]

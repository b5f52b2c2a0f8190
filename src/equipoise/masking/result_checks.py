"""What finished attacks suggest about a robust accuracy: `check_results`."""

from collections.abc import Sequence

from equipoise.results.records import AttackRecord, ResultWarning

ONLY_BLACK_BOX_SHARE, ONLY_BLACK_BOX_SAMPLES = 0.01, 3
"""Share and number of samples that only a black-box attack fooled, from which it is a warning: one or two are chance, a
percent is what the difference between defences is reported in."""

BLACK_BOX = ("square", "random-search", "hop-skip-jump")
"""Attacks that use no gradient."""

_SUMMARIES = ("clean", "worst case")  # results that are no attack of their own


def check_results(results: Sequence[AttackRecord]) -> list[ResultWarning]:
    """Return a warning for each ball in which a black-box attack beats the white-box attacks on the same samples.

    A composite attack is compared through the first successful attack on each sample.
    """
    by_ball: dict[tuple[str, float], list[AttackRecord]] = {}
    for result in results:
        if result.eps > 0:
            by_ball.setdefault((result.norm, result.eps), []).append(result)
    warnings = [_black_box_wins(norm, eps, attacks) for (norm, eps), attacks in by_ball.items()]
    return [warning for warning in warnings if warning is not None]


def _black_box_wins(norm: str, eps: float, results: Sequence[AttackRecord]) -> ResultWarning | None:
    fooled: dict[bool, set[int]] = {True: set(), False: set()}  # samples, by whether the attack is a black-box one
    for result in results:
        winners = result.winner or [result.attack] * result.n
        for i, (correct, winner) in enumerate(zip(result.correct, winners, strict=True)):
            if not correct and winner != "worst case":
                fooled[is_black_box(winner or result.attack)].add(i)
    has_white_box = any(r.attack not in _SUMMARIES and not is_black_box(r.attack) for r in results)
    count, n = len(fooled[True] - fooled[False]), results[0].n
    if not has_white_box or count < ONLY_BLACK_BOX_SAMPLES or count <= ONLY_BLACK_BOX_SHARE * n:
        return None
    return ResultWarning(
        "black box beats white box",
        f"{count} of {n} samples fell only to an attack without gradients ({norm}, eps {eps:g})",
        "gradients mislead the other attacks: look for what masks them (see the other flags) and attack through it",
    )


def is_black_box(attack: str) -> bool:
    """Return whether the attack of that name uses no gradient of the model it is evaluated on."""
    return " from " in attack or attack.partition(" on ")[0].rstrip("0123456789") in BLACK_BOX

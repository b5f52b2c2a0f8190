"""Results of several batches or attacks combined, and warnings about them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

from equipoise.attacks.result import DRAWS
from equipoise.evaluation.suites import Suite
from equipoise.results.outcomes import CertifiedResult, CorruptionResult
from equipoise.results.records import AttackRecord
from equipoise.results.statistics import mcnemar

WORST = "worst case"
PER_SAMPLE = ("correct", "distance", "prediction", "winner", "iteration", "queries", "rates", "choice", "margin")
"""The columns of a result: sequences with an entry for every sample, or empty."""
_SHARE = 0.01  # of NaN or zero gradients, above which there is a warning
_LEVEL = 0.05  # significance level of the paired tests between attacks
_MIN_SAMPLES = 10  # from which there is a warning if all have the same predicted class

R = TypeVar("R", AttackRecord, CorruptionResult, CertifiedResult)


def joined(blocks: Sequence[Sequence[AttackRecord]]) -> list[AttackRecord]:
    """Return the results of several batches as those of one: outcomes in order, costs added."""
    return [_added(results) for results in zip(*blocks, strict=True)]


def _added(results: Sequence[AttackRecord]) -> AttackRecord:
    counts = ("evaluations", "nan_gradients", "zero_gradients", "seconds", "not_finite")
    whole = concatenated(results)
    settings = {k: v for k, v in whole.settings.items() if k != "refused"}
    refused = sum(result.settings.get("refused", 0) for result in results)
    sums = {name: sum(getattr(result, name) for result in results) for name in counts}
    return replace(whole, settings=settings | ({"refused": refused} if refused else {}), **sums)


def concatenated(results: Sequence[R]) -> R:
    """Return the first result with the samples of all of them."""
    columns = {name: [value for r in results for value in getattr(r, name, ())] for name in PER_SAMPLE}
    return replace(results[0], **{name: column for name, column in columns.items() if column})


def reordered(result: R, order: Sequence[int]) -> R:
    """Return the result with its samples in another order."""
    columns = {name: getattr(result, name, ()) for name in PER_SAMPLE}
    return replace(result, **{name: [column[i] for i in order] for name, column in columns.items() if column})


def with_worst_cases(results: Sequence[AttackRecord]) -> list[AttackRecord]:
    """Return the results by ball, each ball of several attacks followed by its worst case."""
    clean, *attacked = results
    by_ball: dict[tuple[str, float], list[AttackRecord]] = {}
    for result in attacked:
        by_ball.setdefault((result.norm, result.eps), []).append(result)
    grouped = [clean]
    for results_on_ball in by_ball.values():
        grouped += results_on_ball
        if len(results_on_ball) > 1:
            grouped.append(_worst(results_on_ball))
    return grouped


def by_ball(attacks: Suite) -> Suite:
    """Return the attacks in the order of `with_worst_cases`: grouped by ball, balls in order of appearance."""
    balls = list(dict.fromkeys((a.geometry.norm, a.geometry.eps) for _, a in attacks))
    return sorted(attacks, key=lambda named: balls.index((named[1].geometry.norm, named[1].geometry.eps)))


def _worst(results: Sequence[AttackRecord]) -> AttackRecord:
    """Per sample the nearest success of several attacks on one ball; the `rates` of a random model are those of the
    attack that is worst by `choice`, whose draws are independent.
    """
    choices = [
        min(enumerate(of_sample), key=lambda choice: float("inf") if choice[1] is None else choice[1])
        for of_sample in zip(*(r.distance for r in results), strict=True)
    ]
    worst = [
        min(range(len(results)), key=of_sample.__getitem__)
        for of_sample in zip(*(r.choice for r in results), strict=True)
    ]
    return AttackRecord(
        attack=WORST,
        norm=results[0].norm,
        eps=results[0].eps,
        correct=[all(of_sample) for of_sample in zip(*(r.correct for r in results), strict=True)],
        distance=[distance for _, distance in choices],
        prediction=[results[best].prediction[i] for i, (best, _) in enumerate(choices)],
        winner=[results[best].winner[i] for i, (best, _) in enumerate(choices)],
        iteration=[results[best].iteration[i] for i, (best, _) in enumerate(choices)],
        queries=[sum(of_sample) for of_sample in zip(*(r.queries for r in results), strict=True)],
        settings={"attacks": [r.attack for r in results]},
        evaluations=sum(r.evaluations for r in results),
        nan_gradients=sum(r.nan_gradients for r in results),
        zero_gradients=sum(r.zero_gradients for r in results),
        seconds=sum(r.seconds for r in results),
        rates=[results[best].rates[i] for i, best in enumerate(worst)] or (),
        choice=[results[best].choice[i] for i, best in enumerate(worst)] or (),
        not_finite=max(r.not_finite for r in results),
    )


def _does_more_harm(a: AttackRecord, b: AttackRecord) -> bool:
    """Whether `a` fools significantly more samples than `b`: exact one-sided paired test (McNemar 1947), at 5 %."""
    only_a = sum(q and not p for p, q in zip(a.correct, b.correct, strict=True))
    only_b = sum(p and not q for p, q in zip(a.correct, b.correct, strict=True))
    return only_a > only_b and mcnemar(only_a, only_b) < _LEVEL


def result_warnings(results: Sequence[AttackRecord]) -> list[str]:
    """Return what a reader should know before citing these numbers: indications that an attack was too weak."""
    warnings = [text for result in results if result.attack == "clean" for text in _clean_warnings(result)]
    attacks = [r for r in results if r.attack not in ("clean", WORST)]
    warnings += [text for result in attacks for text in _attack_warnings(result)]
    by_ball: dict[tuple[str, float], dict[str, AttackRecord]] = {}
    by_name: dict[tuple[str, str], list[AttackRecord]] = {}
    for r in attacks:
        by_ball.setdefault((r.norm, r.eps), {})[r.attack] = r
        by_name.setdefault((r.attack, r.norm), []).append(r)
    for (norm, eps), results_on_ball in by_ball.items():
        iterated = [r for name, r in results_on_ball.items() if name.startswith("pgd")]
        one_step = results_on_ball.get("fgsm")
        if one_step is not None and iterated and all(_does_more_harm(one_step, r) for r in iterated):
            warnings.append(
                f"{norm} eps {eps:g}: one step (fgsm, {one_step.accuracy:.1%}) does more harm than pgd "
                f"({min(r.accuracy for r in iterated):.1%}), a sign of masked gradients."
            )
    for (name, norm), radii in by_name.items():
        for near, far in pairwise(sorted(radii, key=lambda r: r.eps)):
            if _does_more_harm(near, far):
                warnings.append(
                    f"{name}, {norm}: accuracy rises from {near.accuracy:.1%} at eps {near.eps:g} to "
                    f"{far.accuracy:.1%} at {far.eps:g}, although the larger ball holds the smaller: there the attack "
                    "is too weak."
                )
    return warnings


def _clean_warnings(clean: AttackRecord) -> Iterator[str]:
    if clean.not_finite:
        yield (
            f"the prediction of {clean.not_finite} of {clean.n} samples is not finite (NaN or infinite logits): they "
            "count as neither right nor fooled."
        )
    if clean.n >= _MIN_SAMPLES and len(set(clean.prediction)) == 1 and not all(clean.correct):
        yield (
            f"the model predicts class {clean.prediction[0]} for all {clean.n} samples: what ignores its input is "
            "robust at every radius, and as accurate as that class is common."
        )
    if clean.rates:
        yield f"the model is random: accuracies are means over {DRAWS} fresh draws, clean and attacked alike."


def _attack_warnings(r: AttackRecord) -> Iterator[str]:
    label = f"{r.attack}, {r.norm} eps {r.eps:g}"
    if r.eps == 0:
        yield f"{label}: a ball of radius 0 allows no attack; this is clean accuracy."
    if r.not_finite:
        yield (
            f"{label}: at {r.not_finite} of the points it found the prediction is not finite (NaN or infinite "
            "logits); these are neither right nor fooled, so that robustness may be overstated."
        )
    if refused := r.settings.get("refused"):
        yield f"{label}: {refused} successes that it claimed failed the check and do not count."
    for count, kind in ((r.nan_gradients, "held a NaN or an infinity"), (r.zero_gradients, "were exactly 0")):
        share = count / max(r.evaluations, 1)
        if share > _SHARE:
            yield f"{label}: {share:.0%} of its gradients {kind}, so robustness may be overstated."

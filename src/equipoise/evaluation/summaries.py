"""Results put together: of several batches, of the attacks on one ball, and what a reader should know of them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from equipoise.attacks.result import DRAWS
from equipoise.evaluation.suites import Suite
from equipoise.results.records import AttackRecord
from equipoise.results.statistics import mcnemar

WORST = "worst case"
PER_SAMPLE = ("correct", "distance", "prediction", "winner", "iteration", "queries", "rates", "choice")
"""What an `AttackRecord` has one of for every sample, if any."""
_SHARE = 0.01  # share of gradients that is worth a warning
_LEVEL = 0.05  # of the paired tests between attacks
_ENOUGH = 10  # samples for which one class for all is worth a word


def joined(blocks: Sequence[Sequence[AttackRecord]]) -> list[AttackRecord]:
    """The results of several batches as those of one: outcomes in order, costs added."""
    return [_concatenated(parts) for parts in zip(*blocks, strict=True)]


def _concatenated(parts: Sequence[AttackRecord]) -> AttackRecord:
    lists = PER_SAMPLE
    sums = ("evaluations", "nan_gradients", "zero_gradients", "seconds", "not_finite")
    settings = {k: v for k, v in parts[0].settings.items() if k != "refused"}
    refused = sum(part.settings.get("refused", 0) for part in parts)
    return replace(
        parts[0],
        settings=settings | ({"refused": refused} if refused else {}),
        **{name: [value for part in parts for value in getattr(part, name)] or () for name in lists},
        **{name: sum(getattr(part, name) for part in parts) for name in sums},
    )


def with_worst_cases(results: Sequence[AttackRecord]) -> list[AttackRecord]:
    """The results by ball, each ball of several attacks followed by its worst case."""
    clean, *attacked = results
    by_ball: dict[tuple[str, float], list[AttackRecord]] = {}
    for result in attacked:
        by_ball.setdefault((result.norm, result.eps), []).append(result)
    found = [clean]
    for together in by_ball.values():
        found += together
        if len(together) > 1:
            found.append(_worst(together))
    return found


def by_ball(attacks: Suite) -> Suite:
    """The attacks in the order of `with_worst_cases`: those of one ball together, as each ball first appears."""
    balls = list(dict.fromkeys((a.geometry.norm, a.geometry.eps) for _, a in attacks))
    return sorted(attacks, key=lambda named: balls.index((named[1].geometry.norm, named[1].geometry.eps)))


def _worst(results: Sequence[AttackRecord]) -> AttackRecord:
    """Per sample the nearest success of several attacks on one ball; of a random model, the attack that was the worst
    over draws that do not count.
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
    """Whether `a` fools significantly more of the samples than `b`: exact paired sign test on those that only one of
    them fools (McNemar 1947), one-sided, at the 5 % level.
    """
    only_a = sum(q and not p for p, q in zip(a.correct, b.correct, strict=True))
    only_b = sum(p and not q for p, q in zip(a.correct, b.correct, strict=True))
    return only_a > only_b and mcnemar(only_a, only_b) < _LEVEL


def result_warnings(results: Sequence[AttackRecord]) -> list[str]:
    """What a reader should know before citing these numbers: signs that an attack was weaker than the model is."""
    found = [text for result in results if result.attack == "clean" for text in _of_clean(result)]
    attacks = [r for r in results if r.attack not in ("clean", WORST)]
    found += [text for result in attacks for text in _of_attack(result)]
    by_ball: dict[tuple[str, float], dict[str, AttackRecord]] = {}
    by_name: dict[tuple[str, str], list[AttackRecord]] = {}
    for r in attacks:
        by_ball.setdefault((r.norm, r.eps), {})[r.attack] = r
        by_name.setdefault((r.attack, r.norm), []).append(r)
    for (norm, eps), together in by_ball.items():
        iterated = [r for name, r in together.items() if name.startswith("pgd")]
        one_step = together.get("fgsm")
        if one_step is not None and iterated and all(_does_more_harm(one_step, r) for r in iterated):
            found.append(
                f"{norm} eps {eps:g}: one step (fgsm, {one_step.accuracy:.1%}) does more harm than pgd "
                f"({min(r.accuracy for r in iterated):.1%}), a sign of masked gradients."
            )
    for (name, norm), radii in by_name.items():
        for near, far in pairwise(sorted(radii, key=lambda r: r.eps)):
            if _does_more_harm(near, far):
                found.append(
                    f"{name}, {norm}: accuracy rises from {near.accuracy:.1%} at eps {near.eps:g} to "
                    f"{far.accuracy:.1%} at {far.eps:g}, although the larger ball holds the smaller: there the attack "
                    "is too weak."
                )
    return found


def _of_clean(clean: AttackRecord) -> Iterator[str]:
    """What the predictions without an attack say of the model."""
    if clean.not_finite:
        yield (
            f"the prediction of {clean.not_finite} of {clean.n} samples is not finite (NaN or infinite logits): they "
            "count as neither right nor fooled."
        )
    if clean.n >= _ENOUGH and len(set(clean.prediction)) == 1 and not all(clean.correct):
        yield (
            f"the model predicts class {clean.prediction[0]} for all {clean.n} samples: what ignores its input is "
            "robust at every radius, and as accurate as that class is common."
        )
    if clean.rates:
        yield f"the model is random: accuracies are means over {DRAWS} fresh draws, clean and attacked alike."


def _of_attack(r: AttackRecord) -> Iterator[str]:
    """What is remarkable about one attack."""
    where = f"{r.attack}, {r.norm} eps {r.eps:g}"
    if r.eps == 0:
        yield f"{where}: a ball of radius 0 allows no attack; this is clean accuracy."
    if r.not_finite:
        yield (
            f"{where}: at {r.not_finite} of the points it found the prediction is not finite (NaN or infinite "
            "logits); these are neither right nor fooled, so that robustness may be overstated."
        )
    if refused := r.settings.get("refused"):
        yield f"{where}: {refused} successes that it claimed failed the check and do not count."
    for count, kind in ((r.nan_gradients, "held a NaN or an infinity"), (r.zero_gradients, "were exactly 0")):
        share = count / max(r.evaluations, 1)
        if share > _SHARE:
            yield f"{where}: {share:.0%} of its gradients {kind}, so robustness may be overstated."

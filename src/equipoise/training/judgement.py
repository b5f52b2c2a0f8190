"""What the validation of an epoch says: which epoch is the best, and what is going wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from equipoise.results.statistics import binomial_tail, mcnemar, wilson

_SIGNIFICANT = 0.05
_LEARNT = 0.25  # of the way from the majority share to 1: what a network that learns anything would reach


@dataclass(frozen=True)
class Alarm:
    """A sign of trouble."""

    kind: str
    """What is suspected; a run reports each kind once."""
    text: str
    """A sentence with the figures, and the causes that apply."""

    def __str__(self) -> str:
        return self.text


def majority_share(labels: Tensor) -> float:
    """Share of the most common class: the accuracy of the best classifier that ignores its input."""
    return float(labels.bincount().max()) / len(labels)


def standing_of(metrics: Mapping[str, float], majority: float) -> int:
    """2 if clean and robust validation accuracy exceed the majority share, 1 if only the clean one does, else 0."""
    if metrics["valid_clean"] <= majority:
        return 0
    return 1 + (metrics["valid_pgd"] > majority)


def improves(
    metrics: Mapping[str, float], correct: Tensor, top: Mapping[str, float], top_correct: Tensor, majority: float
) -> tuple[bool, bool]:
    """Whether an epoch becomes the best one, and whether its robust accuracy is the highest so far.

    `correct` and `top_correct` say for each validation sample whether it withstood the attack, in this epoch and in
    that of the highest accuracy so far. Epochs whose accuracy does not exceed the `majority` share come after all
    others (`standing_of`). Among the others, the latest epoch is the best that is not significantly worse than the
    top (exact McNemar test on the same samples, p < 0.05), so that noise does not decide, and ties go to the later.
    """
    if not top:
        return True, True
    now, then = standing_of(metrics, majority), standing_of(top, majority)
    if now != then:
        return now > then, now > then
    higher = metrics["valid_pgd"] > top["valid_pgd"]
    lost, won = int((top_correct & ~correct).sum()), int((correct & ~top_correct).sum())
    return higher or mcnemar(lost, won) >= _SIGNIFICANT, higher


def alarms_of(
    past: Sequence[Mapping[str, float]],
    now: Mapping[str, float],
    classes: int,
    n: int,
    climbs: bool,
    majority: float | None = None,
) -> list[Alarm]:
    """What is going wrong after an epoch on `n` validation samples, of whose labels the share `majority` is one class.

    Catastrophic overfitting (Wong et al. 2020) of a method that `climbs`: since the epoch of the best PGD accuracy, PGD
    accuracy has lost a third of itself and more than chance explains, while FGSM accuracy rose. From the second epoch
    on: one class is predicted for all samples; or the clean accuracy is not significantly above the majority share
    (one-sided, 5 %), on samples enough to rule out that a quarter of the way from there to 1 has been learnt.
    """
    if not past:
        return []
    found = [_overfitting(past, now, 1 / classes, n)] if climbs else []
    share = 1 / classes if majority is None else majority
    found.append(_one_class(now, n, share, climbs) or _no_better(now, n, share, climbs))
    return [alarm for alarm in found if alarm is not None]


def _overfitting(past: Sequence[Mapping[str, float]], now: Mapping[str, float], chance: float, n: int) -> Alarm | None:
    noise = 3 * (chance * (1 - chance) / n) ** 0.5
    top = max(past, key=lambda m: m["valid_pgd"])
    fell = top["valid_pgd"] - now["valid_pgd"]
    if fell <= max(top["valid_pgd"] / 3, noise) or now["valid_fgsm"] <= top["valid_fgsm"]:
        return None
    return Alarm(
        "catastrophic overfitting",
        f"catastrophic overfitting: since epoch {top['epoch']:.0f} FGSM accuracy rose from {top['valid_fgsm']:.1%} to "
        f"{now['valid_fgsm']:.1%} while PGD accuracy fell from {top['valid_pgd']:.1%} to {now['valid_pgd']:.1%}; use "
        "more steps or a smaller step size.",
    )


def _one_class(now: Mapping[str, float], n: int, share: float, climbs: bool) -> Alarm | None:
    if now.get("valid_predicted_classes") != 1 or share**n >= _SIGNIFICANT:
        return None
    return Alarm(
        "one class for all",
        f"the network predicts one class for all {n} validation samples after epoch {now['epoch']:.0f}, which is no "
        f"better than chance: {_remedies(climbs)}.",
    )


def _no_better(now: Mapping[str, float], n: int, share: float, climbs: bool) -> Alarm | None:
    accuracy = now["valid_clean"]
    right = round(accuracy * n)
    if binomial_tail(right, n, share) < _SIGNIFICANT or wilson(right, n)[1] >= share + _LEARNT * (1 - share):
        return None
    return Alarm(
        "no better than chance",
        f"the network predicts no better than chance ({accuracy:.1%} of {n} validation samples after epoch "
        f"{now['epoch']:.0f}, of which {share:.1%} are of one class): {_remedies(climbs)}.",
    )


def _remedies(climbs: bool) -> str:
    """What helps: a radius is a cause only where the method has one."""
    return ("lower eps, or " if climbs else "") + "lower lr, or train longer, or check the labels"

"""Monitoring of the validation metrics: selection of the best epoch, and alarms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from equipoise.results.statistics import binomial_tail, mcnemar, wilson

_SIGNIFICANT = 0.05
_LEARNT = 0.25  # of the way from the majority share to 1: what any network that learns should reach


@dataclass(frozen=True)
class Alarm:
    """A sign of trouble in a training."""

    kind: str
    """The kind of the suspicion; a run reports each kind once."""
    text: str
    """A sentence with the numbers, and possible causes."""

    def __str__(self) -> str:
        return self.text


def majority_share(labels: Tensor) -> float:
    """Share of the most common class: the accuracy of the best classifier that ignores its input."""
    return float(labels.bincount().max()) / len(labels)


def _accuracies_above(metrics: Mapping[str, float], majority: float) -> int:
    """2 if clean and robust accuracy exceed the majority share, 1 if only the clean accuracy does, else 0."""
    return 0 if metrics["valid_clean"] <= majority else 1 + (metrics["valid_pgd"] > majority)


def improves(
    metrics: Mapping[str, float], robust: Tensor, top: Mapping[str, float], top_robust: Tensor, majority: float
) -> tuple[bool, bool]:
    """Whether an epoch becomes the best epoch, and whether its robust accuracy is the highest so far.

    An epoch whose clean accuracy exceeds the `majority` share ranks above one where it does not, and so for the robust
    accuracy. Within a rank the best epoch is the latest that is not significantly worse than the one with the highest
    accuracy (exact McNemar test on the same samples, p < 0.05), so that noise does not decide and ties go to the later.

    Arguments: `metrics` of this epoch and `top`, of the epoch with the highest accuracy so far (empty if there is
    none); `robust` and `top_robust`, which validation samples withstood the attack in them.
    """
    if not top:
        return True, True
    now, then = _accuracies_above(metrics, majority), _accuracies_above(top, majority)
    if now != then:
        return now > then, now > then
    higher = metrics["valid_pgd"] > top["valid_pgd"]
    lost, gained = int((top_robust & ~robust).sum()), int((robust & ~top_robust).sum())
    return higher or mcnemar(lost, gained) >= _SIGNIFICANT, higher


def alarms_of(
    past: Sequence[Mapping[str, float]],
    now: Mapping[str, float],
    classes: int,
    n: int,
    climbs: bool,
    majority: float | None = None,
) -> list[Alarm]:
    """The alarms after an epoch.

    Catastrophic overfitting (Wong et al. 2020) of adversarial training: since the epoch of the best PGD accuracy, PGD
    accuracy has lost a third of itself and more than chance explains, while FGSM accuracy rose. From the second epoch
    on: one class is predicted for all samples; or the clean accuracy is not significantly above the majority share
    (one-sided, 5 %), on enough samples to rule out that a quarter of the way from there to 1 has been learnt.

    Arguments: metrics of the `past` epochs and of this one (`now`); the number of `classes`; `n`, the number of
    validation samples; `climbs`, whether the method perturbs by an ascent; the share of the most common class.
    """
    if not past:
        return []
    share = 1 / classes if majority is None else majority
    alarms = (
        _overfitting(past, now, 1 / classes, n) if climbs else None,
        _one_class(now, n, share, climbs) or _no_better_than_chance(now, n, share, climbs),
    )
    return [alarm for alarm in alarms if alarm is not None]


def _overfitting(past: Sequence[Mapping[str, float]], now: Mapping[str, float], chance: float, n: int) -> Alarm | None:
    noise = 3 * (chance * (1 - chance) / n) ** 0.5
    top = max(past, key=lambda m: m["valid_pgd"])
    drop = top["valid_pgd"] - now["valid_pgd"]
    if drop <= max(top["valid_pgd"] / 3, noise) or now["valid_fgsm"] <= top["valid_fgsm"]:
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


def _no_better_than_chance(now: Mapping[str, float], n: int, share: float, climbs: bool) -> Alarm | None:
    accuracy = now["valid_clean"]
    correct = round(accuracy * n)
    if binomial_tail(correct, n, share) < _SIGNIFICANT or wilson(correct, n)[1] >= share + _LEARNT * (1 - share):
        return None
    return Alarm(
        "no better than chance",
        f"the network predicts no better than chance ({accuracy:.1%} of {n} validation samples after epoch "
        f"{now['epoch']:.0f}, of which {share:.1%} are of one class): {_remedies(climbs)}.",
    )


def _remedies(climbs: bool) -> str:
    return ("lower eps, or " if climbs else "") + "lower lr, or train longer, or check the labels"

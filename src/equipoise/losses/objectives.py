"""Per-sample objectives: one number per sample, oriented so that an attack maximises it and training minimises it.

They form an algebra: `cross_entropy - 2 * entropy` is an objective too, and `objective @ ascent` is the term of a
training method that evaluates it at the ascent's point. Notation: `z` logits, `p = softmax(z)` at the point, `q` the
same at the clean input, `y` the label, `t` a target class.

With a target (`target=` of an ascent) the objective is the one whose maximisation leads *towards* class `t`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from equipoise.core.checks import check_fields, checked_call
from equipoise.core.errors import kind_of, require, unknown
from equipoise.core.schedules import schedulable
from equipoise.core.types import Labels, PerSample, Prediction, distances_below, log_softmax
from equipoise.losses.algebra import Summand

Formula = Callable[..., PerSample]
Logits = Float[Tensor, "batch classes"]
_FAR = 1e4  # nats to the largest logit from where a probability is 0 in any precision
_SINGULAR = 1e-6  # keeps a logarithm finite where members agree, or another class is certain
Divergence = Literal["clean||here", "here||clean", "soft-cross-entropy"]


@dataclass(frozen=True)
class Objective(Summand):
    """A function `(here, clean, labels, target) -> one number per sample`, with what it needs. Compared by value."""

    example: ClassVar[str] = "cross_entropy, or your own, Objective('name', formula)"
    """An example for messages."""

    name: str
    """What it is called in errors and records."""
    formula: Formula
    """The function, called as `formula(here, clean, labels, target, **parameters)`."""
    parameters: tuple[tuple[str, Any], ...] = ()
    """Its further parameters, as pairs of name and value."""
    needs_labels: bool = False
    """Whether it is undefined without labels (or a target)."""
    needs_clean: bool = False
    """Whether it compares with the prediction at the clean input."""
    targeted: bool = False
    """Whether it can be maximised towards a target class."""
    classes: tuple[int, int] = (2, 2)
    """Fewest classes for which it is defined, untargeted and targeted."""
    members: int = 1
    """Fewest members of the prediction for which it is not the same everywhere."""

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self,
        here: Prediction | Logits,
        clean: Prediction | Logits | None = None,
        labels: Labels | None = None,
        target: Labels | None = None,
    ) -> PerSample:
        """The objective of every sample, in nats unless it is a margin, of predictions or of a network's logits.

        Raises `EquipoiseError` on a wrong pairing.
        """
        here, clean = _predicted("here", here), None if clean is None else _predicted("clean", clean)
        self.check(here.classes, labels is not None, target is not None)
        require(clean is not None or not self.needs_clean, f"{self.name} needs the prediction at the clean input.")
        return self.formula(here, clean, labels, target, **dict(self.parameters))

    def check(self, classes: int, labels: bool, target: bool, members: int | None = None) -> None:
        """Raise `EquipoiseError` unless the objective is defined for that many classes, with labels, with a target, and
        (to be optimised) varies for that many members.
        """
        require(
            members is None or members >= self.members,
            f"{self.name} compares members, the model has {members}: give an ensemble or Monte Carlo dropout, or use "
            "an objective of one network such as entropy.",
        )
        require(
            not target or self.targeted,
            f"{self.name} has no target: it does not depend on class labels; maximise cross_entropy, margin or dlr "
            "instead.",
        )
        require(
            labels or target or not self.needs_labels,
            f"{self.name} needs the labels y; pass them, or maximise an objective without labels such as entropy.",
        )
        require(
            not target or labels or not (self.needs_labels and self.classes[1] > self.classes[0]),
            f"targeted {self.name} compares the target with the true class; pass the labels y too.",
        )
        fewest = self.classes[1] if target else self.classes[0]
        require(
            classes >= fewest,
            f"{'targeted ' if target else ''}{self.name} needs at least {fewest} classes, the model has {classes}; "
            "maximise cross_entropy or margin instead.",
        )

    def settings(self) -> Any:
        """Name and parameters as JSON-ready data, for records; the name alone if it has no parameters."""
        if self.formula is _weighted_sum:
            parts: tuple[tuple[Objective, float], ...] = dict(self.parameters)["parts"]
            return [{"weight": weight, "objective": part.settings()} for part, weight in parts]
        if self.formula is _each:
            options = dict(self.parameters)
            return {"total" if "total" in options else "each": options["objective"].settings()}
        return {"name": self.name, **dict(self.parameters)} if self.parameters else self.name

    def __repr__(self) -> str:
        return self.name

    def weighted(self, weight: float) -> "Objective":
        """The objective, multiplied by a number."""
        return _combine((self, weight))

    @staticmethod
    def total(first: Summand, second: Summand) -> Any:
        """The objective that is the sum of two; a term or a method knows how it is added to."""
        if isinstance(first, Objective) and isinstance(second, Objective):
            return _combine((first, 1.0), (second, 1.0))
        return NotImplemented


def _predicted(name: str, given: Prediction | Tensor) -> Prediction:
    """A prediction, also of the logits of one network."""
    if isinstance(given, Prediction):
        return given
    require(
        isinstance(given, Tensor) and given.is_floating_point(),
        f"{name} is {kind_of(given)}: expected logits, as in cross_entropy(net(x), labels=y), or a Prediction.",
    )
    return Prediction(given[None])


def _weighted_sum(*batch: Any, parts: tuple[tuple[Objective, float], ...]) -> PerSample:
    return torch.stack([weight * part.formula(*batch, **dict(part.parameters)) for part, weight in parts]).sum(0)


def _combine(*weighted: tuple[Objective, float]) -> Objective:
    parts: list[tuple[Objective, float]] = []
    for objective, weight in weighted:
        inner = dict(objective.parameters).get("parts") if objective.formula is _weighted_sum else None
        parts += [(part, weight * w) for part, w in inner] if inner else [(objective, weight)]
    words = [f"{'-' if w < 0 else '+'} {'' if abs(w) == 1 else f'{abs(w):g}·'}{p.name}" for p, w in parts]
    return Objective(
        " ".join(words).removeprefix("+ "),
        _weighted_sum,
        (("parts", tuple(parts)),),
        needs_labels=any(p.needs_labels for p, _ in parts),
        needs_clean=any(p.needs_clean for p, _ in parts),
        targeted=all(p.targeted for p, _ in parts),
        members=max(p.members for p, _ in parts),
        classes=(max(p.classes[0] for p, _ in parts), max(p.classes[1] for p, _ in parts)),
    )


def _pick(values: Tensor, classes: Labels) -> PerSample:
    return values.gather(1, classes[:, None]).squeeze(1)


def _largest_other(scores: Tensor, classes: Labels) -> PerSample:
    return scores.scatter(1, classes[:, None], -torch.inf).amax(1)


def _smoothed_cross_entropy(
    here: Prediction, clean: Prediction | None, labels: Any, target: Labels | None, smoothing: float
) -> PerSample:
    if target is not None:
        return -_smoothed_cross_entropy(here, clean, target, None, smoothing)
    log_p = here.log_probs
    return -(1 - smoothing) * _pick(log_p, labels) - smoothing * log_p.mean(1)


def _cross_entropy(here: Prediction, clean: Prediction | None, labels: Any, target: Labels | None) -> PerSample:
    return -_pick(here.log_probs, labels) if target is None else _pick(here.log_probs, target)


def _entropy(here: Prediction, *_: Any) -> PerSample:
    # With d = max z - z and e = exp(-d), but 0 for the largest class: H = log(1 + Σ e) + Σ e d / (1 + Σ e). All terms
    # are as small as H: nothing cancels, in the value or in the gradient, where one class is almost certain.
    below, others = distances_below(here.scores)
    total = others.sum(1)
    return total.log1p() + (others * below.clamp_max(_FAR)).sum(1) / (1 + total)


def _each(
    here: Prediction,
    clean: Prediction | None,
    labels: Labels | None,
    target: Labels | None,
    objective: Objective,
    total: bool = False,
) -> PerSample:
    pasts = [None] if clean is None else clean.members
    pasts = pasts * len(here.logits) if len(pasts) == 1 else pasts
    values = [
        objective.formula(one, past, labels, target, **dict(objective.parameters))
        for one, past in zip(here.members, pasts, strict=True)
    ]
    return torch.stack(values).sum(0) / (1 if total else len(values))


def _variance(here: Prediction, *_: Any) -> PerSample:
    log_p = log_softmax(here.logits)
    # Differences of probabilities near 1 are those of p - 1, which float32 resolves.
    likely = log_p.exp().mean(0) > 0.5
    return torch.where(likely, log_p.expm1(), log_p.exp()).var(0, correction=0).sum(1)


def _logit_variance(here: Prediction, *_: Any) -> PerSample:
    return here.logits.var(0, correction=0).sum(1)


def _least_confidence(here: Prediction, *_: Any) -> PerSample:
    return -here.log_probs.amax(1).expm1()


def _small_margin(here: Prediction, *_: Any) -> PerSample:
    first, second = here.log_probs.topk(2, dim=1).values.exp().unbind(1)
    return second - first


def _log_diversity(here: Prediction, clean: Prediction | None, labels: Labels, *_: Any) -> PerSample:
    p = log_softmax(here.logits).exp()
    others = p.scatter(-1, labels[None, :, None].expand(len(p), -1, 1), 0.0)
    unit = others / torch.linalg.vector_norm(others, dim=-1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
    gram = torch.einsum("mbc,nbc->bmn", unit, unit)
    return torch.logdet(gram + _SINGULAR * torch.eye(len(p), dtype=p.dtype, device=p.device))


def _boosted_cross_entropy(here: Prediction, clean: Prediction | None, labels: Labels, *_: Any) -> PerSample:
    log_p = here.log_probs
    largest = _largest_other(log_p, labels).exp()
    return -_pick(log_p, labels) - (1 + _SINGULAR - largest).log()


def _misclassified_divergence(
    here: Prediction, clean: Prediction, labels: Labels, target: Labels | None, divergence: Divergence
) -> PerSample:
    wrong = -_pick(clean.log_probs, labels).expm1()
    return wrong * _divergence(here, clean, labels, target, divergence)


def _divergence(
    here: Prediction, clean: Prediction, labels: Labels | None, target: Labels | None, divergence: Divergence
) -> PerSample:
    log_p, log_q = here.log_probs, clean.log_probs
    match divergence:
        case "clean||here":
            return (log_q.exp() * (log_q - log_p)).sum(1)
        case "here||clean":
            return (log_p.exp() * (log_p - log_q)).sum(1)
        case "soft-cross-entropy":
            return -(log_q.exp() * log_p).sum(1)


def _margin(here: Prediction, clean: Prediction | None, labels: Any, target: Labels | None) -> PerSample:
    z = here.scores
    if target is not None:
        return _pick(z, target) - _largest_other(z, target)
    return _largest_other(z, labels) - _pick(z, labels)


def _negated_probability(here: Prediction, clean: Prediction | None, labels: Any, target: Labels | None) -> PerSample:
    return -_pick(here.log_probs, labels).exp() if target is None else _pick(here.log_probs, target).exp()


def _rival_probability(here: Prediction, clean: Prediction | None, labels: Any, target: Labels | None) -> PerSample:
    if target is not None:
        return -_rival_probability(here, clean, target, None)
    return _largest_other(here.log_probs, labels).exp()


def _dlr(here: Prediction, clean: Prediction | None, labels: Labels, target: Labels | None) -> PerSample:
    z = here.scores
    ordered = z.sort(1, descending=True).values
    if bool(torch.isneginf(ordered[:, -1]).any()):  # a class that cannot be has no logit to measure the scale by
        lowest = torch.where(ordered > -torch.inf, ordered, torch.inf).amin(1, keepdim=True)
        ordered = torch.maximum(ordered, lowest)
    if target is not None:
        spread = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2
        return (_pick(z, target) - _pick(z, labels)) / (spread + 1e-12)
    return (_largest_other(z, labels) - _pick(z, labels)) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


cross_entropy = Objective("cross-entropy", _cross_entropy, needs_labels=True, targeted=True)
"""`-log p_y`; with a target `log p_t`."""

entropy = Objective("entropy", _entropy)
"""Shannon entropy `H(p) = -Σ p log p` in log space, in [0, log C]; label-free (U, Eq. E; T, Sec. 3).

Defined, with a finite gradient, at any finite logits: where a probability underflows the plain formula is NaN."""

variance = Objective("variance", _variance, members=2)
"""`Σ_c Var_m p_mc`, the variance of the members' probabilities, in [0, 1]: epistemic; label-free."""

logit_variance = Objective("logit variance", _logit_variance, members=2)
"""`Σ_c Var_m z_mc`; of a deep-kernel Gaussian process exactly its predictive variance (U, App. D.4); label-free."""

least_confidence = Objective("least confidence", _least_confidence)
"""`1 - max_c p_c`, in [0, 1 - 1/C]; label-free (Gal 2016, Sec. 3.3, variation ratio of the mean)."""

small_margin = Objective("small margin", _small_margin)
"""`p_(2) - p_(1)`, the two largest probabilities: 0 on the boundary, -1 where certain; label-free."""

margin = Objective("margin", _margin, needs_labels=True, targeted=True)
"""`max_{i≠y} z_i - z_y`, positive when misclassified (Carlini & Wagner 2017); with a target `z_t - max_{i≠t} z_i`."""

dlr = Objective("dlr", _dlr, needs_labels=True, targeted=True, classes=(3, 4))
"""Difference of logits ratio `-(z_y - max_{i≠y} z_i) / (z_π1 - z_π3)`, π the descending order; with a target
`-(z_y - z_t) / (z_π1 - (z_π3 + z_π4)/2)` (Croce & Hein 2020, Eqs. 6-7). Needs 3 classes, with a target 4."""

negated_probability = Objective("negated probability", _negated_probability, needs_labels=True, targeted=True)
"""`-p_y`; with a target `p_t`."""

rival_probability = Objective("rival probability", _rival_probability, needs_labels=True, targeted=True)
"""`max_{i≠y} p_i`; with a target `-max_{i≠t} p_i`."""

probability_margin = replace(rival_probability + negated_probability, name="probability margin")
"""`max_{i≠y} p_i - p_y`, positive when misclassified; with a target `p_t - max_{i≠t} p_i` (Xie et al. 2025, "Towards
Million-Scale Adversarial Robustness Evaluation With Stronger Individual Attacks", CVPR)."""


@checked_call()
def smoothed_cross_entropy(smoothing: float = 0.1) -> Objective:
    """Cross-entropy with the label `y - g(y - 1/C)`: `-(1-g) log p_y - g/C Σ log p` (R, Eq. 6).

    `smoothing` is g in [0, 1]. With a target the label is `t` and the sign is turned.
    """
    require(0 <= smoothing <= 1, f"smoothing = {smoothing} is not in [0, 1].")
    return Objective(
        "smoothed cross-entropy", _smoothed_cross_entropy, (("smoothing", smoothing),), needs_labels=True, targeted=True
    )


@checked_call()
def kl(divergence: Divergence = "clean||here") -> Objective:
    """How far the prediction moved from the clean one `q`; label-free.

    `clean||here`: `KL(q‖p)` (code of Zhang et al. 2019); `here||clean`: `KL(p‖q)` (R, Sec. 3); `soft-cross-entropy`:
    `-Σ q log p` (U, Eq. TRADES). Raises `EquipoiseError` for another name.
    """
    return Objective(f"KL({divergence})", _divergence, (("divergence", divergence),), needs_clean=True)


def each(objective: Objective, total: bool = False) -> Objective:
    """`(1/M) Σ_m objective of member m alone`: the mean over the members, instead of the objective of their mean.

    `each(entropy)` is the expected entropy. With `total` the sum: descending it, every member takes the step it would
    take alone.
    """
    options = (("objective", objective), *([("total", True)] if total else []))
    return replace(objective, name=f"each {objective.name}", formula=_each, parameters=options)


expected_entropy = replace(each(entropy), name="expected entropy")
"""`(1/M) Σ_m H(p_m)`: the aleatoric part of the uncertainty; label-free (Gal 2016, Sec. 3.3)."""

mutual_information = replace(entropy - expected_entropy, name="mutual information", members=2)
"""`H((1/M) Σ p_m) - (1/M) Σ H(p_m)`, how much the members disagree: the epistemic part; 0 for one member; label-free
(Gal 2016, Sec. 3.3)."""

UNCERTAINTIES: dict[str, Objective] = {
    "entropy": entropy,
    "mutual_information": mutual_information,
    "expected_entropy": expected_entropy,
    "variance": variance,
    "logit_variance": logit_variance,
    "least_confidence": least_confidence,
    "margin": small_margin,
}
"""Every uncertainty by the name that `udp(uncertainty=...)` takes: label-free, and larger where less is known."""


def uncertainty_named(name: "str | Objective") -> Objective:
    """The uncertainty with that name, or an objective of your own as it is. Raises `EquipoiseError`."""
    if isinstance(name, Objective):
        return name
    if name not in UNCERTAINTIES:
        raise unknown("uncertainty", name, UNCERTAINTIES)
    return UNCERTAINTIES[name]


@schedulable
@checked_call()
def regularised(entropy_weight: float = 0.0, smoothing: float = 0.0) -> Objective:
    """The loss that promotes uncertainty: `CE(p, y - g(y - 1/C)) - lam · H(p)` (R, Eqs. 4 and 6; U, Eq. MaxE).

    `entropy_weight` is lam, 2 in R for EntM; `smoothing` is g, .74 in R for label smoothing on 10 classes and .84 on
    100. With neither it is `cross_entropy`. Raises `EquipoiseError` for a negative weight or g outside [0, 1].
    """
    require(entropy_weight >= 0, f"entropy_weight = {entropy_weight} would punish uncertainty: expected a number >= 0.")
    loss = smoothed_cross_entropy(smoothing) if smoothing else cross_entropy
    return loss - entropy_weight * entropy if entropy_weight else loss


log_diversity = Objective("log ensemble diversity", _log_diversity, needs_labels=True, members=2)
"""`log det(Mᵀ M)`, M the members' probabilities of the wrong classes, each of length 1: 0 where they are orthogonal,
-∞ (stopped at log 1e-6) where two agree (Pang et al. 2019, Eq. 3)."""

boosted_cross_entropy = Objective("boosted cross-entropy", _boosted_cross_entropy, needs_labels=True)
"""`-log p_y - log(1 - max_{i≠y} p_i)` (Wang et al. 2020, "Improving Adversarial Robustness Requires Revisiting
Misclassified Examples", Eq. 8)."""


def misclassified_kl(divergence: Divergence = "clean||here") -> Objective:
    """`D(q, p) (1 - q_y)`: the divergence, weighted by how wrong the clean prediction is (Wang et al. 2020, Eq. 11)."""
    inner = kl(divergence)
    return replace(inner, name=f"misclassified {inner.name}", formula=_misclassified_divergence, needs_labels=True)

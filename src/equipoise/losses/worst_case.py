"""Worst-case logits: terms evaluated at bounds of the logits over a ball instead of at a point of it.

    0.5 * cross_entropy + 0.5 * (cross_entropy @ ibp(0.3))                            IBP (Gowal et al. 2018)
    0.5 * cross_entropy + 0.5 * (cross_entropy @ crown_ibp(0.3))                      CROWN-IBP (Zhang et al. 2020)
    0.9 * (cross_entropy @ pgd(0.3)) + 0.1 * (cross_entropy @ ibp(0.3))               MTL-IBP (De Palma et al. 2024)

For the label y the worst-case logit of class j is `-m_j`, m_j a lower bound of `f_y - f_j` over ball ∩ box, so that
`m_y = 0`: the differences are bounded, not the logits (Gowal et al. 2018, Sec. 3). The cross-entropy of worst-case
logits is at least that of every point of the ball.

The network is bounded in eval mode: batch-norm has its running statistics, which the clean or the attacked term of the
same step updates, and dropout is off. Roundings are neglected; `equipoise.certified` proves with them.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from equipoise.bounds.network import network_of, translate_live
from equipoise.bounds.propagation import both_minima, differences, enclosures, interval_minima
from equipoise.bounds.regions import Region, check_region
from equipoise.core.checks import check_fields
from equipoise.core.errors import require
from equipoise.core.types import Labels, Points, Prediction, Predictive
from equipoise.geometry import Ball, Box
from equipoise.losses.objectives import Objective
from equipoise.losses.terms import Method, Term


@dataclass(frozen=True)
class Bounds:
    """Evaluate a term at the worst-case logits over a ball, by intervals or linear bounds."""

    geometry: Ball
    """The ball, at the end of the warm-up."""
    linear: tuple[float, float] = (0.0, 0.0)
    """Share β of the bounds of CROWN-IBP at the beginning and the end of the warm-up; the rest are intervals."""
    warmed: float = 1.0
    """Which share of the warm-up is over: the radius is this share of the ball's."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_region(self.geometry)
        require(
            len(self.linear) == 2 and all(0 <= share <= 1 for share in self.linear),
            f"linear = {self.linear}: expected two shares between 0 and 1, at the beginning and the end.",
        )
        require(0 <= self.warmed <= 1, f"warmed = {self.warmed}: expected a share between 0 and 1.")
        require(
            self.geometry.norm == "linf" or self.linear == (0.0, 0.0),
            f"linear bounds are descended in linf, not in {self.geometry.norm}: use ibp.",
        )

    def __rmatmul__(self, objective: object) -> Term:
        return Term(objective, self) if isinstance(objective, Objective) else NotImplemented

    def __str__(self) -> str:
        name = "ibp" if self.linear == (0.0, 0.0) else f"crown-ibp {self.linear[0]:g} to {self.linear[1]:g}"
        return f"bounds({name}, {self.geometry.norm} {self.geometry.eps:g})"

    def settings(self) -> dict[str, Any]:
        """Every field as JSON-ready data, for records."""
        ball = self.geometry
        geometry = {"norm": ball.norm, "eps": ball.eps, "box": [ball.box.low, ball.box.high]}
        return {"bounds": geometry, "linear": list(self.linear)}

    def during(self, warmed: float) -> "Bounds":
        """Return the same when this share of the warm-up is over."""
        return replace(self, warmed=warmed)

    def check(self, predictive: Predictive, x: Points) -> None:
        """Raise `EquipoiseError` unless the model can be bounded at such inputs."""
        translate_live(network_of(predictive), x)

    def worst_case(self, predictive: Predictive, x: Points, y: Labels) -> Prediction:
        """Return the worst-case logits, with gradients of the weights.

        Raises `EquipoiseError` for a model of several networks, and for a layer that cannot be bounded.
        """
        with torch.autocast(x.device.type, enabled=False):
            network = translate_live(network_of(predictive), x)
            first, last = self.linear
            share = first + (last - first) * self.warmed
            eps = x.new_full((len(x),), self.geometry.eps * self.warmed)
            region = Region(x, eps, self.geometry.norm, self.geometry.box)
            bounds = enclosures(network, region, refine=False, lines=share > 0)
            classes, samples = network.nodes[-1].shape[0], torch.arange(len(x), device=x.device)
            rows = differences(classes, x)
            margins = interval_minima(network, bounds, rows.flatten(0, 1)).unflatten(1, (classes, classes))[samples, y]
            if share > 0:
                sample, last = samples.repeat_interleave(classes), len(network.nodes) - 1
                _, by_lines = both_minima(network, bounds, region, last, rows[y].flatten(0, 1), sample)
                if by_lines is not None:  # a network that is affine has no other bounds
                    margins = (1 - share) * margins + share * by_lines.reshape_as(margins)
            return Prediction(-margins[None])


def ibp(eps: float, norm: str = "linf", box: Box = Box()) -> Bounds:
    """Return the worst-case logits by interval bound propagation (Gowal et al. 2018)."""
    return Bounds(Ball(norm, eps, box))


def crown_ibp(eps: float, linear: tuple[float, float] = (1.0, 0.0), norm: str = "linf", box: Box = Box()) -> Bounds:
    """Return the worst-case logits by intervals up to the last layers, and linear bounds from there to the input, the
    share `linear` of which changes over the warm-up (Zhang et al. 2020, Eq. 11).
    """
    return Bounds(Ball(norm, eps, box), linear)


@dataclass(frozen=True)
class WarmedUp(Term):
    """A term whose weight and radius change linearly over a part of the training: the radius from 0."""

    initial: float = 0.0
    """Its weight until the warm-up begins; `weight` is that at the end."""
    warmup: tuple[float, float] = (0.0, 0.5)
    """Beginning and end of the warm-up, as shares of the training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.warmup) == 2 and 0 <= self.warmup[0] <= self.warmup[1] <= 1,
            f"warmup = {self.warmup}: expected its beginning and its end as shares of the training, such as 0 0.5.",
        )
        require(
            self.at is None or isinstance(self.at, Bounds) or hasattr(self.at, "scaled"),
            f"{self.at} has no ball of its own that could grow: warm up a term at an ascent or at bounds.",
        )

    def __str__(self) -> str:
        return f"{super().__str__()} (weight from {self.initial:g}, warm-up {self.warmup[0]:g} to {self.warmup[1]:g})"

    def weighted(self, weight: float) -> "WarmedUp":
        """The term, multiplied by a number, from the beginning on."""
        return replace(self, weight=self.weight * weight, initial=self.initial * weight)

    def during(self, done: float) -> Term:
        """Return the term after the share `done` in [0, 1] of the training."""
        start, end = self.warmup
        warmed = 1.0 if done >= end else max(done - start, 0.0) / (end - start)
        at: Any = self.at
        if isinstance(at, Bounds):
            at = at.during(warmed)
        elif at is not None:
            at = at.scaled(warmed)
        weight = self.initial + (self.weight - self.initial) * warmed
        return Term(self.objective, at, weight, self.reference, self.unlabelled)


def is_warmed_up(method: Method) -> bool:
    """Return whether a term of the method changes over the training by itself."""
    return any(isinstance(term, WarmedUp) for term in method.terms)


def during(method: Method, done: float) -> Method:
    """Return the method after the share `done` in [0, 1] of the training: its terms as far as they are warmed up."""
    if not is_warmed_up(method):
        return method
    terms = (term.during(done) if isinstance(term, WarmedUp) else term for term in method.terms)
    return replace(method, terms=tuple(terms))

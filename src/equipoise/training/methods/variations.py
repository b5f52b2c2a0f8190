"""Methods made of others, for whatever training method: of several norms, of every n-th batch, with a memory of each
sample, with a teacher. They are part of `equipoise.methods`.

    methods.alternating(methods.pgd_at(0.1), methods.udp(2.0, norm="l2"))
    methods.distilled(methods.trades(0.1), teacher, weight=1.0)
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from torch import nn

from equipoise.attacks.ascent import Ascent
from equipoise.core.errors import require, require_integer, require_number
from equipoise.core.schedules import schedulable
from equipoise.core.types import Labels, PerSample, Prediction, Predictive
from equipoise.losses.objectives import Objective
from equipoise.losses.terms import Method, Perturbation, Term, as_method
from equipoise.training.perturbations import Adaptive, Alternating, Remembered, WorstOf

Places = Sequence[Perturbation | None]


@schedulable
def alternating(*alternatives: Method) -> Method:
    """Train by each of several methods in turn, a batch each, at the cost of one (Tramèr & Boneh 2019; of several
    norms, such as `alternating(pgd_at(0.1), pgd_at(2.0, norm="l2"))`). The methods differ in their perturbations alone.
    """
    return _combined(alternatives, lambda places: Alternating(tuple(places)))


@schedulable
def worst_of(*alternatives: Method) -> Method:
    """Train at whichever method's perturbed point has the highest loss, for each sample (Tramèr & Boneh 2019, max). The
    methods differ in their perturbations alone.
    """
    return _combined(alternatives, lambda places: WorstOf(cast(tuple[Ascent, ...], tuple(places))))


@schedulable
def average_of(*alternatives: Method) -> Method:
    """Train by the mean loss of several methods (Tramèr & Boneh 2019, avg)."""
    require(len(alternatives) > 0, "the average of no methods: expected at least one.")
    return cast(Method, sum(alternatives[1:], as_method(alternatives[0])) / len(alternatives))


@schedulable
def every(batches: int, method: Method) -> Method:
    """Perturb one of so many batches, and leave the others clean (mixed training)."""
    require_integer("batches", batches, 1)
    return _with_places(method, lambda at: at if at is None else Alternating((at, *[None] * (batches - 1))))


@schedulable
def remembering(method: Method) -> Method:
    """Start every perturbation where it ended for this sample in the epoch before (FGSM-EP of Jia et al. 2022)."""
    return _with_places(method, lambda at: at if at is None else Remembered(_ascent(at)))


@schedulable
def adaptive_eps(method: Method, increment: float = 1.9 / 255, smoothing: float = 0.1, largest: float = 1.0) -> Method:
    """Give every sample a radius of its own, which grows while the model withstands the attack (Balaji et al. 2019).

    Parameters:
        increment: How much larger or smaller a radius is tried.
        smoothing: Share of the change that a radius follows.
        largest: Largest radius.
    """
    return _with_places(method, lambda at: at and Adaptive(_ascent(at), increment, smoothing, largest))


@schedulable
def distilled(
    method: Method, teacher: "nn.Module | Predictive", weight: float = 1.0, temperature: float = 1.0
) -> Method:
    """Add what a teacher says: `method + λ T² KL(t(x)_T ‖ f(x')_T)` at the method's first perturbation, both softmax at
    temperature T (robust distillation: ARD of Goldblum et al. 2020; without perturbation Hinton et al. 2015).
    The teacher is frozen, in eval mode, at the clean input.

    Parameters:
        teacher: The other model, of the same classes.
        weight: Weight λ, >= 0.
        temperature: T, > 0.
    """
    require_number("weight", weight)
    require(weight >= 0, f"weight = {weight}: expected a number >= 0.")
    require(temperature > 0, f"temperature = {temperature}: expected a number > 0.")
    method = as_method(method)
    at = next((place for place in method.perturbations if isinstance(place, Perturbation)), None)
    softened = Objective("softened-KL", _softened_kl, (("temperature", float(temperature)),), needs_clean=True)
    return method + weight * Term(softened, at).against(teacher)


def _softened_kl(
    here: Prediction, clean: Prediction, labels: Labels | None, target: Labels | None, *, temperature: float
) -> PerSample:
    """`T² KL(q_T ‖ p_T)`."""
    p, q = ((one.scores / temperature).log_softmax(1) for one in (here, clean))
    return temperature**2 * (q.exp() * (q - p)).sum(1)


def _squared_difference(here: Prediction, clean: Prediction, labels: Labels | None, target: Labels | None) -> PerSample:
    return (here.scores - clean.scores).square().mean(1)


squared_difference = Objective("squared-difference", _squared_difference, needs_clean=True)
"""`(1/C) ‖z - z'‖²` of the logits here and there."""


def _combined(alternatives: Sequence[Method], combine: Callable[[Places], Any]) -> Method:
    """The method whose every perturbation is made of those at the same place in the alternatives."""
    require(len(alternatives) > 0, "a combination of no methods: expected at least one.")
    alternatives = [_changeable(as_method(one)) for one in alternatives]
    first, shapes = alternatives[0], [_shape(one) for one in alternatives]
    for other, shape in zip(alternatives, shapes, strict=True):
        require(
            shape == shapes[0],
            f"{first} and {other} differ in more than their perturbations: combine methods of the same terms, or add "
            "them up.",
        )
    columns = zip(*(one.terms for one in alternatives), strict=True)
    terms = (replace(t[0], at=t[0].at and combine([term.at for term in t])) for t in columns)
    return replace(first, terms=tuple(terms))


def _shape(method: Method) -> Any:
    """All but the perturbations."""
    return [(replace(term, at=None), term.at is None) for term in method.terms], method.penalties


def _changeable(method: Method) -> Method:
    """The method itself. Raises `EquipoiseError` if its perturbations cannot be exchanged for others."""
    for term in method.terms:
        require(
            term.at is None or isinstance(term.at, Perturbation),
            f"{term}: it is evaluated at bounds, not at perturbed points, so there are none to change: take a method "
            "such as pgd_at.",
        )
        require(
            not isinstance(term.reference, Perturbation),
            f"{term}: it compares with points of that perturbation, which cannot be changed: take a method such as "
            "pgd_at.",
        )
    return method


def _with_places(method: Method, change: Callable[[Any], Any]) -> Method:
    """The method with its perturbations changed, those that are equal alike."""
    method = _changeable(as_method(method))
    require(any(method.perturbations), f"{method} perturbs nothing that could be varied: take a method such as pgd_at.")
    new = {at: change(at) for at in method.perturbations}
    return replace(method, terms=tuple(replace(term, at=new[term.at]) for term in method.terms))


def _ascent(at: Any) -> Ascent:
    require(isinstance(at, Ascent), f"{at}: expected the ascent of a method such as pgd_at.")
    return at

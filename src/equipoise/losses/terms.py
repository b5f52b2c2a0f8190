"""A training method is a sum of terms: an objective, evaluated at a point, with a weight.

    cross_entropy @ udp(...)                          UDP training
    cross_entropy + 6.0 * (kl() @ trades(...))        TRADES

The objective of a term sees the clean prediction live, with its gradient; inside an ascent it is held fixed. Terms at
the same point share one perturbed batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor, nn

from equipoise.core.checks import check_fields, check_index, check_labels, checked_call
from equipoise.core.deprecation import renamed_attribute
from equipoise.core.errors import EquipoiseError, kind_of, require, require_integer
from equipoise.core.rng import Streams, fold
from equipoise.core.types import Labels, PerSample, Points, Predict, Prediction, Predictive
from equipoise.losses.algebra import Summand, summand
from equipoise.losses.memory import BatchMemory, SampleMemory
from equipoise.losses.objectives import Objective, each
from equipoise.models import as_predictive, frozen, live


@runtime_checkable
class Perturbation(Protocol):
    """Something that moves a batch to where a term is evaluated: an ascent."""

    def perturb(self, predictive: Predictive, x: Points, y: Labels, streams: Streams) -> Points:
        """The points at which to evaluate, cut from the graph."""
        ...

    def settings(self) -> dict[str, Any]:
        """Every field as JSON-ready data, for records."""
        ...

    def predict_at(self, predictive: Predictive, x: Points, point: Points, streams: Streams) -> Prediction:
        """The live prediction at such a point."""
        ...


@runtime_checkable
class WorstCase(Protocol):
    """Something that bounds the logits over a ball, where a term is evaluated instead of at a point: `losses.ibp`."""

    def worst_case(self, predictive: Predictive, x: Points, y: Labels) -> Prediction:
        """The live worst-case logits."""
        ...

    def settings(self) -> dict[str, Any]:
        """Every field as JSON-ready data, for records."""
        ...


@runtime_checkable
class AuxiliaryNetwork(Protocol):
    """Another network that is trained alongside the classifier, which a penalty owns as its `auxiliary_network`: it has
    a loss and an optimiser of its own, and takes its steps after each step of the classifier, which is then frozen.
    """

    @property
    def name(self) -> str:
        """What its metrics and its files are called."""
        ...

    @property
    def steps(self) -> int:
        """Steps it takes for each of the classifier's."""
        ...

    def network(self) -> nn.Module:
        """Its network."""
        ...

    def config(self) -> dict[str, Any]:
        """All that is needed to build the network again, JSON-ready."""
        ...

    def build_for(self, shape: tuple[int, ...], seed: int) -> "AuxiliaryNetwork":
        """The same with a network for inputs of that shape."""
        ...

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of its network."""
        ...

    def losses(self, predict: Predict, x: Points) -> tuple[PerSample, dict[str, PerSample]]:
        """Its loss per sample against that classifier, with its graph, and what else is to be recorded."""
        ...

    def show(self, x: Points) -> Points:
        """What to look at after an epoch: an image for each of a few."""
        ...


def _sum(first: Summand, second: Summand) -> "Method":
    """The method of the terms and penalties of both."""
    a, b = as_method(first), as_method(second)
    return Method(a.terms + b.terms, a.penalties + b.penalties)


@dataclass(frozen=True)
class Term(Summand):
    """`weight · objective`, evaluated at the clean input or at an ascent's point."""

    objective: Objective
    """The objective."""
    at: Perturbation | WorstCase | None = None
    """Where: None is the clean input."""
    weight: float = 1.0
    """Its weight in the sum."""
    reference: "Perturbation | Predictive | None" = None
    """What an objective of two predictions, such as KL, compares with: the prediction at another perturbation's points,
    or another model's at the clean input; by default the model's own at the clean input."""
    unlabelled: bool = False
    """Whether it is evaluated on the unlabelled samples of the training."""

    total = staticmethod(_sum)

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            self.reference is None or self.objective.needs_clean,
            f"{self.objective.name} compares with nothing: a reference is for objectives of two predictions, as kl().",
        )
        for part in _needing_labels(self) if self.unlabelled else ():
            raise EquipoiseError(
                f"{part} needs labels, and unlabelled samples have none: use kl() or entropy, at udp points."
            )

    def __str__(self) -> str:
        """Such as `2·(entropy) @ ...`."""
        factor = "" if self.weight == 1 else f"{self.weight:g}·"
        place = "" if self.at is None else f" @ {self.at}"
        other = "" if self.reference is None else f" against {_named(self.reference)}"
        return f"{factor}({self.objective.name}){place}{other}" + (" on unlabelled samples" if self.unlabelled else "")

    def weighted(self, weight: float) -> "Term":
        """The term, multiplied by a number."""
        return replace(self, weight=self.weight * weight)

    @checked_call()
    def against(self, reference: "Perturbation | Predictive | nn.Module") -> "Term":
        """The term compared with another prediction: that of a teacher, `(kl() @ trades(...)).against(teacher)` (ARD of
        Goldblum et al. 2020), with constant weights and in eval mode at the clean input, or the model's own at the
        points of another perturbation.
        """
        other = as_predictive(reference) if isinstance(reference, nn.Module) else reference
        return replace(self, reference=cast(Any, other))

    def on_unlabelled(self) -> "Term":
        """The term on the unlabelled samples of the training: `fit(..., unlabelled=x)`, or `loss(..., unlabelled=x)`.
        Raises `EquipoiseError` if it, or its ascent, needs labels.
        """
        return replace(self, unlabelled=True)

    def loss(self, model: "nn.Module | Predictive", x: Points, y: Labels, **options: Any) -> Tensor:
        """The loss of the method that consists of this term alone, see `Method.loss`."""
        return Method((self,)).loss(model, x, y, **options)


Penalty = Callable[[nn.Module, Points, Labels], Tensor]


@dataclass(frozen=True)
class Method(Summand):
    """The sum that training descends: `Σ weight · objective @ point + Σ weight · penalty`."""

    terms: tuple[Term, ...]
    """The terms."""
    penalties: tuple[tuple[float, Penalty], ...] = ()
    """Weighted penalties on the model itself, `(weight, function (module, x, y) -> scalar)`."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(len(self.terms) > 0, "a training method needs at least one term, such as the objective cross_entropy.")
        for _, penalty in self.penalties:
            require(
                not hasattr(penalty, "player"), f"{_name(penalty)}.player is called auxiliary_network now: rename it."
            )

    total = staticmethod(_sum)

    def weighted(self, weight: float) -> "Method":
        """The method, multiplied by a number."""
        return Method(tuple(weight * t for t in self.terms), tuple((weight * w, p) for w, p in self.penalties))

    @checked_call()
    def with_penalty(self, weight: float, penalty: Penalty) -> "Method":
        """The method with one more penalty on the model."""
        return Method(self.terms, (*self.penalties, (weight, penalty)))

    def per_member(self, total: bool = True) -> "Method":
        """The method with separate losses for the members of an ensemble, instead of the loss of their mean prediction:
        every term is summed over the members, at the points where the ensemble as a whole is attacked
        (Lakshminarayanan et al. 2017). Without `total` the mean over the members: of samples of a posterior, the
        expected loss. A term that compares members, as that of ADP does, stays.
        """
        return replace(
            self,
            terms=tuple(
                term if term.objective.members > 1 else replace(term, objective=each(term.objective, total))
                for term in self.terms
            ),
        )

    def __str__(self) -> str:
        """The sum in words."""
        return " + ".join([*map(str, self.terms), *(f"{w:g}·{_name(p)}" for w, p in self.penalties)])

    def settings(self) -> list[Any]:
        """Every term with all its parameters as JSON-ready data, and the penalties by name, for records."""
        terms = [_settings_of(term) for term in self.terms]
        return [*terms, *({"weight": w, "penalty": _name(p)} for w, p in self.penalties)]

    def check(self, classes: int, members: int = 1) -> None:
        """Raise `EquipoiseError` if a term or its ascent is not defined for that many classes, or members."""
        inner = (getattr(at, "objective", None) for at in self.all_perturbations)
        for objective in (*(term.objective for term in self.terms), *inner):
            if isinstance(objective, Objective):
                objective.check(classes, labels=True, target=False, members=members)

    def points(
        self, predictive: Predictive, x: Points, y: Labels, streams: Streams, memory: "BatchMemory | None" = None
    ) -> list[Points | None]:
        """The batch under each of the `perturbations`, None where it is not moved. `memory` is what those that remember
        something keep of these samples; without it these are perturbed as the first time.
        """
        places = self.perturbations
        memory = memory or SampleMemory().of(torch.arange(len(x), device=x.device))
        return [
            _perturbed(at, predictive, x, y, streams.fold(i), memory, places) if isinstance(at, Perturbation) else None
            for i, at in enumerate(places)
        ]

    @property
    def perturbations(self) -> list[Perturbation | WorstCase | None]:
        """The distinct perturbations and bounds of its terms in order of first use, None for the clean input."""
        references = (term.reference for term in self.terms if isinstance(term.reference, Perturbation))
        return list(dict.fromkeys([*(term.at for term in self.terms), *references]))

    @property
    def all_perturbations(self) -> list[Perturbation]:
        """Its perturbations, and those of which they are made."""
        moved = (at for at in self.perturbations if isinstance(at, Perturbation))
        return list(dict.fromkeys(one for at in moved for one in _within(at)))

    @property
    def remembers(self) -> bool:
        """Whether a perturbation of it keeps something of each sample."""
        return any(getattr(at, "remembers", False) for at in self.perturbations)

    @property
    def on_unlabelled(self) -> "Method | None":
        """Its terms on unlabelled samples, as a method of their own; None if it has none."""
        terms = tuple(replace(term, unlabelled=False) for term in self.terms if term.unlabelled)
        return Method(terms) if terms else None

    @property
    def on_labelled(self) -> "Method":
        """The rest of it. Raises `EquipoiseError` if there is none."""
        terms = tuple(term for term in self.terms if not term.unlabelled)
        require(len(terms) > 0, "the method has terms on unlabelled samples alone: add one that learns from labels.")
        return self if len(terms) == len(self.terms) else replace(self, terms=terms)

    places = renamed_attribute("places", "perturbations")

    @property
    def auxiliary_networks(self) -> list[AuxiliaryNetwork]:
        """The distinct auxiliary networks of its penalties, in order of first use."""
        owned = (getattr(penalty, "auxiliary_network", None) for _, penalty in self.penalties)
        return list(dict.fromkeys(network for network in owned if network is not None))

    def build_for(self, shape: tuple[int, ...], seed: int) -> "Method":
        """The method with its auxiliary networks made for inputs of that shape, where they are not given. Raises
        `EquipoiseError` if two of them have one name, or a given network is for other inputs.
        """
        networks = self.auxiliary_networks
        require(
            len({network.name for network in networks}) == len(networks),
            "two auxiliary networks of the method have one name, which their files would share: let the penalties have "
            "the same.",
        )
        return self.with_networks([network.build_for(shape, fold(seed, i)) for i, network in enumerate(networks)])

    def with_networks(self, networks: Sequence[AuxiliaryNetwork]) -> "Method":
        """The method with these in place of its auxiliary networks, in their order."""
        new = dict(zip(self.auxiliary_networks, networks, strict=True))

        def with_network(penalty: Any) -> Penalty:
            network = getattr(penalty, "auxiliary_network", None)
            return penalty if network is None else replace(penalty, auxiliary_network=new[network])

        return replace(self, penalties=tuple((weight, with_network(penalty)) for weight, penalty in self.penalties))

    @checked_call()
    def loss(
        self,
        model: "nn.Module | Predictive",
        x: Points,
        y: Labels,
        *,
        step: int,
        seed: int = 0,
        index: Int[Tensor, " batch"] | None = None,
        memory: SampleMemory | None = None,
        unlabelled: Points | None = None,
    ) -> Tensor:
        """Return the mean loss of a batch, with its graph: all that a training loop of your own needs.

            method.loss(net, x, y, step=step).backward()

        The perturbed points are found first, on a copy of the model; `step` is the number of the step of training, so
        that every step draws other starts and numbers of steps. With `index`, the numbers of the samples, draws belong
        to samples instead of places in the batch. `memory` holds what perturbations such as `Remembered` keep of each
        sample, and goes with `index`; `unlabelled` are further samples, for the terms `on_unlabelled`. Raises
        `EquipoiseError` for an unusable model, and for unusable points, labels or numbers.
        """
        predictive = as_predictive(model)
        require(isinstance(x, Tensor), f"x is {kind_of(x)}: expected a torch tensor of shape (batch, ...).")
        require(len(x) > 0, f"x is empty (shape {tuple(x.shape)}): expected at least one sample.")
        check_labels("y", y, len(x), None)
        require_integer("step", step)
        require_integer("seed", seed)
        if index is not None:
            check_index(index, len(x))
        index = torch.arange(len(x), device=x.device) if index is None else index.to(x.device)
        streams = Streams.of(fold(seed, step), index, batch=step)
        require(
            not self.remembers or memory is not None,
            "the method keeps something of each sample: give loss memory=SampleMemory(), the same in every step, and "
            "index, the numbers of the samples.",
        )
        method, further = self.on_labelled, self.on_unlabelled
        points = method.points(predictive, x, y, streams, None if memory is None else memory.of(index))
        losses, _ = method.losses(predictive, x, y, points, streams)
        if further is None:
            return losses.mean()
        require(
            unlabelled is not None and len(unlabelled) > 0,
            "the method has a term on unlabelled samples: give loss unlabelled=x, inputs without labels.",
        )
        others = cast(Points, unlabelled)
        numbers = torch.arange(len(others), device=x.device)
        more, none = Streams.of(fold(seed, step, 1), numbers, batch=step), numbers.new_zeros(len(others))
        further_losses, _ = further.losses(
            predictive, others, none, further.points(predictive, others, none, more), more
        )
        return losses.mean() + further_losses.mean()

    def losses(
        self, predictive: Predictive, x: Points, y: Labels, points: list[Points | None], streams: Streams
    ) -> tuple[PerSample, Prediction]:
        """The sum per sample, with its graph, and the first live prediction made."""
        predict = live(predictive, streams)

        def output(at: Perturbation | WorstCase | None, point: Points | None) -> Prediction:
            if isinstance(at, Perturbation) and point is not None:
                return at.predict_at(predictive, x, point, streams)
            return at.worst_case(predictive, x, y) if isinstance(at, WorstCase) else predict(x)

        outputs = {at: output(at, point) for at, point in zip(self.perturbations, points, strict=True)}
        first = next(iter(outputs.values()))
        if None not in outputs and any(term.objective.needs_clean and term.reference is None for term in self.terms):
            outputs[None] = predict(x)
        teachers = {
            teacher: _taught(teacher, x, streams)
            for term in self.terms
            if (teacher := term.reference) is not None and not isinstance(teacher, Perturbation)
        }
        references: dict[Any, Prediction] = {**outputs, **teachers}
        total = torch.zeros(len(x), device=x.device, dtype=first.logits.dtype)
        for term in self.terms:
            compared = references.get(term.reference)
            total = total + term.weight * term.objective(outputs[term.at], compared, y)
        for weight, penalty in self.penalties:
            total = total + weight * penalty(predictive.module, x, y)
        return total, first


def _within(at: Perturbation) -> Iterator[Perturbation]:
    """A perturbation, and those of which it is made."""
    yield at
    for part in getattr(at, "parts", ()):
        if part is not None:
            yield from _within(part)


def _needing_labels(term: Term) -> Iterator[str]:
    """What needs labels of a term and all that its perturbation is made of."""
    for one in (term, *(() if term.at is None else _within(cast(Perturbation, term.at)))):
        objective = getattr(one, "objective", None)
        if isinstance(objective, Objective) and objective.needs_labels:
            yield objective.name
        if isinstance(one, WorstCase) or getattr(one, "needs_labels", False):
            yield str(one)


def _perturbed(
    at: Perturbation,
    predictive: Predictive,
    x: Points,
    y: Labels,
    streams: Streams,
    memory: BatchMemory,
    places: Sequence[object],
) -> Points:
    """The points of a perturbation; one that remembers something gets its part of the memory, or that of another."""
    if not getattr(at, "remembers", False):
        return at.perturb(predictive, x, y, streams)
    owner = getattr(at, "remembered_by", at)
    return cast(Any, at).perturb(predictive, x, y, streams, memory=memory.part(places.index(owner)))


def _taught(teacher: Predictive, x: Points, streams: Streams) -> Prediction:
    """The prediction of another model, a constant."""
    with torch.no_grad():
        return frozen(teacher).draw(streams)(x)


def _settings_of(term: Term) -> dict[str, Any]:
    reference = {} if term.reference is None else {"reference": _named(term.reference)}
    return {
        "weight": term.weight,
        "objective": term.objective.settings(),
        "at": None if term.at is None else term.at.settings(),
        **reference,
        **({"unlabelled": True} if term.unlabelled else {}),
    }


def _named(reference: "Perturbation | Predictive") -> str:
    return str(reference) if isinstance(reference, Perturbation) else f"a {type(reference.module).__name__}"


def _name(penalty: Penalty) -> str:
    return getattr(penalty, "__name__", type(penalty).__name__)


def as_method(part: object) -> Method:
    """An objective, a term or a method as a method. Raises `EquipoiseError` for anything else."""
    part = summand(part)
    if isinstance(part, Objective):
        part = Term(part)
    return Method((part,)) if isinstance(part, Term) else cast(Method, part)

"""The contract of every attack, and what an attack needs to define to fulfil it.

    result = attack(model, x, y, seed=0)        # one outcome per sample, every success confirmed

`Attack` validates the input once, works on a private copy of the model, splits the samples into batches and confirms
what was found. A search of your own is one method: a `SearchAttack` with a `search` that returns `Candidates`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import wraps
from inspect import isfunction
from typing import Any, ClassVar, Protocol, cast, final, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from equipoise.attacks.active import SampleTable
from equipoise.attacks.inputs import AttackInputs, validated_inputs
from equipoise.attacks.result import AttackResult, likely_classes
from equipoise.core import progress
from equipoise.core.checks import check_fields
from equipoise.core.errors import EquipoiseError, NoGradient, require
from equipoise.core.types import Answers, Labels, PerSample, Points, Prediction, Predictive, answers_of
from equipoise.geometry import Ball
from equipoise.losses.objectives import Objective


@runtime_checkable
class AttackLike(Protocol):
    """What `Chain` and `evaluate` run: an `Attack`, or an object that looks like one."""

    @property
    def geometry(self) -> Ball:
        """Where perturbed points may lie."""
        ...

    def settings(self) -> dict[str, Any]:
        """Every parameter, JSON-ready."""
        ...

    def __call__(
        self,
        model: "nn.Module | Predictive",
        x: Points,
        y: Labels | None = None,
        *,
        seed: int = 0,
        index: Int[Tensor, " batch"] | None = None,
        batch_size: int = 512,
    ) -> AttackResult:
        """Perturb a batch."""
        ...


@runtime_checkable
class Wrapped(Protocol):
    """An attack that is made of another one: a frozen dataclass with that one as its field `attack`."""

    @property
    def attack(self) -> AttackLike:
        """The other one."""
        ...


class Attack(ABC):
    """Base class of every attack: a frozen dataclass with a ball as its `geometry`."""

    geometry: Ball
    """Where perturbed points may lie."""
    kind: ClassVar[str]
    """The name of the attack in records and messages."""
    needs_labels: ClassVar[bool] = False
    """Whether `y` must be given. Without labels an attack leads away from the prediction at the clean point."""
    asks_for: ClassVar[Answers | None] = None
    """What the model must give: `gradients`, `scores`, or `labels` alone. None stands for gradients, or of an attack
    made of others for whatever these ask for."""
    takes_targets: ClassVar[bool] = False
    """Whether it can be told which classes to reach; one that is made of others, if they all can."""
    takes_starts: ClassVar[bool] = False
    """Whether it can be told from which points to start."""
    takes_radii: ClassVar[bool] = False
    """Whether its ball may have a radius for each sample."""

    def __init_subclass__(cls) -> None:
        """Have `repr` give the short `str` of an attack, and check the types of its fields before anything else."""
        if "__repr__" not in vars(cls):
            cls.__repr__ = cls.__str__
        own = vars(cls).get("__post_init__")
        if own is not None:

            @wraps(own)
            def checked(self: Any) -> None:
                check_fields(self)
                own(self)

            setattr(cls, "__post_init__", checked)  # noqa: B010, as a type checker takes offence at the plain form

    def __post_init__(self) -> None:
        check_fields(cast(Any, self))

    def __str__(self) -> str:
        settings, ball = vars(self), self.geometry
        counts = [f"{settings[name]} {name}" for name in ("steps", "targets", "queries", "draws") if name in settings]
        return f"{self.kind}({', '.join([f'{ball.norm} {ball.eps:g}', *counts])})"

    def __rmatmul__(self, objective: object) -> Any:
        name = getattr(objective, "__name__", str(objective))
        call = f"{name} is a function: write {name}()" if isfunction(objective) else "such as cross_entropy @ pgd(0.1)"
        raise EquipoiseError(f"{name} @ {self}: expected an objective on the left and an ascent on the right; {call}.")

    @final
    @torch.no_grad()
    def __call__(
        self,
        model: "nn.Module | Predictive",
        x: Points,
        y: Labels | None = None,
        *,
        target: Labels | None = None,
        seed: int = 0,
        index: Int[Tensor, " batch"] | None = None,
        batch_size: int = 512,
        start: Points | None = None,
    ) -> AttackResult:
        """Perturb `x` and return the outcome per sample.

        `x` are inputs in the box, `y` their true classes, `target` the classes to reach, `index` the numbers of the
        samples on which their random draws depend (default 0, 1, ...), `batch_size` how many points are computed at
        once, `start` the points to start from (projected). Where samples depend on each other, all of `x` is one batch.
        Raises `EquipoiseError` for a wrong type, shape, dtype, device, range, label or pairing, and for a model that
        the attack cannot work on.
        """
        require(y is not None or not self.needs_labels, f"{self.kind} needs the labels y: give the true classes.")
        refusal = "" if target is None else untargeted(self)
        require(not refusal, f"{refusal} takes no target classes: leave out target.")
        require(
            start is None or self.takes_starts,
            f"{self.kind} takes no points to start from: leave out start.",
        )
        require(
            not self.geometry.varies or self.takes_radii,
            f"{self.kind} takes one eps for all samples: a radius for each is for gradient attacks such as pgd.",
        )
        if isinstance(x, Tensor) and x.ndim > 0:
            self.geometry.check_count(len(x))
        given = {"target": target, "seed": seed, "index": index, "batch_size": batch_size, "start": start}
        with validated_inputs(
            model, x, y, self.geometry, **given, draws=getattr(self, "mode", "eval") == "train"
        ) as inputs:
            check_answers(self.kind, self, inputs.predictive)
            return self.run(inputs)

    @abstractmethod
    def run(self, inputs: AttackInputs) -> AttackResult:
        """The outcome for input that has been validated."""

    def settings(self) -> dict[str, Any]:
        """Every parameter as JSON-ready data, for records."""
        return described(self.kind, self)


class Composite(Attack):
    """An attack made of several, whose results carry the number of the part that made them."""

    parts: tuple[tuple[str, AttackLike], ...]
    """Names and attacks."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parts, to which `AttackResult.part` is an index."""
        return tuple(name for name, _ in self.parts)

    def __str__(self) -> str:
        return f"{self.kind} of {', '.join(self.names)}"


def asked_for(attack: Any) -> Answers:
    """What the attack asks a model for, or the most that one of its parts does."""
    declared = getattr(attack, "asks_for", None)
    parts = [part for _, part in getattr(attack, "parts", ())] or [getattr(attack, "attack", None)]
    if declared is not None or parts[0] is None:
        return declared or "gradients"
    return max(map(asked_for, parts), key=get_args(Answers).index)


def check_answers(name: str, attack: Any, predictive: Predictive) -> None:
    """Raise `EquipoiseError`, which names the attacks that apply, unless the model gives what the attack `name` asks
    for: `NoGradient` if these are gradients.
    """
    given, asked = answers_of(predictive), asked_for(attack)
    order = get_args(Answers).index
    if order(asked) <= order(given):
        return
    parts = ", ".join(part for part, inner in getattr(attack, "parts", ()) if asked_for(inner) == asked)
    model = getattr(predictive, "original", predictive)
    raise (NoGradient if asked == "gradients" else EquipoiseError)(
        f"{name} needs {asked}{parts and f' for {parts}'}, and {model} gives {given} alone. "
        f"Attacks that apply: {', '.join(APPLICABLE[given])}, and transfer from another model."
    )


APPLICABLE: dict[Answers, tuple[str, ...]] = {
    "scores": ("square", "hop-skip-jump", "random-search"),
    "labels": ("hop-skip-jump", "random-search"),
}
"""The attacks that apply to a model which gives no more than this, the strongest first."""


def untargeted(attack: Any) -> str:
    """The attack, or the part of it, that takes no targets; empty if all do."""
    parts = [part for _, part in getattr(attack, "parts", ())] or [getattr(attack, "attack", None)]
    if parts[0] is not None:
        return next((name for part in parts if (name := untargeted(part))), "")
    return "" if getattr(attack, "takes_targets", False) else str(getattr(attack, "kind", attack))


def described(name: str, attack: Any) -> dict[str, Any]:
    """The record of an attack: its name, and the fields of its dataclass as JSON-ready data. The attack of which it is
    made, its field `attack`, is recorded as `of`; `norm` and `eps` are those of its `geometry`.
    """
    names = {f.name: "of" if f.name == "attack" else f.name for f in fields(attack) if f.name not in ("norm", "eps")}
    return {"attack": name, **{new: _plain(getattr(attack, field)) for field, new in names.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, Objective | AttackLike):
        return value.settings()
    if is_dataclass(value) and not isinstance(value, type):
        kind = {} if isinstance(value, Ball) else {"kind": type(value).__name__}
        columns = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        return kind | {name: column for name, column in columns.items() if name != "radii" or column is not None}
    if isinstance(value, Tensor):
        return value.tolist()
    match value:
        case (str(name), AttackLike() as part):
            return {"name": name, **part.settings()}
        case tuple() | list():
            return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


@dataclass
class Candidates(SampleTable):
    """What a search found, per sample: a point, and what it cost."""

    point: Points
    """The candidate point; the clean one where none was found."""
    evaluations: Int[Tensor, " batch"]
    """How often the model was evaluated."""
    iteration: Int[Tensor, " batch"]
    """At which step the point was found; 0 is the clean one."""
    nan: Int[Tensor, " batch"] | None = None
    """Steps with a gradient that is not finite."""
    zero: Int[Tensor, " batch"] | None = None
    """Steps with a gradient of 0."""
    claimed: Bool[Tensor, " batch"] | None = None
    """What a search in lower precision took for a success, and stopped at: what float32 denies is searched again."""

    @staticmethod
    def unmoved(x: Points) -> "Candidates":
        """Before the search: the clean points, and no costs."""
        return Candidates(x.clone(), *(torch.zeros(len(x), dtype=torch.int64, device=x.device) for _ in range(4)))

    def count(
        self,
        index: Int[Tensor, " rows"],
        nan: Bool[Tensor, " rows"] | None = None,
        zero: Bool[Tensor, " rows"] | None = None,
    ) -> None:
        """Count an evaluation of each of the samples `index`, which may occur more than once, and the gradients there
        that are not finite, or 0.
        """
        self.evaluations.index_add_(0, index, torch.ones_like(index))
        for counter, events in ((self.nan, nan), (self.zero, zero)):
            if counter is not None and events is not None:
                counter.index_add_(0, index, events.long())


@dataclass(frozen=True)
class Batch(SampleTable):
    """Samples that a search works on."""

    inputs: AttackInputs
    """The model, the points, their classes and their random streams."""
    clean: Prediction
    """The prediction at the clean points."""
    best: AttackResult
    """The outcome so far."""
    value: PerSample
    """Minus the margin at the best point so far, or the margin of the target: positive is a success."""
    restart: int = 0
    """The number of the attempt, from 0."""

    @property
    def x(self) -> Points:
        """The clean points."""
        return self.inputs.x

    @property
    def label(self) -> Labels:
        """The classes to lead away from."""
        return cast(Labels, self.inputs.y)

    def targets(self, count: int) -> Int[Tensor, "batch targets"]:
        """The given target of every sample, or the `count` most likely classes other than the label."""
        given = self.inputs.target
        return likely_classes(self.clean, self.label, count) if given is None else given[:, None]

    def predict(self, points: Points) -> Prediction:
        """The prediction at points, one for each of the samples."""
        return self.inputs.predict(points)

    def with_rows(self, index: Tensor, new: "Batch") -> "Batch":
        """The batch with the results of the samples `index` replaced by those of `new`."""
        value = self.value.index_copy(0, index, new.value)
        return replace(self, best=self.best.with_rows(index, new.best), value=value)


class SearchAttack(Attack):
    """An attack that perturbs every sample independently, from the clean point on.

    A sample that is misclassified already (with a target: as that) stays as it is. `search` looks for a point for each
    of the others, which counts if the model is confirmed to be wrong there and the point lies in the ball.
    """

    returns_best: ClassVar[bool] = False
    """Whether a sample that is never fooled returns the point of its smallest margin; else it stays as it is."""
    in_pieces: ClassVar[bool] = True
    """Whether a large batch is searched in pieces that stay in the cache."""
    targets = 1
    """Number of target classes per sample, searched side by side."""
    restarts = 1
    """Number of searches."""
    return_point = "first_success"
    """Which point counts: with `nearest`, restarts include the samples that are fooled already."""

    @abstractmethod
    def search(self, batch: Batch) -> Candidates:
        """Look for a point for every sample of a batch."""

    @final
    def run(self, inputs: AttackInputs) -> AttackResult:
        """The best of all restarts for the samples that are classified correctly; the others stay."""
        inputs.require_independent(self.kind)
        return AttackResult.cat([self._attack(inputs[index]) for index in inputs.batches(inputs.batch_size)])

    def _attack(self, inputs: AttackInputs) -> AttackResult:
        inputs = replace(inputs, y=own_labels(inputs))
        outcome, clean = unperturbed(inputs, self.geometry)
        batch, correct = Batch(inputs, clean, outcome, inputs.criterion.margin(clean)), ~outcome.success
        together = 1 if inputs.target is not None else min(self.targets, inputs.classes - 1)
        size = max(inputs.points_at_once // together, 1) if self.in_pieces else inputs.batch_size
        for restart in progress.shares(range(self.restarts)):
            active = (correct if self.return_point == "nearest" else ~batch.best.success).nonzero()[:, 0]
            if len(active) == 0:
                break
            for index in progress.shares(active.split(size)):
                batch = batch.with_rows(index, self._attempt(replace(batch[index], restart=restart)))
        return inputs.judge(self.geometry, batch.best)

    def _attempt(self, batch: Batch) -> Batch:
        """One search; the better of its outcome and that of before."""
        candidates, old = self.search(batch), batch.best
        new, output = batch.inputs.confirm(
            self.geometry,
            candidates.point,
            evaluations=candidates.evaluations,
            iteration=candidates.iteration,
            nan_gradients=candidates.nan,
            zero_gradients=candidates.zero,
        )
        value = batch.inputs.criterion.margin(output)
        if self.returns_best:
            better = new.success | (value > batch.value) | (batch.restart == 0)
        else:
            better = new.success & (~old.success | (new.distance < old.distance))
        batch = replace(batch, best=old.where(new, better), value=torch.where(better, value, batch.value))
        if candidates.claimed is None:
            return batch
        denied = (candidates.claimed & ~new.success).nonzero()[:, 0]
        if len(denied) == 0:
            return batch
        return batch.with_rows(denied, replace(cast(Any, self), precision="32")._attempt(batch[denied]))


def own_labels(inputs: AttackInputs) -> Labels:
    """The true labels, or without labels the classes predicted at the clean points (0 where these are not finite)."""
    if inputs.y is not None:
        return inputs.y
    return inputs.predict(inputs.x).labels.clamp_min(0)


def unperturbed(inputs: AttackInputs, geometry: Ball) -> tuple[AttackResult, Prediction]:
    """The outcome at the clean points, a success where the model is wrong already, and the prediction."""
    none = torch.zeros_like(cast(Labels, inputs.y))
    return inputs.confirm(geometry, inputs.x, evaluations=none, iteration=none)

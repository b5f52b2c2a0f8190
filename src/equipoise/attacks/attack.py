"""The contract of every attack, and what an attack needs to define to fulfil it.

    result = attack(model, x, y, seed=0)        # one outcome per sample, every success confirmed

`Attack` validates the input once, works on a private copy of the model, splits the samples into batches and confirms
what was found. A search of your own is one method: a `SearchAttack` with a `search` that returns `Candidates`.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Protocol, cast, final, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from equipoise.attacks.inputs import AttackInputs, validated_inputs
from equipoise.attacks.result import AttackResult, Criterion, confirm, judged
from equipoise.core import progress
from equipoise.core.errors import require
from equipoise.core.rng import Stream
from equipoise.core.types import Labels, PerSample, Points, Prediction, Predictive
from equipoise.geometry import Ball
from equipoise.losses.objectives import margin
from equipoise.models import predict


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


@runtime_checkable
class Composite(Protocol):
    """An attack made of several."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parts, to which `AttackResult.part` is an index."""
        ...


class Attack(ABC):
    """An attack on a batch of samples: a frozen dataclass with a ball as its `geometry`.

    Whatever the attack, the model's parameters, gradients, buffers and modes, the random generators and what the thread
    has set up are left as they were; random draws depend on `seed` and on each sample's `index`, and results neither on
    `batch_size` nor on the order, up to float rounding.
    """

    geometry: Ball
    kind: ClassVar[str]
    """What records and messages call the attack."""
    needs_labels: ClassVar[bool] = False
    """Whether `y` must be given. Without labels an attack leads away from the prediction at the clean point."""
    takes_targets: ClassVar[bool] = False
    """Whether it can be told which classes to reach, and from which points to start."""

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
        require(
            (target is None and start is None) or self.takes_targets,
            f"{self.kind} takes neither target classes nor points to start from: leave out target and start.",
        )
        given = {"target": target, "seed": seed, "index": index, "batch_size": batch_size, "start": start}
        with validated_inputs(
            model, x, y, self.geometry, **given, draws=getattr(self, "mode", "eval") == "train"
        ) as inputs:
            return self.run(inputs)

    @abstractmethod
    def run(self, inputs: AttackInputs) -> AttackResult:
        """The outcome for input that has been validated."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Every parameter as JSON-ready data, for records."""


@dataclass
class Candidates:
    """What a search found, per sample: a point, and what it cost."""

    point: Points
    """The point that is to count; the clean one where there is none."""
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


@dataclass(frozen=True)
class Batch:
    """Samples that a search works on."""

    inputs: AttackInputs
    """The model, the points, their classes and their random streams."""
    clean: Prediction
    """The prediction at the clean points."""
    best: AttackResult
    """The outcome so far."""
    value: PerSample
    """Minus the margin at the best point so far: positive is wrong."""
    restart: int = 0
    """The number of the attempt, from 0."""

    @property
    def x(self) -> Points:
        """The clean points."""
        return self.inputs.x

    @property
    def label(self) -> Labels:
        """The classes to get away from."""
        return cast(Labels, self.inputs.y)

    def predict(self, points: Points) -> Prediction:
        """What the model says at points, one for each of the samples."""
        return predict(self.inputs.predictive, points, self.inputs.streams.fold(Stream.MODEL))

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows: Tensor) -> "Batch":
        return Batch(self.inputs[rows], self.clean[rows], self.best[rows], self.value[rows], self.restart)

    def with_rows(self, rows: Tensor, new: "Batch") -> "Batch":
        """The batch with what was found of the samples `rows` replaced by what is in `new`."""
        value = self.value.index_copy(0, rows, new.value)
        return replace(self, best=self.best.with_rows(rows, new.best), value=value)


class SearchAttack(Attack):
    """An attack that moves every sample by itself, and from the clean point on.

    A sample that is wrong already stays as it is. `search` looks for a point for each of the others; it counts if the
    model is confirmed to be wrong there, and the point lies in the ball.
    """

    returns_best: ClassVar[bool] = False
    """Whether a sample that is never fooled returns the point of its smallest margin; else it stays as it is."""
    in_pieces: ClassVar[bool] = True
    """Whether a large batch is searched in pieces that stay in the cache."""

    @abstractmethod
    def search(self, batch: Batch) -> Candidates:
        """Look for a point for every sample of a batch."""

    @final
    def run(self, inputs: AttackInputs) -> AttackResult:
        """The outcome: the clean points, and over them the best of all restarts for those that are right."""
        inputs.require_independent(self.kind)
        return AttackResult.cat([self._attack(inputs[rows]) for rows in inputs.batches(inputs.batch_size)])

    def _attack(self, inputs: AttackInputs) -> AttackResult:
        inputs = replace(inputs, y=own_labels(inputs))
        outcome, clean = unperturbed(inputs, self.geometry)
        batch, right = Batch(inputs, clean, outcome, margin(clean, None, inputs.y)), ~outcome.success
        together = min(getattr(self, "targets", 1), inputs.classes - 1)
        size = max(inputs.points_at_once // together, 1) if self.in_pieces else inputs.batch_size
        for restart in progress.shares(range(getattr(self, "restarts", 1))):
            again = right if getattr(self, "return_point", None) == "nearest" else ~batch.best.success
            if not bool(again.any()):
                break
            for rows in progress.shares(again.nonzero()[:, 0].split(size)):
                batch = batch.with_rows(rows, self._attempt(replace(batch[rows], restart=restart)))
        return judged(inputs.predictive, self.geometry, Criterion(batch.label), inputs.x, batch.best, inputs.streams)

    def _attempt(self, batch: Batch) -> Batch:
        """One search; the better of its outcome and that of before."""
        candidates, old = self.search(batch), batch.best
        new, output = confirm(
            batch.inputs.predictive,
            self.geometry,
            Criterion(batch.label),
            batch.x,
            candidates.point,
            batch.inputs.streams,
            evaluations=candidates.evaluations,
            iteration=candidates.iteration,
            nan_gradients=candidates.nan,
            zero_gradients=candidates.zero,
        )
        value = margin(output, None, batch.label)
        if self.returns_best:
            better = new.success | (value > batch.value) | (batch.restart == 0)
        else:
            better = new.success & (~old.success | (new.distance < old.distance))
        found = replace(batch, best=old.where(new, better), value=torch.where(better, value, batch.value))
        if candidates.claimed is None:
            return found
        doubt = (candidates.claimed & ~new.success).nonzero()[:, 0]
        if len(doubt) == 0:
            return found
        return found.with_rows(doubt, replace(cast(Any, self), precision="32")._attempt(found[doubt]))


def own_labels(inputs: AttackInputs) -> Labels:
    """The true labels, or without labels the classes predicted at the clean points (0 where these are not finite)."""
    if inputs.y is not None:
        return inputs.y
    return predict(inputs.predictive, inputs.x, inputs.streams.fold(Stream.MODEL)).labels.clamp_min(0)


def unperturbed(inputs: AttackInputs, geometry: Ball) -> tuple[AttackResult, Prediction]:
    """The outcome for samples that stay where they are, which counts where the model is wrong; and the prediction."""
    label = cast(Labels, inputs.y)
    none = torch.zeros_like(label)
    x, criterion = inputs.x, Criterion(label)
    return confirm(inputs.predictive, geometry, criterion, x, x, inputs.streams, evaluations=none, iteration=none)


def described(name: str, attack: Any) -> dict[str, Any]:
    """Every field of an attack that has a ball as its `geometry`, JSON-ready."""
    ball = asdict(attack.geometry)
    return {"attack": name, **asdict(attack), "geometry": ball | {"box": {"kind": "Box", **ball["box"]}}}

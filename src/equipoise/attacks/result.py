"""What every attack takes and what it returns: the checks of its input, and the outcome per sample.

with admitted(model, x, y, geometry, seed=seed) as case:     # refuses what cannot be attacked
    return confirmed(case.predictive, geometry, Goal(y), case.x, found, ...)     # looks at the points found once more
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor, nn

from equipoise.core import progress
from equipoise.core.errors import NoGradient, require
from equipoise.core.rng import Streams, fold
from equipoise.core.types import (
    Labels,
    Mode,
    PerSample,
    Points,
    Precision,
    Predict,
    Prediction,
    Predictive,
)
from equipoise.geometry import Ball
from equipoise.kernels.input_gradients import FastInputGradients
from equipoise.kernels.native import shortcut
from equipoise.losses.objectives import Objective
from equipoise.models import (
    NOT_FINITE,
    Examined,
    Frozen,
    as_predictive,
    couples_samples,
    cut,
    examine,
    frozen,
    isolated,
    laid_out,
    predict,
    seeded,
    usable_precision,
)

AT_ONCE = 256
"""Samples per gradient on a CPU, which bounds the memory of a large batch and costs nothing."""

MODEL_STREAM, GLOBAL_STREAM = 2, 5
"""The stream from which a random model is drawn (the same for the clean prediction, the climb and the confirmation),
and that of the global generators, from which dropout draws."""


@dataclass(frozen=True)
class Perturbed:
    """What an attack found, per sample. Every success was checked again: the point lies in the ball and the box up to
    float32 rounding, and the model in eval mode and its own precision is fooled there.
    """

    x: Points
    """The perturbed inputs."""
    success: Bool[Tensor, " batch"]
    """Whether the prediction in eval mode is wrong (with a target: is the target; without labels: has changed); of a
    random model, whether it is in more than half of the `draws`. A prediction that is not finite is no success."""
    distance: PerSample
    """Distance from the clean input in the attack's norm."""
    prediction: Labels
    """The class predicted at `x`."""
    evaluations: Int[Tensor, " batch"]
    """How often the model was evaluated at this sample, forward or with gradient."""
    nan_gradients: Int[Tensor, " batch"]
    """Steps whose gradient held a NaN or an infinity (it was taken as 0 there)."""
    zero_gradients: Int[Tensor, " batch"]
    """Steps whose gradient was exactly 0: the sample did not know where to go."""
    iteration: Int[Tensor, " batch"]
    """After how many steps of its attempt `x` was reached; 0 is the start."""
    part: Int[Tensor, " batch"]
    """Which part of a composite attack found `x`, counted from 0."""
    crossings: Int[Tensor, " batch"]
    """How often the way back to the clean input was seen to change between right and wrong; 0 where nobody looked
    (`attacks.Bisected` does)."""
    errors: Int[Tensor, " batch"] = cast(Any, None)
    """In how many of the `draws` the model was wrong at `x`."""
    draws: Int[Tensor, " batch"] = cast(Any, None)
    """How often the model was asked to judge `x`: once, or several times if it is random."""
    not_finite: Int[Tensor, " batch"] = cast(Any, None)
    """How many of the draws were no prediction: NaN, or an infinite largest logit."""

    def __post_init__(self) -> None:
        once = {"errors": self.success.long(), "draws": torch.ones_like(self.success, dtype=torch.int64)}
        for name, value in {**once, "not_finite": torch.zeros_like(once["draws"])}.items():
            if getattr(self, name) is None:  # of an attack that asked once
                object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def error_rate(self) -> PerSample:
        """The share of draws in which the model was wrong at `x`: 0 or 1 unless it is random. The accuracy under this
        attack, also of a random model, is `1 - error_rate.mean()`.
        """
        return self.errors.to(self.x.dtype) / self.draws

    def take(self, rows: "Tensor | slice") -> "Perturbed":
        """The outcome of some of the samples."""
        return Perturbed(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def overwritten(self, rows: Tensor, new: "Perturbed") -> "Perturbed":
        """These outcomes, with those of the samples `rows` replaced by `new`."""
        return Perturbed(
            **{f.name: getattr(self, f.name).index_copy(0, rows, getattr(new, f.name)) for f in fields(self)}
        )

    def or_rather(self, other: "Perturbed", which: Bool[Tensor, " batch"]) -> "Perturbed":
        """Per sample the outcome of `other` where `which`, else this one; costs and counters of both add up."""
        added = ("evaluations", "nan_gradients", "zero_gradients")
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return Perturbed(
            **{
                n: mine + new if n in added else torch.where(like(which, new), new, mine)
                for n, (mine, new) in pairs.items()
            }
        )

    @staticmethod
    def cat(parts: "Sequence[Perturbed]") -> "Perturbed":
        """The outcomes of several batches in one."""
        return Perturbed(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Perturbed)})


@dataclass(frozen=True)
class Goal:
    """What counts as success."""

    avoid: Labels
    """The class that the prediction should not be."""
    reach: Labels | None = None
    """The class that it should be; None for any but `avoid`."""

    def reached(self, here: Prediction) -> Bool[Tensor, " batch"]:
        """Which predictions are a success; one that is not finite is none."""
        labels = here.labels
        return (labels != self.avoid) & (labels >= 0) if self.reach is None else labels == self.reach

    def __getitem__(self, rows: "slice | Tensor") -> "Goal":
        return Goal(self.avoid[rows], at(self.reach, rows))


DRAWS = 20
"""Fresh draws of a random model over which its predictions are judged."""

JUDGE_STREAM = 6
"""The stream of those draws."""


@dataclass(frozen=True, eq=False)
class Admitted:
    """Input that an attack can work on, and the model as it stands for it."""

    predictive: Frozen
    """The model as a private copy in eval mode."""
    x: Points
    """The clean points, without a graph."""
    y: Labels | None
    """The true labels."""
    index: Int[Tensor, " batch"]
    """The numbers of the samples, on which their random draws depend."""
    streams: Streams
    """The random streams of the samples."""
    classes: int
    """How many classes the model has."""
    members: int
    """How many members its prediction has."""
    examined: Examined
    """What was seen of the model."""

    @property
    def random(self) -> bool:
        """Whether two calls of the model differ."""
        return self.examined.random

    def batches(self, size: int) -> Iterator[Tensor]:
        """The positions of the samples, so many at a time."""
        return progress.parts(torch.arange(len(self.x), device=self.x.device).split(size))

    def require_independent(self, name: str) -> None:
        """Raise `EquipoiseError` for a model in which, in eval mode, a prediction depends on the batch."""
        require(
            not self.examined.coupled,
            f"{name} moves every sample by itself, but in this model a prediction depends on its batch (such as by "
            "batch-norm without running statistics): make predictions independent of the batch, for batch-norm by "
            "track_running_stats=True.",
        )


_examined: ContextVar[Examined | None] = ContextVar("_examined", default=None)
"""The model under attack, for the attacks of which an attack is made: it is copied and looked at once."""


@contextmanager
def admitted(
    model: "nn.Module | Predictive",
    x: Points,
    y: Labels | None,
    geometry: Ball,
    *,
    target: Labels | None = None,
    seed: int = 0,
    index: Int[Tensor, " batch"] | None = None,
    batch_size: int = 512,
    start: Points | None = None,
    draws: bool = False,
    part: bool = False,
) -> Iterator[Admitted]:
    """Check the input, copy and examine the model, and shut out what the caller's thread has set up (autocast,
    inference mode, the global generators' state): everything that an attack does happens inside.

    `draws` says that the model draws random numbers although, in eval mode, it does not; `part`, that `x` is a part of
    the samples, of which none may have a finite prediction. Raises `EquipoiseError` for a
    wrong type, shape, dtype, device, range, label or kind of output.
    """
    predictive = as_predictive(model)
    x = cut(x) if isinstance(x, Tensor) else x
    check_input(x, predictive.module, geometry)
    require(batch_size >= 1, f"batch_size = {batch_size} holds no sample: expected an integer >= 1.")
    with isolated(x.device):
        x = cut(x)  # outside of inference mode
        index = torch.arange(len(x)) if index is None else index
        check_index(index, len(x))
        streams = Streams.of(seed, index.to(x.device))
        original = predictive.original if isinstance(predictive, Frozen) else predictive
        examined = _examined.get()
        if examined is None or examined.still.original != original or examined.shape != x.shape[1:]:
            examined = examine(predictive, x, streams, geometry.box)
            if len(x) > 1 and not part and not bool(examined.first.finite.any()):
                require(bool(predict(examined.still, x, streams).finite.any()), NOT_FINITE)
        first = examined.first
        for name, labels in (("y", y), ("target", target)):
            if isinstance(labels, Tensor):
                where = labels.device
                require(where == x.device, f"{name} is on {where} but x is on {x.device}: move one of them.")
            check_labels(name, labels, len(x), first.classes)
        require(
            start is None or (isinstance(start, Tensor) and start.shape == x.shape and start.dtype == x.dtype),
            f"start must be points like x: a tensor of shape {tuple(x.shape)} and {x.dtype}.",
        )
        members = len(first.logits)
        case = Admitted(examined.still, x, y, index, streams, first.classes, members, examined)
        generators = seeded(fold(seed, GLOBAL_STREAM), x.device) if draws or examined.random else nullcontext()
        token = _examined.set(examined)
        try:
            with generators:
                yield case
        finally:
            _examined.reset(token)


@torch.no_grad()
def confirmed(
    predictive: Frozen,
    geometry: Ball,
    goal: Goal,
    x: Points,
    point: Points,
    streams: Streams,
    *,
    evaluations: Int[Tensor, " batch"],
    iteration: Int[Tensor, " batch"],
    nan_gradients: Int[Tensor, " batch"] | None = None,
    zero_gradients: Int[Tensor, " batch"] | None = None,
) -> tuple[Perturbed, Prediction]:
    """The outcome at the points found, and the prediction there: in eval mode and the model's own precision."""
    here, errors, not_finite, label = _asked(predictive, goal, point, streams, MODEL_STREAM)
    none = torch.zeros_like(evaluations)
    draws = DRAWS if predictive.random else 1
    result = Perturbed(
        x=point,
        success=(2 * errors > draws) & geometry.contains(point, x),
        distance=geometry.distance(point, x),
        prediction=label,
        evaluations=evaluations + draws,
        nan_gradients=none if nan_gradients is None else nan_gradients,
        zero_gradients=none if zero_gradients is None else zero_gradients,
        iteration=iteration,
        part=none,
        crossings=none,
        errors=errors,
        draws=torch.full_like(none, draws),
        not_finite=not_finite,
    )
    return result, here


@torch.no_grad()
def judged(predictive: Frozen, geometry: Ball, goal: Goal, x: Points, result: Perturbed, streams: Streams) -> Perturbed:
    """The outcome of a search, on a random model by fresh draws: those that chose the points were lucky ones."""
    if not predictive.random:
        return result
    _, errors, not_finite, label = _asked(predictive, goal, result.x, streams, JUDGE_STREAM)
    success = (2 * errors > DRAWS) & geometry.contains(result.x, x)
    return replace(result, success=success, errors=errors, not_finite=not_finite, prediction=label)


def prediction_of(predictive: Frozen, point: Points, streams: Streams, stream: int = MODEL_STREAM) -> Prediction:
    """The prediction at points that counts; of a random model, the mean over `DRAWS` draws."""
    keys = [streams.fold(stream, *([number] if number else [])) for number in range(DRAWS if predictive.random else 1)]
    heres = [predict(predictive, point, key) for key in keys]
    return heres[0] if len(heres) == 1 else Prediction(torch.cat([here.logits for here in heres]))


def _asked(
    predictive: Frozen, goal: Goal, point: Points, streams: Streams, stream: int
) -> tuple[Prediction, Int[Tensor, " batch"], Int[Tensor, " batch"], Labels]:
    """The prediction at points, in how many draws it is a success or not finite, and the label given most often."""
    here = prediction_of(predictive, point, streams, stream)
    if not predictive.random:
        labels = here.labels
        return here, goal.reached(here).long(), (labels < 0).long(), labels
    draws = [Prediction(logits) for logits in here.logits.unflatten(0, (DRAWS, -1))]
    labels = torch.stack([draw.labels for draw in draws])
    errors = torch.stack([goal.reached(draw) for draw in draws]).sum(0)
    return here, errors, (labels < 0).sum(0), labels.mode(0).values


@contextmanager
def held_still(
    predictive: Predictive, x: Points, mode: Mode = "eval", precision: Precision = "32"
) -> Iterator[Callable[[Streams], Predict]]:
    """The model as a private copy in its mode, in the asked precision. Yields a function that draws its randomness from
    streams and returns its prediction, with constant weights and fast input gradients. Small convolutional networks
    are computed natively on a CPU (`equipoise.kernels.native`), which in float32 is faster than bf16: both are the same
    there.
    """
    kind = x.device.type
    module = (predictive.original if isinstance(predictive, Frozen) and mode == "train" else predictive).module
    precision = usable_precision(module, x, precision)
    full = frozen(predictive, mode, weights=laid_out(module))
    light = full if precision == "32" else frozen(predictive, mode, weights=laid_out(module, precision))
    weights = dict([*full.module.named_parameters(), *full.module.named_buffers()])
    watched = kind == "cpu" and any(weight.ndim > 2 for weight in weights.values())  # is there a convolution?
    fast, alone = FastInputGradients(), not couples_samples(full.module)

    def draw(streams: Streams) -> Predict:
        predict = light.draw(streams)
        if not (watched and alone):
            return _watched(predict, fast) if watched else predict
        return shortcut(full.draw(streams), _watched(predict, fast), weights)

    with torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16"):
        yield draw


def _watched(predict: Predict, mode: FastInputGradients) -> Predict:
    """Only the model is watched for convolutions: every operation that is watched costs some microseconds. Other kinds
    of tensors have their own way with them (`equipoise.kernels.windowed`).
    """

    def fast(x: Points) -> Prediction:
        if type(x) is not Tensor:
            return predict(x)
        with mode:
            return predict(x)

    return fast


def value_and_gradient(
    objective: Objective,
    predict: Predict,
    point: Points,
    clean: Prediction | None = None,
    labels: Labels | None = None,
    target: Labels | None = None,
    *,
    at_once: int | None = None,
) -> tuple[PerSample, Points, Prediction]:
    """The objective at `point`, its gradient with respect to `point` alone, and the prediction there; `at_once` samples
    at a time, by default `AT_ONCE` on a CPU and all of them elsewhere (0: all).

    Raises `NoGradient` if the graph does not reach the point. Every other error of the model is raised as it is: it may
    be a fault of the model or of the machine, and says nothing about gradients.
    """
    if at_once is None:
        at_once = AT_ONCE if point.device.type == "cpu" else 0
    if 0 < at_once < len(point):
        pieces = [slice(i, i + at_once) for i in range(0, len(point), at_once)]
        values, gradients, heres = zip(
            *(
                value_and_gradient(objective, predict, point[p], at(clean, p), at(labels, p), at(target, p))
                for p in pieces
            ),
            strict=True,
        )
        return torch.cat(values), torch.cat(gradients), Prediction(torch.cat([h.logits for h in heres], 1))
    with torch.enable_grad(), _no_gradient_named():
        point = cut(point).requires_grad_()
        here = _live(predict, point)
        value = objective(here, clean, labels, target)
        if not value.requires_grad:
            raise NoGradient(_WITHOUT_GRADIENT)
        try:
            gradient = torch.autograd.grad(value.sum(), point, allow_unused=True)[0]
        except RuntimeError as error:
            if ".grad()" not in str(error) or "heckpoint" not in str(error):
                raise
            # Reentrant checkpointing knows no gradient but that of all leaves. Of these the point is the only one.
            objective(_live(predict, point), clean, labels, target).sum().backward()
            gradient = point.grad
        if gradient is None:
            raise NoGradient(_WITHOUT_GRADIENT)
    return value.detach(), gradient, here.detach()


def _live(predict: Predict, point: Points) -> Prediction:
    """The prediction with its graph, also of a model that begins with an operation in place."""
    try:
        return predict(point)
    except RuntimeError as error:
        if "in-place operation" not in str(error):
            raise
    return predict(point.clone())


_WITHOUT_GRADIENT = (
    "the model's output has no gradient: it detaches its input or computes under no_grad. Attack it without gradients "
    "(square, random-search), or give that part a differentiable stand-in in its backward pass (BPDA)."
)
_REFUSALS = (
    "Can't call numpy() on Tensor that requires grad",
    "Can't export tensors that require gradient",
    "don't support automatic differentiation",
    "You must implement either the backward or vjp method",
)
"""What PyTorch says where a computation leaves its graph, instead of leaving it in silence."""


@contextmanager
def _no_gradient_named() -> Iterator[None]:
    """Turn PyTorch's refusals to differentiate into `NoGradient`; let every other error pass."""
    try:
        yield
    except (RuntimeError, BufferError) as error:
        if not any(words in str(error) for words in _REFUSALS):
            raise
        raise NoGradient(f"{_WITHOUT_GRADIENT} PyTorch says: {str(error).splitlines()[0]}") from error


def likely_classes(clean: Prediction, y: Labels, count: int) -> Int[Tensor, "batch targets"]:
    """The `count` most likely classes other than `y` (all of them, if there are fewer), the most likely first; in place
    of one that cannot be (a score of `-inf`) the most likely once more.
    """
    others = clean.scores.scatter(1, y[:, None], -torch.inf)
    value, chosen = others.sort(dim=1, descending=True, stable=True)
    count = min(count, clean.classes - 1)
    return torch.where(value[:, :count].isneginf(), chosen[:, :1], chosen[:, :count])


def check_input(x: Any, module: nn.Module, geometry: Ball) -> None:
    """Raise `EquipoiseError` unless `x` is a batch that the model can take and the box contains."""
    box = geometry.box
    require(isinstance(x, Tensor), f"x is a {type(x).__name__}: expected a torch tensor of shape (batch, ...).")
    require(
        x.dtype in (torch.float32, torch.float64),
        f"x has dtype {x.dtype}: expected float32 in [{box.low:g}, {box.high:g}], such as x.float() / 255; to "
        "compute in half precision keep the model in float32 and give the attack precision='bf16'.",
    )
    require(
        x.ndim >= 2, f"x has shape {tuple(x.shape)}: expected (batch, features) or (batch, channels, height, width)."
    )
    require(x.numel() > 0, f"x is empty (shape {tuple(x.shape)}): expected at least one sample.")
    weight = next((p for p in module.parameters() if p.is_floating_point()), None)
    if weight is not None:
        halves = (torch.bfloat16, torch.float16)  # such a model is given inputs of its precision, see `examine`
        require(
            weight.dtype == x.dtype or (x.dtype == torch.float32 and weight.dtype in halves),
            f"x is {x.dtype} but the model is {weight.dtype}: convert one of them.",
        )
        require(weight.device == x.device, f"x is on {x.device} but the model is on {weight.device}: move one of them.")
    require(bool(x.isfinite().all()), "x holds NaN or infinite values: clean the data first.")
    inside = box.contains(x)
    require(
        bool(inside.all()),
        f"{int((~inside).sum())} of {len(x)} inputs lie outside [{box.low:g}, {box.high:g}] (they span "
        f"[{float(x.min()):g}, {float(x.max()):g}]): attacks work on raw pixels, so make normalisation a layer of the "
        "model (equipoise.nets.Normalize), or give the ball another Box.",
    )


def check_index(index: Any, batch: int) -> None:
    """Raise `EquipoiseError` unless `index` is one integer per sample."""
    require(
        isinstance(index, Tensor)
        and index.shape == (batch,)
        and not index.is_floating_point()
        and index.dtype != torch.bool,
        f"index must be a tensor of {batch} integers, one per sample.",
    )


def check_labels(name: str, labels: Any, batch: int, classes: int) -> None:
    """Raise `EquipoiseError` unless `labels` is None or one class index per sample."""
    if labels is None:
        return
    require(
        isinstance(labels, Tensor), f"{name} is a {type(labels).__name__}: expected a torch tensor of class indices."
    )
    require(labels.dtype == torch.int64, f"{name} has dtype {labels.dtype}: expected int64 class indices.")
    require(
        labels.shape == (batch,), f"{name} has shape {tuple(labels.shape)}: expected ({batch},), one class per sample."
    )
    low, high = int(labels.min()), int(labels.max())
    require(
        low >= 0 and high < classes,
        f"{name} holds class {low if low < 0 else high}, but the model has {classes} classes, 0 to {classes - 1}.",
    )


def at(value: Any, rows: "slice | Tensor") -> Any:
    """`value[rows]`, or None for None."""
    return None if value is None else value[rows]


def like(values: Shaped[Tensor, " batch"], x: Tensor) -> Shaped[Tensor, "batch ..."]:
    """A value per sample, shaped to be broadcast over `x`."""
    return values.reshape(-1, *[1] * (x.ndim - 1))

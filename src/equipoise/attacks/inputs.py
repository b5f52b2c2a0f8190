"""The validated input of an attack: every check of it, and the private copy of the model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn

from equipoise.attacks.active import SampleTable
from equipoise.attacks.result import AttackResult, Criterion, confirm, judge
from equipoise.core import progress
from equipoise.core.checks import check_index, check_labels
from equipoise.core.errors import kind_of, require, require_integer
from equipoise.core.rng import Stream, Streams, fold
from equipoise.core.types import Labels, Points, Prediction, Predictive
from equipoise.geometry import Ball
from equipoise.models import (
    NOT_FINITE,
    Examined,
    Frozen,
    as_predictive,
    cut,
    examine,
    global_seed,
    isolated,
    predict,
)

AT_ONCE = 256
"""Samples per gradient on a CPU, which bounds the memory of a large batch and costs nothing."""


@dataclass(frozen=True, eq=False)
class AttackInputs(SampleTable):
    """Validated input of an attack."""

    x: Points  # the clean points, without a graph
    model: "nn.Module | Predictive"  # the caller's own model, for the attacks of which an attack is made
    predictive: Frozen  # the model as a private copy in eval mode
    y: Labels | None
    target: Labels | None
    start: Points | None
    index: Int[Tensor, " batch"]  # the numbers of the samples, on which their random draws depend
    streams: Streams
    classes: int
    members: int  # of the prediction
    examined: Examined
    seed: int
    batch_size: int

    @property
    def options(self) -> dict[str, Any]:
        """How to call, on the same samples, an attack of which this one is made."""
        target = {} if self.target is None else {"target": self.target}
        return {"seed": self.seed, "index": self.index, "batch_size": self.batch_size, **target}

    @property
    def criterion(self) -> Criterion:
        """What counts as success: the target, or any class other than the label."""
        return Criterion(cast(Labels, self.y), self.target)

    def predict(self, points: Points) -> Prediction:
        """The prediction at points, one for each of the samples; of a random model, always the same draw."""
        return predict(self.predictive, points, self.streams.fold(Stream.MODEL))

    def confirm(self, geometry: Ball, points: Points, **costs: Any) -> tuple[AttackResult, Prediction]:
        """`result.confirm` at points, one for each of the samples."""
        return confirm(self.predictive, geometry, self.criterion, self.x, points, self.streams, **costs)

    def confirm_all(self, geometry: Ball, points: Points, costs: Mapping[str, Tensor]) -> AttackResult:
        """The outcome at points for any number of samples, `batch_size` of them at a time."""
        parts = []
        for index in self.batches(self.batch_size):
            own = {name: cost[index] for name, cost in costs.items()}
            parts.append(self[index].confirm(geometry, points[index], **own)[0])
        return AttackResult.cat(parts)

    def judge(self, geometry: Ball, result: AttackResult) -> AttackResult:
        """`result.judge` of the results of the samples."""
        return judge(self.predictive, geometry, self.criterion, self.x, result, self.streams)

    @property
    def points_at_once(self) -> int:
        """How many points are computed at once: on a CPU, more than `AT_ONCE` would leave the cache."""
        return min(self.batch_size, AT_ONCE) if self.x.device.type == "cpu" else self.batch_size

    @property
    def random(self) -> bool:
        """Whether two calls of the model differ."""
        return self.examined.random

    def batches(self, size: int) -> Iterator[Tensor]:
        """The positions of the samples, `size` at a time."""
        return progress.shares(torch.arange(len(self.x), device=self.x.device).split(size))

    def require_independent(self, name: str) -> None:
        """Raise `EquipoiseError` for a model in which, in eval mode, a prediction depends on the batch."""
        require(
            not self.examined.coupled,
            f"{name} moves every sample by itself, but in this model a prediction depends on its batch (such as by "
            "batch-norm without running statistics): make predictions independent of the batch, for batch-norm by "
            "track_running_stats=True.",
        )


_examined: ContextVar[Examined | None] = ContextVar("_examined", default=None)
"""The model under attack, which the parts of a composite attack need not examine again."""


@contextmanager
def validated_inputs(
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
) -> Iterator[AttackInputs]:
    """Check the input, copy and examine the model, and isolate what happens inside from the caller's thread (autocast,
    inference mode, the state of the global generators).

    With `draws` the model may draw random numbers although it draws none in eval mode; with `part`, `x` is a part of
    the samples, and none of its predictions need be finite. Raises `EquipoiseError` for a wrong type, shape, dtype,
    device, range, label or kind of output.
    """
    predictive = as_predictive(model)
    x = cut(x) if isinstance(x, Tensor) else x
    check_input(x, predictive.module, geometry)
    require_integer("batch_size", batch_size, 1)
    require_integer("seed", seed)
    with isolated(x.device):
        x = cut(x)  # outside of inference mode
        index = torch.arange(len(x)) if index is None else index
        check_index(index, len(x))
        index = index.to(x.device)
        streams = Streams.of(seed, index)
        examined = _examination(predictive, x, streams, geometry, part)
        first = examined.first
        for name, labels in (("y", y), ("target", target)):
            if isinstance(labels, Tensor):
                where = labels.device
                require(where == x.device, f"{name} is on {where} but x is on {x.device}: move one of them.")
            check_labels(name, labels, len(x), first.classes)
        same = 0 if y is None or target is None else int((y == target).sum())
        require(same == 0, f"target holds the true class of {same} of {len(x)} samples: a target is another class.")
        require(
            start is None or (isinstance(start, Tensor) and start.shape == x.shape and start.dtype == x.dtype),
            f"start must be points like x: a tensor of shape {tuple(x.shape)} and {x.dtype}.",
        )
        classes, members = first.classes, len(first.logits)
        inputs = AttackInputs(
            x, model, examined.still, y, target, start, index, streams, classes, members, examined, seed, batch_size
        )
        generators = global_seed(fold(seed, Stream.GLOBAL), x.device) if draws or examined.random else nullcontext()
        token = _examined.set(examined)
        try:
            with generators:
                yield inputs
        finally:
            _examined.reset(token)


def _examination(predictive: Predictive, x: Points, streams: Streams, geometry: Ball, part: bool) -> Examined:
    """The examination of the model on these samples: that of the attack around this one, if it is of the same model."""
    original = predictive.original if isinstance(predictive, Frozen) else predictive
    examined = _examined.get()
    if examined is not None and examined.still.original == original and examined.shape == x.shape[1:]:
        return examined
    examined = examine(predictive, x, streams, geometry.box)
    if len(x) > 1 and not part and not bool(examined.first.finite.any()):
        require(bool(predict(examined.still, x, streams).finite.any()), NOT_FINITE)
    return examined


def check_input(x: Any, module: nn.Module, geometry: Ball) -> None:
    """Raise `EquipoiseError` unless `x` is a batch that the model can take and the box contains."""
    box = geometry.box
    require(isinstance(x, Tensor), f"x is {kind_of(x)}: expected a torch tensor of shape (batch, ...).")
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
    ends = torch.stack(x.aminmax())
    require(bool(ends.isfinite().all()), "x holds NaN or infinite values: clean the data first.")
    inside = box.contains(ends[None])
    outside = 0 if bool(inside.all()) else int((~box.contains(x)).sum())
    require(
        outside == 0,
        f"{outside} of {len(x)} inputs lie outside [{box.low:g}, {box.high:g}] (they span "
        f"[{float(ends[0]):g}, {float(ends[1]):g}]): attacks work on raw pixels, so make normalisation a layer of the "
        "model (equipoise.nets.Normalize), or give the ball another Box.",
    )

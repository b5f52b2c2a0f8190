"""The only perturbation loop.

An ascent climbs an objective within a geometry:

    x_0 = start,    x_{i+1} = Π_{ball ∩ box} ( x_i + step(∇ objective(x_i), size_i) ),    i = 0, ..., k - 1

and keeps its last, its best or its first successful point. PGD, UDP, UTA, TRADES' inner step, CW and FGSM are one-line
ascents (`equipoise.attacks`). Gradients are taken with respect to the perturbation only. Where samples do not depend
on each other, those that are finished leave the batch.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from equipoise.convolution import FastInputGradients
from equipoise.errors import require, unknown
from equipoise.geometry import Ball
from equipoise.objectives import Objective
from equipoise.predictive import as_predictive, couples_samples, first_look, frozen_weights, predict, seeded, standing
from equipoise.rng import Streams, fold
from equipoise.spaces import Input
from equipoise.steps import Constant, Fixed, Start, Steepest, Steps, StepSize, Zero
from equipoise.terms import Term
from equipoise.types import Labels, Mode, PerSample, Points, Precision, Predict, Prediction, Predictive, Space, StepRule

Keep = Literal["last", "best", "first_success"]
TargetRule = Literal["least_likely", "runner_up", "random"]

_START, _STEPS, _MODEL, _TARGET, _RESTART, _GLOBAL = range(6)  # what a stream is drawn for
_AT_ONCE = 256  # samples per gradient on a CPU, which bounds the memory of a large batch and costs nothing
_CHECK_EVERY = 8  # steps between two looks at who has succeeded on an accelerator, where looking waits for the device


@dataclass(frozen=True)
class Perturbed:
    """What an attack found, per sample. Every success was checked again: the point lies in the ball and the box up to
    float32 rounding, and the model in eval mode and its own precision is fooled there.
    """

    x: Points
    """The perturbed inputs."""
    success: Bool[Tensor, " batch"]
    """Whether the prediction in eval mode is wrong (with a target: is the target; without labels: has changed)."""
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

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: "Tensor | slice") -> "Perturbed":
        """The outcome of some of the samples."""
        return Perturbed(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def overwritten(self, rows: Tensor, new: "Perturbed") -> "Perturbed":
        """These outcomes, with those of the samples `rows` replaced by `new`."""
        return Perturbed(
            **{f.name: getattr(self, f.name).index_copy(0, rows, getattr(new, f.name)) for f in fields(self)}
        )

    @staticmethod
    def cat(parts: "list[Perturbed]") -> "Perturbed":
        """The outcomes of several batches in one."""
        return Perturbed(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Perturbed)})


@dataclass
class _Rows:
    """The samples still climbing. Every field is per sample, so that rows can leave."""

    slot: Tensor  # where the sample's result belongs
    point: Tensor
    origin: Tensor
    labels: Tensor | None
    target: Tensor | None
    clean: Prediction | None
    steps: Tensor | None  # how many steps it takes, if not all the same
    memory: tuple[Tensor, ...]
    best: Tensor
    best_value: Tensor
    won: Tensor  # whether it has succeeded, and stands still
    nan: Tensor
    zero: Tensor

    def __len__(self) -> int:
        return len(self.slot)

    def __getitem__(self, rows: "slice | Tensor") -> "_Rows":
        def take(value: Any) -> Any:
            if value is None:
                return None
            return tuple(v[rows] for v in value) if isinstance(value, tuple) else value[rows]

        return _Rows(**{f.name: take(getattr(self, f.name)) for f in fields(self)})


@dataclass
class _Outcome:
    """Results by slot, filled in as rows finish."""

    point: Tensor
    evaluations: Tensor
    nan: Tensor
    zero: Tensor
    won: Tensor

    def write(self, rows: _Rows, point: Tensor, evaluations: int) -> None:
        self.point[rows.slot] = point
        self.evaluations[rows.slot] = evaluations
        self.nan[rows.slot], self.zero[rows.slot], self.won[rows.slot] = rows.nan, rows.zero, rows.won


def value_and_gradient(
    objective: Objective,
    predict: Predict,
    point: Points,
    clean: Prediction | None = None,
    labels: Labels | None = None,
    target: Labels | None = None,
) -> tuple[PerSample, Points, Prediction]:
    """The objective at `point`, its gradient with respect to `point` alone, and the prediction there."""
    with torch.enable_grad():
        point = point.detach().requires_grad_()
        here = predict(point)
        value = objective(here, clean, labels, target)
        require(
            value.requires_grad, "the model's output has no gradient: it detaches its input or computes under no_grad."
        )
        (gradient,) = torch.autograd.grad(value.sum(), point)
    return value.detach(), gradient, here.detach()


@dataclass(frozen=True)
class Ascent:
    """Objective × geometry × step rule × start × number of steps × what to keep.

    Call it as an attack, `ascent(model, x, y, seed=0) -> Perturbed`, or put it in a training method,
    `cross_entropy @ ascent`. The model's parameters, gradients, buffers and modes and the global random state are left
    as they were (with `mode="train"`, batch-norm updates its running statistics as in any training forward pass).
    """

    objective: Objective
    """What is climbed."""
    geometry: Ball
    """Where the perturbed point may lie."""
    step_size: StepSize | float
    """Length of the steps: a number, or a schedule."""
    steps: Steps | int
    """How many: a number, or a rule per sample."""
    step: StepRule = Steepest()
    """Direction of the steps."""
    start: Start = Zero()
    """Where to start."""
    keep: Keep = "last"
    """Which point is the result: the last; the one with the best objective, start included; or the first that
    succeeds (else the best)."""
    space: Space = Input()
    """Where the perturbation lives."""
    mode: Mode = "eval"
    """Mode of the model while climbing. `train`: batch statistics and dropout, as in the papers' runs."""
    redraw: bool = False
    """Whether a random model is drawn anew at every step."""
    restarts: int = 1
    """How often it starts again; of each sample's results the successful and then the highest is kept."""
    target: TargetRule | None = None
    """Which class to climb towards; None for any but the true one. `random` draws it from the seed."""
    precision: Precision = "32"
    """`bf16` computes the climb in bfloat16; every success is then confirmed in float32."""

    def __post_init__(self) -> None:
        size, steps = self.step_size, self.steps
        object.__setattr__(self, "step_size", Constant(float(size)) if isinstance(size, int | float) else size)
        require(not isinstance(steps, float), f"steps = {steps} is not a whole number.")
        object.__setattr__(self, "steps", Fixed(steps) if isinstance(steps, int) else steps)
        require(self.restarts >= 1, f"restarts = {self.restarts} runs nothing: expected an integer >= 1.")
        for name, value, options in (
            ("keep", self.keep, ("last", "best", "first_success")),
            ("mode", self.mode, ("train", "eval")),
            ("precision", self.precision, ("32", "bf16")),
            ("target", self.target, (None, "least_likely", "runner_up", "random")),
        ):
            if value not in options:
                raise unknown(name, value, [str(o) for o in options])

    def __rmatmul__(self, objective: object) -> Term:
        require(
            self.restarts == 1, f"restarts = {self.restarts}: a training method climbs once; restarts are for attacks."
        )
        return Term(objective, self) if isinstance(objective, Objective) else NotImplemented

    def __str__(self) -> str:
        ball, (steps, size) = self.geometry, self._schedule
        count = f"{'' if isinstance(steps, Fixed) else 'up to '}{steps.most} steps"
        length = f"{size.size:g}" if isinstance(size, Constant) else str(size)
        return f"climb({self.objective.name}, {ball.norm} {ball.eps:g}, {count} of {length})"

    @property
    def _schedule(self) -> tuple[Steps, StepSize]:
        """How many steps and how long; numbers became rules at construction."""
        return cast(Steps, self.steps), cast(StepSize, self.step_size)

    def settings(self) -> dict[str, Any]:
        """Every field as JSON-ready data, for records."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def perturb(self, predictive: Predictive, x: Points, y: Labels, streams: Streams) -> Points:
        """The points a training method evaluates its objective at: one climb, nothing checked or verified."""
        with seeded(int(streams.keys[0]), x.device):
            target = None
            if self.target is not None:
                target = choose_target(
                    self.target, predict(predictive, x, streams.fold(_MODEL)), y, streams.fold(_TARGET)
                )
            return self._climb(predictive, x, y, target, streams, _Goal(y, target)).point

    def predict_at(self, predict: Predict, x: Points, point: Points) -> Prediction:
        """The prediction at a point that `perturb` returned."""
        return self.space.enter(predict, x)[1](point)

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
    ) -> Perturbed:
        """Perturb `x` and say what came of it.

        `y` are the true labels (needed by objectives that look at them), `target` the classes to climb towards.
        Random draws depend on `seed` and on each sample's `index` (default 0, 1, ...), not on `batch_size` or order;
        results agree up to float rounding. Where samples depend on each other (batch statistics or dropout with
        `mode="train"`) all of `x` is one batch.
        Raises `EquipoiseError` for unusable input: a wrong shape, dtype, range, label, pairing or kind of output.
        """
        predictive = as_predictive(model)
        check_input(x, predictive.module, self.geometry)
        require(batch_size >= 1, f"batch_size = {batch_size} holds no sample: expected an integer >= 1.")
        index = torch.arange(len(x)) if index is None else index
        check_index(index, len(x))
        with seeded(fold(seed, _GLOBAL), x.device):
            return self._in_batches(predictive, x, y, target, Streams.of(seed, index.to(x.device)), batch_size)

    def _in_batches(
        self,
        predictive: Predictive,
        x: Points,
        y: Labels | None,
        target: Labels | None,
        streams: Streams,
        batch_size: int,
    ) -> Perturbed:
        first = first_look(predictive, x, streams)
        for name, labels in (("y", y), ("target", target)):
            if isinstance(labels, Tensor):
                where = labels.device
                require(where == x.device, f"{name} is on {where} but x is on {x.device}: move one of them.")
            check_labels(name, labels, len(x), first.classes)
        self.objective.check(first.classes, y is not None, target is not None or self.target is not None)
        require(
            self.target is None or target is None,
            f"both target={self.target!r} and target classes were given: choose one.",
        )
        size = len(x) if self._couples(predictive) else batch_size
        parts = [
            self._attack(predictive, x[b], _at(y, b), _at(target, b), streams[b])
            for b in torch.arange(len(x), device=x.device).split(size)
        ]
        return Perturbed.cat(parts)

    def _attack(
        self, predictive: Predictive, x: Points, y: Labels | None, target: Labels | None, streams: Streams
    ) -> Perturbed:
        clean = predict(predictive, x, streams.fold(_MODEL))
        if self.target is not None:
            target = choose_target(self.target, clean, y, streams.fold(_TARGET))
        case = _Case(predictive, x, y, target, clean, streams)
        result, value = self._attempt(case, 0)
        for restart in range(1, self.restarts):
            # Samples that are already fooled stay as they are when the first success is all that is asked for.
            everyone = torch.arange(len(x), device=x.device)
            rows = self._unfooled(predictive, result.success) if self.keep == "first_success" else everyone
            if len(rows) == 0:
                break
            again, new_value = self._attempt(case[rows], restart)
            old = result.take(rows)
            better = torch.where(again.success == old.success, new_value > value[rows], again.success)
            result = result.overwritten(rows, _better(better, again, old))
            value[rows] = torch.where(better, new_value, value[rows])
        return replace(result, evaluations=result.evaluations + 1)

    def _attempt(self, case: "_Case", restart: int) -> tuple[Perturbed, PerSample]:
        """One climb, its outcome verified in float32 and eval mode, and its objective."""
        streams = case.streams.fold(_RESTART, restart)
        found = self._climb(case.predictive, case.x, case.y, case.target, streams, case.goal)
        here = predict(case.predictive, found.point, streams.fold(_MODEL))
        value = self.objective(here, case.clean, case.y, case.target)
        result = Perturbed(
            x=found.point,
            success=case.goal.reached(here) & self.geometry.contains(found.point, case.x),
            distance=self.geometry.distance(found.point, case.x),
            prediction=here.labels,
            evaluations=found.evaluations + 1,
            nan_gradients=found.nan,
            zero_gradients=found.zero,
        )
        if self.precision == "bf16" and self.keep == "first_success":
            # A sample that bf16 took for fooled stopped there. If float32 disagrees it deserves the full climb.
            rows = self._unfooled(case.predictive, result.success | ~found.won)
            if len(rows):
                again, value[rows] = replace(self, precision="32")._attempt(case[rows], restart)
                everyone = torch.ones_like(again.success)
                result = result.overwritten(rows, _better(everyone, again, result.take(rows)))
        return result, value

    def _couples(self, predictive: Predictive) -> bool:
        """Whether, in the mode of the climb, samples depend on each other."""
        with standing(predictive.module, self.mode):
            return couples_samples(predictive.module)

    def _unfooled(self, predictive: Predictive, success: Bool[Tensor, " batch"]) -> Int[Tensor, " again"]:
        """The samples to try again: the whole batch, if any, where samples depend on each other."""
        again = ~success if not self._couples(predictive) or success.all() else torch.ones_like(success)
        return again.nonzero()[:, 0]

    @torch.no_grad()
    def _climb(
        self,
        predictive: Predictive,
        x: Points,
        y: Labels | None,
        target: Labels | None,
        streams: Streams,
        goal: "_Goal",
    ) -> _Outcome:
        """The loop."""
        steps, sizes = self._schedule
        most = steps.most
        with self._inside(predictive.module, x) as weights:
            independent = not couples_samples(predictive.module)
            origin, predict = self.space.enter(predictive.draw(streams.fold(_MODEL), weights), x)
            clean = predict(origin) if self.objective.needs_clean else None
            rows = self._rows(origin, y, target, clean, streams)
            none = torch.zeros_like(rows.slot)
            out = _Outcome(origin.clone(), none, none.clone(), none.clone(), torch.zeros_like(rows.won))
            spent = 0 if clean is None else 1
            remaining = None
            if rows.steps is not None and independent:
                remaining = _still_climbing(rows.steps, most)
                rows = rows[rows.steps.argsort(descending=True, stable=True)]
            for i in range(most):
                if remaining is not None and remaining[i] < len(rows):
                    self._settle(rows[remaining[i] :], predict, goal, out, spent + i)
                    rows = rows[: remaining[i]]
                if len(rows) == 0:
                    break
                if self.redraw:
                    predict = self.space.enter(predictive.draw(streams.fold(_MODEL, i + 1), weights), x)[1]
                value, gradient, here = self._gradient(rows, predict, independent)
                frozen = None if rows.steps is None or remaining is not None else rows.steps <= i
                if self.keep != "last":
                    self._remember(rows, value, here, goal)
                if self.keep == "first_success":
                    frozen = rows.won if frozen is None else rows.won | frozen
                    if independent and (x.device.type == "cpu" or i % _CHECK_EVERY == 0):
                        left = (~rows.won).nonzero()[:, 0]
                        if len(left) < len(rows):
                            fooled = rows[rows.won]
                            out.write(fooled, fooled.best, spent + i + 1)
                            rows, gradient, frozen = rows[left], gradient[left], frozen[left]
                            if remaining is not None and rows.steps is not None:
                                remaining = _still_climbing(rows.steps, most)
                        if len(rows) == 0:
                            break
                strength = gradient.abs().flatten(1).amax(1)
                moves = torch.ones_like(rows.won) if frozen is None else ~frozen
                rows.nan = rows.nan + (~strength.isfinite() & moves)
                rows.zero = rows.zero + ((strength == 0) & moves)
                size = sizes.at(i, most)
                moved, memory = self.step(
                    rows.point, gradient.nan_to_num_(0.0, 0.0, 0.0), size, self.geometry, rows.memory
                )
                moved = self.geometry.project(moved, rows.origin)
                rows.point = moved if frozen is None else torch.where(_like(frozen, moved), rows.point, moved)
                rows.memory = memory
            self._settle(rows, predict, goal, out, spent + most)
        return out

    def _rows(
        self, origin: Points, y: Labels | None, target: Labels | None, clean: Prediction | None, streams: Streams
    ) -> _Rows:
        start = self.start.draw(streams.fold(_START), origin, self.geometry)
        slot = torch.arange(len(origin), device=origin.device)
        return _Rows(
            slot=slot,
            point=start,
            origin=origin,
            labels=y,
            target=target,
            clean=clean,
            steps=self._schedule[0].draw(streams.fold(_STEPS)),
            memory=self.step.init(start),
            best=start,
            best_value=torch.full((len(origin),), -torch.inf, device=origin.device, dtype=origin.dtype),
            won=torch.zeros_like(slot, dtype=torch.bool),
            nan=torch.zeros_like(slot),
            zero=torch.zeros_like(slot),
        )

    def _gradient(self, rows: _Rows, predict: Predict, independent: bool) -> tuple[PerSample, Points, Prediction]:
        """The gradient at every row; on a CPU some rows at a time."""
        size = _AT_ONCE if independent and rows.point.device.type == "cpu" else len(rows)
        if size >= len(rows):
            return value_and_gradient(self.objective, predict, rows.point, rows.clean, rows.labels, rows.target)
        pieces = [slice(i, i + size) for i in range(0, len(rows), size)]
        found = [
            value_and_gradient(
                self.objective, predict, rows.point[p], _at(rows.clean, p), _at(rows.labels, p), _at(rows.target, p)
            )
            for p in pieces
        ]
        values, gradients, heres = zip(*found, strict=True)
        return torch.cat(values), torch.cat(gradients), Prediction(torch.cat([h.logits for h in heres], 1))

    def _settle(self, rows: _Rows, predict: Predict, goal: "_Goal", out: _Outcome, spent: int) -> None:
        """Write down rows that have taken their last step."""
        if len(rows) == 0:
            return
        if self.keep == "last":
            out.write(rows, rows.point, spent)
            return
        here = predict(rows.point)
        self._remember(rows, self.objective(here, rows.clean, rows.labels, rows.target), here, goal)
        out.write(rows, rows.best, spent + 1)

    def _remember(self, rows: _Rows, value: PerSample, here: Prediction, goal: "_Goal") -> None:
        """Keep the best point so far; the first success is better than anything. NaN is never better."""
        better = (value > rows.best_value) & ~rows.won
        if self.keep == "first_success":
            fooled = goal[rows.slot].reached(here) & ~rows.won
            better, rows.won = better | fooled, rows.won | fooled
        rows.best = torch.where(_like(better, rows.best), rows.point, rows.best)
        rows.best_value = torch.where(better, value, rows.best_value)

    @contextmanager
    def _inside(self, module: nn.Module, x: Points) -> Iterator[dict[str, Tensor]]:
        """The model standing still in its mode, with fast gradients, in the asked precision."""
        kind = x.device.type
        with ExitStack() as stack:
            stack.enter_context(standing(module, self.mode))
            if self.precision == "bf16":
                stack.enter_context(torch.autocast(kind, torch.bfloat16))
            if kind == "cpu":
                stack.enter_context(FastInputGradients())
            yield frozen_weights(module, self.mode, self.precision)


@dataclass(frozen=True)
class _Goal:
    """What counts as success."""

    avoid: Labels
    reach: Labels | None

    def reached(self, here: Prediction) -> Bool[Tensor, " batch"]:
        return here.labels != self.avoid if self.reach is None else here.labels == self.reach

    def __getitem__(self, rows: "slice | Tensor") -> "_Goal":
        return _Goal(self.avoid[rows], _at(self.reach, rows))


@dataclass(frozen=True)
class _Case:
    """A batch under attack."""

    predictive: Predictive
    x: Tensor
    y: Tensor | None
    target: Tensor | None
    clean: Prediction
    streams: Streams

    @property
    def goal(self) -> _Goal:
        return _Goal(self.clean.labels if self.y is None else self.y, self.target)

    def __getitem__(self, rows: Tensor) -> "_Case":
        parts = (_at(v, rows) for v in (self.x, self.y, self.target, self.clean, self.streams))
        return _Case(self.predictive, *parts)


def _still_climbing(steps: Int[Tensor, " batch"], most: int) -> list[int]:
    """How many samples take more than i steps, for i = 0, ..., most."""
    return (len(steps) - steps.bincount(minlength=most + 1).cumsum(0)).tolist()


def choose_target(rule: TargetRule, clean: Prediction, y: Labels | None, streams: Streams) -> Labels:
    """A class other than the true one (or, without labels, the predicted one): the least likely, the most likely of the
    others, or any of them drawn uniformly.
    """
    scores = clean.scores.clone()
    own = clean.labels if y is None else y
    if rule == "random":
        return (own + 1 + streams.integers(clean.classes - 1)) % clean.classes
    worst = torch.inf if rule == "least_likely" else -torch.inf
    scores.scatter_(1, own[:, None], worst)
    return scores.argmin(1) if rule == "least_likely" else scores.argmax(1)


def check_input(x: Any, module: nn.Module, geometry: Ball) -> None:
    """Raise `EquipoiseError` unless `x` is a batch that the model can take and the box contains."""
    box = geometry.box
    require(
        not torch.is_inference_mode_enabled(),
        "an attack needs gradients, which torch.inference_mode() forbids: call it outside, or use torch.no_grad().",
    )
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
        require(weight.dtype == x.dtype, f"x is {x.dtype} but the model is {weight.dtype}: convert one of them.")
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


def _at(value: Any, rows: "slice | Tensor") -> Any:
    return None if value is None else value[rows]


def _like(mask: Bool[Tensor, " batch"], x: Tensor) -> Bool[Tensor, "batch ..."]:
    return mask.reshape(-1, *[1] * (x.ndim - 1))


def _better(which: Tensor, a: Perturbed, b: Perturbed) -> Perturbed:
    """Per sample the outcome `a` where `which`, else `b`; costs and counters of both add up."""
    pick = {f.name: (getattr(a, f.name), getattr(b, f.name)) for f in fields(Perturbed)}
    added = {name: u + v for name, (u, v) in pick.items() if name in ("evaluations", "nan_gradients", "zero_gradients")}
    return Perturbed(**{name: torch.where(_like(which, u), u, v) for name, (u, v) in pick.items()} | added)


def _plain(value: Any) -> Any:
    if isinstance(value, Objective):
        return value.settings()
    if is_dataclass(value) and not isinstance(value, type):
        inner = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        return {"kind": type(value).__name__, **inner} if not isinstance(value, Ball) else inner
    return value if isinstance(value, str | int | float | bool | None) else str(value)

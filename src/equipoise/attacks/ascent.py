"""The only perturbation loop.

An ascent climbs an objective within a geometry:

    x_0 = start,    x_{i+1} = Π_{ball ∩ box} ( x_i + step(∇ objective(x_i), size_i) ),    i = 0, ..., k - 1

and keeps its last, its best or its first successful point. PGD, UDP, UTA, TRADES' inner step, CW and FGSM are one-line
ascents (`equipoise.attacks`). Gradients are taken with respect to the perturbation only. Where samples do not depend
on each other, those that are finished leave the batch.
"""

from dataclasses import dataclass, fields, is_dataclass, replace
from numbers import Real
from typing import Any, Literal, cast, get_args

import torch

from equipoise.attacks.attack import Attack
from equipoise.attacks.climb import ActiveBatch, Case, Draws, Outcome, ReturnPoint, Rows, Selection, phases
from equipoise.attacks.execution import frozen_model
from equipoise.attacks.inputs import AttackInputs
from equipoise.attacks.result import AttackResult, Criterion, confirm, judged, likely_classes
from equipoise.attacks.spaces import Input
from equipoise.attacks.steps import (
    Boundary,
    Constant,
    Fixed,
    Normalized,
    Sign,
    Start,
    Steepest,
    Steps,
    StepSize,
    Uniform,
    Zero,
)
from equipoise.core import progress
from equipoise.core.deprecation import renamed_arguments
from equipoise.core.errors import require, require_integer, unknown
from equipoise.core.rng import Stream, Streams
from equipoise.core.types import (
    AscentState,
    Labels,
    Mode,
    PerSample,
    Points,
    Precision,
    Prediction,
    Predictive,
    Space,
    StepRule,
)
from equipoise.geometry import Ball
from equipoise.losses.objectives import Objective
from equipoise.losses.terms import Term
from equipoise.models import Frozen, frozen, global_seed, is_batch_dependent, isolated, predict
from equipoise.results.differences import RENAMED

TargetRule = Literal["least_likely", "runner_up", "random"]

_STARTS: dict[str, Start] = {"zero": Zero(), "uniform": Uniform(), "boundary": Boundary()}


@renamed_arguments(**RENAMED)
@dataclass(frozen=True)
class Ascent(Attack):
    """Objective × geometry × step rule × start × number of steps × what to keep.

    Call it as an attack, `ascent(model, x, y, seed=0) -> AttackResult`, or put it in a training method,
    `cross_entropy @ ascent`. The model's parameters, gradients, buffers and modes and the global random state are left
    as they were (with `mode="train"`, batch-norm updates its running statistics as in any training forward pass).
    """

    kind = "an ascent"
    takes_targets = True

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
    """Where to start; also by name, `zero`, `uniform` or `boundary`."""
    return_point: ReturnPoint = "last"
    """Which point is the result: the last; the one with the best objective, start included; or the first that
    succeeds (else the best)."""
    space: Space = Input()
    """Where the perturbation lives."""
    mode: Mode = "eval"
    """Mode of the model while climbing. `train`: batch statistics and dropout, as in the papers' runs."""
    resample: bool = False
    """Whether a random model is drawn anew at every step."""
    restarts: int = 1
    """Number of starts: the first as `start` says; where that is the clean point, the others at uniformly random points
    of the ball, since a second climb from the same point would be the same. Of each sample's results the successful
    and then the highest is kept."""
    target: TargetRule | int | None = None
    """The class to climb towards, by number or by a rule (`random` draws it from the seed): the attack succeeds where
    the model predicts it. Untargeted if None."""
    num_targets: int | None = None
    """Climb towards each of so many of the most likely other classes, side by side; any error is a success."""
    eot_samples: int = 1
    """Of a random model, over how many draws the objective and its gradient are averaged at every step."""
    eps_schedule: tuple[tuple[float, float], ...] = ()
    """Larger balls to climb in first, as (radius in multiples of eps, share of the steps); each phase starts at the
    projection of the best point of the one before, and the step rule starts anew."""
    tau: int | None = None
    """Stop a sample at the point where its prediction has been wrong more than so many times (Zhang et al. 2020, tau in
    Alg. 1); None stops it at its first success if that is what is kept, else never."""
    precision: Precision = "32"
    """`bf16` computes the climb in bfloat16; every success is then confirmed in float32."""

    def __post_init__(self) -> None:
        size, steps = self.step_size, self.steps
        require(
            isinstance(self.objective, Objective),
            f"objective is a {type(self.objective).__name__}: expected an Objective such as cross_entropy, or your "
            "own, Objective('name', formula) with formula(here, clean, labels, target) -> one number per sample.",
        )
        start: Any = self.start
        if isinstance(start, str):
            if start not in _STARTS:
                raise unknown("start", start, _STARTS)
            object.__setattr__(self, "start", _STARTS[start])
        object.__setattr__(self, "step_size", Constant(float(size)) if isinstance(size, Real) else size)
        object.__setattr__(self, "steps", steps if isinstance(steps, Steps) else Fixed(cast(int, steps)))
        require_integer("restarts", self.restarts, 1)
        for name, value, options in (
            ("return_point", self.return_point, ("last", "best", "first_success")),
            ("mode", self.mode, ("train", "eval")),
            ("precision", self.precision, ("32", "bf16")),
            ("target", None if isinstance(self.target, int) else self.target, (None, *get_args(TargetRule))),
        ):
            if value not in options:
                raise unknown(name, value, [str(o) for o in options])
        require(
            not isinstance(self.target, int) or self.target >= 0,
            f"target = {self.target} is no class: expected the number of a class, from 0, or a rule.",
        )
        require(
            self.num_targets is None or self.num_targets >= 1,
            f"num_targets = {self.num_targets} climbs towards nothing: expected a number of classes >= 1.",
        )
        require(
            self.num_targets is None or self.target is None,
            f"both target = {self.target!r} and num_targets = {self.num_targets} were given: choose one.",
        )
        if self.tau is not None:
            require_integer("tau", self.tau, 0)
        require(
            self.tau is None or self.return_point != "best",
            f"tau = {self.tau}: goes with return_point='last' or 'first_success'.",
        )
        require_integer("eot_samples", self.eot_samples, 1)
        require(
            not self.eps_schedule or (self.return_point != "last" and isinstance(self._schedule[0], Fixed)),
            "eps_schedule needs a fixed number of steps and return_point='best' or 'first_success': a phase starts "
            "where the one before was best.",
        )
        shares = [share for _, share in self.eps_schedule]
        require(
            all(factor >= 1 for factor, _ in self.eps_schedule) and all(s > 0 for s in shares) and sum(shares) < 1,
            f"eps_schedule = {self.eps_schedule}: expected pairs (radius >= 1, share > 0) whose shares "
            "leave some steps.",
        )
        if self.eps_schedule:
            phases(self.geometry, self._schedule[0].most, self.eps_schedule)

    def __rmatmul__(self, objective: object) -> Term:
        require(
            self.restarts == 1, f"restarts = {self.restarts}: a training method climbs once; restarts are for attacks."
        )
        require(
            self.num_targets is None,
            f"num_targets = {self.num_targets}: a training method climbs once; several targets are for attacks.",
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
        """Every field as JSON-ready data, for records; `target` is how many targets, a rule, or `{"class": number}`."""
        found = {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name != "num_targets"}
        target = {"class": self.target} if isinstance(self.target, int) else self.target
        return found | {"target": target if self.num_targets is None else self.num_targets}

    def perturb(self, predictive: Predictive, x: Points, y: Labels, streams: Streams) -> Points:
        """What a training method evaluates its objective at: one climb, nothing checked or verified.

        Perturbed inputs, or what the space hands on of a perturbed code (in `Latent` the perturbation alone).
        """
        with global_seed(int(streams.keys[0]), x.device), isolated(x.device):
            target = None
            if self.target is not None:
                clean = predict(predictive, x, streams.fold(Stream.MODEL))
                target = choose_target(self.target, clean, y, streams.fold(Stream.TARGET))
            plain = isinstance(self.space, Input)  # whose climb makes the only copy that is needed
            still = Frozen(predictive, predictive) if plain else frozen(predictive, self.mode)
            inside, origin = self.space.enter(still, x)
            case = Case(inside, origin, y, target, None, streams, streams, Criterion(y, target))
            return self.space.leave(origin, self._from_inside._climb(case).point)

    def predict_at(self, predictive: Predictive, x: Points, point: Points, streams: Streams) -> Prediction:
        """The live prediction at what `perturb` returned."""
        return self.space.predict_at(predictive, x, point, streams)

    @property
    def _from_inside(self) -> "Ascent":
        """The ascent as seen from its own space, where points are inputs."""
        box = self.space.box
        return self if box is None else replace(self, space=Input(), geometry=replace(self.geometry, box=box))

    def run(self, inputs: AttackInputs) -> AttackResult:
        """The outcome of all attempts.

        In a latent space the result's points and distances are codes, those of the layer that the space names. Where
        samples depend on each other (batch statistics or dropout with `mode="train"`) all of them are one batch.
        """
        y, target = inputs.y, inputs.target
        if not isinstance(self.space, Input):
            inside, origin = self.space.enter(inputs.predictive, inputs.x)
            return self._from_inside(inside, origin, y, target=target, **inputs.options)
        towards = target is not None or self.target is not None or self.num_targets is not None
        self.objective.check(inputs.classes, y is not None, towards, inputs.members)
        require(
            target is None or (self.target is None and self.num_targets is None),
            f"both target={self.target or self.num_targets!r} and target classes were given: choose one.",
        )
        same = 0 if y is None or target is None else int((y == target).sum())
        require(
            same == 0,
            f"target holds the true class of {same} of {len(inputs.x)} samples: an attack climbs towards another "
            "class.",
        )
        several, couples = self.num_targets or 1, self._couples(inputs)
        require(
            several == 1 or not couples,
            f"num_targets = {several}: in this model a sample's output depends on its batch, which several targets "
            "side by side would change; choose one target.",
        )
        size = len(inputs.x) if couples else max(inputs.points_at_once // several, 1)
        return AttackResult.cat([self._attack(inputs[rows], couples) for rows in inputs.batches(size)])

    def _attack(self, inputs: AttackInputs, couples: bool) -> AttackResult:
        predictive, x, y, target = inputs.predictive, inputs.x, inputs.y, inputs.target
        streams, start = inputs.streams, inputs.start
        clean = predict(predictive, x, streams.fold(Stream.MODEL))
        criterion = Criterion(clean.labels if y is None else y, target)
        if self.num_targets is not None:
            target = likely_classes(clean, criterion.label.clamp_min(0), self.num_targets)
        elif self.target is not None:
            target = choose_target(self.target, clean, y, streams.fold(Stream.TARGET))
            criterion = replace(criterion, target=target)
        case = Case(predictive, x, y, target, clean, streams, streams, criterion, start, couples)
        result, value = self._attempt(case, 0)
        for restart in range(1, self.restarts):
            # Samples that are already fooled stay as they are when the first success is all that is asked for.
            everyone = torch.arange(len(x), device=x.device)
            rows = case.unfooled(result.success) if self.return_point == "first_success" else everyone
            if len(rows) == 0:
                break
            again, new_value = self._attempt(case[rows], restart)
            old = result[rows]
            better = torch.where(again.errors == old.errors, new_value > value[rows], again.errors > old.errors)
            better = torch.where(again.success == old.success, better, again.success)
            result = result.with_rows(rows, old.where(again, better))
            value[rows] = torch.where(better, new_value, value[rows])
        result = judged(predictive, self.geometry, criterion, x, result, streams)
        return replace(result, evaluations=result.evaluations + 1)

    def _attempt(self, case: "Case", restart: int) -> tuple[AttackResult, PerSample]:
        """One climb, its outcome verified in float32 and eval mode, and its objective."""
        again = restart > 0 and isinstance(self.start, Zero)
        case = replace(
            case,
            attempt=case.streams.fold(Stream.RESTART, restart),
            start=case.start if restart == 0 else None,
            rule=Uniform() if again else self.start,
        )
        found, target = self._climb(case), case.target
        if target is not None and target.ndim == 2:
            found = found.leading_row(target.shape[1])
            target = found.target
        # In train mode the climb has moved the running statistics, with which the model is now judged.
        still = frozen(case.predictive.original) if self.mode == "train" else case.predictive
        result, here = confirm(
            replace(still, random=case.predictive.random),
            self.geometry,
            case.criterion,
            case.x,
            found.point,
            case.streams,
            evaluations=found.evaluations,
            iteration=found.iteration,
            nan_gradients=found.nan,
            zero_gradients=found.zero,
        )
        value = self.objective(here, case.clean, case.y, target)
        if self.precision == "bf16" and self.return_point == "first_success":
            # A sample that bf16 took for fooled stopped there. If float32 disagrees it deserves the full climb.
            again = case.unfooled(result.success | ~found.succeeded)
            if len(again):
                slow, value[again] = replace(self, precision="32")._attempt(case[again], restart)
                everyone = torch.ones_like(slow.success)
                result = result.with_rows(again, result[again].where(slow, everyone))
        return result, value

    def _couples(self, case: "AttackInputs") -> bool:
        """Whether, in the mode of the climb, samples depend on each other."""
        return case.examined.coupled or is_batch_dependent(case.predictive.original.module, self.mode)

    @torch.no_grad()
    def _climb(self, case: Case) -> Outcome:
        """`x ← Π(x + step(∇ objective(x)))`, for every sample until it is done."""
        steps, sizes = self._schedule
        balls = phases(self.geometry, steps.most, self.eps_schedule)
        phase = balls[0]
        with frozen_model(case.predictive, case.x, self.mode, self.precision) as draw:
            independent = not (case.couples or is_batch_dependent(case.predictive.module, self.mode))
            streams = case.streams.fold(Stream.MODEL)
            model = Draws(draw, streams, self.eot_samples, self.resample, at_once=None if independent else 0)
            predict = draw(streams)
            clean = predict(case.x) if self.objective.needs_clean else None
            rows = Rows.of(
                case, clean, self._starts(case), steps.draw(case.attempt.fold(Stream.STEPS)), self.step, self._may_cycle
            )
            active = ActiveBatch(rows, len(case.x), steps.most, Selection(self.return_point, self.tau), independent)
            active.evaluations += clean is not None
            for i in range(steps.most):
                progress.report(i, steps.most, "step")
                if not active.begin_step(i, self.objective, predict):
                    break
                if i > 0 and i in balls:
                    phase = balls[i]
                    active.rows.enter(phase, self.step)
                value, gradient, output = model.value_and_gradient(self.objective, active.rows, i, predict)
                active.evaluations += self.eot_samples
                value, gradient = active.observe(i, value, gradient, output, phase.final)
                if len(active) == 0:
                    break
                x, origin = active.rows.point, active.rows.origin
                size = phase.factor * sizes.at(i, steps.most)
                here = AscentState(x, value, gradient, origin, size, i - phase.start, phase.steps, phase.ball)
                moved, memory = self.step(here, active.rows.memory)
                active.move(i, phase.ball.project(moved, origin), memory)
            return active.finish(self.objective, predict)

    def _starts(self, case: Case) -> Points:
        """The points to start from."""
        ball = phases(self.geometry, self._schedule[0].most, self.eps_schedule)[0].ball
        if case.start is not None:
            return ball.project(case.start, case.x)
        return (case.rule or self.start).draw(case.attempt.fold(Stream.START), case.x, ball)

    @property
    def _may_cycle(self) -> bool:
        """Whether a point decides all that follow it, so that an ascent that comes back to one sees nothing new."""
        steps, size = self._schedule
        alike = isinstance(steps, Fixed) and isinstance(size, Constant) and not self.resample and self.mode == "eval"
        return (
            alike
            and self.return_point != "last"
            and not self.eps_schedule
            and isinstance(self.step, Steepest | Sign | Normalized)
        )


def choose_target(rule: TargetRule | int, clean: Prediction, y: Labels | None, streams: Streams) -> Labels:
    """A class other than the true one (or, without labels, the predicted one): that of a number, the least likely, the
    most likely of the others, or any of them drawn uniformly. Raises `EquipoiseError` for a number that is none.
    """
    scores = clean.scores.clone()
    own = clean.labels.clamp_min(0) if y is None else y
    if isinstance(rule, int):
        require(rule < clean.classes, f"target = {rule} is no class: the model has {clean.classes}, numbered from 0.")
        same = int((own == rule).sum())
        require(
            same == 0, f"target = {rule} is the class of {same} of {len(own)} samples: leave them out of the attack."
        )
        return torch.full_like(own, rule)
    if rule == "random":
        return (own + 1 + streams.integers(clean.classes - 1)) % clean.classes
    worst = torch.inf if rule == "least_likely" else -torch.inf
    scores.scatter_(1, own[:, None], worst)
    return scores.argmin(1) if rule == "least_likely" else scores.argmax(1)


def _plain(value: Any) -> Any:
    if isinstance(value, Objective):
        return value.settings()
    if is_dataclass(value) and not isinstance(value, type):
        inner = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        return {"kind": type(value).__name__, **inner} if not isinstance(value, Ball) else inner
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)

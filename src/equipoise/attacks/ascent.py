"""The only perturbation loop.

An ascent climbs an objective within a geometry:

    x_0 = start,    x_{i+1} = Π_{ball ∩ box} ( x_i + step(∇ objective(x_i), size_i) ),    i = 0, ..., k - 1

and keeps its last, its best or its first successful point. PGD, UDP, UTA, TRADES' inner step, CW and FGSM are one-line
ascents (`equipoise.attacks`). Gradients are taken with respect to the perturbation only. Where samples do not depend
on each other, those that are finished leave the batch.
"""

from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal, cast

import torch

from equipoise.attacks import graphed
from equipoise.attacks.attack import Attack
from equipoise.attacks.climb import ActiveBatch, Attempt, ClimbState, Draws, Outcome, ReturnPoint, Selection, phases
from equipoise.attacks.execution import frozen_model
from equipoise.attacks.graphed import RecordedStepping, Recorder, Stepping, is_recordable
from equipoise.attacks.inputs import AttackInputs
from equipoise.attacks.native_climb import climb_natively
from equipoise.attacks.result import AttackResult, Criterion, confirm, judge, likely_classes
from equipoise.attacks.spaces import Input
from equipoise.attacks.steps import (
    Boundary,
    Constant,
    Fixed,
    Normalized,
    RadiusShare,
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
from equipoise.core.errors import require, require_integer
from equipoise.core.rng import Stream, Streams
from equipoise.core.types import (
    Labels,
    Mode,
    PerSample,
    Points,
    Precision,
    Predict,
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
StartName = Literal["zero", "uniform", "boundary"]

_STARTS: dict[str, Start] = {"zero": Zero(), "uniform": Uniform(), "boundary": Boundary()}


@renamed_arguments(**RENAMED)
@dataclass(frozen=True)
class Ascent(Attack):
    """Objective × geometry × step rule × start × number of steps × point to return.

    Call it as an attack, `ascent(model, x, y, seed=0) -> AttackResult`, or put it in a training method,
    `cross_entropy @ ascent`, where an ascent to the first success returns its last point instead. The model's
    parameters, gradients, buffers and modes and the global random state are left as they were (with `mode="train"`,
    batch-norm updates its running statistics as in any training forward pass).
    """

    kind = "ascent"
    takes_targets = takes_starts = True
    takes_radii = True

    objective: Objective
    """The objective to maximise."""
    geometry: Ball
    """Where the perturbed point may lie."""
    step_size: StepSize | float
    """Length of the steps: a number, or a schedule."""
    steps: Steps | int
    """How many: a number, or a rule per sample."""
    step: StepRule = Steepest()
    """Direction of the steps."""
    start: "Start | StartName" = Zero()
    """Where to start; also by name, `zero`, `uniform` or `boundary`."""
    return_point: ReturnPoint = "last"
    """Which point is the result: the last; the one with the best objective, start included; or the first that
    succeeds (else the best)."""
    space: Space = Input()
    """Where the perturbation lives."""
    mode: Mode = "eval"
    """Mode of the model during the ascent. `train`: batch statistics and dropout, as in the papers' runs."""
    resample: bool = False
    """Whether a random model is drawn anew at every step."""
    restarts: int = 1
    """Number of starts: the first as `start` says; where that is the clean point, the others at uniformly random points
    of the ball, since a second ascent from the same point would be the same. Of each sample's results the successful
    and then the highest is kept."""
    target: TargetRule | int | None = None
    """The target class, by number or by a rule (`random` draws it from the seed): the attack succeeds where
    the model predicts it. Untargeted if None."""
    num_targets: int | None = None
    """Attack towards each of this many most likely other classes, side by side; any error is a success."""
    eot_samples: int = 1
    """Of a random model, over how many draws the objective and its gradient are averaged at every step."""
    eps_schedule: tuple[tuple[float, float], ...] = ()
    """Larger balls for the first phases, as (radius in multiples of eps, share of the steps); each phase starts at the
    projection of the best point of the one before, and the step rule starts anew."""
    tau: int | None = None
    """Stop a sample at the point where its prediction has been wrong more than this many times (Zhang et al. 2020,
    tau in Alg. 1); None stops it at its first success if that is the point to return, else never."""
    precision: Precision = "32"
    """`bf16` computes the ascent in bfloat16; every success is then confirmed in float32."""

    def __post_init__(self) -> None:
        size, steps, start = self.step_size, self.steps, cast(Any, self.start)
        if isinstance(start, str):
            object.__setattr__(self, "start", _STARTS[start])
        object.__setattr__(self, "step_size", Constant(float(size)) if isinstance(size, Real) else size)
        object.__setattr__(self, "steps", steps if isinstance(steps, Steps) else Fixed(cast(int, steps)))
        require_integer("restarts", self.restarts, 1)
        require_integer("eot_samples", self.eot_samples, 1)
        self._check_targets()
        if self.tau is not None:
            require_integer("tau", self.tau, 0)
        require(
            self.tau is None or self.return_point != "best",
            f"tau = {self.tau}: goes with return_point='last' or 'first_success'.",
        )
        if self.eps_schedule:
            self._check_eps_schedule()

    def _check_targets(self) -> None:
        require(
            not isinstance(self.target, int) or self.target >= 0,
            f"target = {self.target} is no class: expected the number of a class, from 0, or a rule.",
        )
        require(
            self.num_targets is None or self.num_targets >= 1,
            f"num_targets = {self.num_targets} leaves no target: expected a number of classes >= 1.",
        )
        require(
            self.num_targets is None or self.target is None,
            f"both target = {self.target!r} and num_targets = {self.num_targets} were given: choose one.",
        )

    def _check_eps_schedule(self) -> None:
        require(
            self.return_point != "last" and isinstance(self._schedule[0], Fixed),
            "eps_schedule needs a fixed number of steps and return_point='best' or 'first_success': a phase starts "
            "where the one before was best.",
        )
        shares = [share for _, share in self.eps_schedule]
        require(
            all(factor >= 1 for factor, _ in self.eps_schedule) and all(s > 0 for s in shares) and sum(shares) < 1,
            f"eps_schedule = {self.eps_schedule}: expected pairs (radius >= 1, share > 0) whose shares "
            "leave some steps.",
        )
        phases(self.geometry, self._schedule[0].most, self.eps_schedule)

    def __rmatmul__(self, objective: object) -> Term:
        require(
            self.restarts == 1,
            f"restarts = {self.restarts}: the inner maximisation of training runs once; restarts are for attacks.",
        )
        require(
            self.num_targets is None,
            f"num_targets = {self.num_targets}: the inner maximisation of training runs once; several targets are for "
            "attacks.",
        )
        # Training takes the point after all steps: the first success would be the weakest perturbation that succeeds.
        point = replace(self, return_point="last") if self.return_point == "first_success" else self
        return Term(objective, point) if isinstance(objective, Objective) else super().__rmatmul__(objective)

    def __str__(self) -> str:
        ball, (steps, size) = self.geometry, self._schedule
        count = f"{'' if isinstance(steps, Fixed) else 'up to '}{steps.most} steps"
        length = f"{size.size:g}" if isinstance(size, Constant) else str(size)
        return f"ascent({self.objective.name}, {ball.norm} {ball.eps:g}, {count} of {length})"

    @property
    def _per_sample(self) -> bool:
        """Whether every sample has a radius, a mask or a length of its steps of its own."""
        return self.geometry.varies or isinstance(self.step_size, RadiusShare)

    def __getitem__(self, index: "torch.Tensor") -> "Ascent":
        """The ascent of some of the samples: itself, unless every sample has a ball of its own."""
        if not self._per_sample:
            return self
        size = self.step_size
        size = replace(size, radii=size.radii[index]) if isinstance(size, RadiusShare) else size
        return replace(self, geometry=self.geometry[index], step_size=size)

    def scaled(self, factor: float) -> "Ascent":
        """The ascent in `factor` times the ball, with steps `factor` times as long if all have one length."""
        size = self.step_size
        size = Constant(factor * size.size) if isinstance(size, Constant) and factor > 0 else size
        return replace(self, geometry=self.geometry.scaled(factor), step_size=size)

    @property
    def _schedule(self) -> tuple[Steps, StepSize]:
        """How many steps and how long; numbers became rules at construction."""
        return cast(Steps, self.steps), cast(StepSize, self.step_size)

    def perturb(self, predictive: Predictive, x: Points, y: Labels, streams: Streams) -> Points:
        """Return the points at which a training method evaluates its objective: one ascent, without checks.

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
            batch = Attempt(origin, inside, y, target, None, streams, streams, Criterion(y, target))
            return self.space.leave(origin, self._from_inside._climb(batch).point)

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
            return self._from_inside(inside, origin, y, **inputs.options)
        towards = target is not None or self.target is not None or self.num_targets is not None
        self.objective.check(inputs.classes, y is not None, towards, inputs.members)
        require(
            target is None or (self.target is None and self.num_targets is None),
            f"both target={self.target or self.num_targets!r} and target classes were given: choose one.",
        )
        targets, dependent = self.num_targets or 1, self._batch_dependent(inputs)
        require(
            targets == 1 or not dependent,
            f"num_targets = {targets}: in this model a sample's output depends on its batch, which several targets "
            "side by side would change; choose one target.",
        )
        size = len(inputs.x) if dependent else max(inputs.points_at_once // targets, 1)
        return AttackResult.cat([self[index]._attack(inputs[index], dependent) for index in inputs.batches(size)])

    def _attack(self, inputs: AttackInputs, dependent: bool) -> AttackResult:
        """The best of all restarts on one batch."""
        predictive, x, y, target, streams = inputs.predictive, inputs.x, inputs.y, inputs.target, inputs.streams
        chooses = y is None or self.num_targets is not None or self.target is not None
        looks = chooses or self.objective.needs_clean
        clean = cast(Prediction, predict(predictive, x, streams.fold(Stream.MODEL)) if looks else None)
        criterion = Criterion(clean.labels if y is None else y, target)
        if self.num_targets is not None:
            target = likely_classes(clean, criterion.label.clamp_min(0), self.num_targets)
        elif self.target is not None:
            target = choose_target(self.target, clean, y, streams.fold(Stream.TARGET))
            criterion = replace(criterion, target=target)
        batch = Attempt(x, predictive, y, target, clean, streams, streams, criterion, inputs.start, dependent)
        result, value = self._attempt(batch, 0)
        for restart in range(1, self.restarts):
            # Samples that are already fooled stay as they are when the first success is all that is asked for.
            everyone = torch.arange(len(x), device=x.device)
            active = batch.unfooled(result.success) if self.return_point == "first_success" else everyone
            if len(active) == 0:
                break
            new, new_value = self[active]._attempt(batch[active], restart)
            old = result[active]
            better = torch.where(new.errors == old.errors, new_value > value[active], new.errors > old.errors)
            better = torch.where(new.success == old.success, better, new.success)
            result = result.with_rows(active, old.where(new, better))
            value[active] = torch.where(better, new_value, value[active])
        result = judge(predictive, self.geometry, criterion, x, result, streams)
        return replace(result, evaluations=result.evaluations + int(looks))

    def _attempt(self, batch: Attempt, restart: int) -> tuple[AttackResult, PerSample]:
        """One ascent, its outcome verified in float32 and eval mode, and its objective."""
        elsewhere = restart > 0 and isinstance(self.start, Zero)
        batch = replace(
            batch,
            own_streams=batch.streams.fold(Stream.RESTART, restart),
            start=batch.start if restart == 0 else None,
            start_rule=Uniform() if elsewhere else self.start,
        )
        outcome, target = self._climb(batch), batch.target
        if target is not None and target.ndim == 2:
            outcome = outcome.leading_rows(target.shape[1])
            target = outcome.target
        # In train mode the ascent has moved the running statistics, with which the model is now judged.
        still = frozen(batch.predictive.original) if self.mode == "train" else batch.predictive
        result, output = confirm(
            replace(still, random=batch.predictive.random),
            self.geometry,
            batch.criterion,
            batch.x,
            outcome.point,
            batch.streams,
            evaluations=outcome.evaluations,
            iteration=outcome.iteration,
            nan_gradients=outcome.nan,
            zero_gradients=outcome.zero,
        )
        value = self.objective(output, batch.clean, batch.y, target)
        judged_alike = self.mode == "eval" and not batch.predictive.random
        if judged_alike and self.return_point == "first_success" and not batch.exact:
            # A sample that bf16, or a kernel by rounding, took for fooled stopped there: it gets the full ascent.
            denied = batch.unfooled(result.success | ~outcome.succeeded)
            if len(denied):
                again = replace(batch[denied], exact=True)
                slow, value[denied] = replace(self[denied], precision="32")._attempt(again, restart)
                everyone = torch.ones_like(slow.success)
                result = result.with_rows(denied, result[denied].where(slow, everyone))
        return result, value

    def _batch_dependent(self, inputs: AttackInputs) -> bool:
        """Whether, in the mode of the ascent, samples depend on each other."""
        return inputs.examined.coupled or is_batch_dependent(inputs.predictive.original.module, self.mode)

    @torch.no_grad()
    def _climb(self, batch: Attempt) -> Outcome:
        """`x_{i+1} = Π(x_i + step(∇ objective(x_i), size_i))`, for every sample until it is finished."""
        steps, sizes = self._schedule
        balls = phases(self.geometry, steps.most, self.eps_schedule)
        phase = balls[0]
        with frozen_model(batch.predictive, batch.x, self.mode, self.precision, native=not batch.exact) as draw:
            independent = not (batch.batch_dependent or is_batch_dependent(batch.predictive.module, self.mode))
            streams = batch.streams.fold(Stream.MODEL)
            model = Draws(draw, streams, self.eot_samples, self.resample, at_once=None if independent else 0)
            predict = draw(streams)
            clean = predict(batch.x) if self.objective.needs_clean else None
            start, counts = self._starts(batch, phase.ball), steps.draw(batch.own_streams.fold(Stream.STEPS))
            outcome = self._natively(batch, predict, clean, start, counts) if independent else None
            if outcome is not None:
                return outcome
            state = ClimbState.of(batch, clean, start, counts, self.step, self._may_cycle)
            selection = Selection(self.return_point, self.tau)
            recorder = self._recorder(batch, selection, counts is not None) if independent else None
            active = ActiveBatch(state, len(batch), steps.most, selection, independent, recorder is not None)
            look = Stepping(active, self.objective, self.step, model, predict)
            take_step = look if recorder is None else RecordedStepping(look, recorder)
            for i in range(steps.most):
                progress.report(i, steps.most, "step")
                if not active.begin_step(i, self.objective, predict):
                    break
                if i > 0 and i in balls:
                    phase = balls[i]
                    active.rows.enter(phase, self.step)
                active.evaluations += self.eot_samples
                moved, memory = take_step(i, phase.factor * sizes.at(i, steps.most), phase)
                if len(active) == 0:
                    break
                active.move(i, phase.ball[active.rows.sample].project(moved, active.rows.origin), memory)
            return active.finish(self.objective, predict)

    def _recorder(self, batch: Attempt, selection: Selection, drawn: bool) -> Recorder | None:
        """What records a step of this ascent; None if its steps differ, or nothing is gained."""
        if self.mode == "train" or self.eot_samples > 1 or self.resample or self.eps_schedule or self._per_sample:
            return None
        recordable = is_recordable(batch.predictive, self.objective, self.step, selection, drawn)
        return graphed.recorder_for(batch.x.device) if recordable else None

    def _natively(
        self, batch: Attempt, predict: Predict, clean: Prediction | None, start: Points, counts: "torch.Tensor | None"
    ) -> Outcome | None:
        """The same by a kernel that takes all steps at once, where there is one for such an ascent and network."""
        if self.eot_samples > 1 or self.resample or self.eps_schedule:
            return None
        steps, sizes = self._schedule
        selection = {"return_point": self.return_point, "tau": self.tau, "may_cycle": self._may_cycle}
        ascent = self.objective, self.geometry, self.step, sizes, steps.most
        return climb_natively(batch, predict, *ascent, clean, start, counts, **selection)

    def _starts(self, batch: Attempt, ball: Ball) -> Points:
        """The points to start from."""
        if batch.start is not None:
            return ball.project(batch.start, batch.x)
        return cast(Start, batch.start_rule or self.start).draw(batch.own_streams.fold(Stream.START), batch.x, ball)

    @property
    def _may_cycle(self) -> bool:
        """Whether a point decides all that follow it, so that an ascent that comes back to one sees nothing new."""
        steps, size = self._schedule
        return (
            isinstance(steps, Fixed)
            and isinstance(size, Constant)
            and isinstance(self.step, Steepest | Sign | Normalized)
            and not (self.resample or self.eps_schedule or self.mode == "train" or self.return_point == "last")
        )


def choose_target(rule: TargetRule | int, clean: Prediction, y: Labels | None, streams: Streams) -> Labels:
    """A class other than the true one (or, without labels, the predicted one): that of a number, the least likely, the
    most likely of the others, or any of them drawn uniformly. Raises `EquipoiseError` for a number that is no class.
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

"""FAB: the shortest perturbation that crosses the decision boundary (Croce & Hein 2020, ICML), towards chosen classes.

An ascent maximises within a ball; FAB stays near the boundary and minimises the distance. With `f = z_t - z_y` (logits
of a target class and the true one) linear about the iterate `x_i`, let `d1` be the shortest move of `x_i` onto `f = 0`
within the box, and `d2` that of the clean point `x_0` (`equipoise.geometry.hyperplane`). Then

    a = min(‖d1‖ / (‖d1‖ + ‖d2‖), alpha_max)
    x_{i+1} = clip( (1 - a)(x_i + eta·d1) + a(x_0 + eta·d2) )

and a misclassified iterate is recorded and moved back to `x_0 + beta(x_{i+1} - x_0)` (ibid., Alg. 1).
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from equipoise.attacks.active import Active, SampleTable
from equipoise.attacks.attack import Batch, Candidates, SearchAttack
from equipoise.attacks.execution import averaged, frozen_model
from equipoise.attacks.minimum_norm.search import difference_to, linearise
from equipoise.attacks.result import Criterion, like
from equipoise.core import progress
from equipoise.core.checks import checked_call
from equipoise.core.deprecation import renamed_arguments
from equipoise.core.errors import require, require_integer
from equipoise.core.rng import Stream, Streams
from equipoise.core.types import PerSample, Points, Precision, Predict, Prediction
from equipoise.geometry import NORMS, Ball, Box, norm_of
from equipoise.geometry.hyperplane import move_onto
from equipoise.kernels.native import NativeForward


@renamed_arguments(keep="return_point")
@dataclass(frozen=True)
class FAB(SearchAttack):
    """Targeted FAB: steps onto the linearised boundary towards each of the most likely wrong classes."""

    kind = "fab"
    needs_labels = True
    takes_targets = True

    geometry: Ball
    """Norm and box, and the radius within which a perturbation counts, infinite only with `return_point="nearest"`."""
    steps: int = 100
    """How many steps."""
    targets: int = 9
    """Towards how many classes: the most likely ones other than the true one."""
    restarts: int = 1
    """How often it starts: first from the clean point, then at random within half of the best distance so far."""
    eta: float = 1.05
    """How far a move goes beyond the plane: 1 ends on it."""
    alpha_max: float = 0.1
    """Largest weight of the clean point's own move."""
    beta: float = 0.9
    """How much of the perturbation is left when a misclassified iterate is taken back towards the clean point."""
    return_point: Literal["first_success", "nearest"] = "first_success"
    """The first misclassified point in the ball, at which the sample is done; or, after all steps, the nearest."""
    eot_samples: int = 1
    """Of a random model, over how many draws the prediction is averaged."""
    precision: Precision = "32"
    """`bf16` computes the search in bfloat16; every success is then confirmed in float32."""

    def __post_init__(self) -> None:
        for name in ("steps", "targets", "restarts", "eot_samples"):
            require_integer(name, getattr(self, name), 1)
        require(self.eta >= 1, f"eta = {self.eta} stops before the boundary: expected a number >= 1, such as 1.05.")
        for name in ("alpha_max", "beta"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} = {value}: expected a number from 0 to 1.")
        require(
            self.return_point == "nearest" or self.geometry.eps < float("inf"),
            "eps is infinite, where any error is a success: give it a radius, or search with return_point='nearest'.",
        )

    def search(self, batch: Batch) -> Candidates:
        """One attempt towards every target; the first from the clean points."""
        x, inputs, targets = batch.x, batch.inputs, batch.targets(self.targets)
        start = None
        if batch.restart:
            reach = torch.where(batch.best.success, batch.best.distance, float("inf")).clamp_max(self.geometry.eps)
            start = self._start(x, targets.shape[1], inputs.streams.fold(Stream.RESTART, batch.restart), reach)
        with frozen_model(inputs.predictive, x, "eval", self.precision) as draw:
            predict = averaged(draw, inputs.streams, self.eot_samples)
            if isinstance(predict, NativeForward) and not inputs.predictive.random:
                predict = predict.at(x)  # traced once, not twice a step
            candidates, score = self._walk(predict, _Walk.of(x, inputs.criterion, targets, start), x)
        if self.precision == "bf16":
            candidates.claimed = (score < float("inf")) & self.geometry.contains(candidates.point, x)
        return candidates

    def _start(self, x: Points, targets: int, streams: Streams, reach: PerSample) -> Float[Tensor, "batch targets ..."]:
        """A point per target, uniform on the ball of half the distance within reach, or of half the box's width."""
        box, draw = self.geometry.box, NORMS[self.geometry.norm].draw
        radius = torch.where(reach < float("inf"), reach, box.high - box.low)[:, None] / 2
        moves = [radius * draw(streams.fold(t), x[0].numel(), x.dtype) for t in range(targets)]
        return torch.stack([box.clamp(x + move.reshape(x.shape)) for move in moves], 1)

    def _walk(self, predict: Predict, walks: "_Walk", x: Points) -> tuple[Candidates, PerSample]:
        """The best points, and their scores: infinite for none, the distance with "nearest", else 0.

        The walks of a sample leave together, so that its first success does not depend on other samples.
        """
        candidates, score, targets = Candidates.unmoved(x), x.new_full((len(x),), float("inf")), walks.targets
        active = Active(walks)
        walks.linearise(predict, candidates)
        for step in range(1, self.steps + 1):
            progress.report(step - 1, self.steps, "step")
            walks.point = self._next(walks)
            walks.classify(predict(walks.point), candidates)
            better = self._record(walks, step, candidates, score)
            if step == self.steps:
                break
            if self.return_point == "first_success":
                active.release(better.repeat_interleave(targets))
                walks = active.rows
                if len(walks) == 0:
                    break
            share = torch.ones_like(walks.value).masked_fill(walks.misclassified, self.beta)
            walks.point = torch.lerp(walks.origin, walks.point, like(share, walks.point))
            walks.linearise(predict, candidates)
        return candidates, score

    def _next(self, walks: "_Walk") -> Points:
        """`clip((1 - a)(x_i + eta·d1) + a(x_0 + eta·d2))` of every walk."""
        norm, box = self.geometry.norm, self.geometry.box
        x, x0, gradient = walks.point.flatten(1), walks.origin.flatten(1), walks.gradient
        rise = -walks.value
        rise0 = rise + (gradient * (x - x0)).sum(1)
        moves = move_onto(torch.cat([x, x0]), torch.cat([gradient, gradient]), torch.cat([rise, rise0]), norm, box)
        d1, d2 = moves.chunk(2)
        length1, length2 = norm_of(moves, NORMS[norm].order)[:, None].clamp_min(1e-8).chunk(2)
        a = (length1 / (length1 + length2)).clamp_max(self.alpha_max)
        moved = torch.lerp(x.add(d1, alpha=self.eta), x0.add(d2, alpha=self.eta), a)
        return box.clamp(moved).reshape(walks.point.shape)

    def _record(self, walks: "_Walk", step: int, candidates: Candidates, best: PerSample) -> Bool[Tensor, " samples"]:
        """Keep the best new point of every sample, if better than its candidate; return which samples have one."""
        score = torch.full_like(walks.value, float("inf"))
        if self.return_point == "nearest":
            clear = walks.clear.nonzero()[:, 0]
            score[clear] = self.geometry.distance(walks.point[clear], walks.origin[clear])
        else:
            length = norm_of((walks.point - walks.origin).flatten(1), NORMS[self.geometry.norm].order)
            inside = length <= 1.001 * self.geometry.eps + 1e-5 * self.geometry.box.scale
            inside = (walks.clear & inside).nonzero()[:, 0]  # by a cheap bound, then exactly
            score[inside[self.geometry.contains(walks.point[inside], walks.origin[inside])]] = 0.0
        score, first = score.reshape(-1, walks.targets).min(1)
        better = score < best[walks.output_index[:: walks.targets]]
        best_walk = (torch.arange(len(better), device=better.device) * walks.targets + first)[better]
        index = walks.output_index[best_walk]
        candidates.write(index, point=walks.point[best_walk], iteration=step)
        best[index] = score[better]
        return better


@dataclass
class _Walk(SampleTable):
    """The iterates of the active samples: a row for every target, those of a sample next to each other."""

    output_index: Tensor  # which sample it belongs to
    origin: Tensor
    criterion: Criterion  # what counts as success
    target: Tensor
    point: Tensor
    value: Tensor
    gradient: Tensor
    misclassified: Tensor  # whether the last move crossed the boundary
    clear: Tensor  # by more than rounding, so that the point counts
    targets: int  # rows per sample

    @staticmethod
    def of(
        x: Points,
        criterion: Criterion,
        targets: Int[Tensor, "batch targets"],
        start: Float[Tensor, "batch targets ..."] | None,
    ) -> "_Walk":
        count = targets.shape[1]
        index = torch.arange(len(x), device=x.device).repeat_interleave(count)
        origin, no = x[index], torch.zeros_like(index, dtype=torch.bool)
        point = origin if start is None else start.flatten(0, 1)
        value, gradient = origin.new_zeros(len(index)), torch.zeros_like(origin.flatten(1))
        return _Walk(index, origin, criterion[index], targets.flatten(), point, value, gradient, no, no, count)

    def classify(self, output: Prediction, candidates: Candidates) -> None:
        """Which points are successes, and which of them clearly."""
        candidates.count(self.output_index)
        self.misclassified, self.clear = self.criterion.reached(output), self.criterion.clearly_reached(output)

    def linearise(self, predict: Predict, candidates: Candidates) -> None:
        """The value of every point, and the gradient along which it moves next."""
        objective, label = difference_to(self.criterion), self.criterion.label
        self.value, self.gradient, _ = linearise(
            objective, predict, self.point, label, self.target, candidates, self.output_index
        )


@checked_call(FAB)
def fab(
    eps: float,
    norm: str = "linf",
    steps: int = 100,
    targets: int = 9,
    restarts: int = 1,
    box: Box = Box(),
    **options: Any,
) -> FAB:
    """Targeted FAB within `eps` (`FAB-T` of AutoAttack); also takes the other fields of `FAB`, such as `eta`."""
    return FAB(Ball(norm, eps, box), steps, targets, restarts, **options)

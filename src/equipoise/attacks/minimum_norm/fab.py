"""FAB: the shortest perturbation that crosses the decision boundary (Croce & Hein 2020, ICML), towards chosen classes.

Where an ascent stays in a ball and climbs, FAB stays near the boundary and comes back. With `f = z_t - z_y` (logits of
a target class and the true one) linear about the iterate `x_i`, let `d1` be the shortest move of `x_i` onto `f = 0`
within the box, and `d2` that of the clean point `x_0` (`equipoise.geometry.hyperplane`). Then

    a = min(‖d1‖ / (‖d1‖ + ‖d2‖), alpha_max)
    x_{i+1} = clip( (1 - a)(x_i + eta·d1) + a(x_0 + eta·d2) )

and an iterate that the model gets wrong is remembered and taken back to `x_0 + beta(x_{i+1} - x_0)` (ibid., Alg. 1).
"""

from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from equipoise.attacks.attack import Batch, Candidates, SearchAttack, described
from equipoise.attacks.execution import frozen_model, value_and_gradient
from equipoise.attacks.minimum_norm.search import clearly_wrong, difference, usable
from equipoise.attacks.result import like, likely_classes
from equipoise.core import progress
from equipoise.core.deprecation import renamed_arguments
from equipoise.core.errors import require, require_integer, unknown
from equipoise.core.rng import Stream, Streams
from equipoise.core.types import Labels, PerSample, Points, Precision, Predict, Prediction
from equipoise.geometry import NORMS, Ball, Box, norm_of
from equipoise.geometry.hyperplane import move_onto

"""The stream of the random starts."""


@renamed_arguments(keep="return_point")
@dataclass(frozen=True)
class FAB(SearchAttack):
    """Targeted FAB: the linearised boundary towards each of the likeliest wrong classes, all of them side by side."""

    kind = "fab"
    needs_labels = True

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
    precision: Precision = "32"
    """`bf16` computes the search in bfloat16; every success is then confirmed in float32."""

    def __post_init__(self) -> None:
        for name in ("steps", "targets", "restarts"):
            require_integer(name, getattr(self, name), 1)
        require(self.eta >= 1, f"eta = {self.eta} stops before the boundary: expected a number >= 1, such as 1.05.")
        for name in ("alpha_max", "beta"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} = {value}: expected a number from 0 to 1.")
        for name, options in (("return_point", ("first_success", "nearest")), ("precision", ("32", "bf16"))):
            if getattr(self, name) not in options:
                raise unknown(name, getattr(self, name), options)
        require(
            self.return_point == "nearest" or self.geometry.eps < float("inf"),
            "eps is infinite, where any error is a success: give it a radius, or search with return_point='nearest'.",
        )

    def __str__(self) -> str:
        ball = self.geometry
        return f"fab({ball.norm} {ball.eps:g}, {self.steps} steps, {self.targets} targets)"

    def settings(self) -> dict[str, Any]:
        """Every field as JSON-ready data, for records."""
        return described("fab", self)

    def search(self, batch: Batch) -> Candidates:
        """One attempt towards every target; the first from the clean points."""
        x, inputs, targets = batch.x, batch.inputs, likely_classes(batch.clean, batch.label, self.targets)
        start = None
        if batch.restart:
            reach = torch.where(batch.best.success, batch.best.distance, float("inf")).clamp_max(self.geometry.eps)
            start = self._start(x, targets.shape[1], inputs.streams.fold(Stream.RESTART, batch.restart), reach)
        with frozen_model(inputs.predictive, x, "eval", self.precision) as draw:
            found = self._walk(draw(inputs.streams.fold(Stream.MODEL)), x, batch.label, targets, start)
        claimed = None
        if self.precision == "bf16":
            claimed = (found.score < float("inf")) & self.geometry.contains(found.point, x)
        return Candidates(found.point, found.evaluations, found.iteration, found.nan, found.zero, claimed)

    def _start(self, x: Points, targets: int, streams: Streams, reach: PerSample) -> Float[Tensor, "batch targets ..."]:
        """A point per target, uniform on the ball of half the distance within reach, or of half the box's width."""
        box, draw = self.geometry.box, NORMS[self.geometry.norm].draw
        radius = torch.where(reach < float("inf"), reach, box.high - box.low)[:, None] / 2
        moves = [radius * draw(streams.fold(t), x[0].numel(), x.dtype) for t in range(targets)]
        return torch.stack([box.clamp(x + move.reshape(x.shape)) for move in moves], 1)

    def _walk(
        self,
        predict: Predict,
        x: Points,
        y: Labels,
        targets: Int[Tensor, "batch targets"],
        start: Float[Tensor, "batch targets ..."] | None,
    ) -> "_Found":
        """The loop. The rows of a sample stay together, so that which success is the earliest is the sample's own."""
        found, rows, each = _Found.nothing(x), _Rows.of(x, y, targets, start), targets.shape[1]
        rows.aim(predict, found)
        for step in range(1, self.steps + 1):
            progress.report(step - 1, self.steps, "step")
            rows.point = self._moved(rows, found)
            rows.look(predict(rows.point), found)
            won = self._record(rows, each, step, found)
            if step == self.steps:
                break
            if self.return_point == "first_success" and bool(won.any()):
                left = (~won).repeat_interleave(each).nonzero()[:, 0]
                if len(left) == 0:
                    break
                rows = rows[left]
            share = torch.ones_like(rows.value).masked_fill(rows.wrong, self.beta)
            rows.point = torch.lerp(rows.origin, rows.point, like(share, rows.point))
            rows.aim(predict, found)
        return found

    def _moved(self, rows: "_Rows", found: "_Found") -> Points:
        """The next iterate of every row."""
        norm, box = self.geometry.norm, self.geometry.box
        gradient, point, origin = (v.flatten(1) for v in (rows.gradient, rows.point, rows.origin))
        gradient, nan, zero = usable(gradient)
        found.nan.index_add_(0, rows.slot, nan.long())
        found.zero.index_add_(0, rows.slot, zero.long())
        here = -rows.value.nan_to_num(0.0, 0.0, 0.0)
        there = here + (gradient * (point - origin)).sum(1)
        moves = move_onto(
            torch.cat([point, origin]), torch.cat([gradient, gradient]), torch.cat([here, there]), norm, box
        )
        length = norm_of(moves, NORMS[norm].order)[:, None].clamp_min(1e-8)
        own, clean = length.chunk(2)
        a = (own / (own + clean)).clamp_max(self.alpha_max)
        mine, theirs = moves.chunk(2)
        moved = torch.lerp(point.add(mine, alpha=self.eta), origin.add(theirs, alpha=self.eta), a)
        return box.clamp(moved).reshape(rows.point.shape)

    def _record(self, rows: "_Rows", each: int, step: int, found: "_Found") -> Bool[Tensor, " samples"]:
        """Keep the best new point of every sample, if better than what was found; return which samples have one."""
        score = torch.full_like(rows.value, float("inf"))
        if self.return_point == "nearest":
            wrong = rows.clear.nonzero()[:, 0]
            score[wrong] = self.geometry.distance(rows.point[wrong], rows.origin[wrong])
        else:
            length = norm_of((rows.point - rows.origin).flatten(1), NORMS[self.geometry.norm].order)
            near = (rows.clear & (length <= 1.001 * self.geometry.eps + 1e-5 * self.geometry.box.scale)).nonzero()[:, 0]
            score[near[self.geometry.contains(rows.point[near], rows.origin[near])]] = 0.0
        score, first = score.reshape(-1, each).min(1)
        won = score < found.score[rows.slot[::each]]
        row = (torch.arange(len(won), device=won.device) * each + first)[won]
        slot = rows.slot[row]
        found.point[slot], found.score[slot], found.iteration[slot] = rows.point[row], score[won], step
        return won


@dataclass
class _Found:
    """What a search found, per sample."""

    point: Tensor
    score: Tensor  # of the best point: infinite for none, the distance with "nearest", else 0
    iteration: Tensor
    evaluations: Tensor
    nan: Tensor
    zero: Tensor

    @staticmethod
    def nothing(x: Points) -> "_Found":
        counts = [torch.zeros(len(x), dtype=torch.int64, device=x.device) for _ in range(4)]
        return _Found(x.clone(), torch.full_like(counts[0], float("inf"), dtype=x.dtype), *counts)


@dataclass
class _Rows:
    """The samples still searched: a row for every target, those of a sample next to each other."""

    slot: Tensor  # which sample it belongs to
    origin: Tensor
    labels: Tensor
    target: Tensor
    point: Tensor
    value: Tensor
    gradient: Tensor
    wrong: Tensor  # whether the last move crossed the boundary
    clear: Tensor  # by more than rounding, so that the point counts

    @staticmethod
    def of(
        x: Points, y: Labels, targets: Int[Tensor, "batch targets"], start: Float[Tensor, "batch targets ..."] | None
    ) -> "_Rows":
        slot = torch.arange(len(x), device=x.device).repeat_interleave(targets.shape[1])
        origin = x[slot]
        point = origin if start is None else start.flatten(0, 1)
        none = torch.zeros_like(slot)
        return _Rows(
            slot, origin, y[slot], targets.flatten(), point, none.to(x.dtype), origin.clone(), none.bool(), none.bool()
        )

    def __getitem__(self, rows: Tensor) -> "_Rows":
        return _Rows(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def look(self, here: Prediction, found: _Found) -> None:
        """At which points the model is wrong, and at which of them clearly."""
        found.evaluations.index_add_(0, self.slot, torch.ones_like(self.slot))
        self.wrong, self.clear = here.labels != self.labels, clearly_wrong(here, self.labels)

    def aim(self, predict: Predict, found: _Found) -> None:
        """The value of every point, and the gradient along which it moves next."""
        self.value, self.gradient, _ = value_and_gradient(
            difference, predict, self.point, None, self.labels, self.target
        )
        found.evaluations.index_add_(0, self.slot, torch.ones_like(self.slot))


def fab(
    eps: float,
    norm: str = "linf",
    steps: int = 100,
    targets: int = 9,
    restarts: int = 1,
    box: Box = Box(),
    **options: Any,
) -> FAB:
    """Targeted FAB within `eps` (`FAB-T` of AutoAttack); also takes the other fields of `FAB`, such as `keep`."""
    return FAB(Ball(norm, eps, box), steps, targets, restarts, **options)

"""HopSkipJump: a walk along the boundary that asks for labels alone (Chen, Jordan & Wainwright, IEEE S&P 2020, Alg. 2).

With φ = 1 where the prediction is wrong and -1 where it is right, x the clean point of d features, and `x_t` a point at
the boundary, step t estimates the direction of the boundary's normal from B directions `u_b`, unit vectors,

    v = Σ_b (φ(x_t + δ u_b) - φ̄) u_b,    δ = ‖x_t - x‖ / d,    B = directions · √t

(its sign for Linf), jumps by `‖x_t - x‖/√t` along it, halved until the prediction is wrong, and bisects between that
point and x back to the boundary: on the segment for L2, among the projections onto balls for Linf. The first δ is a
tenth of the box. The walk begins at a random point that is wrong.

As in the paper, except that the last estimates have only as many directions as leave queries for a jump and a
bisection, that the nearest point counts and not the last, and that the first points are not noise alone: a model may
say one class of all noise.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from equipoise.attacks.attack import Batch, Candidates, SearchAttack
from equipoise.attacks.execution import frozen_model
from equipoise.attacks.result import like
from equipoise.core import progress
from equipoise.core.checks import checked_call
from equipoise.core.errors import require, require_integer
from equipoise.core.rng import Stream, Streams
from equipoise.core.types import PerSample, Points, Predict
from equipoise.geometry import Ball, Box

_TOGETHER = 32  # directions that are drawn and added up at once, whatever the batch
_NUMBERS = 2**24  # drawn at once, which bounds the memory of large images
_FINEST = 2.0**-20  # a bisection ends there: float32 resolves no more
_FIRST_POINTS = 100  # that are tried at most
_JUMPS = 20  # halvings of a jump at most


@dataclass(frozen=True)
class HopSkipJump(SearchAttack):
    """Steps along the estimated normal of the boundary, each bisected back to it, within a number of queries."""

    kind = "hop-skip-jump"
    asks_for = "labels"
    takes_targets = True
    takes_starts = True

    geometry: Ball
    """The norm, l2 or linf, the box, and the radius within which a perturbation counts."""
    queries: int = 1000
    """How often, at most, the model is asked about a sample."""
    directions: int = 100
    """Number of directions of the first estimate."""
    return_point: Literal["nearest", "first_success"] = "nearest"
    """Whether all queries are spent on the nearest point, or a sample is finished once it is within the radius."""

    def __post_init__(self) -> None:
        ball = self.geometry
        require(ball.norm in ("l2", "linf"), f"hop-skip-jump walks in l2 and linf, not in {ball.norm}.")
        require(
            math.isfinite(ball.box.high - ball.box.low), "hop-skip-jump starts anywhere in the box: give it bounds."
        )
        require_integer("queries", self.queries, 1)
        require_integer("directions", self.directions, 1)

    def search(self, batch: Batch) -> Candidates:
        """Walk with all samples at once, as many as the memory of their directions allows."""
        candidates = Candidates.unmoved(batch.x)
        pieces = torch.arange(len(batch), device=batch.x.device).split(
            max(_NUMBERS // (_TOGETHER * batch.x[0].numel()), 1)
        )
        with frozen_model(batch.inputs.predictive, batch.x) as draw:
            for index in progress.shares(pieces):
                piece = batch[index]
                found = _Walk(self, piece, draw(piece.inputs.streams.fold(Stream.MODEL))).run()
                candidates.write(index, point=found.point, evaluations=found.evaluations, iteration=found.iteration)
        return candidates


class _Walk:
    """The walk of some samples. `index` are always the numbers of those that are asked about or moved."""

    def __init__(self, attack: HopSkipJump, batch: Batch, predict: Predict) -> None:
        self.attack, self.batch, self.ask = attack, batch, predict
        self.ball, self.x, self.criterion = attack.geometry, batch.x, batch.inputs.criterion
        self.streams = batch.inputs.streams.fold(Stream.HOP_SKIP_JUMP, batch.restart)
        self.best = Candidates.unmoved(batch.x)
        self.nearest = torch.full_like(batch.value, torch.inf)  # the distance of the best point
        self.at = batch.x.clone()  # the walk's own points, which are wrong
        d = batch.x[0].numel()
        self.finest = max(d**-1.5 if self.ball.norm == "l2" else d**-2.0, _FINEST)
        self.reserve = math.ceil(math.log2(1 / self.finest)) + 3  # queries of a jump and its bisection

    def run(self) -> Candidates:
        """Return the nearest wrong point of each sample, at which step it was found, and the queries."""
        active = self._first_points()
        self._return(active, 0)
        step = 0
        while len(active := self._unfinished(active)):
            step += 1
            progress.report(int(self.best.evaluations[active].min()), self.attack.queries, "query")
            distance = self._distance(active)
            direction = self._normal(active, distance, step)
            self._jump(active, direction, distance / math.sqrt(step))
            self._return(active, step)
        return self.best

    def _remaining(self, index: Tensor) -> Int[Tensor, " rows"]:
        return self.attack.queries - self.best.evaluations[index]

    def _unfinished(self, index: Tensor) -> Int[Tensor, " active"]:
        """The samples that have queries for another step, and a distance to shorten."""
        going = (self._remaining(index) > self.reserve + 1) & (self.nearest[index] > 0)
        if self.attack.return_point == "first_success":
            going &= ~self.ball.contains(self.best.point[index], self.x[index])
        return index[going]

    def _wrong(self, points: Points, index: Int[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
        """Whether points of the samples `index`, which may occur more than once, are clear successes."""
        self.best.count(index)
        size = self.batch.inputs.points_at_once
        pieces = zip(points.split(size), index.split(size), strict=True)
        return torch.cat([self.criterion[i].clearly_reached(self.ask(p)) for p, i in pieces])

    def _distance(self, index: Tensor) -> PerSample:
        return self.ball.distance(self.at[index], self.x[index])

    def _keep(self, index: Tensor, step: int) -> None:
        """Remember the walk's points where they are nearer than those before."""
        distance = self._distance(index)
        better = distance < self.nearest[index]
        index = index[better]
        self.best.write(index, point=self.at[index], iteration=step)
        self.nearest[index] = distance[better]

    def _first_points(self) -> Int[Tensor, " found"]:
        """Look for a wrong point of every sample, the given one first; return the samples that have one."""
        given = self.batch.inputs.start
        missing, found = torch.arange(len(self.x), device=self.x.device), []
        for number in range(min(_FIRST_POINTS, self.attack.queries)):
            if given is not None and number == 0:
                points = self.ball.box.clamp(given[missing])
            else:
                points = _first_point(self.x[missing], self.streams[missing].fold(0, number), number, self.ball.box)
            wrong = self._wrong(points, missing)
            self.at[missing[wrong]] = points[wrong]
            found.append(missing[wrong])
            self._keep(missing[wrong], 0)
            missing = missing[~wrong]
            if len(missing) == 0:
                break
        return torch.cat(found).sort().values

    def _return(self, index: Tensor, step: int) -> None:
        """Bisect between the clean points and the walk's points, back to the boundary."""
        far, high = self.at.clone(), torch.ones_like(self.nearest)
        if self.ball.norm == "linf":
            high = self.ball.distance(far, self.x)
        low, width = torch.zeros_like(high), self.finest * high.clamp_max(1.0)
        active = index
        while True:
            active = active[((high - low > width)[active]) & (self._remaining(active) > 0)]
            if len(active) == 0:
                break
            middle = (low[active] + high[active]) / 2
            points = self._between(far[active], self.x[active], middle)
            wrong = self._wrong(points, active)
            high[active] = torch.where(wrong, middle, high[active])
            low[active] = torch.where(wrong, low[active], middle)
            self.at[active[wrong]] = points[wrong]
        self._keep(index, step)

    def _between(self, far: Points, x: Points, share: PerSample) -> Points:
        if self.ball.norm == "l2":
            return x + like(share, x) * (far - x)
        radius = like(share, x)
        return torch.minimum(torch.maximum(far, x - radius), x + radius)

    def _normal(self, index: Tensor, distance: PerSample, step: int) -> Points:
        """The estimated normal of the boundary at the walk's points, a unit vector or its sign."""
        ball, x, at = self.ball, self.x[index], self.at[index]
        d = x[0].numel()
        delta = distance / d if step > 1 else torch.full_like(distance, 0.1 * ball.box.scale)
        allowed = (self._remaining(index) - self.reserve).clamp(max=int(self.attack.directions * math.sqrt(step)))
        total, signed, signs = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(distance)
        for chunk in range(math.ceil(int(allowed.max()) / _TOGETHER)):
            u = _unit(self.streams[index].fold(step, chunk), _TOGETHER, x, ball.norm)
            points = ball.box.clamp(at[:, None] + like(delta, u) * u)
            number = torch.arange(chunk * _TOGETHER, (chunk + 1) * _TOGETHER, device=x.device)
            asked = number < allowed[:, None]
            rows = index[:, None].expand_as(asked)[asked]
            phi = torch.zeros_like(asked, dtype=x.dtype)
            phi[asked] = 2.0 * self._wrong(points[asked], rows).to(x.dtype) - 1
            u = (points - at[:, None]) / like(delta, u)  # as the box left it
            total += (_per_direction(asked.to(x.dtype), u) * u).sum(1)
            signed += (_per_direction(phi, u) * u).sum(1)
            signs += phi.sum(1)
        mean = signs / allowed
        alike = mean.abs() == 1
        v = torch.where(like(alike, x), like(mean, x) * total, signed - like(mean, x) * total)
        if ball.norm == "linf":
            return v.sign()
        length = torch.linalg.vector_norm(v.flatten(1), dim=1).clamp_min(torch.finfo(x.dtype).tiny)
        return v / like(length, x)

    def _jump(self, index: Tensor, direction: Points, length: PerSample) -> None:
        """Move along the direction, by half as much again and again until the point is wrong."""
        trying = torch.arange(len(index), device=index.device)
        for _ in range(_JUMPS):
            trying = trying[self._remaining(index[trying]) > 0]
            if len(trying) == 0:
                return
            rows = index[trying]
            points = self.ball.box.clamp(self.at[rows] + like(length[trying], self.x) * direction[trying])
            wrong = self._wrong(points, rows)
            self.at[rows[wrong]] = points[wrong]
            trying = trying[~wrong]
            length = length / 2


def _per_direction(values: Float[Tensor, "batch directions"], u: Tensor) -> Tensor:
    """Numbers for each direction, shaped to be broadcast over directions."""
    return values.reshape(*values.shape, *[1] * (u.ndim - 2))


def _unit(streams: Streams, count: int, x: Points, norm: str) -> Tensor:
    """`count` unit vectors for each sample, of shape (batch, count, ...): uniform on the sphere, for Linf within the
    cube as in the authors' code.
    """
    shape = (count, *x.shape[1:])
    u = streams.normal(*shape, dtype=x.dtype) if norm == "l2" else 2 * streams.uniform(*shape, dtype=x.dtype) - 1
    return u / _per_direction(torch.linalg.vector_norm(u.flatten(2), dim=2), u)


def _first_point(x: Points, streams: Streams, number: int, box: Box) -> Points:
    """A point of the box: the second one the mirrored sample, the others in turn uniform noise, black and white noise,
    one value for each channel, and noise mixed with the mirrored sample.
    """
    width = box.high - box.low
    mirrored, noise = box.high - (x - box.low), box.low + width * streams.uniform(*x.shape[1:], dtype=x.dtype)
    if number == 1:
        return box.clamp(mirrored)
    flat = box.low + width * streams.uniform(x.shape[1], *[1] * (x.ndim - 2), dtype=x.dtype).expand_as(x)
    extreme = torch.where(noise < box.low + width / 2, box.low, box.high).to(x)
    return box.clamp((noise, extreme, flat, (noise + mirrored) / 2)[number % 4])


@checked_call(HopSkipJump)
def hop_skip_jump(
    eps: float = float("inf"), norm: str = "l2", queries: int = 1000, box: Box = Box(), **options: Any
) -> HopSkipJump:
    """HopSkipJump within `eps`, by default anywhere in the box, with at most `queries` queries per sample; also takes
    the other fields of `HopSkipJump`.
    """
    return HopSkipJump(Ball(norm, eps, box), queries, **options)

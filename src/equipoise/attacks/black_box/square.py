"""Square attack: random search over squares of the image, which needs scores and no gradient.

Every iteration proposes to change one window, the same for all samples, and a sample keeps the change if its margin
shrinks (Andriushchenko et al. 2020). For Linf the window becomes `x ± eps`, one sign per channel, after a start of
vertical stripes `x ± eps`. For L2 and L1 a second window gives up its perturbation, and the first takes over that
budget and what is left of eps, with a pattern of two opposite hills (L1: Croce & Hein 2021). The window covers the
share p of the image, which is halved nine times on the way.

Windows are drawn from the seed and the iteration, signs from the sample's own stream, so that a result does not depend
on the batch a sample comes in. A proposal that changes nothing is not evaluated, and where the network allows it
only the part that the window touches is computed (`equipoise.kernels.windowed`), with the same results. On small
networks a C kernel makes all queries of a block of draws for Linf (`equipoise.kernels.native.squares`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equipoise.attacks.active import Active, SampleTable
from equipoise.attacks.attack import Batch, Candidates, SearchAttack
from equipoise.attacks.execution import averaged, frozen_model
from equipoise.attacks.result import Criterion, prediction_of
from equipoise.core import progress
from equipoise.core.checks import checked_call
from equipoise.core.deprecation import renamed_arguments
from equipoise.core.errors import require, require_integer, unknown
from equipoise.core.rng import Stream, Streams, fold
from equipoise.core.types import Images, PerSample, Points, Precision, Predict, Prediction
from equipoise.geometry import NORMS, Ball, Box
from equipoise.kernels.input_gradients import mostly_wide
from equipoise.kernels.native import (
    NativeForward,
    NativeNetwork,
    SquarePlan,
    SquareSamples,
    native_prediction,
    search_squares,
)
from equipoise.kernels.windowed import Change, FeatureMaps, Span, Window, WindowedForward
from equipoise.models import Frozen, Single

_BLOCK = 64  # iterations whose draws are made together: as many as an integer has bits
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10 000 iterations
_TILES = 5  # in each direction, of the start for L2 and L1
_CROWDED = 0.9  # share of active samples below which the finished ones are removed, which costs a copy


@renamed_arguments(draws="eot_samples")
@dataclass(frozen=True)
class Square(SearchAttack):
    """Random search over squares, within a number of queries per sample and restart."""

    kind = "square"
    needs_labels = True
    asks_for = "scores"
    takes_targets = True
    returns_best = True
    in_pieces = False

    geometry: Ball
    """Where the perturbed point may lie."""
    queries: int = 5000
    """Iterations. One whose proposal changes nothing counts too, but is not evaluated."""
    p_init: float = 0.8
    """Share of the image that the first windows cover."""
    horizon: int = 10_000
    """Iterations over which the windows shrink; with fewer queries they stay larger (as in AutoAttack)."""
    restarts: int = 1
    """How often it starts again, for the samples that are not yet fooled."""
    eot_samples: int = 1
    """Of a random model, over how many draws the margin is averaged at every query."""
    precision: Precision = "32"
    """`bf16` computes the search in bfloat16, unless that is slower (on a CPU, if most convolutions have few filters);
    every success is then confirmed in float32."""

    def __post_init__(self) -> None:
        require(math.isfinite(self.geometry.eps), "square needs a finite ball: eps is infinite.")
        require_integer("queries", self.queries, 1)
        require_integer("horizon", self.horizon, 1)
        require(0 < self.p_init <= 1, f"p_init = {self.p_init} is no share of the image: expected 0 < p_init <= 1.")
        require_integer("restarts", self.restarts, 1)
        require_integer("eot_samples", self.eot_samples, 1)
        if self.precision not in get_args(Precision):
            raise unknown("precision", self.precision, get_args(Precision))

    def search(self, batch: Batch) -> Candidates:
        """Search for all samples at once; those that are fooled leave."""
        x, streams, candidates = batch.x, batch.inputs.streams, Candidates.unmoved(batch.x)
        with frozen_model(batch.inputs.predictive, x, "eval", self._precision(batch.inputs.predictive)) as draw:
            for state in _Search.of(self, batch, averaged(draw, streams, self.eot_samples)).run(self):
                point = state.stages[0].reshape(-1, *x.shape[1:])
                candidates.write(
                    state.output_index, point=point, iteration=state.iteration, evaluations=state.evaluations
                )
        return candidates

    def _precision(self, predictive: Frozen) -> Precision:
        """That of the search: float32 also where bf16 is asked for, if that is slower."""
        weights = [w for w in predictive.module.parameters() if w.ndim == 4 and w.device.type == "cpu"]
        return "32" if weights and not mostly_wide(weights) else self.precision

    def share(self, iteration: int) -> float:
        """The share of the image that a window covers: halved after 0.1, 0.5, 2, 5, 10, 20, 40, 60 and 80 % of the
        horizon.
        """
        return self.p_init / 2 ** sum(int(iteration / self.horizon * 10_000) > t for t in _HALVINGS)

    def window(self, iteration: int, height: int, width: int) -> tuple[int, int]:
        """Height and width of a window: a square, or a run where the image is a single row or column."""
        least, run = (1 if self.geometry.norm == "linf" else 3), min(height, width) == 1
        pixels = self.share(iteration) * height * width
        side = max(round(pixels if run else math.sqrt(pixels)), least)
        side += least == 3 and side % 2 == 0
        side = min(side, max(height, width) if run else min(height, width))
        return min(side, height), min(side, width)


@dataclass
class _State(SampleTable):
    """The state of the search, a row per sample."""

    output_index: Tensor  # position of its result
    stages: tuple[FeatureMaps, ...]  # the best point so far, and what the network computes there
    origin: Images
    criterion: Criterion
    value: PerSample  # minus the margin at the best point, or that of the target: positive is fooled
    power: PerSample  # ‖best - origin‖^p, for L2 and L1
    streams: Streams
    signs: Tensor  # (batch, channels, iterations): what this block draws
    iteration: Int[Tensor, " batch"]  # at which the best point was found
    evaluations: Int[Tensor, " batch"]


@dataclass
class _Search:
    """One random search: its state, the network in parts, and the confirmation of what it takes for a success."""

    active: Active[_State]
    moves: "_Signs | _Hills"
    local: WindowedForward
    network: NativeNetwork | None  # for the kernel; None: every query is made in PyTorch
    truth: Predict
    seed: int

    @classmethod
    def of(cls, attack: Square, batch: Batch, drawn: Predict) -> "_Search":
        """The start of an attempt."""
        x, ball, inputs = batch.x, attack.geometry, batch.inputs
        seed = fold(inputs.seed, Stream.SQUARE_RESTART, batch.restart)
        streams = inputs.streams.fold(Stream.SQUARE_RESTART, batch.restart)
        images = x if x.ndim == 4 else x.reshape(len(x), 1 if x.ndim == 2 else x.shape[1], 1, -1)

        def flat(predict: Predict) -> Predict:
            return predict if x.ndim == 4 else lambda images: predict(images.reshape(-1, *x.shape[1:]))

        def truth(point: Points) -> Prediction:
            return prediction_of(inputs.predictive, point, inputs.streams)

        single = isinstance(inputs.predictive.predictive, Single)
        fixed = single and ball.norm == "linf" and not inputs.predictive.random
        network = native_network(drawn, x, images) if fixed else None
        if network is not None:
            local = WindowedForward(partial(native_prediction, [network]))
        else:
            local = WindowedForward.of(flat(drawn), x) if single else WindowedForward(flat(drawn))
        moves = _Signs(ball) if ball.norm == "linf" else _Hills(ball, int(NORMS[ball.norm].order))
        start = moves.start(images, streams.fold(Stream.SQUARE_START), fold(seed, Stream.SQUARE_START))
        none = torch.zeros_like(batch.label)
        state = _State(
            output_index=torch.arange(len(x), device=x.device),
            stages=tuple(local.stages(start)),
            origin=images,
            criterion=inputs.criterion,
            value=torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device),
            power=moves.power(start - images),
            streams=streams,
            signs=start.new_empty(len(x), 0, 0),
            iteration=none,
            evaluations=none.clone(),
        )
        crowded = _CROWDED if network is None else 1.0
        return cls(Active(state, crowded=crowded), moves, local, network, flat(truth), seed)

    def run(self, attack: Square) -> Iterator[_State]:
        """Search, and yield the samples as they finish."""
        state = self.active.rows
        height, width = state.origin.shape[2:]
        draws: list[list[float]] = []
        self._try(state.output_index, state.stages[0], ((0, height), (0, width)), 0)
        for i in range(0, attack.queries, 1 if self.network is None else _BLOCK):
            progress.report(i, attack.queries, "query")
            released = self.active.release(state.value > 0)
            if released is not None:
                yield released[0]
                state = self.active.rows
            if len(state) == 0:
                return
            if i % _BLOCK == 0:
                draws = self._draw(i // _BLOCK, state.origin.shape[1])
            if self.network is None:
                self._query(attack, i, draws[i % _BLOCK], state.value <= 0)
            else:
                self._search_natively(self.network, attack, i, draws)
        yield state

    def _query(self, attack: Square, iteration: int, draw: list[float], searching: Tensor) -> None:
        """Propose a change, and evaluate the samples of the mask `searching` that it changes."""
        state = self.active.rows
        size = attack.window(iteration, *state.origin.shape[2:])
        patch, window = self.moves.propose(state, size, draw, state.signs[:, :, iteration % _BLOCK])
        old = state.stages[0][:, :, slice(*window[0]), slice(*window[1])]
        index = (searching & (patch != old).flatten(1).any(1)).nonzero()[:, 0]
        if len(index):
            self._try(index, patch[index], window, iteration + 1)

    def _search_natively(self, network: NativeNetwork, attack: Square, first: int, draws: list[list[float]]) -> None:
        """Make all queries of a block by the kernel, and those that it takes for a success once more as usual."""
        state, ball = self.active.rows, attack.geometry
        image, count = state.origin.shape[2:], min(_BLOCK, attack.queries - first)
        windows = [_window(attack.window(first + q, *image), image, *draws[q][:2]) for q in range(count)]
        bounds = [(*rows, *columns) for rows, columns in windows]
        plan = SquarePlan(ball.eps, ball.box.low, ball.box.high, bounds, state.criterion.target is not None)
        index = torch.arange(len(state))
        query = torch.zeros_like(index)
        while len(index):
            rows = state[index]
            samples = SquareSamples(
                rows.origin, rows.signs[:, :, :count], rows.criterion.own, rows.stages[0], rows.value, query
            )
            found = search_squares(network, plan, samples)
            kept = found.kept >= 0
            state.stages[0][index] = found.point
            state.write(index, value=found.value, evaluations=rows.evaluations + found.evaluations)
            state.write(index[kept], iteration=first + 1 + found.kept[kept])
            stopped = found.query < count
            index, query = index[stopped], found.query[stopped]
            for q in query.unique().tolist():
                claimed = torch.zeros(len(state), dtype=torch.bool).index_fill(0, index[query == q], True)
                self._query(attack, first + q, draws[q], claimed)
            denied = state.value[index] <= 0
            index, query = index[denied], query[denied] + 1

    def _draw(self, block: int, channels: int) -> list[list[float]]:
        """Draw the random numbers of the next iterations: in [0, 1) for all samples, and each sample's signs."""
        state = self.active.rows
        drawn = state.streams.fold(Stream.SQUARE_SIGN, block).bits(channels)
        bits = drawn[..., None] >> torch.arange(_BLOCK, device=drawn.device)
        state.signs = (1 - 2 * (bits & 1)).to(state.origin.dtype)
        iterations = torch.arange(block * _BLOCK, (block + 1) * _BLOCK)
        return Streams.of(fold(self.seed, Stream.SQUARE_WINDOW), iterations).uniform(5, dtype=torch.float64).tolist()

    def _try(self, index: Tensor, patch: Images, window: Window, iteration: int) -> None:
        """Evaluate the samples `index` with the patch in place, and keep it where the margin has shrunk."""
        state = self.active.rows
        output, changes = self.local.predict(state.stages, index, patch, window)
        criterion = state.criterion[index]
        value = criterion.margin(output)
        state.evaluations[index] += 1
        fooled = (value > 0).nonzero()[:, 0]
        if len(fooled):
            # Lower precision, or the network in parts, may show a success that the model itself denies.
            point = state.stages[0][index[fooled]]
            point[:, :, slice(*window[0]), slice(*window[1])] = patch[fooled]
            value[fooled] = criterion[fooled].margin(self.truth(point))
            state.evaluations[index[fooled]] += 1
        old = state.value[index]
        closer = (value > old).nonzero()[:, 0]
        # Less than rounding does not count, as it depends on how samples are batched.
        least = old[closer] + output[closer].resolution(criterion.own[closer])
        better = closer[(value[closer] > 0) | (value[closer] > least)]
        if len(better):
            index = index[better]
            self.local.write(state.stages, index, [(change[better], where) for change, where in changes])
            state.write(index, value=value[better], iteration=iteration)
            if isinstance(self.moves, _Hills):
                state.power[index] = self.moves.power(state.stages[0][index] - state.origin[index])


def native_network(predict: Predict, x: Points, images: Images) -> NativeNetwork | None:
    """The network for the kernel, which computes in float32, at samples that the attack sees as these images; None if
    it does not support it, or first takes the samples as images of another shape.
    """
    if not isinstance(predict, NativeForward) or torch.is_autocast_enabled("cpu"):
        return None
    network = predict.network(x)
    return network if network is not None and network.takes(images.shape[1:]) else None


def _window(size: tuple[int, int], image: torch.Size, row: float, column: float) -> Window:
    """A window of this size at a position that is uniform over the image; `row` and `column` are in [0, 1)."""
    top, left = (int(u * (n - s + 1)) for u, n, s in zip((row, column), image, size, strict=True))
    return (top, top + size[0]), (left, left + size[1])


@dataclass(frozen=True)
class _Signs:
    """Moves for Linf: the window becomes `x ± eps`."""

    ball: Ball

    def start(self, x: Images, streams: Streams, seed: int) -> Images:
        """Vertical stripes, with a sign for every column and channel."""
        signs = 1 - 2 * (streams.bits(x.shape[1], 1, x.shape[3]) & 1).to(x.dtype)
        return self.ball.box.clamp(x + self.ball.eps * signs)

    def propose(self, state: _State, size: tuple[int, int], draw: list[float], signs: Tensor) -> Change:
        """The new content of a window, and the window.

        From a point `best` of the ball, `best ± 2·eps` projected to it is its corner `x ± eps`.
        """
        window = _window(size, state.origin.shape[2:], *draw[:2])
        x = state.origin[:, :, slice(*window[0]), slice(*window[1])]
        return self.ball.box.clamp(x + self.ball.eps * signs[:, :, None, None]), window

    def power(self, move: Images) -> PerSample:
        """Not needed here."""
        return torch.zeros_like(move[:, 0, 0, 0])


@dataclass(frozen=True)
class _Hills:
    """Moves for L2 and L1: one window takes over the budget of another."""

    ball: Ball
    p: int

    def power(self, move: Images, *, each: bool = False) -> Tensor:
        """`‖move‖^p` per sample, or for each of its channels."""
        terms = move.abs() if self.p == 1 else move**2
        return terms.sum((2, 3)) if each else terms.sum((1, 2, 3))

    def unit(self, move: Images) -> Images:
        """`move` with norm 1 in each channel."""
        return move / (self.power(move, each=True) ** (1 / self.p) + 1e-12)[:, :, None, None]

    def start(self, x: Images, streams: Streams, seed: int) -> Images:
        """Hills on a grid of tiles, with a sign for every tile and channel; of norm eps, but for L1 projected."""
        channels, height, width = x.shape[1:]
        high, wide = max(height // _TILES, 1), max(width // _TILES, 1)
        tiles = [(i, j) for i in range(min(height, _TILES)) for j in range(min(width, _TILES))]
        signs = 1 - 2 * (streams.bits(len(tiles), channels) & 1).to(x.dtype)
        turned = Streams.of(seed, torch.arange(len(tiles))).integers(2).tolist()
        above, before = (height - high * min(height, _TILES)) // 2, (width - wide * min(width, _TILES)) // 2
        move = torch.zeros_like(x)
        for n, (i, j) in enumerate(tiles):
            window = move[:, :, above + i * high :, before + j * wide :][:, :, :high, :wide]
            window += signs[:, n, :, None, None] * hills(high, wide, self.p, bool(turned[n])).to(x)
        if self.p == 2:
            move = move * (self.ball.eps / self.power(move).sqrt().clamp_min(1e-12))[:, None, None, None]
        return self.ball.project(x + move, x)

    def propose(self, state: _State, size: tuple[int, int], draw: list[float], signs: Tensor) -> Change:
        """The new content of the smallest window around the two, and that window."""
        p, (channels, *image) = self.p, state.origin.shape[1:]
        taker, giver = (_window(size, torch.Size(image), *draw[k : k + 2]) for k in (0, 2))
        # For L1 the published step gives every channel the budget of all of them; then all of the image is projected.
        heavy = p == 1 and channels > 1
        around = _around(taker, giver) if not heavy else ((0, image[0]), (0, image[1]))
        x, best = (t[:, :, slice(*around[0]), slice(*around[1])] for t in (state.origin, state.stages[0]))
        move = best - x
        to, off = (_inside(window, around) for window in (taker, giver))
        budget = self.power(move[to], each=True)
        pattern = hills(*size, p, draw[4] > 0.5).to(x)
        new = self.unit(signs[:, :, None, None] * pattern + move[to] / (budget ** (1 / p) + 1e-12)[:, :, None, None])
        move[to] = 0
        budget = budget + self.power(move[off], each=True)  # what both windows hold, counted once
        spare = (self.ball.eps**p - state.power)[:, None] / channels
        length = (budget + spare).clamp_min(0) ** (1 / p) * (channels if heavy else 1)
        move[off] = 0
        move[to] = new * length[:, :, None, None]
        moved = x + move
        return (self.ball.project(moved, x) if heavy else self.ball.box.clamp(moved)), around


def _around(a: Window, b: Window) -> Window:
    (top, left), (bottom, right) = (
        tuple(pick(s[end], t[end]) for s, t in zip(a, b, strict=True)) for pick, end in ((min, 0), (max, 1))
    )
    return (top, bottom), (left, right)


def _inside(window: Window, around: Window) -> tuple[slice, ...]:
    """The window as an index into images cut to `around`."""

    def cut(inner: Span, outer: Span) -> slice:
        return slice(inner[0] - outer[0], inner[1] - outer[0])

    return slice(None), slice(None), *map(cut, window, around)


@cache
def hills(height: int, width: int, p: int, turned: bool = False) -> Float[Tensor, "height width"]:
    """A hill beside one of the opposite sign, of Lp norm 1; `turned` by a right angle where the window is a square.

    At the Chebyshev distance d from its middle a hill has the height `Σ_{k > d} 1/k^q`, q = 2 for L2 and 4 for L1, and
    the two are cut along the longer side (Andriushchenko et al. 2020, Eq. 2).
    """
    if turned and height == width:
        return hills(height, width, p).T.contiguous()
    if height < width:
        return hills(width, height, p).T.contiguous()
    pattern = torch.cat([_hill(height // 2, width, p), -_hill(height - height // 2, width, p)])
    return (pattern / torch.linalg.vector_norm(pattern, p)).float()


def _hill(height: int, width: int, p: int) -> Tensor:
    if height == 0:
        return torch.zeros(0, width, dtype=torch.float64)
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in (height, width))
    distance = torch.maximum((rows - height // 2).abs()[:, None], (columns - width // 2).abs()).long()
    steps = 1 / torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64) ** (4 if p == 1 else 2)
    heights = steps.flip(0).cumsum(0).flip(0)[distance]
    return heights / torch.linalg.vector_norm(heights, p)


@checked_call(Square)
def square(eps: float, norm: str = "linf", queries: int = 5000, box: Box = Box(), **options: Any) -> Square:
    """Square attack (Andriushchenko et al. 2020) within `queries` queries per sample.

    `eps` is in the units of the input, `norm` linf, l2 or l1; also takes the other fields of `Square` by name.
    """
    return Square(Ball(norm, eps, box), queries, **options)

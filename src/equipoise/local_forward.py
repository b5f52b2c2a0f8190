"""The prediction at points that differ from known ones in a small window, without computing the rest again.

A network often begins with layers that look at a neighbourhood: convolutions, poolings, functions of one pixel. The
chain of such layers is cut into segments, each starting at a convolution. A window `[a, b)` that changes in the input
of a layer with kernel extent k, stride s and padding p changes the outputs i with

    ceil((a + p - k + 1) / s) <= i <= floor((b - 1 + p) / s),

which look at the inputs `s·i - p, ..., s·i - p + k - 1`; so in both directions. Per segment a crop of its input is
taken, the changed window pasted in, and the crop of its output computed: the next segment's changed window. What
follows the chain is computed whole.

    local = LocalForward.of(predictive, predict, x)
    stages = local.stages(x)                                        # the inputs of every segment, and of what follows
    prediction, changes = local.predict(stages, rows, patch, window)
    local.write(stages, rows, changes)                              # if the change is to stay
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise._adjoints import FEW_CHANNELS, Quartered, pooled
from equipoise.nets import Normalize
from equipoise.predictive import Single
from equipoise.types import Points, Predict, Prediction, Predictive

Span = tuple[int, int]
Window = tuple[Span, Span]
Change = tuple[Tensor, Window]
Images = Float[Tensor, "_batch _channels _height _width"]

MOST_MEMORY = 16
"""How many times the numbers of its input may be kept per sample, in all stages together."""

_AT_ONCE = 256  # whole images per pass on a CPU; of crops as many more as have the same number of pixels
_POINTWISE = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.BatchNorm2d,
    Normalize,
)


@dataclass(frozen=True)
class _Grid:
    """Which inputs a layer's outputs look at, in one direction."""

    extent: int
    stride: int
    padding: int
    size: int  # of the input
    out: int  # size of the output

    def affected(self, span: Span) -> Span:
        """The outputs that look at any of these inputs, at the edges also those of padding alone; at least one."""
        first = 0 if span[0] == 0 else -((self.extent - 1 - self.padding - span[0]) // self.stride)
        last = self.out if span[1] == self.size else (span[1] - 1 + self.padding) // self.stride + 1
        first = min(max(first, 0), self.out - 1)
        return first, max(min(last, self.out), first + 1)

    def needed(self, span: Span) -> tuple[Span, Span]:
        """The inputs that these outputs look at, and how much padding before and after them."""
        low = span[0] * self.stride - self.padding
        high = (span[1] - 1) * self.stride - self.padding + self.extent
        inside = min(max(low, 0), self.size), min(max(high, 0), self.size)
        before = min(max(-low, 0), high - low)
        return inside, (before, high - low - before - (inside[1] - inside[0]))


@lru_cache(maxsize=4096)
def _plan(grids: tuple[_Grid, ...], span: Span) -> tuple[Span, tuple[Span, ...], Span]:
    """For a change of the input: the input that has to be known, each layer's padding, and the outputs that change."""
    for grid in grids:
        span = grid.affected(span)
    target, paddings = span, []
    for grid in reversed(grids):
        span, padding = grid.needed(span)
        paddings.append(padding)
    return span, tuple(reversed(paddings)), target


@dataclass(frozen=True)
class _Segment:
    """Local layers, one after the other."""

    layers: tuple[nn.Module, ...]
    rows: tuple[_Grid, ...]
    columns: tuple[_Grid, ...]

    def __call__(self, x: Images) -> Images:
        """The output for whole images."""
        everything = ((0, self.rows[0].size), (0, self.columns[0].size))
        return self.crop(lambda window: x, everything)[0]

    def crop(self, source: Any, window: Window) -> Change:
        """The changed part of the output, where `source(needed)` is the part of the input that has to be known."""
        above, vertical, high = _plan(self.rows, window[0])
        beside, horizontal, wide = _plan(self.columns, window[1])
        h = source((above, beside))
        for layer, up, left in zip(self.layers, vertical, horizontal, strict=True):
            h = _apply(layer, h, up, left)
        return h, (high, wide)


class _Pooled(nn.Module):
    """A convolution, perhaps rectified, and the largest of 2×2 pixels, in quarters (`equipoise._adjoints`)."""

    def __init__(self, layer: nn.Conv2d, rectified: bool) -> None:
        super().__init__()
        self.quarters, self.rectified = Quartered(layer.weight, layer.bias, (0, 0)), rectified

    def forward(self, h: Images, padding: Span) -> Images:
        largest = self.quarters(h, padding).amax(1)
        return largest.relu_() if self.rectified else largest


def _apply(layer: nn.Module, h: Images, vertical: Span, horizontal: Span) -> Images:
    if isinstance(layer, nn.Conv2d | _Pooled):
        padding = (vertical[0], horizontal[0])
        if padding != (vertical[1], horizontal[1]):
            h, padding = F.pad(h, (*horizontal, *vertical)), (0, 0)
        if isinstance(layer, _Pooled):
            return layer(h, padding)
        return F.conv2d(h, layer.weight, layer.bias, layer.stride, padding, layer.dilation, layer.groups)
    if isinstance(layer, nn.MaxPool2d) and _pair(layer.kernel_size) == _pair(layer.stride) == (2, 2):
        # The library's kernel for the default layout looks at one pixel at a time.
        return pooled(h[..., : h.shape[2] // 2 * 2, : h.shape[3] // 2 * 2])
    return layer(h)


@dataclass(frozen=True)
class LocalForward:
    """A predictive as segments of local layers and what follows them. Its weights must not change meanwhile."""

    segments: tuple[_Segment, ...]
    """The local layers; none if the network does not begin with any, or does not end its convolutions there."""
    tail: Predict
    """What follows."""

    @classmethod
    @torch.no_grad()
    def of(cls, predictive: Predictive, predict: Predict, x: Points) -> "LocalForward":
        """The local layers with which the network begins, if splitting it there is seen to give the same predictions at
        the first samples of `x` and every convolution is among them; else none, and `predict` follows.
        """
        whole = cls((), predict)
        if not isinstance(predictive, Single) or x.ndim != 4:
            return whole
        few = x[:2]
        try:
            split = _split(predictive, few)
            if split is None or not _same(split.predict_whole(few), predict(few)):
                return whole
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return whole  # not every network can be copied, or run in part
        return split

    def stages(self, x: Images) -> list[Images]:
        """The inputs of every segment and of what follows, to be written over: copies, the first of `x`."""
        pieces = [self._stages(piece) for piece in x.split(_at_once(x, 1.0))]
        return [torch.cat(stage) for stage in zip(*pieces, strict=True)]

    def _stages(self, x: Images) -> list[Images]:
        stages = [x]
        for segment in self.segments:
            stages.append(segment(stages[-1]))
        return stages

    def predict_whole(self, x: Images) -> Prediction:
        """The prediction at whole images."""
        return self.tail(self._stages(x)[-1])

    def predict(
        self, stages: Sequence[Images], rows: Int[Tensor, " _rows"], patch: Images, window: Window
    ) -> tuple[Prediction, list[Change]]:
        """The prediction for the samples `rows` with `patch` in the window, and what changes in every stage."""
        share = prod(b - a for a, b in window) / prod(stages[0].shape[2:])
        size = _at_once(stages[0], share if self.segments else 1.0)
        if size >= len(rows):
            return self._predict(stages, rows, patch, window)
        parts = [self._predict(stages, r, p, window) for r, p in zip(rows.split(size), patch.split(size), strict=True)]
        logits = torch.cat([prediction.logits for prediction, _ in parts], 1)
        changes = [
            (torch.cat([part[0] for part in stage]), stage[0][1])
            for stage in zip(*(changes for _, changes in parts), strict=True)
        ]
        return Prediction(logits), changes

    def _predict(
        self, stages: Sequence[Images], rows: Int[Tensor, " _rows"], patch: Images, window: Window
    ) -> tuple[Prediction, list[Change]]:
        changes = [(patch, window)]
        for stage, segment in zip(stages, self.segments, strict=False):
            changes.append(
                segment.crop(lambda needed, stage=stage: _pasted(stage, rows, *changes[-1], needed), changes[-1][1])
            )
        everything = ((0, stages[-1].shape[2]), (0, stages[-1].shape[3]))
        return self.tail(_pasted(stages[-1], rows, *changes[-1], everything)), changes

    def write(self, stages: Sequence[Images], rows: Int[Tensor, " _rows"], changes: Sequence[Change]) -> None:
        """Write the changes of the samples `rows` into every stage."""
        for stage, (patch, (high, wide)) in zip(stages, changes, strict=True):
            stage[:, :, slice(*high), slice(*wide)].index_copy_(0, rows, patch)


def _at_once(x: Tensor, share: float) -> int:
    return int(_AT_ONCE / max(share, 1e-6)) if x.device.type == "cpu" else max(len(x), 1)


def _pasted(stage: Images, rows: Tensor, patch: Images, window: Window, needed: Window) -> Images:
    """The needed part of a stage for these samples, with the patch in it."""
    if needed == window:
        return patch
    (top, bottom), (left, right) = needed
    h = stage[:, :, top:bottom, left:right].index_select(0, rows)
    (a, b), (c, d) = window
    # A window at the edge of the input may reach beyond what any output looks at.
    down, up, across, back = max(a, top), min(b, bottom), max(c, left), min(d, right)
    if down < up and across < back:
        h[:, :, down - top : up - top, across - left : back - left] = patch[
            :, :, down - a : up - a, across - c : back - c
        ]
    return h


def _same(a: Prediction, b: Prediction) -> bool:
    scale = float(b.logits.abs().max())
    return bool(torch.allclose(a.logits, b.logits, rtol=0, atol=1e-4 * scale + 1e-6))


def _split(predictive: Single, few: Images) -> LocalForward | None:
    """The predictive cut after the longest chain of local layers at its start, unchecked."""
    # A copy that shares the parameters: its layers can be watched and taken out.
    shared = {id(p): p for p in predictive.module.parameters()}
    module = copy.deepcopy(predictive.module, shared).eval()
    calls: list[tuple[nn.Module, Any, Any]] = []
    handles = [
        layer.register_forward_hook(lambda layer, inputs, output: calls.append((layer, inputs, output)))
        for layer in module.modules()
        if not any(layer.children()) and not (layer._forward_hooks or layer._forward_pre_hooks)
    ]
    module(few.clone())
    for handle in handles:
        handle.remove()
    chain = _chain(calls)
    convolutions = {m for m in module.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)}
    if not convolutions or not convolutions <= {layer for layer, _, _ in chain}:
        return None
    names = {layer: name for name, layer in module.named_modules()}
    for layer, _, _ in chain:
        parent, _, name = names[layer].rpartition(".")
        if name:
            setattr(module.get_submodule(parent), name, nn.Identity())
    segments = _segments([call for call in chain if not isinstance(call[0], nn.Identity | nn.Dropout | nn.Dropout2d)])
    local = LocalForward(segments, replace(predictive, module=module).draw())
    kept = sum(stage[0].numel() for stage in local._stages(few))
    return local if kept <= MOST_MEMORY * few[0].numel() else None


def _chain(calls: Sequence[tuple[nn.Module, Any, Any]]) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """The calls at the start, each on the output of the one before, of local layers that are called once."""
    counts = [layer for layer, _, _ in calls]
    chain: list[tuple[nn.Module, Tensor, Tensor]] = []
    for layer, inputs, output in calls:
        follows = len(inputs) == 1 and (not chain or inputs[0] is chain[-1][2])
        if not follows or not _is_local(layer) or sum(layer is other for other in counts) > 1:
            break
        chain.append((layer, inputs[0], output))
    return chain


def _is_local(layer: nn.Module) -> bool:
    kind = type(layer)
    if kind is nn.Conv2d:
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if kind is nn.MaxPool2d:
        plain = _pair(layer.dilation) == (1, 1) and not layer.return_indices
        return plain and _pair(layer.padding) == (0, 0) and not layer.ceil_mode
    if kind is nn.AvgPool2d:
        return _pair(layer.padding) == (0, 0) and not layer.ceil_mode
    return kind in _POINTWISE


def _segments(chain: Sequence[tuple[nn.Module, Tensor, Tensor]]) -> tuple[_Segment, ...]:
    """The chain, cut before every convolution but the first."""
    cuts = [i for i, (layer, _, _) in enumerate(chain) if isinstance(layer, nn.Conv2d)][1:]
    parts = [chain[a:b] for a, b in zip([0, *cuts], [*cuts, len(chain)], strict=True)]
    return tuple(
        _Segment(
            _in_quarters(part),
            tuple(_grid(*call, 0) for call in part),
            tuple(_grid(*call, 1) for call in part),
        )
        for part in parts
    )


def _in_quarters(part: Sequence[tuple[nn.Module, Tensor, Tensor]]) -> tuple[nn.Module, ...]:
    """The layers; where a convolution of few channels is pooled, it does the work of all, on a CPU."""
    layers = [layer for layer, _, _ in part]
    kinds = [type(layer) for layer in layers]
    for at, (layer, x, output) in enumerate(part):
        rectified = kinds[at + 1 : at + 2] == [nn.ReLU]
        last = at + 1 + rectified
        if (
            isinstance(layer, nn.Conv2d)
            and kinds[last : last + 1] == [nn.MaxPool2d]
            and _pair(layers[last].kernel_size) == _pair(layers[last].stride) == (2, 2)
            and (_pair(layer.stride), _pair(layer.dilation), layer.groups) == ((1, 1), (1, 1), 1)
            and layer.in_channels <= FEW_CHANNELS
            and output.shape[2] % 2 == output.shape[3] % 2 == 0
            and x.device.type == "cpu"
        ):
            layers[at : last + 1] = [_Pooled(layer, rectified), *[nn.Identity()] * (last - at)]
    return tuple(layers)


def _grid(layer: nn.Module, x: Tensor, output: Tensor, direction: int) -> _Grid:
    size, out = x.shape[2 + direction], output.shape[2 + direction]
    if type(layer) in _POINTWISE:
        return _Grid(1, 1, 0, size, out)
    kernel, stride, padding = (_pair(getattr(layer, n))[direction] for n in ("kernel_size", "stride", "padding"))
    dilation = _pair(getattr(layer, "dilation", 1))[direction]
    return _Grid(dilation * (kernel - 1) + 1, stride, padding, size, out)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])

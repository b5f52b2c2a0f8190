"""The prediction at points that differ from known ones in a small window, without computing the rest again.

A network often begins with layers that look at a neighbourhood: convolutions, poolings, functions of one pixel, sums of
their outputs. A window `[a, b)` that changes in the input of a layer with kernel extent k, stride s and padding p
changes the outputs i with

    ceil((a + p - k + 1) / s) <= i <= floor((b - 1 + p) / s),

which look at the inputs `s·i - p, ..., s·i - p + k - 1`; so in both directions. The network is called as it is, with
images of which only the window is there (a tensor subclass). Every operation that is known to be local computes the
window of its output, and takes what it needs beyond the one of its input from what was computed before at the known
point. Any other operation is given whole images, and from there on the network computes as always. So do convolutions
from where even a small change has reached most of the image.

    local = LocalForward.of(predict, x)
    stages = local.stages(x)                                        # the images, and what has to be known of them
    prediction, changes = local.predict(stages, rows, patch, window)
    local.write(stages, rows, changes)                              # if the change is to stay
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import prod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from equipoise.core.types import Points, Predict, Prediction
from equipoise.kernels._backward_kernels import FEW_CHANNELS, Quartered, pooled, whole
from equipoise.kernels.input_gradients import RECTIFIERS, faster_in_bf16
from equipoise.kernels.torch_calls import AvgPool2d, BatchNorm, Conv2d, Dropout, MaxPool2d, pair

Span = tuple[int, int]
Window = tuple[Span, Span]
Change = tuple[Tensor, Window]
Images = Float[Tensor, "_batch _channels _height _width"]

MOST_MEMORY = 2**22
"""Bytes that may be kept per sample."""
MOST_CHANGED = 0.8
"""Share of a convolution's outputs above which it is computed whole, where a small change of the image reaches them."""
_AT_ONCE = 256  # whole images per pass; of crops as many more as have the same number of pixels
_ASKS = {"dim", "size", "numel", "is_floating_point", "is_complex", "is_contiguous", "__len__", "__hash__"}
_PROPERTIES = {"shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda", "is_sparse", "is_quantized"}
_POINTWISE = {
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh", "softplus"),
    *("hardtanh", "hardswish", "hardsigmoid", "clamp", "clamp_min", "clamp_max", "float", "contiguous", "clone"),
}
_SUMS = {"add", "sub", "mul", "div", "__rsub__"}


@dataclass(frozen=True)
class _Grid:
    """Which inputs a layer's outputs look at, in one direction."""

    extent: int
    stride: int
    padding: int
    size: int  # of the input
    pairs: bool = False  # whether outputs change in pairs, from an even one on

    @property
    def out(self) -> int:
        """How many outputs there are."""
        return (self.size + 2 * self.padding - self.extent) // self.stride + 1

    def affected(self, span: Span) -> Span:
        """The outputs that look at any of these inputs, at the edges also those of padding alone; at least one."""
        first = 0 if span[0] == 0 else -((self.extent - 1 - self.padding - span[0]) // self.stride)
        last = self.out if span[1] == self.size else (span[1] - 1 + self.padding) // self.stride + 1
        first = min(max(first, 0), self.out - 1)
        last = max(min(last, self.out), first + 1)
        return (first // 2 * 2, (last + 1) // 2 * 2) if self.pairs else (first, last)

    def needed(self, span: Span) -> tuple[Span, Span]:
        """The inputs that these outputs look at, and how much padding before and after them."""
        low = span[0] * self.stride - self.padding
        high = (span[1] - 1) * self.stride - self.padding + self.extent
        inside = min(max(low, 0), self.size), min(max(high, 0), self.size)
        before = min(max(-low, 0), high - low)
        return inside, (before, high - low - before - (inside[1] - inside[0]))


Grids = tuple[_Grid, _Grid]


@lru_cache(maxsize=4096)
def _plan(grids: Grids, window: Window) -> tuple[Window, Window, Window]:
    """For a changed window of a layer's input: the outputs that change, the input they look at, and its padding."""
    out = tuple(grid.affected(span) for grid, span in zip(grids, window, strict=True))
    needed, padding = zip(*(grid.needed(span) for grid, span in zip(grids, out, strict=True)), strict=True)
    return out, needed, padding  # pyright: ignore[reportReturnType]


_NONE = torch.zeros(0, dtype=torch.long)


class _NotKnownError(Exception):
    """More of an image is asked for than was kept."""


@dataclass(frozen=True)
class _Known:
    """What an operation of the network has given: its content of a window."""

    slot: int  # the number of the operation
    patch: Tensor
    window: Window
    layer: int | None = None  # the convolution that it is, perhaps rectified
    rectified: bool = False  # in quarters, whether it has to be

    @property
    def in_quarters(self) -> bool:
        return self.patch.ndim == 5

    @property
    def content(self) -> Tensor:
        """The window's content, as the network takes it."""
        if not self.in_quarters:
            return self.patch
        return whole(self.patch).relu_() if self.rectified else whole(self.patch)


class _Local(Tensor):
    """Images of which only a window is there."""

    run: "_Run"
    known: _Known
    complete: Tensor | None  # the whole images, once they were asked for: from then on these are the ones

    @staticmethod
    def __new__(cls, run: "_Run", known: _Known, size: Sequence[int]) -> "_Local":
        patch = known.patch
        shape = (len(patch), patch.shape[-3], *size)
        self = Tensor._make_wrapper_subclass(cls, shape, dtype=patch.dtype, device=patch.device)  # pyright: ignore[reportAttributeAccessIssue]
        self.run, self.known, self.complete = run, known, None
        return self

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in _ASKS or (name == "__get__" and func.__self__.__name__ in _PROPERTIES):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        found = _locals((args, kwargs))
        return found[0].run.computed(func, name, args, kwargs, found)

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        run = _locals((args, kwargs))[0].run
        return func(*run.whole(args), **run.whole(kwargs or {}))


def _locals(value: Any) -> list[_Local]:
    """All in the arguments of an operation, in their order."""
    if type(value) is _Local:
        return [value]
    values = value.values() if type(value) is dict else value if type(value) in (tuple, list) else ()
    return [local for one in values for local in _locals(one)]


@dataclass(frozen=True)
class _Structure:
    """What one pass finds and all others follow. The operations that are known to be local have numbers, from 1 on."""

    ends: set[int] = field(default_factory=set)
    """The convolutions that are computed whole."""
    pooled: set[int] = field(default_factory=set)
    """Those that are pooled over 2×2 pixels: their windows hold whole pairs, so that nothing else of them is needed."""
    quarters: dict[int, Quartered] = field(default_factory=dict)
    """Those that can be computed in quarters, which of `pooled` are."""
    together: set[int] = field(default_factory=set)
    """The sums, products and concatenations that are local."""
    asked: set[int] = field(default_factory=set)
    """Whose outputs are needed beyond the changed window."""


class _Run:
    """One pass through the network. Without stages the images are whole, and the window is one that could change: to
    see what would be needed then, and if it explores, the rest of the structure.
    """

    def __init__(
        self,
        structure: _Structure,
        stages: dict[int, Tensor] | None = None,
        rows: Tensor = _NONE,
        explores: bool = False,
    ) -> None:
        self._structure, self._stages, self._rows, self._explores = structure, stages, rows, explores
        self._count = 0
        self.made: dict[int, _Known] = {}

    def images(self, patch: Images, window: Window, size: Sequence[int]) -> _Local:
        """The input of the network."""
        return self._local(_Known(0, patch, window), size)

    def computed(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], parts: Sequence[_Local]
    ) -> Any:
        """An operation of the network: in the window if it is known to be local, else of whole images."""
        found = None
        if "out" not in kwargs and all(one.complete is None and one.ndim == 4 for one in parts):
            stem = name.removesuffix("_") if not name.endswith("__") else name
            freshly = func if stem == name else getattr(Tensor, stem, None)  # what is kept must stay as it is
            found = self._rule(freshly, stem, args, kwargs, parts) if freshly else None
            in_place = stem != name or (stem in _POINTWISE and _in_place(args, kwargs))
            if found is not None and in_place and args[0] is parts[0]:
                parts[0].known = found.known
                return parts[0]
        return func(*self.whole(args), **self.whole(kwargs)) if found is None else found

    def whole(self, value: Any) -> Any:
        """The arguments of an operation, with whole images."""
        if type(value) is _Local:
            if value.complete is None:
                value.complete = self._needed(value.known, _everything(value), lasting=True)
            return value.complete
        if type(value) in (tuple, list):
            return type(value)(self.whole(one) for one in value)
        return {k: self.whole(one) for k, one in value.items()} if type(value) is dict else value

    def _needed(self, known: _Known, needed: Window, lasting: bool = False) -> Tensor:
        """This part of the images; a copy, if they are to be there from now on."""
        content, spans = known.content, zip(known.window, needed, strict=True)
        inside = all(low <= first and last <= high for (low, high), (first, last) in spans)
        if self._stages is None:
            if lasting or not inside:
                self._structure.asked.add(known.slot)
        elif not inside:
            if known.slot not in self._stages:
                raise _NotKnownError
            return _pasted(self._stages[known.slot], self._rows, content, known.window, needed)
        elif needed != known.window:
            (top, left), (down, across) = ((w[0][0], w[1][0]) for w in (known.window, needed))
            (bottom, right) = (needed[k][1] - known.window[k][0] for k in (0, 1))
            content = content[:, :, down - top : bottom, across - left : right]
        return content.clone() if lasting else content

    def _local(self, known: _Known, size: Sequence[int]) -> _Local:
        self.made[known.slot] = known
        return _Local(self, known, size)

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _rule(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], parts: Sequence[_Local]
    ) -> _Local | None:
        if name in _SUMS and len(args) == 2:
            return self._together(args, parts, lambda known: func(*known, **kwargs))
        if name == "cat":
            along = args[1:] == (1,) or kwargs == {"dim": 1}
            return self._together(args[0], parts, lambda known: func(known, 1)) if along else None
        x, others = parts[0], args[1:]
        if len(parts) > 1 or not args or args[0] is not x:
            return None
        if name == "conv2d":
            return self._convolution(Conv2d(*args, **kwargs))
        if name == "max_pool2d":
            call = MaxPool2d(*args, **kwargs)
            return self._halved(x) if call.halves and not call.ceil_mode else self._pooling(func, call)
        if name == "avg_pool2d":
            return self._pooling(func, AvgPool2d(*args, **kwargs))
        if name in ("dropout", "dropout2d") and not Dropout(*args, **kwargs).training:
            return x
        alone = name in _POINTWISE and not any(isinstance(one, Tensor) for one in (*others, *kwargs.values()))
        if alone or (name == "batch_norm" and BatchNorm(*args, **kwargs).stands):
            return self._pointwise(func, x, others, kwargs)
        return None

    def _pointwise(self, func: Any, x: _Local, others: Sequence[Any], kwargs: dict[str, Any]) -> _Local:
        """A function of one pixel, never in place."""
        known, slot, rectifies = x.known, self._next(), func in RECTIFIERS
        if rectifies and known.in_quarters:
            return self._local(replace(known, slot=slot, rectified=True), x.shape[2:])
        kwargs = {k: v for k, v in kwargs.items() if k != "inplace"}
        made = func(known.content, *(one for one in others if one is not True), **kwargs)
        return self._local(_Known(slot, made, known.window, known.layer if rectifies else None), x.shape[2:])

    def _together(
        self, terms: Sequence[Any], parts: Sequence[_Local], apply: Callable[[list[Any]], Tensor]
    ) -> _Local | None:
        """A sum, product or concatenation of terms: in the smallest window around those of all its parts."""
        slot, size = self._next(), parts[0].shape[2:]
        if self._explores and all(one.shape[2:] == size for one in parts) and all(_fits(term) for term in terms):
            self._structure.together.add(slot)
        if slot not in self._structure.together:
            return None
        windows = [one.known.window for one in parts]
        window: Any = tuple((min(w[k][0] for w in windows), max(w[k][1] for w in windows)) for k in (0, 1))
        made = apply([self._needed(term.known, window) if type(term) is _Local else term for term in terms])
        return self._local(_Known(slot, made, window), size)

    def _convolution(self, call: Conv2d) -> _Local | None:
        input, weight, bias, strides, pads, steps = *call[:3], *map(pair, call[3:6])
        if strides is None or pads is None or steps is None:
            return None
        slot, structure = self._next(), self._structure
        extents = [d * (k - 1) + 1 for d, k in zip(steps, weight.shape[2:], strict=True)]
        sizes = zip(extents, strides, pads, input.shape[2:], strict=True)
        grids: Any = tuple(_Grid(*each, slot in structure.pooled) for each in sizes)
        if self._explores and _share(_plan(grids, input.known.window)[0], [g.out for g in grids]) > MOST_CHANGED:
            structure.ends.add(slot)
        if slot in structure.ends:
            return None
        narrow = torch.is_autocast_enabled("cpu") and not faster_in_bf16(len(weight))
        if narrow:
            weight, bias = weight.float(), None if bias is None else bias.float()
        if self._explores and call.is_plain and input.shape[1] <= FEW_CHANNELS:
            structure.quarters[slot] = Quartered(weight, bias, (0, 0))
        quartered = structure.quarters.get(slot) if slot in structure.pooled and self._stages is not None else None

        def convolved(h: Tensor, padding: Span) -> Tensor:
            with torch.autocast("cpu", enabled=False) if narrow else nullcontext():
                h = h.float() if narrow else h
                if quartered is not None:
                    return quartered(h, padding)
                return torch.conv2d(h, weight, bias, strides, padding, steps, call.groups)

        return self._neighbours(slot, input, grids, convolved, slot)

    def _halved(self, x: _Local) -> _Local:
        """The largest of 2×2 pixels."""
        known, slot = x.known, self._next()
        grids: Any = tuple(_Grid(2, 2, 0, size) for size in x.shape[2:])
        if self._explores and known.layer is not None and not any(size % 2 for size in x.shape[2:]):
            self._structure.pooled.add(known.layer)
        if known.in_quarters:
            largest, out = known.patch.amax(1), _plan(grids, known.window)[0]
            return self._local(
                _Known(slot, largest.relu_() if known.rectified else largest, out), [g.out for g in grids]
            )
        return self._neighbours(
            slot, x, grids, lambda h, _: pooled(h[..., : h.shape[2] // 2 * 2, : h.shape[3] // 2 * 2])
        )

    def _pooling(self, func: Any, call: MaxPool2d | AvgPool2d) -> _Local | None:
        if call.window is None or call.ceil_mode:
            return None
        (kernel, strides), x = call.window, call.input
        grids: Any = tuple(
            _Grid(k, stride, 0, size) for k, stride, size in zip(kernel, strides, x.shape[2:], strict=True)
        )
        return self._neighbours(self._next(), x, grids, lambda h, _: func(h, kernel, strides))

    def _neighbours(
        self,
        slot: int,
        x: _Local,
        grids: Grids,
        apply: Callable[[Tensor, Span], Tensor],
        layer: int | None = None,
    ) -> _Local:
        """The outputs that change, of a layer that looks at neighbours; `apply` takes the input that they look at, and
        how much padding both sides of it have in common. A convolution's padding is of zeros, a pooling has none.
        """
        out, needed, around = _plan(grids, x.known.window)
        h = self._needed(x.known, needed)
        if self._stages is None:
            around: Any = tuple((grid.padding, grid.padding) for grid in grids)
        (up, down), (left, right) = around
        common = (up, left)
        if around != ((up, up), (left, left)):
            h, common = F.pad(h, (left, right, up, down)), (0, 0)
        return self._local(_Known(slot, apply(h, common), out, layer), [grid.out for grid in grids])


def _everything(images: Tensor) -> Window:
    return (0, images.shape[2]), (0, images.shape[3])


def _share(window: Window, size: Sequence[int]) -> float:
    return prod(b - a for a, b in window) / prod(size)


def _in_place(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a function of one pixel is asked to write over its input."""
    return kwargs.get("inplace") is True or any(one is True for one in args[1:])


def _fits(term: Any) -> bool:
    """Whether it is in a window too, or one for all samples and pixels: what follows from an image has several."""
    if not isinstance(term, Tensor):
        return isinstance(term, int | float)
    return type(term) is _Local or term.ndim == 0 or (term.shape[-2:] == (1, 1) and (term.ndim < 4 or len(term) == 1))


@dataclass(frozen=True)
class LocalForward:
    """A predictive that is computed in a window, as far as that goes. Its weights must not change meanwhile."""

    predict_whole: Predict
    """The prediction at whole images."""
    kept: tuple[int, ...] = ()
    """Of which operations of the network the outputs are kept; none if all of it is computed whole."""
    _structure: _Structure = field(default_factory=_Structure)

    @classmethod
    @torch.no_grad()
    def of(cls, predict: Predict, x: Points) -> "LocalForward":
        """`predict`, of one network, in a window on a CPU, if that is seen to give the same at the first samples of
        `x`; else whole.
        """
        plain = cls(predict)
        if x.ndim != 4 or x.device.type != "cpu":
            return plain
        few = x[:2]
        window, structure = _small(few), _Structure()
        try:
            for explores in (True, False):
                structure.asked.clear()
                run = _Run(structure, explores=explores)
                predict(run.images(few, window, few.shape[2:]))
            kept = tuple(sorted(structure.asked - {0}))
            memory = sum(run.made[slot].patch[0].nbytes for slot in kept)
            local = cls(predict, kept, structure)
            if not kept or memory > MOST_MEMORY or not local._agrees(few, window):
                return plain
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError):
            return plain  # not every network takes images of which not all is there
        return local

    def _agrees(self, few: Images, window: Window) -> bool:
        """Whether another window is seen to give what whole images give."""
        (top, bottom), (left, right) = window
        new = few.clone()
        patch = torch.linspace(0, 1, new[:, :, top:bottom, left:right].numel()).to(new)
        new[:, :, top:bottom, left:right] = patch.reshape(new[:, :, top:bottom, left:right].shape)
        rows = torch.arange(len(few))
        here, _ = self._predict(self.stages(few), rows, new[:, :, top:bottom, left:right], window)
        tolerance = 0.05 if torch.is_autocast_enabled("cpu") else 1e-4
        return not bool(here.differs(self.predict_whole(new), tolerance).any())

    def stages(self, x: Images) -> list[Images]:
        """The images, and the outputs of what is kept, to be written over: copies."""
        pieces = [self._stages(piece) for piece in x.split(_at_once(x, 1.0))]
        return [torch.cat(stage) for stage in zip(*pieces, strict=True)]

    def _stages(self, x: Images) -> list[Images]:
        if not self.kept:
            return [x]
        run = _Run(self._structure)
        self.predict_whole(run.images(x, _small(x), x.shape[2:]))
        return [run.made[slot].content for slot in (0, *self.kept)]

    def predict(
        self, stages: Sequence[Images], rows: Int[Tensor, " _rows"], patch: Images, window: Window
    ) -> tuple[Prediction, list[Change]]:
        """The prediction for the samples `rows` with `patch` in the window, and what changes in every stage."""
        size = _at_once(stages[0], _share(window, stages[0].shape[2:]) if self.kept else 1.0)
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
        if not self.kept:
            here = self.predict_whole(_pasted(stages[0], rows, patch, window, _everything(stages[0])))
            return here, [(patch, window)]
        slots, size = (0, *self.kept), stages[0].shape[2:]
        run = _Run(self._structure, dict(zip(slots, stages, strict=True)), rows)
        try:
            here = self.predict_whole(run.images(patch, window, size))
        except _NotKnownError:  # of a window that cannot be seen to lie in another: then of whole images
            everything = _everything(stages[0])
            return self._predict(stages, rows, _pasted(stages[0], rows, patch, window, everything), everything)
        return here, [(run.made[slot].content, run.made[slot].window) for slot in slots]

    def write(self, stages: Sequence[Images], rows: Int[Tensor, " _rows"], changes: Sequence[Change]) -> None:
        """Write the changes of the samples `rows` into every stage."""
        for stage, (patch, (high, wide)) in zip(stages, changes, strict=True):
            stage[:, :, slice(*high), slice(*wide)].index_copy_(0, rows, patch)


def _small(images: Images) -> Window:
    """A window that covers an eighth of either side, a quarter from the edge: neither in the middle nor there."""
    sides = [(n // 4, n // 4 + max(n // 8, 1)) for n in images.shape[2:]]
    return sides[0], sides[1]


def _at_once(x: Tensor, share: float) -> int:
    return int(_AT_ONCE / max(share, 1e-6)) if x.device.type == "cpu" else max(len(x), 1)


def _pasted(stage: Images, rows: Tensor, patch: Images, window: Window, needed: Window) -> Images:
    """The needed part of a stage for these samples, with the patch in it."""
    if needed == window:
        return patch
    (top, bottom), (left, right) = needed
    last = stage.is_contiguous(memory_format=torch.channels_last) and not stage.is_contiguous()
    view = stage[:, :, top:bottom, left:right]
    h = view.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2) if last else view.index_select(0, rows)
    (a, b), (c, d) = window
    # A window at the edge of the input may reach beyond what any output looks at.
    down, up, across, back = max(a, top), min(b, bottom), max(c, left), min(d, right)
    if down < up and across < back:
        h[:, :, down - top : up - top, across - left : back - left] = patch[
            :, :, down - a : up - a, across - c : back - c
        ]
    return h

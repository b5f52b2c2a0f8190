"""The layers of a network, computed where a change in a window of the image reaches.

Of a local layer only the window of the output that changes is computed; what it needs beyond the window of its input
comes from the stored output of the unchanged image. From the first other layer on, and from a convolution of whose
output even a small change reaches most, whole outputs are computed.

Which outputs have to be stored follows from the layers alone. Windows with the same number, here, are the same whatever
changes: a layer with the same receptive fields on the same windows. A convolution of stride 1 that keeps the size has
windows around those of its input.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from equipoise.kernels import layers
from equipoise.kernels._receptive_fields import Fields, ReceptiveField, Window, covered_share, propagated
from equipoise.kernels.layers import output_of
from equipoise.kernels.trace import Node, Trace

FeatureMaps = Float[Tensor, "_batch _channels _height _width"]
"""Images, or the output of a layer; any two may differ in size."""

MOST_CHANGED = 0.8
"""If a small change of the image reaches more than this share of a convolution's output, recompute the whole output."""
_POINTWISE = layers.RunningNorm | layers.Rectifier | layers.Pointwise | layers.Negation


@dataclass(frozen=True)
class Step:
    """How the output of a node is computed."""

    index: int
    node: Node
    is_local: bool
    """Whether only a window of it is computed."""
    fields: Fields | None
    """The receptive fields of a local convolution or pooling."""
    released: tuple[int, ...]
    """The nodes whose outputs are not needed afterwards."""


@dataclass(frozen=True)
class Program:
    """How to compute a network's output."""

    steps: Sequence[Step]
    """One for every node that it depends on, but the first, in their order."""
    stored: Sequence[int]
    """The nodes, the first included, whose outputs are needed beyond the window."""
    dtype: torch.dtype
    """Of the network's output."""

    @classmethod
    def of(cls, trace: Trace, window: Window) -> "Program | None":
        """Return how to compute one traced network, for windows as small as this one; None if it is not known."""
        if trace.output is None or trace.logits.shape != (1, 2, *trace.nodes[trace.output].shape):
            return None
        if trace.unknown is not None or trace.changes_input:
            return None
        needed = _ancestors(trace, trace.output)
        plan = _Plan(trace, frozenset(needed), window)
        for i in needed[1:]:
            plan.add(i)
        last = {parent: i for i in needed for parent in trace.nodes[i].parents}  # user
        for parent in {trace.output, *plan.stored} & last.keys():
            del last[parent]
        steps = [
            Step(i, trace.nodes[i], i in plan.windows, plan.fields.get(i), tuple(p for p in last if last[p] == i))
            for i in needed[1:]
        ]
        return cls(steps, sorted(plan.stored), trace.logits.dtype)

    def whole(self, x: FeatureMaps) -> dict[int, Tensor]:
        """Return the outputs to be stored, at these images."""
        outputs = {0: x}
        for step in self.steps:
            if step.index > self.stored[-1]:
                break
            outputs[step.index] = output_of(step.node.layer, *(outputs[parent] for parent in step.node.parents))
            for parent in step.released:
                del outputs[parent]
        return {index: outputs[index] for index in self.stored}

    def changed(self, given: "Changed") -> Tensor:
        """Return the network's output after a change; the changed windows are in `given` then."""
        for step in self.steps:
            given.compute(step)
            for parent in step.released:
                given.release(parent)
        return given.outputs[self.steps[-1].index].to(self.dtype)


def _ancestors(trace: Trace, output: int) -> list[int]:
    """The nodes that a node depends on, itself included, and the input."""
    needed = {0, output}
    for i in range(output, 0, -1):
        if i in needed:
            needed.update(trace.nodes[i].parents)
    return sorted(needed)


@dataclass
class _Plan:
    """Which nodes are computed in windows, and which are stored."""

    trace: Trace
    needed: Collection[int]
    window: Window
    fields: dict[int, Fields] = field(default_factory=dict)
    stored: set[int] = field(default_factory=lambda: {0})
    windows: dict[int, Window] = field(init=False)  # of the local nodes, if this window changes
    _numbers: dict[int, int] = field(default_factory=lambda: {0: 0})  # of the windows of the local nodes
    _known: dict[object, int] = field(default_factory=dict)  # numbers by how windows come about
    _inside: list[set[int]] = field(default_factory=lambda: [{0}])  # by number: the windows that lie within
    _paired: set[int] = field(default_factory=set)  # nodes whose windows consist of whole 2×2 blocks

    def __post_init__(self) -> None:
        self.windows = {0: self.window}

    def add(self, i: int) -> None:
        """Decide how the next node is computed."""
        node = self.trace.nodes[i]
        if not (self._neighbourhood(i, node) or self._combination(i, node)):
            self.stored.update(parent for parent in node.parents if parent in self.windows)

    def _neighbourhood(self, i: int, node: Node) -> bool:
        """Try to compute a convolution or pooling in a window."""
        parent = node.parents[0]
        fields = _fields(node, self.trace.nodes[parent], pairs=self._leads_to_pairs(i))
        if fields is None or parent not in self.windows:
            return False
        changed = propagated(fields, self.windows[parent])[0]
        is_conv = isinstance(node.layer, layers.Convolution)
        if is_conv and covered_share(changed, node.shape[1:]) > MOST_CHANGED:
            return False
        self.windows[i], self.fields[i] = changed, fields
        grows = all(f.stride == 1 and f.outputs == f.size and f.padding < f.extent for f in fields)
        inside = self._inside[self._numbers[parent]] if grows else set()
        self._number(i, (self._numbers[parent], fields), inside)
        if fields[0].pairs:
            self._paired.add(i)
        # A window that is itself enlarged to whole blocks needs more than the blocks around the change.
        in_blocks = parent in self._paired and _is_2x2(node, self.trace.nodes[parent]) and not fields[0].pairs
        if not in_blocks and any(f != ReceptiveField(1, 1, 0, f.size) for f in fields):
            self.stored.add(parent)
        return True

    def _combination(self, i: int, node: Node) -> bool:
        """Try to compute a function of each pixel, of one input or several, in the window around theirs."""
        parents = node.parents
        if not _is_pixelwise(node, [self.trace.nodes[p].shape for p in parents]) or not self.windows.keys() >= {
            *parents
        }:
            return False
        self.windows[i] = around([self.windows[p] for p in parents])
        numbers = {self._numbers[p] for p in parents}
        outer = next((n for n in numbers if self._inside[n] >= numbers), None)
        if outer is None:
            outer = self._number(i, frozenset(numbers), set().union(*(self._inside[n] for n in numbers)))
        self._numbers[i] = outer
        self.stored.update(p for p in parents if self._numbers[p] != outer)
        if self._paired.issuperset(parents):
            self._paired.add(i)
        return True

    def _number(self, i: int, origin: object, inside: set[int]) -> int:
        number = self._known.setdefault(origin, len(self._inside))
        if number == len(self._inside):
            self._inside.append({number, *inside})
        self._numbers[i] = number
        return number

    def _leads_to_pairs(self, i: int) -> bool:
        """Whether nothing but 2×2 pooling looks at the output of a node, or of functions of its pixels."""
        users = [user for user in self.trace.users(i) if user in self.needed]
        return len(users) > 0 and all(map(self._needs_pairs, users))

    def _needs_pairs(self, i: int) -> bool:
        node = self.trace.nodes[i]
        if isinstance(node.layer, _POINTWISE):
            return self._leads_to_pairs(i)
        return _is_2x2(node, self.trace.nodes[node.parents[0]])


def _fields(node: Node, before: Node, pairs: bool) -> Fields | None:
    """The receptive fields of a convolution or pooling of images; None for another layer."""
    layer = node.layer
    if isinstance(layer, layers.Average) and layer.window is not None:
        (kernel, stride), padding, dilation = layer.window, (0, 0), (1, 1)
    elif isinstance(layer, layers.Convolution):
        kernel = (layer.weight.shape[2], layer.weight.shape[3])
        stride, padding, dilation = layer.stride, layer.padding, layer.dilation
    elif isinstance(layer, layers.MaxPool):
        kernel, stride, padding, dilation = layer.kernel, layer.stride, layer.padding, layer.dilation
    else:
        return None
    if len(before.shape) != 3:
        return None
    shapes = zip(kernel, dilation, stride, padding, before.shape[1:], strict=True)
    vertical, horizontal = (ReceptiveField(d * (k - 1) + 1, s, p, size, pairs) for k, d, s, p, size in shapes)
    return (vertical, horizontal) if node.shape[1:] == (vertical.outputs, horizontal.outputs) else None


def _is_2x2(node: Node, before: Node) -> bool:
    """Whether a layer pools disjoint 2×2 blocks of images with even sides."""
    layer = node.layer
    if isinstance(layer, layers.MaxPool):
        blocks = layer == layers.MaxPool((2, 2), (2, 2), (0, 0), (1, 1))
    else:
        blocks = isinstance(layer, layers.Average) and layer.window == ((2, 2), (2, 2))
    return blocks and not any(size % 2 for size in before.shape[1:])


def _is_pixelwise(node: Node, sizes: Sequence[torch.Size]) -> bool:
    """Whether a layer computes each pixel of images from the same pixel of its inputs, all pixels alike."""
    layer = node.layer
    if len(node.shape) != 3 or any(size[1:] != node.shape[1:] for size in sizes):
        return False
    if isinstance(layer, layers.Shift | layers.Scale):
        constant = layer.constant if isinstance(layer, layers.Shift) else layer.factor
        return not isinstance(constant, Tensor) or all(size == 1 for size in constant.shape[-2:])
    if isinstance(layer, layers.Concatenation):
        return layer.dim == 0
    return isinstance(layer, _POINTWISE | layers.Sum | layers.Product)


class Changed:
    """The outputs of layers after a change: their windows, or whole outputs."""

    def __init__(self, stages: dict[int, FeatureMaps], samples: Tensor, patch: FeatureMaps, window: Window) -> None:
        self.outputs: dict[int, Tensor] = {0: patch}
        """By node."""
        self.windows: dict[int, Window] = {0: window}
        """Of the outputs that are not whole."""
        self._stages, self._samples, self._completed = stages, samples, {}

    def compute(self, step: Step) -> None:
        """Compute the output of a node."""
        node, parents = step.node, step.node.parents
        if not step.is_local:
            self.outputs[step.index] = output_of(node.layer, *map(self._complete, parents))
        elif step.fields is not None:
            window, inputs, padding = propagated(step.fields, self.windows[parents[0]])
            self.outputs[step.index] = _padded(node.layer, self._crop(parents[0], inputs), padding)
            self.windows[step.index] = window
        else:
            window = around([self.windows[parent] for parent in parents])
            self.outputs[step.index] = output_of(node.layer, *(self._crop(parent, window) for parent in parents))
            self.windows[step.index] = window

    def release(self, index: int) -> None:
        """Forget the output of a node, but not the window of one that is stored."""
        self.outputs.pop(index)
        self.windows.pop(index, None)

    def _complete(self, index: int) -> Tensor:
        """The whole output of a node."""
        if index not in self.windows:
            return self.outputs[index]
        if index not in self._completed:
            height, width = self._stages[index].shape[2:]
            self._completed[index] = self._crop(index, ((0, height), (0, width)))
        return self._completed[index]

    def _crop(self, index: int, window: Window) -> Tensor:
        """This window of the output of a node, around that which has changed or within."""
        values, own = self.outputs[index], self.windows[index]
        if window == own:
            return values
        if all(low <= first and last <= high for (low, high), (first, last) in zip(own, window, strict=True)):
            rows, columns = (slice(a - low, b - low) for (a, b), (low, _) in zip(window, own, strict=True))
            return values[:, :, rows, columns]
        return pasted(self._stages[index], self._samples, values, own, window)


def _padded(layer: layers.Layer | None, h: Tensor, padding: Window) -> Tensor:
    """A convolution or pooling of part of its input, with so much padding before and after the rows and columns."""
    (up, down), (left, right) = padding
    if isinstance(layer, layers.Average):
        return layer.apply(h)
    assert isinstance(layer, layers.Convolution | layers.MaxPool)
    if (up, left) != (down, right):
        value = 0.0 if isinstance(layer, layers.Convolution) else -torch.inf
        h, up, left = F.pad(h, (left, right, up, down), value=value), 0, 0
    if isinstance(layer, layers.Convolution):
        return torch.conv2d(h, layer.weight, layer.bias, layer.stride, (up, left), layer.dilation, layer.groups)
    return F.max_pool2d(h, layer.kernel, layer.stride, (up, left), layer.dilation)


def around(windows: Sequence[Window]) -> Window:
    """Return the smallest window around others."""
    if len(windows) == 1:
        return windows[0]
    rows, columns = ((min(window[k][0] for window in windows), max(window[k][1] for window in windows)) for k in (0, 1))
    return rows, columns


def pasted(stage: FeatureMaps, samples: Tensor, patch: FeatureMaps, window: Window, crop: Window) -> FeatureMaps:
    """Return the part `crop` of a stage for these samples, with the patch in its window."""
    if crop == window:
        return patch
    (top, bottom), (left, right) = crop
    channels_last = stage.is_contiguous(memory_format=torch.channels_last) and not stage.is_contiguous()
    view = stage[:, :, top:bottom, left:right]
    if channels_last:
        h = view.permute(0, 2, 3, 1).index_select(0, samples).permute(0, 3, 1, 2)
    else:
        h = view.index_select(0, samples)
    (a, b), (c, d) = window
    # A window at the edge of the input may extend beyond what any output depends on.
    first_row, last_row, first_column, last_column = max(a, top), min(b, bottom), max(c, left), min(d, right)
    if first_row < last_row and first_column < last_column:
        h[:, :, first_row - top : last_row - top, first_column - left : last_column - left] = patch[
            :, :, first_row - a : last_row - a, first_column - c : last_column - c
        ]
    return h

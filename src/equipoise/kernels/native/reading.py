"""From the trace of a network to the layers of the kernels.

A kernel's layer is a convolution or a linear layer with its pooling, or a sum with an earlier output, and its
rectifier. Whatever is affine in between is folded into the weights, equal up to rounding: before a linear layer
anything, such as batch-norm, average pooling or constants, as `w (A h + c) + b = (w A) h + (w c + b)`; before and after
a convolution what acts channel by channel. What finds no layer, such as batch-norm and ReLU of a sum that a shortcut
takes as it is, gets one of its own, with a factor and a constant for each channel.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from equipoise.kernels import layers as traced
from equipoise.kernels.layers import output_of, tensors_of
from equipoise.kernels.native.layers import Layer
from equipoise.kernels.trace import Node, Trace

_AFFINE = traced.RunningNorm | traced.Average | traced.Reshape | traced.Shift | traced.Scale | traced.Negation
_CHANNELWISE = traced.RunningNorm | traced.Shift | traced.Scale | traced.Negation
_LARGEST_POOL = 7  # rows and columns of a window: one byte says which of its pixels is the largest
_MANY = 1 << 22
"""Numbers in a folded weight: more are left to PyTorch."""


class _UnsupportedError(Exception):
    """The kernels cannot compute the network."""


@dataclass(frozen=True)
class Layers:
    """A network as the kernels compute it: `layers(scale * x + shift)`."""

    layers: Sequence[Layer]
    """The layers."""
    scale: Tensor | None
    """A factor per pixel; None is 1."""
    shift: Tensor | None
    """A constant per pixel; None is 0."""


def may_be_read(trace: Trace) -> bool:
    """Whether a network does nothing but compute what is known, with a gradient."""
    known = trace.output is not None and trace.unknown is None and not trace.changes_input
    return known and all(node.is_differentiable for node in trace.nodes)


def layers_of(trace: Trace, weights: Iterable[Tensor], trainable: bool = False) -> list[Layers] | None:
    """Return the layers of a network, or of each member of an ensemble, with these parameters and buffers; None if the
    kernels do not support them. Only if they are `trainable` may weights need a gradient, which then passes through the
    folding.
    """
    if not may_be_read(trace):
        return None
    own = {weight.untyped_storage().data_ptr() for weight in weights}
    if not all(_is_own(tensor, own, trainable) for node in trace.nodes for tensor in tensors_of(node.layer)):
        return None
    try:
        with torch.set_grad_enabled(trainable):
            return [_Reader(trace.nodes, end).layers_to(end) for end in _members(trace)]
    except _UnsupportedError:
        return None


def _members(trace: Trace) -> tuple[int, ...]:
    """The outputs of the members, if there are no nodes but those that they need."""
    output = trace.output
    assert output is not None
    is_ensemble = isinstance(trace.nodes[output].layer, traced.Members)
    ends = trace.nodes[output].parents if is_ensemble else (output,)
    _need({output}.union(*(_needed(trace.nodes, end) for end in ends)) == set(range(len(trace.nodes))))
    return ends


def _needed(nodes: Sequence[Node], end: int) -> set[int]:
    """The nodes whose outputs a node depends on, and itself."""
    needed = {end}
    for index in range(end, -1, -1):
        needed.update(nodes[index].parents if index in needed else ())
    return needed


def _is_own(tensor: Tensor, storages: set[int], trainable: bool) -> bool:
    is_constant = not tensor.requires_grad or (trainable and tensor.is_leaf)
    kind = tensor.dtype in (torch.float32, torch.bool)  # a mask
    return kind and is_constant and tensor.untyped_storage().data_ptr() in storages


@dataclass(frozen=True)
class _Value:
    """An output of a node, as an affine function of a buffer."""

    buffer: int
    """-1: the input, before what is done to all of it."""
    affine: tuple[Node, ...]
    """What was done since the layer that wrote the buffer, or to the input."""
    given: torch.Size
    """The shape of what that was done to."""
    size: torch.Size
    """That of the output."""
    is_alone: bool = True
    """Whether nothing else uses the buffer."""


class _Reader:
    """Reads the nodes of one member in turn, and collects its layers."""

    def __init__(self, nodes: Sequence[Node], end: int) -> None:
        self._nodes, self._needed = nodes, sorted(_needed(nodes, end))
        self._uses = Counter(parent for index in self._needed for parent in nodes[index].parents)
        self._layers: list[Layer] = []
        self._scale = self._shift = None

    def layers_to(self, end: int) -> Layers:
        """Return the layers whose output is that of a node."""
        values: dict[int, _Value] = {}
        for index in self._needed:
            node = self._nodes[index]
            value = replace(self._value(node, [values[parent] for parent in node.parents]), size=node.shape)
            is_shared = self._uses[index] > 1
            values[index] = replace(self._folded(value), is_alone=False) if is_shared else value
        value = self._folded(values[end])
        _need(value.buffer > 0)
        if not _only_reshapes(value.affine) or self._shape(value.buffer)[1:] != (1, 1):
            _need(len(value.size) == 1)  # the logits are a function of the last layer
            self._copied(value)
        self._check()
        return Layers(self._layers, self._scale, self._shift)

    def _value(self, node: Node, parents: Sequence[_Value]) -> _Value:
        layer = node.layer
        if layer is None:
            return _Value(-1, (), node.shape, node.shape)
        if isinstance(layer, _AFFINE):
            return replace(parents[0], affine=(*parents[0].affine, node))
        if isinstance(layer, traced.Convolution | traced.Linear):
            return self._weighted(layer, parents[0], node.shape)
        if isinstance(layer, traced.Sum):
            negative = Node(traced.Negation(), (), node.shape)
            signed = zip(parents, layer.signs, strict=True)
            terms = (replace(v, affine=(*v.affine, negative)) if sign < 0 else v for v, sign in signed)
            return reduce(self._sum, terms)
        return self._function(layer, parents[0], node.shape)

    def _shape(self, buffer: int) -> tuple[int, int, int]:
        return self._layers[buffer - 1].output if buffer else self._layers[0].input

    def _append(self, layer: Layer, size: torch.Size) -> _Value:
        self._layers.append(layer)
        return _Value(len(self._layers), (), size, size)

    def _entered(self, value: _Value) -> _Value:
        """The value; the input with what is done to all of it as the factors and constants before the first layer."""
        if value.buffer >= 0:
            return value
        self._scale, self._shift = _pixelwise(value.affine, value.given, value.size)
        return replace(value, buffer=0, affine=(), given=value.size)

    def _folded(self, value: _Value) -> _Value:
        """The value with what can be of it folded into the layer that wrote its buffer."""
        if value.buffer < 1 or not value.is_alone:
            return self._entered(value)
        self._layers[value.buffer - 1], affine = _folded_after(self._layers[value.buffer - 1], value.affine)
        return replace(value, affine=affine)

    def _weighted(self, layer: traced.Layer, value: _Value, size: torch.Size) -> _Value:
        value = self._entered(value)
        if isinstance(layer, traced.Convolution) and not _passes_into(layer, value.affine):
            value = self._alike(self._folded(value))
        return self._append(_folded_before(layer, value.affine, value.given, value.size, value.buffer), size)

    def _alike(self, value: _Value) -> _Value:
        """The value as it is in a buffer: in its own if only its shape has changed, else in that of a new layer."""
        return value if _only_reshapes(value.affine) else self._copied(value)

    def _copied(self, value: _Value) -> _Value:
        """The value in the buffer of a new layer, which multiplies each channel, or each feature, by a factor; features
        that are means are a linear layer's.
        """
        size = value.size if len(value.size) == 3 else (*value.size, 1, 1)
        _need(len(size) == 3)
        if len(value.size) == 3:
            scale, shift = _channelwise(value.affine, size[0], 4)
        elif any(isinstance(node.layer, traced.Average) for node in value.affine):
            return self._weighted(traced.Linear(torch.eye(size[0], dtype=torch.float32), None), value, value.size)
        else:
            scale, shift = (factor.flatten() for factor in _factors(value.affine, value.given))
        copied = Layer((size[0], size[1], size[2]), scale[:, None, None, None], shift, value.buffer, groups=size[0])
        return self._append(copied, value.size)

    def _function(self, function: traced.Layer, value: _Value, size: torch.Size) -> _Value:
        """A rectifier or pooling behind the layer that wrote the value, or, where that cannot be, a new one."""
        value = self._folded(value)
        layer = self._layers[value.buffer - 1] if value.buffer > 0 and value.is_alone else None
        layer = None if layer is None else _with_function(layer, function, value.affine)
        if layer is None:
            value = self._copied(value)
            layer = _with_function(self._layers[-1], function, ())
            _need(layer is not None)
        assert layer is not None
        self._layers[value.buffer - 1] = layer
        _need(torch.Size(layer.output).numel() == size.numel())
        return value if value.affine else replace(value, given=size)

    def _sum(self, one: _Value, other: _Value) -> _Value:
        """The sum of two: the one that is written later gets the other added."""
        _need(one.size == other.size)
        first, last = sorted((self._alike(self._folded(value)) for value in (one, other)), key=lambda v: v.buffer)
        if not (last.is_alone and last.buffer > 0 and _can_be_a_sum(self._layers[last.buffer - 1])):
            last = self._copied(last)
        _need(self._shape(first.buffer) == self._shape(last.buffer))
        self._layers[last.buffer - 1] = replace(self._layers[last.buffer - 1], added=first.buffer)
        return last

    def _check(self) -> None:
        """Raise unless who takes all of a buffer as the channels of one pixel finds it without the zeros of padding."""
        padded = {layer.source for layer in self._layers if layer.padding != (0, 0)}
        for layer in self._layers:
            shape = self._shape(layer.source)
            flat = layer.input == (torch.Size(shape).numel(), 1, 1) and layer.source not in padded
            _need(flat or (layer.input == shape and not layer.is_linear))


def _need(condition: bool) -> None:
    if not condition:
        raise _UnsupportedError


def _layer(layer: traced.Layer, size: torch.Size, source: int) -> Layer:
    if isinstance(layer, traced.Linear):
        _need(len(size) == 1)
        return Layer((size[0], 1, 1), layer.weight, layer.bias, source)
    assert isinstance(layer, traced.Convolution)
    steps = layer.stride, layer.padding, layer.dilation, layer.groups
    made = Layer((size[0], size[1], size[2]), layer.weight, layer.bias, source, None, *steps)
    _need(all(pad < extent for pad, extent in zip(made.padding, made.extent, strict=True)))
    return made


def _can_be_a_sum(layer: Layer) -> bool:
    """Whether nothing is behind its convolution that the kernels would do after adding something."""
    return layer.pool == (1, 1) and layer.added is None and not layer.rectified


def _with_function(layer: Layer, function: traced.Layer, affine: Sequence[Node]) -> Layer | None:
    """The layer with a rectifier or pooling behind it; in between its output may have got another shape. None if it
    cannot have it.
    """
    if isinstance(function, traced.Rectifier):
        _need(function.slope >= 0)
        slope = function.slope * (layer.slope if layer.rectified else 1)
        return replace(layer, rectified=True, slope=slope) if _only_reshapes(affine) else None
    _need(isinstance(function, traced.MaxPool))
    assert isinstance(function, traced.MaxPool)
    _need(function == traced.MaxPool(function.kernel, function.kernel, (0, 0), (1, 1)))
    _need(max(function.kernel) <= _LARGEST_POOL)
    takes = not affine and layer.pool == (1, 1) and layer.added is None and not layer.is_linear
    return replace(layer, pool=function.kernel) if takes else None


def _apply(nodes: Sequence[Node], z: Tensor) -> Tensor:
    """Affine functions of a batch."""
    return reduce(lambda z, node: output_of(node.layer, z), nodes, z)


def _only_reshapes(affine: Sequence[Node]) -> bool:
    return all(isinstance(node.layer, traced.Reshape) for node in affine)


def _factors(affine: Sequence[Node], shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The factors and constants of functions `scale * z + shift`, number by number."""
    with torch.enable_grad():
        zero = torch.zeros(1, *shape, dtype=torch.float32, requires_grad=True)
        shift = _apply(affine, zero)
        _need(shift.shape[1:].numel() == zero.numel())  # else it has constants that differ from pixel to pixel
        (scale,) = torch.autograd.grad(shift.sum(), zero, create_graph=True)
    scale, shift = scale[0].contiguous(), shift[0].contiguous()
    return (scale, shift) if torch.is_grad_enabled() else (scale.detach(), shift.detach())


def _pixelwise(affine: Sequence[Node], size: torch.Size, after: torch.Size) -> tuple[Tensor | None, Tensor | None]:
    """The factor and the constant of each pixel of the input; None if nothing but its shape changes."""
    _need(size.numel() == after.numel() and not any(isinstance(node.layer, traced.Average) for node in affine))
    _need(not any(tensor.requires_grad for node in affine for tensor in tensors_of(node.layer)))
    if _only_reshapes(affine):
        return None, None
    scale, shift = (factor.detach().reshape(size) for factor in _factors(affine, size))
    return scale, shift


def _passes_into(layer: traced.Convolution, affine: Sequence[Node]) -> bool:
    """Whether the kernels of a convolution can do what is affine before it."""
    if not all(isinstance(node.layer, _CHANNELWISE) for node in affine):
        return False
    _, shift = _channelwise(affine, layer.weight.shape[1] * layer.groups, 4)
    return layer.padding == (0, 0) or not bool(shift.any())  # what is padded with zeros would not be shifted


def _folded_before(
    layer: traced.Layer, affine: Sequence[Node], given: Sequence[int], size: torch.Size, source: int
) -> Layer:
    """The layer of what is affine in the buffer `source`, which has the shape `given`."""
    if isinstance(layer, traced.Convolution):
        plain = _layer(layer, size, source)
        if _only_reshapes(affine):
            return plain
        scale, shift = (
            factor.reshape(layer.groups, 1, -1, 1, 1)
            for factor in _channelwise(affine, layer.weight.shape[1] * layer.groups, 4)
        )
        weight = layer.weight.reshape(layer.groups, -1, *layer.weight.shape[1:])
        constant = (weight * shift).sum((2, 3, 4)).flatten()
        bias = constant if layer.bias is None else layer.bias + constant
        return replace(plain, weight=(weight * scale).flatten(0, 1), bias=bias)
    assert isinstance(layer, traced.Linear)
    features = torch.Size(given).numel()
    if _only_reshapes(affine):
        return _layer(layer, size, source)
    weight = layer.weight
    _need(len(size) == 1 and len(weight) * features <= _MANY)
    with torch.enable_grad():
        at = torch.zeros(len(weight), *given, dtype=torch.float32, requires_grad=True)
        out = _apply(affine, at)
        (folded,) = torch.autograd.grad(out, at, weight, create_graph=True)
        constant = weight @ out[0]
        bias = constant if layer.bias is None else layer.bias + constant
    if not torch.is_grad_enabled():
        folded, bias = folded.detach(), bias.detach()
    return Layer((features, 1, 1), folded.flatten(1), bias, source)


def _folded_after(layer: Layer, affine: tuple[Node, ...]) -> tuple[Layer, tuple[Node, ...]]:
    """The layer with what acts on its channels folded in, and the rest of what follows it."""
    count = next((i for i, node in enumerate(affine) if not isinstance(node.layer, _CHANNELWISE)), len(affine))
    if count == 0 or not _can_be_a_sum(layer):
        return layer, affine
    scale, shift = _channelwise(affine[:count], len(layer.weight), layer.weight.ndim)
    weight = layer.weight * scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    bias = shift if layer.bias is None else layer.bias * scale + shift
    return replace(layer, weight=weight, bias=bias), affine[count:]


def _channelwise(affine: Sequence[Node], channels: int, ndim: int) -> tuple[Tensor, Tensor]:
    """The factor and the constant of each channel of images, or of features if `ndim` is 2."""
    shape = (channels, *[1] * (ndim - 2))
    _need(all(isinstance(node.layer, _CHANNELWISE) for node in affine))
    scale, shift = _factors(affine, shape)
    return scale.flatten(), shift.flatten()

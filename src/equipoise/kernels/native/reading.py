"""From the trace of a network to the layers of the kernels.

A kernel's layer is a convolution or a linear layer with its pooling and rectifier. Whatever is affine in between is
folded into the weights, equal up to rounding: before a linear layer anything, such as batch-norm, average pooling or
constants, as `w (A h + c) + b = (w A) h + (w c + b)`; before and after a convolution what acts channel by channel.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise

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


def layers_of(trace: Trace, weights: Iterable[Tensor], trainable: bool = False) -> list[Layers] | None:
    """Return the layers of a network, or of each member of an ensemble, with these parameters and buffers; None if the
    kernels do not support them. Only if they are `trainable` may weights need a gradient, which then passes through the
    folding.
    """
    own = {weight.untyped_storage().data_ptr() for weight in weights}
    if trace.output is None or trace.changes_input or not all(node.is_differentiable for node in trace.nodes):
        return None
    if not all(_is_own(tensor, own, trainable) for node in trace.nodes for tensor in tensors_of(node.layer)):
        return None
    try:
        with torch.set_grad_enabled(trainable):
            return [_read([trace.nodes[i] for i in chain]) for chain in _chains(trace, trace.output)]
    except _UnsupportedError:
        return None


def _chains(trace: Trace, output: int) -> list[list[int]]:
    """The nodes from the input to the output of each member, if there are no others."""
    last = trace.nodes[output]
    is_ensemble = isinstance(last.layer, traced.Members)
    chains: list[list[int]] = []
    for end in last.parents if is_ensemble else (output,):
        chain = [end]
        while parents := trace.nodes[chain[-1]].parents:
            _need(len(parents) == 1)
            chain.append(parents[0])
        chains.append(chain[::-1])
    _need({output}.union(*chains) == set(range(len(trace.nodes))))
    return chains


def _is_own(tensor: Tensor, storages: set[int], trainable: bool) -> bool:
    is_constant = not tensor.requires_grad or (trainable and tensor.is_leaf)
    return tensor.dtype == torch.float32 and is_constant and tensor.untyped_storage().data_ptr() in storages


def _read(nodes: Sequence[Node]) -> Layers:
    layers: list[Layer] = []
    affine: list[Node] = []  # what was done since the last layer, or to the input
    shape = nodes[0].shape  # of what is affine since then
    scale = shift = None
    for before, node in pairwise(nodes):
        layer, size = node.layer, before.shape
        if isinstance(layer, _AFFINE):
            affine.append(node)
            continue
        if isinstance(layer, traced.Convolution | traced.Linear):
            if layers:
                new = _folded_before(layer, affine, shape, size)
            else:
                scale, shift = _pixelwise(affine, nodes[0].shape, size)
                new = _layer(layer, size)
            layers.append(new)
            affine, shape = [], node.shape
            continue
        _need(len(layers) > 0)
        layers[-1], affine = _folded_after(layers[-1], affine)
        layers[-1] = _with_function(layers[-1], layer, affine)
        _need(torch.Size(layers[-1].output).numel() == node.shape.numel())
        shape = shape if affine else node.shape
    _need(len(layers) > 0)
    layers[-1], affine = _folded_after(layers[-1], affine)
    if not _only_reshapes(affine) or layers[-1].output[1:] != (1, 1):  # the logits are a function of the last layer
        _need(len(nodes[-1].shape) == 1)
        identity = traced.Linear(torch.eye(nodes[-1].shape[0], dtype=torch.float32), None)
        layers.append(_folded_before(identity, affine, shape, nodes[-1].shape))
    return Layers(layers, scale, shift)


def _need(condition: bool) -> None:
    if not condition:
        raise _UnsupportedError


def _layer(layer: traced.Layer, size: torch.Size) -> Layer:
    if isinstance(layer, traced.Linear):
        _need(len(size) == 1)
        return Layer((size[0], 1, 1), layer.weight, layer.bias)
    assert isinstance(layer, traced.Convolution)
    plain = (layer.dilation, layer.groups) == ((1, 1), 1)
    narrow = all(pad < kernel for pad, kernel in zip(layer.padding, layer.weight.shape[2:], strict=True))
    _need(plain and narrow)
    return Layer((size[0], size[1], size[2]), layer.weight, layer.bias, layer.stride, layer.padding)


def _with_function(layer: Layer, function: traced.Layer | None, affine: Sequence[Node]) -> Layer:
    """The layer with a rectifier or pooling behind it; in between its output may have got another shape."""
    _need(_only_reshapes(affine))
    if isinstance(function, traced.Rectifier) and function.slope >= 0:
        return replace(layer, rectified=True, slope=function.slope * (layer.slope if layer.rectified else 1))
    _need(not affine and layer.pool == (1, 1) and not layer.is_linear and isinstance(function, traced.MaxPool))
    assert isinstance(function, traced.MaxPool)
    _need(function == traced.MaxPool(function.kernel, function.kernel, (0, 0), (1, 1)))
    _need(max(function.kernel) <= _LARGEST_POOL)
    return replace(layer, pool=function.kernel)


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


def _folded_before(layer: traced.Layer, affine: Sequence[Node], given: Sequence[int], size: torch.Size) -> Layer:
    """The layer of what is affine in the output of the last one, which has the shape `given`."""
    if isinstance(layer, traced.Convolution):
        plain = _layer(layer, size)
        if not affine:
            return plain
        scale, shift = _channelwise(affine, layer.weight.shape[1], 4)
        _need(layer.padding == (0, 0) or not bool(shift.any()))  # what is padded with zeros would not be shifted
        constant = (layer.weight.sum((2, 3)) * shift).sum(1)
        bias = constant if layer.bias is None else layer.bias + constant
        return replace(plain, weight=layer.weight * scale[:, None, None], bias=bias)
    assert isinstance(layer, traced.Linear)
    features = torch.Size(given).numel()
    if _only_reshapes(affine):
        return _layer(layer, size)
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
    return Layer((features, 1, 1), folded.flatten(1), bias)


def _folded_after(layer: Layer, affine: list[Node]) -> tuple[Layer, list[Node]]:
    """The layer with what acts on its channels folded in, and the rest of what follows it."""
    count = next((i for i, node in enumerate(affine) if not isinstance(node.layer, _CHANNELWISE)), len(affine))
    if count == 0 or layer.pool != (1, 1) or layer.rectified:
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

"""A network as a list of layers that bounds can pass through.

The network runs on two samples in eval mode, and every PyTorch function that takes what depends on the input is
recorded, residual additions included; how its code is written does not matter. A function that bounds cannot pass is
refused, with the name of the layer that calls it; so is one that looks at values, such as `if x.sum() > 0`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from equipoise.certified import layers
from equipoise.certified.layers import Affine, Layer, Max, ReLU, Sum
from equipoise.core.errors import EquipoiseError
from equipoise.core.types import Points
from equipoise.kernels.torch_calls import AvgPool2d, BatchNorm, Conv2d, Dropout, MaxPool2d, leaves, map_leaves
from equipoise.models import module_mode

SUPPORTED = "linear, conv2d, relu, max and average pooling, flatten, eval-mode batch-norm and dropout, + - * / and mean"
SMALLEST_UNIT = 2.0**-48
"""Relative rounding assumed for a network in float64, which leaves room for that of the bounds."""
_NUMBERS = 2**22  # values of a layer on unit vectors that are computed together


@dataclass(frozen=True)
class Node:
    """A layer and where its input comes from."""

    layer: Layer | None
    """The layer; None for the input of the network."""
    parents: tuple[int, ...]
    """The nodes whose outputs it takes."""
    shape: torch.Size
    """The shape of its output for one sample."""


@dataclass(frozen=True)
class Slopes:
    """Affine functions of the input, one per unit of a layer: the coefficients that are not 0."""

    chain: tuple[int, ...]
    """The nodes between the input and the layer, which is the last of them."""
    values: Float[Tensor, "units few"]
    """The coefficients, padded with 0."""
    index: Int[Tensor, "units few"]
    """The coordinates of the input that they belong to."""


@dataclass(frozen=True)
class Network:
    """Layers in the order in which they run: the first is the input, the last gives the logits."""

    nodes: tuple[Node, ...]
    """The layers."""
    unit: float
    """The relative size of one rounding in the precision in which the network runs: 2⁻²⁴ in float32."""
    device: torch.device = torch.device("cpu")
    """Where its parameters are."""

    @property
    def widest(self) -> int:
        """The size of the largest layer, in numbers per sample."""
        return max(node.shape.numel() for node in self.nodes)

    @property
    def total(self) -> int:
        """The size of all layers, in numbers per sample."""
        return sum(node.shape.numel() for node in self.nodes)

    @cached_property
    def separate(self) -> frozenset[int]:
        """Nodes whose coordinates vary independently of each other, as those of the input do."""
        separate = {0}
        for i, node in enumerate(self.nodes):
            if isinstance(node.layer, Affine) and node.layer.separate and node.parents[0] in separate:
                separate.add(i)
        return frozenset(separate)

    @cached_property
    def decided(self) -> frozenset[int]:
        """Affine nodes and sums that a ReLU or a maximum is applied to."""
        return self._inputs_of(ReLU | Max)

    @cached_property
    def compared(self) -> frozenset[int]:
        """Affine nodes and sums that a maximum is applied to, directly or after a ReLU."""
        return self._inputs_of(Max)

    def _inputs_of(self, kind: Any) -> frozenset[int]:
        return frozenset(
            j for i, node in enumerate(self.nodes) if isinstance(node.layer, kind) for j in self._sources(i)
        )

    def _sources(self, i: int) -> Iterator[int]:
        """The nearest affine nodes and sums before node i that compute something."""
        for parent in self.nodes[i].parents:
            layer = self.nodes[parent].layer
            if isinstance(layer, ReLU | Max) or (isinstance(layer, Affine) and layer.roundings == 0):
                yield from self._sources(parent)
            elif layer is not None:
                yield parent

    @cached_property
    def first(self) -> Mapping[int, Slopes]:
        """The decided nodes that only affine layers separate from the input, as functions of it."""
        chains: dict[int, tuple[int, ...]] = {0: ()}
        for i, node in enumerate(self.nodes):
            if isinstance(node.layer, Affine) and node.parents[0] in chains:
                chains[i] = (*chains[node.parents[0]], i)
        return {i: self._slopes(chains[i]) for i in self.decided if i in chains}

    def _slopes(self, chain: tuple[int, ...]) -> Slopes:
        """The coefficients of a composition of affine layers: its values on unit vectors, some at a time."""
        layers, inputs, outputs = [self.nodes[i].layer for i in chain], self.nodes[0].shape, self.nodes[chain[-1]].shape
        entries = []
        for coordinates in torch.arange(inputs.numel(), device=self.device).split(max(1, _NUMBERS // outputs.numel())):
            z = F.one_hot(coordinates, inputs.numel()).double().reshape(-1, *inputs)
            for layer in layers:
                assert isinstance(layer, Affine)
                z = layer.linear(z)
            row, unit = z.flatten(1).nonzero(as_tuple=True)
            entries.append((unit, coordinates[row], z.flatten(1)[row, unit]))
        unit, coordinate, value = (torch.cat(columns) for columns in zip(*entries, strict=True))
        order = unit.argsort(stable=True)
        unit, count = unit[order], torch.bincount(unit, minlength=outputs.numel())
        column = torch.arange(len(unit), device=unit.device) - (count.cumsum(0) - count)[unit]
        values = value.new_zeros(outputs.numel(), max(int(count.amax()), 1))
        index = torch.zeros_like(values, dtype=torch.int64)
        values[unit, column], index[unit, column] = value[order], coordinate[order]
        return Slopes(chain, values, index)


@torch.no_grad()
def translate(module: nn.Module, x: Points) -> Network:
    """Return the layers of a network that takes inputs such as `x`, in eval mode; its parameters are copied to float64.

    Raises `EquipoiseError` for what cannot be bounded: another kind of layer, randomness, samples that depend on each
    other, a tensor that is changed in place while it is still needed.
    """
    samples = x[:1].expand(2, *x.shape[1:]).clone()
    trace = _Trace(samples)
    with module_mode(module, "eval"), torch.autocast(x.device.type, enabled=False), trace.watching(module), trace:
        output: Any = module(samples)
    logits: Any = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    trace.require(id(logits) in trace.outputs, "its output is not computed from its input by functions of PyTorch")
    last = trace.node_of(logits)
    return Network(tuple(trace.nodes[: last + 1]), max(torch.finfo(x.dtype).eps / 2, SMALLEST_UNIT), x.device)


@dataclass(frozen=True)
class _Ref:
    """Stands for a tensor that depends on the input, among the arguments of a function."""

    node: int
    shape: torch.Size


class _Trace(TorchFunctionMode):
    """Records what happens to the samples."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.batch, self.dtype, self.zero = len(x), x.dtype, torch.zeros((), dtype=torch.float64, device=x.device)
        self.nodes = [Node(None, (), x.shape[1:])]
        # Tensors by identity, kept alive, with the version at which they were the output of that node.
        self.outputs: dict[int, tuple[Tensor, int, int]] = {id(x): (x, 0, x._version)}
        self.modules: list[tuple[str, nn.Module]] = []  # that are running, outermost first
        self.shape = x.shape[1:]  # of the output of the function being recorded, for one sample

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", str(func))
        refs, named = map_leaves(args, self._ref), map_leaves(kwargs, self._ref)
        out = func(*args, **kwargs)
        depends = any(isinstance(value, _Ref) for value in leaves((refs, named)))
        if not depends or (not isinstance(out, Tensor) and name in _QUERIES):
            return out
        translator = _FUNCTIONS.get(name)
        self.require(translator is not None, f"{name}() is none of the functions that bounds can pass: {SUPPORTED}")
        assert translator is not None
        self.require(isinstance(out, Tensor), f"{name}() returns more than a tensor")
        self.require(out.ndim > 0 and len(out) == self.batch, f"{name}() mixes samples")
        self.require(out.dtype == self.dtype, f"{name}() changes the precision to {out.dtype}")
        self.shape = out.shape[1:]
        try:
            node = translator(self, *refs, **named)
        except TypeError as error:
            self.require(False, f"{name}() is called in a way that is not known ({error})")
            raise
        self.outputs[id(out)] = (out, node, out._version)
        return out

    def _ref(self, value: Any) -> Any:
        known = isinstance(value, Tensor) and id(value) in self.outputs
        return _Ref(self.node_of(value), value.shape[1:]) if known else value

    def node_of(self, tensor: Tensor) -> int:
        """Return the node whose output a tensor is."""
        _, node, version = self.outputs[id(tensor)]
        self.require(tensor._version == version, "it uses a tensor that was changed in place through a view of it")
        return node

    def add(self, layer: Layer, *parents: int, shape: torch.Size | None = None) -> int:
        """Append a node; return its number."""
        self.nodes.append(Node(layer, parents, self.shape if shape is None else shape))
        return len(self.nodes) - 1

    def constant(self, value: Any) -> Tensor:
        """Return a number, or a tensor that is the same for all samples, as one to be broadcast over a sample."""
        value = torch.as_tensor(value, dtype=torch.float64, device=self.zero.device)
        if value.ndim > len(self.shape):
            self.require(len(value) == 1, "it uses other constants for other samples")
            value = value[0]
        return value

    def require(self, condition: bool, reason: str) -> None:
        """Refuse the network unless `condition` holds, naming the layer that is running."""
        if condition:
            return
        name, module = self.modules[-1] if self.modules else ("", None)
        where = f"a {type(module).__name__} layer at {name!r}" if name else "this network"
        raise EquipoiseError(f"cannot bound {where}: {reason}.")

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Track meanwhile which submodules are running."""
        handles: list[Any] = []
        for name, submodule in module.named_modules():
            handles.append(submodule.register_forward_pre_hook(lambda m, _, name=name: self.modules.append((name, m))))
            handles.append(submodule.register_forward_hook(lambda *_: self.modules.pop() and None))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


# Functions of PyTorch as layers. Each takes the function's own arguments and returns the node of its output.


def _linear(trace: _Trace, input: _Ref, weight: Tensor, bias: Tensor | None = None) -> int:
    return trace.add(layers.linear(weight, bias), input.node)


def _conv2d(trace: _Trace, *args: Any, **kwargs: Any) -> int:
    input, weight, bias, stride, padding, dilation, groups = Conv2d(*args, **kwargs)
    if isinstance(padding, str):
        extents = [d * (k - 1) for d, k in zip(layers.pair(dilation), weight.shape[2:], strict=True)]
        symmetric = padding == "valid" or all(extent % 2 == 0 for extent in extents)
        trace.require(symmetric, "its padding differs from side to side")
        padding = tuple(extent // 2 if padding == "same" else 0 for extent in extents)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return trace.add(layers.convolution(input.shape, weight, bias, options), input.node)


def _relu(trace: _Trace, input: _Ref, inplace: bool = False) -> int:
    return trace.add(ReLU(), input.node)


def _max_pool2d(trace: _Trace, *args: Any, **kwargs: Any) -> int:
    input, kernel_size, stride, padding, dilation, *_ = MaxPool2d(*args, **kwargs)
    geometry = {"kernel_size": kernel_size, "stride": stride or kernel_size, "dilation": dilation, "padding": padding}
    gather, maximum = layers.windows(input.shape, trace.shape, geometry, trace.zero)
    before = trace.nodes[input.node]
    # The maximum of ReLUs is the ReLU of the maximum, which needs fewer lines.
    source = before.parents[0] if isinstance(before.layer, ReLU) else input.node
    gathered = trace.add(gather, source, shape=torch.Size((*trace.shape, maximum.is_real.shape[-1])))
    largest = trace.add(maximum, gathered)
    return trace.add(ReLU(), largest) if source != input.node else largest


def _average(trace: _Trace, mean: layers.Map, input: _Ref, terms: int) -> int:
    return trace.add(layers.average(mean, input.shape, terms, trace.zero), input.node)


def _avg_pool2d(trace: _Trace, *args: Any, **kwargs: Any) -> int:
    input, kernel_size, *options, divisor = AvgPool2d(*args, **kwargs)
    trace.require(divisor is None, "its divisor is overridden")
    terms = math.prod(layers.pair(kernel_size))
    return _average(trace, lambda z: F.avg_pool2d(z, kernel_size, *options), input, terms)


def _adaptive_avg_pool2d(trace: _Trace, input: _Ref, output_size: Any) -> int:
    return _average(trace, lambda z: F.adaptive_avg_pool2d(z, output_size), input, input.shape[1:].numel())


def _mean(trace: _Trace, input: _Ref, dim: Any = None, keepdim: bool = False) -> int:
    terms = input.shape.numel() // max(trace.shape.numel(), 1)
    return _average(trace, lambda z: z.mean(dim, keepdim), input, terms)


def _batch_norm(trace: _Trace, *args: Any, **kwargs: Any) -> int:
    norm = BatchNorm(*args, **kwargs)
    fixed = norm.uses_running_statistics
    trace.require(fixed, "samples depend on each other in a batch-norm without running statistics")
    input, mean, variance, weight, bias, *_ = norm
    assert mean is not None and variance is not None

    def per_channel(values: Tensor) -> Tensor:
        return values.double().reshape(-1, *[1] * (len(trace.shape) - 1))

    scale = (variance.double() + norm.eps).rsqrt()
    scale = per_channel(scale if weight is None else scale * weight.double())
    centred = trace.add(layers.scaling(torch.ones_like(scale), -per_channel(mean), 8), input.node)
    return trace.add(layers.scaling(scale, trace.zero if bias is None else per_channel(bias), 2), centred)


def _dropout(trace: _Trace, *args: Any, **kwargs: Any) -> int:
    dropout = Dropout(*args, **kwargs)
    trace.require(not dropout.training, "it is random: its dropout stays on in eval mode")
    return dropout.input.node


def _identity(trace: _Trace, input: _Ref, *args: Any, **kwargs: Any) -> int:
    trace.require(input.shape == trace.shape, "it changes the shape")
    return input.node


def _reshape(trace: _Trace, input: _Ref, *args: Any, **kwargs: Any) -> int:
    trace.require(input.shape.numel() == trace.shape.numel(), "it mixes samples")
    return trace.add(layers.reshaping(input.shape, trace.shape, trace.zero), input.node)


def _combination(signs: tuple[float, float]) -> Callable[..., int]:
    """`± a ± b`, where one of them may be a constant."""

    def combine(trace: _Trace, input: Any, other: Any, *, alpha: float = 1) -> int:
        trace.require(alpha == 1, "it adds a multiple of a tensor")
        if isinstance(input, _Ref) and isinstance(other, _Ref):
            trace.require(input.shape == other.shape, "it adds tensors of different shapes")
            return trace.add(Sum(signs), input.node, other.node)
        terms = list(zip((input, other), signs, strict=True))
        (ref, sign), (constant, constant_sign) = terms if isinstance(input, _Ref) else terms[::-1]
        trace.require(ref.shape == trace.shape, "it adds tensors of different shapes")
        scale = torch.full_like(trace.zero, sign)
        return trace.add(layers.scaling(scale, constant_sign * trace.constant(constant), 1), ref.node)

    return combine


def _product(trace: _Trace, input: Any, other: Any) -> int:
    trace.require(not (isinstance(input, _Ref) and isinstance(other, _Ref)), "it multiplies tensors with each other")
    ref, constant = (input, other) if isinstance(input, _Ref) else (other, input)
    trace.require(ref.shape == trace.shape, "it multiplies tensors of different shapes")
    return trace.add(layers.scaling(trace.constant(constant), trace.zero, 1), ref.node)


def _quotient(trace: _Trace, input: Any, other: Any, *, rounding_mode: str | None = None) -> int:
    trace.require(isinstance(input, _Ref) and not isinstance(other, _Ref), "it divides by what depends on the input")
    trace.require(rounding_mode is None, "it rounds")
    trace.require(input.shape == trace.shape, "it divides tensors of different shapes")
    return trace.add(layers.scaling(1 / trace.constant(other), trace.zero, 2), input.node)


def _negation(trace: _Trace, input: _Ref) -> int:
    return trace.add(layers.scaling(-torch.ones_like(trace.zero), trace.zero, 0), input.node)


_FUNCTIONS: dict[str, Callable[..., int]] = {
    "linear": _linear,
    "conv2d": _conv2d,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "mean": _mean,
    "batch_norm": _batch_norm,
    "neg": _negation,
    **dict.fromkeys(("relu", "relu_"), _relu),
    **dict.fromkeys(("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"), _dropout),
    **dict.fromkeys(("float", "contiguous", "clone", "detach", "to"), _identity),
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze", "unsqueeze", "unflatten"), _reshape),
    **dict.fromkeys(("add", "add_"), _combination((1.0, 1.0))),
    **dict.fromkeys(("sub", "sub_"), _combination((1.0, -1.0))),
    **dict.fromkeys(("rsub", "__rsub__"), _combination((-1.0, 1.0))),
    **dict.fromkeys(("mul", "mul_"), _product),
    **dict.fromkeys(("div", "div_"), _quotient),
}
_QUERIES = {
    *("__get__", "__len__", "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "type"),
    *("is_contiguous", "is_floating_point", "is_complex", "get_device", "element_size"),
}
"""Functions that return properties of a tensor, not its values."""

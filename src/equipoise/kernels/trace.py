"""What a network does to a sample, as a list of layers: the one trace that kernels and bounds read.

The network runs on two samples while a mode watches the functions of PyTorch that it calls; how its code is written
does not matter. Every function of something that depends on the input is a node: a layer with its weights, or
`Unknown`, with the reason. Whatever depends on an unknown node is unknown itself.

    trace = trace_of(net, x)
    for node in trace.nodes:
        print(node.layer, node.parents, node.shape)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from equipoise.core.types import Points
from equipoise.kernels.torch_calls import (
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Dropout,
    LeakyReLU,
    MaxPool2d,
    Pair,
    leaves,
    map_leaves,
    pair,
)


class Layer:
    """Something that a network does to each sample, with its weights."""


@dataclass(frozen=True, eq=False)
class Convolution(Layer):
    """`z = w ⋆ x + b`, with this stride, padding, dilation and number of groups."""

    weight: Tensor
    bias: Tensor | None
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


@dataclass(frozen=True, eq=False)
class Linear(Layer):
    """`z = w x + b` over the last dimension."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class RunningNorm(Layer):
    """Batch-norm with running statistics: `z = w (x - m) / √(v + eps) + b`, channel by channel."""

    mean: Tensor
    variance: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float


@dataclass(frozen=True)
class Rectifier(Layer):
    """`max(x, 0) + slope · min(x, 0)`: a ReLU, or with a slope a leaky ReLU."""

    slope: float = 0.0


@dataclass(frozen=True)
class Pointwise(Layer):
    """Another function of each number."""

    name: str
    apply: Callable[[Tensor], Tensor] = field(repr=False)
    """The function itself, of a batch."""


@dataclass(frozen=True)
class MaxPool(Layer):
    """The maximum over windows."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair


@dataclass(frozen=True)
class Average(Layer):
    """Means of the input over windows or dimensions, of `terms` numbers each (at most)."""

    function: Callable[..., Tensor]
    """The function of PyTorch."""
    options: tuple[tuple[str, Any], ...]
    """Its arguments besides the input."""
    terms: int

    def apply(self, z: Tensor) -> Tensor:
        """Return the means of a batch."""
        return self.function(z, **dict(self.options))


@dataclass(frozen=True)
class Reshape(Layer):
    """The same numbers in another shape."""


@dataclass(frozen=True)
class Sum(Layer):
    """`Σ ± x_i` of the outputs of several nodes, as at the end of a residual block."""

    signs: tuple[float, ...]


@dataclass(frozen=True)
class Product(Layer):
    """`x · y` of the outputs of two nodes, of which one may be broadcast over the other."""


@dataclass(frozen=True)
class Concatenation(Layer):
    """The outputs of several nodes side by side, along a dimension of a sample."""

    dim: int
    name = "cat"


@dataclass(frozen=True, eq=False)
class Shift(Layer):
    """`± x ± constant`, to be broadcast over a sample."""

    constant: Any
    """The constant."""
    signs: tuple[float, float]
    """The signs of the two."""


@dataclass(frozen=True, eq=False)
class Scale(Layer):
    """`factor · x` or `x / factor`, to be broadcast over a sample."""

    factor: Any
    divides: bool = False


@dataclass(frozen=True)
class Negation(Layer):
    """`-x`."""


@dataclass(frozen=True)
class Unknown(Layer):
    """Something else."""

    reason: str
    """What it is, as the end of a sentence about the layer."""


@dataclass(frozen=True, eq=False)
class Node:
    """A layer and where its input comes from."""

    layer: Layer | None
    """The layer; None for the input of the network."""
    parents: tuple[int, ...]
    """The nodes whose outputs it takes."""
    shape: torch.Size
    """The shape of its output for one sample."""
    where: str = "this network"
    """The module that calls the function, for messages."""
    is_differentiable: bool = True
    """Whether gradients pass through it: not in a `torch.no_grad()` of the network's own, or after `detach()`."""


@dataclass(frozen=True)
class Trace:
    """The layers of a network in the order in which they run, of which the first is the input."""

    nodes: tuple[Node, ...]
    """The layers."""
    output: int | None
    """The node that is the network's output; None if that is not computed from the input."""
    logits: Tensor
    """The output for the samples that were watched."""
    changes_input: bool
    """Whether the network writes over its input."""

    @property
    def unknown(self) -> Node | None:
        """The first layer that is unknown."""
        return next((node for node in self.nodes if isinstance(node.layer, Unknown)), None)

    def users(self, index: int) -> list[int]:
        """The nodes that take the output of this one."""
        return [i for i, node in enumerate(self.nodes) if index in node.parents]


def trace_of(run: Callable[[Tensor], Tensor], x: Points, module: nn.Module | None = None) -> Trace:
    """Return what `run`, which returns logits, does to the first two samples of `x` (to the first one twice if it is
    alone); it sees a copy of them. With its `module` the nodes can say which layer they are.

    Errors of `run` are raised.
    """
    few = x[:2] if len(x) > 1 else x[:1].expand(2, *x.shape[1:])
    samples = few.detach().clone().requires_grad_(torch.is_grad_enabled() and x.is_floating_point())
    watch = _Watch(samples)
    version = samples._version
    with watch.modules_of(module), watch:
        logits = run(samples)
    output = watch.node_of(logits) if isinstance(logits, Tensor) else None
    return Trace(tuple(watch.nodes), output, logits, samples._version != version)


class _UnknownLayer(Exception):
    """A function is none of the layers; the argument says why."""


@dataclass(frozen=True)
class _Ref:
    """Stands for a tensor that depends on the input, among the arguments of a function."""

    node: int
    shape: torch.Size


class _Watch(TorchFunctionMode):
    """Records what happens to the samples."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.batch, self.dtype = len(x), x.dtype
        self.nodes = [Node(None, (), x.shape[1:], is_differentiable=x.requires_grad)]
        # The tensors so far, with the version at which each was the output of its node.
        self._outputs: list[tuple[Tensor, int, int]] = [(x, 0, x._version)]
        self._running: list[tuple[str, nn.Module]] = []  # modules, the outermost first
        self._blind: str | None = None  # why what follows may be different for other samples
        self.shape = x.shape[1:]  # of the output of the function being recorded, for one sample

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", str(func))
        if name in _QUERIES and not isinstance(out := func(*args, **kwargs), Tensor):
            return out
        refs, named = map_leaves(args, self._ref), map_leaves(kwargs, self._ref)  # before it changes one in place
        out = func(*args, **kwargs)
        parents = tuple(value.node for value in leaves((refs, named)) if isinstance(value, _Ref))
        if not parents:
            return out
        if isinstance(out, Tensor):
            self._record(name, refs, named, parents, out)
        elif self._blind is None:
            several = any(isinstance(value, Tensor) for value in leaves(out))
            self._blind = f"{name}() {'returns more than a tensor' if several else 'looks at values'}"
            self._unknown(self._blind, parents)
        return out

    def _record(self, name: str, refs: Any, named: Any, parents: tuple[int, ...], out: Tensor) -> None:
        try:
            layer, sources = self._layer(name, refs, named, parents, out)
        except _UnknownLayer as error:
            layer, sources = Unknown(str(error)), parents
        if layer is None and (out.requires_grad or not self.nodes[sources[0]].is_differentiable):
            node = sources[0]
        else:
            layer = Reshape() if layer is None else layer
            self.nodes.append(Node(layer, sources, self.shape, self._where(), out.requires_grad))
            node = len(self.nodes) - 1
        self._outputs.append((out, node, out._version))

    def _layer(self, name: str, refs: Any, named: Any, parents: tuple[int, ...], out: Tensor) -> Any:
        """The layer that a call is, and its parents; the layer is None if nothing happens."""
        if self._blind is not None:
            raise _UnknownLayer(self._blind)
        spoilt = next((layer for node in parents if isinstance(layer := self.nodes[node].layer, Unknown)), None)
        if spoilt is not None:
            raise _UnknownLayer(spoilt.reason)
        self.shape = out.shape[1:]
        translate = _FUNCTIONS.get(name)
        if translate is None:
            raise _UnknownLayer(f"{name}() is none of the functions that are known")
        if out.shape == (1, self.batch, *out.shape[2:]) and name == "__getitem__" and refs[1:] == (None,):
            self.shape = out.shape[2:]  # the logits get a dimension of members
            return None, parents
        _need(out.ndim > 0 and len(out) == self.batch, f"{name}() mixes samples")
        _need(out.dtype == self.dtype, f"{name}() changes the precision to {out.dtype}")
        try:
            layer, *sources = translate(self, *refs, **named)
        except TypeError as error:
            raise _UnknownLayer(f"{name}() is called in a way that is not known ({error})") from error
        return layer, tuple(source.node for source in sources)

    def _unknown(self, reason: str, parents: tuple[int, ...]) -> None:
        self.nodes.append(Node(Unknown(reason), parents, torch.Size(), self._where()))

    def _ref(self, value: Any) -> Any:
        node = self.node_of(value) if isinstance(value, Tensor) else None
        return value if node is None else _Ref(node, value.shape[1:])

    def node_of(self, tensor: Tensor) -> int | None:
        """Return the node whose output a tensor is, if any."""
        found = next((item for item in reversed(self._outputs) if item[0] is tensor), None)
        if found is None:
            return None
        if tensor._version != found[2]:
            self._unknown("it uses a tensor that was changed in place through a view of it", (found[1],))
            return len(self.nodes) - 1
        return found[1]

    def _where(self) -> str:
        name, module = self._running[-1] if self._running else ("", None)
        return f"a {type(module).__name__} layer at {name!r}" if name else "this network"

    @contextmanager
    def modules_of(self, module: nn.Module | None) -> Iterator[None]:
        """Track meanwhile which submodules are running."""
        handles: list[Any] = []
        for name, submodule in module.named_modules() if module is not None else ():
            enter = partial(self._enter, name)
            handles.append(submodule.register_forward_pre_hook(enter))
            handles.append(submodule.register_forward_hook(lambda *_: self._running.pop() and None))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, module: nn.Module, _: Any) -> None:
        self._running.append((name, module))

    def constant(self, value: Any) -> Any:
        """Return a number, or a tensor that is the same for all samples, as one to be broadcast over a sample."""
        if not isinstance(value, Tensor):
            return value
        value = value if value.is_floating_point() else value.to(self.dtype)
        if value.ndim > len(self.shape):
            _need(len(value) == 1, "it uses other constants for other samples")
            return value[0]
        return value


def _need(condition: bool, reason: str) -> None:
    if not condition:
        raise _UnknownLayer(reason)


# Functions of PyTorch as layers. Each takes the function's own arguments and returns the layer and its parents.


def _linear(watch: _Watch, input: _Ref, weight: Tensor, bias: Tensor | None = None) -> Any:
    return Linear(weight, bias), input


def _conv2d(watch: _Watch, *args: Any, **kwargs: Any) -> Any:
    input, weight, bias, stride, padding, dilation, groups = Conv2d(*args, **kwargs)
    stride, dilation = pair(stride), pair(dilation)
    assert stride is not None and dilation is not None
    if isinstance(padding, str):
        extents = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        symmetric = padding == "valid" or all(extent % 2 == 0 for extent in extents)
        _need(symmetric, "its padding differs from side to side")
        padding = tuple(extent // 2 if padding == "same" else 0 for extent in extents)
    margins = pair(padding)
    assert margins is not None
    _need(len(input.shape) == 3, "it is a convolution of a single image")
    return Convolution(weight, bias, stride, margins, dilation, groups), input


def _relu(watch: _Watch, input: _Ref, inplace: bool = False) -> Any:
    return Rectifier(), input


def _leaky_relu(watch: _Watch, *args: Any, **kwargs: Any) -> Any:
    call = LeakyReLU(*args, **kwargs)
    return Rectifier(call.negative_slope), call.input


def _max_pool2d(watch: _Watch, *args: Any, **kwargs: Any) -> Any:
    call = MaxPool2d(*args, **kwargs)
    kernel, padding, dilation = pair(call.kernel_size), pair(call.padding), pair(call.dilation)
    stride = pair(call.stride or call.kernel_size)
    assert kernel is not None and padding is not None and dilation is not None and stride is not None
    return MaxPool(kernel, stride, padding, dilation), call.input


def _avg_pool2d(watch: _Watch, *args: Any, **kwargs: Any) -> Any:
    call = AvgPool2d(*args, **kwargs)
    kernel = pair(call.kernel_size)
    assert kernel is not None
    _need(call.divisor_override is None, "its divisor is overridden")
    options = tuple((name, value) for name, value in call._asdict().items() if name != "input")
    return Average(nn.functional.avg_pool2d, options, kernel[0] * kernel[1]), call.input


def _adaptive_avg_pool2d(watch: _Watch, input: _Ref, output_size: Any) -> Any:
    options = (("output_size", output_size),)
    return Average(nn.functional.adaptive_avg_pool2d, options, input.shape[1:].numel()), input


def _mean(watch: _Watch, input: _Ref, dim: Any = None, keepdim: bool = False) -> Any:
    dims = (dim,) if isinstance(dim, int) else dim
    _need(bool(dims) and all(d % (len(input.shape) + 1) for d in dims), "mean() mixes samples")
    terms = input.shape.numel() // max(watch.shape.numel(), 1)
    return Average(torch.mean, (("dim", dim), ("keepdim", keepdim)), terms), input


def _batch_norm(watch: _Watch, *args: Any, **kwargs: Any) -> Any:
    norm = BatchNorm(*args, **kwargs)
    _need(norm.uses_running_statistics, "samples depend on each other in a batch-norm without running statistics")
    assert norm.running_mean is not None and norm.running_var is not None
    return RunningNorm(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps), norm.input


def _dropout(watch: _Watch, *args: Any, **kwargs: Any) -> Any:
    dropout = Dropout(*args, **kwargs)
    _need(not dropout.training, "it is random: its dropout stays on in eval mode")
    return None, dropout.input


def _identity(watch: _Watch, input: _Ref, *args: Any, **kwargs: Any) -> Any:
    _need(input.shape == watch.shape, "it changes the shape")
    return None, input


def _reshape(watch: _Watch, input: _Ref, *args: Any, **kwargs: Any) -> Any:
    _need(input.shape.numel() == watch.shape.numel(), "it mixes samples")
    return Reshape(), input


def _item(watch: _Watch, input: _Ref, index: Any) -> Any:
    raise _UnknownLayer("__getitem__() takes a part of a tensor")


def _combination(signs: tuple[float, float]) -> Callable[..., Any]:
    """`± a ± b`, where one of them may be a constant."""

    def combine(watch: _Watch, input: Any, other: Any, *, alpha: float = 1) -> Any:
        _need(alpha == 1, "it adds a multiple of a tensor")
        if isinstance(input, _Ref) and isinstance(other, _Ref):
            _need(input.shape == other.shape, "it adds tensors of different shapes")
            return Sum(signs), input, other
        terms = list(zip((input, other), signs, strict=True))
        (ref, sign), (constant, constant_sign) = terms if isinstance(input, _Ref) else terms[::-1]
        _need(ref.shape == watch.shape, "it adds tensors of different shapes")
        return Shift(watch.constant(constant), (sign, constant_sign)), ref

    return combine


def _product(watch: _Watch, input: Any, other: Any) -> Any:
    if isinstance(input, _Ref) and isinstance(other, _Ref):
        _need(len(input.shape) == len(other.shape), "it multiplies tensors of different shapes")
        return Product(), input, other
    ref, constant = (input, other) if isinstance(input, _Ref) else (other, input)
    _need(ref.shape == watch.shape, "it multiplies tensors of different shapes")
    return Scale(watch.constant(constant)), ref


def _quotient(watch: _Watch, input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    _need(isinstance(input, _Ref) and not isinstance(other, _Ref), "it divides by what depends on the input")
    _need(rounding_mode is None, "it rounds")
    _need(input.shape == watch.shape, "it divides tensors of different shapes")
    return Scale(watch.constant(other), divides=True), input


def _cat(watch: _Watch, tensors: Any, dim: int = 0) -> Any:
    _need(all(isinstance(tensor, _Ref) for tensor in tensors), "cat() joins the input's and other tensors")
    dim = dim % (len(watch.shape) + 1) - 1
    _need(dim >= 0, "cat() joins samples")
    return Concatenation(dim), *tensors


def _pointwise(name: str) -> Callable[..., Any]:
    """A function of each number, never in place."""

    def translate(watch: _Watch, input: _Ref, *options: Any, **named: Any) -> Any:
        function = getattr(nn.functional, name, None) or getattr(torch, name)
        named.pop("inplace", None)
        options = tuple(option for option in options if option is not True)  # whether to work in place
        scalars = not any(isinstance(value, Tensor | _Ref) for value in (*options, *named.values()))
        _need(scalars, f"the arguments of {name}() are tensors")
        return Pointwise(name, lambda z: function(z, *options, **named)), input

    return translate


def _negation(watch: _Watch, input: _Ref) -> Any:
    return Negation(), input


_POINTWISE = (
    *("relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh", "softplus"),
    *("hardtanh", "hardswish", "hardsigmoid", "clamp", "clamp_min", "clamp_max"),
)
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "linear": _linear,
    "conv2d": _conv2d,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "mean": _mean,
    "cat": _cat,
    "batch_norm": _batch_norm,
    "neg": _negation,
    "__getitem__": _item,
    **dict.fromkeys(("relu", "relu_"), _relu),
    **dict.fromkeys(("leaky_relu", "leaky_relu_"), _leaky_relu),
    **{name: _pointwise(name.removesuffix("_")) for stem in _POINTWISE for name in (stem, f"{stem}_")},
    **dict.fromkeys(("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"), _dropout),
    **dict.fromkeys(("float", "contiguous", "clone", "detach", "to"), _identity),
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze", "unsqueeze", "unflatten"), _reshape),
    **dict.fromkeys(("add", "add_", "__add__", "__radd__", "__iadd__"), _combination((1.0, 1.0))),
    **dict.fromkeys(("sub", "sub_", "__sub__", "__isub__"), _combination((1.0, -1.0))),
    **dict.fromkeys(("rsub", "__rsub__"), _combination((-1.0, 1.0))),
    **dict.fromkeys(("mul", "mul_", "__mul__", "__rmul__", "__imul__"), _product),
    **dict.fromkeys(("div", "div_", "__truediv__", "__itruediv__"), _quotient),
}
_QUERIES = {
    *("__get__", "__len__", "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "type"),
    *("is_contiguous", "is_floating_point", "is_complex", "get_device", "element_size", "__hash__"),
}
"""Functions that return properties of a tensor, not its values."""

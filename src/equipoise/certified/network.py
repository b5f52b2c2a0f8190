"""A network as a list of layers that bounds can pass through.

The network is run on two samples in eval mode, and every function of PyTorch that touches what comes from the input is
noted down: what its own code looks like does not matter, residual additions included. A function that bounds cannot
pass is refused, with the name of the layer that calls it; so is one that looks at values, such as `if x.sum() > 0`.
"""

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
from equipoise.kernels.torch_calls import AvgPool2d, BatchNorm, Conv2d, Dropout, MaxPool2d
from equipoise.models import module_mode

KNOWN = "linear, conv2d, relu, max and average pooling, flatten, eval-mode batch-norm and dropout, + - * / and mean"


_NUMBERS = 2**22  # of the values of a layer on unit vectors that are computed at once

SMALLEST_UNIT = 2.0**-48
"""The rounding that a network in float64 is taken to have, to leave room for that of its bounds."""


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
    """The nodes on the way from the input."""
    values: Float[Tensor, "units few"]
    """The coefficients, 0 where a unit has fewer than others."""
    index: Int[Tensor, "units few"]
    """Of which coordinates of the input."""


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
        """The most numbers that one layer has for a sample."""
        return max(node.shape.numel() for node in self.nodes)

    @property
    def total(self) -> int:
        """How many numbers all layers have for a sample."""
        return sum(node.shape.numel() for node in self.nodes)

    @cached_property
    def separate(self) -> frozenset[int]:
        """Nodes whose coordinates vary independently of each other as those of the input do."""
        found = {0}
        for i, node in enumerate(self.nodes):
            if isinstance(node.layer, Affine) and node.layer.separate and node.parents[0] in found:
                found.add(i)
        return frozenset(found)

    @cached_property
    def decided(self) -> frozenset[int]:
        """Affine nodes and sums whose sign a ReLU looks at, or whose values a maximum compares."""
        return frozenset(
            i for i, node in enumerate(self.nodes) if isinstance(node.layer, ReLU | Max) for i in self._sources(i)
        )

    @cached_property
    def compared(self) -> frozenset[int]:
        """Those whose values a maximum compares, directly or behind a ReLU."""
        return frozenset(
            i for i, node in enumerate(self.nodes) if isinstance(node.layer, Max) for i in self._sources(i)
        )

    @cached_property
    def first(self) -> Mapping[int, "Slopes"]:
        """Those of the decided nodes that affine layers alone separate from the input, as functions of it."""
        chains: dict[int, tuple[int, ...]] = {0: ()}
        for i, node in enumerate(self.nodes):
            if isinstance(node.layer, Affine) and node.parents[0] in chains:
                chains[i] = (*chains[node.parents[0]], i)
        return {i: self._slopes(chains[i]) for i in self.decided if i in chains}

    def _slopes(self, chain: tuple[int, ...]) -> "Slopes":
        """The coefficients of affine layers after each other: their values on unit vectors, some at a time."""
        layers, before, after = [self.nodes[i].layer for i in chain], self.nodes[0].shape, self.nodes[chain[-1]].shape
        found = []
        for some in torch.arange(before.numel(), device=self.device).split(max(1, _NUMBERS // after.numel())):
            z = F.one_hot(some, before.numel()).double().reshape(-1, *before)
            for layer in layers:
                assert isinstance(layer, Affine)
                z = layer.linear(z)
            row, unit = z.flatten(1).nonzero(as_tuple=True)
            found.append((unit, some[row], z.flatten(1)[row, unit]))
        unit, coordinate, value = (torch.cat(parts) for parts in zip(*found, strict=True))
        order = unit.argsort(stable=True)
        unit, count = unit[order], torch.bincount(unit, minlength=after.numel())
        place = torch.arange(len(unit), device=unit.device) - (count.cumsum(0) - count)[unit]
        values = value.new_zeros(after.numel(), max(int(count.amax()), 1))
        index = torch.zeros_like(values, dtype=torch.int64)
        values[unit, place], index[unit, place] = value[order], coordinate[order]
        return Slopes(chain, values, index)

    def _sources(self, i: int) -> Iterator[int]:
        """The nearest nodes before node i that compute something, apart from functions bounded by lines."""
        for parent in self.nodes[i].parents:
            layer = self.nodes[parent].layer
            if isinstance(layer, ReLU | Max) or (isinstance(layer, Affine) and layer.roundings == 0):
                yield from self._sources(parent)
            elif layer is not None:
                yield parent


@torch.no_grad()
def translate(module: nn.Module, x: Points) -> Network:
    """The layers of a network that takes inputs such as `x`, in eval mode; its parameters are copied to float64.

    Raises `EquipoiseError` for what cannot be bounded: another kind of layer, randomness, samples that depend on each
    other, a tensor that is changed in place while it is still needed.
    """
    few = x[:1].expand(2, *x.shape[1:]).clone()
    tape = _Tape(few)
    with module_mode(module, "eval"), torch.autocast(x.device.type, enabled=False), tape.watching(module), tape:
        output: Any = module(few)
    logits: Any = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    tape.require(id(logits) in tape.known, "its output is not computed from its input by functions of PyTorch")
    last = tape.look_up(logits)
    return Network(tuple(tape.nodes[: last + 1]), max(torch.finfo(x.dtype).eps / 2, SMALLEST_UNIT), x.device)


@dataclass(frozen=True)
class _Ref:
    """A tensor that depends on the input, as a function of PyTorch is told of it."""

    node: int
    shape: torch.Size


@dataclass(frozen=True)
class _Call:
    """One call of a function of PyTorch."""

    tape: "_Tape"
    out: torch.Size

    def add(self, layer: Layer, *parents: int, shape: torch.Size | None = None) -> int:
        self.tape.nodes.append(Node(layer, parents, self.out if shape is None else shape))
        return len(self.tape.nodes) - 1

    def require(self, condition: bool, reason: str) -> None:
        self.tape.require(condition, reason)

    def constant(self, value: Any) -> Tensor:
        """A number, or a tensor that is the same for all samples, as one to be broadcast over a sample."""
        value = torch.as_tensor(value, dtype=torch.float64, device=self.tape.device)
        if value.ndim > len(self.out):
            self.require(len(value) == 1, "it uses other constants for other samples")
            value = value[0]
        return value

    @property
    def zero(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64, device=self.tape.device)


class _Tape(TorchFunctionMode):
    """Notes down what happens to the samples."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.batch, self.device, self.dtype = len(x), x.device, x.dtype
        self.nodes = [Node(None, (), x.shape[1:])]
        # Tensors by identity, kept alive, with the version at which they were the output of that node.
        self.known: dict[int, tuple[Tensor, int, int]] = {id(x): (x, 0, x._version)}
        self.modules: list[tuple[str, nn.Module]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", str(func))
        refs = [self._ref(value) for value in args]
        named = {key: self._ref(value) for key, value in kwargs.items()}
        out = func(*args, **kwargs)
        if not any(_depends(value) for value in (refs, named)):
            return out
        if not isinstance(out, Tensor) and name in _ASKS:
            return out
        translator = _FUNCTIONS.get(name)
        self.require(translator is not None, f"{name}() is none of the functions that bounds can pass: {KNOWN}")
        assert translator is not None
        self.require(isinstance(out, Tensor), f"{name}() returns more than a tensor")
        self.require(out.ndim > 0 and len(out) == self.batch, f"{name}() mixes samples")
        self.require(out.dtype == self.dtype, f"{name}() changes the precision to {out.dtype}")
        try:
            node = translator(_Call(self, out.shape[1:]), *refs, **named)
        except TypeError as error:
            self.require(False, f"{name}() is called in a way that is not known ({error})")
            raise
        self.known[id(out)] = (out, node, out._version)
        return out

    def _ref(self, value: Any) -> Any:
        if isinstance(value, Tensor) and id(value) in self.known:
            return _Ref(self.look_up(value), value.shape[1:])
        return [self._ref(one) for one in value] if isinstance(value, list | tuple) else value

    def look_up(self, tensor: Tensor) -> int:
        """The node whose output a tensor is."""
        _, node, version = self.known[id(tensor)]
        self.require(tensor._version == version, "it uses a tensor that was changed in place through a view of it")
        return node

    def require(self, condition: bool, reason: str) -> None:
        if condition:
            return
        name, module = self.modules[-1] if self.modules else ("", None)
        where = f"a {type(module).__name__} layer at {name!r}" if name else "this network"
        raise EquipoiseError(f"cannot bound {where}: {reason}.")

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Know meanwhile which part of `module` is running."""
        handles: list[Any] = []
        for name, part in module.named_modules():
            handles.append(part.register_forward_pre_hook(lambda m, _, name=name: self.modules.append((name, m))))
            handles.append(part.register_forward_hook(lambda *_: self.modules.pop() and None))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _depends(value: Any) -> bool:
    if isinstance(value, list | tuple | dict):
        return any(_depends(one) for one in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, _Ref)


def _linear(call: _Call, input: _Ref, weight: Tensor, bias: Tensor | None = None) -> int:
    return call.add(layers.linear(weight, bias), input.node)


def _conv2d(call: _Call, *args: Any, **kwargs: Any) -> int:
    input, weight, bias, stride, padding, dilation, groups = Conv2d(*args, **kwargs)
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(layers.pair(dilation), weight.shape[2:], strict=True)]
        call.require(padding == "valid" or all(r % 2 == 0 for r in reach), "its padding differs from side to side")
        padding = tuple(r // 2 if padding == "same" else 0 for r in reach)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return call.add(layers.convolution(input.shape, weight, bias, options), input.node)


def _relu(call: _Call, input: _Ref, inplace: bool = False) -> int:
    return call.add(ReLU(), input.node)


def _max_pool2d(call: _Call, *args: Any, **kwargs: Any) -> int:
    input, kernel_size, stride, padding, dilation, *_ = MaxPool2d(*args, **kwargs)
    geometry = {"kernel_size": kernel_size, "stride": stride or kernel_size, "dilation": dilation, "padding": padding}
    gather, maximum = layers.windows(input.shape, call.out, geometry, call.zero)
    before = call.tape.nodes[input.node]
    # The maximum of ReLUs is the ReLU of the maximum, which needs fewer lines.
    source = before.parents[0] if isinstance(before.layer, ReLU) else input.node
    gathered = call.add(gather, source, shape=torch.Size((*call.out, maximum.real.shape[-1])))
    largest = call.add(maximum, gathered)
    return call.add(ReLU(), largest) if source != input.node else largest


def _avg_pool2d(call: _Call, *args: Any, **kwargs: Any) -> int:
    input, kernel_size, *others, divisor = AvgPool2d(*args, **kwargs)
    call.require(divisor is None, "its divisor is overridden")
    height, width = layers.pair(kernel_size)

    def mean(z: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(z, kernel_size, *others)

    return call.add(layers.average(mean, input.shape, height * width, call.zero), input.node)


def _adaptive_avg_pool2d(call: _Call, input: _Ref, output_size: Any) -> int:
    def mean(z: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(z, output_size)

    return call.add(layers.average(mean, input.shape, input.shape[1:].numel(), call.zero), input.node)


def _mean(call: _Call, input: _Ref, dim: Any = None, keepdim: bool = False) -> int:
    def mean(z: Tensor) -> Tensor:
        return z.mean(dim, keepdim)

    terms = input.shape.numel() // max(call.out.numel(), 1)
    return call.add(layers.average(mean, input.shape, terms, call.zero), input.node)


def _batch_norm(call: _Call, *args: Any, **kwargs: Any) -> int:
    norm = BatchNorm(*args, **kwargs)
    call.require(norm.stands, "samples depend on each other in a batch-norm without running statistics")
    input, mean, variance, weight, bias, *_ = norm
    assert mean is not None and variance is not None

    def per_channel(values: Tensor) -> Tensor:
        return values.double().reshape(-1, *[1] * (len(call.out) - 1))

    scale = (variance.double() + norm.eps).rsqrt()
    scale = per_channel(scale if weight is None else scale * weight.double())
    centred = call.add(layers.scaling(torch.ones_like(scale), -per_channel(mean), 8), input.node)
    return call.add(layers.scaling(scale, call.zero if bias is None else per_channel(bias), 2), centred)


def _dropout(call: _Call, *args: Any, **kwargs: Any) -> int:
    dropout = Dropout(*args, **kwargs)
    call.require(not dropout.training, "it is random: its dropout stays on in eval mode")
    return dropout.input.node


def _same(call: _Call, input: _Ref, *arguments: Any, **options: Any) -> int:
    call.require(input.shape == call.out, "it changes the shape")
    return input.node


def _reshape(call: _Call, input: _Ref, *arguments: Any, **options: Any) -> int:
    call.require(input.shape.numel() == call.out.numel(), "it mixes samples")
    return call.add(layers.reshaping(input.shape, call.out, call.zero), input.node)


def _combination(signs: tuple[float, float]) -> Callable[..., int]:
    """`± a ± b`, where one of them may be a constant."""

    def translate(call: _Call, input: Any, other: Any, *, alpha: float = 1) -> int:
        call.require(alpha == 1, "it adds a multiple of a tensor")
        if isinstance(input, _Ref) and isinstance(other, _Ref):
            call.require(input.shape == other.shape, "it adds tensors of different shapes")
            return call.add(Sum(signs), input.node, other.node)
        (ref, sign), (constant, times) = (input, signs[0]), (other, signs[1])
        if isinstance(other, _Ref):
            (ref, sign), (constant, times) = (constant, times), (ref, sign)
        call.require(ref.shape == call.out, "it adds tensors of different shapes")
        scale = torch.full_like(call.zero, sign)
        return call.add(layers.scaling(scale, times * call.constant(constant), 1), ref.node)

    return translate


def _times(call: _Call, input: Any, other: Any) -> int:
    call.require(not (isinstance(input, _Ref) and isinstance(other, _Ref)), "it multiplies tensors with each other")
    ref, constant = (input, other) if isinstance(input, _Ref) else (other, input)
    call.require(ref.shape == call.out, "it multiplies tensors of different shapes")
    return call.add(layers.scaling(call.constant(constant), call.zero, 1), ref.node)


def _divided(call: _Call, input: Any, other: Any, *, rounding_mode: str | None = None) -> int:
    call.require(isinstance(input, _Ref) and not isinstance(other, _Ref), "it divides by what depends on the input")
    call.require(rounding_mode is None, "it rounds")
    call.require(input.shape == call.out, "it divides tensors of different shapes")
    return call.add(layers.scaling(1 / call.constant(other), call.zero, 2), input.node)


def _negated(call: _Call, input: _Ref) -> int:
    return call.add(layers.scaling(-torch.ones_like(call.zero), call.zero, 0), input.node)


_PLUS, _MINUS, _FROM = _combination((1.0, 1.0)), _combination((1.0, -1.0)), _combination((-1.0, 1.0))
_FUNCTIONS: dict[str, Callable[..., int]] = {
    "linear": _linear,
    "conv2d": _conv2d,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "mean": _mean,
    "batch_norm": _batch_norm,
    "div": _divided,
    "div_": _divided,
    "neg": _negated,
    **dict.fromkeys(("relu", "relu_"), _relu),
    **dict.fromkeys(("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"), _dropout),
    **dict.fromkeys(("float", "contiguous", "clone", "detach", "to"), _same),
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze", "unsqueeze", "unflatten"), _reshape),
    **dict.fromkeys(("add", "add_"), _PLUS),
    **dict.fromkeys(("sub", "sub_"), _MINUS),
    **dict.fromkeys(("rsub", "__rsub__"), _FROM),
    **dict.fromkeys(("mul", "mul_"), _times),
}
"""How each function of PyTorch becomes layers; called with its own arguments, it returns the node of its output."""

_ASKS = frozenset(
    {
        "__get__",
        "size",
        "dim",
        "ndimension",
        "numel",
        "nelement",
        "__len__",
        "stride",
        "is_contiguous",
        "is_floating_point",
        "is_complex",
        "get_device",
        "element_size",
        "type",
        "storage_offset",
    }
)
"""What does not look at values."""

"""A network as a list of layers that bounds can pass through, made from its trace (`equipoise.kernels.trace`).

A layer that bounds cannot pass is refused by name; so is a function that looks at values, such as `if x.sum() > 0`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.bounds import layers
from equipoise.bounds.curves import Curve, curve
from equipoise.bounds.layers import Affine, Max, ReLU, Sum
from equipoise.core.errors import EquipoiseError, require
from equipoise.core.types import Points, Predictive
from equipoise.kernels import layers as traced
from equipoise.kernels.trace import Node as TracedNode
from equipoise.kernels.trace import trace_of
from equipoise.models import Single, module_mode

Layer = Affine | Sum | ReLU | Max | Curve

SUPPORTED = (
    "linear, conv2d, relu, leaky_relu, sigmoid, tanh, gelu, silu, mish, elu, clamp and their like, max and average "
    "pooling, flatten, eval-mode batch-norm and dropout, + - * / and mean"
)
"""What bounds can pass."""
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
    """The relative size of one rounding in the precision in which the network runs: 2⁻²⁴ in float32. With 0 roundings
    are neglected: the bounds are those of exact arithmetic, up to their own."""
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
        """Affine nodes and sums that a ReLU, another function or a maximum is applied to."""
        return self._inputs_of(ReLU | Curve | Max)

    @cached_property
    def curved(self) -> frozenset[int]:
        """Affine nodes and sums that a function is applied to which is linear nowhere."""
        return self._inputs_of(Curve)

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
            if isinstance(layer, ReLU | Curve | Max) or (isinstance(layer, Affine) and layer.roundings == 0):
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


def network_of(predictive: Predictive) -> nn.Module:
    """Return the network that a predictive is. Raises `EquipoiseError` unless it is one network with logits."""
    if not isinstance(predictive, Single):
        raise EquipoiseError(
            f"cannot bound a {type(predictive).__name__}: certificates are for one network that returns logits."
        )
    require(predictive.outputs == "logits", "cannot bound probabilities: certificates need a network's logits.")
    return predictive.module


@torch.no_grad()
def translate(module: nn.Module, x: Points) -> Network:
    """Return the layers of a network that takes inputs such as `x`, in eval mode; its parameters are copied to float64.

    Raises `EquipoiseError` as `translate_live`.
    """
    return _translated(module, x, torch.float64, max(torch.finfo(x.dtype).eps / 2, SMALLEST_UNIT))


def translate_live(module: nn.Module, x: Points) -> Network:
    """Return the layers of a network in eval mode, with the network's own parameters and their gradients: bounds
    through them can be descended, and neglect roundings.

    Raises `EquipoiseError` for what cannot be bounded: another kind of layer, randomness, samples that depend on each
    other, a tensor that is changed in place while it is still needed.
    """
    return _translated(module, x, x.dtype, 0.0)


def _translated(module: nn.Module, x: Points, dtype: torch.dtype, unit: float) -> Network:
    def logits(samples: Points) -> Any:
        output: Any = module(samples)
        return output if isinstance(output, Tensor) else getattr(output, "logits", None)

    with module_mode(module, "eval"), torch.autocast(x.device.type, enabled=False):
        trace = trace_of(logits, x[:1], module)
    translation = _Translation(unit, torch.zeros((), dtype=dtype, device=x.device))
    for node in trace.nodes:
        translation.append(node)
    if trace.output is None:
        raise EquipoiseError(
            "cannot bound this network: its output is not computed from its input by functions of PyTorch."
        )
    return Network(tuple(translation.nodes[: translation.last[trace.output] + 1]), translation.unit, x.device)


def _refusal(node: TracedNode, reason: str) -> EquipoiseError:
    return EquipoiseError(f"cannot bound {node.where}: {reason}; bounds can pass {SUPPORTED}.")


class _Translation:
    """The layers so far."""

    def __init__(self, unit: float, zero: Tensor) -> None:
        self.nodes: list[Node] = []
        self.unit, self._zero = unit, zero
        self.last: list[int] = []  # of each node of the trace the last of its layers

    def append(self, node: TracedNode) -> None:
        """Translate the next node of the trace."""
        parents = tuple(self.last[parent] for parent in node.parents)
        if isinstance(node.layer, traced.MaxPool):
            self._max_pool(node.layer, parents[0], node.shape)
        else:
            for layer in [None] if node.layer is None else self._layers(node, parents):
                self.nodes.append(Node(layer, parents, node.shape))
                parents = (len(self.nodes) - 1,)
        self.last.append(len(self.nodes) - 1)

    def _layers(self, node: TracedNode, parents: tuple[int, ...]) -> list[Layer]:
        """One or two layers, the second of which takes the output of the first."""
        layer, before = node.layer, self.nodes[parents[0]].shape
        match layer:
            case traced.Linear():
                return [layers.linear(layer.weight, layer.bias, self._zero.dtype)]
            case traced.Convolution():
                return [layers.convolution(before, layer, self._zero.dtype)]
            case traced.RunningNorm():
                return self._norm(layer, len(node.shape))
            case traced.Rectifier():
                error = 4 * self.unit if layer.slope else 0.0  # twice that of two roundings: of the slope, of a product
                if not 0 <= layer.slope * (1 + error) <= 1:
                    raise _refusal(node, f"its slope of {layer.slope:g} for negative numbers is not in [0, 1)")
                return [ReLU(layer.slope, error)]
            case traced.Pointwise() if (function := curve(layer, self.unit)) is not None:
                return [function]
            case traced.Average():
                return [layers.average(layer.apply, before, layer.terms, self._zero)]
            case traced.Reshape():
                return [layers.reshaping(before, node.shape, self._zero)]
            case traced.Sum():
                return [layers.Sum(layer.signs)]
            case traced.Shift():
                sign, constant = torch.full_like(self._zero, layer.signs[0]), self._constant(layer.constant)
                return [layers.scaling(sign, layer.signs[1] * constant, 1)]
            case traced.Scale():
                factor = self._constant(layer.factor)
                return [layers.scaling(1 / factor if layer.divides else factor, self._zero, 1 + layer.divides)]
            case traced.Negation():
                return [layers.scaling(-torch.ones_like(self._zero), self._zero, 0)]
            case traced.Product():
                raise _refusal(node, "it multiplies tensors with each other")
            case traced.Unknown():
                raise _refusal(node, layer.reason)
            case _:
                name = layer.name if isinstance(layer, traced.Function) else "cat"
                raise _refusal(node, f"{name}() is none of the functions that are bounded")

    def _constant(self, value: Any) -> Tensor:
        return torch.as_tensor(value, dtype=self._zero.dtype, device=self._zero.device)

    def _norm(self, norm: traced.RunningNorm, dimensions: int) -> list[Layer]:
        def per_channel(values: Tensor) -> Tensor:
            return values.to(self._zero.dtype).reshape(-1, *[1] * (dimensions - 1))

        scale = per_channel(norm.variance).add(norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * per_channel(norm.weight)
        shift = self._zero if norm.bias is None else per_channel(norm.bias)
        return [
            layers.scaling(torch.ones_like(scale), -per_channel(norm.mean), 8),
            layers.scaling(scale, shift, 2),
        ]

    def _max_pool(self, pool: traced.MaxPool, parent: int, shape: torch.Size) -> None:
        """Append the windows and their maxima. The maximum of ReLUs is the ReLU of the maximum, which needs fewer
        lines.
        """
        before = self.nodes[parent]
        rectifier, source = (before.layer, before.parents[0]) if isinstance(before.layer, ReLU) else (None, parent)
        gather, maximum = layers.windows(before.shape, shape, pool, self._zero)
        self.nodes.append(Node(gather, (source,), torch.Size((*shape, maximum.is_real.shape[-1]))))
        for layer in (maximum, rectifier):
            if layer is not None:
                self.nodes.append(Node(layer, (len(self.nodes) - 1,), shape))

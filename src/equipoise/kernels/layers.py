"""The layers of a traced network (`equipoise.kernels.trace`): what each computes, with its weights."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from equipoise.kernels.torch_calls import Pair


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
class Function(Layer):
    """A function of PyTorch of one tensor."""

    name: str
    function: Callable[..., Tensor] = field(repr=False)
    arguments: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...]

    def apply(self, x: Tensor) -> Tensor:
        """Return the function of a batch."""
        return self.function(x, *self.arguments, **dict(self.options))


@dataclass(frozen=True)
class Pointwise(Function):
    """Another function of each number."""


@dataclass(frozen=True)
class Samplewise(Function):
    """Another function of each sample."""


@dataclass(frozen=True)
class MaxPool(Layer):
    """The maximum over windows."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    is_ceil: bool = False
    """Whether there is one more window than fits."""


@dataclass(frozen=True)
class Average(Function):
    """Means of the input over windows or dimensions."""

    terms: int
    """Of how many numbers each is, at most."""
    window: tuple[Pair, Pair] | None = None
    """Kernel and stride of a pooling without padding."""


@dataclass(frozen=True)
class Reshape(Layer):
    """The same numbers in another shape."""

    shape: torch.Size
    """That of a sample's."""


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


@dataclass(frozen=True)
class Members(Layer):
    """The outputs of several nodes as the logits of the members of an ensemble."""


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


def tensors_of(layer: Layer | None) -> list[Tensor]:
    """Return the weights and constants of a layer that are tensors."""
    values = () if layer is None else vars(layer).values()
    return [value for value in values if isinstance(value, Tensor)]


def output_of(layer: Layer | None, *inputs: Tensor) -> Tensor:
    """Return a layer's output for a batch, from the outputs of its parents."""
    x = inputs[0]
    match layer:
        case Convolution():
            return torch.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        case Linear():
            return F.linear(x, layer.weight, layer.bias)
        case RunningNorm():
            return F.batch_norm(x, layer.mean, layer.variance, layer.weight, layer.bias, eps=layer.eps)
        case Rectifier():
            return F.leaky_relu(x, layer.slope) if layer.slope else torch.relu(x)
        case Function():
            return layer.apply(x)
        case MaxPool():
            return F.max_pool2d(x, layer.kernel, layer.stride, layer.padding, layer.dilation, layer.is_ceil)
        case Reshape():
            return x.reshape(len(x), *layer.shape)
        case Sum():
            first = x if layer.signs[0] > 0 else -x
            terms = zip(layer.signs[1:], inputs[1:], strict=True)
            return reduce(lambda total, term: torch.add(total, term[1], alpha=term[0]), terms, first)
        case Product():
            return x * inputs[1]
        case Concatenation():
            return torch.cat(inputs, layer.dim + 1)
        case Members():
            return torch.stack(inputs)
        case Shift():
            x = x if layer.signs[0] > 0 else -x
            return x + layer.constant if layer.signs[1] > 0 else x - layer.constant
        case Scale():
            return x / layer.factor if layer.divides else x * layer.factor
        case Negation():
            return -x
        case _:
            raise TypeError(f"nothing computes {layer}")

"""Functions of PyTorch as layers.

Each takes the shape of a sample's output and the function's own arguments, in which a `Ref` stands for a tensor that
depends on the input, and returns the layer and its parents. The layer is None if nothing happens.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from equipoise.kernels import layers
from equipoise.kernels.torch_calls import (
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Dropout,
    LeakyReLU,
    MaxPool2d,
    Pair,
    pair,
)


class UnknownLayerError(Exception):
    """A function is not one of the layers; the argument says why."""


@dataclass(frozen=True)
class Ref:
    """Stands for a tensor that depends on the input, among the arguments of a function."""

    node: int
    shape: torch.Size
    """That of a sample's part."""


def need(condition: bool, reason: str) -> None:
    """Raise `UnknownLayerError(reason)` unless the condition holds."""
    if not condition:
        raise UnknownLayerError(reason)


def _pair(value: Any) -> Pair:
    both = pair(value)
    if both is None:
        raise UnknownLayerError(f"it is called with {value!r}: expected one number or two")
    return both


def _constant(shape: torch.Size, value: Any) -> Any:
    """A number, or a tensor that is the same for all samples, as one to be broadcast over a sample."""
    if isinstance(value, Tensor) and value.ndim > len(shape):
        need(len(value) == 1, "it uses other constants for other samples")
        return value[0]
    return value


def _linear(shape: torch.Size, input: Any, weight: Any, bias: Any = None) -> Any:
    return layers.Linear(weight, bias), input


def _conv2d(shape: torch.Size, *args: Any, **kwargs: Any) -> Any:
    input, weight, bias, stride, padding, dilation, groups = Conv2d(*args, **kwargs)
    stride, dilation = _pair(stride), _pair(dilation)
    if isinstance(padding, str):
        extents = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        symmetric = padding == "valid" or all(extent % 2 == 0 for extent in extents)
        need(symmetric, "its padding differs from side to side")
        padding = tuple(extent // 2 if padding == "same" else 0 for extent in extents)
    need(len(input.shape) == 3, "it is a convolution of a single image")
    return layers.Convolution(weight, bias, stride, _pair(padding), dilation, groups), input


def _relu(shape: torch.Size, input: Ref, inplace: bool = False) -> Any:
    return layers.Rectifier(), input


def _leaky_relu(shape: torch.Size, *args: Any, **kwargs: Any) -> Any:
    call = LeakyReLU(*args, **kwargs)
    return layers.Rectifier(call.negative_slope), call.input


def _max_pool2d(shape: torch.Size, *args: Any, **kwargs: Any) -> Any:
    call = MaxPool2d(*args, **kwargs)
    kernel, stride = _pair(call.kernel_size), _pair(call.stride or call.kernel_size)
    need(len(shape) == 3, "it pools single images")
    pool = layers.MaxPool(kernel, stride, _pair(call.padding), _pair(call.dilation))
    last = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(shape[1:], stride, pool.dilation, kernel, strict=True)]
    fits = all(e <= size + 2 * p for e, size, p in zip(last, call.input.shape[1:], pool.padding, strict=True))
    return replace(pool, is_ceil=not fits), call.input


def _avg_pool2d(shape: torch.Size, *args: Any, **kwargs: Any) -> Any:
    call = AvgPool2d(*args, **kwargs)
    kernel = _pair(call.kernel_size)
    need(call.divisor_override is None, "its divisor is overridden")
    options = tuple((name, value) for name, value in call._asdict().items() if name != "input")
    return layers.Average("avg_pool2d", F.avg_pool2d, (), options, kernel[0] * kernel[1], call.window), call.input


def _adaptive_avg_pool2d(shape: torch.Size, input: Ref, output_size: Any) -> Any:
    options = (("output_size", output_size),)
    return layers.Average("adaptive_avg_pool2d", F.adaptive_avg_pool2d, (), options, input.shape[-2:].numel()), input


def _mean(shape: torch.Size, input: Ref, dim: Any = None, keepdim: bool = False) -> Any:
    dims = (dim,) if isinstance(dim, int) else dim
    need(bool(dims) and all(d % (len(input.shape) + 1) for d in dims), "mean() mixes samples")
    terms = input.shape.numel() // max(shape.numel(), 1)
    return layers.Average("mean", torch.mean, (), (("dim", dim), ("keepdim", keepdim)), terms), input


def _batch_norm(shape: torch.Size, *args: Any, **kwargs: Any) -> Any:
    norm = BatchNorm(*args, **kwargs)
    need(norm.uses_running_statistics, "samples depend on each other in a batch-norm without running statistics")
    assert norm.running_mean is not None and norm.running_var is not None
    return layers.RunningNorm(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps), norm.input


def _dropout(shape: torch.Size, *args: Any, **kwargs: Any) -> Any:
    dropout = Dropout(*args, **kwargs)
    need(not dropout.training, "it is random: its dropout stays on in eval mode")
    return None, dropout.input


def _identity(shape: torch.Size, input: Ref, *args: Any, **kwargs: Any) -> Any:
    need(input.shape == shape, "it changes the shape")
    return None, input


def _reshape(shape: torch.Size, input: Ref, *args: Any, **kwargs: Any) -> Any:
    need(input.shape.numel() == shape.numel(), "it mixes samples")
    return layers.Reshape(shape), input


def _item(shape: torch.Size, input: Ref, index: Any) -> Any:
    raise UnknownLayerError("__getitem__() takes a part of a tensor")


def _combination(signs: tuple[float, float]) -> Callable[..., Any]:
    """`± a ± b`, where one of them may be a constant."""

    def combine(shape: torch.Size, input: Any, other: Any, *, alpha: float = 1) -> Any:
        need(alpha == 1, "it adds a multiple of a tensor")
        if isinstance(input, Ref) and isinstance(other, Ref):
            need(input.shape == other.shape, "it adds tensors of different shapes")
            return layers.Sum(signs), input, other
        terms = list(zip((input, other), signs, strict=True))
        (ref, sign), (constant, constant_sign) = terms if isinstance(input, Ref) else terms[::-1]
        need(ref.shape == shape, "it adds tensors of different shapes")
        return layers.Shift(_constant(shape, constant), (sign, constant_sign)), ref

    return combine


def _product(shape: torch.Size, input: Any, other: Any) -> Any:
    if isinstance(input, Ref) and isinstance(other, Ref):
        need(len(input.shape) == len(other.shape), "it multiplies tensors of different shapes")
        return layers.Product(), input, other
    ref, constant = (input, other) if isinstance(input, Ref) else (other, input)
    need(ref.shape == shape, "it multiplies tensors of different shapes")
    return layers.Scale(_constant(shape, constant)), ref


def _quotient(shape: torch.Size, input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    need(isinstance(input, Ref) and not isinstance(other, Ref), "it divides by what depends on the input")
    need(rounding_mode is None, "it rounds")
    need(input.shape == shape, "it divides tensors of different shapes")
    return layers.Scale(_constant(shape, other), divides=True), input


def _cat(shape: torch.Size, tensors: Any, dim: int = 0) -> Any:
    need(all(isinstance(tensor, Ref) for tensor in tensors), "cat() joins the input's and other tensors")
    dim = dim % (len(shape) + 1) - 1
    need(dim >= 0, "cat() joins samples")
    return layers.Concatenation(dim), *tensors


def _function(kind: type[layers.Function], name: str) -> Callable[..., Any]:
    """A function of a tensor and numbers, never in place."""

    def translate(shape: torch.Size, input: Ref, *arguments: Any, **options: Any) -> Any:
        options.pop("inplace", None)
        arguments = tuple(value for value in arguments if value is not True)  # which says that it is to work in place
        tensors = any(isinstance(value, Tensor | Ref) for value in (*arguments, *options.values()))
        need(not tensors, f"the arguments of {name}() are tensors")
        return kind(name, getattr(F, name, None) or getattr(torch, name), arguments, tuple(options.items())), input

    return translate


def _softmax(name: str) -> Callable[..., Any]:
    translate = _function(layers.Samplewise, name)

    def along(shape: torch.Size, input: Ref, dim: int | None = None, *ignored: Any, **options: Any) -> Any:
        need(dim is not None and dim % (len(shape) + 1) != 0, f"{name}() mixes samples")
        return translate(shape, input, dim=dim, dtype=options.get("dtype"))

    return along


def _negation(shape: torch.Size, input: Ref) -> Any:
    return layers.Negation(), input


_POINTWISE = (
    *("relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh", "softplus"),
    *("hardtanh", "hardswish", "hardsigmoid", "log", "clamp", "clamp_min", "clamp_max"),
)
LAYERS: dict[str, Callable[..., Any]] = {
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
    **{name: _function(layers.Pointwise, stem) for stem in _POINTWISE for name in (stem, f"{stem}_")},
    **{name: _softmax(name) for name in ("softmax", "log_softmax")},
    **dict.fromkeys(("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"), _dropout),
    **dict.fromkeys(("float", "double", "contiguous", "clone", "detach", "to"), _identity),
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze", "unsqueeze", "unflatten"), _reshape),
    **dict.fromkeys(("add", "add_", "__add__", "__radd__", "__iadd__"), _combination((1.0, 1.0))),
    **dict.fromkeys(("sub", "sub_", "__sub__", "__isub__"), _combination((1.0, -1.0))),
    **dict.fromkeys(("rsub", "__rsub__"), _combination((-1.0, 1.0))),
    **dict.fromkeys(("mul", "mul_", "__mul__", "__rmul__", "__imul__"), _product),
    **dict.fromkeys(("div", "div_", "__truediv__", "__itruediv__"), _quotient),
}
"""The functions that are layers, by name."""

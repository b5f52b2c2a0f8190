"""A network as a sequence of layers that the C kernels support, found by watching it run.

Nothing is assumed about how a network is written. Before every batch it runs on one sample while a mode watches its
operations. If each of them takes the output of the one before, all are supported and their weights are constant, the
whole batch is computed natively by the same layers; otherwise it is left to PyTorch.
"""

import ctypes
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from equipoise.core.errors import EquipoiseWarning
from equipoise.core.types import Points, Predict, Prediction, Weights
from equipoise.kernels.input_gradients import MANY_FILTERS, RECTIFIERS
from equipoise.kernels.native.build import address, library, run_threaded
from equipoise.kernels.torch_calls import Conv2d, Dropout, LeakyReLU, MaxPool2d, leaves, pair

MAX_WEIGHTS = 1 << 18
"""Weights of all layers together: more do not stay in the cache."""
_MAX_BUFFERS = 1 << 17  # numbers per sample in all buffers together
_RESHAPE = {torch.flatten, Tensor.flatten, torch.reshape, Tensor.reshape, Tensor.view}
_ARITHMETIC = {
    *(torch.add, torch.sub, torch.mul, torch.div),
    *(Tensor.add, Tensor.sub, Tensor.mul, Tensor.div),
    *(Tensor.__add__, Tensor.__sub__, Tensor.__mul__, Tensor.__truediv__),
}
_DROPOUT = {F.dropout, F.dropout2d}
_QUERIES = {"__get__", "__len__", "dim", "size", "numel", "stride", "is_floating_point", "is_contiguous"}
"""Functions that return properties of a tensor, not its values."""
_IDENTITIES = {Tensor.float, Tensor.contiguous, Tensor.to, Tensor.detach}

_Call = tuple[Any, tuple[Any, ...]]


class _LayerStruct(ctypes.Structure):
    """`layer` of `layers.c`."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("channels", "height", "width")),
        *((name, ctypes.c_int32) for name in ("filters", "kernel_height", "kernel_width")),
        *((name, ctypes.c_int32) for name in ("pad_rows", "pad_columns", "pooled", "rectified")),
        ("slope", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("kernels", "adjoint", "bias")),
    ]


@dataclass(eq=False)
class Layer:
    """A stride-1 convolution, or a linear layer as a convolution of one pixel, with its pooling and ReLU."""

    input: tuple[int, int, int]
    weight: Tensor
    bias: Tensor | None
    padding: tuple[int, int] = (0, 0)
    pooled: bool = False
    rectified: bool = False
    slope: float = 0.0  # of a leaky ReLU

    @property
    def kernel(self) -> tuple[int, int]:
        """Rows and columns of a kernel."""
        return (self.weight.shape[2], self.weight.shape[3]) if self.weight.ndim == 4 else (1, 1)

    @property
    def is_linear(self) -> bool:
        """Whether it is a linear layer, or a convolution of one pixel that is like one."""
        return self.input[1:] == self.kernel == (1, 1) and self.padding == (0, 0)

    @property
    def output(self) -> tuple[int, int, int]:
        """Channels, rows and columns of the output."""
        sides = zip(self.input[1:], self.padding, self.kernel, strict=True)
        height, width = (side + 2 * pad - k + 1 for side, pad, k in sides)
        return (len(self.weight), height // 2, width // 2) if self.pooled else (len(self.weight), height, width)

    @property
    def buffer_size(self) -> int:
        """Numbers in the padded input and in the padded gradient with respect to the output."""
        sides = list(zip(self.input[1:], self.padding, self.kernel, strict=True))
        padded = self.input[0] * prod(side + 2 * pad for side, pad, _ in sides)
        return padded + len(self.weight) * prod(side + k - 1 for side, _, k in sides)

    @property
    def state(self) -> tuple[Any, ...]:
        """All that the layer computes with; parameters by identity and version."""
        parameters = (id(self.weight), self.weight._version, id(self.bias), getattr(self.bias, "_version", None))
        return *self.input, *self.padding, self.pooled, self.rectified, self.slope, *parameters


@dataclass(eq=False)
class _Tracer(TorchFunctionMode):
    """Watches what a network does to a sample."""

    output: Tensor
    """The result of the last operation; the sample at the start."""
    constants: set[int]
    """Addresses of the storages of its weights."""
    trainable: bool = False
    """Whether the weights of layers may need a gradient."""
    preprocessing: list[_Call] = field(default_factory=list)
    """What is done to the input before the first layer: functions with their further arguments."""
    layers: list[Layer] = field(default_factory=list)
    previous: list[Tensor] = field(default_factory=list)
    """Inputs of all operations so far."""
    is_supported: bool = True

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        own = (*self.previous, self.output)
        inputs = [value for value in _tensors((args, kwargs)) if any(value is tensor for tensor in own)]
        if not self.is_supported or not inputs:
            return result
        if isinstance(result, Tensor) and len(inputs) == 1 and args and args[0] is self.output:
            self.is_supported = self._append(func, args[1:], kwargs, result)
            self.previous.append(self.output)
            self.output = result
        else:
            self.is_supported = getattr(func, "__name__", "") in _QUERIES and not _tensors(result)
        return result

    def _append(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> bool:
        """Record an operation on the last output; return whether it is supported."""
        last, x = (self.layers[-1] if self.layers else None), self.output
        if result is x and func in _IDENTITIES:
            return True
        if func in (torch.conv2d, F.linear):
            is_conv = func is torch.conv2d
            layer = self._convolution(Conv2d(x, *args, **kwargs)) if is_conv else self._linear(*args, **kwargs)
            if layer is not None:
                self.layers.append(layer)
            return layer is not None
        if last is None and func in _RESHAPE:
            if result.shape != (1, x.numel()):
                return False
            self.preprocessing.append((torch.flatten, (1,)))
            return True
        if last is None:
            self.preprocessing.append((func, args))
            same_shape = func in _ARITHMETIC and not kwargs and result.shape == x.shape
            return same_shape and all(self._is_constant(value) for value in args)
        if func in RECTIFIERS or func is F.leaky_relu:
            slope = 0.0 if func in RECTIFIERS else LeakyReLU(x, *args, **kwargs).negative_slope
            once = not last.rectified or slope == last.slope == 0
            last.rectified, last.slope = True, slope
            return once and slope >= 0
        if func is F.max_pool2d:
            poolable = MaxPool2d(x, *args, **kwargs).is_2x2 and not last.pooled and last.weight.ndim == 4
            last.pooled = True
            return poolable and result.shape[1:] == last.output
        if func in _RESHAPE:
            return result.shape == (1, x.numel())
        if func in _DROPOUT:
            return not Dropout(x, *args, **kwargs).training
        return func is Tensor.__getitem__ and args == (None,)  # the logits get a dimension of members

    def _convolution(self, call: Conv2d) -> Layer | None:
        x, weight, bias, padding = *call[:3], pair(call.padding)
        small = call.is_plain and x.ndim == 4 and len(weight) < MANY_FILTERS
        if not small or padding is None or not self._are_weights(weight, bias):
            return None
        layer = Layer((x.shape[1], x.shape[2], x.shape[3]), weight, bias, padding)
        narrow = all(pad < kernel for pad, kernel in zip(padding, layer.kernel, strict=True))
        follows = not self.layers or self.layers[-1].output == layer.input
        return layer if narrow and follows else None

    def _linear(self, weight: Tensor, bias: Tensor | None = None) -> Layer | None:
        if self.output.ndim != 2 or not self._are_weights(weight, bias):
            return None
        layer = Layer((weight.shape[1], 1, 1), weight, bias)
        features = prod(self.layers[-1].output) if self.layers else self.output.shape[1]
        return layer if features == weight.shape[1] else None

    def _is_constant(self, value: Any) -> bool:
        """Whether a value is a number, or a frozen weight: the same for every sample and batch."""
        if not isinstance(value, Tensor):
            return isinstance(value, int | float)
        return not value.requires_grad and value.untyped_storage().data_ptr() in self.constants

    def _are_weights(self, *tensors: Tensor | None) -> bool:
        return all(t is None or (self._is_weight(t) and t.dtype == torch.float32) for t in tensors)

    def _is_weight(self, tensor: Tensor) -> bool:
        is_own = tensor.untyped_storage().data_ptr() in self.constants
        return is_own and (not tensor.requires_grad or (self.trainable and tensor.is_leaf))


def _tensors(arguments: Any) -> list[Tensor]:
    return [value for value in leaves(arguments) if isinstance(value, Tensor)]


class NativeLayers:
    """Layers as the kernels take them, with their weights in the kernels' memory order."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        kernels = library()
        assert kernels is not None
        self.classes = len(layers[-1].weight)
        self.input_shape = layers[0].input if layers[0].weight.ndim == 4 else layers[0].input[:1]
        self._kernels = kernels
        self._weights: list[Tensor] = []  # keeps alive what the structs point to
        self.structs = (_LayerStruct * len(layers))(*map(self._struct, layers))
        self.simd_width = int(kernels.simd_width())
        self.trace_size = int(kernels.trace_size(self.structs, len(layers)))
        self.inputs_size = int(kernels.inputs_size(self.structs, len(layers)))

    def _struct(self, layer: Layer) -> _LayerStruct:
        weight = layer.weight.detach().reshape(*layer.weight.shape[:2], *layer.kernel)
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().contiguous()
        if layer.is_linear:
            kernels, adjoint = self._in_tiles(weight[:, :, 0, 0]), self._in_tiles(weight[:, :, 0, 0].T)
        else:
            kernels = weight.permute(1, 2, 3, 0).contiguous()
            adjoint = weight.flip(2, 3).permute(0, 2, 3, 1).contiguous()
        self._weights += [kernels, adjoint, bias]
        numbers = (*layer.input, len(weight), *layer.kernel, *layer.padding, layer.pooled, layer.rectified, layer.slope)
        return _LayerStruct(*numbers, kernels.data_ptr(), adjoint.data_ptr(), bias.data_ptr())

    def _in_tiles(self, weight: Tensor) -> Tensor:
        """The weights of a linear layer as `multiply` of `layers.c` reads them."""
        tile = int(self._kernels.linear_tile())
        padded = F.pad(weight, (0, 0, 0, -len(weight) % tile))
        return padded.reshape(-1, tile, weight.shape[1]).transpose(1, 2).contiguous()

    def logits(self, x: Tensor, traced: bool, kept: bool = False) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Logits; if `traced` what the backward pass needs, and if `kept` the inputs of all layers, for gradients of
        the weights: one row each per block of `simd_width` samples.
        """
        width, x = self.simd_width, x.contiguous()
        blocks, logits = -(-len(x) // width), x.new_empty(len(x), self.classes)
        traces = x.new_empty(blocks, self.trace_size, dtype=torch.uint8) if traced else None
        inputs = x.new_empty(blocks, self.inputs_size * width) if kept else None

        def rows(first: int) -> tuple[Any, ...]:
            block = first // width
            return address(x, first), address(logits, first), address(traces, block), address(inputs, block)

        self._run(self._kernels.forward, len(x), rows)
        return logits, traces, inputs

    def gradient(self, grad: Tensor, traces: Tensor) -> Tensor:
        """The gradient with respect to the inputs, from the gradient with respect to the logits."""
        grad, x = grad.contiguous(), grad.new_empty(len(grad), *self.input_shape)
        self._run(
            self._kernels.backward,
            len(grad),
            lambda first: (address(grad, first), address(traces, first // self.simd_width), address(x, first)),
        )
        return x

    def _run(self, kernel: Any, samples: int, tensors: Callable[[int], tuple[Any, ...]]) -> None:
        def run(first: int, count: int) -> int:
            return kernel(self.structs, len(self.structs), *tensors(first), ctypes.c_int64(count))

        run_threaded(samples, self.simd_width, run)


@dataclass(frozen=True)
class NativeNetwork:
    """A network as native layers behind an affine map of its input: `layers(scale * x + shift)`."""

    layers: NativeLayers
    """The layers."""
    scale: Tensor | None
    """A factor per pixel; None is 1."""
    shift: Tensor | None
    """A constant per pixel; None is 0."""


def _affine(preprocessing: Sequence[_Call], sample: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The factors and constants of the affine map that additions and multiplications with constants are; None if it
    changes nothing.
    """
    with torch.enable_grad():
        zero = torch.zeros_like(sample, requires_grad=True)
        shift = preprocessed(preprocessing, zero)
        (scale,) = torch.autograd.grad(shift.sum(), zero)
    scale, shift = scale[0].contiguous(), shift[0].detach().contiguous()
    return (None, None) if bool((scale == 1).all()) and not bool(shift.any()) else (scale, shift)


class _NativeFunction(torch.autograd.Function):
    """The logits of native layers, with their gradient with respect to the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: NativeLayers, traced: bool) -> Tensor:
        logits, traces, _ = layers.logits(x, traced)
        ctx.layers = layers
        ctx.save_for_backward(traces)
        return logits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.layers.gradient(grad, *ctx.saved_tensors), None, None


def _prediction(preprocessing: Sequence[_Call], layers: NativeLayers, x: Points) -> Prediction:
    x = preprocessed(preprocessing, x)
    traced = torch.is_grad_enabled() and x.requires_grad
    return Prediction(_NativeFunction.apply(x, layers, traced)[None])


def is_batch(x: Any) -> bool:
    """Whether the kernels could take such a batch now."""
    plain = type(x) is Tensor and x.ndim >= 2 and x.dtype == torch.float32 and x.device.type == "cpu"
    return plain and x.numel() > 0 and not _are_functorch_transforms_active()


def traced(
    predict: Predict, constants: set[int], sample: Points, trainable: bool = False
) -> tuple[_Tracer, Tensor] | None:
    """Return what a network does to a sample, and its logits there; None if the kernels do not support it. The network
    sees a copy of the sample.
    """
    tracer = _Tracer(sample.detach().clone().requires_grad_(), constants, trainable)
    with torch.enable_grad(), torch.autocast("cpu", enabled=False), tracer:
        try:
            logits = predict(tracer.output).logits
        except Exception:  # some networks refuse a single sample; any other error is raised again by the fallback
            return None
    complete = logits is tracer.output and logits.requires_grad and len(tracer.layers) > 0
    if not (tracer.is_supported and complete and logits.shape[:2] == (1, 1)):
        return None
    return (tracer, logits) if tracer.layers[-1].output == (logits.shape[2], 1, 1) else None


def compiled(tracer: _Tracer, sample: Tensor, logits: Tensor) -> NativeLayers | None:
    """Return the layers for the kernels; None if they are too large, or give other logits than PyTorch."""
    layers = tracer.layers
    small = sum(layer.weight.numel() for layer in layers) <= MAX_WEIGHTS
    if not small or sum(layer.buffer_size for layer in layers) > _MAX_BUFFERS:
        return None
    native = NativeLayers(layers)
    own = native.logits(preprocessed(tracer.preprocessing, sample), traced=False)[0]
    return native if _agree(own, logits[0].detach()) else None


class NativeForward:
    """A prediction computed natively where the kernels support the network, else by `fallback`. Of a network without
    convolutions, for which PyTorch is as fast, only whole climbs are.
    """

    def __init__(self, predict: Predict, fallback: Predict, weights: Weights) -> None:
        self._predict, self._fallback = predict, fallback
        self._is_convolutional = any(weight.ndim > 2 for weight in weights.values())
        self._constants = {weight.untyped_storage().data_ptr() for weight in weights.values()}
        # By the state of the traced layers, which are kept alive so that the ids in it stay their own.
        self._compiled: dict[tuple[Any, ...], tuple[NativeLayers, list[Layer]]] = {}
        self.is_supported = True
        """Whether no batch so far was left to `fallback` for good."""

    def __call__(self, x: Points) -> Prediction:
        """Return the prediction."""
        return self.at(x)(x)

    def at(self, x: Points) -> Predict:
        """Return the prediction of the network as it is at this batch, for further batches like it."""
        native = self._native_layers(x) if self.is_supported and self._is_convolutional else None
        return self._fallback if native is None else partial(_prediction, *native)

    def network(self, x: Points) -> NativeNetwork | None:
        """Return the network as it is at this batch, for kernels that do more than predict; None if it is not
        supported.
        """
        native = self._native_layers(x) if self.is_supported else None
        if native is None:
            return None
        preprocessing, layers = native
        return NativeNetwork(layers, *_affine(preprocessing, x[:1]))

    def _native_layers(self, x: Points) -> tuple[list[_Call], NativeLayers] | None:
        """The preprocessing and the layers of the network at this batch; None if it is not supported."""
        if not is_batch(x):
            return None
        random = torch.get_rng_state() if not self._compiled else None
        trace = traced(self._predict, self._constants, x[:1])
        if random is not None:
            torch.set_rng_state(random)
        if trace is None:
            self.is_supported = False
            return None
        tracer, logits = trace
        state = tuple(value for layer in tracer.layers for value in layer.state)
        if state not in self._compiled:
            layers = compiled(tracer, x[:1].detach(), logits)
            if layers is None:
                self.is_supported = False
                return None
            self._compiled = {state: (layers, tracer.layers)}
        return tracer.preprocessing, self._compiled[state][0]


def preprocessed(calls: Sequence[_Call], x: Tensor) -> Tensor:
    """Return the input after what is done to it before the first layer."""
    for func, args in calls:
        x = func(x, *args)
    return x


def _agree(native: Tensor, expected: Tensor) -> bool:
    """Whether both are the same logits up to rounding; warns if not."""
    same = not bool(Prediction(native[None]).differs(Prediction(expected[None])).any())
    if not same:
        warnings.warn(
            "the kernels for small networks find other logits than PyTorch (by "
            f"{float((native - expected).abs().max()):g}): they are not used for this network. Please report it.",
            EquipoiseWarning,
            stacklevel=2,
        )
    return same


def native_forward(predict: Predict, fallback: Predict, weights: Weights) -> Predict:
    """Return the prediction of `predict`, computed natively if it consists of supported layers with these weights, else
    by `fallback`, which computes the same.
    """
    return fallback if library() is None else NativeForward(predict, fallback, weights)

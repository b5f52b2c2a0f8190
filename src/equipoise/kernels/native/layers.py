"""The layers of a network for the C kernels (`layers.c`): their logits and input gradients."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from equipoise.kernels.native.build import address, library, run_threaded
from equipoise.kernels.torch_calls import Pair

MAX_WEIGHTS = 1 << 20
"""Weights of all layers together: more do not stay in the cache."""
_MULTIPLICATIONS_AT_ONCE = 1 << 33
"""Multiplications of a thread's forward passes in one call, about a second of work: between calls a program can be
stopped."""
_MAX_BUFFERS = 1 << 18  # numbers per sample in all buffers together
# The same for narrow networks, at which PyTorch is slower: it takes 1.3 times as long as the kernels for the gradient
# of a ResNet-20 on 32x32 pixels (1.2 with AVX2), but 0.7 times as long for that of a WideResNet-10-2.
_MAX_NARROW_BUFFERS = 5 << 17
_NARROW = 256  # multiplications for each output: 144 in a 3x3 convolution of 16 channels, 288 in one of 32


class _LayerStruct(ctypes.Structure):
    """`layer` of `layers.c`."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("source", "added", "channels", "groups", "height", "width")),
        *((name, ctypes.c_int32) for name in ("filters", "kernel_height", "kernel_width")),
        *((name, ctypes.c_int32) for name in ("stride_rows", "stride_columns", "dilation_rows", "dilation_columns")),
        *((name, ctypes.c_int32) for name in ("pad_rows", "pad_columns")),
        *((name, ctypes.c_int32) for name in ("pool_rows", "pool_columns", "rectified")),
        ("slope", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("kernels", "adjoint", "bias")),
    ]


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution, or a linear layer as a convolution of one pixel, with its max pooling of disjoint windows or an
    earlier output that is added, and its ReLU.

    Buffer 0 is the image, buffer k + 1 the output of layer k. A layer of one pixel may take all of a buffer as its
    channels.
    """

    input: tuple[int, int, int]
    weight: Tensor
    bias: Tensor | None
    source: int
    """The buffer that it reads."""
    added: int | None = None
    """The buffer that is added to its output."""
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    pool: Pair = (1, 1)
    rectified: bool = False
    slope: float = 0.0  # of a leaky ReLU

    @property
    def kernel(self) -> Pair:
        """Rows and columns of a kernel."""
        return (self.weight.shape[2], self.weight.shape[3]) if self.weight.ndim == 4 else (1, 1)

    @property
    def is_linear(self) -> bool:
        """Whether it is a linear layer, or a convolution of one pixel that is like one."""
        return self.input[1:] == self.kernel == (1, 1) and self.padding == (0, 0) and self.groups == 1

    @property
    def extent(self) -> Pair:
        """Rows and columns that a kernel spans."""
        rows, columns = ((k - 1) * step + 1 for k, step in zip(self.kernel, self.dilation, strict=True))
        return rows, columns

    @property
    def before_pooling(self) -> tuple[int, int, int]:
        """Channels, rows and columns of the convolution's output."""
        sides = zip(self.input[1:], self.padding, self.extent, self.stride, strict=True)
        height, width = ((side + 2 * pad - extent) // step + 1 for side, pad, extent, step in sides)
        return len(self.weight), height, width

    @property
    def output(self) -> tuple[int, int, int]:
        """Channels, rows and columns of the output."""
        channels, height, width = self.before_pooling
        return channels, height // self.pool[0], width // self.pool[1]

    @property
    def multiplications(self) -> int:
        """Multiplications of a sample's forward pass."""
        return self.weight.numel() * prod(self.before_pooling[1:])

    @property
    def buffer_size(self) -> int:
        """Numbers in the padded input and in the padded gradient with respect to the output."""
        sides = list(zip(self.input[1:], self.padding, self.extent, strict=True))
        padded = self.input[0] * prod(side + 2 * pad for side, pad, _ in sides)
        return padded + len(self.weight) * prod(side + extent - 1 for side, _, extent in sides)


def fit(layers: Sequence[Layer]) -> bool:
    """Whether the layers are small enough for the kernels."""
    few_weights = sum(layer.weight.numel() for layer in layers) <= MAX_WEIGHTS
    outputs = sum(prod(layer.before_pooling) for layer in layers)
    narrow = sum(layer.multiplications for layer in layers) <= _NARROW * outputs
    most = _MAX_NARROW_BUFFERS if narrow else _MAX_BUFFERS
    return few_weights and sum(layer.buffer_size for layer in layers) <= most


class NativeLayers:
    """Layers as the kernels take them, with their weights in the kernels' memory order."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        kernels = library()
        assert kernels is not None
        self.layers = layers
        self.classes = len(layers[-1].weight)
        self.multiplications = sum(layer.multiplications for layer in layers)
        self.input_shape = layers[0].input if layers[0].weight.ndim == 4 else layers[0].input[:1]
        self._kernels = kernels
        self._weights: list[Tensor] = []  # keeps alive what the structs point to
        self.structs = (_LayerStruct * len(layers))(*map(self._struct, layers))
        self.simd_width = int(kernels.simd_width())
        self.trace_size = int(kernels.trace_size(self.structs, len(layers)))
        self.inputs_size = int(kernels.inputs_size(self.structs, len(layers)))

    def _struct(self, layer: Layer) -> _LayerStruct:
        weight, (channels, *size) = layer.weight.detach(), layer.input
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().contiguous()
        if layer.is_linear:
            weight = weight.reshape(len(weight), channels)
            kernels, adjoint = self._in_tiles(weight), self._in_tiles(weight.T)
        else:
            weight = weight.reshape(layer.groups, -1, *weight.shape[1:])
            kernels = weight.permute(0, 2, 3, 4, 1).contiguous()
            adjoint = weight.flip(3, 4).permute(0, 1, 3, 4, 2).contiguous()
        self._weights += [kernels, adjoint, bias]
        buffers = layer.source, -1 if layer.added is None else layer.added
        sizes = channels, layer.groups, *size, len(layer.weight), *layer.kernel
        steps = *layer.stride, *layer.dilation, *layer.padding, *layer.pool
        numbers = *buffers, *sizes, *steps, layer.rectified, layer.slope
        return _LayerStruct(*numbers, kernels.data_ptr(), adjoint.data_ptr(), bias.data_ptr())

    def _in_tiles(self, weight: Tensor) -> Tensor:
        """The weights of a linear layer as `multiply` of `layers.c` reads them."""
        tile = int(self._kernels.linear_tile())
        padded = F.pad(weight, (0, 0, 0, -len(weight) % tile))
        return padded.reshape(-1, tile, weight.shape[1]).transpose(1, 2).contiguous()

    def logits(self, x: Tensor, traced: bool, kept: bool = False) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Logits; if `traced` what the backward pass needs, and if `kept` all buffers, for gradients of
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

    def samples_at_once(self, evaluations: int) -> int:
        """Return how many samples a call should take that evaluates each so often, on all threads together."""
        samples = _MULTIPLICATIONS_AT_ONCE // (self.multiplications * evaluations)
        return torch.get_num_threads() * max(samples, 4 * self.simd_width)

    def _run(self, kernel: Any, samples: int, tensors: Callable[[int], tuple[Any, ...]]) -> None:
        def run(first: int, count: int) -> int:
            return kernel(self.structs, len(self.structs), *tensors(first), ctypes.c_int64(count))

        run_threaded(samples, self.simd_width, run)

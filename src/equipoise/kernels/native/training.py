"""Forward and backward pass of a training step on native layers, with gradients of the weights (`training.c`)."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from equipoise.core.types import Points, Predict, Prediction
from equipoise.kernels.native.build import address, library, run_threaded
from equipoise.kernels.native.forward import NativeNetwork, compiled, is_batch, same_of_three, traced
from equipoise.kernels.native.layers import Layer, NativeLayers


class _GradientsStruct(ctypes.Structure):
    """`gradients` of `training.c`."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("weights", "bias", "inputs", "slopes")]


class _TrainingFunction(torch.autograd.Function):
    """The logits of native layers, with gradients with respect to the weights and, if asked for, the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, native: NativeLayers, *weights: Tensor | None) -> Tensor:
        x = x.contiguous()
        logits, traces, inputs = native.logits(x, traced=True, kept=True)
        ctx.native = native
        # The weights are saved too: changed before the backward pass they are an error.
        ctx.save_for_backward(traces, inputs, x, *weights)
        return logits

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        traces, inputs, given, *weights = ctx.saved_tensors
        native, layers = ctx.native, ctx.native.layers
        if torch.is_grad_enabled():  # a gradient that is to be differentiated again
            return _differentiable(layers, [given, None, *weights], ctx.needs_input_grad, grad)
        grad = grad.contiguous()
        kernels, width, blocks = library(), native.simd_width, len(traces)
        assert kernels is not None
        x = torch.empty_like(given) if ctx.needs_input_grad[0] else None
        parts: list[tuple[Tensor, Tensor]] = []  # of a convolution: sums over each block; else inputs and slopes
        structs = (_GradientsStruct * len(layers))()
        for layer, struct in zip(layers, structs, strict=True):
            if layer.is_linear:
                part = grad.new_empty(len(grad), layer.input[0]), grad.new_empty(len(grad), len(layer.weight))
                struct.inputs, struct.slopes = part[0].data_ptr(), part[1].data_ptr()
            else:
                part = grad.new_empty(blocks, *layer.weight.shape), grad.new_empty(blocks, len(layer.weight))
                struct.weights, struct.bias = part[0].data_ptr(), part[1].data_ptr()
            parts.append(part)

        def run(first: int, count: int) -> int:
            rows = address(grad), address(traces), address(inputs), address(x)
            where = ctypes.c_int64(first), ctypes.c_int64(count)
            return kernels.backward_training(native.structs, len(layers), *rows, structs, *where)

        run_threaded(len(grad), width, run)
        gradients: list[Tensor] = []
        for layer, (first, second) in zip(layers, parts, strict=True):
            weight = second.T @ first if layer.is_linear else first.sum(0)
            gradients += [weight.reshape(layer.weight.shape), second.sum(0)]
        needed = zip(gradients, ctx.needs_input_grad[2:], strict=True)
        return x, None, *(gradient if asked else None for gradient, asked in needed)


def _differentiable(
    layers: Sequence[Layer], inputs: Sequence[Tensor | None], needed: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients with a graph of their own, computed by PyTorch."""
    buffers: list[Any] = [inputs[0]]
    for layer, weight, bias in zip(layers, inputs[2::2], inputs[3::2], strict=True):
        assert weight is not None
        x = buffers[layer.source].reshape(len(grad), *layer.input)
        weight = weight if weight.ndim == 4 else weight[:, :, None, None]
        x = F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        x = x if layer.pool == (1, 1) else F.max_pool2d(x, layer.pool)
        x = x if layer.added is None else x + buffers[layer.added].reshape_as(x)
        buffers.append(F.leaky_relu(x, layer.slope) if layer.rectified else x)
    asked = [value for value, need in zip(inputs, needed, strict=True) if need and value is not None]
    found = iter(torch.autograd.grad(buffers[-1].flatten(1), asked, grad, create_graph=True))
    return tuple(next(found) if need else None for need in needed)


def native_training(watched: Predict, predict: Predict, weights: Sequence[Tensor]) -> Predict:
    """Return the live prediction of a network with these weights for one training step: computed natively if what
    `watched`, a copy, does to samples consists of supported layers, else `predict` itself.
    """

    def live(x: Points) -> Prediction:
        random = torch.get_rng_state()
        native = _trained_networks(watched, weights, x)
        if native is None:
            torch.set_rng_state(random)
            return predict(x)
        return Prediction(torch.stack([_logits(network, x) for network in native]))

    return live


def _logits(network: NativeNetwork, x: Points) -> Tensor:
    """The logits with their graph."""
    tensors = [tensor for layer in network.layers.layers for tensor in (layer.weight, layer.bias)]
    return _TrainingFunction.apply(network.input(x), network.layers, *tensors)


def _trained_networks(predict: Predict, weights: Sequence[Tensor], x: Points) -> list[NativeNetwork] | None:
    """The network, or the members of an ensemble, as the kernels take them; None: not supported."""
    if not is_batch(x) or not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return None
    trace = traced(predict, x)
    networks = None if trace is None else compiled(trace, x, weights, trainable=True)
    if networks is None:
        return None
    random = torch.get_rng_state()
    same = same_of_three(networks, predict, x)
    torch.set_rng_state(random)
    return networks if same else None

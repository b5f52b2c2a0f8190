"""The prediction of a network by the C kernels, if its trace consists of layers that they compute."""

import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active

from equipoise.core.errors import EquipoiseWarning
from equipoise.core.types import Points, Predict, Prediction, Weights
from equipoise.kernels.layers import tensors_of
from equipoise.kernels.native.build import library
from equipoise.kernels.native.layers import NativeLayers, fit
from equipoise.kernels.native.reading import layers_of, may_be_read
from equipoise.kernels.trace import Trace, is_tracing, trace_of

_ROUNDING = 1e-5
"""By how much the kernels may differ from PyTorch, in sizes of what is summed."""


@dataclass(frozen=True)
class NativeNetwork:
    """A network as native layers behind an affine map of its input: `layers(scale * x + shift)`."""

    layers: NativeLayers
    """The layers."""
    scale: Tensor | None
    """A factor per pixel; None is 1."""
    shift: Tensor | None
    """A constant per pixel; None is 0."""

    def takes(self, image: Sequence[int]) -> bool:
        """Whether the first layer takes images of this shape, or features, as which all images are alike."""
        first = self.layers.layers[0]
        return first.is_linear or first.input == tuple(image)

    def input(self, x: Points) -> Tensor:
        """Return what the first layer takes."""
        x = x if self.scale is None or self.shift is None else self.scale * x + self.shift
        return x.reshape(len(x), *self.layers.input_shape)


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


def _prediction(networks: Sequence[NativeNetwork], x: Points) -> Prediction:
    traced = torch.is_grad_enabled() and x.requires_grad
    return Prediction(torch.stack([_NativeFunction.apply(n.input(x), n.layers, traced) for n in networks]))


def is_batch(x: Any) -> bool:
    """Whether the kernels could take such a batch now."""
    plain = type(x) is Tensor and x.ndim >= 2 and x.dtype == torch.float32 and x.device.type == "cpu"
    return plain and x.numel() > 0 and not (_are_functorch_transforms_active() or is_tracing())


def traced(predict: Predict, x: Points) -> Trace | None:
    """Return what a network does to a batch; None if it refuses two samples (any other error is raised again by the
    fallback).
    """
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        try:
            return trace_of(lambda samples: predict(samples).logits, x)
        except Exception:
            return None


def compiled(trace: Trace, x: Points, weights: Iterable[Tensor], trainable: bool = False) -> list[NativeNetwork] | None:
    """Return a traced network, or each member of an ensemble, as the kernels take it; None if these do not support it,
    if it is too large, or if they give other logits than PyTorch.
    """
    found = layers_of(trace, weights, trainable)
    if found is None or not all(fit(member.layers) for member in found) or trace.logits.ndim != 3:
        return None
    networks = [NativeNetwork(NativeLayers(member.layers), member.scale, member.shift) for member in found]
    few = x[:2].detach()
    expected = trace.logits.detach()[:, : len(few)]
    if agree(networks, few, Prediction(expected)):
        return networks
    off = float((native_prediction(networks, few).logits - expected).abs().max())
    warnings.warn(
        f"the kernels for small networks find other logits than PyTorch (by {off:g}): they are not used for this "
        "network. Please report it.",
        EquipoiseWarning,
        stacklevel=2,
    )
    return None


class NativeForward:
    """A prediction computed natively where the kernels support the network, else by `fallback`. Of a network without
    convolutions, for which PyTorch is as fast, only whole climbs are.
    """

    def __init__(self, predict: Predict, fallback: Predict, weights: Weights) -> None:
        self._predict, self._fallback, self._weights = predict, fallback, weights
        self._is_convolutional = any(weight.ndim > 2 for weight in weights.values())
        self._compiled: tuple[_State, list[NativeNetwork]] | None = None
        self.is_supported = True
        """Whether no batch so far was left to `fallback` for good."""

    def __call__(self, x: Points) -> Prediction:
        """Return the prediction."""
        return self.at(x)(x)

    def at(self, x: Points) -> Predict:
        """Return the prediction of the network as it is at this batch, for further batches like it."""
        networks = self._networks(x) if self._is_convolutional else None
        return self._fallback if networks is None else partial(_prediction, networks)

    def network(self, x: Points) -> NativeNetwork | None:
        """Return the network as it is at this batch; None if it is not supported, or an ensemble."""
        networks = self._networks(x)
        return networks[0] if networks is not None and len(networks) == 1 else None

    def _networks(self, x: Points) -> list[NativeNetwork] | None:
        """The members as they are at this batch; None if they are not supported."""
        if not self.is_supported or not is_batch(x):
            return None
        random = torch.get_rng_state() if self._compiled is None else None
        trace = traced(self._predict, x)
        state = None if trace is None else _State.of(trace)
        if self._compiled is None or state is None or not state.is_same(self._compiled[0]):
            networks = None if trace is None else compiled(trace, x, self._constants(trace, x))
            if state is None or networks is None:
                self.is_supported = False
            elif same_of_three(networks, self._predict, x):
                self._compiled = state, networks
            else:
                self._compiled = None
        if random is not None:
            torch.set_rng_state(random)
        return self._compiled[1] if self._compiled is not None and self.is_supported else None

    def _constants(self, trace: Trace, x: Points) -> list[Tensor]:
        """The weights; and other tensors if the network uses the same ones when it is traced again, such as masks of
        dropout that are drawn once.
        """
        weights, state = list(self._weights.values()), _State.of(trace)
        own = {weight.untyped_storage().data_ptr() for weight in weights}
        if not may_be_read(trace) or all(tensor.untyped_storage().data_ptr() in own for tensor in state.tensors):
            return weights
        random = torch.get_rng_state()
        again = traced(self._predict, x)
        torch.set_rng_state(random)
        lasts = again is not None and _State.of(again).is_same(state)
        return [*weights, *state.tensors] if lasts else weights


@dataclass(frozen=True)
class _State:
    """All that a traced network computes with. Tensors that are changed through `.data` have their old version and are
    not seen to be others; a model under attack is a copy of which nobody has the `.data`.
    """

    structure: list[Any]
    tensors: list[Tensor]
    versions: list[int]

    @classmethod
    def of(cls, trace: Trace) -> "_State":
        """The state of a network as traced."""
        values = [getattr(node.layer, f.name) for node in trace.nodes if node.layer for f in fields(node.layer)]  # pyright: ignore[reportArgumentType]
        kinds = [(type(node.layer), node.parents, node.shape, node.is_differentiable) for node in trace.nodes]
        tensors = [tensor for node in trace.nodes for tensor in tensors_of(node.layer)]
        structure = [*kinds, *(None if isinstance(value, Tensor) else (value,) for value in values)]
        return cls(structure, tensors, [tensor._version for tensor in tensors])

    def is_same(self, other: "_State") -> bool:
        """Whether both compute the same, with the same unchanged tensors."""
        same = len(self.tensors) == len(other.tensors) and self.structure == other.structure
        return same and self.versions == other.versions and all(map(_is_same, self.tensors, other.tensors))


def _is_same(tensor: Tensor, kept: Tensor) -> bool:
    """Whether both are the same part of the same memory, which is not free as long as it is kept."""
    one, other = ((t.data_ptr(), t.dtype, t.shape, t.stride()) for t in (tensor, kept))
    return one == other


def native_prediction(networks: Sequence[NativeNetwork], x: Points) -> Prediction:
    """Return the prediction of native networks, without a graph, which does not depend on the batch a sample is in."""
    with torch.no_grad():
        return Prediction(torch.stack([n.layers.logits(n.input(x), traced=False)[0] for n in networks]))


def agree(networks: Sequence[NativeNetwork], x: Points, expected: Prediction) -> bool:
    """Whether native networks predict this, up to rounding."""
    native = native_prediction(networks, x)
    if not bool(native.differs(expected).any()):
        return True
    # A logit may be a small difference of large numbers.
    sizes = torch.stack([_sizes(network, x) for network in networks])
    found, logits = native.logits, expected.logits
    alike = ((found - logits).abs() <= _ROUNDING * sizes) | (found.isnan() & logits.isnan())
    return bool(alike.all())


@torch.no_grad()
def same_of_three(networks: Sequence[NativeNetwork], predict: Predict, x: Points) -> bool:
    """Whether native networks, made from a trace of two samples, predict what `predict` does of three: what a network
    computes may depend on the size of the batch.
    """
    three = x[:3].detach() if len(x) > 2 else x[:1].detach().expand(3, *x.shape[1:])
    with suppress(Exception), torch.autocast("cpu", enabled=False):
        return agree(networks, three, predict(three.clone()))
    return False


@torch.no_grad()
def _sizes(network: NativeNetwork, x: Points) -> Tensor:
    """The size of what each logit is a sum of: `Σ_i |J_i x_i| + |z - J x|`, where J is its gradient."""
    layers, x = network.layers, network.input(x)
    logits, traces, _ = layers.logits(x, traced=True)
    assert traces is not None
    sizes = []
    for logit, one in zip(logits.T, torch.eye(layers.classes, dtype=x.dtype), strict=True):
        terms = (layers.gradient(one.expand_as(logits), traces) * x).flatten(1)
        sizes.append(terms.abs().sum(1) + (logit - terms.sum(1)).abs())
    return torch.stack(sizes, 1)


def native_forward(predict: Predict, fallback: Predict, weights: Weights) -> Predict:
    """Return the prediction of `predict`, computed natively if it consists of supported layers with these weights, else
    by `fallback`, which computes the same.
    """
    return fallback if library() is None else NativeForward(predict, fallback, weights)

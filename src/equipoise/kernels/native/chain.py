"""A network as a chain of layers that the kernels know, seen from what it does.

Nothing is assumed of how a network is written. Before every batch it is run on one sample, while a mode watches which
operations it asks for. If each of them takes what the one before has returned, and all of them are known, with weights
that stand still, the whole batch takes the same way natively; else it is left to PyTorch.
"""

import ctypes
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from equipoise.core.errors import EquipoiseError, EquipoiseWarning
from equipoise.core.types import Points, Predict, Prediction, Weights
from equipoise.kernels.input_gradients import MANY_FILTERS, RECTIFIERS
from equipoise.kernels.native.build import library, place, shared
from equipoise.kernels.torch_calls import Conv2d, Dropout, MaxPool2d, pair

_MOST_WEIGHTS = 1 << 18  # numbers in all kernels together: more do not stay near the processor
_MOST_ROOM = 1 << 17  # numbers a sample in all buffers together
_RESHAPING = {torch.flatten, Tensor.flatten, torch.reshape, Tensor.reshape, Tensor.view}
_SCALING = {
    getattr(place, name)
    for place, names in (
        (torch, ("add", "sub", "mul", "div")),
        (Tensor, ("add", "sub", "mul", "div", "__add__", "__sub__", "__mul__", "__truediv__")),
    )
    for name in names
}
_DROPPING = {F.dropout, F.dropout2d}
_LOOKING = {"__get__", "__len__", "dim", "size", "numel", "stride", "is_floating_point", "is_contiguous"}
"""What tells of a tensor no more than its shape and kind."""
_NOTHING = {Tensor.float, Tensor.contiguous, Tensor.to, Tensor.detach}


class _Struct(ctypes.Structure):
    """`layer` of `chain.c`."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("channels", "height", "width", "filters", "rows", "columns")),
        *((name, ctypes.c_int32) for name in ("above", "beside", "pooled", "rectified")),
        *((name, ctypes.c_void_p) for name in ("kernels", "adjoint", "bias")),
    ]


@dataclass(eq=False)
class _Layer:
    """A convolution of stride 1 or a linear layer, which is one of a single pixel, with what follows it."""

    input: tuple[int, int, int]
    weight: Tensor
    bias: Tensor | None
    padding: tuple[int, int] = (0, 0)
    pooled: bool = False
    rectified: bool = False

    @property
    def kernel(self) -> tuple[int, int]:
        return (self.weight.shape[2], self.weight.shape[3]) if self.weight.ndim == 4 else (1, 1)

    @property
    def output(self) -> tuple[int, int, int]:
        sides = zip(self.input[1:], self.padding, self.kernel, strict=True)
        height, width = (side + 2 * pad - k + 1 for side, pad, k in sides)
        return (len(self.weight), height // 2, width // 2) if self.pooled else (len(self.weight), height, width)

    @property
    def room(self) -> int:
        """Numbers in its buffers: the padded input, and the padded gradient with respect to the output."""
        sides = list(zip(self.input[1:], self.padding, self.kernel, strict=True))
        padded = self.input[0] * prod(side + 2 * pad for side, pad, _ in sides)
        return padded + len(self.weight) * prod(side + k - 1 for side, _, k in sides)


@dataclass(eq=False)
class _Recorder(TorchFunctionMode):
    """Watches a network work on `at`."""

    at: Tensor
    constants: set[int]
    """Where the numbers of its weights lie."""
    before: list[tuple[Any, tuple[Any, ...]]] = field(default_factory=list)
    """What is done to the input before the first layer."""
    layers: list[_Layer] = field(default_factory=list)
    seen: list[Tensor] = field(default_factory=list)
    known: bool = True

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        uses = [value for value in _tensors((args, kwargs)) if any(value is one for one in (*self.seen, self.at))]
        if not self.known or not uses:
            return result
        if isinstance(result, Tensor) and len(uses) == 1 and args and args[0] is self.at:
            self.known = self._continues(func, args[1:], kwargs, result)
            self.seen.append(self.at)
            self.at = result
        else:
            self.known = getattr(func, "__name__", "") in _LOOKING and not _tensors(result)
        return result

    def _continues(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> bool:
        """Whether the chain goes on with this operation; if so it is noted."""
        last, at = (self.layers[-1] if self.layers else None), self.at
        if result is at and func in _NOTHING:
            return True
        if func is torch.conv2d:
            layer = self._convolution(Conv2d(at, *args, **kwargs))
        elif func is F.linear:
            layer = self._linear(*args, **kwargs)
        elif last is None:
            fits = func in _SCALING and not kwargs and result.shape == at.shape and all(map(self._standing, args))
            self.before.append((func, args))
            return fits
        elif func in RECTIFIERS:
            last.rectified = True
            return True
        elif func is F.max_pool2d:
            fits = MaxPool2d(at, *args, **kwargs).halves and not last.pooled and last.weight.ndim == 4
            last.pooled = True
            return fits and result.shape[1:] == last.output
        elif func in _RESHAPING:
            return result.shape == (1, at.numel())
        elif func in _DROPPING:
            return not Dropout(at, *args, **kwargs).training
        else:
            # What comes after the last layer: the logits get a dimension of members.
            return func is Tensor.__getitem__ and args == (None,)
        if layer is None:
            return False
        self.layers.append(layer)
        return True

    def _standing(self, value: Any) -> bool:
        """Whether it is a number, or numbers that are weights: the same for every sample, and in the next batch."""
        if not isinstance(value, Tensor):
            return isinstance(value, int | float)
        return self._stand(value)

    def _convolution(self, call: Conv2d) -> _Layer | None:
        x, weight, bias, pads = *call[:3], pair(call.padding)
        fits = call.is_plain and x.ndim == 4 and len(weight) < MANY_FILTERS and self._weights(weight, bias)
        if not fits or pads is None:
            return None
        layer = _Layer((x.shape[1], x.shape[2], x.shape[3]), weight, bias, pads)
        narrow = all(pad < kernel for pad, kernel in zip(pads, layer.kernel, strict=True))
        return layer if narrow and self._fits(x.shape[1:]) else None

    def _linear(self, weight: Tensor, bias: Tensor | None = None) -> _Layer | None:
        if self.at.ndim != 2 or not self.layers or not self._weights(weight, bias):
            return None
        layer = _Layer((weight.shape[1], 1, 1), weight, bias)
        return layer if prod(self.layers[-1].output) == weight.shape[1] else None

    def _fits(self, shape: Sequence[int]) -> bool:
        return not self.layers or self.layers[-1].output == tuple(shape)

    def _weights(self, *tensors: Tensor | None) -> bool:
        given = [tensor for tensor in tensors if tensor is not None]
        return all(self._stand(tensor) and tensor.dtype == torch.float32 for tensor in given)

    def _stand(self, value: Tensor) -> bool:
        return not value.requires_grad and value.untyped_storage().data_ptr() in self.constants


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    return [one for part in value for one in _tensors(part)] if isinstance(value, tuple | list) else []


class _Packed:
    """Layers as the kernels want them: their weights in another order."""

    def __init__(self, layers: Sequence[_Layer]) -> None:
        self.classes, self.inputs = len(layers[-1].weight), layers[0].input
        self._kept: list[Tensor] = []
        self._structs = (_Struct * len(layers))(*map(self._struct, layers))
        kernels = library()
        assert kernels is not None
        self._kernels = kernels
        self._lanes = int(self._kernels.lanes())
        self._tape = int(self._kernels.tape(self._structs, len(layers)))

    def _struct(self, layer: _Layer) -> _Struct:
        weight = layer.weight.detach().reshape(*layer.weight.shape[:2], *layer.kernel)
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().contiguous()
        kernels = weight.permute(1, 2, 3, 0).contiguous()
        adjoint = weight.flip(2, 3).permute(0, 2, 3, 1).contiguous()
        self._kept += [kernels, adjoint, bias]
        numbers = (*layer.input, len(weight), *layer.kernel, *layer.padding, layer.pooled, layer.rectified)
        return _Struct(*numbers, kernels.data_ptr(), adjoint.data_ptr(), bias.data_ptr())

    def logits(self, x: Tensor, recorded: bool) -> tuple[Tensor, Tensor | None]:
        """Logits, and what the way back needs if it is to be `recorded`: a row per block of lanes."""
        blocks = -(-len(x) // self._lanes)
        tapes = torch.empty(blocks, self._tape, dtype=torch.uint8) if recorded else None
        x, found, kernel = x.contiguous(), x.new_empty(len(x), self.classes), self._kernels.forward
        self._run(kernel, len(x), lambda row: (place(x, row), place(found, row), place(tapes, row // self._lanes)))
        return found, tapes

    def gradient(self, grad: Tensor, tapes: Tensor) -> Tensor:
        """That with respect to the inputs, from that with respect to the logits."""
        grad, found, kernel = grad.contiguous(), grad.new_empty(len(grad), *self.inputs), self._kernels.backward
        self._run(
            kernel, len(grad), lambda row: (place(grad, row), place(tapes, row // self._lanes), place(found, row))
        )
        return found

    def _run(self, kernel: Any, samples: int, places: Callable[[int], tuple[Any, ...]]) -> None:
        def some(first: int, count: int) -> int:
            return kernel(self._structs, len(self._structs), *places(first), ctypes.c_int64(count))

        shared(samples, self._lanes, some)


class _Chain(torch.autograd.Function):
    """The logits of a chain, with their gradient with respect to its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: _Packed, recorded: bool) -> Tensor:
        logits, tapes = packed.logits(x, recorded)
        ctx.packed = packed
        ctx.save_for_backward(tapes)
        return logits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.packed.gradient(grad, *ctx.saved_tensors), None, None


class Shortcut:
    """A prediction that takes the native way where there is one, and else that of `slow`."""

    def __init__(self, predict: Predict, slow: Predict, weights: Weights) -> None:
        self._predict, self._slow = predict, slow
        self._constants = {weight.untyped_storage().data_ptr() for weight in weights.values()}
        self._packed: dict[tuple[Any, ...], _Packed] = {}  # by what they were made of, which they keep
        self._kept: list[list[_Layer]] = []
        self.possible = True
        """Whether no batch so far was one for `slow`."""

    def __call__(self, x: Points) -> Prediction:
        """The prediction."""
        chain = self._chain(x) if self.possible else None
        if chain is None:
            return self._slow(x)
        before, packed = chain
        for func, args in before:
            x = func(x, *args)
        recorded = torch.is_grad_enabled() and x.requires_grad
        return Prediction(_Chain.apply(x, packed, recorded)[None])

    def _chain(self, x: Points) -> tuple[list[tuple[Any, tuple[Any, ...]]], _Packed] | None:
        """What is done to the input, and the layers, if they are known."""
        fits = type(x) is Tensor and x.ndim == 4 and len(x) > 0 and x.dtype == torch.float32
        if not fits or _are_functorch_transforms_active():
            return None
        recorder = _Recorder(x[:1].detach().requires_grad_(), self._constants)
        random = torch.get_rng_state() if not self._packed else None
        with torch.enable_grad(), torch.autocast("cpu", enabled=False), recorder:
            try:
                seen = self._predict(recorder.at).logits
            except (EquipoiseError, RuntimeError, TypeError, ValueError, IndexError):
                self.possible = False  # not every network takes a single sample; what else is wrong, `slow` says
                return None
        if random is not None:
            torch.set_rng_state(random)
        layers = recorder.layers
        whole = seen is recorder.at and seen.requires_grad and len(layers) > 0
        self.possible = recorder.known and whole and seen.shape[:2] == (1, 1)
        if not self.possible or layers[-1].output != (seen.shape[2], 1, 1):
            self.possible = False
            return None
        key = tuple(value for one in layers for value in _state(one))
        packed = self._packed.get(key)
        if packed is None:
            small = sum(one.weight.numel() for one in layers) <= _MOST_WEIGHTS
            self.possible = small and sum(one.room for one in layers) <= _MOST_ROOM
            if not self.possible:
                return None
            packed = _Packed(layers)
            start = x[:1].detach()
            for func, args in recorder.before:
                start = func(start, *args)
            self.possible = _same(packed.logits(start, recorded=False)[0], seen[0].detach())
            if not self.possible:
                return None
            self._packed[key] = packed
            self._kept.append(layers)
        return recorder.before, packed


def _state(layer: _Layer) -> tuple[Any, ...]:
    bias = layer.bias
    weights = (id(layer.weight), layer.weight._version, id(bias), None if bias is None else bias._version)
    return *layer.input, *layer.padding, layer.pooled, layer.rectified, *weights


def _same(mine: Tensor, theirs: Tensor) -> bool:
    """Whether both are the same logits up to rounding; says so if they are not."""
    alike = not bool(Prediction(mine[None]).differs(Prediction(theirs[None])).any())
    if not alike:
        warnings.warn(
            f"the kernels for small networks find other logits than PyTorch (by {float((mine - theirs).abs().max()):g})"
            ": they are not used for this network. Please report it.",
            EquipoiseWarning,
            stacklevel=2,
        )
    return alike


def shortcut(predict: Predict, slow: Predict, weights: Weights) -> Predict:
    """The prediction of `predict`, natively wherever it is a chain with these weights, else by `slow`, which computes
    the same another way.
    """
    return slow if library() is None else Shortcut(predict, slow, weights)

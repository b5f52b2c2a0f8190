"""Images of which only a window exists, and a network's pass over them.

`PartialImages` is a tensor subclass. An operation that is known to be local computes only the window of its output that
changes, and takes what it needs beyond the window of its input from the stored activations of the unchanged image. Any
other operation gets complete images, and everything after it is computed as always.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from equipoise.kernels._backward_kernels import FEW_CHANNELS, PolyphaseConv, interleave, max_pool_2x2
from equipoise.kernels._receptive_fields import Fields, ReceptiveField, Span, Window, covered_share, propagated
from equipoise.kernels.input_gradients import RECTIFIERS, faster_in_bf16
from equipoise.kernels.torch_calls import AvgPool2d, BatchNorm, Conv2d, Dropout, MaxPool2d, leaves, map_leaves, pair

FeatureMaps = Float[Tensor, "_batch _channels _height _width"]
"""Images, or the output of a layer; any two may differ in size."""

MOST_CHANGED = 0.8
"""If a small change of the image reaches more than this share of a convolution's output, recompute the whole output."""
_QUERIES = {"dim", "size", "numel", "is_floating_point", "is_complex", "is_contiguous", "__len__", "__hash__"}
_PROPERTIES = {"shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda", "is_sparse", "is_quantized"}
_POINTWISE = {
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh", "softplus"),
    *("hardtanh", "hardswish", "hardsigmoid", "clamp", "clamp_min", "clamp_max", "float", "contiguous", "clone"),
}
_ARITHMETIC = {"add", "sub", "mul", "div", "__rsub__"}


class NotStoredError(Exception):
    """A pass needs more of an activation than its window, and the rest was not stored."""


@dataclass(frozen=True)
class Activation:
    """The window of an operation's output."""

    index: int  # the number of the operation; 0 is the input
    values: Tensor  # the window's values, or of a `PolyphaseConv` its phases
    window: Window
    conv: int | None = None  # the number of the convolution whose output this is, perhaps rectified
    rectified: bool = False  # of phases: whether a ReLU is still to be applied

    @property
    def is_polyphase(self) -> bool:
        return self.values.ndim == 5

    @property
    def image(self) -> Tensor:
        """The window's values, as the network takes them."""
        if not self.is_polyphase:
            return self.values
        return interleave(self.values).relu_() if self.rectified else interleave(self.values)


class PartialImages(Tensor):
    """Images of which only a window exists."""

    current: "PartialPass"
    activation: Activation
    complete: Tensor | None  # the complete images once an operation has needed them; they replace the window

    @staticmethod
    def __new__(cls, current: "PartialPass", activation: Activation, size: Sequence[int]) -> "PartialImages":
        values = activation.values
        shape = (len(values), values.shape[-3], *size)
        self = Tensor._make_wrapper_subclass(cls, shape, dtype=values.dtype, device=values.device)  # pyright: ignore[reportAttributeAccessIssue]
        self.current, self.activation, self.complete = current, activation, None
        return self

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in _QUERIES or (name == "__get__" and func.__self__.__name__ in _PROPERTIES):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        inputs = _partial_images((args, kwargs))
        return inputs[0].current.compute(func, name, args, kwargs, inputs)

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        current = _partial_images((args, kwargs))[0].current
        return func(*map_leaves(args, current.completed), **map_leaves(kwargs or {}, current.completed))


def _partial_images(arguments: Any) -> list[PartialImages]:
    return [value for value in leaves(arguments) if type(value) is PartialImages]


@dataclass(frozen=True)
class Structure:
    """What the exploring pass finds and all others follow. Local operations are numbered from 1 on."""

    # Convolutions that are computed on complete images.
    whole_convs: set[int] = field(default_factory=set)
    # Convolutions followed by 2×2 max pooling: their windows consist of whole pairs, all that the pooling needs.
    pooled_convs: set[int] = field(default_factory=set)
    # Convolutions that can be computed in their phases, which those of `pooled_convs` are.
    polyphase: dict[int, PolyphaseConv] = field(default_factory=dict)
    # Sums, products and concatenations that are local.
    combinations: set[int] = field(default_factory=set)
    # Operations whose outputs are needed beyond the changed window.
    stored: set[int] = field(default_factory=set)


@dataclass
class PartialPass:
    """One pass through the network. Without `stages` (stored activations) the images are complete and the window is
    one that might change: the pass finds which activations that would need, and the rest of the structure if it
    `explores`.
    """

    structure: Structure
    stages: dict[int, Tensor] | None = None  # by operation
    samples: Tensor | None = None  # the index of the batch in the stages
    explores: bool = False
    activations: dict[int, Activation] = field(default_factory=dict)  # by operation
    count: int = 0  # of operations so far

    def input(self, patch: FeatureMaps, window: Window, size: Sequence[int]) -> PartialImages:
        """Return the input of the network: images of this size, of which the window holds the patch."""
        return self._output(Activation(0, patch, window), size)

    def compute(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: Sequence[PartialImages]
    ) -> Any:
        """Run an operation of the network: in the window if it is known to be local, else on complete images."""
        if "out" not in kwargs and all(images.complete is None and images.ndim == 4 for images in inputs):
            stem = name.removesuffix("_") if not name.endswith("__") else name
            out_of_place = func if stem == name else getattr(Tensor, stem, None)  # stored activations must not change
            result = self._compute_window(out_of_place, stem, args, kwargs, inputs) if out_of_place else None
            in_place = stem != name or (stem in _POINTWISE and _is_in_place(args, kwargs))
            if result is not None and in_place and args[0] is inputs[0]:
                inputs[0].activation = result.activation
                return inputs[0]
            if result is not None:
                return result
        return func(*map_leaves(args, self.completed), **map_leaves(kwargs, self.completed))

    def completed(self, value: Any) -> Any:
        """Return an argument of an operation; for partial images the complete ones."""
        if type(value) is not PartialImages:
            return value
        if value.complete is None:
            everything = ((0, value.shape[2]), (0, value.shape[3]))
            value.complete = self._crop(value.activation, everything, copy=True)
        return value.complete

    def _crop(self, activation: Activation, window: Window, copy: bool = False) -> Tensor:
        """This window of an activation, around it or within."""
        image, own = activation.image, activation.window
        is_within = all(low <= first and last <= high for (low, high), (first, last) in zip(own, window, strict=True))
        if self.stages is None:
            if copy or not is_within:
                self.structure.stored.add(activation.index)
        elif not is_within:
            if activation.index not in self.stages:
                raise NotStoredError
            assert self.samples is not None
            return pasted(self.stages[activation.index], self.samples, image, own, window)
        elif window != own:
            rows, columns = (slice(a - low, b - low) for (a, b), (low, _) in zip(window, own, strict=True))
            image = image[:, :, rows, columns]
        return image.clone() if copy else image

    def _output(self, activation: Activation, size: Sequence[int]) -> PartialImages:
        self.activations[activation.index] = activation
        return PartialImages(self, activation, size)

    def _next_index(self) -> int:
        self.count += 1
        return self.count

    def _compute_window(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: Sequence[PartialImages]
    ) -> PartialImages | None:
        """The output of a local operation; None for any other."""
        if name in _ARITHMETIC and len(args) == 2:
            return self._combination(args, inputs, lambda terms: func(*terms, **kwargs))
        if name == "cat":
            along_channels = args[1:] == (1,) or kwargs == {"dim": 1}
            return self._combination(args[0], inputs, lambda terms: func(terms, 1)) if along_channels else None
        x, options = inputs[0], args[1:]
        if len(inputs) > 1 or not args or args[0] is not x:
            return None
        if name == "conv2d":
            return self._convolution(Conv2d(*args, **kwargs))
        if name == "max_pool2d":
            call = MaxPool2d(*args, **kwargs)
            return self._max_pool_2x2(x) if call.is_2x2 and not call.ceil_mode else self._pooling(func, call)
        if name == "avg_pool2d":
            return self._pooling(func, AvgPool2d(*args, **kwargs))
        if name in ("dropout", "dropout2d") and not Dropout(*args, **kwargs).training:
            return x
        scalars = not any(isinstance(value, Tensor) for value in (*options, *kwargs.values()))
        if (name in _POINTWISE and scalars) or (
            name == "batch_norm" and BatchNorm(*args, **kwargs).uses_running_statistics
        ):
            return self._pointwise(func, x, options, kwargs)
        return None

    def _pointwise(self, func: Any, x: PartialImages, options: Sequence[Any], kwargs: dict[str, Any]) -> PartialImages:
        """A function of each pixel, never in place."""
        activation, index, rectifies = x.activation, self._next_index(), func in RECTIFIERS
        if rectifies and activation.is_polyphase:
            return self._output(replace(activation, index=index, rectified=True), x.shape[2:])
        kwargs = {name: value for name, value in kwargs.items() if name != "inplace"}
        values = func(activation.image, *(option for option in options if option is not True), **kwargs)
        conv = activation.conv if rectifies else None
        return self._output(Activation(index, values, activation.window, conv), x.shape[2:])

    def _combination(
        self, terms: Sequence[Any], inputs: Sequence[PartialImages], apply: Callable[[list[Any]], Tensor]
    ) -> PartialImages | None:
        """A sum, product or concatenation, in the smallest window around those of all inputs."""
        index, size = self._next_index(), inputs[0].shape[2:]
        if self.explores and all(images.shape[2:] == size for images in inputs) and all(map(_is_uniform, terms)):
            self.structure.combinations.add(index)
        if index not in self.structure.combinations:
            return None
        windows = [images.activation.window for images in inputs]
        window: Any = tuple((min(w[k][0] for w in windows), max(w[k][1] for w in windows)) for k in (0, 1))
        crops = [self._crop(term.activation, window) if type(term) is PartialImages else term for term in terms]
        return self._output(Activation(index, apply(crops), window), size)

    def _convolution(self, call: Conv2d) -> PartialImages | None:
        input, weight, bias, stride, padding, dilation = *call[:3], *map(pair, call[3:6])
        if stride is None or padding is None or dilation is None:
            return None
        index, structure = self._next_index(), self.structure
        extents = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
        shapes = zip(extents, stride, padding, input.shape[2:], strict=True)
        fields: Any = tuple(ReceptiveField(*shape, index in structure.pooled_convs) for shape in shapes)
        if self.explores:
            changed = propagated(fields, input.activation.window)[0]
            if covered_share(changed, [f.outputs for f in fields]) > MOST_CHANGED:
                structure.whole_convs.add(index)
        if index in structure.whole_convs:
            return None
        in_float32 = torch.is_autocast_enabled("cpu") and not faster_in_bf16(len(weight))
        if in_float32:
            weight, bias = weight.float(), None if bias is None else bias.float()
        if self.explores and call.is_plain and input.shape[1] <= FEW_CHANNELS:
            structure.polyphase[index] = PolyphaseConv(weight, bias, (0, 0))
        uses_phases = index in structure.pooled_convs and self.stages is not None
        polyphase = structure.polyphase.get(index) if uses_phases else None

        def convolve(x: Tensor, padding: Span) -> Tensor:
            with torch.autocast("cpu", enabled=False) if in_float32 else nullcontext():
                x = x.float() if in_float32 else x
                if polyphase is not None:
                    return polyphase(x, padding)
                return torch.conv2d(x, weight, bias, stride, padding, dilation, call.groups)

        return self._neighbourhood(index, input, fields, convolve, index)

    def _max_pool_2x2(self, x: PartialImages) -> PartialImages:
        activation, index = x.activation, self._next_index()
        fields: Any = tuple(ReceptiveField(2, 2, 0, size) for size in x.shape[2:])
        if self.explores and activation.conv is not None and not any(size % 2 for size in x.shape[2:]):
            self.structure.pooled_convs.add(activation.conv)
        if activation.is_polyphase:
            largest, window = activation.values.amax(1), propagated(fields, activation.window)[0]
            largest = largest.relu_() if activation.rectified else largest
            return self._output(Activation(index, largest, window), [f.outputs for f in fields])
        return self._neighbourhood(
            index, x, fields, lambda h, _: max_pool_2x2(h[..., : h.shape[2] // 2 * 2, : h.shape[3] // 2 * 2])
        )

    def _pooling(self, func: Any, call: MaxPool2d | AvgPool2d) -> PartialImages | None:
        if call.window is None or call.ceil_mode:
            return None
        (kernel, stride), x = call.window, call.input
        fields: Any = tuple(
            ReceptiveField(k, step, 0, size) for k, step, size in zip(kernel, stride, x.shape[2:], strict=True)
        )
        return self._neighbourhood(self._next_index(), x, fields, lambda h, _: func(h, kernel, stride))

    def _neighbourhood(
        self,
        index: int,
        x: PartialImages,
        fields: Fields,
        apply: Callable[[Tensor, Span], Tensor],
        conv: int | None = None,
    ) -> PartialImages:
        """The changed outputs of a layer with these receptive fields. `apply` takes the inputs that they depend on, and
        the padding that both sides have in common: of zeros, as of a convolution (poolings here have none).
        """
        changed, inputs, padding = propagated(fields, x.activation.window)
        h = self._crop(x.activation, inputs)
        if self.stages is None:
            padding: Any = tuple((f.padding, f.padding) for f in fields)
        (up, down), (left, right) = padding
        common = (up, left)
        if padding != ((up, up), (left, left)):
            h, common = F.pad(h, (left, right, up, down)), (0, 0)
        return self._output(Activation(index, apply(h, common), changed, conv), [f.outputs for f in fields])


def _is_in_place(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a pointwise function is to write over its input."""
    return kwargs.get("inplace") is True or any(value is True for value in args[1:])


def _is_uniform(term: Any) -> bool:
    """Whether a term is partial images itself, or the same for all samples and pixels. (Values that depend on the image
    differ between samples.)
    """
    if not isinstance(term, Tensor):
        return isinstance(term, int | float)
    if type(term) is PartialImages or term.ndim == 0:
        return True
    return term.shape[-2:] == (1, 1) and (term.ndim < 4 or len(term) == 1)


def pasted(stage: FeatureMaps, samples: Tensor, patch: FeatureMaps, window: Window, crop: Window) -> FeatureMaps:
    """Return the part `crop` of a stage for these samples, with the patch in its window."""
    if crop == window:
        return patch
    (top, bottom), (left, right) = crop
    channels_last = stage.is_contiguous(memory_format=torch.channels_last) and not stage.is_contiguous()
    view = stage[:, :, top:bottom, left:right]
    if channels_last:
        h = view.permute(0, 2, 3, 1).index_select(0, samples).permute(0, 3, 1, 2)
    else:
        h = view.index_select(0, samples)
    (a, b), (c, d) = window
    # A window at the edge of the input may extend beyond what any output depends on.
    first_row, last_row, first_column, last_column = max(a, top), min(b, bottom), max(c, left), min(d, right)
    if first_row < last_row and first_column < last_column:
        h[:, :, first_row - top : last_row - top, first_column - left : last_column - left] = patch[
            :, :, first_row - a : last_row - a, first_column - c : last_column - c
        ]
    return h

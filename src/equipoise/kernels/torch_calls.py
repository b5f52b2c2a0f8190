"""The arguments of PyTorch's layer functions, under PyTorch's own names: `Conv2d(*args, **kwargs)`.

For code that intercepts the calls a network makes and replaces some of them.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

Pair = tuple[int, int]


def pair(value: Any) -> Pair | None:
    """Return an argument as a pair (vertical, horizontal); one integer counts for both. None for anything else."""
    if isinstance(value, int):
        return value, value
    return tuple(value) if isinstance(value, tuple | list) and len(value) == 2 else None


def leaves(arguments: Any) -> Iterator[Any]:
    """Yield all values in nested tuples, lists and dictionaries, in their order."""
    if isinstance(arguments, tuple | list | dict):
        for value in arguments.values() if isinstance(arguments, dict) else arguments:
            yield from leaves(value)
    else:
        yield arguments


def map_leaves(arguments: Any, function: Callable[[Any], Any]) -> Any:
    """Return nested tuples, lists and dictionaries with the function applied to their values."""
    kind = type(arguments)
    if kind is tuple or kind is list:
        return kind([map_leaves(value, function) for value in arguments])
    if kind is dict:
        return {name: map_leaves(value, function) for name, value in arguments.items()}
    return function(arguments)


class Conv2d(NamedTuple):
    """Arguments of `torch.conv2d`."""

    input: Any
    weight: Tensor
    bias: Tensor | None = None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1


class BatchNorm(NamedTuple):
    """Arguments of `torch.nn.functional.batch_norm`."""

    input: Any
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5

    @property
    def uses_running_statistics(self) -> bool:
        """Whether it normalises by fixed running statistics, so that samples do not depend on each other."""
        return not self.training and self.running_mean is not None and self.running_var is not None


class MaxPool2d(NamedTuple):
    """Arguments of `torch.nn.functional.max_pool2d`."""

    input: Any
    kernel_size: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False
    return_indices: bool = False

    @property
    def window(self) -> tuple[Pair, Pair] | None:
        """Kernel size and stride; None with padding, dilation or indices."""
        plain = pair(self.dilation) == (1, 1) and not self.return_indices
        return _window(self.kernel_size, self.stride, self.padding) if plain else None

    @property
    def is_2x2(self) -> bool:
        """Whether it takes the maxima of disjoint 2×2 windows."""
        return self.window == ((2, 2), (2, 2))


class AvgPool2d(NamedTuple):
    """Arguments of `torch.nn.functional.avg_pool2d`."""

    input: Any
    kernel_size: Any
    stride: Any = None
    padding: Any = 0
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor_override: int | None = None

    @property
    def window(self) -> tuple[Pair, Pair] | None:
        """Kernel size and stride; None with padding or another divisor."""
        return _window(self.kernel_size, self.stride, self.padding) if self.divisor_override is None else None


class LeakyReLU(NamedTuple):
    """Arguments of `torch.nn.functional.leaky_relu`."""

    input: Any
    negative_slope: float = 0.01
    inplace: bool = False


class Dropout(NamedTuple):
    """Arguments of `torch.nn.functional.dropout` and its variants."""

    input: Any
    p: float = 0.5
    training: bool = True
    inplace: bool = False


def _window(kernel_size: Any, stride: Any, padding: Any) -> tuple[Pair, Pair] | None:
    kernel, strides = pair(kernel_size), pair(stride or kernel_size)
    return None if kernel is None or strides is None or pair(padding) != (0, 0) else (kernel, strides)

"""Distance-preserving feature extractors for deep kernels: DUE's residual networks with bounded layers.

A kernel on features sees two inputs as far apart only if their features are. A residual block `h + g(h)` whose branch g
has Lipschitz constant c < 1 keeps distances up to the factors 1 ± c, so that inputs far from the data cannot collapse
onto it (van Amersfoort et al. 2021, "On Feature Collapse and Deep Kernel Learning for Single Forward Pass
Uncertainty"; the models of U, App. D.4). A `Normalize` layer may come first.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from equipoise.core.errors import require
from equipoise.nets.lipschitz import BoundedBatchNorm2d, bounded
from equipoise.nets.residual import wide_layout


class BoundedResidual(nn.Module):
    """`f(h) = h + relu(W h + b)` with `|W| <= c`: in eval mode `(1-c) |a-b| <= |f(a) - f(b)| <= (1+c) |a-b|`."""

    def __init__(self, features: int, coefficient: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear = bounded(nn.Linear(features, features), coefficient)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features"]:
        """Features of the same shape."""
        return h + self.dropout(F.relu(self.linear(h)))


class FCResNet(nn.Module):
    """Flatten, a linear layer to `features`, and `depth` blocks `h + relu(linear(h))`, every layer with norm <= c.

    The input layer is bounded too, as in the authors' code, so that the network is `c (1+c)^depth`-Lipschitz. `shape`
    is that of one input, of any rank; `dropout` applies to the branches. Raises `EquipoiseError` for numbers out of
    range.
    """

    features: int
    """Number of features."""

    def __init__(
        self, shape: Sequence[int], features: int = 128, depth: int = 4, coefficient: float = 0.95, dropout: float = 0.0
    ) -> None:
        super().__init__()
        require(features >= 1 and depth >= 0, f"features = {features} must be at least 1, depth = {depth} at least 0.")
        require(0 <= dropout < 1, f"dropout must be in [0, 1), got {dropout}.")
        self.features = features
        self.first = bounded(nn.Linear(math.prod(shape), features), coefficient)
        self.blocks = nn.Sequential(*(BoundedResidual(features, coefficient, dropout) for _ in range(depth)))

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch features"]:
        """Feature vectors of a batch."""
        return self.blocks(self.first(x.flatten(1)))


class BoundedWideBlock(nn.Module):
    """`skip(h) + conv(dropout(relu(bn(conv(relu(bn(h)))))))` with 3x3 convolutions, every layer with norm <= c.

    Where the shape changes, the skip is a 1x1 convolution. `size` is the height and width of the input images.
    """

    def __init__(
        self, inputs: int, outputs: int, size: tuple[int, ...], stride: int, coefficient: float, dropout: float
    ) -> None:
        super().__init__()
        norm = partial(BoundedBatchNorm2d, coefficient=coefficient)
        self.bn1 = norm(inputs)
        self.conv1 = _convolution(inputs, outputs, size, coefficient, stride=stride)
        self.bn2 = norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _convolution(outputs, outputs, _strided(size, stride), coefficient)
        reshapes = stride != 1 or inputs != outputs
        self.skip = (
            _convolution(inputs, outputs, size, coefficient, kernel=1, stride=stride) if reshapes else nn.Identity()
        )

    def forward(self, h: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs h2 w2"]:
        """Features of `outputs` channels, each side divided by the stride, rounded up."""
        branch = self.conv1(F.relu(self.bn1(h)))
        return self.skip(h) + self.conv2(self.dropout(F.relu(self.bn2(branch))))


class WideResNetFeatures(nn.Module):
    """A WideResNet without its last layer, every convolution and batch-norm with norm at most `coefficient`.

    conv3x3 to 16 channels, `(depth - 4) / 6` blocks each of 16, 32 and 64 times `widen` channels, bn, relu, mean over
    the image (Zagoruyko & Komodakis 2016; bounded as by van Amersfoort et al. 2021, who use depth 28, widen 10, c = 3).
    `shape` is (channels, height, width); the last two stages halve each side. Raises `EquipoiseError` for inputs that
    are not images and numbers out of range.
    """

    features: int
    """Number of features."""

    def __init__(
        self, shape: Sequence[int], depth: int = 10, widen: int = 1, coefficient: float = 3.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        layout = wide_layout(shape, depth, widen)
        require(0 <= dropout < 1, f"dropout must be in [0, 1), got {dropout}.")
        channels, *size = shape
        self.stem = _convolution(channels, 16, tuple(size), coefficient)
        self.blocks = nn.Sequential()
        for inputs, outputs, stride in layout:
            self.blocks.append(BoundedWideBlock(inputs, outputs, tuple(size), stride, coefficient, dropout))
            size = _strided(size, stride)
        self.features = 64 * widen
        self.bn = BoundedBatchNorm2d(self.features, coefficient)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """Feature vectors of a batch of images."""
        return F.relu(self.bn(self.blocks(self.stem(x)))).mean((2, 3))


def _strided(size: Sequence[int], stride: int) -> tuple[int, ...]:
    return tuple(-(-side // stride) for side in size)


def _convolution(
    inputs: int, outputs: int, size: tuple[int, ...], coefficient: float, kernel: int = 3, stride: int = 1
) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return bounded(layer, coefficient, size)

"""Residual networks in their layouts for small images."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from equipoise.core.errors import require, unknown
from equipoise.nets.convolutional import require_images


def layout(stem: int, stages: Sequence[tuple[int, int]], blocks: int) -> list[tuple[int, int, int]]:
    """Inputs, outputs and stride of each residual block after a stem of `stem` channels.

    Every stage, given by its channels and the stride of its first block, has that many `blocks`.
    """
    strides = [(channels, stride if block == 0 else 1) for channels, stride in stages for block in range(blocks)]
    inputs = [stem, *(channels for channels, _ in strides)]
    return [(before, after, stride) for before, (after, stride) in zip(inputs, strides, strict=False)]


def wide_layout(shape: Sequence[int], depth: int, widen: int) -> list[tuple[int, int, int]]:
    """The blocks of a WideResNet. Raises `EquipoiseError` unless `shape` is that of images, and for other numbers."""
    require_images("a WideResNet", shape)
    require(depth >= 10 and depth % 6 == 4, f"depth of a WideResNet must be 10, 16, 22, ... (6n + 4), got {depth}.")
    require(widen >= 1, f"widen of a WideResNet must be at least 1, got {widen}.")
    return layout(16, ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)), (depth - 4) // 6)


_LAYOUT_18 = layout(64, ((64, 1), (128, 2), (256, 2), (512, 2)), 2)


class _ResidualNet(nn.Module):
    """A stem, residual blocks, one feature per channel averaged over the pixels, and a linear layer.

    The global average makes it accept images of any size.
    """

    stem: nn.Module
    blocks: nn.Sequential
    features: nn.Module
    linear: nn.Module

    @property
    def _trunk(self) -> tuple[nn.Sequential, nn.Module]:
        """The blocks, and the features."""
        return self.blocks, self.features

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of images in [0, 1]."""
        blocks, features = self._trunk
        return self.linear(features(blocks(self.stem(x))))

    def named_stages(self) -> dict[str, nn.Module]:
        """The stem, the blocks `block1`, `block2`, ..., the averaged features and the logits."""
        blocks, features = self._trunk
        numbered = {f"block{i}": block for i, block in enumerate(blocks, start=1)}
        return {"stem": self.stem, **numbered, "features": features, "logits": self.linear}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: `relu(bn(conv(relu(bn(conv(x))))) + x)`, dropout after both ReLUs.

    Where the shape changes, the shortcut is a 1x1 convolution with batch-norm instead of `x` (He et al. 2016, "Deep
    Residual Learning for Image Recognition").
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.dropout1 = _dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.dropout2 = _dropout(dropout)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs h2 w2"]:
        """Features of `outputs` channels, each side divided by the stride, rounded up."""
        # In place wherever the gradient does not need the old value: fresh memory costs as much as arithmetic.
        skip = x if self.shortcut is None else self.shortcut(x)
        h = self.dropout1(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return self.dropout2(F.relu(self.bn2(self.conv2(h)).add_(skip), inplace=True))


class PreActBlock(nn.Module):
    """Two pre-activated 3x3 convolutions and a shortcut: `x + conv(relu(bn(conv(relu(bn(x))))))`.

    Where the shape changes, the shortcut is a 1x1 convolution instead of `x`: of the pre-activated input `relu(bn(x))`
    (He et al. 2016, "Identity Mappings in Deep Residual Networks"), or with `raw_shortcut` of `x` itself.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, raw_shortcut: bool = False) -> None:
        super().__init__()
        self.raw_shortcut = raw_shortcut
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False)
        reshapes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False) if reshapes else None

    def forward(self, x: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs h2 w2"]:
        """Features of `outputs` channels, each side divided by the stride, rounded up."""
        # In place wherever the gradient does not need the old value: fresh memory costs as much as arithmetic.
        active = F.relu(self.bn1(x), inplace=True)
        skip = x if self.shortcut is None else self.shortcut(x if self.raw_shortcut else active)
        branch = F.relu(self.bn2(self.conv1(active)), inplace=True)
        return self.conv2(branch).add_(skip)


class PreActFeatures(nn.Module):
    """The mean over all pixels of `relu(bn(x))`: one number per channel."""

    def __init__(self, bn: nn.Module) -> None:
        super().__init__()
        self.bn = bn

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels"]:
        """The features."""
        return F.relu(self.bn(x), inplace=True).mean(dim=(2, 3))


class _BasicResNet(_ResidualNet):
    """A network of `BasicBlock`s."""

    def __init__(
        self, name: str, shape: Sequence[int], classes: int, blocks: list[tuple[int, int, int]], dropout: float
    ) -> None:
        super().__init__()
        require_images(name, shape)
        require(0 <= dropout < 1, f"dropout of a {name} must be a probability in [0, 1), got {dropout}.")
        first, last = blocks[0][0], blocks[-1][1]
        self.stem = nn.Sequential(
            _conv3x3(shape[0], first), nn.BatchNorm2d(first), nn.ReLU(inplace=True), _dropout(dropout)
        )
        self.blocks = nn.Sequential(*(BasicBlock(*block, dropout) for block in blocks))
        self.features = _mean_over_pixels()
        self.linear = nn.Linear(last, classes)


class ResNet18(_BasicResNet):
    """ResNet-18: conv3x3, bn, relu, two blocks each of 64, 128, 256 and 512 channels, mean over the pixels, linear.

    With `dropout` = 0.2 it is the network for Monte Carlo dropout of Table 7 of the UDP paper (Table 5 of the UTA
    paper): 17 layers of `nn.Dropout(dropout)`, after the ReLU that follows each 3x3 convolution. Where the table
    contradicts a ResNet-18 with 512 features, this is a ResNet-18: two blocks of 64 channels (not three), 64·2^(l-1)
    channels in group l (not 64·l), and no padding of the 1x1 convolutions. 11,173,962 parameters for 3 channels and 10
    classes. The groups after the first halve each side. Raises `EquipoiseError` for inputs that are not images, and a
    dropout probability outside [0, 1).
    """

    def __init__(self, shape: Sequence[int], classes: int = 10, dropout: float = 0.0) -> None:
        super().__init__("resnet18", shape, classes, _LAYOUT_18, dropout)


class ResNet20(_BasicResNet):
    """conv3x3, bn, relu, three blocks each of 16, 32 and 64 channels, mean over the pixels, linear (He et al. 2016,
    "Deep Residual Learning for Image Recognition", Sec. 4.2, n = 3; f of the robustness framework on CIFAR-10, F,
    Sec. 6).

    Where the shape changes the shortcut is a 1x1 convolution with batch-norm (their option B; on CIFAR they padded with
    zeros instead, which saves 2,752 of the 272,474 parameters). The second and third stage halve each side. Raises
    `EquipoiseError` for inputs that are not images.
    """

    def __init__(self, shape: Sequence[int], classes: int = 10) -> None:
        super().__init__("resnet20", shape, classes, layout(16, ((16, 1), (32, 2), (64, 2)), 3), 0.0)


class PreActResNet18(_ResidualNet):
    """Pre-activation ResNet-18: conv3x3, two blocks each of 64, 128, 256 and 512 channels, bn, relu, mean, linear.

    The layout of He et al. (2016); 11,172,170 parameters for 3 channels and 10 classes. The stages after the first
    halve each side. Raises `EquipoiseError` for inputs that are not images.
    """

    def __init__(self, shape: Sequence[int], classes: int = 10) -> None:
        super().__init__()
        require_images("preact-resnet18", shape)
        self.stem = _conv3x3(shape[0], 64)
        self.stages = nn.Sequential(*(PreActBlock(*block) for block in _LAYOUT_18))
        self.bn = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, classes)

    @property
    def _trunk(self) -> tuple[nn.Sequential, nn.Module]:
        return self.stages, PreActFeatures(self.bn)


class PreActResNet18UDP(_ResidualNet):
    """The pre-activation ResNet-18 of the UDP paper's code: as `PreActResNet18`, but the 1x1 shortcuts see the block's
    raw input, and neither batch-norm nor ReLU follows the last block.

    11,171,146 parameters for 3 channels and 10 classes. `init="he-fan-out"` draws the weights of every convolution
    from a normal distribution of variance `2 / (k² outputs)` and starts the linear layer's bias at 0 (He et al. 2015,
    fan-out; Andriushchenko & Flammarion 2020), as the authors do on SVHN and with augmentation; `"torch"` is PyTorch's
    default. Raises `EquipoiseError` for inputs that are not images and for another `init`.
    """

    def __init__(self, shape: Sequence[int], classes: int = 10, init: str = "torch") -> None:
        super().__init__()
        if init not in ("torch", "he-fan-out"):
            raise unknown("init of a preact-resnet18-udp", init, ("torch", "he-fan-out"))
        require_images("preact-resnet18-udp", shape)
        self.stem = _conv3x3(shape[0], 64)
        self.stages = nn.Sequential(*(PreActBlock(*block, raw_shortcut=True) for block in _LAYOUT_18))
        self.features = _mean_over_pixels()
        self.linear = nn.Linear(512, classes)
        if init == "he-fan-out":
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(self.linear.bias)

    @property
    def _trunk(self) -> tuple[nn.Sequential, nn.Module]:
        return self.stages, self.features


class WideResNet(_ResidualNet):
    """conv3x3 of 16 channels, `(depth - 4) / 6` pre-activation blocks each of 16, 32 and 64 times `widen` channels, bn,
    relu, mean, linear (Zagoruyko & Komodakis 2016; WideResNet-34-10 in R and in TRADES: 46,160,474 parameters for 3
    channels and 10 classes).

    The stages after the first halve each side. Raises `EquipoiseError` for inputs that are not images, and a depth that
    is not 10, 16, 22, ...
    """

    def __init__(self, shape: Sequence[int], classes: int = 10, depth: int = 34, widen: int = 10) -> None:
        super().__init__()
        blocks = wide_layout(shape, depth, widen)
        self.stem = _conv3x3(shape[0], 16)
        self.blocks = nn.Sequential(*(PreActBlock(*block) for block in blocks))
        self.features = PreActFeatures(nn.BatchNorm2d(64 * widen))
        self.linear = nn.Linear(64 * widen, classes)


def _conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)


def _mean_over_pixels() -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _dropout(p: float) -> nn.Module:
    return nn.Dropout(p) if p > 0 else nn.Identity()

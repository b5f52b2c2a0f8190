"""Pre-activation ResNet-18 in two layouts for small images: He et al.'s, and that of the code of the UDP paper."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from equipoise.core.errors import require, unknown


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


class PreActResNet18(nn.Module):
    """Pre-activation ResNet-18: conv3x3, two blocks each of 64, 128, 256 and 512 channels, bn, relu, mean, linear.

    The layout of He et al. (2016); 11,172,170 parameters for 3 channels and 10 classes. The stages after the first
    halve each side, and the global average makes it accept any image size. Raises `EquipoiseError` for inputs that are
    not images.
    """

    def __init__(self, shape: Sequence[int], classes: int = 10) -> None:
        super().__init__()
        self.stem = _stem("preact-resnet18", shape)
        self.stages = _stages()
        self.bn = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, classes)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of images in [0, 1]."""
        return self.linear(self._features(self.stages(self.stem(x))))

    def named_stages(self) -> dict[str, nn.Module]:
        """The first convolution, the blocks, the averaged features and the logits; `block8` is the last convolution."""
        return _named(self.stem, self.stages, self._features, self.linear)

    @property
    def _features(self) -> nn.Module:
        return PreActFeatures(self.bn)


class PreActResNet18UDP(nn.Module):
    """The pre-activation ResNet-18 of the UDP paper's code: as `PreActResNet18`, but the 1x1 shortcuts see the block's
    raw input, and neither batch-norm nor ReLU follows the last block. Behind it are only the mean and a linear layer.

    11,171,146 parameters for 3 channels and 10 classes. `init="he-fan-out"` draws the weights of every convolution
    from a normal distribution of variance `2 / (k² outputs)` and starts the linear layer's bias at 0 (He et al. 2015,
    fan-out; Andriushchenko & Flammarion 2020), as the authors do on SVHN and with augmentation; `"torch"` is PyTorch's
    default. Raises `EquipoiseError` for inputs that are not images and for another `init`.
    """

    def __init__(self, shape: Sequence[int], classes: int = 10, init: str = "torch") -> None:
        super().__init__()
        if init not in ("torch", "he-fan-out"):
            raise unknown("init of a preact-resnet18-udp", init, ("torch", "he-fan-out"))
        self.stem = _stem("preact-resnet18-udp", shape)
        self.stages = _stages(raw_shortcut=True)
        self.features = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.linear = nn.Linear(512, classes)
        if init == "he-fan-out":
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(self.linear.bias)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of images in [0, 1]."""
        return self.linear(self.features(self.stages(self.stem(x))))

    def named_stages(self) -> dict[str, nn.Module]:
        """The first convolution, the blocks, the averaged features and the logits; `block8` is the last convolution."""
        return _named(self.stem, self.stages, self.features, self.linear)


def _stem(name: str, shape: Sequence[int]) -> nn.Module:
    """The first convolution. Raises `EquipoiseError` for inputs that are not images."""
    require(len(shape) == 3, f"{name} needs images (channels, height, width), got inputs of shape {tuple(shape)}.")
    return nn.Conv2d(shape[0], 64, kernel_size=3, padding=1, bias=False)


def _stages(raw_shortcut: bool = False) -> nn.Sequential:
    """The eight residual blocks."""
    sizes = ((64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2))
    return nn.Sequential(*(PreActBlock(*size, raw_shortcut=raw_shortcut) for size in (*sizes, (512, 512, 1))))


def _named(stem: nn.Module, blocks: nn.Sequential, features: nn.Module, linear: nn.Module) -> dict[str, nn.Module]:
    numbered = {f"block{i}": block for i, block in enumerate(blocks, start=1)}
    return {"stem": stem, **numbered, "features": features, "logits": linear}


class PreActFeatures(nn.Module):
    """The mean over all pixels of `relu(bn(x))`: one number per channel."""

    def __init__(self, bn: nn.Module) -> None:
        super().__init__()
        self.bn = bn

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels"]:
        """The features."""
        return F.relu(self.bn(x), inplace=True).mean(dim=(2, 3))

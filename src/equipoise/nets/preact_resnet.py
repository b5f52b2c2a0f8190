"""Pre-activation ResNet-18 in its layout for small images."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from equipoise.errors import require


class PreActBlock(nn.Module):
    """Two pre-activated 3x3 convolutions and a shortcut: `x + conv(relu(bn(conv(relu(bn(x))))))`.

    Where the shape changes, the shortcut is a 1x1 convolution of the pre-activated input instead of `x`
    (He et al. 2016, "Identity Mappings in Deep Residual Networks").
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
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
        skip = x if self.shortcut is None else self.shortcut(active)
        branch = F.relu(self.bn2(self.conv1(active)), inplace=True)
        return self.conv2(branch).add_(skip)


class PreActResNet18(nn.Module):
    """Pre-activation ResNet-18: conv3x3, two blocks each of 64, 128, 256 and 512 channels, bn, relu, mean, linear.

    The setup of Andriushchenko & Flammarion (2020) that the UDP paper uses for CIFAR-10 and SVHN (Appendix F.1.2);
    11,172,170 parameters for 3 channels and 10 classes. The stages after the first halve each side, and the global
    average makes it accept any image size. Raises `EquipoiseError` for inputs that are not images.
    """

    def __init__(self, shape: Sequence[int], classes: int = 10) -> None:
        super().__init__()
        require(
            len(shape) == 3,
            f"preact-resnet18 needs images (channels, height, width), got inputs of shape {tuple(shape)}.",
        )
        self.stem = nn.Conv2d(shape[0], 64, kernel_size=3, padding=1, bias=False)
        self.stages = nn.Sequential(
            PreActBlock(64, 64),
            PreActBlock(64, 64),
            PreActBlock(64, 128, stride=2),
            PreActBlock(128, 128),
            PreActBlock(128, 256, stride=2),
            PreActBlock(256, 256),
            PreActBlock(256, 512, stride=2),
            PreActBlock(512, 512),
        )
        self.bn = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, classes)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of images in [0, 1]."""
        return self.linear(self._features(self.stages(self.stem(x))))

    def named_stages(self) -> dict[str, nn.Module]:
        """The first convolution, the blocks, the averaged features and the logits; `block8` is the last convolution."""
        blocks = {f"block{i}": block for i, block in enumerate(self.stages, start=1)}
        return {"stem": self.stem, **blocks, "features": self._features, "logits": self.linear}

    @property
    def _features(self) -> nn.Module:
        return PreActFeatures(self.bn)


class PreActFeatures(nn.Module):
    """The mean over all pixels of `relu(bn(x))`: one number per channel."""

    def __init__(self, bn: nn.Module) -> None:
        super().__init__()
        self.bn = bn

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels"]:
        """The features."""
        return F.relu(self.bn(x), inplace=True).mean(dim=(2, 3))

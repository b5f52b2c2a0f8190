"""ResNet-18 in its layout for small images, with dropout after every convolution if asked for."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from equipoise.core.errors import require


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: `relu(bn(conv(relu(bn(conv(x))))) + x)`, dropout behind both ReLUs.

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


class ResNet18(nn.Module):
    """ResNet-18: conv3x3, bn, relu, two blocks each of 64, 128, 256 and 512 channels, mean over the pixels, linear.

    With `dropout` = 0.2 it is the network for Monte-Carlo dropout of Table 7 of the UDP paper (Table 5 of the UTA
    paper): 17 layers of `nn.Dropout(dropout)`, behind the ReLU that follows each 3x3 convolution. Where the table
    contradicts a ResNet-18 with 512 features, this is a ResNet-18: two blocks of 64 channels (not three), 64·2^(l-1)
    channels in group l (not 64·l), and no padding of the 1x1 convolutions. 11,173,962 parameters for 3 channels and 10
    classes. The groups after the first halve each side, and the global average makes it accept any image size. Raises
    `EquipoiseError` for inputs that are not images, and a dropout probability outside [0, 1).
    """

    def __init__(self, shape: Sequence[int], classes: int = 10, dropout: float = 0.0) -> None:
        super().__init__()
        require(
            len(shape) == 3, f"resnet18 needs images (channels, height, width), got inputs of shape {tuple(shape)}."
        )
        require(0 <= dropout < 1, f"dropout of a resnet18 must be a probability in [0, 1), got {dropout}.")
        self.stem = nn.Sequential(
            nn.Conv2d(shape[0], 64, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            _dropout(dropout),
        )
        self.blocks = nn.Sequential(
            BasicBlock(64, 64, dropout=dropout),
            BasicBlock(64, 64, dropout=dropout),
            BasicBlock(64, 128, stride=2, dropout=dropout),
            BasicBlock(128, 128, dropout=dropout),
            BasicBlock(128, 256, stride=2, dropout=dropout),
            BasicBlock(256, 256, dropout=dropout),
            BasicBlock(256, 512, stride=2, dropout=dropout),
            BasicBlock(512, 512, dropout=dropout),
        )
        self.features = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.linear = nn.Linear(512, classes)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of images in [0, 1]."""
        return self.linear(self.features(self.blocks(self.stem(x))))

    def named_stages(self) -> dict[str, nn.Module]:
        """The stem, the blocks, the averaged features and the logits; `block8` ends with the last convolution."""
        blocks = {f"block{i}": block for i, block in enumerate(self.blocks, start=1)}
        return {"stem": self.stem, **blocks, "features": self.features, "logits": self.linear}


def _dropout(p: float) -> nn.Module:
    return nn.Dropout(p) if p > 0 else nn.Identity()

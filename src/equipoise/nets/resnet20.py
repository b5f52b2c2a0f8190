"""ResNet-20, the residual network made for CIFAR."""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from equipoise.core.errors import require
from equipoise.nets.resnet import BasicBlock


class ResNet20(nn.Module):
    """conv3x3, bn, relu, three blocks each of 16, 32 and 64 channels, mean over the pixels, linear (He et al. 2016,
    "Deep Residual Learning for Image Recognition", Sec. 4.2, n = 3; f of the robustness framework on CIFAR-10, F,
    Sec. 6).

    Where the shape changes the shortcut is a 1x1 convolution with batch-norm (their option B; on CIFAR they padded with
    zeros instead, which saves 2,752 of the 272,474 parameters). The second and third stage halve each side, and the
    global average makes it accept any image size. Raises `EquipoiseError` for inputs that are not images.
    """

    def __init__(self, shape: Sequence[int], classes: int = 10) -> None:
        super().__init__()
        require(
            len(shape) == 3, f"resnet20 needs images (channels, height, width), got inputs of shape {tuple(shape)}."
        )
        stem = nn.Conv2d(shape[0], 16, kernel_size=3, padding=1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        widths = (16, 16, 16, 16, 32, 32, 32, 64, 64, 64)
        self.blocks = nn.Sequential(*(BasicBlock(a, b, stride=b // a) for a, b in pairwise(widths)))
        self.features = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of images in [0, 1]."""
        return self.linear(self.features(self.blocks(self.stem(x))))

    def named_stages(self) -> dict[str, nn.Module]:
        """The stem, the nine blocks, the averaged features and the logits; `block9` ends with the last convolution."""
        blocks = {f"block{i}": block for i, block in enumerate(self.blocks, start=1)}
        return {"stem": self.stem, **blocks, "features": self.features, "logits": self.linear}

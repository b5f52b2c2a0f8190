"""Wide residual networks in their layout for small images."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from equipoise.core.errors import require
from equipoise.nets.preact_resnet import PreActBlock, PreActFeatures


class WideResNet(nn.Module):
    """conv3x3 of 16 channels, `(depth - 4) / 6` pre-activation blocks each of 16, 32 and 64 times `widen` channels, bn,
    relu, mean, linear (Zagoruyko & Komodakis 2016; WideResNet-34-10 in R and in TRADES: 46,160,474 parameters for 3
    channels and 10 classes). The stages after the first halve each side. Raises `EquipoiseError` for inputs that are
    not images, and a depth that is not 10, 16, 22, ...
    """

    def __init__(self, shape: Sequence[int], classes: int = 10, depth: int = 34, widen: int = 10) -> None:
        super().__init__()
        require(
            len(shape) == 3,
            f"a WideResNet needs images (channels, height, width), got inputs of shape {tuple(shape)}.",
        )
        require(depth >= 10 and depth % 6 == 4, f"depth of a WideResNet must be 10, 16, 22, ... (6n + 4), got {depth}.")
        require(widen >= 1, f"widen of a WideResNet must be at least 1, got {widen}.")
        inputs, blocks = 16, []
        self.stem = nn.Conv2d(shape[0], inputs, kernel_size=3, padding=1, bias=False)
        for outputs, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
            for step in (stride, *[1] * ((depth - 10) // 6)):
                blocks.append(PreActBlock(inputs, outputs, step))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.features = PreActFeatures(nn.BatchNorm2d(inputs))
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of images in [0, 1]."""
        return self.linear(self.features(self.blocks(self.stem(x))))

    def named_stages(self) -> dict[str, nn.Module]:
        """The first convolution, the blocks, the averaged features and the logits."""
        blocks = {f"block{i}": block for i, block in enumerate(self.blocks, start=1)}
        return {"stem": self.stem, **blocks, "features": self.features, "logits": self.linear}

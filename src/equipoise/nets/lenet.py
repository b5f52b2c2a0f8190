"""LeNet: two convolutions and three linear layers."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from equipoise.core.errors import require

WIDEST = 12
"""The largest `width` of a `LeNet`."""


class LeNet(nn.Module):
    """LeNet for images of at least 12x12 pixels: conv5x5 (padding 2), pool, conv5x5, pool, three linear layers, ReLUs.

    The defaults on 1x28x28 are Table 6 of the UDP paper (Table 3 of the UTA paper). `width` (1 to 12) multiplies the
    filters of both convolutions and the first linear layer (UDP paper, Appendix F.2). `filters=(32, 64)` and
    `hidden=(256, 120)` on 3x32x32 is the network for SVHN of Table 4 of the UTA paper, whose 64x6x6 features need
    32x32 inputs; `build` knows it as `lenet-wide`. Raises `EquipoiseError` for a `width` outside its range, inputs that
    are not images, and images so small that nothing is left after the second pooling.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int = 10,
        width: int = 1,
        filters: tuple[int, int] = (6, 16),
        hidden: tuple[int, int] = (120, 84),
    ) -> None:
        super().__init__()
        require(len(shape) == 3, f"lenet needs images (channels, height, width), got inputs of shape {tuple(shape)}.")
        require(1 <= width <= WIDEST, f"width of a lenet must be between 1 and {WIDEST}, got {width}.")
        require(min(*filters, *hidden) >= 1, f"filters {filters} and hidden {hidden} of a lenet must be at least 1.")
        channels, *size = shape
        # Each side: padding keeps it, pooling halves it, the second convolution takes 4, pooling halves it again.
        left = [(side // 2 - 4) // 2 for side in size]
        require(
            min(left) >= 1,
            f"lenet needs images of at least 12x12 pixels, got {size[0]}x{size[1]}: nothing is left after its "
            f"second pooling; use mlp or preact-resnet18.",
        )
        first, second, linear = filters[0] * width, filters[1] * width, hidden[0] * width
        self.features = nn.Sequential(
            nn.Conv2d(channels, first, kernel_size=5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(
            nn.Linear(second * left[0] * left[1], linear),
            nn.ReLU(),
            nn.Linear(linear, hidden[1]),
            nn.ReLU(),
            nn.Linear(hidden[1], classes),
        )

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of images in [0, 1]."""
        return self.classifier(self.features(x))

    def named_stages(self) -> dict[str, nn.Module]:
        """Both convolutions, each with its ReLU and pooling, the linear layers with theirs, and the logits."""
        return {
            "conv1": self.features[:3],
            "conv2": self.features[3:],
            "fc1": self.classifier[:2],
            "fc2": self.classifier[2:4],
            "logits": self.classifier[4],
        }

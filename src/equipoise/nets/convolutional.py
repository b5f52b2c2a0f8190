"""Small convolutional networks: LeNet, and the papers' own."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from equipoise.core.errors import require

WIDEST = 12
"""The largest `width` of a `LeNet`."""


def require_images(name: str, shape: Sequence[int], smallest: int = 1) -> None:
    """Raise `EquipoiseError` unless `shape` is that of images of at least `smallest` pixels per side."""
    size = f" of at least {smallest}x{smallest} pixels" if smallest > 1 else ""
    require(
        len(shape) == 3 and min(shape[1:]) >= smallest,
        f"{name} needs images (channels, height, width){size}, got inputs of shape {tuple(shape)}.",
    )


class LeNet(nn.Module):
    """LeNet for images of at least 12x12 pixels: conv5x5 (padding 2), pool, conv5x5, pool, three linear layers, ReLUs.

    The defaults on 1x28x28 are Table 6 of the UDP paper (Table 3 of the UTA paper). `width` (1 to 12) multiplies the
    filters of both convolutions and the first linear layer (UDP paper, Appendix F.2). `filters=(32, 64)` and
    `hidden=(256, 120)` on 3x32x32 is the network for SVHN of Table 4 of the UTA paper, `lenet-wide` of `build`. Raises
    `EquipoiseError` for numbers out of range, and inputs that are not images or too small.
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
        require_images("lenet", shape)
        require(1 <= width <= WIDEST, f"width of a lenet must be between 1 and {WIDEST}, got {width}.")
        require(min(*filters, *hidden) >= 1, f"filters {filters} and hidden {hidden} of a lenet must be at least 1.")
        channels, *size = shape
        # Each side: padding keeps it, pooling halves it, the second convolution takes 4, pooling halves it again.
        height_out, width_out = [(side // 2 - 4) // 2 for side in size]
        require(
            min(height_out, width_out) >= 1,
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
            nn.Linear(second * height_out * width_out, linear),
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


class CNN4(nn.Module):
    """conv5x5 of 10 filters, pool, conv5x5 of 20, pool, linear 50, linear, with ReLUs; 21,840 parameters on 1x28x28.

    R, App. A, whose "stride 5" is read as kernel size 5 with stride 1: its 320 = 20x4x4 features need that. Raises
    `EquipoiseError` for inputs that are not images of at least 16x16 pixels.
    """

    def __init__(self, shape: Sequence[int], classes: int = 10) -> None:
        super().__init__()
        require_images("cnn4", shape, 16)
        height, width = [((side - 4) // 2 - 4) // 2 for side in shape[1:]]
        self.layers = nn.Sequential(
            nn.Sequential(nn.Conv2d(shape[0], 10, kernel_size=5), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(10, 20, kernel_size=5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            nn.Sequential(nn.Linear(20 * height * width, 50), nn.ReLU()),
            nn.Linear(50, classes),
        )

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of images in [0, 1]."""
        return self.layers(x)

    def named_stages(self) -> dict[str, nn.Module]:
        """Both convolutions, each with its ReLU and pooling, the hidden layer and the logits."""
        return dict(zip(("conv1", "conv2", "fc1", "logits"), self.layers, strict=True))


class SmallCNN(nn.Module):
    """Three times conv3x3, batch-norm, ReLU, max-pool 2x2, with 32, 64 and 128 filters, then linear 256, ReLU, linear;
    390,634 parameters on 1x28x28.

    It stands for the network f of the robustness framework (F, Secs. 6 and 7), of which the paper says only that it is
    convolutional and the same for MNIST, Fashion-MNIST and SVHN: depth, widths and batch-norm are our choice, near its
    clean accuracies, of layers that interval bounds can follow. Raises `EquipoiseError` for inputs that are not images
    of at least 8x8 pixels.
    """

    def __init__(self, shape: Sequence[int], classes: int = 10) -> None:
        super().__init__()
        require_images("small-cnn", shape, 8)
        height, width = [side // 2 // 2 // 2 for side in shape[1:]]
        self.layers = nn.Sequential(
            _convolution(shape[0], 32),
            _convolution(32, 64),
            nn.Sequential(*_convolution(64, 128), nn.Flatten()),
            nn.Sequential(nn.Linear(128 * height * width, 256), nn.ReLU()),
            nn.Linear(256, classes),
        )

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of images in [0, 1]."""
        return self.layers(x)

    def named_stages(self) -> dict[str, nn.Module]:
        """The convolutions, each with its batch-norm, ReLU and pooling, the hidden layer and the logits."""
        return dict(zip(("conv1", "conv2", "conv3", "fc1", "logits"), self.layers, strict=True))


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))

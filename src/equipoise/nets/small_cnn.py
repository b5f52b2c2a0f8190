"""A small convolutional network for MNIST, Fashion-MNIST and SVHN, of layers that interval bounds can follow."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from equipoise.core.errors import require


class SmallCNN(nn.Module):
    """Three times conv3x3, batch-norm, ReLU, max-pool 2x2, with 32, 64 and 128 filters, then linear 256, ReLU, linear;
    390,634 parameters on 1x28x28.

    It stands for the network f of the robustness framework (F, Secs. 6 and 7), of which the paper says that it is
    convolutional and the same for MNIST, Fashion-MNIST and SVHN, and refers for all else to a supplement: depth,
    widths and batch-norm are our choice, near its clean accuracies. Convolutions pad by one, so that only the pooling
    shrinks the image. Raises `EquipoiseError` for inputs that are not images of at least 8x8 pixels.
    """

    def __init__(self, shape: Sequence[int], classes: int = 10) -> None:
        super().__init__()
        require(
            len(shape) == 3 and min(shape[1:]) >= 8,
            f"small-cnn needs images (channels, height, width) of at least 8x8 pixels, got shape {tuple(shape)}.",
        )
        left = [side // 2 // 2 // 2 for side in shape[1:]]
        self.layers = nn.Sequential(
            _convolution(shape[0], 32),
            _convolution(32, 64),
            nn.Sequential(*_convolution(64, 128), nn.Flatten()),
            nn.Sequential(nn.Linear(128 * left[0] * left[1], 256), nn.ReLU()),
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

"""The four-layer convolutional network for MNIST of the paper on uncertainty in deep learning."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from equipoise.core.errors import require


class CNN4(nn.Module):
    """conv5x5 of 10 filters, pool, conv5x5 of 20, pool, linear 50, linear, with ReLUs; 21,840 parameters on 1x28x28.

    R, App. A, whose "stride 5" is read as kernel size 5 with stride 1: its 320 = 20x4x4 features need that. Raises
    `EquipoiseError` for inputs that are not images of at least 16x16 pixels.
    """

    def __init__(self, shape: Sequence[int], classes: int = 10) -> None:
        super().__init__()
        require(
            len(shape) == 3 and min(shape[1:]) >= 16,
            f"cnn4 needs images (channels, height, width) of at least 16x16 pixels, got shape {tuple(shape)}.",
        )
        left = [((side - 4) // 2 - 4) // 2 for side in shape[1:]]
        self.layers = nn.Sequential(
            nn.Sequential(nn.Conv2d(shape[0], 10, kernel_size=5), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(10, 20, kernel_size=5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            nn.Sequential(nn.Linear(20 * left[0] * left[1], 50), nn.ReLU()),
            nn.Linear(50, classes),
        )

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of images in [0, 1]."""
        return self.layers(x)

    def named_stages(self) -> dict[str, nn.Module]:
        """Both convolutions, each with its ReLU and pooling, the hidden layer and the logits."""
        return dict(zip(("conv1", "conv2", "fc1", "logits"), self.layers, strict=True))

"""Fully connected networks."""

import math
from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from equipoise.core.errors import require


class MLP(nn.Module):
    """Flatten, then a ReLU layer per entry of `widths`, then a linear layer to the logits.

    The default on 28x28 images is the 784-256-10 network of the UTA paper (Appendix B.1.1); `widths=()` is a linear
    classifier. `shape` is that of one input, of any rank. A `negative_slope` in [0, 1) makes the ReLUs leaky:
    max(x, negative_slope x); 0.01 in the UTA authors' code. Raises `EquipoiseError` for numbers out of range.
    """

    def __init__(
        self, shape: Sequence[int], classes: int = 10, widths: Sequence[int] = (256,), negative_slope: float = 0.0
    ) -> None:
        super().__init__()
        require(all(w >= 1 for w in widths), f"widths of an mlp must be at least 1, got {tuple(widths)}.")
        require(
            0 <= negative_slope < 1, f"negative_slope = {negative_slope:g}: expected a share in [0, 1), such as 0.01."
        )
        sizes = [math.prod(shape), *widths]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(negative_slope) if negative_slope else nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], classes))

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of inputs in [0, 1]."""
        return self.layers(x)

    def named_stages(self) -> dict[str, nn.Module]:
        """`fc1`, `fc2`, ..., each a linear layer with its ReLU, and the logits; the first one flattens its input."""
        cuts = [0, *range(3, len(self.layers), 2), len(self.layers)]
        names = [*(f"fc{i}" for i in range(1, len(cuts) - 1)), "logits"]
        return {name: self.layers[a:b] for name, (a, b) in zip(names, pairwise(cuts), strict=True)}

"""The moments of Adam (Kingma & Ba 2015, Alg. 1), for searches that step along them."""

import torch

from equipoise.geometry import Rows

_DECAY = (0.9, 0.999)


class Adam:
    """Running means of a gradient and of its square, corrected for their start at 0."""

    def __init__(self, like: Rows) -> None:
        self.mean, self.square, self.count = torch.zeros_like(like), torch.zeros_like(like), 0

    def update(self, gradient: Rows) -> tuple[Rows, Rows]:
        """Take in a gradient. Returns `m/(1 - b1^k)` and `√(v/(1 - b2^k)) + 1e-8`; their quotient is the direction."""
        first, second = _DECAY
        self.count += 1
        self.mean = torch.lerp(gradient, self.mean, first)
        self.square = torch.lerp(gradient**2, self.square, second)
        scale = (self.square / (1 - second**self.count)).sqrt() + 1e-8
        return self.mean / (1 - first**self.count), scale

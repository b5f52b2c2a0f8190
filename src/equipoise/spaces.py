"""Where the perturbation lives."""

from dataclasses import dataclass

from equipoise.types import Points, Predict


@dataclass(frozen=True)
class Input:
    """The input itself: `δ` is added to the pixels."""

    def enter(self, predict: Predict, x: Points) -> tuple[Points, Predict]:
        """x, and the model as it is."""
        return x, predict

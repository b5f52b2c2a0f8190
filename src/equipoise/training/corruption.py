"""Training on corrupted images: `cross_entropy @ Corrupted(("fog", "rotate"))` is a term of a method like any other."""

from dataclasses import dataclass
from typing import Any

from equipoise.core.rng import Streams
from equipoise.core.types import Labels, Points, Prediction, Predictive
from equipoise.corruptions import CORRUPTIONS, MNIST_C, check_images, chosen
from equipoise.losses.objectives import Objective
from equipoise.losses.terms import Term


@dataclass(frozen=True)
class Corrupted:
    """Where a term is evaluated: at the image under one of the corruptions, drawn anew for each sample and step.

        cross_entropy @ Corrupted(("fog", "rotate"))

    A network that was trained on a corruption says nothing by its accuracy on that corruption about others: do not
    train on those of MNIST-C, the default, and then quote MNIST-C as a test. Leave out the ones you test on.
    Raises `EquipoiseError` for an unknown name or none; a training, before it begins, for images that cannot be
    corrupted.
    """

    names: tuple[str, ...] = tuple(CORRUPTIONS)
    """Which corruptions, all as likely; `mnist-c` is all."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", chosen(self.names))

    def __rmatmul__(self, objective: object) -> Term:
        return Term(objective, self) if isinstance(objective, Objective) else NotImplemented

    def __str__(self) -> str:
        return f"corrupted({MNIST_C if set(self.names) == set(CORRUPTIONS) else ', '.join(self.names)})"

    def settings(self) -> dict[str, Any]:
        """Every field as JSON-ready data, for records."""
        return {"corruptions": list(self.names)}

    def check(self, x: Points) -> None:
        """Raise `EquipoiseError` unless such inputs can be corrupted."""
        check_images(x)

    def perturb(self, predictive: Predictive, x: Points, y: Labels, streams: Streams) -> Points:
        """Each image under a corruption of its own."""
        self.check(x)
        which, out = streams.fold(0).integers(len(self.names)), x.clone()
        for number, name in enumerate(self.names):
            rows = (which == number).nonzero()[:, 0]
            if len(rows):
                out[rows] = CORRUPTIONS[name](x[rows], streams[rows].fold(1))
        return out

    def predict_at(self, predictive: Predictive, x: Points, point: Points, streams: Streams) -> Prediction:
        """The live prediction there."""
        return predictive.draw(streams)(point)

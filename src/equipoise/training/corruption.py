"""Training on corrupted images, by terms such as `cross_entropy @ Corrupted(("fog", "rotate"))`."""

from dataclasses import dataclass
from typing import Any

from equipoise.core.rng import Streams
from equipoise.core.types import Labels, Points, Prediction, Predictive
from equipoise.corruptions import ALL, COLLECTIONS, CORRUPTIONS, check_images, chosen
from equipoise.losses.objectives import Objective
from equipoise.losses.terms import Term


@dataclass(frozen=True)
class Corrupted:
    """Evaluate a term at the image under one of the corruptions, drawn anew for each sample and step.

    The accuracy of a network on a corruption that it was trained on does not generalise to others: leave out the
    corruptions you test on, such as those of MNIST-C, the default. Raises `EquipoiseError` for an unknown name or
    none; before a training begins, for images that cannot be corrupted.
    """

    names: tuple[str, ...] = tuple(CORRUPTIONS)
    """The corruptions, equally likely; `mnist-c`, `cifar-c`, `cifar-c/fog`, ... stand for several."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", chosen(self.names))

    def __rmatmul__(self, objective: object) -> Term:
        return Term(objective, self) if isinstance(objective, Objective) else NotImplemented

    def __str__(self) -> str:
        whole = (name for name, members in COLLECTIONS.items() if set(members) == set(self.names))
        return f"corrupted({next(whole, ', '.join(self.names))})"

    def settings(self) -> dict[str, Any]:
        """Every field as JSON-ready data, for records."""
        return {"corruptions": list(self.names)}

    def check(self, x: Points) -> None:
        """Raise `EquipoiseError` unless such inputs can be corrupted."""
        check_images(x, self.names)

    def perturb(self, predictive: Predictive, x: Points, y: Labels, streams: Streams) -> Points:
        """The images, each under a corruption drawn for it."""
        self.check(x)
        drawn, result = streams.fold(0).integers(len(self.names)), x.clone()
        for number, name in enumerate(self.names):
            index = (drawn == number).nonzero()[:, 0]
            if len(index):
                result[index] = ALL[name](x[index], streams[index].fold(1))
        return result

    def predict_at(self, predictive: Predictive, x: Points, point: Points, streams: Streams) -> Prediction:
        """The prediction at the corrupted images, with its graph."""
        return predictive.draw(streams)(point)

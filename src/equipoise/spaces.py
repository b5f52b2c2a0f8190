"""Where the perturbation lives: in the input, or in what a layer of the network makes of it.

Perturbing in a latent space is perturbing the input of the classifier part: a space turns a model and a batch into
another model and another batch, on which the one ascent climbs.
"""

from dataclasses import dataclass

import torch

from equipoise.geometry import EVERYWHERE, Box
from equipoise.predictive import standing
from equipoise.predictive.parts import parts
from equipoise.rng import Streams
from equipoise.types import Mode, Points, Prediction, Predictive


@dataclass(frozen=True)
class Input:
    """The input itself: `δ` is added to the pixels."""

    @property
    def box(self) -> Box | None:
        """None: that of the ball."""
        return None

    def enter(self, predictive: Predictive, x: Points, mode: Mode) -> tuple[Predictive, Points]:
        """The model and the batch as they are."""
        return predictive, x

    def predict_at(self, predictive: Predictive, x: Points, point: Points, streams: Streams) -> Prediction:
        """The live prediction at `point`."""
        return predictive.draw(streams)(point)


@dataclass(frozen=True)
class Latent:
    """The output of a layer: `C(E(x) + δ)`, the network split into an encoder E, which ends with that layer, and a
    classifier C, trained together (U, Eq. ERM-P; T, Sec. 5.2).

    Ball, box and distances are in units of the layer's output. Of an ensemble every member has a code of its own.
    Raises `EquipoiseError` for a network that cannot be split (see `equipoise.nets.split`) and an unknown layer.
    """

    layer: str
    """The last layer of the encoder, such as `fc1` of a lenet."""
    box: Box = EVERYWHERE
    """Where codes may lie."""

    def enter(self, predictive: Predictive, x: Points, mode: Mode) -> tuple[Predictive, Points]:
        """The classifier part, and the codes of `x` in the given mode."""
        encoder, classifier = parts(predictive, self.layer)
        with torch.no_grad(), standing(predictive.module, mode):
            return classifier, encoder(x)

    def predict_at(self, predictive: Predictive, x: Points, point: Points, streams: Streams) -> Prediction:
        """The live prediction `C(E(x) + δ)`: its value is that at `point`, its gradient reaches the encoder too."""
        encoder, classifier = parts(predictive, self.layer)
        code = encoder(x)
        return classifier.draw(streams)(code + (point - code).detach())

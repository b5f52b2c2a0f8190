"""The space of the perturbation: the input, the output of a layer, or the codes of a data manifold.

A space turns a model and a batch into another model and another batch, which the same ascent attacks.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from equipoise.core.documentation import show_attributes
from equipoise.core.rng import Streams
from equipoise.core.types import Points, Predict, Prediction, Predictive, Weights
from equipoise.geometry import EVERYWHERE, Box
from equipoise.models import Frozen, live
from equipoise.models.splitting import parts


@dataclass(frozen=True)
class Input:
    """The input itself: `δ` is added to the pixels."""

    @property
    def box(self) -> Box | None:
        """None: that of the ball."""
        return None

    def enter(self, predictive: Frozen, x: Points) -> tuple[Frozen, Points]:
        """The model and the batch as they are."""
        return predictive, x

    def leave(self, origin: Points, point: Points) -> Points:
        """The point as it is."""
        return point

    def predict_at(self, predictive: Predictive, x: Points, found: Points, streams: Streams) -> Prediction:
        """The live prediction at the point that was found."""
        return live(predictive, streams)(found)


@dataclass(frozen=True)
class Latent:
    """The output of a layer: `C(E(x) + δ)`, the network split into an encoder E, which ends with that layer, and a
    classifier C, trained together (U, Eq. ERM-P; T, Sec. 5.2).

    Ball, box and distances are in units of the layer's output. Of an ensemble every member has a code of its own, and
    all of them together are one point: in L2 and L1 the members share one ball, `‖(δ_1, ..., δ_M)‖ <= eps`, in Linf
    each has its own. Raises `EquipoiseError` for a network that cannot be split (see `equipoise.nets.split`), an
    unknown layer, and members whose codes have different shapes.
    """

    layer: str
    """The last layer of the encoder, such as `fc1` of a lenet."""
    box: Box = EVERYWHERE
    """Where codes may lie."""

    def enter(self, predictive: Frozen, x: Points) -> tuple[Frozen, Points]:
        """The classifier part, and the codes of `x` in the model's mode."""
        encoder, classifier = parts(predictive.predictive, self.layer)
        _, original = parts(predictive.original, self.layer)
        with torch.no_grad():
            return Frozen(classifier, original, predictive.random), encoder(x)

    def leave(self, origin: Points, point: Points) -> Points:
        """The perturbation `δ` alone, as the codes of the frozen network differ from those of the trained one."""
        return point - origin

    def predict_at(self, predictive: Predictive, x: Points, found: Points, streams: Streams) -> Prediction:
        """The live prediction `C(E(x) + δ)`, whose gradient reaches the encoder too."""
        encoder, classifier = parts(predictive, self.layer)
        return classifier.draw(streams)(encoder(x) + found)


@runtime_checkable
class AutoEncoder(Protocol):
    """A data manifold with coordinates, such as an `equipoise.generators.Manifold`."""

    def encode(self, x: Points) -> Points:
        """The codes of inputs."""
        ...

    def decode(self, codes: Points) -> Points:
        """The inputs that have these codes."""
        ...


@dataclass(frozen=True)
class OnManifold:
    """The codes of an auto-encoder: `f(dec(enc(x) + δ))`. Whatever `δ`, the perturbed input stays on the manifold that
    the decoder describes (Stutz et al. 2019, "Disentangling Adversarial Robustness and Generalization", Eq. 5; F,
    Sec. 7). The auto-encoder is frozen; the network is trained at the decoded points.

    Ball, box and distances are in units of the codes.
    """

    manifold: AutoEncoder
    """The auto-encoder."""
    box: Box = EVERYWHERE
    """Where codes may lie."""

    def enter(self, predictive: Frozen, x: Points) -> tuple[Frozen, Points]:
        """The model of codes, `f(dec(z))`, and the codes of `x`."""
        frozen, original = (_Decoded(model, self.manifold) for model in (predictive.predictive, predictive.original))
        with torch.no_grad():
            return Frozen(frozen, original, predictive.random), self.manifold.encode(x)

    def leave(self, origin: Points, point: Points) -> Points:
        """The point as it is: the auto-encoder is frozen."""
        return point

    def predict_at(self, predictive: Predictive, x: Points, found: Points, streams: Streams) -> Prediction:
        """The live prediction `f(dec(z))` at the code z."""
        with torch.no_grad():
            decoded = self.manifold.decode(found)
        return predictive.draw(streams)(decoded)


@dataclass(frozen=True)
class _Decoded:
    """A predictive of codes, which applies another one to the decoded inputs."""

    predictive: Predictive
    manifold: AutoEncoder

    @property
    def module(self) -> nn.Module:
        return self.predictive.module

    def draw(self, streams: Streams | None = None, weights: Weights | None = None) -> Predict:
        predict = self.predictive.draw(streams, weights)
        return lambda codes: predict(self.manifold.decode(codes))


show_attributes(__name__)

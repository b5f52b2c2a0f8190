"""A network that generates adversarial examples, and the robustness term of a classifier that trains against it (F).

The generator g seeks, for every x, a point nearby where the classifier f predicts another class (F, Sec. 4.1). The
classifier is rewarded for agreeing with itself at x and at x* = g(x), the more the further away x* is (F, Eq. 12).
Each in turn takes a step, until neither gains (F, Alg. 1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from equipoise.core.deprecation import renamed_arguments
from equipoise.core.errors import EquipoiseError, require, require_integer, unknown
from equipoise.core.types import Labels, PerSample, Points, Predict, Prediction
from equipoise.geometry import Ball, Box
from equipoise.losses.objectives import kl, margin
from equipoise.models import Ensemble, as_predictive, global_seed, module_mode

_FLOOR = 1e-3  # nats: below this the cross-entropy in a denominator counts as this
_SMALLEST = 4  # pixels of a side, which is halved twice


class AdversarialGenerator(nn.Module):
    """`g(x) = clamp(x + h(x))`, an image in the box for every image, or a vector for every vector of features.

    For images h halves the size twice, convolves, and doubles it twice, with the larger maps beside: any size from 4x4
    on, grey or in colour. For vectors it has two hidden layers. Its last layer starts at zero, so that g starts as the
    identity; the other weights are PyTorch's default initialisation drawn from `seed`. The paper leaves its generator
    to a supplement: this one is ours. There is no batch-norm, so that a sample's image does not depend on its batch.
    Raises `EquipoiseError` for another kind of shape, and a width below 1.
    """

    kind = "adversarial generator"

    def __init__(self, shape: Sequence[int], width: int = 16, box: Box = Box(), seed: int = 0) -> None:
        super().__init__()
        shape = tuple(shape)
        require(
            len(shape) == 1 or (len(shape) == 3 and min(shape[1:]) >= _SMALLEST),
            f"a generator needs images (channels, height, width) of at least {_SMALLEST}x{_SMALLEST} pixels or vectors "
            f"(features,), got inputs of shape {shape}.",
        )
        require_integer("width", width, 1)
        self.shape, self.width, self.box = shape, width, box
        with global_seed(seed, torch.device("cpu")):
            self.move = _ImageMove(shape[0], width) if len(shape) == 3 else _VectorMove(shape[0], 16 * width)

    @property
    def config(self) -> dict[str, Any]:
        """All that `from_config` needs to build the network again, JSON-ready."""
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "width": self.width,
            "box": [self.box.low, self.box.high],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "AdversarialGenerator":
        """The network of `config`, with fresh weights."""
        return cls(config["shape"], config["width"], Box(*config["box"]))

    def forward(self, x: Points) -> Points:
        """Points of the box, of the shape of `x`."""
        return self.box.clamp(x + self.move(x))


class _ImageMove(nn.Module):
    """Two halvings, two convolutions, two doublings beside the maps of the way down."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.further_down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.first = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.second = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.Conv2d(3 * width, width, 3, padding=1)
        self.further_up = nn.Conv2d(width + channels, width, 3, padding=1)
        self.last = _silent(nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        half = relu(self.down(x))
        quarter = relu(self.further_down(half))
        quarter = quarter + relu(self.second(relu(self.first(quarter))))
        half = relu(self.up(_beside(quarter, half)))
        return self.last(relu(self.further_up(_beside(half, x))))


class _VectorMove(nn.Sequential):
    """Two hidden layers."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(
            nn.Linear(features, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            _silent(nn.Linear(width, features)),
        )


def _silent(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """The layer with weights zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _beside(small: Tensor, large: Tensor) -> Tensor:
    """The maps `small`, enlarged to the size of `large`, and those."""
    return torch.cat([interpolate(small, size=large.shape[-2:], mode="nearest"), large], 1)


@dataclass(frozen=True)
class Adversary:
    """The generator as an auxiliary network of a training: for each x it descends

        ½ ‖g(x) - x‖² + a · max(s_c(g(x)) - max over j ≠ c of s_j(g(x)), 0),   c the class f predicts at x,

    near x, and no longer predicted as x (F, Sec. 4.1). The paper has a = 1 and for s the probabilities of the softmax.
    """

    generator: AdversarialGenerator | None = None
    """g; None is a new one, built for the data and seeded by the run."""
    width: int = 16
    """Width of a new one."""
    crossing: float = 10.0
    """a. Crossing the boundary pays off for points up to √(2a·hinge) from it: with probabilities and a = 1, √2."""
    scores: Literal["logits", "probabilities"] = "logits"
    """s. Where f is certain, probabilities have next to no gradient, and g stays where it is."""
    lr: float = 3e-3
    """Learning rate of its Adam, constant."""
    steps: int = 1
    """Steps it takes for each of the classifier's: more in a training that was shortened, where it would not cross."""

    name = "generator"

    def __post_init__(self) -> None:
        require(self.crossing > 0, f"crossing = {self.crossing}: expected a weight > 0, such as 1.")
        require(0 < self.lr <= 1e30, f"generator lr = {self.lr} trains nothing: expected a number > 0.")
        require_integer("generator steps", self.steps, 1)
        if self.scores not in ("logits", "probabilities"):
            raise unknown("kind of scores", self.scores, ("logits", "probabilities"))

    def __str__(self) -> str:
        more = f", {self.steps} steps" if self.steps > 1 else ""
        return f"g(crossing {self.crossing:g} on {self.scores}, lr {self.lr:g}{more})"

    def build_for(self, shape: tuple[int, ...], seed: int) -> "Adversary":
        """The same with a network for inputs of that shape. Raises `EquipoiseError` if it has one for others."""
        g = AdversarialGenerator(shape, self.width, seed=seed) if self.generator is None else self.generator
        require(
            g.shape == tuple(shape),
            f"the generator was made for inputs of shape {g.shape}, the data has {tuple(shape)}: train another.",
        )
        return replace(self, generator=g)

    def network(self) -> AdversarialGenerator:
        """g. Raises `EquipoiseError` before there is one."""
        if self.generator is None:
            raise EquipoiseError("the generator is not built yet: give one, or train by `fit`, which builds it.")
        return self.generator

    def config(self) -> dict[str, Any]:
        """All that is needed to build g again."""
        return self.network().config

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of its weights."""
        return torch.optim.Adam(self.network().parameters(), self.lr)

    def losses(self, predict: Predict, x: Points) -> tuple[PerSample, dict[str, PerSample]]:
        """Its loss per sample, with its graph; and whether g(x) is predicted otherwise than x, and its L2 distance."""
        with torch.no_grad():
            c = predict(x).labels
        moved = self.network()(x)
        there = predict(moved)
        judged = there if self.scores == "logits" else Prediction(there.log_probs.exp()[None])
        hinge = (-margin(judged, None, c)).clamp_min(0)
        losses = (moved - x).flatten(1).square().sum(1) / 2 + self.crossing * hinge
        return losses, {
            "crossed": (there.labels != c).to(losses.dtype),
            "distance": Ball("l2", math.inf).distance(moved.detach(), x),
        }

    @torch.no_grad()
    def show(self, x: Points) -> Points:
        """What to look at: g(x)."""
        return self.network()(x)


@renamed_arguments(player="auxiliary_network")
@dataclass(frozen=True)
class GeneratedMargin:
    """`R = mean of eps*(x) / (softness + CE(f(x), f(x*)))`, `eps* = ‖x* - x‖₂` in pixels of [0, 1], x* on the way from
    x to g(x), where the prediction just differs.

    The score R_2 of F, the mean distance to the nearest point that is predicted otherwise, made differentiable;
    training descends `CE - lam · R` (F, Eq. 7), that is, the penalty has a *negative* weight. (Eq. 12 prints the term
    with a plus sign: added to the loss, it would be minimised by making f differ at x*.)
    f is its only variable: x* and eps* are held fixed. So is the first argument of CE, the prediction at x, with
    `clean="held"`: R then grows by extending the prediction at x to x*, and not by giving it up at x. With
    `clean="live"`, as Eq. 12 is printed, the gradient goes through both predictions.

    g(x) lies beyond the boundary, often far beyond it, where agreement is neither to be had nor wanted. So it is moved
    back by `halvings` bisections of the segment, as F does where it scores (Eq. 14); a g(x) that is predicted like x
    says nothing and counts 0. With 0 halvings x* = g(x), wherever that is, as Eq. 12 is printed.

    With softness 1 the divisor is at least 1 and R lies in [0, mean of eps*]: a soft indicator of agreement. With
    softness 0 it is Eq. 12 as printed, which grows without bound where f agrees (its slope is eps*/CE²); there CE
    counts as at least 0.001 nats.
    """

    auxiliary_network: Adversary = Adversary()
    """g."""
    softness: float = 1.0
    """Number added to the cross-entropy, in nats."""
    halvings: int = 6
    """Bisections between x and g(x): x* is at most 2^-halvings of that segment beyond the boundary."""
    clean: Literal["held", "live"] = "held"
    """Whether the prediction at x is a constant of the gradient."""

    def __post_init__(self) -> None:
        if self.clean not in ("held", "live"):
            raise unknown("kind of clean prediction", self.clean, ("held", "live"))
        require(self.softness >= 0, f"softness = {self.softness}: expected a number >= 0, such as 1.")
        require_integer("halvings", self.halvings, 0)

    @property
    def __name__(self) -> str:
        """What it is called in records."""
        live = ", clean live" if self.clean == "live" else ""
        return f"R2(softness {self.softness:g}, halvings {self.halvings}{live}) @ {self.auxiliary_network}"

    def __call__(self, module: nn.Module, x: Points, y: Labels) -> Tensor:
        """R of a batch, with its graph; for an ensemble f is its mean. Raises `EquipoiseError` without a generator."""
        predict = as_predictive(Ensemble(module) if isinstance(module, nn.ModuleList) else module).draw()
        with torch.no_grad():
            there, counts = self.auxiliary_network.network()(x), torch.ones(len(x), dtype=torch.bool, device=x.device)
            if self.halvings:
                with module_mode(module, "eval"):
                    there, counts = _moved_back(predict, x, there, self.halvings)
        with torch.set_grad_enabled(self.clean == "live" and torch.is_grad_enabled()):
            here = predict(x)
        distance = Ball("l2", math.inf).distance(there, x) * counts
        disagreement = kl("soft-cross-entropy")(predict(there), here)
        return (distance / (self.softness + disagreement).clamp_min(_FLOOR)).mean()


def _moved_back(predict: Predict, x: Points, far: Points, halvings: int) -> tuple[Points, Bool[Tensor, " batch"]]:
    """The point of each segment from `x` to `far` at which bisection finds the prediction just different from that at
    `x` (F, Eq. 14), and whether it found one.
    """

    def at(share: PerSample) -> Points:
        return torch.lerp(x, far, share.reshape(-1, *[1] * (x.ndim - 1)))

    c = predict(x).labels
    right, wrong, found = x.new_zeros(len(x)), x.new_ones(len(x)), predict(far).labels != c
    for _ in range(halvings):
        middle = (right + wrong) / 2
        there = predict(at(middle)).labels != c
        right, wrong, found = torch.where(there, right, middle), torch.where(there, middle, wrong), found | there
    return at(wrong), found

"""Penalties on a model, which `method.with_penalty(weight, penalty)` adds to a training method."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from equipoise.core.errors import require, require_integer, unknown
from equipoise.core.rng import Streams
from equipoise.core.types import Labels, Points, Prediction
from equipoise.geometry import Ball
from equipoise.kernels.input_gradients import AffineNormalization
from equipoise.losses.objectives import Objective, cross_entropy, kl
from equipoise.models import Single, as_predictive, module_mode

Radii = Literal["distances", "uniform"]
_SMALLEST_RADIUS = 1e-6  # of a sample that is the input itself


@dataclass(frozen=True)
class GradientAlignment:
    """`mean of 1 - cos(∇L(x), ∇L(x + ξ))`, ξ uniform on the ball, in [0, 2]: 0 if the loss is linear over the ball
    (Andriushchenko & Flammarion 2020, Eq. 5). ξ is drawn from the global generator, which a training seeds at every
    step.
    """

    geometry: Ball
    """The ball of ξ."""
    loss: Objective = cross_entropy
    """L."""

    @property
    def __name__(self) -> str:
        """Name in records."""
        return f"gradient alignment({self.geometry.norm} {self.geometry.eps:g})"

    def __call__(self, module: nn.Module, x: Points, y: Labels) -> Tensor:
        """The penalty of a batch, with its graph."""
        predict = as_predictive(module).draw()
        streams = _random_streams(x)

        def gradient(point: Points) -> Tensor:
            point = point.detach().requires_grad_()
            return torch.autograd.grad(self.loss(predict(point), None, y).sum(), point, create_graph=True)[0].flatten(1)

        cosine = nn.functional.cosine_similarity(gradient(x), gradient(self.geometry.draw(streams, x)), dim=1)
        return (1 - cosine).mean()


@dataclass(frozen=True)
class CrossLipschitz:
    """The cross-Lipschitz penalty `(1/C²) Σ_{l,m} ‖∇f_l(x) - ∇f_m(x)‖²`, averaged over the batch, and over the members
    of an ensemble: the gradients of logit differences bound how near an adversarial example can be (Hein &
    Andriushchenko 2017, Sec. 4; HEIN in F, Sec. 6).

    With the mean logit `g` it is `(2/C) Σ_l ‖∇(f_l - g)‖²`: C gradients instead of C² differences. It is evaluated in
    eval mode, so that samples are independent of each other and dropout is off; running statistics stay as they are.
    """

    directions: int = 0
    """0 is exact. n replaces the C gradients by n of `Σ_l ±(f_l - g)`, with random signs from the global generator: an
    unbiased estimate at n/C of the cost."""

    def __post_init__(self) -> None:
        require(self.directions >= 0, f"directions = {self.directions}: expected a number of directions, or 0 for all.")

    @property
    def __name__(self) -> str:
        """Name in records."""
        return "cross-Lipschitz" + (f" along {self.directions} directions" if self.directions else "")

    def __call__(self, module: nn.Module, x: Points, y: Labels) -> Tensor:
        """The penalty of a batch, with its graph."""
        return torch.stack([self._penalty(member, x) for member in _members(module)]).mean()

    def _penalty(self, module: nn.Module, x: Points) -> Tensor:
        # Copies of the buffers: a later forward pass in train mode would change those that the graph needs.
        buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
        point = x.detach().requires_grad_()
        with module_mode(module, "eval"), AffineNormalization():
            logits = Single(module).draw(None, buffers)(point).logits[0]
        signs = torch.eye(logits.shape[1], dtype=logits.dtype, device=x.device)[:, None].expand(-1, len(x), -1)
        if self.directions:
            uniform = _random_streams(x).uniform(self.directions, logits.shape[1]).transpose(0, 1)
            signs = (uniform < 0.5).to(logits.dtype) * 2 - 1
        # One backward pass after the other: on a CPU twice as fast as all of them by vmap.
        gradients = [
            torch.autograd.grad(logits, point, sign - sign.mean(1, keepdim=True), create_graph=True)[0]
            for sign in signs
        ]
        total = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
        return 2 * total / (len(x) * logits.shape[1] * (self.directions or 1))


@runtime_checkable
class Neighbours(Protocol):
    """Something that generates inputs near given ones, such as an `equipoise.generators.Manifold`."""

    def sample(self, x: Points, samples: int, sigma: float, streams: Streams) -> Float[Tensor, "samples batch ..."]:
        """`samples` inputs near each of `x`; `sigma` is the scale of their distance."""
        ...


def radial_weights(
    distance: Float[Tensor, "samples batch"], radii: Float[Tensor, "radii batch"]
) -> Float[Tensor, "samples batch"]:
    """Weight of each sample in the estimate of R4 (F, Eqs. 8 and 9 with H(p) = p and G = p(x)/ε, Example 4):

        (1/|Σ|) Σ_{ε∈Σ} (1/ε) (1/N_ε) Σ_{x'∈S_ε} c(x')  =  Σ_i w_i c(x'_i),
        w_i = (1/|Σ|) Σ_{ε∈Σ} I[d_i <= ε] / (ε N_ε),

    S_ε the N_ε samples at a distance d_i <= ε. An empty S_ε adds nothing.
    """
    within = (distance[None] <= radii[:, None]).to(radii.dtype)
    share = within / within.sum(1, keepdim=True).clamp_min(1)
    return (share / radii[:, None].clamp_min(_SMALLEST_RADIUS)).mean(0)


@dataclass(frozen=True)
class ManifoldAgreement:
    """`(1/|Σ|) Σ_{ε∈Σ} (1/ε) (1/N_ε) Σ_{x'∈S_ε(x)} CE(f(x), f(x'))`, averaged over the batch, and over the members of
    an ensemble: the robustness term of F's loss for R4 (Eqs. 7-9, Example 4), with the indicator of agreement replaced
    by `CE(p, q) = -Σ p log q`, which measures disagreement and is added to the loss.

    S_ε(x) are the N_ε generated samples with `‖x' - x‖₂ <= ε`. Both predictions have gradients, and in train mode share
    the statistics of batch-norm. The samples are drawn from the global generator, which a training seeds at every step.
    """

    neighbours: Neighbours
    """Generator of samples, such as a manifold."""
    samples: int = 10
    """Number of samples for each input, and of radii, |Σ|."""
    sigma: float = 0.06
    """Standard deviation of the noise on an input's code."""
    radii: Radii = "distances"
    """Σ: the distances of the samples, or uniform on [0, d], d the diameter of the unit cube. F's Sec. 3 says uniform,
    its Sec. 7 that the generator makes Σ. Where all samples agree the score is the mean of 1/ε, which over uniform
    radii, most of them larger than any distance, depends on the few smallest drawn."""

    def __post_init__(self) -> None:
        require_integer("samples", self.samples, 1)
        require(self.sigma >= 0, f"sigma = {self.sigma} is not a standard deviation: expected a number >= 0.")
        if self.radii not in ("distances", "uniform"):
            raise unknown("radii", self.radii, ("distances", "uniform"))

    @property
    def __name__(self) -> str:
        """Name in records."""
        return f"agreement with {self.samples} of {self.neighbours}, sigma {self.sigma:g}, radii {self.radii}"

    def __call__(self, module: nn.Module, x: Points, y: Labels) -> Tensor:
        """The penalty of a batch, with its graph."""
        streams = _random_streams(x)
        nearby = self.neighbours.sample(x, self.samples, self.sigma, streams.fold(0))
        distance = torch.linalg.vector_norm((nearby - x).flatten(2), dim=2)
        radii = distance
        if self.radii == "uniform":
            radii = x[0].numel() ** 0.5 * streams.fold(1).uniform(self.samples, dtype=distance.dtype).T
        weights = radial_weights(distance, radii)
        inputs = torch.cat([x[None], nearby]).flatten(0, 1)
        values = []
        for member in _members(module):
            predictions = as_predictive(member).draw()(inputs)
            clean, output = predictions[: len(x)], predictions[len(x) :]
            reference = Prediction(clean.logits.repeat(1, self.samples, 1))
            disagreement = kl("soft-cross-entropy")(output, reference).reshape_as(weights)
            values.append((weights * disagreement).sum(0).mean())
        return torch.stack(values).mean()


def _random_streams(x: Points) -> Streams:
    """A stream per sample, seeded from the global generator."""
    return Streams.of(int(torch.randint(2**62, ())), torch.arange(len(x), device=x.device))


def _members(module: nn.Module) -> list[nn.Module]:
    return list(module) if isinstance(module, nn.ModuleList) else [module]

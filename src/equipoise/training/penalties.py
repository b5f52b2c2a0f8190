"""Penalties on a model itself, to be added to a training method: `method.with_penalty(weight, penalty)`."""

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
_TINY = 1e-6  # the smallest radius: a sample that is the input itself has none


@dataclass(frozen=True)
class GradientAlignment:
    """`mean of 1 - cos(∇ L(x), ∇ L(x + ξ))`, ξ uniform on the ball: 0 where the loss is linear over it, in [0, 2]
    (Andriushchenko & Flammarion 2020, Eq. 5). Differentiated twice; ξ is drawn from the global generator, which a
    training seeds at every step.
    """

    geometry: Ball
    """Where ξ is drawn."""
    loss: Objective = cross_entropy
    """L."""

    @property
    def __name__(self) -> str:
        """What it is called in records."""
        return f"gradient alignment({self.geometry.norm} {self.geometry.eps:g})"

    def __call__(self, module: nn.Module, x: Points, y: Labels) -> Tensor:
        """The penalty, with its graph."""
        predict = as_predictive(module).draw()
        streams = _drawn(x)

        def gradient(point: Points) -> Tensor:
            point = point.detach().requires_grad_()
            return torch.autograd.grad(self.loss(predict(point), None, y).sum(), point, create_graph=True)[0].flatten(1)

        cosine = nn.functional.cosine_similarity(gradient(x), gradient(self.geometry.draw(streams, x)), dim=1)
        return (1 - cosine).mean()


@dataclass(frozen=True)
class CrossLipschitz:
    """`(1/C²) Σ_{l,m} ‖∇f_l(x) - ∇f_m(x)‖²`, averaged over the batch: how fast the logits f move apart, which bounds
    how near an adversarial example can be (Hein & Andriushchenko 2017, Sec. 4; HEIN in F, Sec. 6).

    With the mean logit `g` it is `(2/C) Σ_l ‖∇(f_l - g)‖²`: C gradients instead of C² differences. Evaluated in eval
    mode, where batch-norm makes no sample's logits depend on another's and dropout is off; its gradient reaches the
    weights, the running statistics stay as they are. Of an ensemble the mean over its members.
    """

    directions: int = 0
    """0 is exact. n replaces the C gradients by n of `Σ_l ±(f_l - g)`, signs drawn at random from the global generator:
    the same in the mean, at n/C of the cost."""

    def __post_init__(self) -> None:
        require(self.directions >= 0, f"directions = {self.directions}: expected a number of them, or 0 for all.")

    @property
    def __name__(self) -> str:
        """What it is called in records."""
        return "cross-Lipschitz" + (f" along {self.directions} directions" if self.directions else "")

    def __call__(self, module: nn.Module, x: Points, y: Labels) -> Tensor:
        """The penalty, with its graph."""
        return torch.stack([self._of(member, x) for member in _members(module)]).mean()

    def _of(self, module: nn.Module, x: Points) -> Tensor:
        # Copies of the buffers: a later forward pass in train mode would change those that the graph needs.
        still = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
        point = x.detach().requires_grad_()
        with module_mode(module, "eval"), AffineNormalization():
            logits = Single(module).draw(None, still)(point).logits[0]
        signs = torch.eye(logits.shape[1], dtype=logits.dtype, device=x.device)[:, None].expand(-1, len(x), -1)
        if self.directions:
            uniform = _drawn(x).uniform(self.directions, logits.shape[1]).transpose(0, 1)
            signs = (uniform < 0.5).to(logits.dtype) * 2 - 1
        # One backward pass after the other: on a CPU twice as fast as all of them by vmap.
        moves = [
            torch.autograd.grad(logits, point, sign - sign.mean(1, keepdim=True), create_graph=True)[0]
            for sign in signs
        ]
        total = torch.stack([move.square().sum() for move in moves]).sum()
        return 2 * total / (len(x) * logits.shape[1] * (self.directions or 1))


@runtime_checkable
class Neighbours(Protocol):
    """Something that generates inputs near given ones, such as an `equipoise.generators.Manifold`."""

    def sample(self, x: Points, samples: int, sigma: float, streams: Streams) -> Float[Tensor, "samples batch ..."]:
        """So many inputs near each of `x`, `sigma` saying how near."""
        ...


def radial_weights(
    distance: Float[Tensor, "samples batch"], radii: Float[Tensor, "radii batch"]
) -> Float[Tensor, "samples batch"]:
    """What each sample counts in the estimate of R4 (F, Eqs. 8 and 9 with H(p) = p and G = p(x)/ε, Example 4):

        (1/|Σ|) Σ_{ε∈Σ} (1/ε) (1/N_ε) Σ_{x'∈S_ε} c(x')  =  Σ_i w_i c(x'_i),
        w_i = (1/|Σ|) Σ_{ε∈Σ} I[d_i <= ε] / (ε N_ε),

    S_ε the N_ε samples at a distance d_i <= ε. An empty S_ε is left out of the sum: it adds nothing.
    """
    within = (distance[None] <= radii[:, None]).to(radii.dtype)
    share = within / within.sum(1, keepdim=True).clamp_min(1)
    return (share / radii[:, None].clamp_min(_TINY)).mean(0)


@dataclass(frozen=True)
class ManifoldAgreement:
    """`(1/|Σ|) Σ_{ε∈Σ} (1/ε) (1/N_ε) Σ_{x'∈S_ε(x)} CE(f(x), f(x'))`, averaged over the batch: the robustness term
    of F's loss for R4 (Eqs. 7-9, Example 4), the indicator of agreement replaced by `CE(p, q) = -Σ p log q`.

    R is to be large and enters the loss with a minus; the cross-entropy, which stands for disagreement, with a plus.
    Both predictions are live, and in train mode share the statistics of batch-norm. S_ε(x) are those of the generated
    samples with `‖x' - x‖_2 <= ε`; an empty one adds nothing. The samples are drawn from the global generator, which a
    training seeds at every step. Of an ensemble the mean over its members, each with the same samples.
    """

    neighbours: Neighbours
    """What generates samples: a manifold."""
    samples: int = 10
    """How many for each input; also the number of radii, |Σ|."""
    sigma: float = 0.06
    """How far from the input, in its code."""
    radii: Radii = "distances"
    """Σ: the distances of the samples themselves, or uniform on [0, d], d the diameter of the unit cube. F's Sec. 3
    says uniform, its Sec. 7 that the generator makes Σ. Where all samples agree the score is the mean of 1/ε: over
    uniform radii, most of them larger than any distance, it hangs on the few smallest that were drawn."""

    def __post_init__(self) -> None:
        require_integer("samples", self.samples, 1)
        require(self.sigma >= 0, f"sigma = {self.sigma} is not a standard deviation: expected a number >= 0.")
        if self.radii not in ("distances", "uniform"):
            raise unknown("radii", self.radii, ("distances", "uniform"))

    @property
    def __name__(self) -> str:
        """What it is called in records."""
        return f"agreement with {self.samples} of {self.neighbours}, sigma {self.sigma:g}, radii {self.radii}"

    def __call__(self, module: nn.Module, x: Points, y: Labels) -> Tensor:
        """The penalty, with its graph."""
        streams = _drawn(x)
        near = self.neighbours.sample(x, self.samples, self.sigma, streams.fold(0))
        distance = torch.linalg.vector_norm((near - x).flatten(2), dim=2)
        radii = distance
        if self.radii == "uniform":
            radii = x[0].numel() ** 0.5 * streams.fold(1).uniform(self.samples, dtype=distance.dtype).T
        weights = radial_weights(distance, radii)
        inputs = torch.cat([x[None], near]).flatten(0, 1)
        values = []
        for member in _members(module):
            both = as_predictive(member).draw()(inputs)
            clean, here = both[: len(x)], both[len(x) :]
            reference = Prediction(clean.logits.repeat(1, self.samples, 1))
            disagreement = kl("soft-cross-entropy")(here, reference).reshape_as(weights)
            values.append((weights * disagreement).sum(0).mean())
        return torch.stack(values).mean()


def _drawn(x: Points) -> Streams:
    """A stream per sample, from the global generator."""
    return Streams.of(int(torch.randint(2**62, ())), torch.arange(len(x), device=x.device))


def _members(module: nn.Module) -> list[nn.Module]:
    """The networks of an ensemble, or the one network."""
    return list(module) if isinstance(module, nn.ModuleList) else [module]

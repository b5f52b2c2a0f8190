"""Randomised smoothing: the class that a network gives most often to an input with Gaussian noise, and how far it is
certain to stay (Cohen, Rosenfeld & Kolter 2019, "Certified Adversarial Robustness via Randomized Smoothing").
"""

from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from equipoise.core.checks import check_fields, check_index, checked_call
from equipoise.core.errors import require, require_integer
from equipoise.core.rng import Stream, Streams
from equipoise.core.types import Labels, PerSample, Points, Predict, Prediction, Weights
from equipoise.models.dropout import own_streams, shared_stream
from equipoise.models.frozen import called_with, frozen
from equipoise.models.inference import predict
from equipoise.models.single import Single
from equipoise.results.statistics import least_share, mcnemar

ABSTAINS = -1
"""The class of a sample for which too little is certain."""
DRAWS = 100
"""Draws of noise that come from one stream. Changing it would change results."""


@dataclass(frozen=True)
class SmoothedCertificate:
    """What is certain of a smoothed classifier, sample by sample, each with probability `1 - alpha`."""

    prediction: Labels
    """The class; -1 where the classifier abstains."""
    radius: PerSample
    """Within this L2 distance the smoothed classifier has the same class; 0 where it abstains."""
    probability: PerSample
    """Lower confidence bound of the probability that the network gives this class under noise."""

    def certified(self, y: Labels, eps: float) -> Bool[Tensor, " batch"]:
        """Return for which samples the smoothed classifier is certain to have class `y` within L2 distance `eps`."""
        return (self.prediction == y) & (self.radius > eps)


@dataclass(frozen=True)
class Smoothed:
    """A network under Gaussian noise: `p = (1/M) Σ_m softmax(f(x + σ ξ_m))`, ξ_m standard normal.

    As a predictive it has M members, whose noise is drawn once per `draw`. In eval mode all samples share the M noises,
    from the shared stream: a member is a network, `f(· + σ ξ_m)`, and an attack ascends the mean of these M, which is
    also what its points are judged by. In train mode every sample has noise of its own, as in training on noisy images.

    A certificate is not of these M networks but of the smoothed classifier, the class most probable over all noise:
    `certify` draws as much as it is told. The noisy inputs leave the box, as published; a network that clamps them is
    certified as it is.
    """

    module: nn.Module
    """The network."""
    sigma: float
    """Standard deviation σ of the noise, in pixels of [0, 1]."""
    samples: int = 16
    """Number of members M."""
    outputs: Literal["logits", "probabilities"] = "logits"
    """Output of the network."""

    def __post_init__(self) -> None:
        check_fields(self)
        Single(self.module, self.outputs)
        require(self.sigma > 0, f"sigma = {self.sigma}: expected a standard deviation > 0, such as 0.25.")
        require_integer("samples", self.samples, 1)

    def draw(self, streams: Streams | None = None, weights: Weights | None = None) -> Predict:
        """Return all members, with fixed noise, as a function to a `Prediction`. Without streams the seed is 0."""
        module = self.module if weights is None else called_with(self.module, weights)
        network = Single(module, self.outputs).draw()

        @cache
        def noise(member: int, batch: int | None, shape: torch.Size, dtype: torch.dtype) -> Tensor:
            own = shared_stream(streams) if batch is None else own_streams(streams, batch)
            return self.sigma * own.fold(member).normal(*shape, dtype=dtype)

        def predict_noisy(x: Points) -> Prediction:
            batch = len(x) if module.training else None
            noises = (noise(member, batch, x.shape[1:], x.dtype).to(x.device) for member in range(self.samples))
            return Prediction(torch.cat([network(x + own).logits for own in noises]))

        return predict_noisy

    @checked_call()
    def certify(
        self,
        x: Points,
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 0.001,
        seed: int = 0,
        *,
        index: Int[Tensor, " batch"] | None = None,
        batch_size: int = 1000,
    ) -> SmoothedCertificate:
        """Return the class of each sample and the radius within which it is certain (CERTIFY; Theorem 1):

            r = σ Φ⁻¹(p),   p the lower confidence bound of the class's probability, over `n` draws of noise,

        if p > 1/2, else the classifier abstains. The class is the most frequent of `n0` other draws; p is of Clopper &
        Pearson, at level `1 - alpha`.

        Draws depend on `seed` and each sample's `index` (default 0, 1, ...), not on batches or order; `batch_size` is
        the number of noisy inputs at once. Raises `EquipoiseError` for unusable numbers.
        """
        numbers = self._checked(x, alpha, {"n0": n0, "n": n, "batch_size": batch_size}, seed, index)
        streams = Streams.of(seed, numbers)
        top = self._counts(x, n0, streams.fold(Stream.SELECTION), batch_size).argmax(1)
        successes = self._counts(x, n, streams.fold(Stream.ESTIMATION), batch_size).gather(1, top[:, None])[:, 0]
        shares = [least_share(int(count), n, alpha) for count in successes]
        radii = [self.sigma * NormalDist().inv_cdf(share) if share > 0.5 else 0.0 for share in shares]
        radius, p = torch.tensor([radii, shares], dtype=torch.float64, device=x.device)
        return SmoothedCertificate(torch.where(p > 0.5, top, ABSTAINS), radius, p)

    @checked_call()
    def classify(
        self,
        x: Points,
        n: int = 100_000,
        alpha: float = 0.001,
        seed: int = 0,
        *,
        index: Int[Tensor, " batch"] | None = None,
        batch_size: int = 1000,
    ) -> Labels:
        """Return the class of each sample, -1 where the classifier abstains (PREDICT): where the two most frequent of
        `n` draws do not differ at level `alpha`, by an exact two-sided test. Arguments as of `certify`.
        """
        numbers = self._checked(x, alpha, {"n": n, "batch_size": batch_size}, seed, index)
        counts, top = self._counts(x, n, Streams.of(seed, numbers).fold(Stream.ESTIMATION), batch_size).topk(2)
        certain = [mcnemar(int(first), int(second), "two-sided") <= alpha for first, second in counts]
        return torch.where(torch.tensor(certain, device=x.device), top[:, 0], ABSTAINS)

    def _checked(
        self, x: Points, alpha: float, counts: dict[str, int], seed: int, index: Int[Tensor, " batch"] | None
    ) -> Int[Tensor, " batch"]:
        """The numbers of the samples."""
        require(len(x) > 0, f"x is empty (shape {tuple(x.shape)}): expected at least one sample.")
        require(0 < alpha < 1, f"alpha = {alpha}: expected a probability of error between 0 and 1, such as 0.001.")
        for name, count in counts.items():
            require_integer(name, count, 1)
        require_integer("seed", seed)
        if index is not None:
            check_index(index, len(x))
        return torch.arange(len(x), device=x.device) if index is None else index.to(x.device)

    def _counts(self, x: Points, n: int, streams: Streams, batch_size: int) -> Int[Tensor, "batch classes"]:
        """How often the network gives each class, over `n` draws of noise for each sample; a prediction that is not
        finite is none.
        """
        model = frozen(Single(self.module, self.outputs))
        classes = predict(model, x[:1]).classes
        totals = torch.zeros(len(x), classes, dtype=torch.int64, device=x.device)
        blocks = [(block, min(DRAWS, n - block * DRAWS)) for block in range(-(-n // DRAWS))]
        size = max(1, batch_size // DRAWS)  # samples at once
        for start in range(0, len(x), size):
            few, own = x[start : start + size], streams[slice(start, start + size)]
            for block, draws in blocks:
                noise = own.fold(block).normal(DRAWS, *x.shape[1:], dtype=x.dtype)[:, :draws]
                labels = predict(model, (few[:, None] + self.sigma * noise).flatten(0, 1)).labels.reshape(len(few), -1)
                hits = torch.nn.functional.one_hot(labels.clamp_min(0), classes) * (labels >= 0)[:, :, None]
                totals[start : start + size] += hits.sum(1)
        return totals

"""Gaussian processes on the features of a network: deep kernel learning, and with a bi-Lipschitz extractor DUE.

    extractor = FCResNet((2,))
    model = deep_kernel_gp(extractor, classes=2, x_train=x, inducing=20)
    elbo = as_method(each(cross_entropy)).with_penalty(1.0, kl_to_prior(len(x)))

Class c has a latent function `f_c ~ GP(μ_c, k_c)` on the features `h = φ(x)`; the likelihood is `softmax(f(h))_y`
(van Amersfoort et al. 2021, "On Feature Collapse and Deep Kernel Learning for Single Forward Pass Uncertainty"; U,
App. D.4-D.6). The posterior is summarised by the values `L v` at inducing points Z, with `L Lᵀ = k(Z, Z)`,
`q(v) = N(m, S)` and prior `p(v) = N(0, I)` (Hensman et al. 2015, whitened). At one point, with `a = L⁻¹ k(Z, h)`:

    mean = μ + aᵀ m        variance = k(h, h) - aᵀ a + aᵀ S a

Needs gpytorch for the kernels: `pip install 'equipoise[gp]'`.
"""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from equipoise.core.errors import EquipoiseError, kind_of, require, require_integer, unknown
from equipoise.core.rng import Streams
from equipoise.core.types import Labels, Points, Predict, Prediction, Weights
from equipoise.models.frozen import called_with
from equipoise.models.inference import global_seed
from equipoise.nets.split import split

Kernel = Literal["rbf", "matern12", "matern32", "matern52"]

_SMOOTHNESS = {"matern12": 0.5, "matern32": 1.5, "matern52": 2.5}
_JITTER = 1e-6  # relative, on the diagonal of k(Z, Z), so that a Cholesky factor exists in float64
_SMALLEST_VARIANCE = 1e-6  # where the square root still has a gradient
_INITIAL_FEATURES = 1000  # for the inducing points, as in the authors' code


class SparseGP(nn.Module):
    """One sparse variational GP per class on feature vectors, all with the same inducing points.

    Kernel and constant mean are gpytorch's and learned per class; q(v) is initialised to the prior. Computed in
    float64, also under autocast, so that the Cholesky factor of nearly equal inducing points exists. Raises
    `EquipoiseError` for an unknown kernel, numbers below 1, and if gpytorch is missing.
    """

    def __init__(self, features: int, classes: int, inducing: int = 20, kernel: Kernel = "rbf") -> None:
        super().__init__()
        require(
            min(features, classes, inducing) >= 1,
            f"a GP needs at least 1 feature, class and inducing point, got {features}, {classes} and {inducing}.",
        )
        self.classes = classes
        self.kernel, self.mean = _kernel_and_mean(kernel, classes)
        start = torch.randn(inducing, features, generator=torch.Generator().manual_seed(0))
        self.inducing = nn.Parameter(start)
        """Z, of shape (inducing, features)."""
        self.variational_mean = nn.Parameter(torch.zeros(classes, inducing))
        """m of every class."""
        self.variational_root = nn.Parameter(torch.eye(inducing).repeat(classes, 1, 1))
        """The lower triangle R of every class, with S = R Rᵀ; entries above the diagonal are ignored."""

    def forward(
        self, features: Float[Tensor, "batch features"]
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        """Mean and variance of every class's latent function at every point, independently of the other points."""
        dtype = torch.promote_types(features.dtype, torch.float32)
        h, z = features.double(), self.inducing.double()
        k_zz, k_zh = self.kernel(z, torch.cat([z, h])).to_dense().split([len(z), len(h)], -1)
        factor = torch.linalg.cholesky_ex(k_zz * (1 + _JITTER * torch.eye(len(z)).to(z))).L
        a = torch.linalg.solve_triangular(factor, k_zh, upper=False)
        mean = self.mean(h) + (self.variational_mean[..., None] * a).sum(-2)
        explained = (self.variational_root.double().tril().mT @ a).square().sum(-2)
        variance = self.kernel(h, diag=True) - a.square().sum(-2) + explained
        return mean.T.to(dtype), variance.clamp_min(_SMALLEST_VARIANCE).T.to(dtype)

    def kl_to_prior(self) -> Float[Tensor, ""]:
        """`KL(q ‖ p) = ½ Σ (tr S + mᵀ m - M - log det S)`, summed over the classes, in nats."""
        root, mean = self.variational_root.double().tril(), self.variational_mean.double()
        log_det = 2 * root.diagonal(dim1=-2, dim2=-1).abs().log().sum()
        return (root.square().sum() + mean.square().sum() - mean.numel() - log_det) / 2

    @torch.no_grad()
    def start_from(self, features: Float[Tensor, "batch features"], seed: int = 0) -> None:
        """Initialise the inducing points to the k-means centres of `features`, and every lengthscale to their mean
        distance, as DUE does. Raises `EquipoiseError` if there are fewer distinct feature vectors than inducing points.
        """
        points, count = features.double().cpu(), len(self.inducing)
        distinct = len(points.unique(dim=0))
        require(
            distinct >= max(count, 2),
            f"{count} inducing points need as many distinct feature vectors (at least 2), the data has {distinct}.",
        )
        from sklearn.cluster import KMeans  # its import takes a second

        centres = KMeans(count, random_state=seed % 2**32).fit(points.numpy()).cluster_centers_
        self.inducing.copy_(torch.from_numpy(centres))
        self.kernel.base_kernel.lengthscale = torch.pdist(points).mean().to(self.inducing)


def _kernel_and_mean(kernel: str, classes: int) -> tuple[Any, Any]:
    if kernel not in ("rbf", *_SMOOTHNESS):
        raise unknown("kernel", kernel, ("rbf", *_SMOOTHNESS))
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # gpytorch uses torch.jit
            from gpytorch import kernels, means
    except ImportError as error:
        raise EquipoiseError("a deep-kernel GP needs gpytorch: pip install 'equipoise[gp]'.") from error
    batch = torch.Size([classes])
    if kernel == "rbf":
        base = kernels.RBFKernel(batch_shape=batch)
    else:
        base = kernels.MaternKernel(nu=_SMOOTHNESS[kernel], batch_shape=batch)
    return kernels.ScaleKernel(base, batch_shape=batch), means.ConstantMean(batch_shape=batch)


class DeepKernelGPModule(nn.Module):
    """An extractor of feature vectors, `.extractor`, and the GPs on them, `.gp`, not initialised from data.

    `features` is the number of features that the extractor returns, by default its `.features`. Raises
    `EquipoiseError` as `SparseGP`, and if that number is not known.
    """

    def __init__(
        self,
        extractor: nn.Module,
        classes: int,
        inducing: int = 20,
        features: int | None = None,
        kernel: Kernel = "rbf",
    ) -> None:
        super().__init__()
        features = getattr(extractor, "features", None) if features is None else features
        if not isinstance(features, int):
            raise EquipoiseError(f"how many features {kind_of(extractor)} returns is not known: give features=.")
        self.extractor = extractor
        self.gp = SparseGP(features, classes, inducing, kernel)

    def forward(
        self, x: Float[Tensor, "batch ..."]
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        """Mean and variance of the logits."""
        features = self.extractor(x)
        _check_features(features, len(x))
        return self.gp(features)

    def named_stages(self) -> dict[str, nn.Module]:
        """Extractor and GPs."""
        return {"extractor": self.extractor, "gp": self.gp}


def _check_features(features: Any, batch: int) -> None:
    what = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else f"{kind_of(features)}"
    require(
        isinstance(features, Tensor) and features.ndim == 2 and len(features) == batch,
        f"the extractor returned {what}; expected feature vectors of shape ({batch}, features).",
    )


@dataclass(frozen=True)
class DeepKernelGP:
    """GP logits as a predictive: member s has the logits `mean(x) + std(x) · ξ_s`, independent over the classes.

    The standard normal ξ come from the stream shared by all samples. Their first two moments are matched, so that mean
    and variance of the logits over the members are exactly the GP's. Covariances between samples are ignored.
    """

    module: nn.Module
    """A `DeepKernelGPModule`, or any module that ends with a `SparseGP` and returns its output."""
    samples: int = 16
    """Number of members; 1 is the GP's mean alone, without its uncertainty."""

    def __post_init__(self) -> None:
        _gp(self.module)
        require_integer("samples", self.samples, 1)

    def draw(self, streams: Streams | None = None, weights: Weights | None = None) -> Predict:
        """Return the prediction function with fixed ξ. Without streams the seed is 0."""
        shared = (streams or Streams.of(0, torch.zeros(1, dtype=torch.int64))).shared
        noise = _match_moments(shared.normal(self.samples, _gp(self.module).classes, dtype=torch.float64)[0])
        network = self.module if weights is None else called_with(self.module, weights)

        def predict(x: Points) -> Prediction:
            mean, variance = network(x)
            return Prediction(mean + variance.sqrt() * noise[:, None].to(mean))

        return predict

    def start_from(self, x_train: Points, seed: int = 0) -> None:
        """Initialise the GPs from the features of (at most 1000) training inputs: inducing points at their k-means
        centres, every lengthscale at their mean distance.

        The extractor's mode is not changed: a network yet to be trained is in train mode. `seed` is that of the choice
        of inputs and of k-means; the global random state is left unchanged. Raises `EquipoiseError` as
        `SparseGP.start_from`, and for an extractor that returns no feature vectors.
        """
        index = torch.randperm(len(x_train), generator=torch.Generator().manual_seed(seed))[:_INITIAL_FEATURES]
        extractor, _ = split(self.module, "extractor")
        _gp(self.module).start_from(_features(extractor, x_train[index.to(x_train.device)], seed), seed)

    def split(self, layer: str) -> "tuple[nn.Module, DeepKernelGP]":
        """Return the extractor, for `layer = "extractor"`, and the GPs as a predictive of features."""
        extractor, gp = split(self.module, layer)
        return extractor, DeepKernelGP(gp, self.samples)


def _match_moments(noise: Float[Tensor, "samples classes"]) -> Float[Tensor, "samples classes"]:
    """Shifted and scaled to mean 0 and variance 1 per class; a single sample becomes 0."""
    centred = noise - noise.mean(0)
    return centred / centred.square().mean(0).sqrt().clamp_min(torch.finfo(noise.dtype).tiny)


def _gp(module: nn.Module) -> SparseGP:
    gps = [layer for layer in module.modules() if isinstance(layer, SparseGP)]
    require(len(gps) == 1, f"{kind_of(module)} holds {len(gps)} SparseGP: expected 1, as in a DeepKernelGPModule.")
    return gps[0]


def deep_kernel_gp(
    extractor: nn.Module,
    classes: int,
    x_train: Points,
    inducing: int = 20,
    kernel: Kernel = "rbf",
    samples: int = 16,
    seed: int = 0,
) -> DeepKernelGP:
    """Return GPs on the features of `extractor`, initialised from training inputs (`DeepKernelGP.start_from`).

    Raises `EquipoiseError` as `DeepKernelGP.start_from` and `DeepKernelGPModule`.
    """
    features = _features(extractor, x_train[:2], seed)
    module = DeepKernelGPModule(extractor, classes, inducing, features.shape[1], kernel)
    module.gp.to(features)
    model = DeepKernelGP(module, samples)
    model.start_from(x_train, seed)
    return model


def _features(extractor: nn.Module, x: Points, seed: int) -> Float[Tensor, "batch features"]:
    """The features, in the extractor's present mode."""
    with global_seed(seed, x.device), torch.no_grad():
        batches = x.split(256)
        features = [extractor(batch) for batch in batches]
    for batch, feature in zip(batches, features, strict=True):
        _check_features(feature, len(batch))
    return torch.cat(features)


@dataclass(frozen=True)
class KLToPrior:
    """The penalty `KL(q(v) ‖ p(v)) / n` of a deep-kernel GP.

    It makes the mean over members of the cross-entropy the negative evidence lower bound per training sample,
    `-ELBO/n = mean of E_q[-log softmax(f)_y] + KL(q ‖ p)/n` (Hensman et al. 2015, Eq. 18):

        as_method(each(cross_entropy)).with_penalty(1.0, kl_to_prior(n))
    """

    n: int
    """Number of training samples."""

    def __post_init__(self) -> None:
        require_integer("n", self.n, 1)

    @property
    def __name__(self) -> str:
        """Name in records."""
        return f"KL(q||p)/{self.n}"

    def __call__(self, module: nn.Module, x: Points, y: Labels) -> Tensor:
        """The penalty, in the precision of the GP's parameters."""
        gp = _gp(module)
        return gp.kl_to_prior().to(gp.inducing.dtype) / self.n


kl_to_prior = KLToPrior

"""How a model's outputs change with its input: the Jacobian's spectral norm, margins, and how far from linear it is.

R (Sec. 6) asks whether a margin is large because the outputs change slowly, `M / ‖∇f‖₂`, and whether the slope at a
point says anything about its neighbourhood, `Q_f`. The outputs f are `Prediction.scores`: the logits of a network; of
several members, which share no logits, the log of their mean probability.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from equipoise.core.errors import EquipoiseError, EquipoiseWarning, NoGradient, require, require_integer
from equipoise.core.rng import Stream
from equipoise.core.types import Labels, PerSample, Points, Predict, Predictive
from equipoise.diagnostics.blocks import BATCH_SIZE, Block, in_blocks
from equipoise.losses.objectives import margin

MANY_CLASSES = 100
"""Number of classes up to which the whole Jacobian costs less than the power iteration: with 10 classes a tenth, with
100 about as much (LeNet and ResNet-18 on a CPU)."""
_ENTRIES = 1 << 26  # numbers of a Jacobian held at a time


def decision_margin(
    model: "nn.Module | Predictive", x: Points, y: Labels, *, batch_size: int = BATCH_SIZE, seed: int = 0
) -> PerSample:
    """Return `M = f_y - max_{i≠y} f_i` per sample, in units of the logits: positive where correct (R, Sec. 6)."""

    def work(block: Block) -> PerSample:
        return -margin(block.predict(x[block.samples]), labels=y[block.samples])

    return torch.cat(in_blocks(work, model, x, y, batch_size=batch_size, seed=seed))


def spectral_norm(
    model: "nn.Module | Predictive",
    x: Points,
    *,
    iterations: int = 300,
    tolerance: float = 1e-3,
    exact: bool | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> PerSample:
    """Return `‖∇f(x)‖₂`, the largest singular value of the Jacobian of the outputs, per sample (R, Eq. 12).

    Power iteration `v ← JᵀJv / ‖JᵀJv‖` with every sample's own v, by products with J and Jᵀ alone. A sample is done
    when, with `σ = ‖Jv‖` and `u = Jv/σ`, the residual `‖Jᵀu - σv‖` is at most `tolerance·σ`: a singular value then
    lies within `tolerance·σ`, as a rule (the start is random) the largest. The result is never above it but for
    rounding. Within `iterations` nearly every sample is done; an `EquipoiseWarning` counts those that are not.

    `exact` builds the matrix instead, one backward pass per class, and takes its singular values; None does so up to
    `MANY_CLASSES` classes, where it is faster. Where the slope is not finite the norm is NaN.
    Raises `EquipoiseError` for input that the model cannot take.
    """
    require_integer("iterations", iterations, 1)
    require(tolerance > 0, f"tolerance = {tolerance}: expected a relative error > 0, such as 1e-3.")

    def work(block: Block) -> tuple[PerSample, int]:
        if exact or (exact is None and block.classes <= MANY_CLASSES):
            return torch.cat([_largest(j) for j in _matrices(block, x[block.samples])]), 0
        return _power_iteration(block, x[block.samples], iterations, tolerance)

    values, unfinished = zip(*in_blocks(work, model, x, batch_size=batch_size, seed=seed), strict=True)
    if sum(unfinished):
        warnings.warn(
            f"after {iterations} iterations the spectral norm of {sum(unfinished)} of {len(x)} samples is not within "
            f"{tolerance:g}: their values are lower bounds; allow more iterations, or use exact=True.",
            EquipoiseWarning,
            stacklevel=2,
        )
    return torch.cat(values)


def jacobian(
    model: "nn.Module | Predictive", x: Points, *, batch_size: int = BATCH_SIZE, seed: int = 0
) -> Float[Tensor, "batch classes features"]:
    """Return the Jacobian of the outputs of every sample, its input flattened: one backward pass per class."""

    def work(block: Block) -> Tensor:
        return torch.cat(list(_matrices(block, x[block.samples])))

    return torch.cat(in_blocks(work, model, x, batch_size=batch_size, seed=seed))


def normalised_margin(
    model: "nn.Module | Predictive",
    x: Points,
    y: Labels,
    *,
    iterations: int = 300,
    tolerance: float = 1e-3,
    exact: bool | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> PerSample:
    """Return `M / ‖∇f(x)‖₂` per sample, in the units of the input (R, Sec. 6); infinite where the Jacobian is 0.

    Over `√2` it estimates the L2 distance to the decision boundary, which it would bound if the norm were f's global
    Lipschitz constant (Tsuzuku et al. 2018; R, Theorem 1). The options are those of `spectral_norm`.
    """
    norm = spectral_norm(
        model, x, iterations=iterations, tolerance=tolerance, exact=exact, batch_size=batch_size, seed=seed
    )
    return decision_margin(model, x, y, batch_size=batch_size, seed=seed) / norm


def nonlinearity(
    model: "nn.Module | Predictive", x: Points, x_moved: Points, *, batch_size: int = BATCH_SIZE, seed: int = 0
) -> PerSample:
    """Return how far from linear the outputs are between two points, per sample. With `d = x' - x` and the
    Jacobian J at x:

        Q_f(x', x) = ‖f(x') - f(x) - J d‖₂ / ‖J d‖₂          (R, Eq. 13)

    0 for a linear model; 1 when what the slope does not explain is as large as what it does. NaN where `x' = x`,
    infinite where only the slope sees no change.
    """
    require(
        x_moved.shape == x.shape and x_moved.dtype == x.dtype,
        f"x_moved must be points like x: a tensor of shape {tuple(x.shape)} and {x.dtype}.",
    )

    def work(block: Block) -> PerSample:
        origin, moved = x[block.samples], x_moved[block.samples]
        jacobian = _Jacobian.at(block.predict, origin)
        linear = jacobian.forward(moved - origin)
        remainder = block.predict(moved).scores - jacobian.scores - linear
        return (_length(remainder) / _length(linear)).to(x.dtype)

    return torch.cat(in_blocks(work, model, x, batch_size=batch_size, seed=seed))


@dataclass(frozen=True)
class Correlation:
    """How two quantities vary together over samples."""

    pearson: float
    """Pearson's r, of a linear relation."""
    pearson_interval: tuple[float, float]
    """95 % interval by Fisher's transformation, `tanh(atanh r ± 1.96/√(n-3))`."""
    spearman: float
    """Spearman's rho, of a monotone one."""
    spearman_interval: tuple[float, float]
    """95 % interval, `tanh(atanh rho ± 1.96·√((1 + rho²/2)/(n-3)))` (Bonett & Wright 2000)."""
    n: int
    """Number of samples."""


def correlation(
    a: "PerSample | Float[np.ndarray, ' batch']", b: "PerSample | Float[np.ndarray, ' batch']"
) -> Correlation:
    """Return Pearson's and Spearman's correlation with 95 % intervals; of normalised margins and the distances
    of an attack it is the last row of R's Table 4. Raises `EquipoiseError` below 4 samples, for values that are not
    finite, and if either quantity is constant.
    """
    first, second = (np.asarray(v.cpu() if isinstance(v, Tensor) else v, dtype=np.float64) for v in (a, b))
    require(len(first) == len(second), f"there are {len(first)} values of a and {len(second)} of b: expected as many.")
    require(len(first) >= 4, f"the interval of a correlation needs at least 4 samples, got {len(first)}.")
    require(bool(np.isfinite(first).all() and np.isfinite(second).all()), "a correlation needs finite values.")
    require(bool(np.ptp(first) > 0 and np.ptp(second) > 0), "one of the quantities is the same for every sample.")
    from scipy import stats

    n, spread = len(first), stats.norm.ppf(0.975)
    pearson, spearman = (float(np.asarray(f(first, second))[0]) for f in (stats.pearsonr, stats.spearmanr))

    def interval(r: float, variance: float) -> tuple[float, float]:
        centre, half = np.arctanh(np.clip(r, -1 + 1e-15, 1 - 1e-15)), spread * np.sqrt(variance / (n - 3))
        return float(np.tanh(centre - half)), float(np.tanh(centre + half))

    return Correlation(pearson, interval(pearson, 1.0), spearman, interval(spearman, 1 + spearman**2 / 2), n)


@dataclass(frozen=True)
class _Jacobian:
    """The Jacobian of every sample's outputs, as products; all from one forward pass."""

    scores: Float[Tensor, "batch classes"]
    forward: Callable[[Tensor], Tensor]  # v, like the input, to J v
    backward: Callable[[Tensor], Tensor]  # u, like the outputs, to Jᵀ u

    @classmethod
    def at(cls, predict: Predict, x: Points) -> "_Jacobian":
        with torch.enable_grad():
            point, scores = _traced(predict, x)
            u = torch.zeros_like(scores, requires_grad=True)
            (product,) = torch.autograd.grad(scores, point, u, create_graph=True)

        def forward(v: Tensor) -> Tensor:  # Jᵀu is linear in u, so that its derivative along v is J v wherever u is
            try:
                return torch.autograd.grad(product, u, v, retain_graph=True)[0]
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise EquipoiseError(
                    "products with the model's Jacobian need operations that can be differentiated twice, for the "
                    f"spectral norm use exact=True ({reason.rstrip('.')})."
                ) from error

        def backward(u: Tensor) -> Tensor:
            return torch.autograd.grad(scores, point, u, retain_graph=True)[0]

        return cls(scores.detach(), forward, backward)


def _traced(predict: Predict, x: Points) -> tuple[Points, Float[Tensor, "batch classes"]]:
    """A point and the outputs there, with their graph."""
    point = x.detach().requires_grad_()
    scores = predict(point.clone()).scores  # no leaf, as a first layer may work in place
    if not scores.requires_grad:
        raise NoGradient("the model's output has no gradient: it detaches its input or uses no_grad.")
    return point, scores


def _matrices(block: Block, x: Points) -> "list[Float[Tensor, 'batch classes features']]":
    """The Jacobians, as many at a time as memory allows."""
    matrices = []
    for points in x.split(max(1, _ENTRIES // (block.classes * x[0].numel()))):
        with torch.enable_grad():
            point, scores = _traced(block.predict, points)
            rows = [torch.autograd.grad(z.sum(), point, retain_graph=True)[0].flatten(1) for z in scores.unbind(1)]
        matrices.append(torch.stack(rows, 1))
    return matrices


def _largest(matrices: Float[Tensor, "batch classes features"]) -> PerSample:
    """The largest singular value of each; NaN of one that is not finite, which PyTorch refuses."""
    finite = matrices.flatten(1).isfinite().all(1)
    return torch.where(finite, torch.linalg.svdvals(matrices.nan_to_num(0.0, 0.0, 0.0))[:, 0], torch.nan)


def _power_iteration(block: Block, x: Points, iterations: int, tolerance: float) -> tuple[PerSample, int]:
    """The largest singular values, and how many did not converge."""
    value = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    jacobian, active = _Jacobian.at(block.predict, x), torch.arange(len(x), device=x.device)
    done = torch.zeros_like(active, dtype=torch.bool)
    # A start in the image of Jᵀ has no component in the kernel of J, and a fair share of the best direction.
    v = _unit(jacobian.backward(block.streams.fold(Stream.POWER_ITERATION).normal(block.classes, dtype=x.dtype)))
    for _ in range(iterations):
        u = jacobian.forward(v)
        w = jacobian.backward(_unit(u))
        size, sigma = _length(w), _length(u)
        value[active] = torch.where(done, value[active], size)  # unchanged once done, whatever the other samples
        residual = _length(w.flatten(1) - sigma[:, None] * v.flatten(1))
        done = done | ~(residual > tolerance * sigma)  # NaN is final too
        if 2 * int(done.sum()) >= len(active):
            active, w, done = active[~done], w[~done], done[~done]
            if len(active) == 0:
                break
            jacobian = _Jacobian.at(block.predict, x[active])
        v = _unit(w)
    return value.to(x.dtype), int((~done).sum())


def _length(vectors: Tensor) -> PerSample:
    """L2 norms in float64: the square of a slope of 1e-30 is 0 in float32."""
    return torch.linalg.vector_norm(vectors.flatten(1), dim=1, dtype=torch.float64)


def _unit(vectors: Tensor) -> Tensor:
    """Vectors scaled to length 1; zero vectors are unchanged."""
    length = _length(vectors).clamp_min(torch.finfo(torch.float64).tiny)
    return (vectors.flatten(1) / length[:, None]).reshape(vectors.shape).to(vectors.dtype)

"""Layers with a bounded Lipschitz constant: `|f(a) - f(b)| <= c |a - b|` in the Euclidean norm.

`bounded(layer, c)` makes a linear layer or a convolution use `W / max(1, σ/c)` for its weight `W`, where σ is the
largest singular value of the map `x -> W x` (Gouk et al. 2021, "Regularisation of Neural Networks by Enforcing
Lipschitz Continuity"). For a convolution that is the map of images to images, padding and stride included, not its
weight reshaped to a matrix. `BoundedBatchNorm2d` bounds a batch-norm the same way.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import ParametrizationList, register_parametrization

from equipoise.core.errors import EquipoiseError, kind_of, require

Layer = TypeVar("Layer", bound=nn.Module)

_VECTORS, _INITIAL_ITERATIONS = 8, 30  # σ of random weights is then at most 0.1 % too small
_TOLERANCE, _MAX_ITERATIONS = 1e-6, 300  # relative change of σ that ends the iteration at the end of training


LinearMap = Callable[[Tensor, Tensor], Tensor]
"""From a weight and a batch x to `W x`."""


class BoundedNorm(nn.Module):
    """The parametrization `W -> W / max(1, σ/c)`, whose operator norm is at most c.

    σ = uᵀ W v with the leading singular vectors u and v, which are constants of the gradient. They come from orthogonal
    iteration: many steps at the start, then one per forward pass in train mode, and none in eval mode. (A single
    vector, once it has converged, needs hundreds of steps to notice that training made another direction the largest.)
    σ approaches the norm from below. While training it lags behind the weights by a few percent; on leaving train mode
    it is iterated to convergence, so that the bound holds in eval mode.
    """

    u: Tensor
    v: Tensor

    def __init__(self, coefficient: float, weight: Tensor, operator: LinearMap, shape: tuple[int, ...]) -> None:
        """`shape` is that of one x."""
        super().__init__()
        require(coefficient > 0, f"the bound of a norm must be positive, got {coefficient}.")
        self.coefficient, self.operator = coefficient, operator
        weight = weight.detach()
        count = min(_VECTORS, math.prod(shape), operator(weight, weight.new_zeros(1, *shape)).numel())
        start = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0)).to(weight)
        self.register_buffer("v", _orthonormal(start))
        self.register_buffer("u", torch.zeros_like(operator(weight, start)))
        for _ in range(_INITIAL_ITERATIONS):
            self._iterate(weight)

    def settle(self, weight: Tensor) -> None:
        """Iterate until σ converges."""
        full = weight.detach().to(self.v.dtype)
        before = self.norm(full)
        for _ in range(_MAX_ITERATIONS):
            self._iterate(full)
            now = self.norm(full)
            if not now - before > _TOLERANCE * now:
                return
            before = now

    @torch.no_grad()
    def _iterate(self, weight: Tensor) -> None:
        """One step `V -> Wᵀ W V` on the rows of v, then a singular value decomposition in the space they span."""
        weight = weight.nan_to_num(0, 0, 0)  # of weights that diverged the norm is NaN, but the vectors stay
        with torch.enable_grad():
            v = self.v.clone().requires_grad_()
            image = self.operator(weight, v)
        left = _orthonormal(image.detach())
        (back,) = torch.autograd.grad(image, v, left)  # Wᵀ of every row
        rotation, _, right = torch.linalg.svd(back.flatten(1), full_matrices=False)
        self.u.copy_((rotation.T @ left.flatten(1)).view_as(self.u))
        self.v.copy_(right.view_as(self.v))

    def norm(self, weight: Tensor) -> Float[Tensor, ""]:
        """σ = uᵀ W v."""
        u, v = self.u[:1].clone(), self.v[:1].clone()  # the next forward pass changes them, the gradient needs them
        return (u * self.operator(weight, v)).sum()

    def forward(self, weight: Tensor) -> Tensor:
        """The bounded weight, of the same shape and type."""
        with torch.autocast(weight.device.type, enabled=False):
            full = weight.to(self.v.dtype)
            if self.training:
                self._iterate(full.detach())
            return weight / (self.norm(full) / self.coefficient).clamp_min(1)

    def extra_repr(self) -> str:
        """The bound, for `repr`."""
        return f"coefficient={self.coefficient:g}"


class _SettledOnLeaving(ParametrizationList):
    """The parametrizations of a bounded weight, iterated to convergence when the layer leaves train mode."""

    def train(self, mode: bool = True) -> "_SettledOnLeaving":
        leaves = self.training and not mode
        super().train(mode)
        if leaves:
            for parametrization in self:
                if isinstance(parametrization, BoundedNorm):
                    parametrization.settle(cast(Tensor, self.original))
        return self


def _orthonormal(rows: Tensor) -> Tensor:
    """An orthonormal basis of a space that holds the rows, in the same shape."""
    return torch.linalg.qr(rows.flatten(1).T).Q.T.reshape(rows.shape)


def bounded(layer: Layer, coefficient: float, input_size: tuple[int, ...] | None = None) -> Layer:
    """Bound the operator norm of a `Linear` or of a `Conv2d` with zero padding by `coefficient`, and return the layer.

    A convolution also needs `input_size`, the height and width of its input images; on other sizes the bound holds
    approximately. Raises `EquipoiseError` for any other layer, and for a coefficient that is not positive.
    """
    match layer:
        case nn.Linear():
            operator, shape = _matrix_product, (layer.in_features,)
        case nn.Conv2d():
            operator, shape = _convolution(layer, input_size)
        case _:
            raise EquipoiseError(f"the norm of {kind_of(layer)} cannot be bounded: give a Linear or a Conv2d.")
    register_parametrization(layer, "weight", BoundedNorm(coefficient, layer.weight, operator, shape))
    # PyTorch has no other hook that sees both the weight and the change of mode.
    cast(Any, layer).parametrizations["weight"].__class__ = _SettledOnLeaving
    return layer


def _matrix_product(weight: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, weight)


def _convolved(weight: Tensor, x: Tensor, **options: Any) -> Tensor:
    return F.conv2d(x, weight, **options)


def _convolution(layer: nn.Conv2d, size: tuple[int, ...] | None) -> tuple[LinearMap, tuple[int, ...]]:
    """The convolution without its bias, and the shape of one input."""
    require(
        layer.padding_mode == "zeros" and not isinstance(layer.padding, str),
        f"the norm of a convolution is known for zero padding given by numbers, not for padding {layer.padding!r} of "
        f"mode {layer.padding_mode!r}.",
    )
    if size is None:
        raise EquipoiseError("the norm of a convolution depends on the images: give input_size=(height, width).")
    options = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
    return partial(_convolved, **options), (layer.in_channels, *size)


class BoundedBatchNorm2d(nn.BatchNorm2d):
    """Batch-norm `γ (x - μ)/√(v + ε) + β` with γ replaced by `γ / max(1, σ/c)`, where `σ = max |γ|/√(v + ε)` over the
    channels is its Lipschitz constant in eval mode; v is the running variance in either mode (van Amersfoort et al.
    2021, after Gouk et al. 2021). Raises `EquipoiseError` for a coefficient that is not positive.
    """

    def __init__(self, channels: int, coefficient: float) -> None:
        super().__init__(channels)
        require(coefficient > 0, f"the bound of a norm must be positive, got {coefficient}.")
        self.coefficient = coefficient

    def forward(self, input: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        """The normalised batch, of the same shape."""
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        lipschitz = (self.weight.abs() * (variance + self.eps).rsqrt()).amax()
        weight = self.weight / (lipschitz / self.coefficient).clamp_min(1)
        momentum = 0.1 if self.momentum is None else self.momentum
        return F.batch_norm(input, mean, variance, weight, self.bias, self.training, momentum, self.eps)

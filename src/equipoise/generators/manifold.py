"""A data manifold learned from data: a Wasserstein auto-encoder (Tolstikhin et al. 2018; F, Secs. 4.2 and 7).

The encoder gives every input a code, the decoder every code an input; the codes of the data are made to look standard
normal. Noise on a code is then a move along the manifold:

    x' = dec(enc(x) + N(0, σ²))                                                                 (F, Eq. 13)

`equipoise.training.fit_manifold` trains one.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from equipoise.core.errors import require
from equipoise.core.rng import Streams
from equipoise.core.types import Points

_MOST_FILTERS = 256


class Manifold(nn.Module):
    """An encoder and a decoder that stand still: in eval mode, their weights without gradient."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, options: Mapping[str, Any] | None = None) -> None:
        """Modules from inputs to codes and back to [0, 1]; `options` of `auto_encoder`, where they are its own."""
        super().__init__()
        self.encoder, self.decoder, self.options = encoder, decoder, None if options is None else dict(options)
        self.stand()

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of one input, if it is known."""
        return None if self.options is None else tuple(self.options["shape"])

    def stand(self) -> None:
        """Stand still, as before and after a training."""
        self.eval().requires_grad_(False)

    def encode(self, x: Points) -> Points:
        """The codes of inputs. Raises `EquipoiseError` for inputs of another shape than it was made for."""
        require(
            self.shape is None or tuple(x.shape[1:]) == self.shape,
            f"this manifold is one of inputs of shape {self.shape}, got inputs of shape {tuple(x.shape[1:])}: train "
            "another on this data.",
        )
        weight = next(self.parameters(), x)
        return self.to(x.device).encoder(x.to(weight.dtype))

    def decode(self, codes: Points) -> Points:
        """The inputs, in [0, 1], that have these codes. Differentiable in them."""
        return self.to(codes.device).decoder(codes)

    @torch.no_grad()
    def sample(self, x: Points, samples: int, sigma: float, streams: Streams) -> Float[Tensor, "samples batch ..."]:
        """`dec(enc(x) + N(0, σ²))`, several times for each input (F, Eq. 13), in float32 whatever the precision."""
        with torch.autocast(x.device.type, enabled=False):
            codes = self.encode(x)
            noise = streams.normal(samples, *codes.shape[1:], dtype=codes.dtype).transpose(0, 1)
            return torch.stack([self.decode(codes + sigma * move) for move in noise])

    @torch.no_grad()
    def gallery(self, x: Points, samples: int, sigma: float, streams: Streams) -> Float[Tensor, "batch columns ..."]:
        """Per input a row of pictures: the input, its reconstruction and samples near it."""
        rebuilt = self.decode(self.encode(x))
        return torch.cat([x[None], rebuilt[None], self.sample(x, samples, sigma, streams)]).transpose(0, 1)

    def __str__(self) -> str:
        """In a few words, those of its weights included."""
        digest = hashlib.sha256()
        for tensor in self.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return f"manifold {digest.hexdigest()[:12]}"


def auto_encoder(shape: Sequence[int], codes: int = 16, width: int = 32, seed: int = 0) -> Manifold:
    """An untrained manifold of inputs of that shape, (channels, height, width) or (features,).

    For images the encoder halves both sides by 3x3 convolutions of stride 2, of `width` filters and twice as many each
    time (at most 256), with batch-norm and ReLU, until one is 4 or less, and ends with a linear layer to the `codes`
    numbers of the code; the decoder mirrors it by transposed convolutions and ends with a sigmoid. For vectors both
    have two hidden layers of `8 width` units. F gives no details; these follow Tolstikhin et al. (App. C) in kind.
    Weights are drawn from `seed`. Raises `EquipoiseError` for images below 8x8 pixels and numbers below 1.
    """
    shape = tuple(shape)
    require(codes >= 1, f"codes = {codes}: a code needs at least one number.")
    require(width >= 1, f"width = {width}: a layer needs at least one filter.")
    require(
        len(shape) == 1 or (len(shape) == 3 and min(shape[1:]) >= 8),
        f"a manifold needs images (channels, height, width) of at least 8x8 pixels, or (features,), got shape {shape}.",
    )
    with torch.random.fork_rng(devices=()), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        make = _dense if len(shape) == 1 else _convolutional
        options = {"shape": list(shape), "codes": codes, "width": width}
        return Manifold(*make(shape, codes, width), options)


def _dense(shape: tuple[int, ...], codes: int, width: int) -> tuple[nn.Module, nn.Module]:
    def layers(*sizes: int) -> list[nn.Module]:
        hidden = [layer for a, b in pairwise(sizes[:-1]) for layer in (nn.Linear(a, b), nn.ReLU())]
        return [*hidden, nn.Linear(sizes[-2], sizes[-1])]

    units = 8 * width
    encoder = nn.Sequential(*layers(shape[0], units, units, codes))
    return encoder, nn.Sequential(*layers(codes, units, units, shape[0]), nn.Sigmoid())


def _convolutional(shape: tuple[int, ...], codes: int, width: int) -> tuple[nn.Module, nn.Module]:
    sides, filters = [shape[1:]], [shape[0]]
    while min(sides[-1]) > 4:
        sides.append(tuple((side + 1) // 2 for side in sides[-1]))
        filters.append(min(width * 2 ** (len(filters) - 1), _MOST_FILTERS))
    down: list[nn.Module] = []
    up: list[nn.Module] = []
    for i in range(1, len(sides)):
        few, many = filters[i - 1], filters[i]
        down += [nn.Conv2d(few, many, 3, stride=2, padding=1), nn.BatchNorm2d(many), nn.ReLU()]
        # A transposed convolution gives 2s - 1 pixels for s, or one more if asked to.
        extra = tuple(int(side % 2 == 0) for side in sides[i - 1])
        wider = nn.ConvTranspose2d(many, few, 3, stride=2, padding=1, output_padding=extra)  # pyright: ignore[reportArgumentType]
        up = [nn.BatchNorm2d(many), nn.ReLU(), wider, *up]
    features = filters[-1] * math.prod(sides[-1])
    encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(features, codes))
    grid = nn.Unflatten(1, (filters[-1], *sides[-1]))
    return encoder, nn.Sequential(nn.Linear(codes, features), grid, *up, nn.Sigmoid())


def inverse_multiquadric(a: Float[Tensor, "n codes"], b: Float[Tensor, "m codes"]) -> Float[Tensor, "n m"]:
    """`k(a, b) = C / (C + ‖a - b‖²)`, C = 2 · number of coordinates, the mean squared distance of two standard normal
    points (Tolstikhin et al. 2018, Sec. 4).
    """
    scale = 2 * a.shape[1]
    return scale / (scale + (a[:, None] - b[None]).square().sum(2))


def squared_mmd(a: Float[Tensor, "n codes"], b: Float[Tensor, "m codes"]) -> Float[Tensor, ""]:
    """An unbiased estimate of `MMD²` between the laws of two samples, by the inverse multiquadric kernel:

        Σ_{i≠j} k(a_i, a_j) / n(n-1) + Σ_{i≠j} k(b_i, b_j) / m(m-1) - 2 Σ_{i,j} k(a_i, b_j) / nm

    (Tolstikhin et al. 2018, Alg. 2). 0 in the mean for equal laws, so sometimes negative; n and m are at least 2.
    """

    def among(x: Tensor) -> Tensor:
        n = len(x)
        return (inverse_multiquadric(x, x).sum() - n) / (n * (n - 1))  # k(x, x) = 1

    return among(a) + among(b) - 2 * inverse_multiquadric(a, b).mean()

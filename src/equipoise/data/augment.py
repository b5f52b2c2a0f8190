"""Augmentation of whole batches, without a loop over samples; a sample's draw does not depend on its batch."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from equipoise.core.errors import require
from equipoise.core.rng import Streams


def crop_and_flip(x: Float[Tensor, "n c h w"], streams: Streams, *, pad: int = 4) -> Float[Tensor, "n c h w"]:
    """Pad images (n, c, h, w) with zeros, crop them at random to the old size, mirror them with probability 1/2.

    `out[i, :, r, s] = padded[i, :, r + dy_i, (w-1-s if flip_i else s) + dx_i]`, with `dy_i, dx_i` uniform in
    {0, ..., 2 pad}. The draws depend on `streams` alone, e.g. `Streams.of(seed, index).fold(epoch)` with the samples'
    numbers in the dataset. Raises `EquipoiseError` for `pad < 0`, an `x` that is not a batch of images, or a number
    of streams other than the number of images.
    """
    require(pad >= 0, f"pad = {pad}; expected a number of pixels, at least 0.")
    require(
        x.ndim == 4,
        f"crop and flip needs images (n, channels, height, width), got shape {tuple(x.shape)}; turn it off.",
    )
    require(len(streams) == len(x), f"{len(streams)} streams for {len(x)} images; expected one per image.")
    height, width = x.shape[2:]
    dy, dx = streams.fold(0).integers(2 * pad + 1), streams.fold(1).integers(2 * pad + 1)
    flip = streams.fold(2).integers(2).bool()
    rows = torch.arange(height, device=x.device) + dy[:, None]
    columns = torch.arange(width, device=x.device)
    columns = torch.where(flip[:, None], columns.flip(0), columns) + dx[:, None]
    pixels = (rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]).flatten(1)
    padded = F.pad(x, (pad, pad, pad, pad)).flatten(2)
    return padded.gather(2, pixels[:, None, :].expand(-1, x.shape[1], -1)).view_as(x)

"""Edge detection."""

import torch
import torch.nn.functional as F

from equipoise.core.rng import Streams
from equipoise.core.types import Images
from equipoise.corruptions.canvas import blurred, unit

LOW, HIGH = 0.1, 0.2
"""Thresholds of the Sobel magnitude (of images in [0, 1], not divided by 8), for a 28x28 image."""
LUMA = (0.2125, 0.7154, 0.0721)
"""Brightness of red, green and blue (ITU-R BT.709)."""


def canny_edges(images: Images, streams: Streams) -> Images:
    """1 on the edges and 0 elsewhere (Canny 1986): Gaussian blur with sigma = 1, Sobel gradients, the local maxima of
    their magnitude along the gradient, and of those above 0.1 the ones connected to one above 0.2.

    Not random. As the original's library: the outermost pixels are no edges, and the blur is normalised at the border;
    ours computes in the images' precision. Colours count by their luma, and their edges are white. For other image
    sizes sigma grows with the side, and the thresholds shrink as gradients do.
    """
    size = unit(images)
    red, green, blue = images.expand(-1, 3, -1, -1).split(1, dim=1)
    luma = images if images.shape[1] == 1 else LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    smooth = blurred(luma, size, mode="constant") / blurred(torch.ones_like(luma), size, mode="constant")
    down, right = sobel(smooth)
    edges = traced(torch.hypot(down, right), down, right, LOW / size, HIGH / size)
    return edges.to(images.dtype).expand_as(images).clone()


def traced(magnitude: Images, down: Images, right: Images, low: float, high: float) -> torch.Tensor:
    """Return where the magnitude of a gradient is a local maximum along it, at least `low`, and connected to such a
    pixel with at least `high`.
    """
    ridge = _is_local_maximum(magnitude, down, right)
    return _connected(ridge & (magnitude >= high), ridge & (magnitude >= low))


def sobel(images: Images) -> tuple[Images, Images]:
    """Derivatives down and to the right: `(1, 2, 1) ⊗ (-1, 0, 1)`."""
    padded = F.pad(images, (1, 1, 1, 1), "replicate")
    across = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    along = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    return across[..., 2:, :] - across[..., :-2, :], along[..., 2:] - along[..., :-2]


def _is_local_maximum(magnitude: Images, down: Images, right: Images) -> torch.Tensor:
    """Where the magnitude one pixel further along the gradient, to either side, is not larger: interpolated between the
    two neighbours that the gradient points between. Never on the border.
    """
    height, width = magnitude.shape[2:]
    rows = torch.arange(1, height + 1, device=magnitude.device)[:, None]
    columns = torch.arange(1, width + 1, device=magnitude.device)
    padded = F.pad(magnitude, (1, 1, 1, 1)).flatten(2)
    steep = down.abs() >= right.abs()
    smaller, larger = torch.minimum(down.abs(), right.abs()), torch.maximum(down.abs(), right.abs())
    diagonal = smaller / larger.clamp_min(torch.finfo(larger.dtype).tiny)
    vertical, horizontal = down.sign().long(), right.sign().long()

    def neighbour(rise: torch.Tensor, run: torch.Tensor) -> Images:
        index = (rows + rise) * (width + 2) + columns + run
        return padded.gather(2, index.flatten(2)).view_as(magnitude)

    inside = torch.zeros_like(steep)
    inside[:, :, 1:-1, 1:-1] = True
    for way in (1, -1):
        straight = neighbour(way * vertical * steep, way * horizontal * ~steep)
        ahead = (1 - diagonal) * straight + diagonal * neighbour(way * vertical, way * horizontal)
        inside &= ahead <= magnitude
    return inside


def _connected(seeds: torch.Tensor, within: torch.Tensor) -> torch.Tensor:
    """The part of `within` that is connected to a seed, also over corners."""
    while True:
        grown = (F.max_pool2d(seeds.float(), 3, 1, 1) > 0) & within
        if torch.equal(grown, seeds):
            return seeds
        seeds = grown

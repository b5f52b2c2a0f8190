"""The 19 common corruptions of CIFAR-10-C and ImageNet-C (Hendrycks & Dietterich 2019).

Each takes images, streams, the unit of length (pixels per pixel of the published size), and its strength, an entry of
`equipoise.corruptions.severities`. The docstrings say where one differs from the published code; that code also rounds
to bytes between its steps, as ours does only where a step is defined on bytes.
"""

import io
import math

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from scipy import ndimage
from torch import Tensor

from equipoise.core.rng import Streams
from equipoise.core.types import Images
from equipoise.corruptions.blur import trail
from equipoise.corruptions.canvas import blurred, correlated, pixels, zoomed
from equipoise.corruptions.frost import frozen_window
from equipoise.corruptions.noise import photons, salt_and_pepper
from equipoise.corruptions.water import film
from equipoise.corruptions.weather import brightened, dried, in_fog

GREY = (0.299, 0.587, 0.114)
"""Brightness of red, green and blue (ITU-R BT.601)."""
ICE = (0.57, 0.66, 0.70)
"""Mean colour of the published photographs of frost."""
WATER, MUD = (175 / 255, 238 / 255, 238 / 255), (63 / 255, 42 / 255, 20 / 255)
"""Colours of what spatters: pale turquoise and brown."""
DISK, SOFT, LARGE, SOFT_LARGE = 8, 1, 8, 2
"""Half-widths, in pixels of the published size, of the grid of a defocused point and of its anti-aliasing; above the
radius `LARGE` the grid is as wide as the disk and the anti-aliasing wider."""
SLANT = math.pi / 4
"""Largest angle between a motion and the horizontal, or between falling snow and the vertical."""


def gaussian_noise(images: Images, streams: Streams, unit: float, deviation: float) -> Images:
    """`x + s z` with z standard normal, for each value."""
    return (images + deviation * streams.normal(*images.shape[1:], dtype=images.dtype)).clamp(0, 1)


def shot_noise(images: Images, streams: Streams, unit: float, brightest: float) -> Images:
    """`min(1, k / c)` with the photon count `k ~ Poisson(c x)`."""
    return photons(images, streams, brightest)


def impulse_noise(images: Images, streams: Streams, unit: float, share: float) -> Images:
    """Each value becomes 0 or 1, with probability `share / 2` each."""
    return salt_and_pepper(images, streams, share)


def speckle_noise(images: Images, streams: Streams, unit: float, deviation: float) -> Images:
    """`x + s x z` with z standard normal, for each value."""
    return (images + deviation * images * streams.normal(*images.shape[1:], dtype=images.dtype)).clamp(0, 1)


def gaussian_blur(images: Images, streams: Streams, unit: float, sigma: float) -> Images:
    """The Gaussian blur. Not random."""
    return blurred(images, sigma * unit).clamp(0, 1)


def defocus_blur(images: Images, streams: Streams, unit: float, radius: float, sigma: float) -> Images:
    """The correlation with a disk of that radius whose edge is blurred by sigma. Not random."""
    return correlated(images, aperture(unit, radius, sigma)).clamp(0, 1)


def aperture(unit: float, radius: float, sigma: float) -> Float[Tensor, "side side"]:
    """Return the picture of a defocused point: the pixels within the radius, of equal weights, blurred by a Gaussian of
    3 by 3 pixels (5 by 5 above a radius of 8) of the published size; without empty margins.
    """
    large = radius > LARGE
    half, soft = math.ceil((radius if large else DISK) * unit), max(1, round((SOFT_LARGE if large else SOFT) * unit))
    squares = np.arange(-half, half + 1) ** 2
    disk = (squares[:, None] + squares <= (radius * unit) ** 2).astype(float)
    disk /= disk.sum()
    taps = np.exp(-(np.arange(-soft, soft + 1) ** 2) / (2 * (sigma * unit) ** 2))
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, taps / taps.sum(), axis, mode="mirror")
    margin = int(disk.any(0).argmax())
    inside = slice(margin, len(disk) - margin)
    return torch.from_numpy(disk[inside, inside].copy())


def glass_blur(images: Images, streams: Streams, unit: float, sigma: float, reach: float, rounds: float) -> Images:
    """Blur, scatter pixels, blur again. In each round every pixel but those near the border, from the last to the
    first, becomes the pixel at an offset in {-d, ..., d-1}²: a copy, not a swap, as in the published code, whose swap
    of colours writes the first before it reads the second. The reach d is a whole number of pixels.
    """
    glass, distance = blurred(images, sigma * unit), max(1, round(reach * unit))
    for number in range(int(rounds)):
        source = scattered(images, distance, streams.fold(number))
        glass = pixels(glass, source // images.shape[3], source % images.shape[3])
    return blurred(glass, sigma * unit).clamp(0, 1)


def scattered(images: Images, distance: int, streams: Streams) -> Tensor:
    """Return the index of the pixel that each pixel shows after a round, of shape (n, height · width).

    A pixel copies what its neighbour shows by then. These chains are followed by doubling: an entry below the number of
    pixels stands for the pixel as it was, one above for what the pixel shows in the end.
    """
    (height, width), device = images.shape[2:], images.device
    count = height * width
    offsets = (streams.uniform(2, height, width).flatten(2) * 2 * distance).long() - distance
    index = torch.arange(count, device=device)
    rows, columns = index // width, index % width
    visited = (rows > distance) & (rows <= height - distance) & (columns > distance) & (columns <= width - distance)
    partner = torch.where(visited, index + offsets[:, 0] * width + offsets[:, 1], index)
    chain = torch.where(visited[partner] & (partner > index), partner + count, partner)
    chain = torch.cat([index.expand_as(chain), chain], 1)
    while bool((chain >= count).any()):
        chain = chain.gather(1, chain)
    return chain[:, count:]


def motion_blur(images: Images, streams: Streams, unit: float, radius: float, sigma: float) -> Images:
    """A trail to one side with Gaussian weights, at an angle uniform in ±45° from the horizontal."""
    angle = SLANT * (2 * streams.uniform(dtype=torch.float64) - 1)
    return trail(images, angle, radius * unit, sigma * unit).clamp(0, 1)


def zoom_blur(images: Images, streams: Streams, unit: float, stop: float, step: float) -> Images:
    """The mean of the image and its magnifications by 1, 1 + step, ..., before `stop`. Not random."""
    factors = np.arange(1, stop, step).tolist()
    return (sum((zoomed(images, factor) for factor in factors), images) / (len(factors) + 1)).clamp(0, 1)


def snow(
    images: Images,
    streams: Streams,
    unit: float,
    mean: float,
    deviation: float,
    size: float,
    threshold: float,
    radius: float,
    sigma: float,
    colour: float,
) -> Images:
    """`c x + (1 - c) max(x, 1.5 grey(x) + 0.5)`, a paler image, plus flakes and the same flakes upside down. Flakes are
    normal noise, magnified by `size`, without what lies below the threshold, in motion at up to 45° from the vertical.
    """
    noise = mean + deviation * streams.fold(0).normal(1, *images.shape[2:], dtype=images.dtype)
    flakes = zoomed(noise, max(1.0, size * unit))
    flakes = torch.where(flakes < threshold, 0, flakes).clamp(max=1)
    angle = SLANT * (2 * streams.fold(1).uniform(dtype=torch.float64) - 1) - math.pi / 2
    flakes = trail(flakes, angle, radius * unit, sigma * unit)
    pale = colour * images + (1 - colour) * torch.maximum(images, 1.5 * grey(images) + 0.5)
    return (pale + flakes + flakes.flip(2, 3)).clamp(0, 1)


def frost(images: Images, streams: Streams, unit: float, image: float, ice: float) -> Images:
    """`a x + b f` with the picture f of a frozen window, which is synthetic; the published one is cut from photographs
    (see `equipoise.corruptions.frost`).
    """
    window = frozen_window(streams, *images.shape[2:]).to(images.dtype)
    return (image * images + ice * (window * _painted(images, ICE)).clamp(max=1)).clamp(0, 1)


def fog(
    images: Images, streams: Streams, unit: float, density: float, decay: float, side: float, used: float
) -> Images:
    """`(x + d f) · m / (m + d)`, m the image's largest value and f in [0, 1] a plasma fractal, interpolated for other
    sizes than the published one.
    """
    return in_fog(images, streams, density, decay, int(side), int(used))


def spatter(
    images: Images,
    streams: Streams,
    unit: float,
    mean: float,
    deviation: float,
    sigma: float,
    threshold: float,
    strength: float,
    muddy: float,
) -> Images:
    """Drops where blurred normal noise exceeds the threshold: of water, `x + s w` with the film w of
    `equipoise.corruptions.water`; or of mud, `x (1 - m) + mud m` with the drops m blurred by `strength`.
    """
    liquid = blurred(mean + deviation * streams.normal(1, *images.shape[2:], dtype=images.dtype), sigma * unit)
    if muddy:
        mud = dried(liquid > threshold, strength * unit, images.dtype)
        return (images * (1 - mud) + mud * _painted(images, MUD)).clamp(0, 1)
    water = film(torch.where(liquid < threshold, 0, liquid), unit).to(images.dtype)
    return (images + strength * water * _painted(images, WATER)).clamp(0, 1)


def contrast(images: Images, streams: Streams, unit: float, factor: float) -> Images:
    """`m + c (x - m)` with the mean m of each colour over the image. Not random."""
    mean = images.double().flatten(2).mean(2)[..., None, None].to(images.dtype)
    return ((images - mean) * factor + mean).clamp(0, 1)


def brightness(images: Images, streams: Streams, unit: float, by: float) -> Images:
    """The value V of each colour, its largest channel, becomes `min(V + b, 1)`. Not random."""
    return brightened(images, by)


def saturate(images: Images, streams: Streams, unit: float, factor: float, by: float) -> Images:
    """The saturation S = (V - smallest channel) / V of each colour becomes `a S + b`, at most 1; hue and value stay. As
    in the published code, grey counts as red: b > 0 tinges it. Not random. Of colour images only.
    """
    value, smallest = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    chroma = value - smallest
    saturation = (chroma / value.clamp_min(1e-30) * factor + by).clamp(0, 1)
    red = torch.tensor([0.0, 1.0, 1.0], dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    distance = torch.where(chroma > 0, (value - images) / chroma.clamp_min(1e-30), red)
    return (value * (1 - saturation * distance)).clamp(0, 1)


def elastic_transform(
    images: Images, streams: Streams, unit: float, alpha: float, sigma: float, shift: float
) -> Images:
    """A random affine map, then a random smooth displacement. Three points of a square around the centre move by up to
    `shift` along each axis; after that, each pixel comes from a place displaced by alpha times uniform noise in ±1,
    which is blurred by sigma. Bilinear, mirrored beyond the border. The published code's affine map rounds positions to
    1/32 of a pixel.
    """
    height, width = images.shape[2:]
    corners = (min(height, width) // 3) * np.array([[1, 1], [1, -1], [-1, -1]]) + [height // 2, width // 2]
    moves = (shift * unit * (2 * streams.fold(0).uniform(3, 2, dtype=torch.float64) - 1)).cpu().numpy()
    noise = (2 * streams.fold(1).uniform(2, height, width, dtype=torch.float64) - 1).cpu().numpy()
    noise = ndimage.gaussian_filter(noise, (0, 0, sigma * unit, sigma * unit), mode="reflect", truncate=3)
    positions = np.indices((height, width)) + alpha * unit * noise
    out = []
    for image, move, position in zip(images.cpu().numpy(), moves, positions, strict=True):
        inverse = np.linalg.solve(np.column_stack([corners + move, np.ones(3)]), corners).T
        for channel in image:
            moved = ndimage.affine_transform(channel, inverse, order=1, mode="mirror")
            out.append(ndimage.map_coordinates(moved, position, order=1, mode="reflect"))
    return torch.from_numpy(np.stack(out)).to(images).view_as(images).clamp(0, 1)


def pixelate(images: Images, streams: Streams, unit: float, share: float) -> Images:
    """Shrunk to `share` of the sides, rounded down, and back, each time by Pillow's box filter. Not random."""
    height, width = images.shape[2:]
    small, whole = (int(width * share), int(height * share)), (width, height)
    planes = [Image.fromarray(plane) for plane in images.float().flatten(0, 1).cpu().numpy()]
    large = [plane.resize(small, Image.Resampling.BOX).resize(whole, Image.Resampling.BOX) for plane in planes]
    return torch.from_numpy(np.stack([np.asarray(p) for p in large])).to(images).view_as(images).clamp(0, 1)


def jpeg_compression(images: Images, streams: Streams, unit: float, quality: float) -> Images:
    """Rounded to bytes and compressed by Pillow's JPEG encoder at that quality. Its blocks have 8 by 8 pixels at any
    size. Not random.
    """
    pictures = (255 * images).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    decoded = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture).save(
            buffer, "JPEG", quality=int(quality)
        )
        decoded.append(np.asarray(Image.open(buffer)).reshape(picture.shape))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).contiguous().to(images) / 255


def grey(images: Images) -> Float[Tensor, "batch 1 height width"]:
    """Return the brightness of colours, `0.299 R + 0.587 G + 0.114 B`, as images of one channel."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return GREY[0] * red + GREY[1] * green + GREY[2] * blue


def _painted(images: Images, colour: tuple[float, float, float]) -> Float[Tensor, "1 channels 1 1"]:
    """A colour as an image of one pixel, with as many channels as these images."""
    pixel = torch.tensor(colour, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    return pixel if images.shape[1] == 3 else grey(pixel)

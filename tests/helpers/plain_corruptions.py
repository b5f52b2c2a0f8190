"""The published algorithms of CIFAR-10-C and ImageNet-C, for one image (height, width, 3) in [0, 1]."""

import io
import itertools
import math

import numpy as np
from PIL import Image
from scipy import ndimage


def zoom(image: np.ndarray, factor: float) -> np.ndarray:
    """The magnified centre of a square image."""
    side = len(image)
    kept = math.ceil(side / factor)
    start = (side - kept) // 2
    crop = image[start : start + kept, start : start + kept]
    large = ndimage.zoom(crop, (factor, factor, *[1] * (image.ndim - 2)), order=1)
    edge = (len(large) - side) // 2
    return large[edge : edge + side, edge : edge + side]


def trail(image: np.ndarray, angle: float, radius: int, sigma: float) -> np.ndarray:
    """Motion blur: nearest pixels on a ray, Gaussian weights."""
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    out = np.zeros_like(image)
    for i, weight in enumerate(weights / weights.sum()):
        rows = np.clip(np.arange(len(image)) + math.ceil(i * math.sin(angle) - 0.5), 0, len(image) - 1)
        columns = np.clip(np.arange(image.shape[1]) + math.ceil(i * math.cos(angle) - 0.5), 0, image.shape[1] - 1)
        out += weight * image[rows][:, columns]
    return out


def disk(radius: float, alias: float) -> np.ndarray:
    """The defocused point: a disk on a grid of 17 pixels or of its own width, blurred over 3 or 5 pixels."""
    half, taps = (8, 1) if radius <= 8 else (int(radius), 2)
    n = 2 * half + 1
    sharp = np.array([[float((i - half) ** 2 + (j - half) ** 2 <= radius**2) for j in range(n)] for i in range(n)])
    weights = {k: math.exp(-(k**2) / (2 * alias**2)) for k in range(-taps, taps + 1)}
    norm, soft = sum(weights.values()), np.zeros((n, n))

    def mirrored(k: int) -> int:
        return n - 1 - abs(n - 1 - abs(k))

    for i, j in itertools.product(range(n), repeat=2):
        for a, b in itertools.product(weights, repeat=2):
            soft[i, j] += weights[a] * weights[b] / norm**2 * sharp[mirrored(i + a), mirrored(j + b)]
    return soft / sharp.sum()


def glass(image: np.ndarray, sigma: float, reach: int, offsets: list[np.ndarray]) -> np.ndarray:
    """Glass: NumPy's assignment of views, as published, makes of the swap a copy."""
    x = ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")
    height, width = x.shape[:2]
    for down, right in offsets:
        for h in range(height - reach, reach, -1):
            for w in range(width - reach, reach, -1):
                to = h + down[h, w], w + right[h, w]
                x[h, w], x[to] = x[to], x[h, w]
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest")


def bilinear(image: np.ndarray, row: float, column: float, fold: str) -> np.ndarray:
    """The value between pixels, mirrored beyond the border at its pixels ("mirror") or beside them ("reflect")."""
    top, left = math.floor(row), math.floor(column)
    total = np.zeros(image.shape[2])
    for a, b in itertools.product((0, 1), repeat=2):
        weight = abs(1 - a - (row - top)) * abs(1 - b - (column - left))
        places = []
        for k, n in ((top + a, image.shape[0]), (left + b, image.shape[1])):
            period = 2 * n - 2 if fold == "mirror" else 2 * n
            k %= period
            places.append(k if k < n else period - k - (fold == "reflect"))
        total += weight * image[places[0], places[1]]
    return total


def elastic(image: np.ndarray, moves: np.ndarray, noise: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """Three points move, then every pixel: `moves` in pixels, `noise` in [-1, 1] per axis."""
    height, width = image.shape[:2]
    centre, size = np.array([height // 2, width // 2]), min(height, width) // 3
    before = np.array([centre + size, [centre[0] + size, centre[1] - size], centre - size], float)
    forward = np.linalg.lstsq(np.c_[before, np.ones(3)], before + moves, rcond=None)[0].T
    matrix, shift = forward[:, :2], forward[:, 2]
    places = list(itertools.product(range(height), range(width)))
    affine = np.array([bilinear(image, *np.linalg.solve(matrix, np.array(p) - shift), "mirror") for p in places])
    affine = affine.reshape(image.shape)
    down, right = (alpha * ndimage.gaussian_filter(n, sigma, mode="reflect", truncate=3) for n in noise)
    return np.array([bilinear(affine, h + down[h, w], w + right[h, w], "reflect") for h, w in places]).reshape(
        image.shape
    )


def pixelated(image: np.ndarray, share: float) -> np.ndarray:
    """Pillow's box filter on bytes."""
    height, width = image.shape[:2]
    picture = Image.fromarray(np.round(255 * image).astype(np.uint8))
    small = picture.resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX)) / 255


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(np.round(255 * image).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer)) / 255


def edges(picture: np.ndarray, low: float, high: float) -> np.ndarray:
    """Canny's detector without blur, of the sum of the magnitudes of both derivatives."""
    down, right = (ndimage.sobel(picture, axis, mode="nearest") for axis in (0, 1))
    size, thin = np.abs(down) + np.abs(right), np.zeros(picture.shape, bool)
    for r, c in itertools.product(*(range(1, n - 1) for n in picture.shape)):
        longer = max(abs(down[r, c]), abs(right[r, c]))
        if longer:
            step = np.array([down[r, c], right[r, c]]) / longer
            at = np.array([[r, c] + s * step for s in (1, -1)]).T
            thin[r, c] = (ndimage.map_coordinates(size, at, order=1) <= size[r, c] + 1e-9).all()
    parts, _ = ndimage.label(thin & (size >= low), np.ones((3, 3)))
    return np.isin(parts, np.unique(parts[thin & (size >= high)])) & (parts > 0)


def film(liquid: np.ndarray) -> np.ndarray:
    """The brightness of water on one plane."""
    depth = np.floor(255 * np.clip(liquid, 0, 1))
    shores = np.argwhere(edges(depth, 50, 150))
    places = np.indices(depth.shape).reshape(2, -1).T
    nearest = np.array([np.linalg.norm(shores - p, axis=1).min() for p in places]).reshape(depth.shape)
    box = np.ones((3, 3))
    distance = np.floor(ndimage.correlate(np.minimum(nearest, 20), box, mode="mirror") / 9 + 1e-12)
    least, even = (distance == distance.min()).sum(), np.zeros_like(distance)
    for place, value in np.ndenumerate(distance):
        even[place] = np.round(255 * ((distance <= value).sum() - least) / (distance.size - least))
    lit = ndimage.correlate(even, np.array([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="mirror")
    water = depth * np.round(ndimage.correlate(np.clip(lit, 0, 255), box, mode="mirror") / 9)
    return water / water.max()

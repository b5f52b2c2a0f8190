"""The corruptions of MNIST-C: what all have in common, and each against a slow reference or a closed form."""

import colorsys
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage, stats

from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import Streams
from equipoise.corruptions import CORRUPTIONS, corrupt
from equipoise.corruptions.blur import _shuffled
from equipoise.corruptions.canvas import blurred
from equipoise.corruptions.weather import plasma
from equipoise.data import load
from equipoise.losses.objectives import cross_entropy
from equipoise.models import Single
from equipoise.training.corruption import Corrupted

STILL = {"scale", "brightness", "stripe", "canny_edges"}  # nothing random


def digits(count: int = 6, height: int = 28, width: int = 28, channels: int = 1) -> torch.Tensor:
    x = load("digits").test.x[:count]
    x = F.interpolate(x, (height, width), mode="bilinear").clamp(0, 1)
    return x if channels == 1 else torch.cat([x, 0.5 * x, (1 - x) / 3], 1)


X = digits()


@pytest.fixture(params=CORRUPTIONS)
def name(request) -> str:
    return request.param


def test_they_are_the_fifteen_of_mnist_c():
    assert len(CORRUPTIONS) == 15 and all(function.__name__ == name for name, function in CORRUPTIONS.items())


@pytest.mark.parametrize(
    ("height", "width", "channels"), [(28, 28, 1), (28, 28, 3), (8, 8, 1), (9, 13, 3), (32, 32, 3), (60, 56, 1)]
)
def test_images_of_every_size_and_colour_change_and_stay_images(name, height, width, channels):
    x = digits(4, height, width, channels)
    for dtype in (torch.float32, torch.float64):
        found = corrupt(x.to(dtype), name)
        assert found.shape == x.shape and found.dtype == dtype
        assert float(found.min()) >= 0 and float(found.max()) <= 1
        assert int((found != x).flatten(1).any(1).sum()) >= 3  # noise may spare one small image


def test_the_seed_and_the_index_decide(name):
    before, state = X.clone(), torch.get_rng_state()
    found = corrupt(X, name, seed=3)
    assert torch.equal(found, corrupt(X, name, seed=3)) and torch.equal(X, before)
    assert torch.equal(torch.get_rng_state(), state)
    others = torch.equal(found, corrupt(X, name, seed=4)), torch.equal(found, corrupt(X, name, 3, torch.arange(6) + 6))
    assert others == (name in STILL, name in STILL)


@pytest.mark.parametrize("channels", [1, 3])
def test_neither_the_batch_nor_the_order_matters(name, channels):
    x, order = digits(7, channels=channels), torch.tensor([4, 0, 6, 1, 5, 3, 2])
    whole = corrupt(x, name)
    assert torch.equal(corrupt(x[order], name, index=order), whole[order])
    parts = [corrupt(x[rows], name, index=rows) for rows in torch.arange(7).split([3, 1, 3])]
    assert torch.equal(torch.cat(parts), whole)


def test_one_after_the_other_is_all_at_once():
    """More images than are worked on at once."""
    x = X[:1, :, ::2, ::2].expand(1400, -1, -1, -1)
    many = corrupt(x, "impulse_noise")
    assert torch.equal(many[1390:], corrupt(x[1390:], "impulse_noise", index=torch.arange(1390, 1400)))
    assert len(many.flatten(1).unique(dim=0)) == 1400


MAPS = {  # (row, column) from the centre of the output to that of the input
    "rotate": [[[math.cos(0.4), s * math.sin(0.4)], [-s * math.sin(0.4), math.cos(0.4)]] for s in (1, -1)],
    "shear": [[[math.cos(0.4), 0], [-s * math.sin(0.4), 1]] for s in (1, -1)],
    "scale": [[[1 / 0.7, 0], [0, 1 / 0.7]]],
    "translate": [[[1, 0], [0, 1]]],
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(("height", "width"), [(28, 28), (40, 20)])
def test_warps_are_those_of_scipy(name, height, width):
    x = digits(1, height, width).double().expand(24, -1, -1, -1)
    found = corrupt(x, name)[:, 0].numpy()
    centre = (np.array([height, width]) - 1) / 2
    moves = list(itertools.product((3, -3), repeat=2)) if name == "translate" else [(0, 0)]
    expected = [
        ndimage.affine_transform(
            x[0, 0].numpy(),
            np.array(matrix),
            centre - np.array(matrix) @ centre + np.array(move) * [height / 28, width / 28],
            order=1,
            mode="grid-constant",
        )
        for matrix in MAPS[name]
        for move in moves
    ]
    nearest = [[np.abs(image - other).max() for other in expected] for image in found]
    assert np.max(np.min(nearest, 1)) < 1e-9
    assert set(np.argmin(nearest, 1)) == set(range(len(expected)))  # every direction is drawn


@pytest.mark.parametrize("value", [0.0, 0.2, 0.7, 1.0])
def test_shot_noise_counts_photons(value):
    found = corrupt(torch.full((1, 1, 200, 200), value), "shot_noise")
    law = stats.poisson(3 * value)
    expected = [law.pmf(0), law.pmf(1), law.pmf(2), law.sf(2)]
    for count, share in enumerate(expected):
        seen = ((found * 3).round() == count).double().mean().item()
        assert seen == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 40_000) + 1e-9)
    assert sorted({round(3 * v) for v in found.unique().tolist()}) == [k for k in range(4) if expected[k] > 1e-4]


def test_impulse_noise_replaces_its_share():
    found = corrupt(torch.full((1, 3, 200, 200), 0.3), "impulse_noise")
    for value in (0.0, 1.0):
        assert (found == value).double().mean().item() == pytest.approx(0.085, abs=0.004)
    assert ((found == 0.3) | (found == 0) | (found == 1)).all()
    assert (found[:, 0] != found[:, 1]).any()


def test_brightness_raises_the_value_of_colours():
    assert torch.equal(corrupt(X, "brightness"), (X + 0.5).clamp(max=1))
    colours = torch.tensor([[0.0, 0.0, 0.0], [0.2, 0.1, 0.0], [0.7, 0.2, 0.4], [0.0, 0.3, 0.3]])
    found = corrupt(colours.T.reshape(1, 3, 4, 1).repeat(1, 1, 2, 8), "brightness")[0, :, :4, 0].T
    for before, after in zip(colours.tolist(), found.tolist(), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*before)
        assert after == pytest.approx(colorsys.hsv_to_rgb(h, s, min(v + 0.5, 1)), abs=1e-6)


def test_stripes_are_inverted():
    found = corrupt(X, "stripe")
    assert torch.equal(found[..., 7:21], X[..., 7:21])
    assert torch.equal(found[..., :7], 1 - X[..., :7]) and torch.equal(found[..., 21:], 1 - X[..., 21:])


def test_the_blur_is_that_of_scipy():
    x = X.double()
    for mode, sigma, theirs in (("replicate", 0.7, "nearest"), ("constant", 1.3, "constant")):
        expected = ndimage.gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode=theirs)
        np.testing.assert_allclose(blurred(x, sigma, mode=mode).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("reach", [1, 2, 3])
def test_glass_swaps_pixels_one_after_the_other(reach):
    height, width = 14, 17
    x = torch.arange(2 * height * width).view(2, 1, height, width).float()
    streams = Streams.of(5, torch.arange(2))
    expected, u = x.clone()[:, 0].numpy(), streams.uniform(3, height, width).numpy()
    for image, (flip, down, right) in zip(expected, u, strict=True):
        for h in range(height - reach, reach, -1):
            for w in range(width - reach, reach, -1):
                if flip[h, w] < 0.5:
                    to = h + int(down[h, w] * 2 * reach) - reach, w + int(right[h, w] * 2 * reach) - reach
                    image[h, w], image[to] = image[to], image[h, w]
    np.testing.assert_array_equal(_shuffled(x, reach, streams)[:, 0].numpy(), expected)


def test_glass_blurs_down_the_columns_and_keeps_constant_images():
    x = torch.full((1, 1, 28, 28), 0.4)
    torch.testing.assert_close(corrupt(x, "glass_blur"), x)
    x[..., 1] = 1.0  # a column at the left border, which no swap reaches
    torch.testing.assert_close(corrupt(x, "glass_blur")[..., :1], x[..., :1])


def test_motion_leaves_a_trail_to_one_side():
    """A point far from the border becomes a trail of its mass, with Gaussian weights, within 45° of the horizontal."""
    x = torch.zeros(40, 1, 84, 84)
    x[..., 42, 42] = 1.0
    found = corrupt(x, "motion_blur")
    torch.testing.assert_close(found.sum((1, 2, 3)), torch.ones(40))
    scale, taps = 3 * 84 / 28, 2 * math.ceil(10 * 84 / 28) + 1
    weights = [math.exp(-(i**2) / (2 * scale**2)) for i in range(taps)]
    slopes = []
    for image in found[:, 0]:
        rows, columns = image.nonzero().T
        assert columns.max() == 42 and len(rows) > 20
        values = image[rows, columns].sort(descending=True).values
        assert 0.99 <= float(values[0]) * sum(weights) <= 2  # nearest pixels may coincide
        far = columns.argmin()
        slopes.append(float(42 - rows[far]) / float(42 - columns[far]))
    assert -1 <= min(slopes) < -0.7 and 0.7 < max(slopes) <= 1


def test_motion_blur_as_a_loop():
    x, number = digits(3).double(), list(CORRUPTIONS).index("motion_blur")
    found = corrupt(x, "motion_blur", seed=1)
    weights = np.exp(-(np.arange(21) ** 2) / 18)
    weights /= weights.sum()
    angles = (Streams.of(1, torch.arange(3)).fold(number).uniform(dtype=torch.float64) - 0.5) * math.pi / 2
    for image, seen, angle in zip(x[:, 0].numpy(), found[:, 0].numpy(), angles.tolist(), strict=True):
        out = np.zeros_like(image)
        for i, weight in enumerate(weights):
            rows = np.clip(np.arange(28) + math.ceil(i * math.sin(angle) - 0.5), 0, 27)
            columns = np.clip(np.arange(28) + math.ceil(i * math.cos(angle) - 0.5), 0, 27)
            out += weight * image[np.ix_(rows, columns)]
        np.testing.assert_allclose(seen, out, atol=1e-12)


def test_plasma_is_diamond_square_on_a_torus():
    streams, side = Streams.of(2, torch.arange(2)), 16
    found = plasma(streams, side)
    assert torch.equal(found.amin((1, 2)), torch.zeros(2)) and torch.equal(found.amax((1, 2)), torch.ones(2))
    for number in range(2):
        z, step, width = np.zeros((side, side)), side, 1.0
        while step >= 2:
            half, count = step // 2, side // step
            noise = width * (2 * streams.fold(step).uniform(3, count, count)[number].numpy() - 1)
            cells = list(itertools.product(range(count), repeat=2))
            for i, j in cells:
                r, c = i * step, j * step
                around = [z[r, c], z[(r + step) % side, c], z[r, (c + step) % side]]
                z[r + half, c + half] = (sum(around) + z[(r + step) % side, (c + step) % side]) / 4 + noise[0, i, j]
            for kind, (down, right) in ((1, (0, half)), (2, (half, 0))):
                for i, j in cells:
                    r, c = i * step + down, j * step + right
                    around = [
                        z[(r + a) % side, (c + b) % side] for a, b in ((half, 0), (-half, 0), (0, half), (0, -half))
                    ]
                    z[r, c] = sum(around) / 4 + noise[kind, i, j]
            step, width = half, width / 1.96
        np.testing.assert_allclose(found[number].numpy(), (z - z.min()) / np.ptp(z), atol=1e-5)


def test_fog_hides_by_the_largest_value():
    """On a constant image v the fog f shows alone: `(v + 3 f) v / (v + 3)`."""
    found = {v: corrupt(torch.full((3, 1, 28, 28), v), "fog").double() for v in (0.5, 1.0)}
    fogs = [(found[v] * (v + 3) / v - v) / 3 for v in found]
    torch.testing.assert_close(*fogs, atol=1e-6, rtol=0)
    assert float(fogs[0].min()) > -1e-6 and float(fogs[0].max()) < 1 + 1e-6
    torch.testing.assert_close(corrupt(torch.zeros(1, 1, 28, 28), "fog"), torch.zeros(1, 1, 28, 28))
    seen = corrupt(X[:3], "fog").double()
    m = X[:3].double().amax((1, 2, 3), keepdim=True)
    torch.testing.assert_close(seen, (X[:3].double() + 3 * fogs[1]) * m / (m + 3), atol=1e-5, rtol=0)


def test_mud_covers_what_it_hits():
    black, white = (corrupt(torch.full((20, 1, 28, 28), v, dtype=torch.float64), "spatter") for v in (0.0, 1.0))
    mud = black / (63 / 255)
    torch.testing.assert_close(white, 1 - mud + 63 / 255 * mud)
    assert ((mud == 0) | (mud >= 0.8)).all() and 0.05 < float((mud > 0).double().mean()) < 0.4
    number = list(CORRUPTIONS).index("spatter")
    noise = 0.65 + 0.3 * Streams.of(0, torch.arange(20)).fold(number).normal(1, 28, 28, dtype=torch.float64).numpy()
    drops = (ndimage.gaussian_filter(noise, (0, 0, 1, 1), mode="nearest") > 0.65).astype(float)
    expected = ndimage.gaussian_filter(drops, (0, 0, 1.5, 1.5), mode="nearest")
    np.testing.assert_allclose(mud.numpy(), np.where(expected < 0.8, 0, expected), atol=1e-12)


def stroke(c0: float, r0: float, c1: float, r1: float) -> np.ndarray:
    image = np.zeros((28, 28))
    for row, column in itertools.product(range(28), repeat=2):
        distance = abs(row - (r0 + (r1 - r0) / (c1 - c0) * (column - c0)))
        if math.floor(c0) <= column < math.ceil(c1) and distance < 2.3:
            image[row, column] = max(0, 1 + math.log(1 - distance / 2.3))
    return image


def test_the_dotted_line_is_a_line_with_gaps():
    found = corrupt(torch.zeros(30, 1, 28, 28, dtype=torch.float64), "dotted_line")[:, 0].numpy()
    ends = set()
    for image in found:
        assert not image[:, np.arange(28) % 4 < 2].any()
        left, right = (int(image[:, c].argmax()) for c in (2, 26))
        near = [(a, b) for a in range(27) for b in range(27) if abs(a - left) < 5 and abs(b - right) < 3]
        gaps = np.arange(28) % 4 >= 2
        fits = [e for e in near if np.abs(stroke(0, e[0], 27, e[1]) * gaps - image).max() < 1e-9]
        assert len(fits) == 1
        ends.add(fits[0])
    assert len(ends) > 20
    seen = corrupt(X.double(), "dotted_line").numpy()
    np.testing.assert_allclose(seen, np.minimum(X.double().numpy() + found[:6, None], 1))


def test_the_zigzag_follows_its_corners():
    found = corrupt(torch.zeros(6, 1, 28, 28, dtype=torch.float64), "zigzag")[:, 0].numpy()
    expected = {}
    for start, rise in itertools.product(range(27), range(-5, 5)):
        theta = math.atan2(rise, 23)
        length = 23 / math.cos(theta)
        corners = [(0, 0), (2, 2), (6, -2), (10, 2), (14, -2), (18, 2), (22, -2), (length, -1 / (length - 20))]
        turn = [
            (2 + a * math.cos(theta) - b * math.sin(theta), start + a * math.sin(theta) + b * math.cos(theta))
            for a, b in corners
        ]
        expected[start, rise] = turn
    for image in found:
        rows = [int(image[:, c].argmax()) for c in (4, 8, 12, 16, 20)]
        tops = {k: [t[i][1] for i in range(1, 6)] for k, t in expected.items()}
        near = sorted(tops, key=lambda k: sum(abs(a - b) for a, b in zip(tops[k], rows, strict=True)))[:40]
        errors = [
            np.abs(np.minimum(sum(stroke(*p, *q) for p, q in itertools.pairwise(expected[k])), 1) - image).max()
            for k in near
        ]
        assert min(errors) < 1e-9


def canny(image: np.ndarray) -> np.ndarray:
    """Canny's detector pixel by pixel, with SciPy's filters."""
    ones = ndimage.gaussian_filter(np.ones_like(image), 1.0, mode="constant")
    smooth = ndimage.gaussian_filter(image, 1.0, mode="constant") / ones
    down, right = (ndimage.sobel(smooth, axis) for axis in (0, 1))
    size, thin = np.hypot(down, right), np.zeros(image.shape, bool)
    for r, c in itertools.product(*(range(1, n - 1) for n in image.shape)):
        dr, dc = down[r, c], right[r, c]
        longer = max(abs(dr), abs(dc))
        if longer:
            at = np.array([[r + s * dr / longer, c + s * dc / longer] for s in (1, -1)]).T
            thin[r, c] = (ndimage.map_coordinates(size, at, order=1) <= size[r, c] + 1e-12).all()
    weak, strong = thin & (size >= 0.1), thin & (size >= 0.2)
    parts, _ = ndimage.label(weak, np.ones((3, 3)))
    return np.isin(parts, parts[strong]) & weak


def test_canny_edges_are_those_of_the_slow_detector():
    x = digits(6).double()
    fading = torch.linspace(0.15, 0.0, 28, dtype=torch.float64)[:, None] * (torch.arange(28) > 12)
    noise = torch.rand(2, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.cat([x, fading[None, None], noise])
    found = corrupt(x, "canny_edges")[:, 0].numpy()
    for image, edges in zip(x[:, 0].numpy(), found, strict=True):
        assert (canny(image) != edges).sum() <= 2  # rounding may decide between equals


def test_canny_finds_the_edge_of_a_step():
    x = torch.zeros(1, 1, 28, 28)
    x[..., 13], x[..., 14:] = 0.5, 1.0
    expected = torch.zeros_like(x)
    expected[..., 1:-1, 13] = 1.0
    assert torch.equal(corrupt(x, "canny_edges"), expected)
    assert not corrupt(0.04 * x, "canny_edges").any()  # too faint
    colours = torch.cat([x, x, x], 1)
    assert torch.equal(corrupt(colours, "canny_edges"), expected.expand(-1, 3, -1, -1))


def test_a_mover_draws_a_corruption_for_each_sample():
    x, names = X[:1].expand(400, -1, -1, -1), ("stripe", "brightness", "scale", "canny_edges")
    mover, model = Corrupted(names), Single(torch.nn.Flatten())
    streams, y = Streams.of(0, torch.arange(400)), torch.zeros(400, dtype=torch.int64)
    moved = mover.perturb(model, x, y, streams)
    shares = [int((moved == corrupt(X[:1], name)).flatten(1).all(1).sum()) for name in names]
    assert sum(shares) == 400 and min(shares) > 60
    rows = torch.tensor([5, 399, 17])
    assert torch.equal(mover.perturb(model, x[rows], y[rows], streams[rows]), moved[rows])
    assert mover.settings() == {"corruptions": list(names)} and str(Corrupted(("fog",))) == "corrupted(fog)"
    term = cross_entropy @ Corrupted(("fog", "rotate"))
    assert str(0.5 * term + cross_entropy) == "0.5·(cross-entropy) @ corrupted(fog, rotate) + (cross-entropy)"
    assert Corrupted(("mnist-c",)) == Corrupted() and str(Corrupted()) == "corrupted(mnist-c)"


REFUSED = {
    "an unknown name": (X, "frog", r"unknown corruption 'frog': did you mean 'fog'\?"),
    "features": (X.flatten(1), "fog", r"corruptions need images .* got shape \(6, 784\)"),
    "two channels": (X.expand(-1, 2, -1, -1), "fog", r"got shape \(6, 2, 28, 28\)"),
    "too small": (X[..., :7, :], "fog", r"sides of at least 8, got shape \(6, 1, 7, 28\)"),
    "none": (X[:0], "fog", r"got shape \(0, 1, 28, 28\)"),
    "bytes": ((255 * X).to(torch.uint8), "fog", r"images have dtype torch.uint8: expected float32"),
    "out of the box": (X.new_full(X.shape, 1.5), "fog", r"images have values from 1.5 to 1.5: expected \[0, 1\]"),
    "not a number": (X / 0, "fog", r"images have values from nan to nan"),
    "an array": (X.numpy(), "fog", r"images is a ndarray: expected a torch tensor"),
}


@pytest.mark.unchecked
@pytest.mark.parametrize("case", REFUSED)
def test_refuses_what_cannot_be_corrupted(case):
    images, name, message = REFUSED[case]
    with pytest.raises(EquipoiseError, match=message):
        corrupt(images, name)


@pytest.mark.unchecked
def test_refuses_a_wrong_index_and_names_that_are_none():
    with pytest.raises(EquipoiseError, match=r"index must be a tensor of 6 integers, one per image"):
        corrupt(X, "fog", index=torch.arange(5))
    with pytest.raises(EquipoiseError, match=r"there is no corruption: name some, or all by 'mnist-c'"):
        Corrupted(())
    with pytest.raises(EquipoiseError, match=r"corruptions = 'fog' is a text: expected a list of names, \['fog'\]"):
        Corrupted("fog")
    with pytest.raises(EquipoiseError, match=r"unknown corruption 'rotated': did you mean 'rotate'"):
        Corrupted(("rotated",))
    streams, y = Streams.of(0, torch.arange(6)), torch.zeros(6, dtype=torch.int64)
    with pytest.raises(EquipoiseError, match=r"corruptions need images"):
        Corrupted().perturb(Single(torch.nn.Flatten()), X.flatten(1), y, streams)

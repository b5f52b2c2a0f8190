"""The 19 corruptions of CIFAR-10-C and ImageNet-C: what all share, and each against the published algorithm."""

import colorsys
import itertools
import math
import re

import numpy as np
import plain_corruptions as slowly
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate, ndimage, stats

from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import Streams
from equipoise.corruptions import ALL, COLLECTIONS, chosen, corrupt
from equipoise.corruptions.common import aperture, scattered
from equipoise.corruptions.frost import frozen_window
from equipoise.corruptions.water import film
from equipoise.corruptions.weather import plasma
from equipoise.models import Single
from equipoise.training.corruption import Corrupted

STILL = {"defocus_blur", "zoom_blur", "gaussian_blur", "pixelate", "jpeg_compression"}
STILL |= {"brightness", "contrast", "saturate"}  # nothing random
UNORDERED = {"glass_blur", "motion_blur", "frost", "elastic_transform", "spatter", "saturate", "snow"}
"""Their published severities change several strengths at once, or depend on the picture, and so are not in order."""
FAMILIES = re.split(
    r"\s+",
    """gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog brightness
    contrast elastic_transform pixelate jpeg_compression speckle_noise gaussian_blur spatter saturate""",
)


def pictures(n: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Coloured blots, in bytes / 255."""
    coarse = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    fine = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False).clamp(0, 1)
    return (255 * fine).round() / 255


X = pictures(2, 32, 32)


def of(name: str, x: torch.Tensor) -> Streams:
    """The streams of that corruption, for seed 0."""
    return Streams.of(0, torch.arange(len(x))).fold(list(ALL).index(name))


def plain(x: torch.Tensor) -> np.ndarray:
    """Images as arrays (n, height, width, channels) in float64."""
    return x.double().permute(0, 2, 3, 1).numpy()


def close(found: torch.Tensor, expected: list[np.ndarray], atol: float = 2e-6) -> None:
    np.testing.assert_allclose(plain(found), np.clip(np.stack(expected), 0, 1), atol=atol, rtol=0)


def test_the_collections_are_those_published():
    for collection in ("cifar-c", "imagenet-c"):
        names = [f"{collection}/{family}/{severity}" for family in FAMILIES for severity in range(1, 6)]
        assert list(COLLECTIONS[collection]) == names and list(COLLECTIONS[f"{collection}-15"]) == names[:75]
    assert len(ALL) == 15 + 2 * 95 and len(COLLECTIONS["mnist-c"]) == 15
    assert chosen(["cifar-c/fog", "fog", "cifar-c/fog/2"]) == (*(f"cifar-c/fog/{k}" for k in range(1, 6)), "fog")
    assert str(Corrupted(("cifar-c",))) == "corrupted(cifar-c)"


@pytest.mark.parametrize("family", FAMILIES)
def test_they_stay_images_and_only_the_seed_and_the_index_decide(family):
    order = torch.tensor([2, 0, 1])
    for name in [f"cifar-c/{family}/{k}" for k in (1, 2, 3, 4, 5)] + [f"imagenet-c/{family}/{k}" for k in (2, 5)]:
        x = pictures(3, 24, 33)
        before, state = x.clone(), torch.get_rng_state()
        found = corrupt(x, name)
        assert found.shape == x.shape and found.dtype == x.dtype and bool(found.isfinite().all())
        assert float(found.min()) >= 0 and float(found.max()) <= 1
        assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)
        assert torch.equal(corrupt(x[order], name, index=order), found[order])
        assert torch.equal(corrupt(x[2:], name, index=torch.tensor([2])), found[2:])
        if name.endswith("5"):
            assert (family in STILL) == torch.equal(corrupt(x, name, seed=1), found)
            assert (family in STILL) == torch.equal(corrupt(x, name, index=torch.arange(3) + 9), found)
    if family != "saturate":
        small = pictures(2, 8, 9)[:, :1].double()
        found = corrupt(small, f"cifar-c/{family}/5")
        assert found.shape == small.shape and found.dtype == torch.float64 and float(found.min()) >= 0
        assert family == "gaussian_blur" or family == "defocus_blur" or not torch.equal(found, small)


@pytest.mark.parametrize("collection", ["cifar-c", "imagenet-c"])
def test_the_severities_grow(collection):
    x = pictures(6, 32, 32)
    for family in [f for f in FAMILIES if f not in UNORDERED]:
        if collection == "imagenet-c" and family.endswith(("blur", "pixelate")):
            continue  # shrunk to 32 pixels, the smallest ones blur nothing
        away = [float((corrupt(x, f"{collection}/{family}/{k}") - x).abs().mean()) for k in range(1, 6)]
        assert all(0 < a < b for a, b in itertools.pairwise(away)), (family, away)


def clipped(law, value: float, scale: float) -> tuple[float, float]:
    """Mean and deviation of `clip(value + scale z, 0, 1)`."""
    moments = [
        integrate.quad(lambda z, p=p: np.clip(value + scale * z, 0, 1) ** p * law.pdf(z), -8, 8, limit=200)[0]
        for p in (1, 2)
    ]
    return moments[0], math.sqrt(moments[1] - moments[0] ** 2)


@pytest.mark.parametrize(
    ("name", "scales"),
    [
        ("cifar-c/gaussian_noise", (0.04, 0.06, 0.08, 0.09, 0.10)),
        ("imagenet-c/gaussian_noise", (0.08, 0.12, 0.18, 0.26, 0.38)),
        ("cifar-c/speckle_noise", (0.06, 0.1, 0.12, 0.16, 0.2)),
        ("imagenet-c/speckle_noise", (0.15, 0.2, 0.35, 0.45, 0.6)),
    ],
)
def test_gaussian_noises_have_their_moments(name, scales):
    x = torch.full((1, 3, 64, 64), 0.4)
    for k, scale in enumerate(scales, 1):
        found = corrupt(x, f"{name}/{k}").double()
        mean, deviation = clipped(stats.norm, 0.4, scale * (0.4 if "speckle" in name else 1))
        assert float(found.mean()) == pytest.approx(mean, abs=4 * deviation / 110)
        assert float(found.std()) == pytest.approx(deviation, rel=0.03)
        assert float((found[:, 0] - mean).mul(found[:, 1] - mean).mean()) < 0.1 * deviation**2  # colours apart


@pytest.mark.parametrize(
    ("collection", "counts"), [("cifar-c", (500, 250, 100, 75, 50)), ("imagenet-c", (60, 25, 12, 5, 3))]
)
def test_shot_noise_counts_photons(collection, counts):
    x = torch.full((1, 3, 64, 64), 0.7)
    for k, count in enumerate(counts, 1):
        found = count * corrupt(x, f"{collection}/shot_noise/{k}").double()
        torch.testing.assert_close(found, found.round(), atol=1e-4, rtol=0)
        law, n = stats.poisson(0.7 * count), np.arange(count + 1)
        shares = np.append(law.pmf(n[:-1]), law.sf(count - 1))
        mean = float((shares * n).sum())
        deviation = math.sqrt(float((shares * (n - mean) ** 2).sum()))
        assert float(found.mean()) == pytest.approx(mean, abs=4 * deviation / 110)
        assert float(found.std()) == pytest.approx(deviation, rel=0.04)
    assert not corrupt(torch.zeros(1, 3, 8, 8), "cifar-c/shot_noise/5").any()


@pytest.mark.parametrize(
    ("collection", "shares"),
    [("cifar-c", (0.01, 0.02, 0.03, 0.05, 0.07)), ("imagenet-c", (0.03, 0.06, 0.09, 0.17, 0.27))],
)
def test_impulse_noise_replaces_its_share(collection, shares):
    x = torch.full((1, 3, 100, 100), 0.3)
    for k, share in enumerate(shares, 1):
        found = corrupt(x, f"{collection}/impulse_noise/{k}")
        for value in (0.0, 1.0):
            assert float((found == value).double().mean()) == pytest.approx(share / 2, abs=4 * (share / 60000) ** 0.5)
        assert int((found == 0.3).sum() + (found == 0).sum() + (found == 1).sum()) == 30000


def test_blurs_are_those_of_scipy():
    for k, sigma in enumerate((0.4, 0.6, 0.7, 0.8, 1), 1):
        expected = [ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest") for x in plain(X)]
        close(corrupt(X, f"cifar-c/gaussian_blur/{k}"), expected)
    wide = pictures(1, 64, 80)  # lengths grow with the shorter side
    close(
        corrupt(wide, "cifar-c/gaussian_blur/5"), [ndimage.gaussian_filter(plain(wide)[0], (2, 2, 0), mode="nearest")]
    )
    published = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
    for k, (radius, alias) in enumerate(published, 1):
        kernel = slowly.disk(radius, alias)[..., None]
        close(corrupt(X, f"cifar-c/defocus_blur/{k}"), [ndimage.correlate(x, kernel, mode="mirror") for x in plain(X)])
    for radius, alias in ((3, 0.1), (8, 0.5), (10, 0.5)):
        kernel = slowly.disk(radius, alias)
        margin = int(kernel.any(0).argmax())
        kernel = kernel[margin : len(kernel) - margin, margin : len(kernel) - margin]
        np.testing.assert_allclose(aperture(1.0, radius, alias).numpy(), kernel, atol=1e-12)


@pytest.mark.parametrize(("reach", "rounds"), [(1, 2), (3, 1)])
def test_glass_copies_pixels_one_after_the_other(reach, rounds):
    x = torch.arange(13 * 17.0).view(1, 1, 13, 17)
    image = x[0].permute(1, 2, 0).expand(-1, -1, 3).double().numpy().copy()
    streams, offsets, shown = Streams.of(5, torch.arange(1)), [], x
    for number in range(rounds):
        folded = streams.fold(number)
        u = folded.uniform(2, 13, 17)[0].numpy()
        offsets.append((u * 2 * reach).astype(int) - reach)
        shown = shown.flatten(2).gather(2, scattered(x, reach, folded)[:, None]).view_as(x)
    np.testing.assert_array_equal(shown[0, 0].numpy(), slowly.glass(image, 0, reach, offsets)[..., 0])


def test_glass_blur_is_as_published():
    name, rounds = "cifar-c/glass_blur/5", 2
    streams = of(name, X)
    u = [streams.fold(r).uniform(2, 32, 32).numpy() for r in range(rounds)]
    moves = [[(v[n] * 2).astype(int) - 1 for v in u] for n in range(2)]
    close(corrupt(X, name), [slowly.glass(x, 0.4, 1, m) for x, m in zip(plain(X), moves, strict=True)])


def test_motion_and_zoom_blur_are_as_published():
    for k, (radius, sigma) in enumerate(((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)), 1):
        name = f"cifar-c/motion_blur/{k}"
        angles = (of(name, X).uniform(dtype=torch.float64) - 0.5) * math.pi / 2
        close(
            corrupt(X, name),
            [slowly.trail(x, a, radius, sigma) for x, a in zip(plain(X), angles.tolist(), strict=True)],
        )
    for name, factors in (
        ("cifar-c/zoom_blur/1", np.arange(1, 1.06, 0.01)),
        ("cifar-c/zoom_blur/5", np.arange(1, 1.26, 0.01)),
        ("imagenet-c/zoom_blur/5", np.arange(1, 1.31, 0.03)),
    ):
        expected = [(x + sum(slowly.zoom(x, f) for f in factors)) / (len(factors) + 1) for x in plain(X)]
        close(corrupt(X, name), expected, 1e-5)


@pytest.mark.parametrize(
    ("severity", "c"),
    [(1, (0.1, 0.2, 1, 0.6, 8, 3, 0.95)), (4, (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85))],
)
def test_snow_is_as_published(severity, c):
    name = f"cifar-c/snow/{severity}"
    x = X.double()
    noise = c[0] + c[1] * of(name, x).fold(0).normal(1, 32, 32, dtype=torch.float64)[:, 0].numpy()
    angles = np.deg2rad(-135 + 90 * of(name, x).fold(1).uniform(dtype=torch.float64).numpy())
    expected = []
    for image, layer, angle in zip(plain(x), noise, angles, strict=True):
        flakes = slowly.zoom(layer, c[2])
        flakes = slowly.trail(np.clip(np.where(flakes < c[3], 0, flakes), 0, 1), angle, c[4], c[5])[..., None]
        light = (image @ [0.299, 0.587, 0.114])[..., None]
        pale = c[6] * image + (1 - c[6]) * np.maximum(image, 1.5 * light + 0.5)
        expected.append(pale + flakes + np.rot90(flakes, 2))
    close(corrupt(x, name), expected)


def test_frost_lies_on_the_image_in_its_proportion():
    black, white = torch.zeros(4, 3, 32, 32), torch.full((4, 3, 32, 32), 0.2)
    for name, image, ice in (("cifar-c/frost/5", 0.75, 0.45), ("imagenet-c/frost/1", 1, 0.4)):
        frost = corrupt(black, name)
        torch.testing.assert_close(corrupt(white, name), frost + 0.2 * image)
        red, green, blue = (frost / ice).mean((0, 2, 3)).tolist()
        assert 0.3 < red < green < blue < 0.9 and float(frost.max()) <= ice + 1e-6
    windows = [frozen_window(Streams.of(0, torch.arange(8)), n, n) for n in (32, 96)]
    assert float(windows[0].mean()) == pytest.approx(0.65, abs=0.1) and 0.07 < float(windows[0].std(0).mean()) < 0.2
    smaller = F.avg_pool2d(windows[1], 3)
    away = (windows[0] - smaller).flatten(1), (windows[0] - smaller.roll(1, 0)).flatten(1)
    assert float(away[0].std(1).mean()) < 0.5 * float(away[1].std(1).mean())  # alike at every size


@pytest.mark.parametrize(
    ("name", "density", "decay", "side"),
    [
        ("cifar-c/fog/1", 0.2, 3, 32),
        ("cifar-c/fog/5", 1.5, 1.75, 32),
        ("imagenet-c/fog/3", 2.5, 1.7, 256),
    ],
)
def test_fog_is_a_plasma_fractal(name, density, decay, side):
    size = 32 if side == 32 else 224
    x = F.interpolate(X[:1], (size, size))
    fog = plasma(of(name, x), side, decay)[0, :size, :size, None].numpy()
    image = plain(x)[0]
    close(corrupt(x, name), [(image + density * fog) * image.max() / (image.max() + density)])


def test_colours_change_as_in_colorsys():
    x = torch.cat([X[:, :, ::4, ::4], torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), 0.6)])
    saturations = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))
    changes = {
        **{f"cifar-c/brightness/{k}": (1, 0, b) for k, b in enumerate((0.05, 0.1, 0.15, 0.2, 0.3), 1)},
        **{f"imagenet-c/brightness/{k}": (1, 0, b) for k, b in enumerate((0.1, 0.2, 0.3, 0.4, 0.5), 1)},
        **{f"cifar-c/saturate/{k}": (*c, 0) for k, c in enumerate(saturations, 1)},
        "imagenet-c/saturate/5": (20, 0.2, 0),
    }
    colours = plain(x).reshape(-1, 3)
    for name, (factor, more, brighter) in changes.items():
        expected = []
        for h, s, v in (colorsys.rgb_to_hsv(*colour) for colour in colours):
            expected.append(colorsys.hsv_to_rgb(h, min(s * factor + more, 1), min(v + brighter, 1)))
        found = plain(corrupt(x, name)).reshape(-1, 3)
        np.testing.assert_allclose(found, expected, atol=2e-6)
    for k, factor in enumerate((0.75, 0.5, 0.4, 0.3, 0.15), 1):
        means = plain(X).mean((1, 2), keepdims=True)
        close(corrupt(X, f"cifar-c/contrast/{k}"), list((plain(X) - means) * factor + means))


@pytest.mark.parametrize(
    ("name", "c"),
    [
        ("cifar-c/elastic_transform/1", (0, 0, 2.56)),
        ("cifar-c/elastic_transform/4", (3.2, 1.28, 1.6)),
        ("imagenet-c/elastic_transform/1", (488 / 7, 170.8 / 7, 24.4 / 7)),
    ],
)
def test_elastic_is_as_published(name, c):
    x, unit = pictures(1, 16, 16), 16 / 32
    alpha, sigma, shift = (unit * v for v in c)
    moves = shift * (2 * of(name, x).fold(0).uniform(3, 2, dtype=torch.float64)[0].numpy() - 1)
    noise = 2 * of(name, x).fold(1).uniform(2, 16, 16, dtype=torch.float64)[0].numpy() - 1
    close(corrupt(x, name), [slowly.elastic(plain(x)[0], moves, noise, alpha, sigma)], 1e-5)


def test_pixelate_and_jpeg_are_those_of_pillow_on_bytes():
    for name, share in (("cifar-c/pixelate/1", 0.95), ("cifar-c/pixelate/5", 0.65), ("imagenet-c/pixelate/5", 0.25)):
        close(corrupt(X, name), [slowly.pixelated(x, share) for x in plain(X)], 1.01 / 255)
    means = F.avg_pool2d(X, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(corrupt(X, "imagenet-c/pixelate/5"), means)
    for collection, qualities in (("cifar-c", (80, 65, 58, 50, 40)), ("imagenet-c", (25, 18, 15, 10, 7))):
        for k, quality in enumerate(qualities, 1):
            close(corrupt(X, f"{collection}/jpeg_compression/{k}"), [slowly.jpeg(x, quality) for x in plain(X)], 1e-7)
    grey = corrupt(X[:, :1], "cifar-c/jpeg_compression/5")
    close(grey, [slowly.jpeg(x[..., 0], 40)[..., None] for x in plain(X)], 1e-7)


@pytest.mark.parametrize(("severity", "c"), [(3, (0.65, 0.3, 1, 0.69, 0.5)), (5, (0.65, 0.1, 0.5, 0.68, 0.6))])
def test_spatter_is_as_published(severity, c):
    name, x = f"cifar-c/spatter/{severity}", X.double()
    noise = c[0] + c[1] * of(name, x).normal(1, 32, 32, dtype=torch.float64)[:, 0].numpy()
    expected = []
    for image, layer in zip(plain(x), noise, strict=True):
        liquid = ndimage.gaussian_filter(layer, c[2], mode="nearest")
        if severity == 5:
            mud = ndimage.gaussian_filter((liquid > c[3]).astype(float), c[4], mode="nearest")[..., None]
            mud[mud < 0.8] = 0
            expected.append(image * (1 - mud) + mud * np.array([63, 42, 20]) / 255)
        else:
            water = slowly.film(np.where(liquid < c[3], 0, liquid))[..., None]
            expected.append(image + c[4] * water * np.array([175, 238, 238]) / 255)
    close(corrupt(x, name), expected)


def test_a_dry_picture_stays_as_it_is():
    assert torch.equal(film(torch.zeros(1, 1, 9, 9), 1.0), torch.zeros(1, 1, 9, 9, dtype=torch.float64))
    flood = film(torch.full((1, 1, 9, 9), 0.8), 1.0)  # without a shore
    assert torch.equal(flood, torch.full_like(flood, float(flood[0, 0, 0, 0]))) and bool(flood.isfinite().all())


def test_training_draws_from_them():
    x = X[:1].expand(60, -1, -1, -1)
    names = ("cifar-c/brightness/1", "cifar-c/saturate/2", "brightness")
    streams, y = Streams.of(0, torch.arange(60)), torch.zeros(60, dtype=torch.int64)
    moved = Corrupted(names).perturb(Single(torch.nn.Flatten()), x, y, streams)
    shares = [int((moved == corrupt(X[:1], name)).flatten(1).all(1).sum()) for name in names]
    assert sum(shares) == 60 and min(shares) > 8


@pytest.mark.unchecked
def test_refuses_what_makes_no_sense():
    with pytest.raises(EquipoiseError, match=r"cifar-c/saturate/3 needs images of 3 channels, got 1: leave it out"):
        corrupt(X[:, :1], "cifar-c/saturate/3")
    with pytest.raises(EquipoiseError, match=r"'cifar-c/snow' stands for 5 corruptions: .* as 'cifar-c/snow/1'"):
        corrupt(X, "cifar-c/snow")
    with pytest.raises(EquipoiseError, match=r"unknown corruption 'snow': did you mean 'cifar-c/snow'\?"):
        chosen(["snow"])
    with pytest.raises(EquipoiseError, match=r"unknown corruption 'cifar-c/fog/6': did you mean 'cifar-c/fog'\?"):
        chosen(["cifar-c/fog/6"])

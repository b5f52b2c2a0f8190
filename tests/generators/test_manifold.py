"""The manifold: MMD² against its double sum, learning, samples by Eq. 13, and files of the same bytes."""

import json

import pytest
import torch
from torch import nn

from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import Streams
from equipoise.data import Dataset, Split
from equipoise.generators import Manifold, auto_encoder, squared_mmd
from equipoise.training import Recipe, fit_manifold, load_manifold
from equipoise.training.checkpoint import load_tensors, save_tensors

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_mmd_in_plain_sums():
    """Tolstikhin et al. 2018, Alg. 2."""
    a, b = normal(5, 3), normal(4, 3, seed=1) + 0.5

    def k(u, v):
        return 6 / (6 + sum((float(s) - float(t)) ** 2 for s, t in zip(u, v, strict=True)))

    expected = sum(k(u, v) for i, u in enumerate(a) for j, v in enumerate(a) if i != j) / 20
    expected += sum(k(u, v) for i, u in enumerate(b) for j, v in enumerate(b) if i != j) / 12
    expected -= 2 * sum(k(u, v) for u in a for v in b) / 20
    assert squared_mmd(a, b).item() == pytest.approx(expected, rel=1e-12)


def test_mmd_is_unbiased():
    """Of equal laws 0 in the mean, within three standard errors; of others not."""
    values = torch.stack([squared_mmd(normal(6, 2, seed=2 * i), normal(6, 2, seed=2 * i + 1)) for i in range(2000)])
    error = values.std() / len(values) ** 0.5
    assert values.mean().abs() < 3 * error and (values < 0).any() and error < 2e-3
    moved = torch.stack([squared_mmd(normal(6, 2, seed=2 * i), normal(6, 2, seed=2 * i + 1) + 1) for i in range(200)])
    assert moved.mean() > 30 * error


def circle(n: int, seed: int) -> Split:
    """Points of a circle within the unit square: a manifold of one dimension."""
    angle = 6.2832 * torch.rand(n, generator=torch.Generator().manual_seed(seed))
    return Split(0.5 + 0.4 * torch.stack([angle.cos(), angle.sin()], 1), torch.arange(n) % 2)


CIRCLE = Dataset("circle", circle(512, 0), circle(256, 1), ("a", "b"), "0" * 64)
RECIPE = Recipe(epochs=40, batch_size=64, lr=3e-3)


def test_it_learns_a_circle():
    """The rebuilt points lie nearer than the mean point by far, noise on a code moves along the circle more than away
    from it, and the codes are standard normal about as well as samples of that law are.
    """
    manifold = auto_encoder((2,), codes=2, width=8)
    losses = fit_manifold(manifold, CIRCLE, RECIPE, weight=0.1)
    x = CIRCLE.test.x
    with torch.no_grad():
        error = (manifold.decode(manifold.encode(x)) - x).square().sum(1).mean()
        codes = manifold.encode(x)
    mean = (CIRCLE.train.x.mean(0) - x).square().sum(1).mean()
    assert error < 0.02 * mean and losses[-1].reconstruction < 0.1 * losses[0].reconstruction
    assert squared_mmd(codes, torch.randn(256, 2, generator=torch.Generator().manual_seed(0))) < 0.05
    near = manifold.sample(x, 8, 0.1, Streams.of(0, torch.arange(len(x))))
    outward = (x - 0.5) / 0.4
    along = torch.stack([-outward[:, 1], outward[:, 0]], 1)
    assert ((near - x) * along).sum(2).square().mean() > 4 * ((near - x) * outward).sum(2).square().mean()


def test_it_learns_digits(small_digits):
    manifold = auto_encoder(small_digits.shape, codes=8)
    losses = fit_manifold(manifold, small_digits, Recipe(epochs=20, batch_size=32, lr=3e-3))
    x = small_digits.test.x[:100]
    with torch.no_grad():
        error = (manifold.decode(manifold.encode(x)) - x).square().flatten(1).sum(1).mean()
    baseline = (small_digits.train.x.mean(0) - x).square().flatten(1).sum(1).mean()
    assert error < 0.5 * baseline and len(losses) == 20
    assert not manifold.training and not any(p.requires_grad for p in manifold.parameters())


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13), (1, 28, 28), (3, 32, 32), (2, 8, 40), (5,)])
def test_every_shape_comes_back(shape):
    manifold = auto_encoder(shape, codes=3, width=4)
    x = torch.rand(2, *shape)
    codes = manifold.encode(x)
    decoded = manifold.decode(codes)
    assert codes.shape == (2, 3) and decoded.shape == x.shape and decoded.min() >= 0 and decoded.max() <= 1
    assert str(manifold) == str(auto_encoder(shape, codes=3, width=4)) != str(auto_encoder(shape, 3, 4, seed=1))


def test_samples_are_decoded_codes_with_noise():
    """F, Eq. 13: of a linear auto-encoder the sample is the input plus the decoded noise, of deviation sigma."""
    encoder, decoder = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
    with torch.no_grad():
        encoder.weight.copy_(2 * torch.linalg.qr(normal(6, 6)).Q)
        decoder.weight.copy_(encoder.weight.T / 4)
    manifold = Manifold(encoder, decoder)
    x = torch.rand(400, 6, generator=torch.Generator().manual_seed(0))
    found = manifold.sample(x, 50, 0.06, Streams.of(3, torch.arange(400)))
    assert found.shape == (50, 400, 6)
    noise = (found - x) @ encoder.weight.T
    assert noise.mean().abs() < 3 * 0.06 / noise.numel() ** 0.5 + 1e-4
    assert noise.std().item() == pytest.approx(0.06, rel=0.01)
    correlation = torch.corrcoef(noise.permute(2, 0, 1).flatten(1)) - torch.eye(6)
    assert correlation.abs().max() < 0.03
    part = manifold.sample(x[7:9], 50, 0.06, Streams.of(3, torch.tensor([7, 8])))
    assert torch.allclose(part, found[:, 7:9], atol=1e-6), "a sample's draws do not depend on its batch"
    gallery = manifold.gallery(x[:3], 2, 0.06, Streams.of(3, torch.arange(3)))
    assert gallery.shape == (3, 4, 6) and torch.equal(gallery[:, 0], x[:3])
    assert torch.allclose(gallery[:, 1], x[:3], atol=1e-4)


SHORT = Recipe(epochs=4, batch_size=100, lr=3e-3, schedule="triangular", seed=5)


def fresh() -> Manifold:
    return auto_encoder((2,), codes=1, width=2, seed=3)


def test_a_training_that_was_stopped_ends_with_the_same_bytes(tmp_path):
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    losses = fit_manifold(fresh(), CIRCLE, SHORT, out=whole)
    heard: list[tuple[str, float]] = []

    def stop(what: str, share: float) -> None:
        heard.append((what, share))
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_manifold(fresh(), CIRCLE, SHORT, out=stopped, progress=stop)
    assert heard[0] == ("epoch 1/4", 0.0) and heard[-1][0] == "epoch 3/4"
    with pytest.raises(EquipoiseError, match=r"has seen 2 of 4 epochs: finish its training first"):
        load_manifold(stopped)
    again = fresh()
    assert fit_manifold(again, CIRCLE, SHORT, out=stopped) == losses
    assert stopped.read_bytes() == whole.read_bytes()
    loaded = load_manifold(stopped)
    x = CIRCLE.test.x
    assert torch.equal(loaded.encode(x), again.encode(x)) and str(loaded) == str(again)
    assert fit_manifold(fresh(), CIRCLE, SHORT, out=whole) == losses, "what is complete is loaded"
    assert json.loads(json.dumps(load_tensors(whole)[1]["how"]))["data"] == CIRCLE.sha256
    assert not [name for name in load_tensors(whole)[0] if name.startswith("optimizer")]


def test_the_random_state_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    fit_manifold(fresh(), CIRCLE, Recipe(epochs=1))
    assert torch.equal(torch.rand(1), expected)


def test_wrong_files_and_numbers_are_refused(tmp_path, small_digits):
    path = tmp_path / "manifold.safetensors"
    for content, message in (
        (None, "cannot read .*: No such file"),
        (b"nonsense", "is not a readable safetensors file"),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(EquipoiseError, match=message):
            load_manifold(path)
    save_tensors(path, nn.Linear(2, 2).state_dict())
    with pytest.raises(EquipoiseError, match=r"is not the file of a manifold: expected the manifold.safetensors of a"):
        load_manifold(tmp_path)
    with pytest.raises(EquipoiseError, match=r"is not the file of a manifold"):
        fit_manifold(fresh(), CIRCLE, SHORT, out=path)
    path.unlink()
    fit_manifold(fresh(), CIRCLE, Recipe(epochs=1), out=path)
    with pytest.raises(EquipoiseError, match=r"was trained with epochs = 1: give the same options, or another place"):
        fit_manifold(fresh(), CIRCLE, Recipe(epochs=2), out=path)
    own = Manifold(nn.Linear(2, 1), nn.Sequential(nn.Linear(1, 2), nn.Sigmoid()))
    fit_manifold(own, CIRCLE, Recipe(epochs=1), out=tmp_path / "own.safetensors")
    with pytest.raises(EquipoiseError, match=r"own.safetensors holds a manifold of your own modules"):
        load_manifold(tmp_path / "own.safetensors")
    with pytest.raises(EquipoiseError, match=r"is one of inputs of shape \(2,\), got inputs of shape \(1, 8, 8\)"):
        fit_manifold(fresh(), small_digits)
    odd = Dataset("odd", circle(5, 0), circle(5, 1), ("a", "b"), "0" * 64)
    for data, size in ((CIRCLE, 1), (odd, 2)):  # 5 samples in batches of 2 leave one alone
        with pytest.raises(EquipoiseError, match=rf"MMD compares at least 2 codes: .* with batch_size = {size}\."):
            fit_manifold(fresh(), data, Recipe(batch_size=size))
    with pytest.raises(EquipoiseError, match=r"weight = -1 would drive the codes away"):
        fit_manifold(fresh(), CIRCLE, weight=-1)
    with pytest.raises(EquipoiseError, match=r"loss is no longer finite in epoch 1: lower lr"):
        fit_manifold(fresh(), CIRCLE, Recipe(epochs=1, lr=1e30))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: auto_encoder((1, 7, 9)), r"at least 8x8 pixels, or \(features,\), got shape \(1, 7, 9\)"),
        (lambda: auto_encoder((3, 3)), r"got shape \(3, 3\)"),
        (lambda: auto_encoder((2,), codes=0), "codes = 0: a code needs at least one number"),
        (lambda: auto_encoder((2,), width=0), "width = 0: a layer needs at least one filter"),
    ],
)
def test_refused(make, message):
    with pytest.raises(EquipoiseError, match=message):
        make()

"""Attacks on images of few bits: what is found survives being saved, and lies in the ball."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from equipoise import Ball, Box, EquipoiseError, attacks, data
from equipoise.attacks.on_lattice import Lattice
from equipoise.cli import main
from equipoise.geometry import NORMS, Sparse
from equipoise.results.records import load

pytestmark = pytest.mark.unchecked


@pytest.fixture(scope="module")
def plane() -> nn.Module:
    """Two classes, told apart by a plane through grey."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    weight = torch.linspace(-1, 1, 16)
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([weight, -weight]))
        net[1].bias.copy_(torch.tensor([-0.5, 0.5]) * weight.sum())
    return net


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    k = torch.randint(0, 256, (40, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    return k.float() / 255


@pytest.mark.parametrize(
    "attack",
    [
        attacks.pgd(8 / 255, steps=5, step_size=0.5 / 255),
        attacks.pgd(0.1, steps=8, norm="l2"),
        attacks.square(8 / 255, queries=30),
        attacks.ddn(0.2),
        attacks.Chain((("apgd", attacks.apgd(4 / 255, steps=5)), ("square", attacks.square(4 / 255, queries=20)))),
    ],
    ids=str,
)
def test_what_fools_the_model_does_so_when_it_is_read_back(attack, plane, images, tmp_path) -> None:
    y = plane(images).argmax(1)
    found = attacks.on_lattice(attack)(plane, images, y)
    assert found.success.any() and not found.success.all()
    for i in found.success.nonzero()[:, 0].tolist():
        path = tmp_path / f"{i}.png"
        Image.fromarray((found.x[i, 0].numpy() * 255).round().astype(np.uint8)).save(path)
        read = torch.from_numpy(np.divide(np.asarray(Image.open(path)), 255, dtype=np.float32))
        assert torch.equal(read, found.x[i, 0])
        assert plane(read[None, None]).argmax() != y[i]
        assert NORMS[attack.geometry.norm] and attack.geometry.contains(read[None, None], images[i : i + 1])


def test_the_search_sees_the_rounding(plane, images) -> None:
    """Of a small step in L2 most is lost when the image is saved, unless the search knows."""
    y, attack = plane(images).argmax(1), attacks.pgd(6 / 255, steps=40, norm="l2")
    found = attacks.on_lattice(attack)(plane, images, y)
    saved = (attack(plane, images, y).x * 255).round() / 255
    survived = (plane(saved).argmax(1) != y) & attack.geometry.contains(saved, images)
    assert found.success.sum() > survived.sum()


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 0.27), ("l1", 0.5), ("l0", 2)])
def test_rounding_is_to_the_nearest_point_where_the_ball_has_it(norm: str, eps: float) -> None:
    """Every feature goes to the nearest value, or to that towards the centre; not all of them to the nearest only where
    the ball does not hold that, and then not none of them if it holds the point with the largest remainder rounded.
    """
    lattice, ball = Lattice(Box(), 10), Sparse("l0", eps) if norm == "l0" else Ball(norm, eps)
    centre = torch.tensor([[0.3, 0.5, 0.9]], dtype=torch.float64).expand(80, 3)
    point = (centre + eps * (2 * torch.rand(80, 3, generator=torch.Generator().manual_seed(0)) - 1)).clamp(0, 1)
    point = point if norm == "l0" else ball.project(point, centre)
    found = lattice.round_into(ball, point, centre)
    nearest = (point * 10).round() / 10
    inward = (centre * 10 + ((point - centre) * 10).trunc()) / 10
    assert (torch.isclose(found, nearest) | torch.isclose(found, inward)).all()
    if norm == "l0":  # which counts features, and takes any value of them
        assert torch.allclose(found, nearest)
        return
    assert ball.contains(found, centre).all()
    whole = ball.contains(nearest, centre)
    assert torch.allclose(found[whole], nearest[whole]) and (norm == "linf" or not whole.all())
    first = ((point - centre) * 10).abs().frac().argmax(1, keepdim=True) == torch.arange(3)
    one = torch.where(first, nearest, inward)  # the feature that rounding moves least, where the ball has room for it
    fits = ball.contains(one, centre)
    assert fits.any() and torch.allclose(found[fits][first[fits]], nearest[fits][first[fits]])


def test_a_box_of_bytes(plane, images) -> None:
    """The lattice of a box from 0 to 255 are the whole numbers."""

    class Bytes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return plane(x / 255)

    y = plane(images).argmax(1)
    attack = attacks.pgd(8, steps=5, box=Box(0, 255))
    found = attacks.on_lattice(attack)(Bytes(), (images * 255).round(), y)
    assert torch.equal(found.x, found.x.round()) and found.success.any()


def test_refusals(plane, images) -> None:
    y = plane(images).argmax(1)
    with pytest.raises(EquipoiseError, match="40 of 40 clean samples have values between the 256 levels: round them"):
        attacks.on_lattice(attacks.pgd(0.1))(plane, (images * 0.5 + 0.0013).clamp(0, 1), y)
    with pytest.raises(EquipoiseError, match="give it bounds"):
        attacks.on_lattice(attacks.pgd(0.1, box=Box(-float("inf"), float("inf"))))
    with pytest.raises(EquipoiseError, match="levels"):
        attacks.on_lattice(attacks.pgd(0.1), 0)
    with pytest.raises(EquipoiseError, match="give one eps"):
        attacks.on_lattice(attacks.pgd(torch.full((40,), 0.1)))


def test_the_command_line_attacks_what_can_be_saved(tmp_path, monkeypatch, capsys) -> None:
    """A record of attacks on bytes can be verified; samples that are no bytes are refused."""
    monkeypatch.chdir(tmp_path)
    digits = data.load("digits")
    splits = {"train": digits.train, "test": digits.test}
    arrays = {f"x_{name}": (split.x * 255).round().byte().numpy() for name, split in splits.items()}
    np.savez("d.npz", **arrays, **{f"y_{name}": split.y.numpy() for name, split in splits.items()})
    words = "evaluate digits/standard --data d.npz --attacks pgd5 --eps 12/255 --lattice 255 --examples 20 --out a.json"
    assert main([*words.split(), "--save-images", "images"]) == 0
    assert main(["verify", "a.json"]) == 0
    # Accuracy on few values is higher than that in all of the ball, and is not to be taken for it.
    assert [result.attack for result in load("a.json").results] == ["clean", "pgd5 on 256 values"]
    assert main([*words.replace("a.json", "c.json").split(), "--robustbench", "rb.json"]) == 2
    assert "leave out --lattice" in capsys.readouterr().err
    capsys.readouterr()
    assert main(words.replace("--data d.npz", "").replace("a.json", "b.json").split()) == 2
    assert "clean samples have values between the 256 levels" in capsys.readouterr().err


def test_values_of_few_digits_are_refused(plane, images) -> None:
    """Moved by whole steps from 0.003922 instead of 1/255 a point lies outside of the ball: no success would count."""
    written = (images * 1e6).round() / 1e6
    attack = attacks.on_lattice(attacks.pgd(8 / 255, steps=3))
    with pytest.raises(EquipoiseError, match="values between the 256 levels"):
        attack(plane, written, plane(written).argmax(1))
    shifted = 2 * images - 1  # rounded to float32 on the way
    ball = attacks.pgd(16 / 255, steps=3, step_size=8 / 255, box=Box(-1, 1))
    assert attacks.on_lattice(ball)(plane, shifted, plane(shifted).argmax(1)).success.any()

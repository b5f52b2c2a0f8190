"""A radius for each sample: every outcome is that of the sample attacked by itself with its radius."""

import pytest
import torch

from equipoise import Ascent, Ball, EquipoiseError, attacks, nets
from equipoise.attacks.steps import Boundary, Uniform
from equipoise.geometry import EVERYWHERE
from equipoise.losses import cross_entropy

pytestmark = pytest.mark.unchecked
RADII = torch.tensor([0.0, 0.02, 0.05, 0.3, 0.1])


@pytest.fixture(scope="module")
def setting() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    net = nets.build("mlp", (1, 4, 4), classes=3, seed=0, widths=(8,)).double()
    x = torch.rand(5, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return net, x, net(x).argmax(1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(
    "build",
    [
        lambda eps, norm: attacks.pgd(eps, steps=5, norm=norm),
        lambda eps, norm: attacks.pgd(eps, steps=5, norm=norm, restarts=3, return_point="best"),
        lambda eps, norm: attacks.fgsm(eps, norm=norm),
        lambda eps, norm: attacks.r_fgsm(eps, norm=norm),
        lambda eps, norm: attacks.udp(eps, steps=5, norm=norm, start=Boundary()),
        lambda eps, norm: attacks.cw(eps, steps=5, norm=norm, num_targets=2, start=Uniform(0.5)),
        lambda eps, norm: attacks.trades(eps, steps=5, norm=norm),
    ],
    ids=["pgd", "restarts", "fgsm", "r-fgsm", "udp", "targets", "trades"],
)
def test_each_sample_is_attacked_within_its_own_radius(setting, build, norm: str) -> None:
    net, x, y = setting
    scale = {"linf": 1, "l2": 4, "l1": 16}[norm]
    together = build(scale * RADII, norm)(net, x, y, seed=3, batch_size=2)
    for i, radius in enumerate((scale * RADII).tolist()):
        alone = build(radius, norm)(net, x[i : i + 1], y[i : i + 1], seed=3, index=torch.tensor([i]))
        assert together.success[i] == alone.success[0]
        assert torch.allclose(together.x[i], alone.x[0], atol=1e-6)
        assert float(together.distance[i]) <= radius + 1e-6


def test_phases_of_larger_balls_follow_the_radii(setting) -> None:
    net, x, y = setting
    options = {"steps": 10, "eps_schedule": ((2.0, 0.3),), "return_point": "best"}
    together = attacks.pgd(RADII, **options)(net, x, y)
    for i, radius in enumerate(RADII.tolist()):
        alone = attacks.pgd(radius, **options)(net, x[i : i + 1], y[i : i + 1], index=torch.tensor([i]))
        assert torch.allclose(together.x[i], alone.x[0], atol=1e-6)


def test_points_are_contained_by_radius() -> None:
    centre = torch.zeros(3, 2)
    points = torch.tensor([[0.1, 0.0], [0.1, 0.0], [0.0, 0.3]])
    within = Ball("l2", 0.3, EVERYWHERE, torch.tensor([0.1, 0.05, 0.3]))
    assert within.contains(points, centre).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net, x, y: attacks.pgd(RADII[:2])(net, x, y), "eps has 2 radii, one per sample, but there are 5"),
        (lambda net, x, y: attacks.pgd(-RADII), "of a sample is not a radius"),
        (lambda net, x, y: attacks.pgd(RADII[None]), r"eps has shape \(1, 5\): expected one radius per sample"),
        (
            lambda net, x, y: attacks.Square(Ball("linf", 0.3, radii=RADII))(net, x, y),
            "square takes one eps for all samples",
        ),
        (lambda net, x, y: Ball("linf", 0.1, radii=RADII.long()), "radii must be a tensor of floats"),
        (lambda net, x, y: attacks.pgd("0.1"), "eps = '0.1' is a str: expected a number or a Tensor"),
    ],
)
def test_wrong_radii_are_refused(setting, call, message: str) -> None:
    with pytest.raises(EquipoiseError, match=message):
        call(*setting)


def test_records_hold_the_radii() -> None:
    attack = Ascent(cross_entropy, Ball("linf", 0.3, radii=RADII), 0.1, 2)
    assert attack.settings()["geometry"]["radii"] == RADII.tolist()
    assert "radii" not in attacks.pgd(0.1).settings()["geometry"]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("eps_of_steps", [None, 0.05])
def test_a_whole_climb_follows_the_radii(norm: str, eps_of_steps: float | None) -> None:
    """The C kernel, in float32, beside PyTorch in float64."""
    net = nets.build("lenet", (1, 28, 28), classes=10, seed=0)
    x = torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    radii = (1 if norm == "linf" else 9) * torch.linspace(0, 0.3, 40)
    attack = attacks.uta(radii, eps_of_steps, steps=4, norm=norm)
    fast, exact = attack(net, x), attack(net.double(), x.double())
    assert float(fast.distance.max()) > 0.15
    assert torch.allclose(fast.distance.double(), exact.distance, atol=1e-4)
    assert torch.allclose(fast.x.double(), exact.x, atol=2e-3)

"""Named attacks: what each is composed of, another library on the same input, targeted forms."""

import inspect
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise import attacks
from equipoise.attacks import ATTACKS, fgsm, named, r_fgsm, targeted, trades, udp, uta
from equipoise.attacks.ascent import Ascent
from equipoise.attacks.steps import Constant, Fixed, Gaussian, Triangular, Uniform, UniformUpTo, Zero
from equipoise.core.errors import EquipoiseError
from equipoise.geometry import Ball
from equipoise.losses.objectives import cross_entropy, entropy, kl, margin

pgd = partial(attacks.pgd, start="zero", return_point="last")
cw = partial(attacks.cw, start="zero", return_point="last")


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network that has learned to tell four blobs apart, and fresh samples of them."""
    generator = torch.Generator().manual_seed(0)
    centres = 0.25 + 0.5 * torch.rand(4, 16, generator=generator)

    def sample(n: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(4, (n,), generator=generator)
        return (centres[y] + 0.15 * torch.randn(n, 16, generator=generator)).clamp(0, 1), y

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    x, y = sample(512)
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimiser.step()
    return net.eval(), *sample(100)


def test_what_they_are():
    size, at_random = Constant(2.5 * 0.1 / 8), {"start": Uniform(), "return_point": "first_success"}
    expected = {
        "fgsm": Ascent(cross_entropy, Ball("linf", 0.1), 0.1, 1),
        "r-fgsm": Ascent(cross_entropy, Ball("linf", 0.1), 0.125, 1, **at_random),
        "pgd": Ascent(cross_entropy, Ball("linf", 0.1), size, 8, **at_random),
        "cw": Ascent(margin, Ball("linf", 0.1), size, 8, **at_random),
        "uta": Ascent(entropy, Ball("linf", 0.1), size, 8),
        "udp": Ascent(entropy, Ball("linf", 0.1), size, UniformUpTo(8)),
        "trades": Ascent(kl("clean||here"), Ball("linf", 0.1), size, 8, start=Gaussian(0.001)),
    }
    assert set(expected) == set(ATTACKS)
    for name, ascent in expected.items():
        options = {} if "fgsm" in name else {"steps": 8}
        assert named(name, 0.1, **options) == ascent, name


def test_options_reach_the_ascent():
    attack = pgd(
        0.2, Triangular(0.01, 0.04), 7, norm="l2", start=Uniform(), return_point="best", restarts=3, mode="train"
    )
    assert (attack.step_size, attack.steps, attack.geometry) == (Triangular(0.01, 0.04), Fixed(7), Ball("l2", 0.2))
    assert (attack.start, attack.return_point, attack.restarts, attack.mode) == (Uniform(), "best", 3, "train")
    assert trades(0.1, divergence="here||clean").objective == kl("here||clean")
    assert trades(0.1, start=Zero()).start == Zero() and r_fgsm(0.1, 0.02).step_size == Constant(0.02)
    assert fgsm(0.1, step_size=0.05).step_size == Constant(0.05) and udp(0.1, 0.02, 5).steps == UniformUpTo(5)
    assert targeted(pgd(0.1), "runner_up") == replace(pgd(0.1), target="runner_up")
    assert named("pgd", 0.1, step_size=0.01, steps=5, norm="l1") == attacks.pgd(0.1, 0.01, 5, norm="l1")


@pytest.mark.parametrize("name", ATTACKS)
def test_radius_zero_moves_nothing(name, trained):
    net, x, y = trained
    for norm in ("linf", "l2", "l1"):
        found = ATTACKS[name](0.0, norm=norm)(net, x, y)
        assert torch.equal(found.x, x) and torch.equal(found.success, net(x).argmax(1) != y)


def test_fgsm_is_one_plain_step(trained):
    net, x, y = trained
    at = x.clone().requires_grad_()
    F.cross_entropy(net(at).double(), y, reduction="sum").backward()  # where float32 cancels, of the sure
    assert torch.allclose(fgsm(0.1)(net, x, y).x, (x + 0.1 * at.grad.sign()).clamp(0, 1), atol=1e-7)
    step = 0.3 * at.grad / at.grad.norm(dim=1, keepdim=True)
    found = fgsm(0.3, norm="l2")(net, x, y).x
    assert torch.allclose(found, Ball("l2", 0.3).project(x + step, x), atol=1e-6)


class InDouble(nn.Module):
    """Logits in float64: the plain cross-entropy's gradient at them cancels in float32 where the net is sure."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x).double()


@pytest.mark.parametrize("eps", [0.03, 0.1, 0.2])
@pytest.mark.parametrize("name", ["LinfPGD", "FGSM", "L2PGD"])
def test_foolbox_finds_the_same(name, eps, trained):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        foolbox = pytest.importorskip("foolbox")
    net, x, y = trained
    model = foolbox.PyTorchModel(InDouble(net).eval(), bounds=(0, 1), device="cpu")
    if name == "FGSM":
        theirs, ours = foolbox.attacks.FGSM(random_start=False), fgsm(eps)
    elif name == "LinfPGD":
        theirs, ours = (
            foolbox.attacks.LinfPGD(abs_stepsize=eps / 8, steps=20, random_start=False),
            pgd(eps, eps / 8, 20),
        )
    else:
        # foolbox projects onto the ball first and the box after: the same where the box does not cut, so stay inside.
        x, eps = 0.3 + 0.4 * x, 2 * eps
        theirs = foolbox.attacks.L2PGD(abs_stepsize=eps / 8, steps=20, random_start=False)
        ours = pgd(eps, eps / 8, 20, norm="l2")
    _, adversarial, success = theirs(model, x, y, epsilons=eps)
    found = ours(net, x, y)
    apart = (found.x - adversarial).abs().flatten(1).amax(1)
    assert apart.max() < 1e-5
    assert torch.equal(found.success, success) and success.sum() > 0


def test_more_steps_and_restarts_are_stronger(trained):
    net, x, y = trained
    rates = [
        attack(net, x, y).success.double().mean().item()
        for attack in (
            fgsm(0.08),
            pgd(0.08, steps=20, return_point="best"),
            pgd(0.08, steps=20, return_point="first_success", restarts=3, start=Uniform()),
        )
    ]
    assert rates[0] < rates[1] + 1e-9 and rates[1] <= rates[2] + 0.011


def test_uncertainty_grows(trained):
    net, x, _ = trained

    def uncertainty(z: Tensor) -> Tensor:
        return torch.distributions.Categorical(logits=net(z)).entropy()

    found = uta(0.1, 0.01, 20, return_point="best")(net, x)
    assert (uncertainty(found.x) >= uncertainty(x) - 1e-6).all() and uncertainty(found.x).mean() > uncertainty(
        x
    ).mean() + 0.2
    assert torch.equal(found.success, net(found.x).argmax(1) != net(x).argmax(1)), (
        "without labels: the prediction changed"
    )


@pytest.mark.parametrize("rule", ["least_likely", "runner_up", "random"])
def test_targeted_forms_reach_their_class(rule, trained):
    net, x, y = trained
    found = targeted(cw(0.4, 0.04, 40, return_point="best"), rule)(net, x, y)
    assert found.success.double().mean() > 0.5 and (found.prediction[found.success] != y[found.success]).all()


@pytest.mark.unchecked
def test_refuses_unknown_names_and_options():
    with pytest.raises(EquipoiseError, match=r"unknown attack 'pdg': did you mean 'pgd'\?"):
        named("pdg", 0.1)
    with pytest.raises(EquipoiseError, match=r"unknown option of pgd 'stepsize': did you mean 'step_size'"):
        named("pgd", 0.1, stepsize=0.1)
    with pytest.raises(EquipoiseError, match=r"unknown norm 'linff': did you mean 'linf'"):
        named("pgd", 0.1, norm="linff")
    for field, value, message in (
        ("return_point", "frist_success", "unknown return_point 'frist_success': did you mean 'first_success'"),
        ("mode", "trian", "unknown mode 'trian': did you mean 'train'"),
        ("precision", "bf61", "unknown precision 'bf61': did you mean 'bf16'"),
        ("target", "least-likely", "unknown target 'least-likely': did you mean 'least_likely'"),
        ("restarts", 0, "restarts = 0: expected an integer"),
        ("steps", 0, "steps = 0: expected an integer"),
        ("steps", 2.5, "steps = 2.5: expected an integer"),
        ("step_size", 0.0, "step_size = 0.0 moves nothing"),
        ("eps", -1.0, "eps = -1.0 is not a radius"),
    ):
        with pytest.raises(EquipoiseError, match=message):
            named("pgd", **({"eps": 0.1} | {field: value}))
    with pytest.raises(EquipoiseError, match=r"unknown option of fgsm 'steps'"):
        named("fgsm", 0.1, steps=3)
    assert set(inspect.signature(named).parameters) == {"name", "eps", "options"}

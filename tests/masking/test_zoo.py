"""The zoo: every broken defence falls to an adaptive attack, and no honest model is accused."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from scipy.linalg import hadamard as sylvester
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.masking.investigate import investigate
from equipoise.masking.zoo import BROKEN, HONEST
from equipoise.masking.zoo.activations import ActivationPruning, KWinners, Pruned, Quantised, WinnersTakeAll
from equipoise.masking.zoo.inputs import BitDepth, Jpeg, RandomResize, Thermometer, TotalVariation
from equipoise.masking.zoo.outputs import OutputCodes, hadamard

pytestmark = pytest.mark.unchecked

EPS, STEPS = 0.1, 20
MISLEADING = [name for name in BROKEN if name not in ("activation-pruning", "ensemble-diversity", "trapdoor")]
"""At this size the other three mislead nobody: naive attacks that draw anew at every step do as well as any."""


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="sum")


def margin(z: Tensor, y: Tensor) -> Tensor:
    own = F.one_hot(y, z.shape[1]).bool()
    return (z.masked_fill(own, -torch.inf).amax(1) - z[own]).sum()


def attacked(model: nn.Module, x: Tensor, y: Tensor, loss, steps: int = STEPS) -> Tensor:
    """Signed ascent from a random start, written out: the last point."""
    at = (x + EPS * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        at.requires_grad_()
        value = loss(model(at), y)
        if not value.requires_grad:
            return at.detach()  # nothing to follow
        (gradient,) = torch.autograd.grad(value, at, allow_unused=True)
        step = 0 if gradient is None else 2.5 * EPS / steps * gradient.sign()
        at = torch.clamp(torch.clamp(at.detach() + step, x - EPS, x + EPS), 0, 1)
    return at.detach()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor, draws: int = 10) -> float:
    return float(torch.stack([(model(x).argmax(1) == y).float().mean() for _ in range(draws)]).mean())


@pytest.mark.parametrize("name", BROKEN)
def test_an_adaptive_attack_breaks_every_defence(name, digits):
    """And where the defence misleads attacks, they leave at least 5 points more if they follow its own gradient."""
    defence, (x, y) = BROKEN[name].build(digits, 0), (digits.test.x[:60], digits.test.y[:60])
    torch.manual_seed(0)
    clean, stand_in = accuracy(defence, x, y), defence.stand_in()
    naive = accuracy(defence, attacked(defence, x, y, cross_entropy), y)
    adaptive = min(accuracy(defence, attacked(stand_in, x, y, loss), y) for loss in (cross_entropy, margin))
    assert clean > 0.75 and adaptive < clean - 0.25
    assert adaptive <= naive - 0.05 or name not in MISLEADING
    assert BROKEN[name].paper and BROKEN[name].broken_by and BROKEN[name].masks


FOUND = sorted({*MISLEADING} - {"total-variation", "random-resize"})
"""Those that answer alike in every call; the others take minutes, see benchmarks/README.md."""


@pytest.mark.parametrize("name", FOUND)
def test_the_audit_finds_what_misleads(name, digits):
    report = investigate(BROKEN[name].build(digits, 1), digits.test.x[:110], digits.test.y[:110], EPS, minutes=None)
    assert report.masked, str(report)


KINDS = ("tanh", "batch-norm", "label smoothing", "entropy", "median", "large logits")


@pytest.mark.parametrize("name", KINDS)
def test_the_audit_accuses_no_honest_model(name, digits, brief):
    report = investigate(HONEST[name](digits, 1), digits.test.x[:100], digits.test.y[:100], EPS, minutes=None)
    assert not report.masked and not report.undecided and report.clean > 0.85, str(report)


def test_a_seed_says_which_network_it_is(digits):
    x = digits.test.x[:20]
    first, again, other = (BROKEN["bit-depth"].build(digits, seed)(x) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_quantisation_is_that_of_jpeg():
    """By scipy's cosine transform, block by block; at quality 50 the steps are those of the standard."""
    jpeg, x = Jpeg(nn.Identity()), torch.rand(3, 1, 16, 24)
    steps = jpeg.steps.double().numpy()
    assert 255 * steps[0, :4] == pytest.approx([16, 11, 10, 16]) and 255 * steps[7, 7] == pytest.approx(99)
    expected = np.zeros(x.shape)
    for top in (0, 8):
        for left in (0, 8, 16):
            block = np.s_[:, :, top : top + 8, left : left + 8]
            levels = np.round(dctn(x.double().numpy()[block] - 0.5, axes=(2, 3), norm="ortho") / steps)
            expected[block] = idctn(levels * steps, axes=(2, 3), norm="ortho") + 0.5
    differs = np.abs(jpeg.transform(x).numpy() - expected.clip(0, 1)) > 1e-5
    assert differs.mean() < 0.02, "but for levels that rounding decides"
    assert Jpeg(nn.Identity()).transform(torch.rand(2, 3, 5, 11)).shape == (2, 3, 5, 11)
    assert torch.allclose(Jpeg(nn.Identity(), 25).steps, 2 * jpeg.steps)


def test_inputs_are_coded_in_levels():
    x = torch.tensor([[[[0.0, 0.3, 0.5, 1.0]]]])
    assert BitDepth(nn.Identity(), 2).transform(x).flatten().tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    code = Thermometer(nn.Identity(), 4)
    assert code.transform(x)[0, :, 0].T.tolist() == [[0] * 4, [1, 1, 0, 0], [1, 1, 0, 0], [1] * 4]
    assert code.relaxed(x)[0, :, 0, 1].tolist() == pytest.approx([1, 0.2, 0, 0])
    for defence in (code, BitDepth(nn.Identity(), 2)):
        assert torch.equal(defence.stand_in()(x), defence(x)), "the stand-in differs in its gradient alone"


def test_total_variation_falls():
    """Where all pixels are kept, the objective of which it is the minimiser falls, too."""
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def variation(z: Tensor) -> Tensor:
        return sum((z.diff(dim=axis).square() + 0.01).sqrt().sum() for axis in (2, 3))

    z = TotalVariation(nn.Identity(), keep=1.0, weight=0.1, steps=30).transform(x)
    assert variation(z) < 0.9 * variation(x)
    objective = (z - x).square().sum() + 0.1 * variation(z)
    nearby = [z + 0.01 * torch.randn_like(z) for _ in range(10)]
    assert all(objective < (at - x).square().sum() + 0.1 * variation(at) for at in nearby)


def test_images_are_placed_somewhere_else_at_every_call():
    defence, x = RandomResize(nn.Identity(), 10), torch.ones(64, 1, 8, 8)
    first, second = defence(x), defence(x)
    assert first.shape == (64, 1, 10, 10) and not torch.equal(first, second)
    assert {int(n) for n in first.sum((1, 2, 3))} == {64, 81, 100}


def test_the_largest_units_win():
    h = torch.tensor([[3.0, -1.0, 2.0, 0.5, 0.0]])
    assert WinnersTakeAll(0.4)(h).tolist() == [[3, 0, 2, 0, 0]]
    assert WinnersTakeAll(0.01)(h).tolist() == [[3, 0, 0, 0, 0]]


def test_pruning_keeps_the_mean_and_only_while_predicting():
    """Each unit in the mean, within four standard errors; small units are kept less often."""
    h = torch.tensor([[4.0, 1.0, 0.5, -2.0]]).expand(20_000, 4)
    pruned = Pruned(1.0).eval()
    torch.manual_seed(0)
    out = pruned(h)
    error = 4 * out.std(0) / len(h) ** 0.5 + 1e-6
    assert bool(((out.mean(0) - h[0].relu()).abs() <= error).all())
    p = torch.tensor([4.0, 1.0, 0.5]) / 5.5
    assert (out[:, :3] > 0).float().mean(0).tolist() == pytest.approx((1 - (1 - p) ** 4).tolist(), abs=0.015)
    assert torch.equal(pruned.train()(h), h.relu())


def test_networks_keep_what_is_not_their_activations():
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 3))
    assert sum(isinstance(m, WinnersTakeAll) for m in KWinners(network).modules()) == 2
    assert not any(isinstance(m, nn.ReLU) for m in network.modules()) and len(list(network.parameters())) == 6
    assert isinstance(ActivationPruning(nn.Sequential(nn.ReLU())).network[0], Pruned)


def test_units_are_quantised_with_and_without_a_gradient():
    units = Quantised(2)
    h = torch.tensor([-0.2, 0.4, 0.6, 1.7], requires_grad=True)
    for smooth, slope in ((True, [0.0, 1, 1, 0]), (False, [0.0] * 4)):
        units.smooth = smooth
        assert units(h).tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
        assert torch.autograd.grad(units(h).sum(), h)[0].tolist() == slope


def test_the_jumps_of_winners_have_an_estimated_gradient():
    """Of a linear network it is the weight, with every pair of differences exact along its signs."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    x = torch.rand(2, 6, requires_grad=True)
    stand_in = KWinners(linear).stand_in()
    stand_in.directions = 20_000
    assert torch.allclose(stand_in(x), linear(x))
    (gradient,) = torch.autograd.grad(stand_in(x)[:, 1].sum(), x)
    assert gradient[0].tolist() == pytest.approx(linear[1].weight[1].tolist(), abs=0.03)


def test_words_of_the_code_are_told_apart():
    assert np.array_equal(hadamard(8).numpy(), sylvester(8))
    code = hadamard(4)[:, 1:]
    coded = OutputCodes(nn.Identity(), code)
    p = coded(10 * code).exp()
    assert torch.equal(p.argmax(1), torch.arange(4)) and bool((p.topk(2).values[:, 1] < 1e-5).all())

"""Bounded layers against singular values of explicit matrices, and what DUE's extractors promise of distances."""

import math
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from equipoise.core.errors import EquipoiseError
from equipoise.nets import Normalize
from equipoise.nets.due import BoundedResidual, FCResNet, WideResNetFeatures
from equipoise.nets.lipschitz import BoundedBatchNorm2d, BoundedNorm, bounded


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def explicit_matrix(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The matrix of an affine map of inputs of this shape, a column per unit vector."""
    with torch.no_grad():
        inputs = torch.eye(torch.Size(shape).numel(), dtype=next(layer.parameters()).dtype).reshape(-1, *shape)
        return (layer(inputs) - layer(torch.zeros_like(inputs[:1]))).flatten(1).T


def largest_singular_value(layer: nn.Module, shape: tuple[int, ...]) -> float:
    return float(torch.linalg.svdvals(explicit_matrix(layer, shape))[0])


def parametrization(layer: nn.Module) -> BoundedNorm:
    return layer.parametrizations["weight"][0]


def estimated_norm(layer: nn.Module) -> float:
    """Of the weight before it is bounded."""
    return float(parametrization(layer).norm(layer.parametrizations["weight"].original).detach())


CONVOLUTIONS = {
    "3x3 padded": (dict(kernel_size=3, padding=1), (6, 5)),
    "strided": (dict(kernel_size=3, padding=1, stride=2), (6, 5)),
    "strided differently": (dict(kernel_size=(3, 2), padding=(0, 1), stride=(1, 3)), (7, 8)),
    "dilated in groups": (dict(kernel_size=3, padding=2, dilation=2, groups=2), (6, 6)),
    "1x1 strided": (dict(kernel_size=1, stride=2), (7, 7)),
    "large kernel": (dict(kernel_size=5, padding=2), (8, 8)),
}


@pytest.mark.parametrize("inputs, outputs", [(5, 7), (40, 12), (64, 64), (1, 9)])
def test_power_iteration_finds_the_largest_singular_value_of_a_matrix(inputs, outputs):
    layer = nn.Linear(inputs, outputs)
    exact = largest_singular_value(layer, (inputs,))
    layer = bounded(layer, 0.3)
    assert estimated_norm(layer) == pytest.approx(exact, 1e-3)
    assert largest_singular_value(layer, (inputs,)) == pytest.approx(0.3, 1e-3)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_power_iteration_finds_the_largest_singular_value_of_a_convolution(name):
    options, size = CONVOLUTIONS[name]
    layer = nn.Conv2d(4, 6, **options)
    exact = largest_singular_value(layer, (4, *size))
    layer = bounded(layer, 0.3, size)
    assert estimated_norm(layer) == pytest.approx(exact, 2e-3)
    assert largest_singular_value(layer, (4, *size)) == pytest.approx(0.3, 2e-3)


def test_a_convolutions_norm_is_not_that_of_its_reshaped_weight():
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    layer = bounded(layer, 1.0, (16, 16))
    found = estimated_norm(layer)
    # A sum over 3x3 neighbours of sines of the longest wave that is zero beyond the border: (1 + 2 cos(π/17))².
    assert found == pytest.approx((1 + 2 * math.cos(math.pi / 17)) ** 2, 1e-4)
    assert found > 8 > 3, "the 1x9 matrix has norm 3"


def test_a_weight_within_the_bound_is_left_alone():
    layer = nn.Linear(6, 4)
    weight = layer.weight.detach().clone()
    assert torch.equal(bounded(layer, 100.0).weight, weight)


def test_the_bound_holds_all_through_training():
    """Training turns the weights until another direction is the largest: one vector alone was seen 27 % above."""
    net = nn.Sequential(FCResNet((2,), features=64, depth=3), nn.Linear(64, 2))
    x = torch.rand(200, 2)
    y = ((x[:, 0] * 7).sin() * (x[:, 1] * 7).cos() > 0).long()
    optimizer, largest = torch.optim.Adam(net.parameters(), 0.003), []
    for step in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        if step % 5 == 0:
            net(x)  # in train mode: the vectors follow
            largest.append(
                [float(torch.linalg.matrix_norm(block.linear.weight.detach(), 2)) for block in net[0].blocks]
            )
    assert torch.tensor(largest).max() <= 0.95 * 1.005
    assert torch.tensor(largest[-1]).min() >= 0.95 * 0.995, "the bound binds"
    raw = net[0].blocks[0].linear.parametrizations["weight"].original
    assert float(torch.linalg.matrix_norm(raw.detach(), 2)) > 1


def test_the_bound_holds_all_through_the_training_of_a_convolution():
    layer = bounded(nn.Conv2d(2, 3, 3, padding=1), 0.95, (5, 5))
    optimizer = torch.optim.Adam(layer.parameters(), 0.02)
    x, before = torch.randn(32, 2, 5, 5), layer.parametrizations["weight"].original.detach().clone()
    target = torch.randn(32, 3, 5, 5)
    for _ in range(40):
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()
        layer(x)
        layer.eval()
        assert largest_singular_value(layer, (2, 5, 5)) <= 0.95 * 1.01
        layer.train()
    after = layer.parametrizations["weight"].original.detach()
    assert float((after - before).norm()) > 0.5, "the weight moved"
    assert not torch.allclose(after, layer.weight.detach()), "and would have been above the bound"


def test_in_eval_mode_nothing_changes():
    layer = bounded(nn.Linear(9, 9), 0.5)
    with torch.no_grad():
        layer.parametrizations["weight"].original.normal_()
    layer.eval()
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    layer(torch.randn(3, 9))
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())
    layer.train()(torch.randn(3, 9))
    assert not torch.equal(parametrization(layer).u, state["parametrizations.weight.0.u"])


def test_gradients_through_two_forward_passes_are_those_of_each():
    """u and v change in place between the passes; the first one's gradient must still be its own."""

    def gradients(together: bool) -> Tensor:
        torch.manual_seed(1)
        layer = bounded(nn.Linear(5, 5), 0.5)
        a, b = torch.randn(4, 5), torch.randn(4, 5)
        if together:
            (layer(a).square().sum() + layer(b).square().sum()).backward()
        else:
            layer(a).square().sum().backward()
            layer(b).square().sum().backward()
        return layer.parametrizations["weight"].original.grad

    assert torch.allclose(gradients(True), gradients(False), atol=1e-6)


def test_the_gradient_sees_the_division_by_the_norm():
    """With W / |W| the scale of W does not matter: the gradient is orthogonal to W."""
    layer = bounded(nn.Linear(6, 6).double(), 0.1).eval()
    layer(torch.randn(3, 6, dtype=torch.float64)).square().sum().backward()
    original = layer.parametrizations["weight"].original
    assert float((original.grad * original.detach()).sum()) == pytest.approx(0, abs=1e-9)
    assert float(original.grad.norm()) > 1e-3


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_the_bound_holds_in_eval_mode_however_fast_the_weights_moved(kind):
    if kind == "linear":
        layer, shape = bounded(nn.Linear(64, 64), 0.95), (64,)
    else:
        layer, shape = bounded(nn.Conv2d(4, 4, 3, padding=1), 0.95, (6, 6)), (4, 6, 6)
    net = nn.Sequential(layer, nn.ReLU())
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    for _ in range(10):
        x = torch.randn(16, *shape)
        optimizer.zero_grad()
        (net(x) - 3 * x.flip(1)).square().mean().backward()
        optimizer.step()
    with torch.no_grad():  # a last step that no forward pass follows
        layer.parametrizations["weight"].original.add_(torch.randn_like(layer.weight))
    net.eval()
    assert largest_singular_value(layer, shape) <= 0.95 * (1 + 1e-4)
    copy = deepcopy(net).train()
    with torch.no_grad():
        copy[0].parametrizations["weight"].original.add_(torch.randn_like(copy[0].weight))
    assert largest_singular_value(copy.eval()[0], shape) <= 0.95 * (1 + 1e-4), "of a copy too"
    assert largest_singular_value(layer, shape) <= 0.95 * (1 + 1e-4), "whose original stays"


def test_a_zero_weight_is_bounded_and_followed_when_it_grows():
    layer = nn.Linear(8, 8)
    nn.init.zeros_(layer.weight)
    layer = bounded(layer, 0.5)
    assert torch.equal(layer.weight, torch.zeros(8, 8))
    with torch.no_grad():
        layer.parametrizations["weight"].original.normal_()
    for _ in range(10):
        layer(torch.zeros(1, 8))
    assert largest_singular_value(layer.eval(), (8,)) == pytest.approx(0.5, 1e-3)


def test_a_weight_that_diverged_gives_nan_and_no_error():
    layer = bounded(nn.Linear(8, 8), 0.5)
    with torch.no_grad():
        layer.parametrizations["weight"].original[0, 0] = torch.nan
    assert bool(layer(torch.ones(1, 8)).isnan().all())


def test_a_bf16_weight_stays_one_and_bounded():
    layer = bounded(nn.Linear(16, 16), 0.3).eval()
    weight = parametrization(layer)(layer.parametrizations["weight"].original.detach().bfloat16())
    assert weight.dtype == torch.bfloat16
    assert float(torch.linalg.svdvals(weight.float())[0]) == pytest.approx(0.3, 2e-2)


def test_autocast_does_not_blur_the_bound():
    layer = bounded(nn.Linear(32, 32), 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 32)).dtype == torch.bfloat16
        weight = layer.weight.detach()
    assert float(torch.linalg.matrix_norm(weight, 2)) == pytest.approx(0.3, 1e-4)


def test_batch_norm_is_bounded_in_eval_mode_and_otherwise_the_librarys():
    ours, theirs = BoundedBatchNorm2d(3, 2.0), nn.BatchNorm2d(3)
    x = torch.randn(8, 3, 4, 4) * torch.tensor([1.0, 2.0, 3.0])[:, None, None] + 1
    for _ in range(100):
        assert torch.allclose(ours(x), theirs(x), atol=1e-5), "γ = 1 is within the bound for these variances"
    assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-5)
    with torch.no_grad():
        ours.weight.copy_(torch.tensor([-5.0, 1.0, 9.0]))
    slope = explicit_matrix(ours, (3, 1, 1)).diagonal()
    assert float(slope.abs().max()) == pytest.approx(2.0, 1e-5)
    gamma = torch.tensor([-5.0, 1.0, 9.0]) / (ours.running_var + ours.eps).sqrt()
    assert torch.allclose(slope / slope[0], gamma / gamma[0], atol=1e-5), "all channels are scaled alike"


@pytest.mark.parametrize("coefficient", [0.2, 0.5, 0.95])
def test_a_residual_block_keeps_distances_up_to_1_plus_minus_c(coefficient):
    block = BoundedResidual(24, coefficient, dropout=0.3).eval()
    with torch.no_grad():
        block.linear.bias.normal_()
    direction = torch.linalg.svd(block.linear.weight)[2][0]  # in which the branch is steepest
    a = torch.randn(4000, 24) * 2
    b = torch.cat([torch.randn(3000, 24), a[3000:] + 0.1 * direction])
    with torch.no_grad():
        ratio = (block(a) - block(b)).norm(dim=1) / (a - b).norm(dim=1)
    assert float(ratio.min()) >= 1 - coefficient * 1.001 and float(ratio.max()) <= 1 + coefficient * 1.001
    assert float(ratio.max() - ratio.min()) > coefficient / 10, "the branch does something"


@pytest.mark.parametrize("sign", [1, -1])
def test_a_residual_block_attains_its_bounds(sign):
    """Where every relu is active and W = ± c I, the block is h ± c h + b."""
    block = BoundedResidual(6, 0.7)
    with torch.no_grad():
        block.linear.parametrizations["weight"].original.copy_(sign * 5 * torch.eye(6))
        block.linear.bias.fill_(100.0)
        a, b = torch.randn(2, 50, 6)
        ratio = (block(a) - block(b)).norm(dim=1) / (a - b).norm(dim=1)
    assert torch.allclose(ratio, torch.full((50,), 1 + sign * 0.7), atol=1e-4)


def test_fc_resnet_is_lipschitz_and_its_features_count():
    net = FCResNet((2, 3), features=20, depth=3, coefficient=0.9).eval()
    a, b = torch.randn(500, 2, 3), torch.randn(500, 2, 3)
    with torch.no_grad():
        assert net(a).shape == (500, net.features) == (500, 20)
        ratio = (net(a) - net(b)).norm(dim=1) / (a - b).flatten(1).norm(dim=1)
    assert 0 < float(ratio.max()) <= 0.9 * 1.9**3


@pytest.mark.parametrize(
    "make, shape, features",
    [
        (FCResNet, (2,), 128),
        (WideResNetFeatures, (3, 8, 8), 64),
        (lambda shape: WideResNetFeatures(shape, depth=16, widen=2), (1, 9, 7), 128),
    ],
)
def test_features_behind_normalize(make, shape, features):
    net = nn.Sequential(Normalize([0.5], [0.25]), make(shape))
    assert net[1].features == features
    assert net(torch.rand(4, *shape)).shape == (4, features)
    a = net.eval()(x := torch.rand(4, *shape))
    assert torch.allclose(net(x[:1]), a[:1], atol=1e-5), "each sample for itself"


def test_every_convolution_of_a_wide_resnet_is_bounded_for_the_images_it_gets():
    net = WideResNetFeatures((3, 7, 6), depth=16, widen=1, coefficient=0.4)
    sizes = {}
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    for layer in convolutions:
        layer.register_forward_hook(lambda layer, x, _: sizes.update({layer: tuple(x[0].shape[1:])}))
    net(torch.rand(2, 3, 7, 6))
    assert len(convolutions) == 1 + 6 * 2 + 2 and len(sizes) == len(convolutions), "the first stage needs no 1x1"
    for layer, shape in sizes.items():
        assert parametrization(layer).v.shape[1:] == shape
    net.eval()
    for layer in (net.stem, net.blocks[2].conv1, net.blocks[2].skip, net.blocks[5].conv2):
        assert largest_singular_value(layer, sizes[layer]) <= 0.4 * 1.002
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 13 and all(isinstance(m, BoundedBatchNorm2d) and m.coefficient == 0.4 for m in norms)


def test_building_draws_what_the_layers_draw():
    """The start of the power iteration does not come from the global generator."""
    torch.manual_seed(3)
    plain = nn.Linear(4, 4).weight.detach(), torch.rand(1)
    torch.manual_seed(3)
    layer = bounded(nn.Linear(4, 4), 100.0)
    assert torch.equal(layer.weight, plain[0]) and torch.equal(torch.rand(1), plain[1])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: bounded(nn.Linear(2, 2), 0.0), "the bound of a norm must be positive, got 0.0"),
        (lambda: bounded(nn.Conv2d(1, 1, 3), 1.0), "give input_size=(height, width)"),
        (lambda: bounded(nn.Conv2d(1, 1, 3, padding="same"), 1.0, (4, 4)), "zero padding given by numbers"),
        (lambda: bounded(nn.Conv2d(1, 1, 3, padding_mode="circular"), 1.0, (4, 4)), "of mode 'circular'"),
        (lambda: bounded(nn.Conv1d(1, 1, 3), 1.0), "the norm of a Conv1d cannot be bounded"),
        (lambda: BoundedBatchNorm2d(3, -1.0), "the bound of a norm must be positive"),
        (lambda: FCResNet((2,), features=0), "features = 0 must be at least 1"),
        (lambda: FCResNet((2,), dropout=1.0), "dropout must be in [0, 1)"),
        (lambda: WideResNetFeatures((2,)), "a WideResNet needs images"),
        (lambda: WideResNetFeatures((3, 8, 8), depth=12), "10, 16, 22"),
        (lambda: WideResNetFeatures((3, 8, 8), widen=0), "widen of a WideResNet must be at least 1"),
    ],
)
def test_refused(make, message):
    with pytest.raises(EquipoiseError) as refusal:
        make()
    assert message in str(refusal.value)

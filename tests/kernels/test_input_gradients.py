"""The fast input gradients against the library's, for every shape of convolution, batch-norm and pooling."""

from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from equipoise import nets
from equipoise.kernels._backward_kernels import Im2colConv
from equipoise.kernels.input_gradients import AffineNormalization, FastInputGradients

F64 = torch.float64


def both(x, weight, call):
    """Value and input gradient of `call(x)`, plainly and in the fast mode."""
    found = []
    for mode in (False, True):
        at = x.clone().requires_grad_()
        if mode:
            with FastInputGradients():
                value = call(at)
                (gradient,) = torch.autograd.grad((value**2).sum(), at)
            fast = type(value.grad_fn).__name__ == "TiledGradientConvBackward"  # the library's ends in 0
        else:
            value = call(at)
            (gradient,) = torch.autograd.grad((value**2).sum(), at)
        found.append((value, gradient))
    return *found, fast


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@given(
    channels=st.integers(1, 6),
    out=st.integers(1, 5),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.sampled_from([1, 1, 1, 2, (1, 2)]),
    padding=st.sampled_from([0, 1, 2, (0, 1), (2, 1), "same"]),
    dilation=st.sampled_from([1, 1, 1, 2]),
    groups=st.booleans(),
    bias=st.booleans(),
    size=st.tuples(st.integers(9, 14), st.integers(9, 14)),
    last=st.booleans(),
)
@settings(max_examples=150)
def test_the_gradient_is_that_of_the_library(
    channels, out, kernel, stride, padding, dilation, groups, bias, size, last
):
    if padding == "same" and stride != 1:
        stride = 1
    groups = channels if groups else 1
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, *size, generator=generator, dtype=F64)
    weight = torch.randn(out * groups, channels // groups, *kernel, generator=generator, dtype=F64)
    if last:
        weight = weight.contiguous(memory_format=torch.channels_last)
    offset = torch.randn(out * groups, generator=generator, dtype=F64) if bias else None
    plain, fast, _ = both(x, weight, lambda at: F.conv2d(at, weight, offset, stride, padding, dilation, groups))
    assert torch.equal(plain[0], fast[0]) or torch.allclose(plain[0], fast[0])
    assert fast[1].shape == x.shape and torch.allclose(plain[1], fast[1], atol=1e-10)


@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_used_where_it_pays_and_only_there(channels):
    x, weight = torch.rand(2, channels, 12, 12), torch.rand(4, channels, 5, 5)
    assert both(x, weight, lambda at: F.conv2d(at, weight, padding=2))[2]
    assert both(x, weight, lambda at: F.conv2d(input=at, weight=weight, padding=1))[2], "arguments by name"
    learned = weight.clone().requires_grad_()
    assert not both(x, weight, lambda at: F.conv2d(at, learned))[2], "a weight that learns needs its own gradient"
    assert not both(x, weight, lambda at: F.conv2d(at, weight, stride=2))[2]
    assert not both(x, weight, lambda at: F.conv2d(at, weight, padding=5))[2], "padding as wide as the kernel"
    offset = torch.rand(4, requires_grad=True)
    with FastInputGradients():
        (gradient,) = torch.autograd.grad(F.conv2d(x.clone().requires_grad_(), weight, offset).sum(), offset)
    assert gradient.eq(2 * 8 * 8).all(), "an offset that learns needs its own gradient"


@given(
    channels=st.integers(1, 4),
    out=st.integers(1, 4),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    size=st.tuples(st.integers(3, 6), st.integers(3, 6)),
    bias=st.booleans(),
    last=st.booleans(),
)
@settings(max_examples=150)
def test_the_matrix_product_is_the_convolution_of_the_library(channels, out, kernel, stride, padding, size, bias, last):
    generator = torch.Generator().manual_seed(0)
    order = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(2, channels, *size, generator=generator, dtype=F64).contiguous(memory_format=order).requires_grad_()
    weight = torch.randn(out, channels, *kernel, generator=generator, dtype=F64).contiguous(memory_format=order)
    offset = torch.randn(out, generator=generator, dtype=F64) if bias else None
    plain = F.conv2d(x, weight, offset, stride, padding)
    product = Im2colConv.apply(x, weight, offset, stride, padding)
    upstream = torch.randn(plain.shape, generator=generator, dtype=F64)
    gradients = [torch.autograd.grad(value, x, upstream)[0] for value in (plain, product)]
    assert torch.allclose(plain, product, rtol=0, atol=1e-12) and torch.allclose(*gradients, rtol=0, atol=1e-12)


@pytest.fixture
def processor(monkeypatch):
    """One with units that multiply matrices in bf16, or one without."""
    return lambda has: monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has)


def test_the_matrix_product_is_used_for_many_bf16_kernels_and_few_pixels(processor):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 64, 4, 4, generator=generator).bfloat16()
    layer = nn.Conv2d(64, 64, 3, padding=1, dtype=torch.bfloat16).requires_grad_(False)

    def call(at, layer=layer):
        with FastInputGradients():
            return layer(at.requires_grad_())

    def used(at, layer=layer):
        return "Im2colConv" in type(call(at, layer).grad_fn).__name__

    processor(False)
    assert not used(x)
    processor(True)
    assert used(x) and not used(x.repeat(10, 1, 1, 1)) and not used(x.float(), deepcopy(layer).float())
    assert not used(x, deepcopy(layer).requires_grad_())
    at = x.clone().requires_grad_()
    value = call(at).add_(1)  # in place, as a residual network adds its shortcut
    (gradient,) = torch.autograd.grad(value.float().sum(), at)
    exact = x.double().requires_grad_()
    expected = deepcopy(layer).double()(exact) + 1
    assert torch.allclose(value.double(), expected, atol=0.05, rtol=0.01)
    assert torch.allclose(gradient.double(), torch.autograd.grad(expected.sum(), exact)[0], atol=0.05, rtol=0.01)


@given(
    shape=st.sampled_from([(3, 4), (2, 4, 5), (2, 4, 5, 3), (2, 4, 1, 1)]),
    affine=st.booleans(),
    last=st.booleans(),
    seed=st.integers(0, 100),
)
def test_standing_batch_norm_is_the_library_s(shape, affine, last, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=F64)
    x = x.contiguous(memory_format=torch.channels_last) if last and x.ndim == 4 else x
    mean, variance, weight, bias = torch.randn(4, 4, generator=generator, dtype=F64).unbind()
    variance, scales = variance.exp(), (weight, bias) if affine else (None, None)
    plain, fast, _ = both(x, weight, lambda at: F.batch_norm(at, mean, variance, *scales, eps=1e-3))
    assert torch.equal(plain[0], fast[0]) and "RunningBatchNorm" in type(fast[0].grad_fn).__name__
    assert torch.allclose(plain[1], fast[1], rtol=0, atol=1e-12 * float(plain[1].abs().max()))


def test_batch_norm_that_learns_or_counts_is_left_alone():
    x = torch.rand(3, 4, 5, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def fast(layer):
        with FastInputGradients():
            return "RunningBatchNorm" in type(layer(x).grad_fn).__name__

    layer = nn.BatchNorm2d(4).requires_grad_(False)
    assert not fast(layer) and layer.num_batches_tracked == 1, "batch statistics"
    assert fast(layer.eval()) and not fast(nn.BatchNorm2d(4).eval())
    assert not fast(nn.BatchNorm2d(4, track_running_stats=False).requires_grad_(False).eval())


@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 5, 3)])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_written_out_is_the_library_s_and_so_is_its_second_derivative(shape, affine):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=F64, requires_grad=True)
    rows = torch.randn(4, 4, generator=generator, dtype=F64)
    mean, variance, weight, bias = rows[0], rows[1].exp(), rows[2].requires_grad_(), rows[3].requires_grad_()
    scales = (weight, bias) if affine else (None, None)
    live = (x, weight) if affine else (x,)

    def derivatives():
        value = F.batch_norm(x, mean, variance, *scales, eps=1e-3)
        (slope,) = torch.autograd.grad(value.pow(3).sum(), x, create_graph=True)
        return value, slope, *torch.autograd.grad(slope.square().sum(), live)

    library = derivatives()
    with AffineNormalization():
        written_out = derivatives()
    assert "BatchNorm" in type(library[0].grad_fn).__name__ and "Addcmul" in type(written_out[0].grad_fn).__name__
    for a, b in zip(library, written_out, strict=True):
        assert torch.allclose(a, b, rtol=1e-10)


def test_batch_norm_with_batch_statistics_is_not_written_out():
    x = torch.rand(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    layer, other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    with AffineNormalization():
        found = layer(x)
    assert torch.equal(found, other(x)) and torch.equal(layer.running_mean, other.running_mean)


@pytest.mark.parametrize("size", [32, 13])
def test_a_whole_residual_network(size):
    net = nets.build("preact-resnet18", shape=(3, size, size), classes=10, seed=0)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, size, size, generator=generator)
    net(x)  # statistics other than 0 and 1
    net.eval().requires_grad_(False)
    exact = deepcopy(net).double()
    plain, fast, _ = both(x.double(), None, exact)
    assert torch.allclose(plain[0], fast[0], rtol=1e-12) and torch.allclose(plain[1], fast[1], rtol=0, atol=1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        half, _, _ = both(x, None, deepcopy(net).to(memory_format=torch.channels_last))
        weights = {k: v.bfloat16() if v.ndim == 4 else v for k, v in net.named_parameters()}
        _, quick, _ = both(x, None, lambda at: torch.func.functional_call(net, weights, (at,)))
    apart = [float((g.double() - plain[1]).norm() / plain[1].norm()) for g in (half[1], quick[1])]
    assert apart[1] < 1.25 * apart[0], "no less exact than the library in bf16"


@pytest.mark.parametrize("padding_mode", ["zeros", "circular", "reflect"])
def test_layers_in_float32(padding_mode):
    layer = nn.Conv2d(3, 8, 5, padding=2, padding_mode=padding_mode).requires_grad_(False)
    x = torch.rand(4, 3, 17, 13, generator=torch.Generator().manual_seed(0))
    plain, fast, _ = both(x, layer.weight, layer)
    assert torch.allclose(plain[1], fast[1], atol=1e-4)


def test_a_single_image_and_an_input_without_gradient_pass_through():
    layer = nn.Conv2d(1, 2, 3).requires_grad_(False)
    x = torch.rand(1, 6, 6)
    with FastInputGradients():
        assert torch.equal(layer(x), layer(x[None])[0])
    plain, fast, used = both(x, layer.weight, layer)
    assert not used and torch.allclose(plain[1], fast[1])


@pytest.mark.parametrize("has", [False, True])
def test_under_autocast(processor, has):
    processor(has)
    layer = nn.Conv2d(1, 4, 3).requires_grad_(False)
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        with FastInputGradients():
            (fast,) = torch.autograd.grad(layer(x).float().pow(2).sum(), x)
        (plain,) = torch.autograd.grad(layer(x).float().pow(2).sum(), x)
    assert fast.dtype == torch.float32 and torch.allclose(fast, plain, rtol=0.05, atol=0.05)
    (exact,) = torch.autograd.grad(layer(x).pow(2).sum(), x)
    assert torch.allclose(fast, exact, atol=1e-5) != has, "so narrow a convolution stays in float32 without such units"
    wide = nn.Conv2d(1, 32, 3).requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16), FastInputGradients():
        assert wide(x).dtype == torch.bfloat16 and layer(x).dtype == (torch.bfloat16 if has else torch.float32)


@pytest.mark.parametrize("held_in_bf16", [False, True])
def test_narrow_convolutions_in_bf16_are_as_exact_as_the_library_s(processor, held_in_bf16):
    processor(True)
    net = nets.build("lenet", shape=(1, 28, 28), classes=10, seed=0).eval().requires_grad_(False)
    x = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    weights = {k: v.bfloat16() if held_in_bf16 and v.ndim > 1 else v for k, v in net.named_parameters()}

    def network(at):
        return torch.func.functional_call(net, weights, (at,))

    def gradient(network, at, mode=None):
        at = at.clone().requires_grad_()
        with mode or nullcontext():
            value = network(at).double().logsumexp(1).sum()
        return torch.autograd.grad(value, at)[0].double()

    exact = gradient(deepcopy(net).double(), x.double())
    with torch.autocast("cpu", torch.bfloat16):
        plain, fast = gradient(network, x), gradient(network, x, FastInputGradients())
    apart = [float((found - exact).norm() / exact.norm()) for found in (plain, fast)]
    assert apart[1] < 1.25 * apart[0] < 0.25


def test_pooling_without_a_gradient():
    x = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    x[0, 0, 1, 1] = torch.nan
    with FastInputGradients():
        fast = F.max_pool2d(x, 2)
    assert torch.equal(fast.nan_to_num(9), F.max_pool2d(x, 2).nan_to_num(9)) and fast[0, 0, 0, 0].isnan()


@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(2, 9), st.integers(2, 9)),
    levels=st.integers(1, 4),
    kernel=st.sampled_from([2, 2, (2, 2), 3, (2, 1)]),
    stride=st.sampled_from([None, None, 2, (2, 2), 1, 3]),
    padding=st.sampled_from([0, 0, 1]),
    ceil=st.booleans(),
    last=st.booleans(),
    seed=st.integers(0, 100),
)
@settings(max_examples=200)
def test_pooling_is_the_library_s_and_so_are_its_ties(shape, levels, kernel, stride, padding, ceil, last, seed):
    if padding and kernel == (2, 1):
        padding = 0
    if 3 in (kernel, stride) and min(shape[2:]) < 3:
        kernel, stride = 2, None
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(levels, shape, generator=generator) - 0.5  # few levels, so that most windows hold a tie
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    found = []
    for mode in (nullcontext(), FastInputGradients()):
        at = x.clone().requires_grad_()
        with mode:
            value = F.max_pool2d(at, kernel, stride, padding, ceil_mode=ceil)
            upstream = torch.rand(value.shape, generator=torch.Generator().manual_seed(1))
            (gradient,) = torch.autograd.grad(value, at, upstream)
        found.append((value, gradient))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_pooling_is_fast_where_it_applies_and_only_there():
    x = torch.rand(1, 2, 6, 8).requires_grad_()

    def fast(y, *args, **kwargs):
        with FastInputGradients():
            return "MaxPool2x2" in type(F.max_pool2d(y, *args, **kwargs).grad_fn).__name__

    assert fast(x, 2) and fast(x, (2, 2), 2) and fast(x, kernel_size=2, stride=None, ceil_mode=True)
    assert not fast(x, 3) and not fast(x, 2, 1) and not fast(x, 2, padding=1) and not fast(x[:, :, :5], 2)
    assert not fast(x.contiguous(memory_format=torch.channels_last), 2) and not fast(x[0], 2)
    with FastInputGradients():
        value, index = nn.MaxPool2d(2, return_indices=True)(x)
    assert value.shape == index.shape == (1, 2, 3, 4)


def few_levels(*shape, seed=0):
    """Multiples of 1/2 near 0, so that sums are exact and most windows hold a tie."""
    return torch.randint(-1, 3, shape, generator=torch.Generator().manual_seed(seed)).double() / 2


@given(
    channels=st.integers(1, 5),
    out=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    size=st.tuples(st.integers(5, 14), st.integers(5, 14)),
    bias=st.booleans(),
    rectify=st.sampled_from([F.relu, torch.relu, torch.relu_, torch.Tensor.relu, nn.ReLU(inplace=True), None]),
    first=st.booleans(),
    seed=st.integers(0, 100),
)
@settings(max_examples=200)
def test_a_pooled_convolution_is_the_library_s_and_so_are_its_ties(
    channels, out, kernel, padding, size, bias, rectify, first, seed
):
    x = few_levels(2, channels, *size, seed=seed)
    weight = few_levels(out, channels, *kernel, seed=seed + 1)
    offset = few_levels(out, seed=seed + 2) if bias else None

    def network(at):
        h = F.conv2d(at, weight, offset, padding=padding)
        h = rectify(h) if rectify and first else h
        h = F.max_pool2d(h, 2)
        return rectify(h) if rectify and not first else h

    assume(all(min(s + 2 * p - k + 1, s) >= 2 for s, p, k in zip(size, padding, kernel, strict=True)))
    plain, fast, _ = both(x, weight, network)
    assert all(torch.equal(a, b) for a, b in zip(fast, plain, strict=True))


def test_leaves_vectorised_ensembles_alone():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)).eval()
    weights = {k: torch.stack([v.detach(), 2 * v.detach()]) for k, v in net.named_parameters()}
    x = torch.rand(2, 1, 8, 8, requires_grad=True)

    def both():
        return torch.vmap(lambda w: torch.func.functional_call(net, w, (x,)), in_dims=0)(weights)

    with FastInputGradients():
        inside = both()
    assert inside.equal(both())

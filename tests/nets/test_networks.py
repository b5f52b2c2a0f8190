"""The networks against the papers' tables: parameters counted by hand, shapes, and the forward pass restated."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from equipoise.core.errors import EquipoiseError
from equipoise.nets import MLP, LeNet, Normalize, PreActResNet18, ResNet18, build, count_parameters, split

MNIST, SVHN = (1, 28, 28), (3, 32, 32)


@pytest.mark.parametrize(
    ("name", "shape", "options", "expected"),
    [
        ("mlp", MNIST, {}, 784 * 256 + 256 + 256 * 10 + 10),
        ("mlp", (64,), {"widths": (32, 16)}, 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10),
        ("mlp", (2,), {"widths": ()}, 2 * 10 + 10),
        ("lenet", MNIST, {}, 156 + 2_416 + 48_120 + 10_164 + 850),
        ("lenet", SVHN, {}, 456 + 2_416 + 69_240 + 10_164 + 850),
        ("lenet", MNIST, {"width": 2}, 312 + 9_632 + 192_240 + 20_244 + 850),
        ("lenet", MNIST, {"width": 12}, 1_872 + 345_792 + 6_913_440 + 121_044 + 850),
        ("lenet-wide", SVHN, {}, 2_432 + 51_264 + 590_080 + 30_840 + 1_210),
        ("preact-resnet18", SVHN, {}, 1_728 + 147_968 + 525_184 + 2_098_944 + 8_392_192 + 1_024 + 5_130),
        ("preact-resnet18-udp", SVHN, {}, 1_728 + 147_968 + 525_184 + 2_098_944 + 8_392_192 + 5_130),
        ("preact-resnet18-udp", SVHN, {"init": "he-fan-out"}, 11_171_146),
        ("resnet18", SVHN, {}, 11_173_962),
        ("cnn4", MNIST, {}, 260 + 5_020 + 16_050 + 510),
        ("small-cnn", MNIST, {}, 288 + 64 + 18_432 + 128 + 73_728 + 256 + 295_168 + 2_570),
        ("resnet20", SVHN, {}, 464 + 14_016 + 51_648 + 205_696 + 650),
        ("wide-resnet", SVHN, {}, 46_160_474),
        ("resnet18-dropout", SVHN, {}, 1_856 + 147_968 + 525_568 + 2_099_712 + 8_393_728 + 5_130),
    ],
)
def test_parameters_counted_by_hand(name, shape, options, expected):
    assert count_parameters(build(name, shape, **options)) == expected


def test_a_shared_parameter_counts_once():
    layer = nn.Linear(3, 3)
    assert count_parameters(nn.Sequential(layer, layer)) == 12


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mlp", (7,)),
        ("mlp", (1, 8, 8)),
        ("lenet", (1, 12, 12)),
        ("lenet", (3, 28, 36)),
        ("lenet-wide", MNIST),
        ("preact-resnet18", (1, 8, 8)),
        ("preact-resnet18", (3, 16, 24)),
        ("preact-resnet18", MNIST),
        ("resnet18", (1, 8, 8)),
        ("cnn4", (3, 16, 20)),
        ("small-cnn", (1, 8, 8)),
        ("small-cnn", (3, 32, 28)),
        ("resnet20", (1, 8, 12)),
        ("resnet18-dropout", (3, 16, 24)),
    ],
)
def test_logits_have_one_row_per_input_and_one_column_per_class(name, shape):
    logits = build(name, shape, classes=4)(torch.rand(2, *shape))
    assert logits.shape == (2, 4)
    assert logits.isfinite().all()
    assert (logits.sum(dim=1) - 1).abs().min() > 1e-4  # logits, not probabilities


def test_lenet_is_table_6_of_the_udp_paper():
    shapes = []
    net = LeNet(MNIST)
    for layer in (*net.features, *net.classifier):
        layer.register_forward_hook(lambda layer, _, out: shapes.append((type(layer).__name__, *out.shape[1:])))
    net(torch.rand(1, *MNIST))
    assert shapes == [
        ("Conv2d", 6, 28, 28),
        ("ReLU", 6, 28, 28),
        ("MaxPool2d", 6, 14, 14),
        ("Conv2d", 16, 10, 10),
        ("ReLU", 16, 10, 10),
        ("MaxPool2d", 16, 5, 5),
        ("Flatten", 400),
        ("Linear", 120),
        ("ReLU", 120),
        ("Linear", 84),
        ("ReLU", 84),
        ("Linear", 10),
    ]


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.3])
def test_mlp_in_numpy(slope):
    net = build("mlp", (1, 3, 3), classes=3, widths=(5, 4), negative_slope=slope)
    x = torch.rand(6, 1, 3, 3)
    h = x.numpy().reshape(6, 9)
    (w1, b1, w2, b2, w3, b3) = (p.detach().numpy() for p in net.parameters())
    h = h @ w1.T + b1
    h = np.where(h > 0, h, slope * h)
    h = h @ w2.T + b2
    h = np.where(h > 0, h, slope * h)
    np.testing.assert_allclose(net(x).detach().numpy(), h @ w3.T + b3, atol=1e-6)


def preact_resnet_by_hand(net: nn.Module, x: Tensor, published: bool = False) -> Tensor:
    """He et al. 2016, Fig. 1(b), from the weights alone; or as the code of the UDP paper has it."""
    w = dict(net.state_dict())

    def bn_relu(name, h):
        stats = (w[f"{name}.running_mean"], w[f"{name}.running_var"], w[f"{name}.weight"], w[f"{name}.bias"])
        mean, var, scale, shift = (v.view(-1, 1, 1) for v in stats)
        return ((h - mean) / (var + 1e-5).sqrt() * scale + shift).clamp(min=0)

    h = F.conv2d(x, w["stem.weight"], padding=1)
    for i in range(8):
        stride = 2 if i in (2, 4, 6) else 1
        active = bn_relu(f"stages.{i}.bn1", h)
        inner = F.conv2d(active, w[f"stages.{i}.conv1.weight"], stride=stride, padding=1)
        inner = F.conv2d(bn_relu(f"stages.{i}.bn2", inner), w[f"stages.{i}.conv2.weight"], padding=1)
        before = h if published else active
        h = inner + (F.conv2d(before, w[f"stages.{i}.shortcut.weight"], stride=2) if stride == 2 else h)
    h = h if published else bn_relu("bn", h)
    pooled = F.avg_pool2d(h, 4).flatten(1)  # the papers pool 4x4 windows: all there is at 32x32
    return pooled @ w["linear.weight"].T + w["linear.bias"]


def with_statistics(name: str) -> tuple[nn.Module, Tensor]:
    """A network whose batch-norms have statistics and scales that matter, in eval mode, and two images."""
    net = build(name, SVHN).eval()
    generator = torch.Generator().manual_seed(1)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        for values, least in ((norm.running_mean, 0.5), (norm.running_var, 0.5), (norm.weight, 0), (norm.bias, 0)):
            values.data.copy_(torch.rand(values.shape, generator=generator) + least)
    return net, torch.rand(2, *SVHN, generator=generator)


@pytest.mark.parametrize("name", ["preact-resnet18", "preact-resnet18-udp"])
def test_preact_resnet_restated_from_its_weights(name):
    net, x = with_statistics(name)
    with torch.no_grad():
        expected = preact_resnet_by_hand(net, x, published=name.endswith("udp"))
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)


def test_behind_the_last_block_of_the_papers_preact_resnet_are_pooling_and_a_linear_layer():
    net, x = with_statistics("preact-resnet18-udp")
    encoder, classifier = split(net, "block8")
    with torch.no_grad():
        codes = encoder(x)
        expected = codes.mean((2, 3)) @ net.linear.weight.T + net.linear.bias
        torch.testing.assert_close(classifier(codes), expected, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(layer, nn.BatchNorm2d | nn.ReLU) for layer in classifier.modules())


def test_he_initialisation_by_the_fan_out():
    net = build("preact-resnet18-udp", SVHN, init="he-fan-out", seed=1)
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d):
            weight, outputs = layer.weight.detach(), layer.kernel_size[0] ** 2 * layer.out_channels
            assert weight.std() == pytest.approx((2 / outputs) ** 0.5, rel=5 / weight.numel() ** 0.5), name
            assert abs(float(weight.mean())) < 5 * (2 / outputs / weight.numel()) ** 0.5
    assert not net.linear.bias.any() and net.linear.weight.any()
    plain = build("preact-resnet18-udp", SVHN, seed=1)
    assert plain.stem.weight.detach().std() == pytest.approx((1 / (3 * 27)) ** 0.5, rel=0.1), (
        "PyTorch's default, by the fan-in"
    )
    with pytest.raises(EquipoiseError, match="init of a preact-resnet18-udp 'he'"):
        build("preact-resnet18-udp", SVHN, init="he")


def resnet_by_hand(net: nn.Module, x: Tensor, masks: list[Tensor], blocks: int = 8, halving=(2, 4, 6)) -> Tensor:
    """Table 7 of the UDP paper, from the weights alone; each line "MCD" multiplies by the next mask."""
    w, masks = dict(net.state_dict()), list(masks)

    def bn(name, h):
        stats = (w[f"{name}.running_mean"], w[f"{name}.running_var"], w[f"{name}.weight"], w[f"{name}.bias"])
        mean, var, scale, shift = (v.view(-1, 1, 1) for v in stats)
        return (h - mean) / (var + 1e-5).sqrt() * scale + shift

    h = bn("stem.1", F.conv2d(x, w["stem.0.weight"], padding=1)).clamp(min=0) * masks.pop(0)
    for i in range(blocks):
        name, stride = f"blocks.{i}", 2 if i in halving else 1
        bypass = h
        if stride == 2:
            bypass = bn(f"{name}.shortcut.1", F.conv2d(h, w[f"{name}.shortcut.0.weight"], stride=2))
        inner = bn(f"{name}.bn1", F.conv2d(h, w[f"{name}.conv1.weight"], stride=stride, padding=1))
        inner = inner.clamp(min=0) * masks.pop(0)
        inner = bn(f"{name}.bn2", F.conv2d(inner, w[f"{name}.conv2.weight"], padding=1))
        h = (inner + bypass).clamp(min=0) * masks.pop(0)
    return h.mean((2, 3)) @ w["linear.weight"].T + w["linear.bias"]


def test_resnet20_restated_from_its_weights():
    """He et al. 2016, Sec. 4.2: a stem and 18 convolutions in blocks of two, then the linear layer."""
    net, x = with_statistics("resnet20")
    masks = [torch.ones(())] * 19
    with torch.no_grad():
        torch.testing.assert_close(net(x), resnet_by_hand(net, x, masks, 9, (3, 6)), rtol=1e-4, atol=1e-4)
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) == 20 + 2


def small_cnn_by_hand(net: nn.Module, x: Tensor) -> Tensor:
    w = dict(net.state_dict())
    h = x
    for i in range(3):
        h = F.conv2d(h, w[f"layers.{i}.0.weight"], padding=1)
        stats = (w[f"layers.{i}.1.{name}"].view(-1, 1, 1) for name in ("running_mean", "running_var", "weight", "bias"))
        mean, var, scale, shift = stats
        h = ((h - mean) / (var + 1e-5).sqrt() * scale + shift).clamp(min=0)
        h = h.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
    h = (h.flatten(1) @ w["layers.3.0.weight"].T + w["layers.3.0.bias"]).clamp(min=0)
    return h @ w["layers.4.weight"].T + w["layers.4.bias"]


def test_small_cnn_restated_from_its_weights():
    net, x = with_statistics("small-cnn")
    with torch.no_grad():
        torch.testing.assert_close(net(x), small_cnn_by_hand(net, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "resnet18-dropout"])
def test_resnet_restated_from_its_weights(name):
    net, x = with_statistics(name)
    sizes = [(64, 32)] * 5 + [(128, 16)] * 4 + [(256, 8)] * 4 + [(512, 4)] * 4
    masks = [torch.ones(c, s, s) for c, s in sizes]
    if name == "resnet18-dropout":
        generator = torch.Generator().manual_seed(2)
        masks = [(torch.rand(mask.shape, generator=generator) > 0.2) / 0.8 for mask in masks]
        dropouts = [m for m in net.modules() if isinstance(m, nn.Dropout)]
        assert [m.p for m in dropouts] == [0.2] * 17
        for layer, mask in zip(dropouts, masks, strict=True):
            layer.register_forward_hook(lambda layer, inputs, output, mask=mask: output * mask)
    with torch.no_grad():
        torch.testing.assert_close(net(x), resnet_by_hand(net, x, masks), rtol=1e-4, atol=1e-4)


@given(st.integers(1, 12))
def test_width_multiplies_filters_and_first_linear_layer_only(width):
    sizes = [p.shape[0] for p in LeNet(MNIST, width=width).parameters() if p.ndim > 1]
    assert sizes == [6 * width, 16 * width, 120 * width, 84, 10]


@given(st.integers(1, 40), st.integers(1, 40))
def test_lenet_takes_an_image_or_says_why_not(height, width):
    if min(height, width) >= 12:
        assert LeNet((1, height, width))(torch.rand(1, 1, height, width)).shape == (1, 10)
    else:
        with pytest.raises(EquipoiseError, match=rf"at least 12x12 pixels, got {height}x{width}: .* use mlp"):
            LeNet((1, height, width))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LeNet(MNIST, width=13), "width of a lenet must be between 1 and 12, got 13"),
        (lambda: LeNet(MNIST, width=0), "between 1 and 12, got 0"),
        (lambda: LeNet(MNIST, hidden=(120, 0)), r"hidden \(120, 0\) of a lenet must be at least 1"),
        (lambda: LeNet((784,)), r"lenet needs images \(channels, height, width\), got inputs of shape \(784,\)"),
        (lambda: PreActResNet18((784,)), r"preact-resnet18 needs images .* got inputs of shape \(784,\)"),
        (lambda: ResNet18((784,)), r"resnet18 needs images .* got inputs of shape \(784,\)"),
        (
            lambda: build("small-cnn", (1, 7, 9)),
            r"small-cnn needs .* at least 8x8 pixels, got inputs of shape \(1, 7, 9\)",
        ),
        (lambda: build("resnet20", (784,)), r"resnet20 needs images .* got inputs of shape \(784,\)"),
        (lambda: ResNet18(SVHN, dropout=1.0), r"dropout of a resnet18 must be a probability in \[0, 1\), got 1.0"),
        (lambda: MLP((2,), widths=(3, 0)), r"widths of an mlp must be at least 1, got \(3, 0\)"),
        (lambda: MLP((2,), negative_slope=1.0), r"negative_slope = 1: expected a share in \[0, 1\), such as 0.01"),
        (lambda: Normalize((0.5,), (0.0,)), "positive standard deviations"),
        (lambda: Normalize((float("nan"),), (1.0,)), "finite means"),
        (lambda: Normalize((0.5, 0.5), (1.0,)), "as many means as standard deviations, got 2 and 1"),
        (lambda: Normalize((), ()), "got 0 and 0"),
    ],
)
def test_refused(make, message):
    with pytest.raises(EquipoiseError, match=message):
        make()


@pytest.mark.parametrize("shape", [(3, 5, 4), (3,)])
def test_normalize_is_per_channel(shape):
    x = torch.rand(2, *shape)
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 1.0, 2.0])
    expected = np.stack([(x.numpy()[:, c] - mean[c]) / std[c] for c in range(3)], axis=1)
    np.testing.assert_allclose(Normalize(mean.tolist(), std.tolist())(x).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_normalize_is_saved_and_not_trained():
    layer = Normalize((0.25,), (0.5,))
    assert {k: v.tolist() for k, v in layer.state_dict().items()} == {"mean": [0.25], "std": [0.5]}
    assert count_parameters(layer) == 0
    assert repr(layer) == "Normalize(mean=[0.25], std=[0.5])"

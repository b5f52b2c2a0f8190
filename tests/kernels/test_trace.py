"""The trace of a network: every layer with its weights, and what is not one."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise import nets
from equipoise.kernels import layers
from equipoise.kernels.layers import Unknown, output_of
from equipoise.kernels.trace import Trace, is_tracing, trace_of


def kinds(trace: Trace) -> list[str]:
    return [type(node.layer).__name__ for node in trace.nodes[1:]]


def replayed(trace: Trace, x: Tensor) -> Tensor:
    """The network again, from its layers alone."""
    outputs: list[Tensor] = []
    for node in trace.nodes:
        given, layer = [outputs[parent] for parent in node.parents], node.layer
        if layer is None:
            out = x
        elif isinstance(layer, layers.Convolution):
            out = F.conv2d(
                given[0], layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
            )
        elif isinstance(layer, layers.Linear):
            out = F.linear(given[0], layer.weight, layer.bias)
        elif isinstance(layer, layers.RunningNorm):
            out = F.batch_norm(given[0], layer.mean, layer.variance, layer.weight, layer.bias, eps=layer.eps)
        elif isinstance(layer, layers.Rectifier):
            out = F.leaky_relu(given[0], layer.slope)
        elif isinstance(layer, layers.MaxPool):
            out = F.max_pool2d(given[0], layer.kernel, layer.stride, layer.padding, layer.dilation)
        elif isinstance(layer, layers.Function):
            out = layer.apply(given[0])
        elif isinstance(layer, layers.Product):
            out = given[0] * given[1]
        elif isinstance(layer, layers.Concatenation):
            out = torch.cat(given, layer.dim + 1)
        elif isinstance(layer, layers.Reshape):
            out = given[0].reshape(len(x), *node.shape)
        elif isinstance(layer, layers.Sum):
            out = sum(sign * term for sign, term in zip(layer.signs, given, strict=True))
        elif isinstance(layer, layers.Shift):
            out = layer.signs[0] * given[0] + layer.signs[1] * layer.constant
        elif isinstance(layer, layers.Scale):
            out = given[0] / layer.factor if layer.divides else given[0] * layer.factor
        else:
            assert isinstance(layer, layers.Negation), layer
            out = -given[0]
        assert out.shape[1:] == node.shape
        assert layer is None or torch.allclose(out, output_of(layer, *given), rtol=1e-6)
        outputs.append(out)
    assert trace.output is not None
    return outputs[trace.output]


@pytest.mark.parametrize(
    "name, shape",
    [("lenet", (1, 28, 28)), ("cnn4", (1, 28, 28)), ("small-cnn", (3, 17, 16)), ("mlp", (1, 9, 9))]
    + [(name, (3, 32, 32)) for name in ("resnet20", "preact-resnet18")],
)
def test_the_layers_are_the_network(name, shape):
    net = nets.build(name, shape, classes=4, seed=0).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    x = torch.rand(5, *shape, generator=torch.Generator().manual_seed(0))
    trace = trace_of(net, x)
    assert trace.unknown is None and torch.allclose(replayed(trace, x), net(x), atol=1e-5)
    assert all(node.is_differentiable for node in trace.nodes)


class Of(nn.Module):
    """A network as a function of itself and its input."""

    def __init__(self, function) -> None:
        super().__init__()
        self.linear, self.conv, self.kept = nn.Linear(16, 3), nn.Conv2d(1, 1, 3, padding=1), None
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def in_place(net, x):
    h = net.conv(x)
    h += x
    h.relu_().mul_(2)
    return net.linear(h.flatten(1))


def through_a_view(net, x):
    h = net.conv(x)
    h.flatten(1).mul_(2)
    return net.linear(h.flatten(1))


def joined(net, x):
    h = F.silu(torch.cat([net.conv(x), x, x.clamp(0.2, 0.6)], dim=-3), inplace=True)
    gate = h.mean((2, 3), keepdim=True).sigmoid_()
    return net.linear((h * gate).mean(1).flatten(1))


def by_value(net, x):
    h = net.conv(x)
    return net.linear((h if h.tolist()[0][0][0][0] > 0 else -h).flatten(1))


KNOWN = {
    "a residual block": (lambda net, x: net.linear((1 - x + net.conv(x)).relu().flatten(1)),
                         ["Shift", "Convolution", "Sum", "Rectifier", "Reshape", "Linear"]),
    "in place": (in_place, ["Convolution", "Sum", "Rectifier", "Scale", "Reshape", "Linear"]),
    "dropout": (lambda net, x: net.linear(F.dropout(x, training=False).flatten(1)), ["Reshape", "Linear"]),
    "keywords": (lambda net, x: F.linear(input=x.flatten(1) / 2 - 1, weight=net.linear.weight),
                 ["Reshape", "Scale", "Shift", "Linear"]),
    "joined": (joined, ["Convolution", "Pointwise", "Concatenation", "Pointwise", "Average", "Pointwise", "Product",
                        "Average", "Reshape", "Linear"]),
    "other numbers": (lambda net, x: net.linear((x - torch.tensor(3, dtype=torch.uint8)).flatten(1)),
                      ["Shift", "Reshape", "Linear"]),
    "probabilities": (lambda net, x: F.softmax(net.linear(x.flatten(1)), dim=-1).clamp_min(1e-9).log(),
                      ["Reshape", "Linear", "Samplewise", "Pointwise", "Pointwise"]),
    "means": (lambda net, x: -net.conv(x).mean((2, 3)), ["Convolution", "Average", "Negation"]),
    "a part of no effect": (lambda net, x: (net.conv(x), net.linear(x.flatten(1)))[1],
                            ["Convolution", "Reshape", "Linear"]),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_every_function_of_the_input_is_a_layer(name):
    function, expected = KNOWN[name]
    net, x = Of(function).eval(), torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    trace = trace_of(net, x)
    assert kinds(trace) == expected and torch.allclose(replayed(trace, x), net(x), atol=1e-6)


def an_accumulator(net, x):
    total = torch.ones(16)
    h = x.flatten(1) + total
    total += 1
    return net.linear(h * total)


UNKNOWN = {
    "constants that change": (an_accumulator, "changes a weight or a constant after it was used"),
    "pooling without channels": (lambda net, x: net.linear(F.max_pool2d(x[:, 0], 1).flatten(1)), "__getitem__()"),
    "pooling of single images": (lambda net, x: net.linear(F.max_pool2d(net.conv(x).mean(1), 1).flatten(1)),
                                 "pools single images"),
    "cumsum": (lambda net, x: net.linear(x.flatten(1)).cumsum(1), "cumsum() is none of"),
    "softmax over samples": (lambda net, x: net.linear(x.flatten(1)).softmax(0), "softmax() mixes samples"),
    "weights from the input": (lambda net, x: F.linear(torch.ones(2, 16), x.flatten(1)), "linear()"),
    "a stride in a tuple": (lambda net, x: F.conv2d(x, net.conv.weight, stride=(1,)).flatten(1), "one number or two"),
    "a view in between": (through_a_view, "changed in place through a view"),
    "looks at values": (by_value, "tolist() looks at values"),
    "mixes samples": (lambda net, x: net.linear((x - x.mean()).flatten(1)), "mean() mixes samples"),
    "other samples": (lambda net, x: net.linear((x.flip(0) + x).flatten(1)), "flip() is none of"),
    "a part": (lambda net, x: net.linear(x.flatten(1))[:, :2], "__getitem__()"),
    "its own dropout": (lambda net, x: F.dropout(net.linear(x.flatten(1)), training=True), "its dropout stays on"),
    "another precision": (lambda net, x: net.linear(x.flatten(1)).double(), "double() changes the precision"),
    "a product of other shapes": (lambda net, x: F.avg_pool2d(x, (4, 2)).flatten(1) * x.mean((1, 2, 3)), "different"),
    "a mean of samples": (lambda net, x: F.avg_pool2d(x, (4, 2)).flatten(1).mean(0), "mean() mixes samples"),
    "joined with a constant": (lambda net, x: torch.cat([net.linear(x.flatten(1)), torch.ones(2, 1)], 1), "and other"),
    "joined samples": (lambda net, x: net.linear(torch.cat([x, x]).flatten(1)), "mixes samples"),
    "bounds by pixels": (lambda net, x: net.linear(x.clamp(max=torch.ones(4)).flatten(1)), "arguments of clamp()"),
    "constants of a batch": (lambda net, x: net.linear(x.flatten(1)) + torch.arange(2.0)[:, None], "other samples"),
    "several results": (lambda net, x: net.linear(x.flatten(1)).chunk(3, 1)[0], "chunk() returns more than a tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_no_layer_says_so(name):
    function, reason = UNKNOWN[name]
    trace = trace_of(Of(function).eval(), torch.rand(2, 1, 4, 4))
    assert trace.unknown is not None and isinstance(trace.unknown.layer, Unknown)
    assert reason in trace.unknown.layer.reason


def test_rows_that_are_joined_are_no_members_of_an_ensemble():
    """Of two images of two channels, watched for two samples, the output is as large as that of two members."""
    trace = trace_of(lambda x: torch.cat([x, x.relu()], 2), torch.rand(3, 2, 4, 4))
    assert kinds(trace) == ["Rectifier", "Concatenation"] and trace.nodes[2].shape == (2, 8, 4)


def test_what_follows_the_unknown_is_unknown():
    trace = trace_of(Of(lambda net, x: net.linear(x.flatten(1).cumsum(1)).relu()).eval(), torch.rand(2, 1, 4, 4))
    assert kinds(trace) == ["Reshape", "Unknown", "Unknown", "Unknown"]
    assert trace.output == 4


def test_a_network_whose_output_is_another_has_none():
    trace = trace_of(Of(lambda net, x: (net.conv(x), torch.zeros(len(x), 3))[1]).eval(), torch.rand(2, 1, 4, 4))
    assert trace.output is None and trace.unknown is None


def test_gradients_that_do_not_pass_are_noted():
    def detached(net, x):
        with torch.no_grad():
            h = net.conv(x)
        return net.linear((h + x).detach().flatten(1))

    trace = trace_of(Of(detached).eval(), torch.rand(2, 1, 4, 4))
    assert [(type(node.layer).__name__, node.is_differentiable) for node in trace.nodes[1:]] == [
        ("Convolution", False), ("Sum", True), ("Reshape", False), ("Reshape", False), ("Linear", True),
    ]  # fmt: skip


def test_a_node_says_which_layer_it_is():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    trace = trace_of(net, torch.rand(1, 1, 4, 4), net)
    assert [node.where for node in trace.nodes[1:]] == [
        "a Conv2d layer at '0'", "a ReLU layer at '1'", "a Flatten layer at '2'", "a Linear layer at '3'",
    ]  # fmt: skip
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_lower_precision_is_that_of_autocast_alone():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).eval()
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        trace = trace_of(lambda z: net(z).float(), x)
        assert kinds(trace) == ["Convolution", "Rectifier", "Reshape", "Linear"]
        assert trace.logits.dtype == torch.float32 and torch.equal(replayed(trace, x), net(x))
    trace = trace_of(lambda z: net.bfloat16()(z.bfloat16()), x)
    assert isinstance(trace.nodes[1].layer, Unknown) and trace.output is not None


def test_who_is_watched_can_know_it():
    seen = []
    trace_of(lambda z: seen.append(is_tracing()) or z, torch.rand(2, 3))
    with pytest.raises(ZeroDivisionError):
        trace_of(lambda z: z / (1 // 0), torch.rand(2, 3))
    assert seen == [True] and not is_tracing()


def test_weights_are_the_networks_own_and_the_input_is_left_alone():
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.rand(3, 1, 2, 2)
    before = x.clone()
    with torch.no_grad():
        last = trace_of(nn.Sequential(nn.ReLU(inplace=True), net), x).nodes[-1].layer
    assert isinstance(last, layers.Linear) and last.weight is net[1].weight and torch.equal(x, before)


def test_channels_side_by_side_are_no_members():
    """With two samples they have the shape of the logits of two networks."""
    net = Of(lambda net, x: net.linear(torch.cat([net.conv(x), -net.conv(x)], 1).mean(1).flatten(1)))
    assert "Concatenation" in kinds(trace_of(net.eval(), torch.rand(5, 1, 4, 4)))
    binary = Of(lambda net, x: torch.cat([net.linear(x.flatten(1))[:, :1].mean(1, keepdim=True)] * 2, 1))
    assert "Members" not in kinds(trace_of(binary.eval(), torch.rand(5, 1, 4, 4)))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_the_mode_of_autograd_around_is_of_no_consequence(mode):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    with mode():
        x = torch.rand(2, 1, 4, 4)
        trace, learns = trace_of(net, x), torch.is_grad_enabled()
    assert kinds(trace) == ["Convolution", "Rectifier", "Reshape", "Linear"]
    assert all(node.is_differentiable == learns for node in trace.nodes)

"""Networks for the native kernels, and the comparison with PyTorch in float64."""

import copy

import torch
from torch import Tensor, nn

from equipoise.attacks.execution import frozen_model
from equipoise.core.rng import Streams
from equipoise.kernels.native import NativeForward
from equipoise.models import as_predictive


def network(*layers: nn.Module, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(*layers)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.3)
    return net.eval()


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def natively(net: nn.Module, x: Tensor, grad: Tensor | None = None) -> tuple[Tensor, Tensor | None, bool]:
    """Logits, their gradient along `grad`, and whether it was the kernels that found them."""
    with frozen_model(as_predictive(net), x) as draw:
        predict = draw(Streams.of(0, torch.arange(len(x))))
        at = x.clone().requires_grad_(grad is not None)
        with torch.set_grad_enabled(grad is not None):
            logits = predict(at).logits[0]
        found = None if grad is None else torch.autograd.grad(logits, at, grad)[0]
        return logits.detach(), found, isinstance(predict, NativeForward) and predict.is_supported


def close(found: Tensor, exact: Tensor) -> bool:
    return torch.allclose(found.double(), exact, rtol=0, atol=2e-5 * float(exact.abs().max()) + 1e-12)


def is_right(net: nn.Module, x: Tensor) -> bool:
    """Whether the kernels take the network, find what PyTorch finds in float64, and give its gradient.

    Where rounding decides which pixel is the largest, or whether a number is positive, the gradients may differ: there
    are none of these, as what decides is far from 0.
    """
    exact = copy.deepcopy(net).double()
    at = x.double().requires_grad_()
    expected = exact(at)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (slope,) = torch.autograd.grad(expected, at, grad.double())
    logits, found, native = natively(net, x, grad)
    assert found is not None
    return native and close(logits, expected.detach()) and close(found, slope)


def shifted(norm):
    """Batch-norm with statistics, factors and constants as after training."""
    g = torch.Generator().manual_seed(0)
    for tensor in (norm.running_mean, norm.bias.data):
        tensor.normal_(0, 0.5, generator=g)
    for tensor in (norm.running_var, norm.weight.data):
        tensor.uniform_(0.5, 2, generator=g)
    return norm


class Residual(nn.Module):
    """`rectifier(branch(x) ± shortcut(x))`, with the shortcut before the branch or behind it, in place or not."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, kind: str = "") -> None:
        super().__init__()
        self.branch, self.shortcut, self.kind = branch, shortcut, kind

    def forward(self, x: Tensor) -> Tensor:
        """Features."""
        if "late" in self.kind:
            h = self.branch(x)
            total = h + self.shortcut(x)
        else:
            skip = self.shortcut(x)
            h = self.branch(x)
            total = skip - h if "less" in self.kind else h.add_(skip) if "place" in self.kind else h + skip
        total = total if "three" not in self.kind else total + 0.5 * self.shortcut(x)
        return total if "linear" in self.kind else torch.relu_(total)


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size, but for the stride."""
    return nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, groups, bias=False)


def norm(channels: int) -> nn.Module:
    """Batch-norm with other factors and constants in every layer, and the statistics of the last batch."""
    layer = nn.BatchNorm2d(channels, momentum=1.0)
    nn.init.normal_(layer.bias, std=0.3)
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    return layer


def block(kind: str, inputs: int, outputs: int) -> nn.Module:
    """A block of a residual network, or of one with groups, dilations and what else needs a layer of its own."""
    half = max(inputs // 2, 1)
    plain = nn.Sequential(conv(inputs, outputs), norm(outputs), nn.ReLU(), conv(outputs, outputs), norm(outputs))
    skip = nn.Sequential(conv(inputs, outputs, 1), norm(outputs))
    built = {
        "identity": lambda: Residual(nn.Sequential(conv(inputs, inputs), nn.LeakyReLU(0.1), conv(inputs, inputs, 1)),
                                     nn.Identity()),
        "projection": lambda: Residual(plain, skip, "in place"),
        "late": lambda: Residual(plain, skip, "late"),
        "less": lambda: Residual(plain, nn.Sequential(norm(inputs), conv(inputs, outputs, 1)), "less"),
        "three": lambda: Residual(plain, skip, "three"),
        "strided": lambda: Residual(
            nn.Sequential(conv(inputs, outputs, 3, 2), nn.ReLU(inplace=True), conv(outputs, outputs)),
            conv(inputs, outputs, 1, 2), "linear",
        ),
        "pre-activated": lambda: Residual(
            nn.Sequential(norm(inputs), nn.ReLU(), conv(inputs, half), norm(half), nn.ReLU(inplace=True),
                          conv(half, inputs)),
            nn.Identity(), "linear",
        ),
        "twice itself": lambda: Residual(nn.Identity(), nn.Identity(), "linear late"),
        "of the norm": lambda: nn.Sequential(norm(inputs), Residual(conv(inputs, inputs), nn.Identity())),
        "of a rectifier": lambda: nn.Sequential(nn.ReLU(), Residual(nn.Identity(), conv(inputs, inputs))),
        "pooled": lambda: Residual(
            nn.Sequential(conv(inputs, outputs), nn.MaxPool2d(2)),
            nn.Sequential(nn.MaxPool2d(2), conv(inputs, outputs, 1)),
        ),
        "depthwise": lambda: nn.Sequential(conv(inputs, inputs, groups=inputs), norm(inputs), nn.ReLU(),
                                           conv(inputs, outputs, 1)),
        "groups": lambda: nn.Sequential(conv(inputs, 2 * inputs, groups=inputs), nn.ReLU(),
                                        conv(2 * inputs, outputs, 5, groups=2 if outputs % 2 == 0 else 1)),
        "dilated": lambda: Residual(conv(inputs, outputs, 3, dilation=2), conv(inputs, outputs, 1)),
        "dilated, strided": lambda: nn.Sequential(conv(inputs, outputs, 3, 2, dilation=3), nn.ReLU()),
        "dilated groups": lambda: nn.Sequential(conv(inputs, 2 * inputs, 3, 1, inputs, 2), nn.ReLU(),
                                                conv(2 * inputs, outputs)),
        "pools": lambda: nn.Sequential(
            nn.Conv2d(inputs, outputs, 2, padding=1), nn.MaxPool2d(2), norm(outputs), nn.ReLU(), conv(outputs, outputs)
        ),
    }  # fmt: skip
    return built[kind]()


BLOCKS = (
    *("identity", "projection", "late", "less", "three", "strided", "pre-activated", "twice itself", "of the norm"),
    *("of a rectifier", "pooled", "depthwise", "groups", "dilated", "dilated, strided", "dilated groups", "pools"),
)


def residual_network(
    kinds: list[str], channels: list[int], shape: tuple[int, int, int], flat: bool, seed: int
) -> nn.Module:
    """These blocks between a convolution and a linear layer of all pixels, or of their means; logits of size 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers, x = [conv(shape[0], channels[0]), norm(channels[0]), nn.ReLU()], torch.rand(64, *shape)
        for kind, outputs in zip(kinds, channels[1:], strict=False):
            width = nn.Sequential(*layers)(x).shape[1]
            layers.append(block(kind, width, outputs))
        layers += [nn.Flatten()] if flat else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        for layer in nn.Sequential(*layers).modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
        features = nn.Sequential(*layers)(x)
        net = nn.Sequential(*layers, linear := nn.Linear(features.shape[1], 4)).eval()
        with torch.no_grad():
            linear.weight /= net(x).std(0).mean() + 1e-3
        return net

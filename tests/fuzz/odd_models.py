"""Classifiers as odd as people bring them, each with one peculiarity, for inputs of any shape."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Exact(nn.Module):
    """Two layers by sums over the last dimension, whose rounding does not depend on the size of a batch."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.randn(6, features) / math.sqrt(features))
        self.outer = nn.Parameter(torch.randn(classes, 6))
        self.offset = nn.Parameter(0.1 * torch.randn(classes))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh((x.flatten(1)[:, None] * self.inner).sum(-1))
        return (hidden[:, None] * self.outer).sum(-1) + self.offset


def perceptron(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 8), nn.ReLU(), nn.Linear(8, classes))


def convolutional(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A convolutional network where the input has a height and a width, else a perceptron."""
    if len(shape) < 3:
        return perceptron(shape, classes)
    channels, height, width = shape
    net = nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(4 * height * width, classes),
    )  # fmt: skip
    net[1].running_mean.normal_(0, 0.1)
    return net


class Scaled(nn.Module):
    """The range of the inputs mapped to [-1, 1], and a peculiarity on either side of a network."""

    def __init__(
        self,
        net: nn.Module,
        box: tuple[float, float],
        before: Callable[[Tensor], Tensor] | None = None,
        after: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after
        self.middle, self.radius = (box[0] + box[1]) / 2, (box[1] - box[0]) / 2

    def forward(self, x: Tensor) -> Tensor:
        if self.before is not None:
            x = self.before(x)
        scaled = (x - self.middle) / self.radius
        z = self.net(scaled)
        return z if self.after is None else self.after(z, scaled)


class Checkpointed(nn.Module):
    """A network that computes its activations again in the backward pass."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.net, x, use_reentrant=False)


def _nan_where_bright(z: Tensor, x: Tensor) -> Tensor:
    return torch.where((x.flatten(1).mean(1) > 0)[:, None], math.nan, z)


def _nan_gradient(z: Tensor, x: Tensor) -> Tensor:
    return z + 0 * (x * 0).sqrt().flatten(1).sum(1, keepdim=True)


def _in_place(x: Tensor) -> Tensor:
    return x.mul_(1.0)


def _last(z: Tensor, value: float) -> Tensor:
    return torch.cat([z[:, :-1], torch.full_like(z[:, -1:], value)], 1)


AFTER: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "huge logits": lambda z, x: 1e6 * z,
    "tiny logits": lambda z, x: 1e-6 * z,
    "logits plus a constant": lambda z, x: z + 1000,
    "absent class": lambda z, x: _last(z, -1e9),
    "infinitely absent class": lambda z, x: _last(z, -math.inf),
    "NaN on some": _nan_where_bright,
    "NaN on all": lambda z, x: z * math.nan,
    "NaN gradient": _nan_gradient,
    "coupled": lambda z, x: z + 0.5 * z.mean(0),
    "random": lambda z, x: F.dropout(z, 0.3, training=True),
    "one class only": lambda z, x: z + 1000 * F.one_hot(torch.zeros_like(z[:, 0], dtype=torch.int64), z.shape[1]),
    "constant": lambda z, x: 0 * z + 0.3 * torch.arange(1, z.shape[1] + 1, dtype=z.dtype),
    "ties everywhere": lambda z, x: 0 * z,
    "twin classes": lambda z, x: torch.cat([z[:, :1], z[:, :1], z[:, 2:]], 1),
    "probabilities": lambda z, x: z.softmax(1),
    "squeezed": lambda z, x: z.squeeze(),
    "no gradient": lambda z, x: z.detach(),
    "one output": lambda z, x: z[:, :1],
    "a tuple": lambda z, x: (z, x),  # pyright: ignore[reportReturnType]
}

KINDS = (
    "exact", "exact huge logits", "perceptron", "convolutional", "in place", "checkpointed", "weight norm",
    "hooked", "frozen", "half precision", "rounded inputs", *AFTER,
)  # fmt: skip

MAY_BE_REFUSED = {
    "NaN on all", "coupled", "no gradient", "one output", "squeezed", "half precision", "probabilities",
}  # fmt: skip
"""Kinds that an attack may decline, in one sentence: their outputs are no logits of each sample by itself."""
EXACT = ("exact", "exact huge logits", "rounded inputs", "in place")
"""Kinds whose outputs for a sample do not depend, not even by rounding, on the batch that it comes in."""


def logits_in(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The logits in what a model returns: the first of several tensors; of one column z those of two classes."""
    z = output[0] if isinstance(output, tuple) else output
    return torch.cat([-z / 2, z / 2], 1) if z.ndim == 2 and z.shape[1] == 1 else z


def build(kind: str, shape: tuple[int, ...], classes: int, box: tuple[float, float], seed: int) -> nn.Module:
    """The classifier of a kind, in eval mode and float32."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind in EXACT:
            net = Exact(math.prod(shape), classes)
        else:
            make = perceptron if kind in ("perceptron", "weight norm") else convolutional
            net = make(shape, classes)
    match kind:
        case "in place":
            return Scaled(net, box, before=_in_place).eval()
        case "rounded inputs":
            return Scaled(net, box, before=torch.round).eval()
        case "checkpointed":
            net = Checkpointed(net)
        case "weight norm":
            torch.nn.utils.parametrizations.weight_norm(net[1])  # pyright: ignore[reportIndexIssue]
        case "hooked":
            net.register_forward_hook(lambda module, inputs, output: 2 * output)
        case "frozen":
            net.requires_grad_(False)
        case "half precision":
            net = net.half()
        case "exact huge logits":
            return Scaled(net, box, after=AFTER["huge logits"]).eval()
        case _:
            pass
    return Scaled(net, box, after=AFTER.get(kind)).eval()

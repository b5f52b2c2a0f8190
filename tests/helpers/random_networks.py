"""Small random networks, each a function of its seed: of layers that a trace knows, and with something else in them."""

import random
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from equipoise.nets import Normalize

CLASSES = 4


class Does(nn.Module):
    """A function of what a module computes and of its input, or of the input alone."""

    def __init__(self, function: Callable[..., Tensor], *inner: nn.Module) -> None:
        super().__init__()
        self.function, self.inner = function, nn.ModuleList(inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(*(inner(x) for inner in self.inner), *[x] * (len(self.inner) < 2))


def pair(rng: random.Random, *values: int) -> tuple[int, int]:
    return rng.choice(values), rng.choice(values)


def convolution(rng: random.Random, channels: int, plain: bool) -> nn.Module:
    kernel, filters = pair(rng, 1, 2, 3, 3), rng.choice([2, 3, 4, 6])
    padding = tuple(rng.randrange(k) for k in kernel)
    options = {"stride": pair(rng, 1, 1, 2), "padding": padding, "bias": rng.random() < 0.7}
    if not plain and rng.random() < 0.4:
        options |= rng.choice([{"dilation": pair(rng, 1, 2)}, {"groups": channels}, {"padding": pair(rng, 0, 2, 3)}])
    filters *= options.get("groups", 1)
    return nn.Conv2d(channels, filters, kernel, **options)


def rectifier(rng: random.Random) -> nn.Module:
    return rng.choice([nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.2), nn.LeakyReLU(0.05, inplace=True)])


def norm(of: type, channels: int) -> nn.Module:
    """Batch-norm as after training."""
    layer = of(channels)
    for tensor in (layer.running_mean, layer.bias.data):
        tensor.normal_(0, 0.3)
    for tensor in (layer.running_var, layer.weight.data):
        tensor.uniform_(0.5, 1.5)
    return layer


def pool(rng: random.Random, plain: bool) -> nn.Module:
    window = pair(rng, 1, 2, 2, 3)
    if plain:
        return nn.MaxPool2d(window)
    return rng.choice([
        nn.MaxPool2d(window),
        nn.MaxPool2d(2, 1),
        nn.MaxPool2d(3, 2, padding=1),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(2, 1, dilation=2),
        nn.AvgPool2d(window),
        nn.AvgPool2d(3, 1, padding=1, count_include_pad=rng.random() < 0.5),
        nn.AdaptiveAvgPool2d(pair(rng, 1, 2, 3)),
    ])  # fmt: skip


def block(rng: random.Random, channels: int) -> nn.Module:
    """Something with several paths through it."""

    def conv(filters: int = channels) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, filters, 3, padding=1), rectifier(rng))

    return rng.choice([
        Does(lambda h, x: h + x, conv()),
        Does(lambda h, x: (x - h).relu(), conv()),
        Does(lambda h, g: torch.cat([h, g], 1), conv(2), conv(3)),
        Does(lambda h, x: torch.cat([x, h], dim=-2), conv()),
        Does(lambda h, x: x * h.mean((2, 3), keepdim=True), conv()),
        Does(lambda h, x: h * torch.sigmoid(x), conv()),
        Does(lambda x: F.silu(x)),
        Does(lambda x: torch.tanh(x)),
    ])  # fmt: skip


def arithmetic(rng: random.Random) -> nn.Module:
    return rng.choice([
        Does(lambda x: 2 * x - 1), Does(lambda x: 1 - x), Does(lambda x: -x / 0.7), Does(lambda x: (x + 0.1) * 1.5),
    ])  # fmt: skip


class Grown:
    """Layers on layers; those for which the image has become too small are left out."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.layers: list[nn.Module] = []
        self.x = torch.zeros(2, *shape)

    @property
    def width(self) -> int:
        """Channels, or features."""
        return self.x.shape[1]

    def add(self, layer: nn.Module) -> None:
        with suppress(RuntimeError):
            self.x = layer.eval()(self.x.clone())
            self.layers.append(layer)


def chain(rng: random.Random, shape: tuple[int, ...], plain: bool) -> list[nn.Module]:
    """Layers from images to logits; `plain` ones follow each other, and are of the kinds that the C kernels compute."""
    net = Grown(shape)
    if rng.random() < 0.3:
        net.add(rng.choice([Normalize([0.4] * net.width, [0.3] * net.width), arithmetic(rng)]))
    for _ in range(rng.randint(1, 3)):
        if not plain and rng.random() < 0.4:
            net.add(block(rng, net.width))
            continue
        net.add(convolution(rng, net.width, plain))
        if rng.random() < 0.4:
            net.add(norm(nn.BatchNorm2d, net.width))
        after = [rectifier(rng), *[pool(rng, plain)] * (rng.random() < 0.5)]
        for layer in rng.sample(after, len(after)):
            net.add(layer)
        if rng.random() < 0.2:
            net.add(nn.Dropout2d())
    if rng.random() < 0.2:
        net.add(rng.choice([nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d((2, 1))]))
    net.add(
        rng.choice(
            [nn.Flatten(), Does(lambda x: x.reshape(len(x), -1)), Does(lambda x: x.contiguous().view(len(x), -1))]
        )
    )
    if rng.random() < 0.3:
        net.add(norm(nn.BatchNorm1d, net.width))
    if rng.random() < 0.5:
        for layer in (nn.Linear(net.width, 6), rectifier(rng), nn.Dropout()):
            net.add(layer)
    net.add(nn.Linear(net.width, CLASSES))
    if rng.random() < 0.3:
        net.add(arithmetic(rng))
    return net.layers


class Twice(torch.autograd.Function):
    """The identity, with twice its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Trick(nn.Module):
    """A function of a tensor that may use what the module remembers."""

    def __init__(self, function: Callable[["Trick", Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.scale, self.table = nn.Parameter(torch.tensor([1.3])), nn.Parameter(torch.randn(4, 6))
        self.square, self.square3 = nn.Linear(3, 3), nn.Conv2d(1, 1, 3, padding=1)
        self.register_buffer("level", torch.ones(1))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def column(values: Tensor, like: Tensor) -> Tensor:
    """One number per sample, to be broadcast over it."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def detour(trick: Trick, h: Tensor) -> Tensor:
    return h.double().sin().to(h.dtype)


def unfollowed(trick: Trick, h: Tensor) -> Tensor:
    with torch.no_grad():
        gate = h.tanh()
    return h * gate


def part_written(trick: Trick, h: Tensor) -> Tensor:
    h = h.clone()
    h[:, 0] = 0.5 * h[:, -1].detach()
    return h


def through_a_view(trick: Trick, h: Tensor) -> Tensor:
    h = h.clone()
    h.flatten(1)[:, ::2].mul_(2)
    return h


def in_place(trick: Trick, h: Tensor) -> Tensor:
    h = h.clone()
    h.mul_(2).add_(1)
    h -= 0.5
    return h


def accumulated(trick: Trick, h: Tensor) -> Tensor:
    total = torch.ones_like(h[:1])
    h = h + total
    total += 1
    return h * total


def hooked(trick: Trick, h: Tensor) -> Tensor:
    h = h * 1
    if h.requires_grad:
        h.register_hook(lambda grad: 3 * grad)
    return h


def counting(trick: Trick, h: Tensor) -> Tensor:
    trick.calls += 1
    trick.level.copy_(h.detach().mean())
    return h


def level(trick: Trick, h: Tensor) -> Tensor:
    trick.level.fill_(h.shape[0] / 5)
    return h * trick.level


def convolved(trick: Trick, h: Tensor) -> Tensor:
    """The same kernel again and again, of every channel."""
    if h.ndim != 4:
        return h + trick.square.bias.sum()
    flat = h.flatten(0, 1)[:, None]
    return trick.square3(trick.square3(flat).relu())[:, 0].unflatten(0, h.shape[:2])


TRICKS: dict[str, Callable[[Trick, Tensor], Tensor]] = {
    "a branch on values": lambda t, h: h * 2 if h.sum() > 0 else -h,
    "an item": lambda t, h: h * (1 + h.detach().mean().item()),
    "a number of python": lambda t, h: h + float(h.detach().max()),
    "a branch by sample": lambda t, h: torch.where(column(h.flatten(1).mean(1), h) > 0.2, h, -h),
    "a gradient of its own": lambda t, h: Twice.apply(h),
    "another precision": detour,
    "a detached part": lambda t, h: h + 0.5 * h.detach(),
    "no gradient in part": unfollowed,
    "a mask": lambda t, h: h * (h > 0.1),
    "one of two": lambda t, h: torch.where(h > 0, h, 0.3 * h),
    "sorted": lambda t, h: h.sort(-1).values,
    "largest first": lambda t, h: h.flatten(1).topk(h[0].numel(), 1).values.reshape(h.shape),
    "mirrored": lambda t, h: h.flip(-1),
    "a part": lambda t, h: h[:, :1] + h,
    "a part is written": part_written,
    "in place": in_place,
    "in place by a view": through_a_view,
    "a constant that changes": accumulated,
    "a hook on a gradient": hooked,
    "counting": counting,
    "the size of the batch": lambda t, h: h * (len(h) / 5),
    "the size of the batch in a buffer": level,
    "the whole batch": lambda t, h: h - h.mean(0, keepdim=True),
    "other samples": lambda t, h: h + 0.5 * h.flip(0),
    "sums": lambda t, h: h.cumsum(1),
    "einsum": lambda t, h: torch.einsum("b...,b->b...", h, h.flatten(1).mean(1)),
    "pieces": lambda t, h: torch.cat(h.chunk(2, 1)[::-1], 1),
    "sample by sample": lambda t, h: torch.stack([sample * 2 for sample in h]),
    "computed again": lambda t, h: checkpoint(torch.tanh, h, use_reentrant=False),
    "a vectorised map": lambda t, h: torch.vmap(lambda s: s / (1 + s.square().sum()))(h),
    "another order in memory": lambda t, h: h.transpose(1, -1).contiguous().transpose(1, -1) * 1.1,
    "expanded": lambda t, h: h[:, :1].expand_as(h) + h,
    "numbers of numpy": lambda t, h: h + torch.from_numpy(np.linspace(0, 1, h.shape[-1])).to(h.dtype),
    "a weight made anew": lambda t, h: h * t.scale.exp(),
    "part of a weight": lambda t, h: h * t.table[1, ::3][:1],
    "one weight for all": lambda t, h: h * t.scale[0],
    "less the largest": lambda t, h: h - h.flatten(1).amax(1).reshape(-1, *[1] * (h.ndim - 1)),
    "a shared kernel": convolved,
    "a normalised sample": lambda t, h: F.layer_norm(h, h.shape[1:]),
    "a product of parts": lambda t, h: h * column(h.flatten(1)[:, 0], h),
    "an index": lambda t, h: h.index_select(1, torch.arange(h.shape[1] - 1, -1, -1)),
    "padded": lambda t, h: F.pad(h, (1, 0), value=0.3)[..., :-1],
    "rounded where it is far from it": lambda t, h: h + (100 * h.detach()).round() / 1e4,
}
"""What is inserted between two layers. Shapes stay."""


def hook_on(layers: list[nn.Module], rng: random.Random, kind: str) -> None:
    layer = rng.choice(layers)
    match kind:
        case "a hook on an output":
            layer.register_forward_hook(lambda module, args, out: 1.5 * out)
        case "a hook on an input":
            layer.register_forward_pre_hook(lambda module, args: (args[0] * 0.8 + 0.1,))
        case "a hook on what goes back":
            layer.register_full_backward_hook(lambda module, grads, outputs: (2 * grads[0],))
        case _:
            layer.register_full_backward_pre_hook(lambda module, outputs: (0.5 * outputs[0],))


HOOKS = ("a hook on an output", "a hook on an input", "a hook on what goes back", "a hook before what goes back")


class Functional(nn.Module):
    """Calls its layers with weights of the moment."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self.net, {name: 1.1 * weight for name, weight in self.net.named_parameters()}, (x,))


class Overwriting(nn.Sequential):
    """Writes over its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(1.5))


class Described(nn.Sequential):
    """Returns an object with logits."""

    def forward(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=super().forward(x), hidden=x)


class Branching(nn.Sequential):
    """Has more layers for images that are bright on the whole."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out.relu() if bool(x.mean() > 0.2) else out


def normalized(*layers: nn.Module) -> nn.Module:
    """With kernels of unit norm, computed in every call."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            parametrizations.weight_norm(layer)
    return nn.Sequential(*layers)


class Tied(nn.Module):
    """Uses its last weight twice more, once transposed."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net, self.last = nn.Sequential(*layers), nn.Linear(CLASSES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.last(self.last(self.net(x)).relu()), self.last.weight.T, self.last.bias)


WHOLES: dict[str, Callable[..., nn.Module]] = {
    "weights of the moment": Functional,
    "its input is written over": Overwriting,
    "an object with logits": Described,
    "a branch on the input": Branching,
    "normalised weights": normalized,
    "tied weights": Tied,
}


def differentiable(net: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The network, not working in place where PyTorch could not go back through it."""
    try:
        out = net.eval()(torch.ones(2, *shape, requires_grad=True) * 0.5)
        (out if isinstance(out, Tensor) else out.logits).sum().backward()
    except RuntimeError:
        for rectifier in net.modules():
            if hasattr(rectifier, "inplace"):
                rectifier.inplace = False
    net.zero_grad()
    return net


def plain_network(seed: int, shape: tuple[int, ...]) -> list[nn.Module]:
    """The members, mostly one, of layers that a trace knows."""
    rng = random.Random(seed)
    plain = rng.random() < 0.6
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        nets = [nn.Sequential(*chain(rng, shape, plain)) for _ in range(rng.choice([1] * 9 + [3]))]
    return [differentiable(net, shape) for net in nets]


def tricky_network(seed: int, shape: tuple[int, ...]) -> tuple[str, nn.Module]:
    """A network with something else in it, and what that is."""
    rng = random.Random(seed)
    kinds = [*TRICKS, *HOOKS, *WHOLES]
    kind = kinds[seed % len(kinds)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = chain(rng, shape, rng.random() < 0.8)
        if kind in TRICKS:
            found.insert(rng.randrange(len(found) + 1), Trick(TRICKS[kind]))
        elif kind in HOOKS:
            hook_on(found, rng, kind)
        return kind, differentiable(WHOLES.get(kind, nn.Sequential)(*found), shape)

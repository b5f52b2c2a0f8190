"""Random networks: what attacks, bounds and windows compute is what plain PyTorch computes in float64.

Five hundred of layers that a trace knows, and five hundred with something else in them. A failure names the seed.
"""

import random
from copy import deepcopy

import pytest
import torch
from random_networks import CLASSES, plain_network, tricky_network
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from equipoise import attacks, certified, methods
from equipoise.attacks.execution import frozen_model, value_and_gradient
from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import Streams
from equipoise.core.types import Predictive
from equipoise.geometry import Ball
from equipoise.kernels.native import NativeForward, compiler
from equipoise.kernels.windowed import WindowedForward
from equipoise.losses.objectives import cross_entropy
from equipoise.models import Ensemble, as_predictive

pytestmark = pytest.mark.unchecked

BLOCKS, SIZE = 20, 25
BATCH, STEP = 5, 0.05
NEAR = 2e-5
"""Closer to a kink, relative to the numbers there, rounding may decide."""


class Kinks(TorchFunctionMode):
    """Notes how close each sample comes to a kink or a jump of what a network computes."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.margin = torch.full((batch,), torch.inf, dtype=torch.float64)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.__name__.strip("_")
        if name in ("relu", "leaky_relu"):
            self.note(args[0], args[0])
        elif name == "gt" and args[0].ndim:
            self.note(args[0] - args[1], args[0])
        elif name in ("sort", "topk", "amax"):
            self.note(args[0].sort(-1).values.diff(dim=-1), args[0])
        elif name == "max_pool2d":
            self.note(self.leads(*args, **kwargs), args[0])
        elif name == "round":
            self.note((args[0] - 0.5).round() - (args[0] - 0.5), torch.ones_like(args[0]))
        return func(*args, **kwargs)

    def note(self, gaps: Tensor, numbers: Tensor) -> None:
        """Gaps of exactly 0 are ties in every precision."""
        gaps, numbers = (values.detach().reshape(len(self.margin), -1) for values in (gaps, numbers))
        gaps = gaps.abs().masked_fill(gaps == 0, torch.inf)
        if gaps.numel():
            size = numbers.abs().amax(1).clamp_min(1e-30)
            self.margin = torch.minimum(self.margin, gaps.amin(1) / size)

    @staticmethod
    def leads(x, kernel_size, stride=None, padding=0, dilation=1, *rest, **options):
        """By how much the largest of each window exceeds the next."""
        sides = [(value, value) if isinstance(value, int) else value for value in (padding, kernel_size)]
        (top, left), (height, width) = sides
        x = F.pad(x.detach(), (left, left + width, top, top + height), value=-1e6)
        windows = F.unfold(x, kernel_size, dilation, stride=stride or kernel_size)
        windows = windows.unflatten(1, (x.shape[1], -1))
        if windows.shape[2] == 1:
            return torch.ones(len(x), 1)
        first, second = windows.topk(2, 2).values.unbind(2)
        return (first - second).masked_fill(second <= -1e5, 0)


def logits_of(members: list[nn.Module], x: Tensor) -> Tensor:
    outputs = [member(x) for member in members]
    return torch.stack([out if isinstance(out, Tensor) else out.logits for out in outputs])


def plainly(members: list[nn.Module], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the gradient of `-log mean softmax`, as PyTorch finds them."""
    at = x.clone().requires_grad_()
    logits = logits_of(members, at.clone())
    log_p = F.log_softmax(logits, -1).logsumexp(0) - torch.tensor(float(len(members))).log()
    (gradient,) = torch.autograd.grad(F.nll_loss(log_p, y, reduction="sum"), at)
    return logits.detach(), gradient


class Exact:
    """A network in float64, and by how much PyTorch misses it in float32."""

    def __init__(self, members: list[nn.Module], x: Tensor, y: Tensor) -> None:
        self.members, kinks = [deepcopy(member).double() for member in members], Kinks(len(x))
        with kinks:
            self.logits, self.gradient = plainly(self.members, x.double(), y)
        self.decided = kinks.margin > NEAR
        logits, gradient = plainly(deepcopy(members), x, y)
        slopes = gradient[self.decided], self.gradient[self.decided]
        self.rounding = self.distance(logits, self.logits), self.distance(*slopes)

    @staticmethod
    def distance(found: Tensor, exact: Tensor) -> float:
        return float((found.double() - exact).abs().max()) if found.numel() else 0.0

    def is_close(self, found: Tensor, exact: Tensor, rounding: float) -> bool:
        size = float(exact.abs().max()) if exact.numel() else 0.0
        return found.shape == exact.shape and self.distance(found, exact) <= 2e-5 * size + 30 * rounding + 1e-12

    def has_logits(self, logits: Tensor) -> bool:
        return self.is_close(logits, self.logits, self.rounding[0])

    def has_gradient(self, gradient: Tensor) -> bool:
        return self.is_close(gradient[self.decided], self.gradient[self.decided], self.rounding[1])


def images(rng: random.Random, shape: tuple[int, ...], seed: int) -> Tensor:
    """A batch, away from the edges of [0, 1], in one of many layouts of memory."""
    g = torch.Generator().manual_seed(seed)
    channels, height, width = shape

    def draw(*size: int) -> Tensor:
        return 0.3 + 0.4 * torch.rand(*size, generator=g)

    return rng.choice([
        lambda: draw(BATCH, *shape),
        lambda: draw(BATCH, *shape),
        lambda: draw(1, *shape),
        lambda: draw(1, *shape).expand(BATCH, *shape),
        lambda: draw(BATCH, channels, width, height).transpose(2, 3),
        lambda: draw(BATCH, *shape).to(memory_format=torch.channels_last),
        lambda: draw(2 * BATCH, channels, height + 2, 2 * width)[::2, :, 1:-1, ::2],
    ])()  # fmt: skip


class Case:
    """A network, images and labels, drawn by a seed."""

    def __init__(self, seed: int, tricky: bool) -> None:
        rng = random.Random(~seed)
        shape = (rng.randint(1, 3), rng.randint(6, 9), rng.randint(6, 9))
        self.seed, self.kind = seed, "plain"
        if tricky:
            self.kind, net = tricky_network(seed, shape)
            self.members = [net]
        else:
            self.members = plain_network(seed, shape)
        self.x = images(rng, shape, seed)
        self.y = torch.randint(CLASSES, (len(self.x),), generator=torch.Generator().manual_seed(seed))

    @property
    def predictive(self) -> Predictive:
        return as_predictive(self.members[0]) if len(self.members) == 1 else Ensemble(self.members)

    def exact(self, x: Tensor | None = None) -> Exact:
        return Exact(self.members, self.x if x is None else x, self.y)

    def change_weights(self) -> None:
        """As an optimiser does, through `.data`, by loading others, or by new parameters."""
        with torch.no_grad():
            for number, layer in enumerate(module for net in self.members for module in net.modules()):
                weight = getattr(layer, "weight", None)
                if type(weight) is not nn.Parameter:
                    continue
                match (self.seed + number) % 4:
                    case 0:
                        weight.mul_(0.8)
                    case 1:
                        weight.data = 1.1 * weight.data
                    case 2:
                        layer.load_state_dict({name: 0.9 * value for name, value in layer.state_dict().items()})
                    case _:
                        layer.weight = nn.Parameter(weight + 0.05)


def see_the_same(case: Case, native: bool = True) -> bool:
    """Prediction and gradient as an attack sees them; whether it was the kernels that found them."""
    exact = case.exact()
    with frozen_model(case.predictive, case.x, native=native) as draw:
        predict = draw(Streams.of(0, torch.arange(len(case.x))))
        with torch.no_grad():
            assert exact.has_logits(predict(case.x.clone()).logits), f"logits without a graph, native={native}"
        _, gradient, here = value_and_gradient(cross_entropy, predict, case.x, None, case.y)
        assert exact.has_logits(here.logits), f"logits, native={native}"
        assert exact.has_gradient(gradient), f"gradient, native={native}"
    return isinstance(predict, NativeForward) and predict.is_supported


def climb_the_same(case: Case) -> None:
    """Two steps of PGD in L2, too short to leave ball or box."""
    attack = attacks.pgd(1.0, STEP, 2, norm="l2", start="zero", return_point="last")
    if case.kind == "its input is written over":
        with pytest.raises(EquipoiseError, match="changes its input in place"):
            attack(case.predictive, case.x, case.y)
        return
    points = attack(case.predictive, case.x, case.y).x
    at, decided, misses = case.x.double(), torch.ones(len(case.x), dtype=torch.bool), 0.0
    for _ in range(2):
        exact = case.exact(at.float())
        length = exact.gradient.flatten(1).norm(dim=1)
        decided &= exact.decided & (length > 1e-4)
        misses += STEP * exact.rounding[1] / float(length.amin().clamp_min(1e-4))
        at = at + STEP * exact.gradient / length.clamp_min(1e-12).reshape(-1, 1, 1, 1)
    assert Exact.distance(points[decided], at[decided]) <= 1e-4 + 30 * misses


def enclose(case: Case) -> None:
    """Bounds hold at random points and corners of the box, or the network is refused by a sentence."""
    g, ball = torch.Generator().manual_seed(case.seed), Ball("linf", 0.05)
    x = case.x.contiguous()
    for method in certified.METHODS:
        try:
            lower, upper = certified.bounds(case.predictive, x, ball, method)
        except EquipoiseError as error:
            assert str(error).endswith(".") and len(str(error)) > 20
            continue
        for number in range(6):
            moves = 2 * torch.rand(x.shape, generator=g) - 1
            points = x + 0.05 * (moves.sign() if number % 2 else moves)
            with torch.no_grad():
                logits = logits_of(case.members, points)[0]
            assert (lower <= logits).all() and (logits <= upper).all(), method


def look_through_a_window(case: Case) -> None:
    """The prediction at images with a changed window."""
    x = case.x.contiguous()
    windowed = WindowedForward.of(case.predictive.draw(), x)
    window, patch = ((1, 3), (2, 5)), torch.rand(len(x), x.shape[1], 2, 3, generator=torch.Generator().manual_seed(1))
    changed = x.clone()
    changed[:, :, 1:3, 2:5] = patch
    with torch.no_grad():
        prediction, _ = windowed.predict(windowed.stages(x), torch.arange(len(x)), patch, window)
    assert case.exact(changed).has_logits(prediction.logits)


def learn_the_same(case: Case) -> None:
    """The gradient of the weights in a training step."""
    g = torch.Generator().manual_seed(case.seed)
    net, x = case.members[0], 0.3 + 0.4 * torch.rand(33, *case.x.shape[1:], generator=g)
    y, exact = torch.randint(CLASSES, (33,), generator=g), deepcopy(net).double()
    methods.standard().loss(net, x.clone(), y, step=0).backward()
    F.cross_entropy(logits_of([exact], x.double())[0], y).backward()
    size = max(float(weight.grad.abs().max()) for weight in exact.parameters() if weight.grad is not None)
    for found, expected in zip(net.parameters(), exact.parameters(), strict=True):
        assert (found.grad is None) == (expected.grad is None)
        assert found.grad is None or Exact.distance(found.grad, expected.grad) <= 1e-3 * size
    net.zero_grad()


def see_the_same_without_kernels(case: Case) -> None:
    see_the_same(case, native=False)


def see_the_same_after_a_change(case: Case) -> None:
    case.change_weights()
    see_the_same(case)


CHECKS = {
    climb_the_same: 0.35,
    enclose: 0.15,
    look_through_a_window: 0.3,
    learn_the_same: 0.2,
    see_the_same_without_kernels: 0.25,
    see_the_same_after_a_change: 0.2,
}
"""What else is checked of a network, and of which share of them."""


def check(seed: int, tricky: bool) -> bool:
    """Whether the kernels compute the network, with which everything must be right."""
    case, dice = Case(seed, tricky), random.Random(seed)
    try:
        taken = see_the_same(case)
        for further, share in CHECKS.items():
            if dice.random() < share:
                further(case)
    except Exception as error:
        raise AssertionError(f"seed {seed} ({case.kind}): {error}\n{case.members}") from error
    return taken


@pytest.mark.parametrize("block", range(BLOCKS))
def test_networks_of_known_layers(block):
    """At least three tenths of them are such as the kernels compute, else these would not be tested here."""
    taken = [check(seed, tricky=False) for seed in range(block * SIZE, (block + 1) * SIZE)]
    assert sum(taken) >= 0.3 * SIZE or compiler() is None


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("block", range(BLOCKS))
def test_networks_with_something_else_in_them(block):
    for seed in range(block * SIZE, (block + 1) * SIZE):
        check(seed, tricky=True)

"""Standard AutoAttack as published (Croce & Hein 2020): the yardstick of `autoattack.py`, for Linf and L2.

APGD-CE, then APGD-T (targeted DLR), FAB-T and Square, each on the samples that the ones before could not fool. Inside a
run of APGD or FAB no sample leaves; targets come one after the other. Parameters require gradients, of which only those
with respect to the input are asked for; tensors have their default layout. Nothing here is meant to be fast, and
nothing is made slow on purpose.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

Norm = Literal["linf", "l2"]
Found = tuple[Tensor, Tensor]
"""Points, and whether they fool the model within the ball."""


@dataclass(frozen=True)
class Budget:
    """How long each attack tries."""

    steps: int = 100
    targets: int = 9
    queries: int = 5000


def per_sample(value: Tensor, x: Tensor) -> Tensor:
    return value.view(-1, *[1] * (x.ndim - 1))


def length(v: Tensor, norm: Norm) -> Tensor:
    flat = v.flatten(1)
    return per_sample(flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1), v)


def clip(x: Tensor, origin: Tensor, eps: float, norm: Norm) -> Tensor:
    """Into the ball, then into [0, 1]."""
    if norm == "linf":
        return torch.min(torch.max(x, origin - eps), origin + eps).clamp(0, 1)
    move = x - origin
    return (origin + move * (eps / length(move, norm).clamp_min(1e-12)).clamp_max(1)).clamp(0, 1)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    rows, top = torch.arange(len(y), device=y.device), logits.sort(dim=1).values
    return (logits[rows, target] - logits[rows, y]) / (top[:, -1] - (top[:, -3] + top[:, -4]) / 2 + 1e-12)


def random_start(x: Tensor, eps: float, norm: Norm, generator: Generator) -> Tensor:
    noise = (
        2 * torch.rand(x.shape, generator=generator) - 1
        if norm == "linf"
        else torch.randn(x.shape, generator=generator)
    )
    noise = noise.to(x.device)
    return (x + eps * noise / length(noise, norm)).clamp(0, 1)


def apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    norm: Norm,
    steps: int,
    start: Tensor,
    target: Tensor | None = None,
) -> Found:
    """Auto-PGD on the cross-entropy, or with a target on the targeted DLR; the last point that fooled the model."""

    def look(point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            point = point.detach().requires_grad_()
            logits = model(point)
            loss = F.cross_entropy(logits, y, reduction="none") if target is None else targeted_dlr(logits, y, target)
            (gradient,) = torch.autograd.grad(loss.sum(), [point])
        return loss.detach(), gradient, logits.detach().argmax(1) != y

    before = point = start
    value, gradient, fooled = look(point)
    adv = point.clone()
    best, best_gradient, best_value = point.clone(), gradient.clone(), value.clone()
    size = per_sample(torch.full_like(value, 2 * eps), x).clone()
    values, halved, best_then = [value], torch.ones_like(fooled), best_value.clone()
    interval, since = max(22 * steps // 100, 1), 0
    for i in range(steps):
        a = 0.75 if i else 1.0
        direction = gradient.sign() if norm == "linf" else gradient / (length(gradient, norm) + 1e-12)
        moved = clip(point + size * direction, x, eps, norm)
        moved = clip(point + a * (moved - point) + (1 - a) * (point - before), x, eps, norm)
        before, point = point, moved
        value, gradient, wrong = look(point)
        adv[wrong] = point[wrong]
        fooled |= wrong
        values.append(value)
        better = value > best_value
        best[better], best_gradient[better], best_value[better] = point[better], gradient[better], value[better]
        since += 1
        if since == interval:
            rises = sum((values[-j] > values[-j - 1]).float() for j in range(1, interval + 1))
            stuck = (rises <= 0.75 * interval) | (~halved & (best_then >= best_value))
            size[stuck] /= 2
            point[stuck], gradient[stuck] = best[stuck], best_gradient[stuck]
            halved, best_then = stuck, best_value.clone()
            interval, since = max(interval - max(3 * steps // 100, 1), max(6 * steps // 100, 1)), 0
    return adv, fooled


def shortest_move(x: Tensor, w: Tensor, b: Tensor, norm: Norm) -> Tensor:
    """The shortest `d` with `w·(x + d) = b` and `x + d` in [0, 1], all rows flat; as far as the box lets it.

    `d_i = ± min(t g_i, room_i)` with `g = 1` for Linf and `|w|` for L2; `t` lies between two of the sorted kinks
    `room / g` of `Σ |w_i| min(t g_i, room_i)`.
    """
    missing = b - (w * x).sum(1)
    sign = w.sign() * per_sample(torch.where(missing >= 0, 1.0, -1.0), w)
    room = torch.where(sign > 0, 1 - x, x)
    weight = w.abs()
    gain = torch.ones_like(w) if norm == "linf" else weight
    kinks = room / gain.clamp_min(1e-12)
    order = kinks.argsort(dim=1)
    kinks, slopes, ends = (v.gather(1, order) for v in (kinks, weight * gain, weight * room))
    spent = F.pad(ends.cumsum(1), (1, 0))
    left = F.pad((slopes.sum(1, keepdim=True) - slopes.cumsum(1)).clamp_min(0), (1, 0))
    left[:, 0] = slopes.sum(1)
    reached = spent[:, 1:] + kinks * left[:, 1:]
    wanted = missing.abs()[:, None]
    at = torch.searchsorted(reached, wanted)
    t = (wanted - spent.gather(1, at)) / left.gather(1, at).clamp_min(1e-12)
    return sign * torch.min(t.clamp_min(0) * gain, room)


def fab(model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: Norm, steps: int, target: Tensor) -> Found:
    """FAB towards one class; the nearest misclassified point."""
    rows = torch.arange(len(x), device=x.device)
    point, adv, nearest = x, x.clone(), x.new_full((len(x),), math.inf)
    for _ in range(steps):
        with torch.enable_grad():
            point = point.detach().requires_grad_()
            logits = model(point)
            difference = logits[rows, target] - logits[rows, y]
            (gradient,) = torch.autograd.grad(difference.sum(), [point])
        with torch.no_grad():
            point, w = point.detach(), gradient.flatten(1)
            b = (w * point.flatten(1)).sum(1) - difference
            both = torch.cat([point, x])
            moves = shortest_move(both.flatten(1), torch.cat([w, w]), torch.cat([b, b]), norm).view(both.shape)
            (here, home), (from_here, from_home) = moves.chunk(2), length(moves, norm).clamp_min(1e-8).chunk(2)
            alpha = (from_here / (from_here + from_home)).clamp_max(0.1)
            point = ((1 - alpha) * (point + 1.05 * here) + alpha * (x + 1.05 * home)).clamp(0, 1)
            wrong = model(point).argmax(1) != y
            distance = length(point - x, norm).flatten()
            nearer = wrong & (distance < nearest)
            adv[nearer], nearest[nearer] = point[nearer], distance[nearer]
            point[wrong] = x[wrong] + 0.9 * (point[wrong] - x[wrong])
    return adv, nearest <= eps


def share(query: int) -> float:
    """The share of the image that a square covers at this query."""
    return 0.8 / 2 ** sum(query > limit for limit in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))


@cache
def pattern(side: int) -> Tensor:
    """Two heaps next to each other, one up and one down, of Euclidean length 1 (L2 only)."""

    def heap(height: int, width: int) -> Tensor:
        rings = max(height, width) // 2 + 1
        tails = torch.tensor([1 / (i + 1) ** 2 for i in range(rings)]).flip(0).cumsum(0).flip(0)
        down, across = (torch.arange(height) - height // 2).abs(), (torch.arange(width) - width // 2).abs()
        pile = tails[torch.max(down[:, None], across[None])]
        return pile / pile.norm()

    upper = side // 2
    both = torch.cat([heap(upper, side), -heap(side - upper, side)]) if upper else -heap(1, 1)
    return both / both.norm()


def square(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: Norm, queries: int, generator: Generator
) -> Tensor:
    """Square Attack on the margin: random squares, kept where they lower it; a sample that is fooled asks no more."""
    channels, high, wide = x.shape[1:]

    def signs(*shape: int) -> Tensor:
        return (torch.rand(shape, generator=generator) - 0.5).sign().to(x.device)

    def corner(side: int) -> tuple[slice, slice]:
        top, left = (int(torch.rand((), generator=generator) * (size - side)) for size in (high, wide))
        return slice(top, top + side), slice(left, left + side)

    def turned(side: int) -> Tensor:
        found = pattern(side).to(x.device)
        return found.T if torch.rand((), generator=generator) > 0.5 else found

    def margin(point: Tensor, y: Tensor) -> Tensor:
        logits = model(point)
        own = logits.gather(1, y[:, None])[:, 0]
        return own - logits.scatter(1, y[:, None], -math.inf).amax(1)

    def start_linf() -> Tensor:
        return (x + eps * signs(len(x), channels, 1, wide)).clamp(0, 1)

    def propose_linf(origin: Tensor, point: Tensor, query: int) -> Tensor:
        side = min(max(round(math.sqrt(share(query) * high * wide)), 1), high, wide)
        down, across = corner(side)
        move = torch.zeros(channels, high, wide, device=x.device)
        move[:, down, across] = 2 * eps * signs(channels, 1, 1)
        return clip(point + move, origin, eps, norm)

    def start_l2() -> Tensor:
        move, side = torch.zeros_like(x), high // 5
        first = (high - 5 * side) // 2
        for top in range(first, high - side + 1, side):
            for left in range(first, wide - side + 1, side):
                sign = signs(len(x), channels, 1, 1)
                move[:, :, top : top + side, left : left + side] += turned(side) * sign
        return (x + eps * move / (length(move, norm) + 1e-12)).clamp(0, 1)

    def propose_l2(origin: Tensor, point: Tensor, query: int) -> Tensor:
        side = max(round(math.sqrt(share(query) * high * wide)), 3)
        side = min(side + (side + 1) % 2, high, wide)
        move = point - origin
        (down, across), (down2, across2) = corner(side), corner(side)
        window = torch.zeros_like(move[:1, :1])
        window[..., down, across] = window[..., down2, across2] = 1

        def size(v: Tensor) -> Tensor:
            return v.square().sum((2, 3), keepdim=True).sqrt()

        free = (eps**2 - length(move, norm) ** 2).clamp_min(0) / channels
        radius = (free + size(move * window) ** 2).sqrt()
        old = move[:, :, down, across]
        new = turned(side) * signs(len(move), channels, 1, 1) + old / (size(old) + 1e-12)
        new = new / (size(new) + 1e-12) * radius
        move[:, :, down2, across2] = 0
        move[:, :, down, across] = new
        return (origin + eps * move / (length(move, norm) + 1e-12)).clamp(0, 1)

    start, propose = (start_linf, propose_linf) if norm == "linf" else (start_l2, propose_l2)
    with torch.no_grad():
        best = start()
        least = margin(best, y)
        for query in range(queries):
            rows = (least > 0).nonzero()[:, 0]
            if len(rows) == 0:
                break
            origin, point, known = x[rows], best[rows], least[rows]
            new = propose(origin, point, query)
            value = margin(new, y[rows])
            better = value < known
            least[rows] = torch.where(better, value, known)
            best[rows] = torch.where(per_sample(better, x), new, point)
    return best


def one_target_after_another(
    model: nn.Module, x: Tensor, y: Tensor, targets: int, attack: Callable[[Tensor, Tensor, Tensor], Found]
) -> Tensor:
    """`attack(x, y, target)` towards the second likeliest class, the third, and so on, on those not yet fooled."""
    adv, robust = x.clone(), torch.ones_like(y, dtype=torch.bool)
    for place in range(2, targets + 2):
        rows = robust.nonzero()[:, 0]
        if len(rows) == 0:
            break
        with torch.no_grad():
            target = model(x[rows]).argsort(dim=1)[:, -place]
        found, fooled = attack(x[rows], y[rows], target)
        adv[rows[fooled]] = found[fooled]
        robust[rows[fooled]] = False
    return adv


Attack = Callable[[nn.Module, Tensor, Tensor, float, Norm, Budget, Generator], Tensor]


def apgd_ce(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: Norm, budget: Budget, generator: Generator
) -> Tensor:
    return apgd(model, x, y, eps, norm, budget.steps, random_start(x, eps, norm, generator))[0]


def apgd_t(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: Norm, budget: Budget, generator: Generator
) -> Tensor:
    def attack(x: Tensor, y: Tensor, target: Tensor) -> Found:
        return apgd(model, x, y, eps, norm, budget.steps, random_start(x, eps, norm, generator), target)

    return one_target_after_another(model, x, y, budget.targets, attack)


def fab_t(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: Norm, budget: Budget, generator: Generator
) -> Tensor:
    def attack(x: Tensor, y: Tensor, target: Tensor) -> Found:
        return fab(model, x, y, eps, norm, budget.steps, target)

    return one_target_after_another(model, x, y, budget.targets, attack)


def square_attack(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: Norm, budget: Budget, generator: Generator
) -> Tensor:
    return square(model, x, y, eps, norm, budget.queries, generator)


STAGES: dict[str, Attack] = {"apgd-ce": apgd_ce, "apgd-t": apgd_t, "fab-t": fab_t, "square": square_attack}
"""The attacks in their order."""


def stage(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    robust: Tensor,
    eps: float,
    norm: Norm = "linf",
    budget: Budget = Budget(),
    seed: int = 0,
    batch: int = 250,
) -> tuple[Tensor, Tensor]:
    """One attack on the samples still robust: those that are so afterwards, and the points that fooled the others."""
    adv, left, generator = x.clone(), robust.clone(), torch.Generator().manual_seed(seed)
    for rows in robust.nonzero()[:, 0].split(batch):
        if len(rows):
            found = attack(model, x[rows], y[rows], eps, norm, budget, generator)
            with torch.no_grad():
                wrong = model(found).argmax(1) != y[rows]
            adv[rows[wrong]] = found[wrong]
            left[rows[wrong]] = False
    return left, adv


def standard(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    norm: Norm = "linf",
    batch: int = 250,
    seed: int = 0,
    budget: Budget = Budget(),
) -> tuple[dict[str, float], Tensor, dict[str, float]]:
    """All stages on a model in eval mode: the robust accuracy after each (and before: "clean"), the adversarial points
    (where there is none, the clean one), and the seconds of each.
    """
    adv = x.clone()
    with torch.no_grad():
        robust = torch.cat([model(part).argmax(1) for part in x.split(batch)]) == y
    accuracy, seconds = {"clean": float(robust.float().mean())}, {}
    for name, attack in STAGES.items():
        began = time.perf_counter()
        left, found = stage(attack, model, x, y, robust, eps, norm, budget, seed, batch)
        seconds[name] = time.perf_counter() - began
        fooled = robust & ~left
        adv[fooled] = found[fooled]
        robust, accuracy[name] = left, float(left.float().mean())
    return accuracy, adv, seconds

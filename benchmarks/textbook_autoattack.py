"""Standard AutoAttack as published (Croce & Hein 2020), the reference of `autoattack.py`, for Linf and L2.

APGD-CE, then APGD-T (targeted DLR), FAB-T and Square, each on the samples that the ones before could not fool. Within a
run of APGD or FAB no sample leaves; targets follow one after the other. Parameters require gradients, but only the
gradient with respect to the input is computed; tensors have their default layout. Nothing here is optimised, and
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
Candidates = tuple[Tensor, Tensor]
"""Points, and whether they fool the model within the ball."""


@dataclass(frozen=True)
class Budget:
    """The budget of each attack."""

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
) -> Candidates:
    """Auto-PGD on the cross-entropy, or with a target on the targeted DLR; the last point that fooled the model."""

    def evaluate(point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            point = point.detach().requires_grad_()
            logits = model(point)
            loss = F.cross_entropy(logits, y, reduction="none") if target is None else targeted_dlr(logits, y, target)
            (gradient,) = torch.autograd.grad(loss.sum(), [point])
        return loss.detach(), gradient, logits.detach().argmax(1) != y

    previous = point = start
    value, gradient, fooled = evaluate(point)
    adv = point.clone()
    best, best_gradient, best_value = point.clone(), gradient.clone(), value.clone()
    size = per_sample(torch.full_like(value, 2 * eps), x).clone()
    values, halved, best_at_check = [value], torch.ones_like(fooled), best_value.clone()
    interval, since = max(22 * steps // 100, 1), 0
    for i in range(steps):
        a = 0.75 if i else 1.0
        direction = gradient.sign() if norm == "linf" else gradient / (length(gradient, norm) + 1e-12)
        moved = clip(point + size * direction, x, eps, norm)
        moved = clip(point + a * (moved - point) + (1 - a) * (point - previous), x, eps, norm)
        previous, point = point, moved
        value, gradient, misclassified = evaluate(point)
        adv[misclassified] = point[misclassified]
        fooled |= misclassified
        values.append(value)
        better = value > best_value
        best[better], best_gradient[better], best_value[better] = point[better], gradient[better], value[better]
        since += 1
        if since == interval:
            rises = sum((values[-j] > values[-j - 1]).float() for j in range(1, interval + 1))
            stuck = (rises <= 0.75 * interval) | (~halved & (best_at_check >= best_value))
            size[stuck] /= 2
            point[stuck], gradient[stuck] = best[stuck], best_gradient[stuck]
            halved, best_at_check = stuck, best_value.clone()
            interval, since = max(interval - max(3 * steps // 100, 1), max(6 * steps // 100, 1)), 0
    return adv, fooled


def shortest_move(x: Tensor, w: Tensor, b: Tensor, norm: Norm) -> Tensor:
    """The shortest `d` with `w·(x + d) = b` and `x + d` in [0, 1], for flat rows; as far as the box allows.

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
    volume = F.pad(ends.cumsum(1), (1, 0))
    slope = F.pad((slopes.sum(1, keepdim=True) - slopes.cumsum(1)).clamp_min(0), (1, 0))
    slope[:, 0] = slopes.sum(1)
    reached = volume[:, 1:] + kinks * slope[:, 1:]
    amount = missing.abs()[:, None]
    piece = torch.searchsorted(reached, amount)
    t = (amount - volume.gather(1, piece)) / slope.gather(1, piece).clamp_min(1e-12)
    return sign * torch.min(t.clamp_min(0) * gain, room)


def fab(model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: Norm, steps: int, target: Tensor) -> Candidates:
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
            (move, move_x), (size, size_x) = moves.chunk(2), length(moves, norm).clamp_min(1e-8).chunk(2)
            alpha = (size / (size + size_x)).clamp_max(0.1)
            point = ((1 - alpha) * (point + 1.05 * move) + alpha * (x + 1.05 * move_x)).clamp(0, 1)
            misclassified = model(point).argmax(1) != y
            distance = length(point - x, norm).flatten()
            nearer = misclassified & (distance < nearest)
            adv[nearer], nearest[nearer] = point[nearer], distance[nearer]
            point[misclassified] = x[misclassified] + 0.9 * (point[misclassified] - x[misclassified])
    return adv, nearest <= eps


def share(query: int) -> float:
    """The share of the image that a square covers at this query."""
    return 0.8 / 2 ** sum(query > limit for limit in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))


@cache
def pattern(side: int) -> Tensor:
    """Two hills side by side, of opposite sign and with Euclidean norm 1 together (L2 only)."""

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
    """Square Attack on the margin: random squares, kept where they lower it; fooled samples are not queried again."""
    channels, height, width = x.shape[1:]

    def signs(*shape: int) -> Tensor:
        return (torch.rand(shape, generator=generator) - 0.5).sign().to(x.device)

    def corner(side: int) -> tuple[slice, slice]:
        top, left = (int(torch.rand((), generator=generator) * (size - side)) for size in (height, width))
        return slice(top, top + side), slice(left, left + side)

    def turned(side: int) -> Tensor:
        hills = pattern(side).to(x.device)
        return hills.T if torch.rand((), generator=generator) > 0.5 else hills

    def margin(point: Tensor, y: Tensor) -> Tensor:
        logits = model(point)
        own = logits.gather(1, y[:, None])[:, 0]
        return own - logits.scatter(1, y[:, None], -math.inf).amax(1)

    def start_linf() -> Tensor:
        return (x + eps * signs(len(x), channels, 1, width)).clamp(0, 1)

    def propose_linf(origin: Tensor, point: Tensor, query: int) -> Tensor:
        side = min(max(round(math.sqrt(share(query) * height * width)), 1), height, width)
        down, across = corner(side)
        move = torch.zeros(channels, height, width, device=x.device)
        move[:, down, across] = 2 * eps * signs(channels, 1, 1)
        return clip(point + move, origin, eps, norm)

    def start_l2() -> Tensor:
        move, side = torch.zeros_like(x), height // 5
        first = (height - 5 * side) // 2
        for top in range(first, height - side + 1, side):
            for left in range(first, width - side + 1, side):
                sign = signs(len(x), channels, 1, 1)
                move[:, :, top : top + side, left : left + side] += turned(side) * sign
        return (x + eps * move / (length(move, norm) + 1e-12)).clamp(0, 1)

    def propose_l2(origin: Tensor, point: Tensor, query: int) -> Tensor:
        side = max(round(math.sqrt(share(query) * height * width)), 3)
        side = min(side + (side + 1) % 2, height, width)
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
            active = (least > 0).nonzero()[:, 0]
            if len(active) == 0:
                break
            origin, point, old = x[active], best[active], least[active]
            new = propose(origin, point, query)
            value = margin(new, y[active])
            better = value < old
            least[active] = torch.where(better, value, old)
            best[active] = torch.where(per_sample(better, x), new, point)
    return best


def one_target_after_another(
    model: nn.Module, x: Tensor, y: Tensor, targets: int, attack: Callable[[Tensor, Tensor, Tensor], Candidates]
) -> Tensor:
    """`attack(x, y, target)` towards the second likeliest class, the third, and so on, on those not yet fooled."""
    adv, robust = x.clone(), torch.ones_like(y, dtype=torch.bool)
    for rank in range(2, targets + 2):
        active = robust.nonzero()[:, 0]
        if len(active) == 0:
            break
        with torch.no_grad():
            target = model(x[active]).argsort(dim=1)[:, -rank]
        points, fooled = attack(x[active], y[active], target)
        adv[active[fooled]] = points[fooled]
        robust[active[fooled]] = False
    return adv


Attack = Callable[[nn.Module, Tensor, Tensor, float, Norm, Budget, Generator], Tensor]


def apgd_ce(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: Norm, budget: Budget, generator: Generator
) -> Tensor:
    return apgd(model, x, y, eps, norm, budget.steps, random_start(x, eps, norm, generator))[0]


def apgd_t(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: Norm, budget: Budget, generator: Generator
) -> Tensor:
    def attack(x: Tensor, y: Tensor, target: Tensor) -> Candidates:
        return apgd(model, x, y, eps, norm, budget.steps, random_start(x, eps, norm, generator), target)

    return one_target_after_another(model, x, y, budget.targets, attack)


def fab_t(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: Norm, budget: Budget, generator: Generator
) -> Tensor:
    def attack(x: Tensor, y: Tensor, target: Tensor) -> Candidates:
        return fab(model, x, y, eps, norm, budget.steps, target)

    return one_target_after_another(model, x, y, budget.targets, attack)


def square_attack(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: Norm, budget: Budget, generator: Generator
) -> Tensor:
    return square(model, x, y, eps, norm, budget.queries, generator)


STAGES: dict[str, Attack] = {"apgd-ce": apgd_ce, "apgd-t": apgd_t, "fab-t": fab_t, "square": square_attack}
"""The attacks in order."""


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
    """One attack on the robust samples: the mask of those robust afterwards, and adversarial points of the others."""
    adv, remaining, generator = x.clone(), robust.clone(), torch.Generator().manual_seed(seed)
    for index in robust.nonzero()[:, 0].split(batch):
        if len(index):
            points = attack(model, x[index], y[index], eps, norm, budget, generator)
            with torch.no_grad():
                misclassified = model(points).argmax(1) != y[index]
            adv[index[misclassified]] = points[misclassified]
            remaining[index[misclassified]] = False
    return remaining, adv


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
    """All stages on a model in eval mode: the robust accuracy after each (and "clean"), the adversarial points (the
    clean one where there is none), and the seconds of each.
    """
    adv = x.clone()
    with torch.no_grad():
        robust = torch.cat([model(points).argmax(1) for points in x.split(batch)]) == y
    accuracy, seconds = {"clean": float(robust.float().mean())}, {}
    for name, attack in STAGES.items():
        start = time.perf_counter()
        remaining, points = stage(attack, model, x, y, robust, eps, norm, budget, seed, batch)
        seconds[name] = time.perf_counter() - start
        fooled = robust & ~remaining
        adv[fooled] = points[fooled]
        robust, accuracy[name] = remaining, float(remaining.float().mean())
    return accuracy, adv, seconds

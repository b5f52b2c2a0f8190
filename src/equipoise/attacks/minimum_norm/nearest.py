"""Several attacks side by side, and of each sample's successes the nearest (F, Sec. 5): the distance to the boundary.

margin_attack   FGSM, PGD and BG, each moved back to the boundary: how F scores R2
nearest         these, DeepFool and FMN
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch

from equipoise.attacks.attack import Attack, AttackLike, Composite, own_labels, unperturbed
from equipoise.attacks.gradient import fgsm, pgd
from equipoise.attacks.inputs import AttackInputs
from equipoise.attacks.minimum_norm.bisection import Bisected
from equipoise.attacks.minimum_norm.deepfool import deepfool
from equipoise.attacks.minimum_norm.fmn import fmn
from equipoise.attacks.minimum_norm.hein_andriushchenko import bg
from equipoise.attacks.result import AttackResult, Criterion, judge
from equipoise.core import progress
from equipoise.core.caching import cached
from equipoise.core.errors import require
from equipoise.core.types import Labels
from equipoise.geometry import Ball, Box

LADDER: dict[str, tuple[float, ...]] = {
    "linf": tuple(2.0**k for k in range(-6, 0)),
    "l2": tuple(2.0**k for k in range(-2, 4)),
    "l1": tuple(2.0**k for k in range(0, 6)),
}
"""Radii at which FGSM and PGD, which need one, are tried, in multiples of the box's scale: moved back to the boundary,
only their direction counts."""


@dataclass(frozen=True)
class Nearest(Attack):
    """Attacks side by side; of each sample's successes the nearest, of equally near ones the first.

    `AttackResult.part` says whose it was. The parts may have radii of their own, but share the box; and the norm,
    unless `norm` names the one in which all their distances are measured.
    """

    kind = "nearest"

    parts: tuple[tuple[str, AttackLike], ...]
    """Names and attacks."""
    eps: float = math.inf
    """The radius within which a perturbation counts."""
    norm: str | None = None
    """The norm of `eps` and of all distances; None is that of the parts."""
    geometry: Ball = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require(len(self.parts) > 0, "the nearest of no attacks is nowhere: give at least one (name, attack) pair.")
        spaces = {(self.norm or attack.geometry.norm, attack.geometry.box) for _, attack in self.parts}
        require(
            len(spaces) == 1,
            f"distances in different norms or boxes cannot be compared, these attacks have {len(spaces)}.",
        )
        require(len(set(self.names)) == len(self.parts), f"the names {', '.join(self.names)} are not all different.")
        ball = self.parts[0][1].geometry
        object.__setattr__(self, "geometry", replace(ball, norm=self.norm or ball.norm, eps=self.eps))

    def __str__(self) -> str:
        return f"nearest of {', '.join(self.names)}"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parts, to which `AttackResult.part` is an index."""
        return tuple(name for name, _ in self.parts)

    def run(self, inputs: AttackInputs) -> AttackResult:
        """All attacks on the samples that are right; without labels, on all, away from the prediction at `x`.

        A sample that no attack moves across the boundary stays as it is.
        """
        batches = list(inputs.batches(inputs.batch_size))
        inputs = replace(inputs, y=torch.cat([own_labels(inputs[rows]) for rows in batches]))
        result = AttackResult.cat([unperturbed(inputs[rows], self.geometry)[0] for rows in batches])
        rows = (~result.success).nonzero()[:, 0]
        if len(rows) == 0:
            return result
        best, left = result[rows], inputs[rows]
        for number, (name, attack) in enumerate(progress.shares(self.parts, self.names)):
            found = cached(name, partial(attack, left.model, left.x, left.y, **left.options))
            if attack.geometry.norm != self.geometry.norm:
                found = replace(found, distance=self.geometry.distance(found.x, left.x))
            nearer = found.success & self.geometry.contains(found.x, left.x)
            nearer &= ~best.success | (found.distance < best.distance)
            best = best.where(replace(found, part=torch.full_like(found.part, number)), nearer)
        criterion = Criterion(cast(Labels, left.y))
        return result.with_rows(rows, judge(left.predictive, self.geometry, criterion, left.x, best, left.streams))


def share_won(attack: Composite, found: AttackResult) -> dict[str, float]:
    """The share of each part of a `Nearest` or a `Chain` in the samples that were fooled (F, Table 2).

    Samples that are wrong as they are count for nobody; all shares are 0 where no sample was fooled.
    """
    won = found.part[found.success & (found.distance > 0)]
    count = torch.bincount(won, minlength=len(attack.names)).tolist()
    return {name: n / max(len(won), 1) for name, n in zip(attack.names, count, strict=True)}


def margin_attack(
    norm: str = "l2",
    eps: float = math.inf,
    *,
    radii: Sequence[float] | None = None,
    steps: int = 40,
    halvings: int = 20,
    looks: int = 16,
    box: Box = Box(),
    search_norm: str | None = None,
    step_size: float | None = None,
) -> Nearest:
    """FGSM, PGD and BG, each moved back to the boundary by bisection, and the nearest point of all (F, Sec. 5).

    F gives no radius for FGSM and PGD. Each is run at those of `radii`, by default `LADDER`, and its nearest point is
    taken, so that no choice of a radius decides a score; PGD, of `steps` steps from the clean point, stops at its first
    success. The balls in which they search are in `search_norm`, by default the `norm` in which distances are measured;
    see `published_margin_attack` for the reading that F's numbers fit. With labels, samples that are wrong already are
    at distance 0; without, every distance is one to where the prediction changes, as in F. Distances above `eps` do
    not count.
    """
    inner = search_norm or norm
    at_radii = tuple(box.scale * r for r in LADDER.get(inner, ())) if radii is None else tuple(radii)
    for known in (norm, inner):
        Ball(known, eps, box)  # refuses an unknown norm
    require(len(at_radii) > 0, "radii holds none: give FGSM and PGD at least one radius.")

    def back(attack: AttackLike) -> Bisected:
        return Bisected(attack, halvings, looks)

    fast = tuple((f"{r:g}", back(fgsm(r, inner, box=box))) for r in at_radii)
    slow = tuple((f"{r:g}", back(pgd(r, step_size, steps, inner, box, start="zero"))) for r in at_radii)
    parts = (
        ("fgsm", Nearest(fast, norm=norm)),
        ("pgd", Nearest(slow, norm=norm)),
        ("bg", back(bg(norm=norm, box=box))),
    )
    return Nearest(parts, eps)


def published_margin_attack(
    eps: float = math.inf,
    *,
    radius: float | None = None,
    step_size: float | None = None,
    steps: int = 40,
    box: Box = Box(),
    **options: Any,
) -> Nearest:
    """`margin_attack` with distances in L2 and with FGSM and PGD in a Linf ball of one `radius`, by default 40 steps of
    .01 in one of .3, in widths of the box: the reading of F under which BG wins as many points as F Table 2 prints.

    In L2 balls of several radii FGSM and PGD come nearer than BG, and F's R2 is 10 to 33 % larger than theirs. Also
    takes the other options of `margin_attack`.
    """
    radius = 0.3 * box.scale if radius is None else radius
    step_size = 0.01 * box.scale if step_size is None else step_size
    reading: dict[str, Any] = {"radii": (radius,), "steps": steps, "step_size": step_size, "search_norm": "linf"}
    return margin_attack("l2", eps, box=box, **reading, **options)


def nearest(norm: str = "l2", eps: float = math.inf, *, steps: int = 100, box: Box = Box(), **options: Any) -> Nearest:
    """`margin_attack`, and DeepFool and FMN of `steps` steps, moved back in the same way: a lower upper bound.

    Also takes the other options of `margin_attack`.
    """
    weaker = margin_attack(norm, eps, box=box, **options)
    refined = {name: options[name] for name in ("halvings", "looks") if name in options}
    more = (("deepfool", deepfool(norm=norm, box=box)), ("fmn", fmn(norm=norm, steps=steps, box=box)))
    return replace(weaker, parts=weaker.parts + tuple((name, Bisected(one, **refined)) for name, one in more))

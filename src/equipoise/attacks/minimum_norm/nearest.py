"""Several independent attacks, and of each sample's successes the nearest (F, Sec. 5): the distance to the boundary.

margin_attack   FGSM, PGD and BG, each moved back to the boundary: how F scores R2
nearest         these, DeepFool and FMN
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from equipoise.attacks.attack import AttackLike, Composite, own_labels, unperturbed
from equipoise.attacks.gradient import fgsm, pgd
from equipoise.attacks.inputs import AttackInputs
from equipoise.attacks.minimum_norm.bisection import Bisected
from equipoise.attacks.minimum_norm.deepfool import deepfool
from equipoise.attacks.minimum_norm.fmn import fmn
from equipoise.attacks.minimum_norm.hein_andriushchenko import bg
from equipoise.attacks.result import AttackResult
from equipoise.core import progress
from equipoise.core.caching import cached
from equipoise.core.checks import checked_call
from equipoise.core.errors import require
from equipoise.geometry import Ball, Box

RADII: dict[str, tuple[float, ...]] = {
    "linf": tuple(2.0**k for k in range(-6, 0)),
    "l2": tuple(2.0**k for k in range(-2, 4)),
    "l1": tuple(2.0**k for k in range(0, 6)),
}
"""Radii at which FGSM and PGD, which need one, are tried, in multiples of the box's scale: moved back to the boundary,
only their direction counts."""


@dataclass(frozen=True)
class Nearest(Composite):
    """Independent attacks; of each sample's successes the nearest, of equally near ones the first.

    `AttackResult.part` is the attack it comes from. The parts may have radii of their own, but share the box, and the
    norm too unless `norm` is given.
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
        require(
            len(self.parts) > 0,
            "there is no attack to take the nearest point of: give at least one (name, attack) pair.",
        )
        spaces = {(self.norm or attack.geometry.norm, attack.geometry.box) for _, attack in self.parts}
        require(
            len(spaces) == 1,
            f"distances in different norms or boxes cannot be compared, these attacks have {len(spaces)}.",
        )
        require(len(set(self.names)) == len(self.parts), f"the names {', '.join(self.names)} are not all different.")
        ball = self.parts[0][1].geometry
        object.__setattr__(self, "geometry", replace(ball, norm=self.norm or ball.norm, eps=self.eps))

    def run(self, inputs: AttackInputs) -> AttackResult:
        """All attacks on the samples that are right; without labels, on all, away from the prediction at `x`.

        A sample that no attack moves across the boundary stays as it is.
        """
        batches = list(inputs.batches(inputs.batch_size))
        inputs = replace(inputs, y=torch.cat([own_labels(inputs[batch]) for batch in batches]))
        result = AttackResult.cat([unperturbed(inputs[batch], self.geometry)[0] for batch in batches])
        correct = (~result.success).nonzero()[:, 0]
        if len(correct) == 0:
            return result
        best, inputs = result[correct], inputs[correct]
        for number, (name, attack) in enumerate(progress.shares(self.parts, self.names)):
            new = cached(name, partial(attack, inputs.model, inputs.x, inputs.y, **inputs.options))
            if attack.geometry.norm != self.geometry.norm:
                new = replace(new, distance=self.geometry.distance(new.x, inputs.x))
            nearer = new.success & self.geometry.contains(new.x, inputs.x)
            nearer &= ~best.success | (new.distance < best.distance)
            best = best.where(replace(new, part=torch.full_like(new.part, number)), nearer)
        return result.with_rows(correct, inputs.judge(self.geometry, best))


def share_won(attack: Composite, result: AttackResult) -> dict[str, float]:
    """The share of each part of a `Nearest` or a `Chain` in the samples that were fooled (F, Table 2).

    Samples that are misclassified without a perturbation count for no part; all shares are 0 where none was fooled.
    """
    winners = result.part[result.success & (result.distance > 0)]
    count = torch.bincount(winners, minlength=len(attack.names)).tolist()
    return {name: n / max(len(winners), 1) for name, n in zip(attack.names, count, strict=True)}


@checked_call()
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

    F gives no radius for FGSM and PGD. Each is run at those of `radii`, by default `RADII`, and its nearest point is
    taken, so that no choice of a radius decides a score; PGD, of `steps` steps from the clean point, stops at its first
    success. The balls in which they search are in `search_norm`, by default the `norm` in which distances are measured;
    see `published_margin_attack` for the reading that F's numbers fit. With labels, samples that are wrong already are
    at distance 0; without, every distance is one to where the prediction changes, as in F. Distances above `eps` do
    not count.
    """
    inner = search_norm or norm
    for name in (norm, inner):
        Ball(name, eps, box)  # refuses an unknown norm
    radii = [box.scale * r for r in RADII[inner]] if radii is None else radii
    require(
        isinstance(radii, Sequence) and len(radii) > 0,
        f"radii = {radii!r}: give FGSM and PGD at least one radius, as a list of numbers.",
    )

    def bisected(attack: AttackLike) -> Bisected:
        return Bisected(attack, halvings, looks)

    fgsms = tuple((f"{r:g}", bisected(fgsm(r, inner, box=box))) for r in radii)
    pgds = tuple((f"{r:g}", bisected(pgd(r, step_size, steps, inner, box, start="zero"))) for r in radii)
    parts = (
        ("fgsm", Nearest(fgsms, norm=norm)),
        ("pgd", Nearest(pgds, norm=norm)),
        ("bg", bisected(bg(norm=norm, box=box))),
    )
    return Nearest(parts, eps)


@checked_call(margin_attack)
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


@checked_call(margin_attack)
def nearest(norm: str = "l2", eps: float = math.inf, *, steps: int = 100, box: Box = Box(), **options: Any) -> Nearest:
    """`margin_attack`, and DeepFool and FMN of `steps` steps, moved back in the same way: a lower upper bound.

    Also takes the other options of `margin_attack`.
    """
    weaker = margin_attack(norm, eps, box=box, **options)
    refined = {name: options[name] for name in ("halvings", "looks") if name in options}
    more = (("deepfool", deepfool(norm=norm, box=box)), ("fmn", fmn(norm=norm, steps=steps, box=box)))
    return replace(weaker, parts=weaker.parts + tuple((name, Bisected(attack, **refined)) for name, attack in more))

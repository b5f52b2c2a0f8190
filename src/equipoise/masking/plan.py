"""Which attacks look for masked gradients, by name, and what each costs."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from equipoise.attacks import HopSkipJump, Square, adaptive, apgd, cw, pgd, random_search, transfer
from equipoise.attacks.ascent import Ascent, ReturnPoint
from equipoise.attacks.attack import AttackLike
from equipoise.attacks.steps import Uniform
from equipoise.core.errors import require
from equipoise.core.rng import Streams
from equipoise.core.types import Answers, Points, Predict, Prediction, Predictive, Weights
from equipoise.geometry import Ball
from equipoise.models import global_seed

STEPS, RESTARTS, QUERIES, DRAWS, SMOOTHED_STEPS, SHORT_STEPS, EOT_SAMPLES = 40, 10, 1000, 1000, 20, 10, 10
OTHER_STEPS = (5, 10, 20, 80, 160)
_FORWARD_COST = 0.4  # of a prediction, in gradients
_DESTRUCTIVE = {"linf": 150 / 255, "l2": 0.3, "l1": 0.3}  # radius that leaves nothing of an image: of 1, √d and d

PGD, PGD_ON_MARGIN, PGD_ON_SMOOTHED = f"PGD-{STEPS}", "PGD on the margin", "PGD on smoothed labels"
ONE_START, MANY_STARTS = "1 random start", f"{RESTARTS} random starts"
SQUARE, RANDOM_POINTS, TRANSFER = f"Square-{QUERIES}", f"{DRAWS} random points", "transfer"
HOP_SKIP_JUMP = f"HopSkipJump-{QUERIES}"
PGD_ON_ONE_DRAW, PGD_ON_MEAN = "PGD on one draw", f"PGD on the mean over {EOT_SAMPLES} draws"
LONGER_STEPS, LONGER_QUERIES = 100, 5000
LONGER_PGD, LONGER_PGD_ON_MARGIN, LONGER_SQUARE = "longer PGD", "longer PGD on the margin", "longer Square"
LONGER_HOP_SKIP_JUMP = "longer HopSkipJump"
SHORT_PGD, SHORT_TRANSFER = f"PGD-{SHORT_STEPS} with steps of eps/{SHORT_STEPS}", "the same on the proxy"


class PlannedAttack(NamedTuple):
    """An attack, and about how many gradients it costs per sample."""

    cost: float
    attack: AttackLike


Plan = dict[str, PlannedAttack]
"""Attacks by name."""


def cost(plan: Plan) -> float:
    """Return about how many gradients a plan costs per sample."""
    return sum(planned.cost for planned in plan.values())


def settings(plan: Plan) -> dict[str, Any]:
    """Return the parameters of the attacks, for the record."""
    radii = sorted({planned.attack.geometry.eps for planned in plan.values()})
    return {"steps": STEPS, "restarts": RESTARTS, "queries": QUERIES, "draws": DRAWS, "radii": radii}


def pgd_from_sample(ball: Ball, steps: int = STEPS, **options: Any) -> Ascent:
    """Return PGD on the cross-entropy that starts at the sample itself and stops at the first success."""
    size = max(2.5 * ball.eps / steps, ball.eps / 100)
    return pgd(ball.eps, size, steps, ball.norm, ball.box, **{"start": "zero"} | options)


def without_gradients(ball: Ball) -> Plan:
    """Return the attacks that need no gradient of the model."""
    return {
        SQUARE: PlannedAttack(_FORWARD_COST * QUERIES, Square(ball, QUERIES)),
        RANDOM_POINTS: PlannedAttack(_FORWARD_COST * DRAWS, random_search(ball.eps, ball.norm, DRAWS, ball.box)),
    }


def of_black_box(ball: Ball, features: int, answers: Answers) -> Plan:
    """Return the attacks on a model that gives no more than scores, or labels, the strongest one at several radii.
    Raises `EquipoiseError` for a norm that none of them knows.
    """
    walks = ball.norm in ("linf", "l2")
    require(answers == "scores" or walks, f"labels alone are attacked in linf and l2, not in {ball.norm}.")
    walk = HopSkipJump(ball, QUERIES, return_point="first_success") if walks else None
    strongest: AttackLike = Square(ball, QUERIES) if answers == "scores" or walk is None else walk
    attacks: dict[str, AttackLike] = {SQUARE: strongest} if answers == "scores" else {}
    attacks |= {} if walk is None else {HOP_SKIP_JUMP: walk}
    attacks[RANDOM_POINTS] = random_search(ball.eps, ball.norm, DRAWS, ball.box)
    for radius in other_radii(ball, features):
        attacks[radius_name(radius)] = replace(strongest, geometry=replace(ball, eps=radius))
    return {name: PlannedAttack(_FORWARD_COST * QUERIES, attack) for name, attack in attacks.items()}


def longer_of_black_box(ball: Ball, answers: Answers) -> Plan:
    """Return the attack that is repeated on what is left, until the time is over."""
    attack: AttackLike = HopSkipJump(ball, LONGER_QUERIES, return_point="first_success")
    name = LONGER_HOP_SKIP_JUMP
    if answers == "scores":
        name, attack = LONGER_SQUARE, Square(ball, LONGER_QUERIES)
    return {name: PlannedAttack(_FORWARD_COST * LONGER_QUERIES, attack)}


def transferred(ball: Ball, proxy: "nn.Module | Predictive", proxy_name: str) -> Plan:
    """Return the attack on another model whose adversarial examples are tried on this one."""
    attack = transfer(proxy, pgd_from_sample(ball, return_point="best"), proxy_name)
    return {TRANSFER: PlannedAttack(STEPS, attack)}


def with_gradients(ball: Ball, features: int, return_point: ReturnPoint) -> Plan:
    """Return the attacks that follow gradients. Of a random model `return_point` is the last: its first success, or its
    best point, is a lucky draw.
    """

    def attack(ball: Ball, steps: int = STEPS, **options: Any) -> Ascent:
        return pgd_from_sample(ball, steps, return_point=return_point, **options)

    options: dict[str, Any] = {"box": ball.box, "return_point": return_point}
    plan = {f"PGD-{steps}": PlannedAttack(steps, attack(ball, steps)) for steps in (STEPS, *OTHER_STEPS)}
    plan |= {
        PGD_ON_MARGIN: PlannedAttack(STEPS, cw(ball.eps, None, STEPS, ball.norm, start="zero", **options)),
        ONE_START: PlannedAttack(STEPS, attack(ball, start=Uniform())),
        MANY_STARTS: PlannedAttack(STEPS * RESTARTS, attack(ball, start=Uniform(), restarts=RESTARTS)),
        PGD_ON_SMOOTHED: PlannedAttack(
            11 * SMOOTHED_STEPS, adaptive(ball.eps, ball.norm, SMOOTHED_STEPS, restarts=1, **options)
        ),
    }
    for radius in other_radii(ball, features):
        steps = 100 if radius > 4 * ball.eps else STEPS
        plan[radius_name(radius)] = PlannedAttack(steps, attack(replace(ball, eps=radius), steps))
    return plan


def longer(ball: Ball, no_gradient: str, random: bool) -> Plan:
    """Return the attacks that are repeated on what is left, from other random starts each time, until the time is over;
    of a random model on the mean over draws.
    """
    plan = {LONGER_SQUARE: PlannedAttack(_FORWARD_COST * LONGER_QUERIES, Square(ball, LONGER_QUERIES))}
    if no_gradient:
        return plan
    if random:
        draws = {"start": Uniform(), "return_point": "last", "eot_samples": EOT_SAMPLES, "resample": True}
        return {LONGER_PGD: PlannedAttack(STEPS * EOT_SAMPLES, pgd_from_sample(ball, **draws)), **plan}
    margin = cw(ball.eps, None, LONGER_STEPS, ball.norm, box=ball.box, start=Uniform(), return_point="first_success")
    return {
        LONGER_PGD: PlannedAttack(LONGER_STEPS, apgd(ball.eps, ball.norm, LONGER_STEPS, box=ball.box)),
        LONGER_PGD_ON_MARGIN: PlannedAttack(LONGER_STEPS, margin),
        **plan,
    }


def over_draws(predictive: Predictive, ball: Ball) -> Plan:
    """Return the attacks on one draw of a random model, and on the mean over fresh draws (EOT; Athalye et al. 2018)."""
    one_draw = transfer(OneDraw(predictive), pgd_from_sample(ball, return_point="last"), "one draw")
    mean = pgd_from_sample(ball, return_point="last", eot_samples=EOT_SAMPLES, resample=True)
    return {
        PGD_ON_ONE_DRAW: PlannedAttack(STEPS, one_draw),
        PGD_ON_MEAN: PlannedAttack(STEPS * EOT_SAMPLES, mean),
    }


def short_attacks(ball: Ball, proxy: "nn.Module | Predictive", proxy_name: str) -> Plan:
    """Return the short PGD of R, Sec. 5.1, whose steps add up to the radius, on the model and on another model."""
    length = ball.eps / SHORT_STEPS
    attack = pgd(ball.eps, length, SHORT_STEPS, ball.norm, ball.box, start="zero", return_point="last")
    return {
        SHORT_PGD: PlannedAttack(SHORT_STEPS, attack),
        SHORT_TRANSFER: PlannedAttack(SHORT_STEPS, transfer(proxy, attack, proxy_name)),
    }


@dataclass(frozen=True)
class OneDraw:
    """A random model held to one draw: at every call the global generators start from the same state."""

    predictive: Predictive

    @property
    def module(self) -> nn.Module:
        """The module of the model."""
        return self.predictive.module

    def draw(self, streams: Streams | None = None, weights: Weights | None = None) -> Predict:
        """Return the prediction function of that draw."""
        predict = self.predictive.draw(streams, weights)

        def same_draw(x: Points) -> Prediction:
            with global_seed(0, x.device):
                return predict(x)

        return same_draw


def radius_name(radius: float) -> str:
    """Return the name of PGD at a radius."""
    return f"eps {radius:.3g}"


def other_radii(ball: Ball, features: int) -> list[float]:
    """Return half the radius, twice the radius, and again, up to one at which nothing of an image is left."""
    width = ball.box.high - ball.box.low
    diameter = width * {"linf": 1, "l2": features**0.5, "l1": features}[ball.norm]
    last = min(max(_DESTRUCTIVE[ball.norm] * diameter, 4 * ball.eps), diameter)
    if not np.isfinite(diameter):
        last = 64 * ball.eps
    radii = [ball.eps * 2**i for i in (-1, *range(1, 12)) if ball.eps * 2**i < 0.75 * last]
    return [*radii, last] if last > ball.eps else radii

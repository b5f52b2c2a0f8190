"""How far a sample is from being misclassified: the distance at which an attack without a bound succeeds.

R (Sec. 6 and Fig. 4) walks uphill without a radius until the prediction is wrong and reports `‖x_adv - x‖₂`. Here the
point found is then taken back along the segment to the clean one, to the nearest wrong point that bisection finds.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from equipoise.ascent import Ascent
from equipoise.attacks.attack import Attack
from equipoise.errors import require
from equipoise.geometry import Ball, Box
from equipoise.objectives import Objective, cross_entropy, margin
from equipoise.perturbed import GLOBAL_STREAM, MODEL_STREAM, Goal, Perturbed, admit, at, confirmed
from equipoise.predictive import couples_samples, predict, seeded, standing
from equipoise.rng import Streams, fold
from equipoise.spaces import Input
from equipoise.types import Labels, Points, Prediction, Predictive

_ROUNDING = 32  # margin, in units of the logits' resolution, from which an error is one in every batch


@dataclass(frozen=True)
class Bisected:
    """An attack whose successes are moved back towards the clean point, as near to the boundary as bisection comes.

    Of the segment `x + t(x_adv - x)` a right point and a wrong one are known, at first t = 0 and t = 1; each halving
    replaces one of them by the middle. The result is the wrong one: `distance` is that of a misclassified point, an
    upper bound on the distance to the boundary, within `2^-halvings` of the move of where the segment crosses it. Wrong
    is what stays so under rounding: nearer to the boundary than float32 resolves, no other batch would confirm it.
    """

    attack: Attack
    """The attack."""
    halvings: int = 20
    """How often the segment is halved; each costs one forward pass."""

    def __post_init__(self) -> None:
        require(self.halvings >= 1, f"halvings = {self.halvings} refines nothing: expected an integer >= 1.")
        require(
            isinstance(getattr(self.attack, "space", Input()), Input),
            "bisection moves points of the input, but the attack perturbs a latent space: leave out its space.",
        )

    def __str__(self) -> str:
        return f"{self.attack}, back to the boundary"

    @property
    def geometry(self) -> Ball:
        """Where perturbed points may lie."""
        return self.attack.geometry

    def settings(self) -> dict[str, Any]:
        """Every parameter as JSON-ready data, for records."""
        found = self.attack.settings()
        return {"attack": "bisected", "geometry": found["geometry"], "halvings": self.halvings, "of": found}

    @torch.no_grad()
    def __call__(
        self,
        model: "nn.Module | Predictive",
        x: Points,
        y: Labels | None = None,
        *,
        seed: int = 0,
        index: Int[Tensor, " batch"] | None = None,
        batch_size: int = 512,
    ) -> Perturbed:
        """Attack `x`, and move back what succeeded; without labels, to where the prediction just differs from that at
        `x`. A sample that is wrong already is at distance 0; `distance` says nothing where `success` is False.

        Results depend neither on `batch_size` nor on the order, up to float rounding.
        Raises `EquipoiseError` for unusable input and for models in which samples depend on each other.
        """
        case = admit(model, x, y, self.geometry, seed=seed, index=index, batch_size=batch_size)
        with standing(case.predictive.module, "eval"):
            require(
                not couples_samples(case.predictive.module),
                "bisection moves every sample by itself, but in this model a prediction depends on its batch "
                "(batch-norm without running statistics): give it running statistics.",
            )
        found = self.attack(model, x, y, seed=seed, index=index, batch_size=batch_size)
        with seeded(fold(seed, GLOBAL_STREAM), x.device):
            return Perturbed.cat(
                [
                    self._moved_back(case.predictive, x[b], at(y, b), found.take(b), case.streams[b])
                    for b in torch.arange(len(x), device=x.device).split(batch_size)
                ]
            )

    def _moved_back(
        self, predictive: Predictive, x: Points, y: Labels | None, found: Perturbed, streams: Streams
    ) -> Perturbed:
        """One batch of what was found; those that did not succeed stay."""
        found, rows = replace(found, part=torch.zeros_like(found.part)), found.success.nonzero()[:, 0]
        if len(rows) == 0:
            return found
        old, x, y, streams = found.take(rows), x[rows], at(y, rows), streams[rows]
        clean = predict(predictive, x, streams.fold(MODEL_STREAM))
        goal = Goal(clean.labels if y is None else y)

        def on_the_way(share: Tensor) -> Points:
            return torch.lerp(x, old.x, share.reshape(-1, *[1] * (x.ndim - 1)))

        right = torch.zeros_like(old.distance)
        wrong = torch.where(goal.reached(clean), 0.0, torch.ones_like(right))
        for _ in range(self.halvings):
            middle = (right + wrong) / 2
            fooled = _clearly_wrong(predict(predictive, on_the_way(middle), streams.fold(MODEL_STREAM)), goal.avoid)
            right, wrong = torch.where(fooled, right, middle), torch.where(fooled, middle, wrong)
        spent = torch.full_like(old.evaluations, 1 + self.halvings)
        near, _ = confirmed(
            predictive,
            self.geometry,
            goal,
            x,
            on_the_way(wrong),
            streams,
            evaluations=spent,
            iteration=old.iteration,
        )
        return found.overwritten(rows, old.or_rather(near, near.success))


def _clearly_wrong(here: Prediction, y: Labels) -> Bool[Tensor, " batch"]:
    """By more than rounding, lest the point be right in another batch or on another device."""
    resolution = torch.finfo(here.scores.dtype).eps * here.scores.abs().amax(1)
    return margin(here, None, y) > _ROUNDING * resolution


def minimal_l2(
    step_size: float = 0.02,
    steps: int = 500,
    objective: Objective = cross_entropy,
    halvings: int = 20,
    box: Box = Box(),
    **options: Any,
) -> Bisected:
    """The L2 distance at which a sample is misclassified: normalised gradient steps without a radius until it is, then
    back to the boundary (R, Sec. 6). In pixels of [0, 1]; it reaches as far as `steps · step_size`.

    On the distance to the nearest boundary this is an upper bound, and for a linear model of two classes the distance
    itself. With several classes the cross-entropy need not lead to the nearest: with `target=9, objective=margin` it
    climbs towards each of the 9 likeliest side by side, and the first to arrive counts. Also takes the other fields of
    `Ascent`, such as `precision`. It bounds nothing, so that every sample may fall: quote the distances.
    """
    options = {"keep": "first_success"} | options
    return Bisected(Ascent(objective, Ball("l2", math.inf, box), step_size, steps, **options), halvings)
